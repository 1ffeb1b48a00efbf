"""The trainer's answer to the watchdog's request: save, and wait for room, all processes together."""

import time
from pathlib import Path

import jax

from echotts.disk import pause
from echotts.disk.measure import Space, measure
from echotts.training.exchange import from_all
from echotts.training.runtime import StopSignal


def asked_to_wait(run_dir: Path, step: int, every: int) -> Space | None:
    """The space on the disk for which a pause is asked, else None; on all processes where one of them is asked.

    Several processes ask each other after every so many steps (`every`, at least 1); one alone looks after each.
    """
    if jax.process_count() > 1 and step % max(every, 1):
        return None
    space = pause.full(run_dir)
    if not any_process(space is not None):
        return None
    return space or measure(run_dir)


def wait_for_room(run_dir: Path, stop: StopSignal) -> None:
    """Waits until no process is asked any more, or one is asked to stop."""
    while any_process(pause.full(run_dir) is not None) and not stop.agreed():
        time.sleep(pause.LOOK_S)


def any_process(flag: bool) -> bool:
    """Whether it is true of any process; all processes ask together."""
    return any(from_all("room", flag))
