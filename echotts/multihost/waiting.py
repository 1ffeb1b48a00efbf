"""Waiting for disk space: requested by the watchdog of one host, done by all processes of the run together."""

import time
from pathlib import Path

import jax

from echotts.multihost.messages import any_process
from echotts.multihost.runtime import StopSignal
from echotts.rundir import pause
from echotts.rundir.free_space import Space, measure


def asked_to_wait(run_dir: Path, step: int, every: int) -> Space | None:
    """The usage of the disk for which the watchdog asks to wait, on all processes if any is asked; else None.

    Several processes exchange this every `every` steps (at least 1); a single one checks after each step.
    """
    if jax.process_count() > 1 and step % max(every, 1):
        return None
    space = pause.full(run_dir)
    if not any_process(space is not None):
        return None
    return space or measure(run_dir)


def wait_for_space(run_dir: Path, stop: StopSignal) -> None:
    """Waits until no process is asked to wait any more, or a stop is requested."""
    while any_process(pause.full(run_dir) is not None) and not stop.agreed():
        time.sleep(pause.LOOK_S)
