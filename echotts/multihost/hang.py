"""The hang watch: a thread that ends the process if no step finishes for far too long.

A collective that never returns, an unresponsive file system or a deadlock raise no error, and a pod would stand still
for days. The process exits hard, after writing the stacks of all threads to standard error: whatever restarts the run
(launch/tpu.py watch) resumes it, and the other processes notice the loss of this one.
"""

import contextlib
import faulthandler
import logging
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from types import FrameType

LOGGER = logging.getLogger(__name__)

LONGEST_S = 3600.0  # limit for slow operations: the first step, compilation, saving, evaluation, samples
USUAL_STEPS = 50  # number of steps whose median is the usual time
KNOWN_STEPS = 5  # minimum number of steps for a usual time
LOOK_S = 5.0  # interval between checks, or a tenth of the limit if shorter
STOPPED_S = 10.0  # if a check is this late, the whole process was stopped and is not hanging
LAST_WORDS_S = 30.0  # for writing the metrics, to a disk or bucket that may hang itself
STANDARD_ERROR = 2
WAITS = (  # module in which the loop waits -> what it waits for
    ("echotts.data.", "the next batch"),
    ("echotts.codec.training.crops", "the next batch"),
    ("echotts.codec.training.", "a compilation or the devices"),
    ("echotts.training.feed", "the next batch"),
    ("echotts.training.report", "the devices"),
    ("echotts.training.step", "a compilation or the devices"),
    ("echotts.checkpoint.", "a checkpoint"),
    ("echotts.multihost.", "other processes"),
    ("echotts.training.", "other processes or the devices"),
)


class HangWatch:
    """Is informed of each finished step, and watches the thread that runs `with watch.telling(...)`.

    The limit is `factor` times the median step time, but at least `floor_s`, and at least LONGEST_S for operations
    known to be slow. A floor of 0 disables the watch.
    """

    def __init__(self, floor_s: float, factor: float, start: int = 0, patience_s: float = LONGEST_S):
        self._floor_s = floor_s
        self._factor = factor
        self._patience_s = patience_s
        self._pause_s = 0.0  # limit of the current pause
        self._step = start  # the last finished one
        self._patient_to = start + 1  # steps up to this one may take long
        self._times: deque[float] = deque(maxlen=USUAL_STEPS)
        self._usual_s = 0.0
        self._kinds: set[Hashable] = set()
        self._since = time.monotonic()

    def launching(self, step: int, kind: Hashable) -> None:
        """Announces the next step. One of a new kind (bucket) may be compiled first, here or in another process."""
        if kind not in self._kinds:
            self._kinds.add(kind)
            self._patient_to = max(self._patient_to, step)

    def finished(self, step: int, seconds: float) -> None:
        """Reports that a step has finished and its duration, without pauses and compilation."""
        self._times.append(seconds)
        self._usual_s = statistics.median(self._times)
        # Set before the step, which lowers the limit: the thread reads the limit first.
        self._since = time.monotonic()
        self._step = step

    @contextlib.contextmanager
    def pause(self, limit_s: float = 0.0) -> Iterator[None]:
        """Suspends steps. The step after the pause may also take long: other processes may still be in theirs."""
        self._patient_to = max(self._patient_to, self._step + 1)
        self._pause_s = limit_s
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = time.monotonic()
            self._pause_s = 0.0

    def limit_s(self) -> float:
        """Seconds that may currently pass without a finished step."""
        usual_s = self._factor * self._usual_s if len(self._times) >= KNOWN_STEPS else 0.0
        patience_s = self._patience_s if self._step < self._patient_to else 0.0
        return max(self._floor_s, usual_s, patience_s, self._pause_s)

    @contextlib.contextmanager
    def telling(self, tell: Callable[[int, str], object], send: Callable[[], object]) -> Iterator[None]:
        """Watches the calling thread.

        Before the process ends, `tell` is called with the last step and one line, and `send` to upload it. Both
        together have LAST_WORDS_S.
        """
        if not self._floor_s:
            yield
            return
        stop = threading.Event()
        arguments = (threading.get_ident(), tell, send, stop)
        thread = threading.Thread(target=self._watch, args=arguments, name="hang-watch", daemon=True)
        self._since = time.monotonic()
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _watch(
        self, watched: int, tell: Callable[[int, str], object], send: Callable[[], object], stop: threading.Event
    ) -> None:
        look_s = min(LOOK_S, self._floor_s / 10)
        looked = time.monotonic()
        while not stop.wait(look_s):
            before, looked = looked, time.monotonic()
            if looked - before > look_s + STOPPED_S:
                self._since = looked
            limit_s = self.limit_s()
            waited_s = looked - self._since
            if waited_s > limit_s:
                standing = waiting_for(sys._current_frames().get(watched))
                message = (
                    f"no step finished for {waited_s:.1f} s (limit {limit_s:.1f} s, a step takes "
                    f"{self._usual_s:.3g} s); the last one was step {self._step}; {standing}"
                )
                _end(self._step, message, tell, send)


def _end(step: int, message: str, tell: Callable[[int, str], object], send: Callable[[], object]) -> None:
    """Ends the process, whatever hangs in it, after dumping the stacks of all threads."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # for example if standard error is closed
        faulthandler.dump_traceback_later(LAST_WORDS_S, exit=True, file=STANDARD_ERROR)
        faulthandler.dump_traceback(file=STANDARD_ERROR)
    LOGGER.critical("hang: %s", message)
    with contextlib.suppress(Exception):  # nothing may prevent this process from exiting
        tell(step, message)
    with contextlib.suppress(Exception):
        send()
    logging.shutdown()
    os._exit(1)


def waiting_for(frame: FrameType | None) -> str:
    """What the code in this frame waits for, by its innermost module in this package."""
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if name.startswith("echotts."):
            what = next((words for prefix, words in WAITS if name.startswith(prefix)), "something else")
            return f"waiting for {what}, in {frame.f_code.co_name} of {name}, line {frame.f_lineno}"
        frame = frame.f_back
    return "waiting for something unknown"
