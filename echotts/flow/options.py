"""Sampler options and presets; does not import jax."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from echotts.flow.grids import Grid, time_grid

EVERY_T = (0.0, 1.0)
TIME_TOLERANCE = 1e-6  # for float32 times at the limits of an interval
STEPS_LIMIT = 1024  # the modulation of all steps is held in memory
GUIDANCE_INTERVAL = (0.5, 1.0)  # guidance matters early, at high noise; later steps need only one row
DOUBLINGS = 5  # a student's steps: 1/32 of the way from noise to data, and 2, 4, ..., 32 times as long
SMALLEST_STEPS = 2**DOUBLINGS
STUDENT_STEPS = 4
FOR_STUDENTS = ("steps", "cfg_scale", "truncation", "student")  # the options that a student knows

Solver = Literal["euler", "ab2"]
"""Euler's method, or the two-step Adams-Bashforth method: second order, also one evaluation per step."""

Drop = tuple[bool, bool]  # (text, speaker): the conditions that a guidance branch drops


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Configuration of sampling. All numbers are arguments of the compiled sampler, not compile-time constants.

    `cfg_scale` guides jointly. `text_scale` or `speaker_scale` guide independently instead (a missing one is 0).
    Guidance is applied for interval[0] <= t <= interval[1]; other steps run one row per sample. By default joint
    guidance is applied at every t, as published, and independent guidance within GUIDANCE_INTERVAL, as in Echo.
    Alternating guidance runs one branch per step, in turn, instead of all of them.
    `time_scale` multiplies the time grid (Echo: 0.999); `truncation` multiplies the initial noise (Echo: 0.8 to 1).
    `rescale` (k, s) is the temporal score rescaling of arXiv 2510.01184 (Echo: 1.2, 3). `speaker_kv_scale` multiplies
    the speaker's keys and values in the first `speaker_kv_layers` layers (None: all) while t >= `speaker_kv_until`
    (Echo: 1.5, until 0.9). `student` samples with the student of a model (flow/distillation.py): its steps are a power
    of two, and it runs one row, of which `cfg_scale` is an input. Formulas: docs/sampling.md.
    """

    steps: int = 32
    cfg_scale: float = 3.0
    text_scale: float | None = None
    speaker_scale: float | None = None
    interval: tuple[float, float] | None = None
    time_scale: float = 1.0
    truncation: float = 1.0
    solver: Solver = "euler"
    grid: Grid = "even"
    sway: float = 0.0
    alternating: bool = False
    rescale: tuple[float, float] | None = None
    speaker_kv_scale: float = 1.0
    speaker_kv_layers: int | None = None
    speaker_kv_until: float = 0.9
    student: bool = field(default=False, repr=False)  # not in keys of scripts that were spoken before

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= STEPS_LIMIT:
            raise ValueError(f"sampler steps {self.steps} must be from 1 to {STEPS_LIMIT:,}")
        low, high = self.guided
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance interval {low}..{high} must be within 0..1, the lower end first")
        if not 0 < self.time_scale <= 1:
            raise ValueError(f"time_scale {self.time_scale} must be above 0 and at most 1")
        numbers = (*self.branches.values(), self.truncation, self.speaker_kv_scale)
        if not np.isfinite(numbers).all():
            raise ValueError(f"guidance scales, truncation and speaker_kv_scale must be finite numbers: {numbers}")
        if self.solver not in get_args(Solver) or self.grid not in get_args(Grid):
            raise ValueError(
                f"solver {self.solver!r} and grid {self.grid!r}: euler or ab2, and even or epss, are known"
            )
        if not -1.5 <= self.sway <= 1.0:
            raise ValueError(f"sway {self.sway} must be within -1.5..1 (F5-TTS: -1)")
        if self.rescale is not None and not all(0 < number < np.inf for number in self.rescale):
            raise ValueError(f"rescale {self.rescale}: give k and s above 0 (Echo: 1.2 and 3)")
        if not 0 <= self.speaker_kv_until <= 1 or (self.speaker_kv_layers is not None and self.speaker_kv_layers < 1):
            raise ValueError("speaker_kv_until must be within 0..1 and speaker_kv_layers at least 1")
        if self.alternating and not self.branches:
            raise ValueError("alternating guidance needs a guidance scale")
        time_grid(self.steps, self.grid, self.sway)
        if self.student:
            self._check_student()

    def _check_student(self) -> None:
        usual = {field.name: field.default for field in dataclasses.fields(SamplerConfig)}
        for name in usual.keys() - set(FOR_STUDENTS):
            if getattr(self, name) != usual[name]:
                raise ValueError(
                    f"{name}: a student has guidance and steps in its weights, and takes only steps, cfg_scale and "
                    'truncation: sample its model with preset "quality"'
                )
        if self.steps > SMALLEST_STEPS or self.steps & (self.steps - 1):
            raise ValueError(f"sampler steps {self.steps}: a student takes 1, 2, 4, 8, 16 or {SMALLEST_STEPS}")

    @property
    def independent(self) -> bool:
        """Whether text and speaker are guided separately."""
        return self.text_scale is not None or self.speaker_scale is not None

    @property
    def guided(self) -> tuple[float, float]:
        """The range of times in which guidance is applied."""
        return self.interval or (GUIDANCE_INTERVAL if self.independent else EVERY_T)

    @property
    def branches(self) -> dict[Drop, float]:
        """The conditions that each guidance branch drops, and its scale; branches of scale 0 are omitted."""
        if self.student:
            return {}
        scales = (
            {(True, False): self.text_scale or 0.0, (False, True): self.speaker_scale or 0.0}
            if self.independent
            else {(True, True): self.cfg_scale}
        )
        return {drop: scale for drop, scale in scales.items() if scale != 0}

    @property
    def times(self) -> Float[np.ndarray, " n"]:
        """The steps + 1 times, float32."""
        return np.float32(self.time_scale) * time_grid(self.steps, self.grid, self.sway)

    @property
    def guided_steps(self) -> tuple[int, int]:
        """The first guided step and the one after the last."""
        times = self.times[:-1].astype(np.float64)
        low, high = self.guided
        inside = np.flatnonzero((times >= low - TIME_TOLERANCE) & (times <= high + TIME_TOLERANCE))
        return (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)


def _echo(text_scale: float, speaker_scale: float, *, flat: bool) -> SamplerConfig:
    return SamplerConfig(
        steps=40,
        text_scale=text_scale,
        speaker_scale=speaker_scale,
        time_scale=0.999,
        rescale=(1.2, 3.0) if flat else None,
    )


_ECHO_SCALES = {"high-speaker-cfg": (3.0, 8.0), "high-cfg": (8.0, 8.0), "low-cfg": (3.0, 3.0)}  # text, speaker

QUALITY, STUDENT = "quality", "student"

PRESETS: dict[str, SamplerConfig] = {
    # By purpose, with joint guidance.
    "draft": SamplerConfig(steps=8),
    "balanced": SamplerConfig(steps=16),
    QUALITY: SamplerConfig(),
    # For models with a student.
    STUDENT: SamplerConfig(steps=STUDENT_STEPS, student=True),
    # Echo's, for its checkpoints.
    **{f"echo-{name}": _echo(*scales, flat=False) for name, scales in _ECHO_SCALES.items()},
    **{f"echo-{name}-flat": _echo(*scales, flat=True) for name, scales in _ECHO_SCALES.items()},
}


def default_preset(has_student: bool) -> str:
    """The preset of a model for which none is given."""
    return STUDENT if has_student else QUALITY


def _preset(name: str) -> SamplerConfig:
    """A preset by name. ValueError lists the names."""
    if name not in PRESETS:
        raise ValueError(f"sampler preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def sampler_config(preset: str = QUALITY, **options: Any) -> SamplerConfig:
    """A preset, with `options` replacing fields of SamplerConfig; None keeps the preset's value.

    `guidance_interval` is the field `interval`. ValueError for unknown presets or options and invalid values.
    """
    given = {"interval" if name == "guidance_interval" else name: value for name, value in options.items()}
    given = {name: value for name, value in given.items() if value is not None}
    known = [field.name for field in dataclasses.fields(SamplerConfig)]
    if unknown := sorted(given.keys() - set(known)):
        raise ValueError(f"sampler option {unknown[0]!r}: known are {', '.join(known)}")
    if "cfg_scale" in given and not given.keys() & {"text_scale", "speaker_scale"}:
        given |= {"text_scale": None, "speaker_scale": None}  # joint guidance replaces a preset's independent one
    return dataclasses.replace(_preset(preset), **given)
