"""The flags of sampling, which `echotts speak` and `echotts eval` share."""

from dataclasses import dataclass
from typing import Literal

from echotts.flow.options import SamplerConfig, sampler_config


@dataclass(frozen=True, kw_only=True)
class SamplerFlags:
    """How noise becomes speech. A flag that is not given is the preset's."""

    preset: str = "quality"
    """draft, balanced or quality (32 Euler steps); for Echo's checkpoints echo-high-cfg, echo-high-speaker-cfg,
    echo-low-cfg, and each of these with -flat behind it."""
    steps: int | None = None
    """Steps from noise to speech. None: the preset's, 32."""
    cfg_scale: float | None = None
    """Classifier-free guidance scale for text and voice together; 0: none. None: the preset's, 3."""
    text_scale: float | None = None
    """Guidance scale for the text alone; this or --speaker_scale replaces --cfg_scale."""
    speaker_scale: float | None = None
    """Guidance scale for the voice alone."""
    guidance_interval: tuple[float, float] | None = None
    """Times t between which guidance acts, 1 = noise. None: 0 1, or 0.5 1 with a scale of its own for text or voice."""
    alternating: bool | None = None
    """With scales for text and voice: guide by one of them a step, in turn. Two rows a step instead of three."""
    solver: Literal["euler", "ab2"] | None = None
    """Euler's method, or the two-step method of Adams and Bashforth, which needs fewer steps."""
    grid: Literal["even", "epss"] | None = None
    """Even steps, or F5-TTS's grid of 5, 6, 7, 10, 12 or 16 steps."""
    sway: float | None = None
    """F5-TTS's sway: -1 spends more steps near the noise, 0 none."""
    time_scale: float | None = None
    """Factor on the time grid, above 0 and at most 1 (Echo: 0.999)."""
    truncation: float | None = None
    """Factor on the initial noise; less is calmer (Echo: 0.8 to 1)."""
    rescale: tuple[float, float] | None = None
    """Temporal score rescaling: k and s (Echo: 1.2 3)."""
    speaker_kv_scale: float | None = None
    """Factor on the voice's keys and values while t is at least --speaker_kv_until (Echo: 1.5)."""
    speaker_kv_layers: int | None = None
    """In how many layers, from the first. None: in all."""
    speaker_kv_until: float | None = None
    """Time down to which --speaker_kv_scale acts. None: 0.9."""

    def check_sampling(self) -> None:
        """ValueError for values that no sampler takes."""
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"--steps {self.steps}: at least 1 is needed")
        self.sampler()

    def sampler(self) -> SamplerConfig:
        """The sampling that the flags describe. ValueError where they contradict each other."""
        names = SamplerFlags.__dataclass_fields__
        return sampler_config(**{name: getattr(self, name) for name in names})
