"""Metrics lines: one JSON object a line in `<run dir>/metrics/<hostname>.jsonl`.

A line holds "time" (Unix seconds), "step" and "process", then numbers named `group/name_unit`. Every name is listed
here, once. A run that resumes appends: where a step occurs twice, the later line counts. Imports no jax.
"""

import json
import math
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

TIMESTEP_BUCKETS = 5  # equal parts of [0, 1]; t = 0 is data, t = 1 is noise


def timestep_bucket_names(buckets: int = TIMESTEP_BUCKETS) -> tuple[str, ...]:
    """The metric of each timestep bucket: heldout/loss_t0.0_0.2 and so on."""
    return tuple(f"heldout/loss_t{i / buckets:.1f}_{(i + 1) / buckets:.1f}" for i in range(buckets))


METRICS: dict[str, str] = {
    "loss/train": "flow-matching loss of the step, as configured (flow.loss)",
    "grad/norm": "global norm of the gradient before clipping",
    "optim/learning_rate": "learning rate of the step",
    "param/norm": "global norm of the parameters after the step",
    "data/samples_seen": "samples trained on since step 0",
    "data/frames_valid_share": "latent frames of the batch that are speech, not padding, 0 to 1",
    "data/bucket_frames": "latent frames of the step's bucket",
    "data/rejected_samples": "samples this process refused since it started",
    "time/step_s": "mean seconds a step since the last line, saving and measuring excluded",
    "time/data_wait_share": "share of that time spent waiting for the next batch, 0 to 1",
    "time/left_s": "estimated seconds to the last step",
    "throughput/samples_per_s": "samples a second over all processes",
    "compile/count": "train-step compilations of this process; one per bucket",
    "checkpoint/save_s": "seconds the loop stood still for a checkpoint",
    "heldout/loss": "held-out loss with the EMA weights, no condition dropout, the same draws each time",
} | dict.fromkeys(timestep_bucket_names(), "mean squared velocity error of held-out rows with t in this part of [0, 1]")


def metrics_path(run_dir: Path, hostname: str | None = None) -> Path:
    """Where the lines of this host are."""
    return run_dir / "metrics" / f"{hostname or socket.gethostname()}.jsonl"


class MetricsWriter:
    """Appends lines and flushes each. Names must be listed in METRICS; a number that is not finite becomes null."""

    def __init__(self, run_dir: Path, *, process: int = 0):
        path = metrics_path(run_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = path.exists() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
        self._process = process
        self._file = path.open("a", encoding="utf-8")
        if torn:  # a killed run may have left half a line; it must not swallow the next one
            self._file.write("\n")

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """One line for this step."""
        unknown = sorted(set(values) - set(METRICS))
        if unknown:
            raise ValueError(f"metric {unknown[0]!r} is not listed in training/metrics.py")
        line: dict[str, float | int | None] = {"time": round(time.time(), 3), "step": step, "process": self._process}
        line |= {name: _number(value) for name, value in values.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _number(value: float | int) -> float | int | None:
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and abs(number) < 2**53 else float(f"{number:.9g}")
