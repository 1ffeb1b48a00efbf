"""A thread that works ahead: results are ready before they are asked for."""

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

READY_RESULTS = 3

T = TypeVar("T")


class Loader(Generic[T]):
    """Calls `produce` again and again in a thread and keeps a few results ready."""

    def __init__(self, produce: Callable[[], T]) -> None:
        self._produce = produce
        self._ready: queue.Queue[tuple[T] | BaseException] = queue.Queue(READY_RESULTS)
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="data loader", daemon=True)
        self._thread.start()

    def get(self) -> T:
        """The next result, or the exception that ended the thread (again at every further call)."""
        if self._failure is None:
            result = self._ready.get()
            if not isinstance(result, BaseException):
                return result[0]
            self._failure = result
        raise self._failure

    def stop(self) -> None:
        """Waits for the call in progress to end and forgets what is ready."""
        self._stopping.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.02)
            except queue.Empty:
                continue

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                result = (self._produce(),)
            except BaseException as error:  # handed to whoever waits for the result
                self._ready.put(error)
                return
            self._ready.put(result)
