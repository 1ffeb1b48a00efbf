"""Timing two or more sides in one process, taking turns."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Spent(NamedTuple):
    """Wall-clock seconds of one call, and CPU seconds over all threads."""

    wall: float
    cpu: float


def best_of(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Spent]:
    """The minimum wall and CPU time of each side. Sides take turns, after an unmeasured call of each."""
    for run in sides.values():
        jax.block_until_ready(run())
    spent: dict[str, list[Spent]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            spent[name].append(Spent(time.perf_counter() - wall, time.process_time() - cpu))
    return {name: Spent(min(s.wall for s in all_), min(s.cpu for s in all_)) for name, all_ in spent.items()}
