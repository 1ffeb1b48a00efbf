"""Configuration: frozen, typed, checked once, then trusted.

Each section belongs to one room of the package; presets are functions that return whole configs.
Model sizes come from LAION's README and the published parameter totals (docs/model.md).
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from echotts.latents import ScaleName
from echotts.strict_json import check_type

FRAME_RATE_HZ = 25
MAX_SIZE = 1 << 20  # no channel, layer, head or id count is larger
HELDOUT_VOICES = "heldout"  # in the place of recordings, in run.sample_references

LossName = Literal["published", "frame"]
RematName = Literal["none", "dots", "full"]
AttentionName = Literal["auto", "xla"]
InitName = Literal["published", "fan_in"]
DtypeName = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A condition encoder (text or speaker). Widths are in channels."""

    width: int
    """Channels of the residual stream."""
    depth: int
    """Layers."""
    heads: int
    """Attention heads; they divide the width."""
    mlp_width: int
    """Hidden channels of the SwiGLU."""

    def __post_init__(self) -> None:
        _check_sizes("encoder", self)
        _check_heads("encoder", self.width, self.heads)

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The BlockDiT velocity network."""

    latent_channels: int = 128
    """Channels of a codec latent; the data decides."""
    width: int
    """Channels of the decoder's residual stream."""
    depth: int
    """Decoder layers."""
    heads: int
    """Decoder attention heads, an even number that divides the width."""
    mlp_width: int
    """Hidden channels of the decoder's SwiGLU."""
    text: EncoderConfig
    speaker: EncoderConfig
    vocabulary: int = 256
    """Token ids; 256 for bytes."""
    patch: int = 4
    """Reference frames that make one speaker position."""
    timestep_width: int = 256
    """Channels of the time's cosine and sine embedding, an even number."""
    adaln_rank: int = 256
    """Channels between the two maps of each low-rank AdaLN."""
    norm_eps: float = 1e-5
    """Added to the mean square in every RMS norm."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths."""
    compute_dtype: DtypeName = "bfloat16"
    """Of matrix products and activations; weights, norms and softmax stay float32."""
    attention: AttentionName = "auto"
    """auto: fused where the platform has a kernel (TPU, GPU); xla: the plain softmax everywhere."""
    remat: RematName = "none"
    """What the backward pass recomputes: nothing, all but matrix products, or whole layers."""

    def __post_init__(self) -> None:
        _check_sizes("decoder", self)
        if not (0 < self.norm_eps < 1 and 0 < self.rope_theta < float("inf")):
            raise ValueError(f"norm_eps {self.norm_eps} must be from 0 to 1 and rope_theta {self.rope_theta} above 0")
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
    """published: padding counts, per valid frame; frame: mean over valid frames."""
    text_dropout: float = 0.1
    """Share of rows trained without text, 0 to 1."""
    speaker_dropout: float = 0.1
    """Share of rows trained without reference, 0 to 1."""


@dataclass(frozen=True, kw_only=True, order=True)
class Bucket:
    """One static batch shape: latent frames and text tokens (BOS included)."""

    frames: int
    """Latent frames (1/25 s)."""
    tokens: int
    """Text tokens, BOS included."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, in which order and shape."""

    data: str = ""
    """Shards to train on: a folder, a glob, a brace range, hf://, https:// or gs://; '0.7 * A + 0.3 * B' mixes."""
    heldout: str | None = None
    """Shards that are only measured."""
    batch_size: int = 256
    """Samples a step, over all devices."""
    buckets: tuple[Bucket, ...] = (Bucket(frames=768, tokens=768),)
    """Static batch shapes, FRAMESxTOKENS each, shortest first."""
    reference_frames: int = 512
    """Frames of a reference that are used, a multiple of model.patch."""
    streams: int = 64
    """Virtual streams the shards are dealt to; fixed for a run, a multiple of the processes."""
    shuffle_samples: int = 1024
    """Samples held back for shuffling, over all streams."""
    tokenizer: str = "byte"
    """byte, or the path of a SentencePiece .model."""
    max_rejected_share: float = 0.05
    """Unusable samples that are borne before the run stops, 0 to 1."""
    latent_scale: ScaleName = "none"
    """What is taken out of latents before training, and put back before decoding: nothing, mean and standard deviation
    of all values (scalar), or those of each channel. They come from dataset.json."""
    longer_share: float = 0.1
    """Samples that go into a longer bucket than they need, so that silence is learnt in any window, 0 to 1."""
    cache_dir: str = ""
    """Folder for shards from elsewhere; empty: ~/.cache/echotts/shards."""
    cache_gb: float = 40.0
    """Disk space for them, of each process, in GB (10^9 bytes)."""
    fetch_deadline_s: float = 600.0
    """Seconds, and one more for each MiB, after which a shard that cannot be had is left out."""

    def __post_init__(self) -> None:
        if not self.buckets or list(self.buckets) != sorted(self.buckets):
            raise ValueError(f"buckets {self.buckets} must be given, shortest first")
        if self.batch_size < 1 or self.streams < 1:
            raise ValueError(f"batch_size {self.batch_size} and streams {self.streams} must be at least 1")
        if not 0 <= self.longer_share <= 1:
            raise ValueError(f"longer_share {self.longer_share} must be from 0 to 1")
        if self.cache_gb <= 0 or self.fetch_deadline_s <= 0:
            raise ValueError(f"cache_gb {self.cache_gb} and fetch_deadline_s {self.fetch_deadline_s} must be above 0")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with warm-up and cosine decay. The learning rate is per step, weight decay is decoupled."""

    steps: int = 300_000
    """Steps in all; the learning rate ends at 0."""
    learning_rate: float = 1e-4
    """Its peak."""
    warmup_share: float = 0.05
    """Share of the steps in which it rises from 0."""
    b1: float = 0.9
    """Decay of Adam's first moment a step."""
    b2: float = 0.99
    """Decay of Adam's second moment a step."""
    eps: float = 1e-8
    """Added to the root of Adam's second moment."""
    weight_decay: float = 1e-2
    """Decoupled, times the learning rate."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient."""
    accumulation: int = 1
    """Equal parts a batch is computed in, one after the other, to save memory."""
    ema_decay: float = 0.9999
    """Decay of the weights' moving average a step."""
    init: InitName = "published"
    """First kernels. published: std 0.02, made for 1000 channels and more; fan_in: 1 / sqrt(inputs), for small ones."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulation < 1:
            raise ValueError(f"steps {self.steps} and accumulation {self.accumulation} must be at least 1")
        if self.learning_rate <= 0 or self.clip_norm <= 0:
            raise ValueError(f"learning_rate {self.learning_rate} and clip_norm {self.clip_norm} must be above 0")
        if not (0 <= self.warmup_share < 1 and 0 <= self.ema_decay < 1):
            raise ValueError(
                f"warmup_share {self.warmup_share} and ema_decay {self.ema_decay} must be at least 0 and below 1"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where the run lives, and when it saves, measures and speaks."""

    run_dir: str = ""
    """Folder of checkpoints, metrics and samples, here or in a bucket: gs://bucket/run."""
    seed: int = 0
    """Decides every random draw."""
    data_ways: int = 1
    """Whole copies of the model, as between slices of a pod; parameters are cut over the devices of each copy."""
    tensor_ways: int = 1
    """Parts in which heads and MLP channels are cut."""
    log_every: int = 10
    """Steps between metrics lines."""
    save_every_steps: int = 5000
    """Steps between checkpoints; 0: by the clock alone."""
    save_every_minutes: float = 30.0
    """Minutes between checkpoints at most; 0: by steps alone."""
    keep_last: int = 3
    """Newest checkpoints that are kept."""
    keep_every: int = 0
    """Checkpoints at multiples of so many steps are kept for good; 0: none."""
    disk_config: str = ""
    """TOML file of `echotts watchdog`, after which room is made before each save; empty: nothing is deleted."""
    eval_every: int = 1000
    """Steps between held-out measurements; 0: never."""
    eval_batches: int = 4
    """Batches of a held-out measurement."""
    sample_every: int = 5000
    """Steps between speech samples; 0: never."""
    sentences: tuple[str, ...] = ()
    """Sentences of the speech samples."""
    sample_references: tuple[str, ...] = ()
    """Recordings in whose voices they are spoken, in turn; the one word heldout: voices of the held-out samples."""
    eval_asr: str = ""
    """Recogniser that listens to the speech samples: digits, base or tiny.en (extra asr), a folder or a Hub id with a
    Whisper model; its word errors are a metric. Empty: none."""
    codec: str = ""
    """Codec that speaks them: demo, a file, a folder or a Hub id; empty: the data's."""
    init_from: str | None = None
    """Weights to begin with: an export, a published .pkl or another run."""
    coordinator: str = ""
    """Of several processes: HOST:PORT of process 0, or auto where the machines know (TPU pods, GKE, Slurm)."""
    processes: int = 1
    """How many run this program together; with auto the machines know."""
    process_index: int = 0
    """Which of them this is, from 0; with auto the machines know."""
    join_timeout_s: int = 1800
    """Seconds to wait for the other processes at the start."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard, too, into RUN_DIR/tensorboard; needs the extra tensorboard."""
    profile_step: int = 0
    """First step of a profiler trace; 0: only when asked, by touching RUN_DIR/profile."""
    profile_steps: int = 3
    """Steps of a profiler trace."""
    heartbeat_s: int = 60
    """Seconds without a sign of life after which a process counts as lost, and all end."""
    skips: int = 10
    """Steps within skip_window whose update may be left out, because a number is not finite or the loss spikes; past
    that the run goes back to an earlier checkpoint. 0: the first number that is not finite stops the run."""
    skip_window: int = 500
    """Steps over which skips are counted."""
    spike_factor: float = 3.0
    """A step whose mean squared error is so many times the median of the last 128 good ones is left out; 0: none is."""
    rollbacks: int = 5
    """Times a run goes back to an earlier checkpoint by itself before it stops."""
    hang_s: float = 1800.0
    """Seconds without a finished step after which a process shows its stacks and ends; 0: never. More than fetching a
    shard may take; the first step, compiling, saving, measuring and speaking may take an hour."""
    hang_factor: float = 20.0
    """Times the median step that a step may take at least, whatever hang_s says."""

    def __post_init__(self) -> None:
        if not 0 <= self.process_index < self.processes:
            raise ValueError(f"process_index {self.process_index} of {self.processes} processes: count from 0")
        if self.processes > 1 and not self.coordinator:
            raise ValueError(f"processes {self.processes} need --run.coordinator HOST:PORT to find each other")
        if self.coordinator not in ("", "auto") and not self.coordinator.rpartition(":")[2].isdigit():
            raise ValueError(f"coordinator {self.coordinator!r}: give HOST:PORT of process 0, or auto")
        if self.join_timeout_s < 1 or self.heartbeat_s < 1:
            raise ValueError(f"join_timeout_s {self.join_timeout_s} and heartbeat_s {self.heartbeat_s} must be above 0")
        if self.profile_step < 0 or self.profile_steps < 1:
            raise ValueError(f"profile_step {self.profile_step}: from 0; profile_steps {self.profile_steps}: from 1")
        if self.data_ways < 1 or self.tensor_ways < 1:
            raise ValueError(f"data_ways {self.data_ways} and tensor_ways {self.tensor_ways} must be at least 1")
        if self.keep_last < 1 or self.eval_batches < 1:
            raise ValueError(f"keep_last {self.keep_last} and eval_batches {self.eval_batches} must be at least 1")
        if not 0 <= self.skips < self.skip_window or self.rollbacks < 0:
            raise ValueError(
                f"skips {self.skips} must be at least 0 and below skip_window {self.skip_window}, "
                f"rollbacks {self.rollbacks} at least 0"
            )
        if self.hang_s < 0 or self.hang_factor < 1:
            raise ValueError(f"hang_s {self.hang_s} must be at least 0 and hang_factor {self.hang_factor} at least 1")
        if self.spike_factor != 0 and self.spike_factor <= 1:
            raise ValueError(f"spike_factor {self.spike_factor} must be above 1, or 0: no step counts as a spike")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything one training run is made of."""

    preset: str
    model: ModelConfig
    flow: FlowConfig = field(default_factory=FlowConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.data.reference_frames % self.model.patch:
            raise ValueError(
                f"reference_frames {self.data.reference_frames} is not a multiple of the model's patch, "
                f"{self.model.patch}"
            )
        if self.run.sample_references == (HELDOUT_VOICES,) and not self.data.heldout:
            raise ValueError(f"sample_references {HELDOUT_VOICES}: there are no held-out shards (--heldout)")
        if self.data.batch_size % self.optim.accumulation:
            raise ValueError(
                f"batch_size {self.data.batch_size} cannot be accumulated in {self.optim.accumulation} equal parts"
            )


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
            remat="dots",
        ),
        data=DataConfig(
            batch_size=16,
            buckets=(Bucket(frames=64, tokens=48),),
            reference_frames=48,
            streams=8,
        ),
        optim=OptimConfig(steps=2400, learning_rate=1.5e-3, ema_decay=0.995, init="fan_in"),
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


def read_model_config(fields: Any, where: str | Path) -> ModelConfig:
    """The model of a stored config (`to_dict` of a ModelConfig, through JSON). ValueError names the wrong field."""
    return check_type(fields, where, ModelConfig)


def _check_sizes(owner: str, config: EncoderConfig | ModelConfig) -> None:
    for name, value in vars(config).items():
        if isinstance(value, int) and not 1 <= value <= MAX_SIZE:
            raise ValueError(f"{owner} {name} {value} must be from 1 to {MAX_SIZE}")


def _check_heads(owner: str, width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"{owner} width {width} is not a multiple of heads {heads}")
    if width // heads % 2:
        raise ValueError(f"{owner} head width {width // heads} is odd: rotary embedding turns channel pairs")
