"""What this process is, and when it has been asked to stop."""

import logging
import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

from echotts.multihost.messages import announce, announced, process_place

LOGGER = logging.getLogger(__name__)


def is_primary() -> bool:
    """True on the one process that writes what only one may write. Never branch on it around communication."""
    return jax.process_index() == 0


def whole(tree: Any) -> Any:
    """The same tree with each array whole on this machine; of several processes all call it together."""
    return tree if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


class Announcements:
    """Steps after which all processes do what process 0 alone decides, by a clock or by a file that it looks for.

    Each process settles the numbers of a step before it launches the next but one, and those need all processes. So
    what process 0 announces after a step is known everywhere two looks later, and nobody waits for anybody.
    """

    def __init__(self, topic: str, every: int = 1):
        """Looks once in `every` steps."""
        self._topic = topic
        self._every = every
        self._next = 0

    def due(self, step: int, wanted: Callable[[], bool]) -> bool:
        """Whether it is done after this step. All processes ask after each step; `wanted` is asked on process 0.

        One process alone does it at once. ProcessesError where the coordinator does not answer.
        """
        if step % self._every:
            return False
        index, count = process_place()
        if count == 1:
            return wanted()
        if index == 0 and step > self._next and wanted():
            announce(self._topic, str(step + 2 * self._every))
        self._next = int(announced(self._topic) or 0)
        return step == self._next


class StopSignal:
    """Within `with StopSignal() as stop:` SIGINT and SIGTERM ask for a stop instead of ending the process.

    The loop asks `agreed` after each step, saves and leaves. A second SIGINT interrupts at once. Of several processes
    JAX's own notice of SIGTERM is used, which makes all of them stop after the same question.
    """

    def __init__(self) -> None:
        self.requested = False
        self._asked = 0  # also in pauses, where no step is done
        self._agreed = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        alone = jax.process_count() == 1
        for number in (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,):
            self._previous[number] = signal.signal(number, self._ask)
        return self

    def agreed(self) -> bool:
        """Whether the run leaves now. All processes ask together, after each step, and get the same answer."""
        if jax.process_count() == 1:
            return self.requested
        self._asked += 1
        self._agreed = self._agreed or bool(multihost_utils.reached_preemption_sync_point(self._asked))
        return self._agreed

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # which the others hear of, too
        LOGGER.warning(
            "%s: finishing this step, then saving; interrupt again to stop at once", signal.Signals(number).name
        )
