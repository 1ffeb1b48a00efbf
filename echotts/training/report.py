"""What the loop says about itself: reads each step's numbers one step late, stops on NaN, writes lines and progress."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from echotts.config import Config
from echotts.disk.measure import Space
from echotts.training.feed import Fed, Feed
from echotts.training.metrics import MetricsWriter
from echotts.training.progress import Progress
from echotts.training.step import Metrics, TrainStep

LINE = {  # what the train step calls it -> what a metrics line calls it
    "loss": "loss/train",
    "grad_norm": "grad/norm",
    "param_norm": "param/norm",
    "learning_rate": "optim/learning_rate",
    "valid_share": "data/frames_valid_share",
}


class NonFiniteError(ValueError):
    """The loss or the gradient became NaN or infinite."""


@dataclass(frozen=True)
class Launched:
    """A step whose numbers may still be on their way."""

    step: int
    samples_seen: int
    fed: Fed
    numbers: Metrics


class Reporter:
    """Follows the steps of one run from `start` to the last."""

    def __init__(
        self, config: Config, writer: MetricsWriter, progress: Progress, feed: Feed, step: TrainStep, start: int
    ):
        self._config = config
        self._writer = writer
        self._progress = progress
        self._feed = feed
        self._train_step = step
        self._pending: Launched | None = None
        self._paused_s = 0.0
        self._start = start
        self._began_s = time.perf_counter()
        self._line_step, self._line_times = start, self._times()

    def launched(self, step: int, samples_seen: int, fed: Fed, numbers: Metrics) -> None:
        """A step has been launched; the numbers of the one before are read while it runs."""
        self._progress.advance(step)
        self.settle()
        self._pending = Launched(step, samples_seen, fed, numbers)

    def settle(self) -> None:
        """Waits for the numbers of the last launched step; raises NonFiniteError, or writes its line if one is due."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        numbers = jax.device_get({name: pending.numbers[name] for name in ("finite", *LINE)})
        if not numbers["finite"]:
            raise NonFiniteError(_describe(pending, numbers))
        every = self._config.run.log_every
        if pending.step == self._config.optim.steps or (every and pending.step % every == 0):
            self._write_line(pending, numbers)

    def measured(self, step: int, losses: Mapping[str, float | int]) -> None:
        """Held-out losses of this step."""
        self._writer.write(step, losses)
        self._progress.say(f"step {step}: held-out loss {losses['heldout/loss']:.4f}")

    def spoken(self, step: int, folder: Path) -> None:
        """Speech samples of this step have been written."""
        self._progress.say(f"step {step}: speech samples in {folder}")

    def saved(self, step: int, seconds: float | int) -> None:
        """A checkpoint of this step is on its way to disk."""
        self._writer.write(step, {"checkpoint/save_s": seconds})

    def disk_full(self, step: int, space: Space) -> None:
        """The watchdog asks to save and wait; training goes on when there is room."""
        message = f"the disk is nearly full ({space}): saved as far as possible, waiting for room"
        free = {"host/disk_free_bytes": space.free_bytes, "host/disk_free_share": 1 - space.used_share}
        self._writer.event(step, "disk_full", message, free)
        self._progress.say(f"step {step}: {message}")

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Settles, so that nothing in here follows a step that was not finite; and stops the clock.

        Step time and samples a second leave out the time spent in here.
        """
        self.settle()
        began = time.perf_counter()
        try:
            yield
        finally:
            self._paused_s += time.perf_counter() - began

    def _write_line(self, pending: Launched, numbers: Mapping[str, Any]) -> None:
        times = self._times()
        steps = pending.step - self._line_step
        training_s, waited_s = times - self._line_times
        self._line_step, self._line_times = pending.step, times
        step_s = max(training_s, 1e-9) / steps
        samples_per_s = self._config.data.batch_size / step_s
        wait_share = min(waited_s / max(training_s, 1e-9), 1.0)
        all_s = time.perf_counter() - self._began_s - self._train_step.compile_s
        left_s = all_s / (pending.step - self._start) * (self._config.optim.steps - pending.step)
        line = {name: float(numbers[key]) for key, name in LINE.items()}
        line |= {
            "data/samples_seen": pending.samples_seen,
            "data/bucket_frames": pending.fed.bucket.frames,
            "time/step_s": step_s,
            "time/data_wait_share": wait_share,
            "time/left_s": left_s,
            "throughput/samples_per_s": samples_per_s,
            "compile/count": self._train_step.compilations,
            "data/rejected_samples": self._feed.rejected,
        }
        self._writer.write(pending.step, line)
        self._progress.report(pending.step, line["loss/train"], samples_per_s, wait_share, left_s)

    def _times(self) -> np.ndarray:
        """(seconds of training, of which waiting for data) since the start; pauses and compilation are left out."""
        elapsed = time.perf_counter() - self._began_s - self._paused_s - self._train_step.compile_s
        return np.array([elapsed, self._feed.waited_s])


def _describe(pending: Launched, numbers: Mapping[str, Any]) -> str:
    """One line: step, loss, gradient norm and the keys of the batch, the rows that are not finite first."""
    rows = np.asarray(jax.device_get(pending.numbers["row_loss"]))
    keys = list(pending.fed.keys)
    first = jax.process_index() * len(keys)
    bad = [key for key, loss in zip(keys, rows[first : first + len(keys)], strict=True) if not np.isfinite(loss)]
    rest = [key for key in keys if key not in bad]
    which = f"rows that are not finite: {', '.join(bad)}; " if bad and rest else ""
    return (
        f"step {pending.step}: loss {float(numbers['loss'])}, gradient norm {float(numbers['grad_norm'])}; {which}"
        f"batch keys: {', '.join(keys)}; nothing is saved after this step: look at these samples, "
        "or resume with a lower learning rate in another run directory"
    )
            "host/retries": self._feed.retries,
            "host/cache_bytes": self._feed.cache_bytes,
