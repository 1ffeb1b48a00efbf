"""Metrics lines: one JSON object a line in `<run dir>/metrics/<hostname>.jsonl`.

A line holds "time" (Unix seconds), "step" and "process", then numbers named `group/name_unit`. A line that says what
happened has an "event" and a "message" too. Every name is listed here, once. A run that resumes appends: where a step
occurs twice, the later line counts. The disk watchdog writes `<hostname>.watchdog.jsonl`, as process -1. Imports no
jax.
"""

import json
import math
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from echotts.rundir.rejections import CAUSES
from echotts.rundir.tensorboard import TensorBoard

TIMESTEP_BUCKETS = 5  # equal parts of [0, 1]; t = 0 is data, t = 1 is noise


def timestep_bucket_names(buckets: int = TIMESTEP_BUCKETS) -> tuple[str, ...]:
    """The metric of each timestep bucket: heldout/loss_t0.0_0.2 and so on."""
    return tuple(f"heldout/loss_t{i / buckets:.1f}_{(i + 1) / buckets:.1f}" for i in range(buckets))


def rejected_name(cause: str) -> str:
    """The metric that counts the samples refused for a cause of rejections.py."""
    return f"data/rejected_{cause}"


METRICS: dict[str, str] = {
    "loss/train": "flow-matching loss of the step, as configured (flow.loss)",
    "grad/norm": "global norm of the gradient before clipping",
    "grad/clip_share": "share of the steps since the last line whose gradient was clipped, 0 to 1",
    "optim/learning_rate": "learning rate of the step",
    "param/norm": "global norm of the parameters after the step",
    "data/samples_seen": "samples trained on since step 0",
    "data/audio_hours": "hours of speech trained on since step 0, padding left out; 0.04 s a latent frame",
    "data/frames_valid_share": "latent frames of the batch that are speech, not padding, 0 to 1",
    "data/bucket_frames": "latent frames of the step's bucket",
    "data/rejected_samples": "samples this process refused since it started",
    "time/step_s": "mean seconds a step since the last line, saving and measuring excluded",
    "time/step_p50_s": "median of the step times since the last line, saving, measuring and compiling excluded",
    "time/step_p95_s": "time that 95 % of those steps stayed below",
    "time/data_wait_share": "share of that time spent waiting for the next batch, 0 to 1",
    "time/left_s": "estimated seconds to the last step",
    "throughput/samples_per_s": "samples a second over all processes",
    "throughput/mfu_share": "model FLOP utilisation: useful arithmetic over what the devices could do, 0 to 1",
    "compile/count": "train-step compilations of this process; one per bucket",
    "checkpoint/save_s": "seconds the loop stood still for a checkpoint",
    "host/memory_bytes": "resident memory of the process",
    "host/disk_free_bytes": "free on the disk of the run directory, for users that are not root",
    "host/disk_free_share": "share of that disk that is free, 0 to 1",
    "host/cache_bytes": "size of the cache of downloaded shards on this host",
    "host/lag_steps": "steps launched by the furthest of several processes that this one has not, a second ago at most",
    "host/retries": "network requests repeated since the process started",
    "disk/freed_bytes": "bytes the watchdog has freed with this action",
    "device/memory_bytes": "memory in use on the fullest device of this process",
    "loss/mel": "codec training: log10 mel L1, summed over the scales",
    "loss/stft": "codec training: spectral convergence and log magnitude L1, mean over the windows",
    "loss/wave": "codec training: L1 of the samples",
    "loss/kl": "codec training: divergence of the posterior from the unit normal, summed over channels",
    "loss/commitment": "codec training: features towards their codebook vectors",
    "loss/codebook": "codec training: codebook vectors towards the features",
    "loss/feature": "codec training: feature matching, summed over layers and discriminators",
    "loss/adversarial": "codec training: the judgement of the output, summed over discriminators",
    "loss/discriminator": "codec training: what the discriminators minimise",
    "grad/discriminator_norm": "codec training: global norm of the discriminators' gradient before clipping",
    "heldout/mel": "codec training: mel loss of held-out crops with the EMA weights",
    "heldout/stft": "codec training: STFT loss of held-out crops with the EMA weights",
    "data/redrawn_silent": "codec training: crops drawn again because they were silent",
    "data/redrawn_clipped": "codec training: crops drawn again because they were clipped",
    "data/redrawn_unreadable": "codec training: crops drawn again because they could not be read",
    "speech/word_error_rate": "word errors of the speech samples over their words, as run.eval_asr hears them",
    "speech/character_error_rate": "the same in characters",
    "heldout/loss": "held-out loss with the EMA weights, no condition dropout, the same draws each time",
}
METRICS |= dict.fromkeys(
    timestep_bucket_names(), "mean squared velocity error of held-out rows with t in this part of [0, 1]"
)
METRICS |= {rejected_name(cause): f"samples this process refused: {why}" for cause, why in CAUSES.items()}

EVENTS: dict[str, str] = {
    "started": "a new run began",
    "resumed": "the run went on from a checkpoint",
    "finished": "the last step is done and saved",
    "stopped": "the run was asked to stop, saved and left",
    "failed": "the run ended with an error, which the message says",
    "preempted": "the machine is being taken away; the run saved and left",
    "nan": "loss or gradient were not finite",
    "spike": "the loss was far above the usual",
    "skipped": "a step's update was left out",
    "rolled_back": "the run took the weights of an earlier checkpoint by itself",
    "recompiled": "the train step was compiled again after its first time",
    "profile": "a profiler trace was written, or could not be; the message says where, or why",
    "slow_step": "a step took five times as long as usual",
    "hang": "no step was finished for so long that the process ended itself",
    "retry": "a request on the network was made again; one event a minute at most",
    "disk_cleaned": "the watchdog removed files",
    "disk_full": "a disk is fuller than the watchdog can help",
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
    """Where the lines of this host are."""
    return run_dir / "metrics" / f"{hostname or socket.gethostname()}.jsonl"


class MetricsWriter:
    """Appends lines and flushes each. Names must be listed in METRICS; a number that is not finite becomes null.

    Any thread may write. `beside` gets every line, too, and is closed with this.
    """

    def __init__(self, run_dir: Path, *, process: int = 0, beside: TensorBoard | None = None):
        path = metrics_path(run_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = path.exists() and _last_byte(path) not in (b"", b"\n")
        self._process = process
        self._beside = beside
        self._lock = threading.Lock()
        self._file = path.open("a", encoding="utf-8")
        if torn:  # a killed run may have left half a line; it must not swallow the next one
            self._file.write("\n")

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """One line for this step."""
        self._append(step, {}, values)

    def event(self, step: int, event: str, message: str, values: Mapping[str, float | int] | None = None) -> None:
        """One line that says what happened. Names must be listed in EVENTS; the message becomes one line of text."""
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

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 1, 0))
        return file.read(1)


def _number(value: float | int) -> float | int | None:
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and abs(number) < 2**53 else float(f"{number:.9g}")
