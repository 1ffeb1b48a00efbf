"""Reporting: reads each step's metrics one step late, informs the guard, and writes metrics lines and events."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from echotts.checkpoint.guard import Guard, NonFiniteError, describe
from echotts.config import FRAME_RATE_HZ, Config
from echotts.multihost.hang import HangWatch
from echotts.multihost.processes import first_host
from echotts.rundir.free_space import Space
from echotts.rundir.location import RunPath
from echotts.rundir.metrics import MetricsWriter, rejected_name
from echotts.training.feed import Fed, Feed
from echotts.training.flops import peak_flops, training_flops
from echotts.training.progress import Progress
from echotts.training.step import Metrics, TrainStep
from echotts.training.vitals import Pace, StepTimes, host_numbers

LOGGER = logging.getLogger(__name__)

LINE = {  # name in the train step -> name in the metrics line
    "loss": "loss/train",
    "alignment": "loss/alignment",
    "grad_norm": "grad/norm",
    "param_norm": "param/norm",
    "learning_rate": "optim/learning_rate",
    "valid_share": "data/frames_valid_share",
}


WHY_LENGTH = 500  # maximum length of an error message in a metrics line


@dataclass(frozen=True)
class Launched:
    """A step whose metrics may not be available yet."""

    step: int
    samples_seen: int
    fed: Fed
    numbers: Metrics


RETRY_EVENTS_S = 60.0  # minimum interval between retry events


class Reporter:
    """Follows the steps of one run from `start` to the last."""

    def __init__(
        self,
        config: Config,
        writer: MetricsWriter,
        progress: Progress,
        feed: Feed,
        step: TrainStep,
        guard: Guard,
        watch: HangWatch,
        start: int,
    ):
        self._config = config
        self._writer = writer
        self._progress = progress
        self._feed = feed
        self._train_step = step
        self._guard = guard
        self._watch = watch
        self._pending: Launched | None = None
        self._paused_s = 0.0
        self._start = start
        self._began_s = time.perf_counter()
        self._line_step, self._line_times = start, self._times()
        self._step_times = StepTimes()
        self._settled = self._times()  # when the metrics of the last step were available
        self._clipped = 0  # steps since the last line
        self._flops = 0.0  # since the last line
        kind = jax.devices()[0].device_kind
        self._peak_flops = peak_flops(kind)
        if self._peak_flops is None and jax.default_backend() != "cpu":
            LOGGER.warning(
                "the peak FLOPs of a %r are unknown (training/flops.py): utilisation (MFU) is not reported", kind
            )
        self._compiled = 0
        self._step = start  # the last step whose metrics are known
        self._run_dir = Path()
        self._pace = Pace()
        feed.on_retry(RetryEvents(self._retried))

    def began(self, run_dir: Path, samples_seen: int) -> None:
        """Reports that the run starts or resumes after step `start`."""
        self._run_dir = run_dir
        where = ""
        if jax.process_count() > 1:
            where = f"; process {jax.process_index()} of {jax.process_count()}, process 0 is on {first_host()}"
        event, what = "started", "a new run"
        if self._start:
            event, what = "resumed", f"after step {self._start}, {samples_seen} samples"
        self._writer.event(self._start, event, what + where)

    def ended(self, step: int, *, settled: bool = False) -> None:
        """Reports that the loop is over and all is saved; `settled`: because evaluations no longer get better."""
        event = "finished" if settled or step >= self._config.optim.steps else "stopped"
        why = f"; none of the last {self._config.run.patience} evaluations was the best" if settled else ""
        self._writer.event(step, event, f"saved after step {step} of {self._config.optim.steps}{why}")

    @contextmanager
    def telling_why(self) -> Iterator[None]:
        """Writes the reason to the metrics if the run ends with an error inside."""
        try:
            yield
        except KeyboardInterrupt:
            self._last_words("stopped", "interrupted; progress after the last checkpoint is lost")
            raise
        except Exception as error:
            self._last_words("failed", str(error) or type(error).__name__)
            raise

    def hung(self, step: int, why: str) -> None:
        """Reports that the hang watch is about to end this process."""
        self._writer.event(step, "hang", why)
        self._writer.event(step, "failed", why)

    def _last_words(self, event: str, why: str) -> None:
        with suppress(OSError):  # a full disk must not hide the original error
            self._writer.event(self._step, event, why[:WHY_LENGTH])

    def launched(self, step: int, samples_seen: int, fed: Fed, numbers: Metrics) -> None:
        """Reports a launched step; reads the metrics of the previous one while it runs."""
        self._progress.advance(step)
        self._pace.at(step)
        compiled = self._train_step.compilations
        if compiled > self._compiled > 0:
            what = f"for {fed.bucket.frames} frames and {fed.bucket.tokens} tokens, {compiled} compilations in total"
            self._writer.event(step, "recompiled", what, {"compile/count": compiled})
        self._compiled = compiled
        self.settle()
        self._pending = Launched(step, samples_seen, fed, numbers)

    def settle(self) -> None:
        """Waits for the metrics of the last launched step, and writes its line if one is due.

        NonFiniteError if the step was rejected and no rejections are allowed.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        wanted = ("finite", "good", "error", *LINE)
        numbers = jax.device_get({name: pending.numbers[name] for name in wanted if name in pending.numbers})
        self._step = pending.step
        self._time_step(pending)
        if numbers["good"]:
            self._guard.counted(pending.step, float(numbers["error"]))
        else:
            self._left_out(pending, numbers)
        if not math.isfinite(numbers["param_norm"]):  # only a saved checkpoint can help then
            what = f"step {pending.step}: the norm of the weights is {float(numbers['param_norm'])}"
            self._writer.event(pending.step, "nan", what)
            raise NonFiniteError(f"{what}; the run stops without saving: restart from the last checkpoint")
        self._clipped += bool(numbers["grad_norm"] > self._config.optim.clip_norm)
        bucket, data = pending.fed.bucket, self._config.data
        shape = (bucket.frames, bucket.tokens, data.reference_frames)
        sample = training_flops(self._config.model, *shape, self._config.tune.method)
        self._flops += data.batch_size * sample
        every = self._config.run.log_every
        if pending.step == self._config.optim.steps or (every and pending.step % every == 0):
            self._write_line(pending, numbers)

    def _left_out(self, pending: Launched, numbers: Mapping[str, Any]) -> None:
        """Reports what was wrong with a rejected step, and informs the guard."""
        row_loss, fed = jax.device_get(pending.numbers["row_loss"]), pending.fed
        loss, grad_norm = float(numbers["loss"]), float(numbers["grad_norm"])
        what = describe(pending.step, loss, grad_norm, row_loss, fed.keys, fed.rows)
        event = "nan"
        if numbers["finite"]:
            event = "spike"
            what = f"error {numbers['error']:.4g}, limit {self._guard.limit(pending.step):.4g}; {what}"
        self._writer.event(pending.step, event, what[:WHY_LENGTH])
        often = self._guard.skip(pending.step, what)
        self._writer.event(pending.step, "skipped", f"{often}; {what}"[:WHY_LENGTH])
        self._progress.say(f"step {pending.step}: non-finite or a loss spike, skipped: {often}")

    def rolled_back(self, step: int, what: str) -> None:
        """Reports a rollback to the weights of an earlier checkpoint."""
        self._writer.event(step, "rolled_back", what[:WHY_LENGTH])
        self._progress.say(f"step {step}: {what[:WHY_LENGTH]}")

    def measured(self, step: int, losses: Mapping[str, float | int]) -> None:
        """Reports held-out losses."""
        self._writer.write(step, losses)
        gain = losses.get("heldout/text_gain")
        more = "" if gain is None else f", {gain:.4f} more with texts of other samples"
        self._progress.say(f"step {step}: held-out loss {losses['heldout/loss']:.4f}{more}")

    def spoken(self, step: int, folder: RunPath, heard: Mapping[str, float]) -> None:
        """Reports that speech samples were written; `heard` are the recogniser's metrics, if any."""
        errors = ""
        if heard:
            self._writer.write(step, heard)
            errors = f", word errors {heard['speech/word_error_rate']:.1%}"
        if "speech/voice_similarity" in heard:
            errors += f", similarity {heard['speech/voice_similarity']:.2f}"
        self._progress.say(f"step {step}: speech samples in {folder}{errors}")

    def saved(self, step: int, seconds: float | int) -> None:
        """Reports that a checkpoint is being written."""
        self._writer.write(step, {"checkpoint/save_s": seconds})

    def profiled(self, step: int, message: str) -> None:
        """Reports that a profiler trace was written, or failed."""
        self._writer.event(step, "profile", message)
        self._progress.say(f"step {step}: {message}")

    def disk_full(self, step: int, space: Space) -> None:
        """Reports the watchdog's request to save and wait until space is free."""
        message = f"the disk is nearly full ({space}): saved if possible, waiting for free space"
        free = {"host/disk_free_bytes": space.free_bytes, "host/disk_free_share": 1 - space.used_share}
        self._writer.event(step, "disk_full", message, free)
        self._progress.say(f"step {step}: {message}")

    def _retried(self, what: str) -> None:
        self._writer.event(self._step, "retry", what, {"host/retries": self._feed.retries})

    @contextmanager
    def pause(self, hang_s: float = 0.0) -> Iterator[None]:
        """Settles, so that nothing inside follows a rejected step, and stops the clock.

        Step time and throughput exclude the time inside. The hang watch allows `hang_s`, or its limit for slow
        operations if that is longer.
        """
        self.settle()
        began = time.perf_counter()
        try:
            with self._watch.pause(hang_s):
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
        line = {name: float(numbers[key]) for key, name in LINE.items() if key in numbers}
        line |= self._step_times.numbers() | host_numbers(self._run_dir) | self._pace.numbers()
        rejected = self._feed.rejected
        line |= {rejected_name(cause): count for cause, count in rejected.items()}
        clipped, self._clipped = self._clipped, 0
        flops_per_s, self._flops = self._flops / max(training_s, 1e-9), 0.0
        if self._peak_flops is not None:
            line["throughput/mfu_share"] = flops_per_s / (self._peak_flops * jax.device_count())
        line |= {
            "grad/clip_share": clipped / steps,
            "data/samples_seen": pending.samples_seen,
            "data/audio_hours": pending.fed.frames_seen / FRAME_RATE_HZ / 3600,
            "data/bucket_frames": pending.fed.bucket.frames,
            "time/step_s": step_s,
            "time/data_wait_share": wait_share,
            "time/left_s": left_s,
            "throughput/samples_per_s": samples_per_s,
            "compile/count": self._train_step.compilations,
            "data/rejected_samples": sum(rejected.values()),
            "host/retries": self._feed.retries,
            "host/cache_bytes": self._feed.cache_bytes,
        }
        self._writer.write(pending.step, line)
        self._progress.report(pending.step, line["loss/train"], samples_per_s, wait_share, left_s)

    def _time_step(self, pending: Launched) -> None:
        """Measures a step whose metrics are known; reports it if it was slow."""
        seconds, waited_s = (now := self._times()) - self._settled
        self._settled = now
        self._watch.finished(pending.step, seconds)
        usual_s = self._step_times.add(seconds)
        if usual_s is not None:
            what = f"{seconds:.1f} s instead of {usual_s:.2f} s, {waited_s:.1f} s of it waiting for data"
            self._writer.event(pending.step, "slow_step", what)

    def _times(self) -> np.ndarray:
        """(seconds of training, of which waiting for data) since the start, without pauses and compilation."""
        elapsed = time.perf_counter() - self._began_s - self._paused_s - self._train_step.compile_s
        return np.array([elapsed, self._feed.waited_s])


class RetryEvents:
    """Receives every retried request, from any thread; reports the first, then at most one per minute."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self._write = write
        self._clock = clock
        self._lock = threading.Lock()
        self._told: float | None = None
        self._untold = 0

    def __call__(self, what: str) -> None:
        with self._lock:
            now = self._clock()
            if self._told is not None and now - self._told < RETRY_EVENTS_S:
                self._untold += 1
                return
            others, self._told, self._untold = self._untold, now, 0
        more = f"; {others} more since the last such line" if others else ""
        with suppress(OSError):  # a line that cannot be written must not abort a download
            self._write(what + more)
