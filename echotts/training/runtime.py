"""What this process is, and when it has been asked to stop."""

import logging
import signal
from types import FrameType, TracebackType

import jax

LOGGER = logging.getLogger(__name__)


def is_primary() -> bool:
    """True on the one process that writes what only one may write. Never branch on it around communication."""
    return jax.process_index() == 0


class StopSignal:
    """Within `with StopSignal() as stop:` SIGINT and SIGTERM ask for a stop instead of ending the process.

    The loop looks at `requested` after each step, saves and leaves. A second SIGINT interrupts at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        LOGGER.warning(
            "%s: finishing this step, then saving; interrupt again to stop at once", signal.Signals(number).name
        )
