"""Waiting for room: the disk watchdog of one host asks, and all processes of the run wait together."""

import time
from pathlib import Path

import jax

from echotts.multihost.messages import any_process
from echotts.multihost.runtime import StopSignal
from echotts.rundir import pause
from echotts.rundir.free_space import Space, measure


def asked_to_wait(run_dir: Path, step: int, every: int) -> Space | None:
    """The space on the disk for which the watchdog asks to wait, on all processes where one is asked; else None.

    Several processes ask each other every so many steps (`every`, at least 1); one alone looks after each step.
    """
    if jax.process_count() > 1 and step % max(every, 1):
        return None
    space = pause.full(run_dir)
    if not any_process(space is not None):
        return None
    return space or measure(run_dir)


def wait_for_space(run_dir: Path, stop: StopSignal) -> None:
    """Waits until no process is asked to wait any more, or one is asked to stop."""
    while any_process(pause.full(run_dir) is not None) and not stop.agreed():
        time.sleep(pause.LOOK_S)
