"""Configuration: frozen, typed, checked once, then trusted.

Each section belongs to one room of the package; presets are functions that return whole configs.
Model sizes come from LAION's README and the published parameter totals (docs/model.md).
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

FRAME_RATE_HZ = 25

LossName = Literal["published", "frame"]
RematName = Literal["none", "dots", "full"]
DtypeName = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A condition encoder (text or speaker). Widths are in channels."""

    width: int
    depth: int
    heads: int
    mlp_width: int

    def __post_init__(self) -> None:
        _check_heads("encoder", self.width, self.heads)

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The BlockDiT velocity network."""

    latent_channels: int = 128
    width: int
    depth: int
    heads: int
    mlp_width: int
    text: EncoderConfig
    speaker: EncoderConfig
    vocabulary: int = 256
    patch: int = 4
    timestep_width: int = 256
    adaln_rank: int = 256
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    compute_dtype: DtypeName = "bfloat16"
    remat: RematName = "none"

    def __post_init__(self) -> None:
        _check_heads("decoder", self.width, self.heads)
        if self.heads % 2:
            raise ValueError(f"decoder heads {self.heads} is odd: rotary embedding turns half of the heads")
        if self.timestep_width % 2:
            raise ValueError(f"timestep_width {self.timestep_width} is odd: it holds cosine and sine pairs")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Flow matching: the loss and the condition dropout that guidance needs."""

    loss: LossName = "published"
    text_dropout: float = 0.1
    speaker_dropout: float = 0.1


@dataclass(frozen=True, kw_only=True, order=True)
class Bucket:
    """One static batch shape: latent frames and text tokens (BOS included)."""

    frames: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, in which order and shape."""

    data: str = ""
    heldout: str | None = None
    batch_size: int = 256
    buckets: tuple[Bucket, ...] = (Bucket(frames=768, tokens=768),)
    reference_frames: int = 512
    streams: int = 64
    shuffle_samples: int = 1024
    max_rejected_share: float = 0.05

    def __post_init__(self) -> None:
        if not self.buckets or list(self.buckets) != sorted(self.buckets):
            raise ValueError(f"buckets {self.buckets} must be given, shortest first")
        if self.batch_size < 1 or self.streams < 1:
            raise ValueError(f"batch_size {self.batch_size} and streams {self.streams} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with warm-up and cosine decay. The learning rate is per step, weight decay is decoupled."""

    steps: int = 300_000
    learning_rate: float = 1e-4
    warmup_share: float = 0.05
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    accumulation: int = 1
    ema_decay: float = 0.9999


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where the run lives, and when it saves, measures and speaks."""

    run_dir: str = ""
    seed: int = 0
    log_every: int = 10
    save_every_steps: int = 5000
    save_every_minutes: float = 30.0
    keep_last: int = 3
    keep_every: int = 0
    eval_every: int = 1000
    eval_batches: int = 4
    sample_every: int = 5000
    sentences: tuple[str, ...] = ()
    codec: str = ""
    init_from: str | None = None


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything one training run is made of."""

    preset: str
    model: ModelConfig
    flow: FlowConfig = field(default_factory=FlowConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)


def demo() -> Config:
    """4.86M parameters: trains on two CPU cores in minutes, on the built-in digit corpus.

    One bucket: whatever the text, the model sees the whole window and learns where speech ends in it.
    """
    return Config(
        preset="demo",
        model=ModelConfig(
            latent_channels=64,
            width=192,
            depth=6,
            heads=4,
            mlp_width=512,
            text=EncoderConfig(width=128, depth=4, heads=2, mlp_width=256),
            speaker=EncoderConfig(width=128, depth=1, heads=2, mlp_width=256),
            timestep_width=128,
            adaln_rank=16,
            compute_dtype="float32",
        ),
        data=DataConfig(
            batch_size=32,
            buckets=(Bucket(frames=64, tokens=48),),
            reference_frames=48,
            streams=8,
        ),
        optim=OptimConfig(steps=1500, learning_rate=1.5e-3, ema_decay=0.995),
        run=RunConfig(save_every_steps=500, eval_every=250, sample_every=500, codec="demo"),
    )


def echo_840m() -> Config:
    """840,536,960 parameters."""
    encoder = EncoderConfig(width=768, depth=8, heads=6, mlp_width=2048)
    return Config(
        preset="840m",
        model=ModelConfig(width=1280, depth=24, heads=10, mlp_width=3520, text=encoder, speaker=encoder, remat="full"),
    )


def echo_1b3() -> Config:
    """1,303,763,072 parameters."""
    encoder = EncoderConfig(width=1024, depth=10, heads=8, mlp_width=2816)
    return Config(
        preset="1.3b",
        model=ModelConfig(width=1536, depth=24, heads=12, mlp_width=4224, text=encoder, speaker=encoder, remat="full"),
    )


PRESETS = {"demo": demo, "840m": echo_840m, "1.3b": echo_1b3}


def preset(name: str) -> Config:
    """The named preset; ValueError lists the known names."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()


def to_dict(config: Any) -> dict[str, Any]:
    """A config section as plain JSON-ready containers."""
    return dataclasses.asdict(config)


def _check_heads(owner: str, width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"{owner} width {width} is not a multiple of heads {heads}")
    if width // heads % 2:
        raise ValueError(f"{owner} head width {width // heads} is odd: rotary embedding turns channel pairs")
