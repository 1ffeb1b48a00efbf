"""This process's role in the run, decisions that all processes take at the same step, and stopping together."""

import logging
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from echotts.multihost.messages import announce, announced, process_place

LOGGER = logging.getLogger(__name__)


def is_primary() -> bool:
    """True on the process that writes what only one may write. Never branch on it around communication."""
    return jax.process_index() == 0


def whole(tree: Any) -> Any:
    """The tree with each array gathered on this host. Collective if there are several processes."""
    return tree if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


class Announcements:
    """Makes all processes act at the same step on a decision of process 0, which depends on its clock or a file.

    Each process reads the metrics of a step before it launches the next but one, and a step needs all processes. So an
    announcement by process 0 is known everywhere two checks later, without anyone waiting.
    """

    def __init__(self, topic: str, every: int = 1):
        """Checks every `every` steps."""
        self._topic = topic
        self._every = every
        self._next = 0

    def due(self, step: int, wanted: Callable[[], bool]) -> bool:
        """Whether to act after this step. All processes call it after each step; only process 0 evaluates `wanted`.

        A single process acts at once. ProcessesError if the coordinator does not answer.
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
    """Within `with StopSignal() as stop:`, SIGINT and SIGTERM request a stop instead of ending the process.

    The loop calls `agreed` after each step, then saves and exits. A second SIGINT interrupts at once. With several
    processes, JAX's preemption notice for SIGTERM is used, which makes all of them stop after the same call.
    """

    def __init__(self) -> None:
        self.requested = False
        self._asked = 0  # number of calls, including those during pauses without a step
        self._agreed = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        alone = jax.process_count() == 1
        for number in (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,):
            self._previous[number] = signal.signal(number, self._ask)
        return self

    def agreed(self) -> bool:
        """Whether the run stops now. Collective: all processes call it after each step and get the same answer."""
        if jax.process_count() == 1:
            return self.requested
        self._asked += 1
        self._agreed = self._agreed or bool(multihost_utils.reached_preemption_sync_point(self._asked))
        return self._agreed

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX forwards it to the other processes
        LOGGER.warning(
            "%s: stopping after this step and a save; interrupt again to stop at once", signal.Signals(number).name
        )
