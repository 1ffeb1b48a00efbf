"""The hang watch: a thread that ends the process when no step has been finished for far too long.

A collective that never returns, a file system that does not answer or a lock that nobody opens raise nothing, and a pod
would stand still for days. The end is hard, with the stacks of all threads on standard error: whoever starts the run
again (launch/tpu.py watch) resumes it, and the other processes see this one go.
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

LONGEST_S = 3600.0  # for what may take long: the first step, compiling, saving, measuring, speaking
USUAL_STEPS = 50  # the usual is the median of so many steps
KNOWN_STEPS = 5  # without which nothing is usual yet
LOOK_S = 5.0  # between two looks, or a tenth of the limit
STOPPED_S = 10.0  # a look so much too late: the whole process was stopped, not hanging
LAST_WORDS_S = 30.0  # for telling the metrics, on a disk or in a bucket that may hang itself
STANDARD_ERROR = 2
WAITS = (  # where the loop stands -> what it waits for
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
    """Is told of each finished step, and watches the thread that is `with watch.telling(...)`.

    The limit is `factor` times the median step time, `floor_s` at least and LONGEST_S where something is known to
    take long. A floor of 0 watches nothing.
    """

    def __init__(self, floor_s: float, factor: float, start: int = 0, patience_s: float = LONGEST_S):
        self._floor_s = floor_s
        self._factor = factor
        self._patience_s = patience_s
        self._pause_s = 0.0  # the limit of the pause that lasts just now
        self._step = start  # the last finished one
        self._patient_to = start + 1  # the step that may take long
        self._times: deque[float] = deque(maxlen=USUAL_STEPS)
        self._usual_s = 0.0
        self._kinds: set[Hashable] = set()
        self._since = time.monotonic()

    def launching(self, step: int, kind: Hashable) -> None:
        """This step comes next. One of a new kind (a bucket) may be compiled first, here or in another process."""
        if kind not in self._kinds:
            self._kinds.add(kind)
            self._patient_to = max(self._patient_to, step)

    def finished(self, step: int, seconds: float) -> None:
        """The numbers of this step are there; it took so long, pauses and compiling left out."""
        self._times.append(seconds)
        self._usual_s = statistics.median(self._times)
        self._since = time.monotonic()  # before what makes the limit smaller: the thread reads it after the limit
        self._step = step

    @contextlib.contextmanager
    def pause(self, limit_s: float = 0.0) -> Iterator[None]:
        """No step is finished in here. The step after it may take long, too: others may be in their pause yet."""
        self._patient_to = max(self._patient_to, self._step + 1)
        self._pause_s = limit_s
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = time.monotonic()
            self._pause_s = 0.0

    def limit_s(self) -> float:
        """Seconds that may pass just now without a finished step."""
        usual_s = self._factor * self._usual_s if len(self._times) >= KNOWN_STEPS else 0.0
        patience_s = self._patience_s if self._step < self._patient_to else 0.0
        return max(self._floor_s, usual_s, patience_s, self._pause_s)

    @contextlib.contextmanager
    def telling(self, tell: Callable[[int, str], object], send: Callable[[], object]) -> Iterator[None]:
        """Watches the thread it is called in.

        Before the process ends, `tell` is given the last step and one line, and `send` brings that to where it belongs.
        Both together have LAST_WORDS_S.
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
                    f"no step was finished for {waited_s:.1f} s (limit {limit_s:.1f} s, a step takes "
                    f"{self._usual_s:.3g} s); the last was step {self._step}; {standing}"
                )
                _end(self._step, message, tell, send)


def _end(step: int, message: str, tell: Callable[[int, str], object], send: Callable[[], object]) -> None:
    """Ends the process, whatever hangs in it, after showing the stacks of all threads."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # without standard error, say
        faulthandler.dump_traceback_later(LAST_WORDS_S, exit=True, file=STANDARD_ERROR)
        faulthandler.dump_traceback(file=STANDARD_ERROR)
    LOGGER.critical("hang: %s", message)
    with contextlib.suppress(Exception):  # nothing may keep this process from ending
        tell(step, message)
    with contextlib.suppress(Exception):
        send()
    logging.shutdown()
    os._exit(1)


def waiting_for(frame: FrameType | None) -> str:
    """What the code in this frame waits for, by the innermost module of this package in it."""
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if name.startswith("echotts."):
            what = next((words for prefix, words in WAITS if name.startswith(prefix)), "something else")
            return f"waiting for {what}, in {frame.f_code.co_name} of {name}, line {frame.f_lineno}"
        frame = frame.f_back
    return "what it waits for is not known"
