"""Metrics files: `<run dir>/metrics/<hostname>.jsonl`, one JSON object per line.

A line has "time" (Unix seconds), "step", "process", and numbers named `group/name_unit`. A line that reports an event
also has "event" and "message". All names are listed here. A resumed run appends: if a step occurs twice, the later line
counts. The disk watchdog writes `<hostname>.watchdog.jsonl` with process -1. Does not import jax.
"""

import json
import math
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echotts.files import Closing
from echotts.rundir.rejections import CAUSES
from echotts.rundir.tensorboard import TensorBoard

TIMESTEP_BUCKETS = 5  # equal parts of [0, 1]; t = 0 is data, t = 1 is noise


def timestep_bucket_names(buckets: int = TIMESTEP_BUCKETS) -> tuple[str, ...]:
    """The metric of each timestep bucket: heldout/loss_t0.0_0.2 and so on."""
    return tuple(f"heldout/loss_t{i / buckets:.1f}_{(i + 1) / buckets:.1f}" for i in range(buckets))


def rejected_name(cause: str) -> str:
    """The metric that counts samples rejected for a cause listed in rundir/rejections.py."""
    return f"data/rejected_{cause}"


METRICS: dict[str, str] = {
    "loss/train": "flow-matching loss of the step, as configured (flow.loss)",
    "loss/alignment": "alignment loss of the step, nats per valid frame (flow.alignment)",
    "grad/norm": "global norm of the gradient before clipping",
    "grad/clip_share": "share of steps since the last line whose gradient was clipped, 0 to 1",
    "optim/learning_rate": "learning rate of the step",
    "param/norm": "global norm of the parameters after the step",
    "data/samples_seen": "samples trained on since step 0",
    "data/audio_hours": "hours of speech trained on since step 0, without padding; 0.04 s per latent frame",
    "data/frames_valid_share": "latent frames of the batch that are speech, not padding, 0 to 1",
    "data/bucket_frames": "latent frames of the step's bucket",
    "data/rejected_samples": "samples rejected by this process since it started",
    "time/step_s": "mean seconds per step since the last line, without saving and evaluation",
    "time/step_p50_s": "median step time since the last line, without saving, evaluation and compilation",
    "time/step_p95_s": "95th percentile of those step times",
    "time/data_wait_share": "share of that time spent waiting for the next batch, 0 to 1",
    "time/left_s": "estimated seconds until the last step",
    "throughput/samples_per_s": "samples per second over all processes",
    "throughput/mfu_share": "model FLOP utilisation: model FLOPs over the devices' peak, 0 to 1",
    "compile/count": "train-step compilations of this process; one per bucket",
    "checkpoint/save_s": "seconds the training loop was blocked by a checkpoint",
    "host/memory_bytes": "resident memory of the process",
    "host/disk_free_bytes": "free bytes on the disk of the run directory, for non-root users",
    "host/disk_free_share": "share of that disk that is free, 0 to 1",
    "host/cache_bytes": "size of the cache of downloaded shards on this host",
    "host/lag_steps": "steps by which this process lags behind the fastest one, at most a second old",
    "host/retries": "network requests retried since the process started",
    "disk/freed_bytes": "bytes freed by this action of the watchdog",
    "device/memory_bytes": "memory in use on the fullest device of this process",
    "loss/mel": "codec training: log10 mel L1, summed over the scales",
    "loss/stft": "codec training: spectral convergence and log magnitude L1, mean over the windows",
    "loss/wave": "codec training: L1 of the waveform",
    "loss/kl": "codec training: KL divergence of the posterior from the unit normal, summed over channels",
    "loss/commitment": "codec training: features towards their codebook vectors",
    "loss/codebook": "codec training: codebook vectors towards the features",
    "loss/feature": "codec training: feature matching, summed over layers and discriminators",
    "loss/adversarial": "codec training: adversarial loss of the codec, summed over discriminators",
    "loss/discriminator": "codec training: loss of the discriminators",
    "grad/discriminator_norm": "codec training: global norm of the discriminators' gradient before clipping",
    "heldout/mel": "codec training: mel loss of held-out crops with the EMA weights",
    "heldout/stft": "codec training: STFT loss of held-out crops with the EMA weights",
    "data/redrawn_silent": "codec training: crops redrawn because they were silent",
    "data/redrawn_clipped": "codec training: crops redrawn because they were clipped",
    "data/redrawn_unreadable": "codec training: crops redrawn because they could not be read",
    "speech/word_error_rate": "word error rate of the speech samples, by the recogniser run.eval_asr",
    "speech/character_error_rate": "character error rate of the speech samples, by run.eval_asr",
    "speech/voice_similarity": "mean cosine similarity of the speech samples to their reference voices (Resemblyzer)",
    "heldout/loss": "held-out loss with the EMA weights, without condition dropout and with fixed noise",
    "heldout/text_gain": "how much higher that loss is with the texts of other samples: 0 if the model does not read",
}
METRICS |= dict.fromkeys(
    timestep_bucket_names(), "mean squared velocity error of held-out rows with t in this part of [0, 1]"
)
METRICS |= {rejected_name(cause): f"samples rejected by this process: {why}" for cause, why in CAUSES.items()}

EVENTS: dict[str, str] = {
    "started": "a new run started",
    "resumed": "the run was resumed from a checkpoint",
    "finished": "the last step, or the one at which evaluations no longer got better, is done and saved",
    "stopped": "the run was asked to stop, and saved before it exited",
    "failed": "the run ended with the error in the message",
    "preempted": "the machine is being preempted; the run saved and exited",
    "nan": "loss or gradient was not finite",
    "spike": "the loss was far above its usual value",
    "skipped": "a step's update was skipped",
    "rolled_back": "the run automatically returned to an earlier checkpoint",
    "recompiled": "the train step was compiled again",
    "profile": "a profiler trace was written to the path in the message, or failed for the reason in it",
    "slow_step": "a step took five times its usual time",
    "hang": "no step finished within the limit, so the process exited",
    "retry": "a network request was retried; at most one event per minute",
    "disk_cleaned": "the watchdog removed files",
    "disk_full": "a disk is nearly full and the watchdog can delete nothing more",
}

UNITS = {  # by the last word of `group/name_unit`; without an entry a plain number
    "s": "s",
    "share": "share",
    "bytes": "bytes",
    "hours": "h",
    "steps": "steps",
    "samples": "samples",
    "frames": "frames",
    "seen": "samples",
}


def unit_of(name: str) -> str:
    """The unit of a metric, in a few letters."""
    return "per s" if name.endswith("_per_s") else UNITS.get(name.rpartition("/")[2].rpartition("_")[2], "")


def metrics_path(run_dir: Path, hostname: str | None = None) -> Path:
    """The metrics file of this host."""
    return run_dir / "metrics" / f"{hostname or socket.gethostname()}.jsonl"


class MetricsWriter(Closing):
    """Appends metrics lines and flushes each. Names must be listed in METRICS; non-finite numbers become null.

    Thread-safe. `beside` gets every line as well, and is closed with this writer.
    """

    def __init__(self, run_dir: Path, *, process: int = 0, beside: TensorBoard | None = None):
        path = metrics_path(run_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = path.exists() and _last_byte(path) not in (b"", b"\n")
        self._process = process
        self._beside = beside
        self._lock = threading.Lock()
        self._file = path.open("a", encoding="utf-8")
        if torn:  # a killed run may have left half a line: do not append to it
            self._file.write("\n")

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """Writes one line for this step."""
        self._append(step, {}, values)

    def event(self, step: int, event: str, message: str, values: Mapping[str, float | int] | None = None) -> None:
        """Writes one line for an event listed in EVENTS; the message is collapsed to one line of text."""
        if event not in EVENTS:
            raise ValueError(f"event {event!r} is not listed in rundir/metrics.py")
        self._append(step, {"event": event, "message": " ".join(message.split())}, values or {})

    def _append(self, step: int, words: dict[str, str], values: Mapping[str, float | int]) -> None:
        unknown = sorted(set(values) - set(METRICS))
        if unknown:
            raise ValueError(f"metric {unknown[0]!r} is not listed in rundir/metrics.py")
        line: dict[str, Any] = {"time": round(time.time(), 3), "step": step, "process": self._process}
        line |= words | {name: _number(value) for name, value in values.items()}
        with self._lock:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
            if self._beside is not None:
                self._beside.write(step, values, words)

    def close(self) -> None:
        self._file.close()
        if self._beside is not None:
            self._beside.close()


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 1, 0))
        return file.read(1)


def _number(value: float | int) -> float | int | None:
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and abs(number) < 2**53 else float(f"{number:.9g}")
