"""Sampling flags shared by `echotts speak` and `echotts eval`."""

from dataclasses import dataclass
from typing import Literal

from echotts.flow.options import SamplerConfig, default_preset, sampler_config


@dataclass(frozen=True, kw_only=True)
class SamplerFlags:
    """Sampling options. A flag that is not given takes the value of the preset."""

    preset: str | None = None
    """draft, balanced or quality (32 Euler steps); student (4 steps), the default of models that have one (train
    --distil_from); for Echo's checkpoints echo-high-cfg, echo-high-speaker-cfg, echo-low-cfg, each also with the suffix
    -flat. None: student or quality."""
    steps: int | None = None
    """Steps from noise to speech; of a student 1, 2, 4, 8, 16 or 32. None: the preset's, 32 or 4."""
    cfg_scale: float | None = None
    """Classifier-free guidance scale for text and voice together; 0: none. None: the preset's, 3."""
    text_scale: float | None = None
    """Guidance scale for the text alone; this or --speaker_scale replaces --cfg_scale."""
    speaker_scale: float | None = None
    """Guidance scale for the voice alone."""
    guidance_interval: tuple[float, float] | None = None
    """Range of times t in which guidance is applied; t = 1 is noise. None: 0 1, or 0.5 1 with separate scales for text
    or voice."""
    alternating: bool | None = None
    """With scales for text and voice: alternate between them from step to step. Two rows per step instead of three."""
    solver: Literal["euler", "ab2"] | None = None
    """Euler's method, or the two-step Adams-Bashforth method, which needs fewer steps."""
    grid: Literal["even", "epss"] | None = None
    """Uniform steps, or F5-TTS's grid for 5, 6, 7, 10, 12 or 16 steps."""
    sway: float | None = None
    """F5-TTS's sway coefficient: -1 puts more steps near the noise, 0 disables it."""
    time_scale: float | None = None
    """Scale of the time grid, above 0 and at most 1 (Echo: 0.999)."""
    truncation: float | None = None
    """Scale of the initial noise; lower values give calmer speech (Echo: 0.8 to 1)."""
    rescale: tuple[float, float] | None = None
    """Temporal score rescaling: k and s (Echo: 1.2 3)."""
    speaker_kv_scale: float | None = None
    """Scale of the speaker's keys and values while t is at least --speaker_kv_until (Echo: 1.5)."""
    speaker_kv_layers: int | None = None
    """Number of layers, from the first, that --speaker_kv_scale applies to. None: all."""
    speaker_kv_until: float | None = None
    """Lowest time t at which --speaker_kv_scale applies. None: 0.9."""

    def check_sampling(self) -> None:
        """ValueError for invalid or contradictory values."""
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"--steps {self.steps} must be at least 1")
        self.sampler()

    def sampler(self, has_student: bool = False) -> SamplerConfig:
        """The sampler configuration, for a model that may have a student.

        ValueError for invalid or contradictory values.
        """
        options = {name: getattr(self, name) for name in SamplerFlags.__dataclass_fields__ if name != "preset"}
        return sampler_config(self.preset or default_preset(has_student), **options)
