"""The run: its directory and processes, when it saves and evaluates, and when it stops."""

from dataclasses import dataclass
from typing import Literal

SEED_BITS = 63
HELDOUT_VOICES = "heldout"  # value of run.sample_references that stands for the held-out samples' voices
BestName = Literal["loss", "speech"]


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


def check_seed(seed: int) -> None:
    """Raises ValueError for a seed outside of the supported range."""
    if not 0 <= seed < 1 << SEED_BITS:
        raise ValueError(f"seed {seed}: give a whole number from 0 to 2^{SEED_BITS} - 1 ({(1 << SEED_BITS) - 1})")
