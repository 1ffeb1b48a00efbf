"""How a model learns: the loss, the optimizer, and which weights are trained."""

import math
from dataclasses import dataclass
from typing import Literal

MAX_RANK = 1024  # of adapters
ROWS_PER_TEACHER = 4  # in a distillation one row in so many learns the teacher's step, the others learn longer ones
LossName = Literal["published", "frame"]
OptimizerName = Literal["adamw", "muon"]
InitName = Literal["published", "fan_in"]
TuneName = Literal["none", "full", "lora", "inversion", "duration", "distil"]


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Flow matching: the loss, the times, the condition dropout that guidance needs, help with the alignment."""

    loss: LossName = "published"
    """published: squared error of all frames, padding included, per valid frame; frame: mean over valid frames."""
    text_dropout: float = 0.1
    """Share of samples trained without text, 0 to 1."""
    speaker_dropout: float = 0.1
    """Share of samples trained without a reference, 0 to 1."""
    time_mean: float = 0.0
    """Mean of the logit of the times; above 0: noisier. 0 as published."""
    time_std: float = 1.0
    """Standard deviation of the logit of the times. 1 as published."""
    alignment: float = 0.0
    """Initial weight of the alignment loss, which teaches the middle layer to attend to the text in order; 0: none, as
    published."""
    alignment_share: float = 0.5
    """Share of the steps over which that weight decreases to 0."""

    def __post_init__(self) -> None:
        if not self.time_std > 0:
            raise ValueError(f"time_std {self.time_std} must be above 0")
        if self.alignment < 0 or not 0 < self.alignment_share <= 1:
            raise ValueError(
                f"alignment {self.alignment} must be at least 0, alignment_share {self.alignment_share} above 0 and at "
                "most 1"
            )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW or Muon with warm-up and cosine decay; weight decay is decoupled."""

    method: OptimizerName = "adamw"
    """adamw, as published; muon: orthogonalised momentum for the kernels of the layers, AdamW for the rest."""
    steps: int = 300_000
    """Total steps; the learning rate reaches 0 at the last one."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    warmup_share: float = 0.05
    """Share of the steps spent in linear warm-up."""
    decay_share: float = 1.0
    """Share of the steps after warm-up over which the learning rate decays; it is constant before. 1 as published."""
    b1: float = 0.9
    """Decay rate of Adam's first moment."""
    b2: float = 0.99
    """Decay rate of Adam's second moment."""
    eps: float = 1e-8
    """Epsilon of Adam."""
    weight_decay: float = 1e-2
    """Decoupled weight decay, times the learning rate."""
    clip_norm: float = 1.0
    """Gradients are clipped to this global norm."""
    accumulation: int = 1
    """Gradient accumulation: a batch is computed in this many equal parts, to save memory."""
    ema_decay: float = 0.9999
    """Decay of the exponential moving average (EMA) of the weights, per step."""
    init: InitName = "published"
    """Initialization of kernels. published: std 0.02, for large models; fan_in: 1 / sqrt(inputs), for small ones."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulation < 1:
            raise ValueError(f"steps {self.steps} and accumulation {self.accumulation} must be at least 1")
        if self.learning_rate <= 0 or self.clip_norm <= 0:
            raise ValueError(f"learning_rate {self.learning_rate} and clip_norm {self.clip_norm} must be above 0")
        if not (0 <= self.warmup_share < 1 and 0 <= self.ema_decay < 1):
            raise ValueError(
                f"warmup_share {self.warmup_share} and ema_decay {self.ema_decay} must be at least 0 and below 1"
            )
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"decay_share {self.decay_share} must be above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Adapting the model of run.init_from to a voice, or adding to it: which weights are trained."""

    method: TuneName = "none"
    """full: all weights; lora: only low-rank adapters beside the frozen weights; inversion: only the reference of one
    voice, for frozen weights; duration: only a predictor of how long speech takes, beside frozen weights; distil: only
    a student that takes few steps, beside frozen weights. none: all weights, and the data may be of any kind."""
    rank: int = 16
    """Rank of the adapters (lora, distil): more can learn more, in proportionally larger files."""
    scales: tuple[float, float] = (0.0, 6.0)
    """Range of the guidance scales that a student is trained for (distil)."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Range of times t in which a student's teacher is guided (distil)."""

    def __post_init__(self) -> None:
        if not 0 <= self.scales[0] <= self.scales[1] < math.inf:
            raise ValueError(f"scales {self.scales}: give the lowest and the highest guidance scale, from 0")
        if not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise ValueError(f"interval {self.interval} must be within 0..1, the lower end first")
        if not 1 <= self.rank <= MAX_RANK:
            raise ValueError(f"rank {self.rank} must be from 1 to {MAX_RANK}")

    @property
    def is_frozen(self) -> bool:
        """Whether the weights of the base are not trained."""
        return self.method in ("lora", "inversion", "duration", "distil")

    @property
    def adapter_rank(self) -> int:
        """The rank of the adapters; 0 without adapters."""
        return self.rank if self.method in ("lora", "distil") else 0
