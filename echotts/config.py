"""Configuration: frozen dataclasses, validated once and then trusted.

Each section belongs to one part of the package; presets are functions that return complete configurations.
Model sizes come from LAION's README and the published parameter totals (docs/model.md).
"""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from echotts.latents import ScaleName
from echotts.strict_json import check_type

FRAME_RATE_HZ = 25
SEED_BITS = 63
MAX_SIZE = 1 << 20  # upper limit of numbers of channels, layers, heads and ids
DEFAULT_CODEC = "speech"  # the built-in codec, default of commands
MAX_RANK = 1024  # of adapters
HELDOUT_VOICES = "heldout"  # value of run.sample_references that stands for the held-out samples' voices

LossName = Literal["published", "frame"]
RematName = Literal["none", "dots", "full"]
AttentionName = Literal["auto", "splash", "xla"]
BestName = Literal["loss", "speech"]
OptimizerName = Literal["adamw", "muon"]
InitName = Literal["published", "fan_in"]
DtypeName = Literal["float32", "bfloat16"]
TuneName = Literal["none", "full", "lora", "inversion", "duration"]


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
    """Channels of a codec latent; must match the data."""
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
    """Channels of the sinusoidal timestep embedding; even."""
    adaln_rank: int = 256
    """Rank of the low-rank AdaLN projections."""
    norm_eps: float = 1e-5
    """Epsilon of every RMS norm."""
    rope_theta: float = 10000.0
    """Base of the rotary position embedding (RoPE)."""
    compute_dtype: DtypeName = "bfloat16"
    """Dtype of matrix products and activations; weights, norms and softmax stay float32."""
    attention: AttentionName = "auto"
    """auto: a fused kernel if the platform has one (TPU, GPU); splash: on TPU, JAX's kernel instead of this package's;
    xla: plain softmax attention everywhere."""
    remat: RematName = "none"
    """What the backward pass recomputes (rematerialization): nothing, all but matrix products, or whole layers."""

    def __post_init__(self) -> None:
        _check_sizes("decoder", self)
        if not (0 < self.norm_eps < 1 and 0 < self.rope_theta < float("inf")):
            raise ValueError(f"norm_eps {self.norm_eps} must be from 0 to 1 and rope_theta {self.rope_theta} above 0")
        _check_heads("decoder", self.width, self.heads)
        if self.heads % 2:
            raise ValueError(f"decoder heads {self.heads} is odd: rotary embedding applies to half of the heads")
        if self.timestep_width % 2:
            raise ValueError(f"timestep_width {self.timestep_width} is odd, but it consists of cosine and sine pairs")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


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


@dataclass(frozen=True, kw_only=True, order=True)
class Bucket:
    """One static batch shape: latent frames and text tokens (BOS included)."""

    frames: int
    """Latent frames (1/25 s)."""
    tokens: int
    """Text tokens, BOS included."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training data: sources, order and batch shapes."""

    data: str = ""
    """Shards to train on: a folder, a glob, a brace range, hf://, https:// or gs://; '0.7 * A + 0.3 * B' mixes."""
    heldout: str | None = None
    """Shards for evaluation; never trained on."""
    batch_size: int = 256
    """Samples per step, over all devices."""
    buckets: tuple[Bucket, ...] = (Bucket(frames=768, tokens=768),)
    """Static batch shapes, FRAMESxTOKENS each, shortest first."""
    reference_frames: int = 512
    """Maximum reference length in frames; a multiple of model.patch."""
    streams: int = 64
    """Virtual streams over which the shards are distributed; fixed for a run, a multiple of the number of processes."""
    shuffle_samples: int = 1024
    """Size of the shuffle buffer in samples, over all streams."""
    interleave: int | None = None
    """Shards that each stream reads alternately: more of them mix batches better, but need proportionally more open
    files and cache. None: four times the samples that a stream gives to a batch, limited by shards and cache; a resumed
    run keeps its number."""
    tokenizer: str = "byte"
    """byte, or the path of a SentencePiece .model."""
    max_rejected_share: float = 0.05
    """Maximum share of rejected samples before the run stops, 0 to 1."""
    latent_scale: ScaleName = "none"
    """Normalization of latents for training, undone before decoding: none, by the mean and standard deviation of all
    values (scalar), or by those of each channel. The statistics come from dataset.json."""
    longer_share: float = 0.1
    """Share of samples put into a longer bucket than needed, so that trailing silence is learned in every bucket."""
    cache_dir: str = ""
    """Cache folder for remote shards; empty: ~/.cache/echotts/shards."""
    cache_gb: float = 40.0
    """Maximum size of the shard cache of each process, in GB (10^9 bytes)."""
    fetch_deadline_s: float = 600.0
    """Seconds of retries, plus one per MiB, after which an unavailable shard is skipped and counted."""

    def __post_init__(self) -> None:
        if not self.buckets or list(self.buckets) != sorted(self.buckets):
            raise ValueError(f"buckets {self.buckets} must be given, shortest first")
        if self.batch_size < 1 or self.streams < 1:
            raise ValueError(f"batch_size {self.batch_size} and streams {self.streams} must be at least 1")
        if self.interleave is not None and self.interleave < 1:
            raise ValueError(f"interleave {self.interleave} must be at least 1")
        if not 0 <= self.longer_share <= 1:
            raise ValueError(f"longer_share {self.longer_share} must be from 0 to 1")
        if self.cache_gb <= 0 or self.fetch_deadline_s <= 0:
            raise ValueError(f"cache_gb {self.cache_gb} and fetch_deadline_s {self.fetch_deadline_s} must be above 0")


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
    voice, for frozen weights; duration: only a predictor of how long speech takes, beside frozen weights. none: all
    weights, and the data may be of any kind."""
    rank: int = 16
    """Rank of the adapters (lora): more can learn more, in proportionally larger files."""

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MAX_RANK:
            raise ValueError(f"rank {self.rank} must be from 1 to {MAX_RANK}")

    @property
    def is_frozen(self) -> bool:
        """Whether the weights of the base are not trained."""
        return self.method in ("lora", "inversion", "duration")

    @property
    def adapter_rank(self) -> int:
        """The rank of the adapters; 0 without adapters."""
        return self.rank if self.method == "lora" else 0


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run directory, and when the run saves, evaluates and writes samples."""

    run_dir: str = ""
    """Directory for checkpoints, metrics and samples, local or gs://bucket/run."""
    seed: int = 0
    """Random seed, 0 to 2^63 - 1; data order, noise and initial weights are functions of it."""
    accept_changed_data: bool = False
    """Resume even if shards were rewritten since the run started, which changes the order of samples."""
    data_ways: int = 1
    """Data-parallel replicas, as between slices; parameters are sharded over the devices of each replica (FSDP)."""
    tensor_ways: int = 1
    """Tensor parallelism: shards of heads and MLP channels."""
    log_every: int = 10
    """Steps between metrics lines."""
    save_every_steps: int = 5000
    """Steps between checkpoints; 0: only by time."""
    save_every_minutes: float = 30.0
    """Maximum minutes between checkpoints; 0: only by steps."""
    keep_last: int = 3
    """Number of newest checkpoints to keep."""
    keep_every: int = 0
    """Keep checkpoints at multiples of this step forever; 0: none."""
    disk_config: str = ""
    """TOML file of `echotts watchdog`: its rules free disk space before each save; empty: nothing is deleted."""
    eval_every: int = 1000
    """Steps between evaluations on the held-out data; 0: never."""
    eval_batches: int = 4
    """Batches per evaluation."""
    patience: int = 0
    """Stop after this many evaluations in a row that are not better than the best, and keep, speak and export the best
    checkpoint instead of the newest; 0: train all steps, the newest checkpoint counts."""
    best_by: BestName = "loss"
    """What is best (run.patience): loss, the lowest held-out loss; speech, the lowest word error rate of the speech
    samples (run.eval_asr, every run.sample_every steps) minus their similarity to the reference voice."""
    sample_every: int = 5000
    """Steps between speech samples; 0: never."""
    sentences: tuple[str, ...] = ()
    """Sentences to synthesise as samples."""
    sample_references: tuple[str, ...] = ()
    """Reference recordings for the samples, used in turn; heldout: the voices of the held-out samples."""
    eval_asr: str = ""
    """Recogniser for the speech samples: digits, base or tiny.en (extra asr), or a folder or Hub id of a Whisper model;
    its word error rate becomes a metric. Empty: none."""
    codec: str = ""
    """Codec for the samples: demo, a file, a folder or a Hub id; empty: the codec of the data."""
    init_from: str | None = None
    """Initial weights: an export, a published .pkl or another run."""
    resume_optimizer: bool = False
    """Also take optimizer state, step and samples seen from init_from (a .pkl), and continue at that step."""
    coordinator: str = ""
    """HOST:PORT of process 0 for multi-process runs, or auto if the cluster provides it (TPU pods, GKE, Slurm)."""
    processes: int = 1
    """Number of processes; with auto, provided by the cluster."""
    process_index: int = 0
    """Index of this process, from 0; with auto, provided by the cluster."""
    join_timeout_s: int = 1800
    """Seconds to wait for the other processes at startup."""
    tensorboard: bool = False
    """Also write TensorBoard event files into RUN_DIR/tensorboard; needs the extra tensorboard."""
    profile_step: int = 0
    """First step of a profiler trace; 0: only on request, by touching RUN_DIR/profile."""
    profile_steps: int = 3
    """Number of steps in a profiler trace."""
    heartbeat_s: int = 60
    """Seconds without a heartbeat after which a process counts as lost and all others exit."""
    skips: int = 10
    """Maximum number of skipped updates (non-finite values or loss spikes) within skip_window; if exceeded, the run
    rolls back to an earlier checkpoint. 0: the first non-finite value stops the run."""
    skip_window: int = 500
    """Window, in steps, over which skipped updates are counted."""
    spike_factor: float = 3.0
    """Skip a step whose mean squared error exceeds this multiple of the median of the last 128 good ones; 0: never."""
    rollbacks: int = 5
    """Maximum number of automatic roll-backs before the run stops."""
    hang_s: float = 1800.0
    """Seconds without a finished step after which a process dumps its stacks and exits; 0: never. Must exceed the time
    to download a shard; the first step, compilation, saving, evaluation and samples may take an hour."""
    hang_factor: float = 20.0
    """A step may always take this multiple of the median step time, whatever hang_s is."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.resume_optimizer and not (self.init_from or "").endswith((".pkl", ".pickle")):
            raise ValueError(f"resume_optimizer: init_from {self.init_from} must be a .pkl with optimizer state")
        if not 0 <= self.process_index < self.processes:
            raise ValueError(
                f"process_index {self.process_index} must be at least 0 and below processes {self.processes}"
            )
        if self.processes > 1 and not self.coordinator:
            raise ValueError(f"processes {self.processes} need --run.coordinator HOST:PORT")
        if self.coordinator not in ("", "auto") and not self.coordinator.rpartition(":")[2].isdigit():
            raise ValueError(f"coordinator {self.coordinator!r}: give HOST:PORT of process 0, or auto")
        if self.join_timeout_s < 1 or self.heartbeat_s < 1:
            raise ValueError(f"join_timeout_s {self.join_timeout_s} and heartbeat_s {self.heartbeat_s} must be above 0")
        if self.profile_step < 0 or self.profile_steps < 1:
            raise ValueError(
                f"profile_step {self.profile_step} must be at least 0, profile_steps {self.profile_steps} at least 1"
            )
        if self.data_ways < 1 or self.tensor_ways < 1:
            raise ValueError(f"data_ways {self.data_ways} and tensor_ways {self.tensor_ways} must be at least 1")
        if self.keep_last < 1 or self.eval_batches < 1:
            raise ValueError(f"keep_last {self.keep_last} and eval_batches {self.eval_batches} must be at least 1")
        if self.patience < 0 or (self.patience and self.best_by == "loss" and self.eval_every < 1):
            raise ValueError(
                f"patience {self.patience} counts evaluations: make it at least 0, and eval_every {self.eval_every} "
                "above 0"
            )
        if not 0 <= self.skips < self.skip_window or self.rollbacks < 0:
            raise ValueError(
                f"skips {self.skips} must be at least 0 and below skip_window {self.skip_window}, "
                f"rollbacks {self.rollbacks} at least 0"
            )
        if self.hang_s < 0 or self.hang_factor < 1:
            raise ValueError(f"hang_s {self.hang_s} must be at least 0 and hang_factor {self.hang_factor} at least 1")
        if self.best_by == "speech" and self.patience and not (self.eval_asr and self.sentences and self.sample_every):
            raise ValueError("best_by speech needs sentences, sample_every above 0 and a recogniser: --run.eval_asr")
        if self.spike_factor != 0 and self.spike_factor <= 1:
            raise ValueError(f"spike_factor {self.spike_factor} must be above 1, or 0 for no spike detection")


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
                if isinstance(value, float) and not math.isfinite(
                    value
                ):  # JSON, in which configurations are saved, cannot represent it
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
        if self.run.resume_optimizer and self.optim.method != "adamw":
            raise ValueError(f"resume_optimizer takes the state of AdamW, not of {self.optim.method}")
        if self.data.batch_size % self.optim.accumulation:
            raise ValueError(
                f"batch_size {self.data.batch_size} is not a multiple of accumulation {self.optim.accumulation}"
            )


def check_seed(seed: int) -> None:
    """Raises ValueError for a seed outside of the supported range."""
    if not 0 <= seed < 1 << SEED_BITS:
        raise ValueError(f"seed {seed}: give a whole number from 0 to 2^{SEED_BITS} - 1 ({(1 << SEED_BITS) - 1})")


def demo() -> Config:
    """4.86M parameters: trains in minutes on two CPU cores, on the built-in digit corpus.

    It has a single bucket, so that the model always sees the whole window and learns where speech ends in it.
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
            interleave=1,  # a corpus of few shards
        ),
        optim=OptimConfig(steps=2400, learning_rate=1.5e-3, ema_decay=0.995, init="fan_in"),
        run=RunConfig(save_every_steps=500, eval_every=250, sample_every=500, codec=DEFAULT_CODEC),
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


def nearest_preset(model: ModelConfig) -> Config:
    """The preset whose decoder has the width of a model, or the nearest one."""
    return min((create() for create in PRESETS.values()), key=lambda config: abs(config.model.width - model.width))


def preset(name: str) -> Config:
    """The named preset; ValueError lists the known names."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()


def to_dict(config: Any) -> dict[str, Any]:
    """A config section as plain JSON-serialisable containers."""
    return dataclasses.asdict(config)


def read_model_config(fields: Any, where: str | Path) -> ModelConfig:
    """The ModelConfig from its stored form (`to_dict`, through JSON). ValueError names the invalid field."""
    return check_type(fields, where, ModelConfig)


def _check_sizes(owner: str, config: EncoderConfig | ModelConfig) -> None:
    for name, value in vars(config).items():
        if isinstance(value, int) and not 1 <= value <= MAX_SIZE:
            raise ValueError(f"{owner} {name} {value} must be from 1 to {MAX_SIZE}")


def _check_heads(owner: str, width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"{owner} width {width} is not a multiple of heads {heads}")
    if width // heads % 2:
        raise ValueError(f"{owner} head width {width // heads} is odd: rotary embedding rotates pairs of channels")
