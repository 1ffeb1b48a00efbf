"""Training data: sources, order and static batch shapes."""

from dataclasses import dataclass

from echotts.latents import ScaleName

FRAME_RATE_HZ = 25


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
    """byte; english, phonemes of English, with numbers spelled out; or the path of a SentencePiece .model."""
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
