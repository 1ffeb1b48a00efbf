"""The complete configuration of a training run, and the rules across its sections."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from echotts.config.data import DataConfig
from echotts.config.learning import ROWS_PER_TEACHER, FlowConfig, OptimConfig, TuneConfig
from echotts.config.model import ModelConfig
from echotts.config.run import HELDOUT_VOICES, RunConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """The complete configuration of a training run."""

    preset: str
    model: ModelConfig
    flow: FlowConfig = field(default_factory=FlowConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        for section in (self.model, self.flow, self.data, self.optim, self.tune, self.run):
            for key, value in vars(section).items():
                if isinstance(value, float) and not math.isfinite(value):  # not in JSON, which stores configurations
                    raise ValueError(f"{key} {value}: give a finite number")
        if self.data.reference_frames % self.model.patch:
            raise ValueError(
                f"reference_frames {self.data.reference_frames} is not a multiple of the model's patch, "
                f"{self.model.patch}"
            )
        if self.run.patience and self.run.best_by == "loss" and not self.data.heldout:
            raise ValueError(
                f"patience {self.run.patience} needs held-out shards: give them as --heldout (echotts data prepare "
                "--heldout_share 0.1 makes some)"
            )
        if self.run.sample_references == (HELDOUT_VOICES,) and not self.data.heldout:
            raise ValueError(f"sample_references {HELDOUT_VOICES} needs held-out shards (--heldout)")
        if self.tune.method != "none" and (not self.run.init_from or self.run.resume_optimizer):
            raise ValueError(
                f"tune {self.tune.method} adapts a trained model with a new optimizer: give it as --init_from, without "
                "--resume_optimizer"
            )
        parts = self.optim.accumulation * ROWS_PER_TEACHER
        if self.tune.method == "distil" and self.data.batch_size % parts:
            raise ValueError(
                f"batch_size {self.data.batch_size} is not a multiple of {parts}: a distillation has one row in "
                f"{ROWS_PER_TEACHER} from the teacher, in each of the parts (accumulation)"
            )
        if self.run.resume_optimizer and self.optim.method != "adamw":
            raise ValueError(f"resume_optimizer takes the state of AdamW, not of {self.optim.method}")
        if self.data.batch_size % self.optim.accumulation:
            raise ValueError(
                f"batch_size {self.data.batch_size} is not a multiple of accumulation {self.optim.accumulation}"
            )


def to_dict(config: Any) -> dict[str, Any]:
    """A config section as plain JSON-serialisable containers."""
    return dataclasses.asdict(config)
