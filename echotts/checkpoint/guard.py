"""Bad steps: which ones are left out, and when that is too much: then the run goes back to an earlier checkpoint.

The step itself decides on the devices whether it counts (training/step.py): loss and gradient are finite, and the mean
squared error of its rows is not above a limit. Otherwise weights, average and optimizer stay as they were. The limit
is a multiple of the median of the last steps that counted, those whose numbers are known when the step is launched.
All processes have the same numbers, so they agree without asking each other.

Past `run.skips` in `run.skip_window` steps the run takes the weights of the last checkpoint from before the first of
them, or those that it began with, where it has not saved any. Step, schedule and data go on from where they are, so the
data that did it is not seen again, every draw is a new one, and nothing is counted twice. After `run.rollbacks` of that
the run stops.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from echotts.checkpoint.checkpoints import Checkpoints
from echotts.checkpoint.contents import Meta
from echotts.config import RunConfig

Restore = Callable[[int], tuple[dict[str, Any], Meta] | None]
"""(step) -> arrays and bookmark of the last checkpoint from before it, as `Checkpoints.restore` gives them."""

USUAL_STEPS = 128  # the usual error is the median of so many
KNOWN_STEPS = 32  # without which nothing is usual yet
ADVICE = "look at these samples, or resume with a lower learning rate in another run directory"


class NonFiniteError(ValueError):
    """Loss, gradient or weights are not finite, or the loss is far above the usual, and the run does not go on."""


@dataclass
class Memory:
    """What the guard knows of the steps so far. It is part of a checkpoint, so it is plain and JSON-ready."""

    errors: list[list[int | float]] = dataclasses.field(default_factory=list)  # [step, error] of the last that counted
    skipped: list[int] = dataclasses.field(default_factory=list)  # steps within the window
    rollbacks: int = 0
    why: str = ""  # the last one was skipped


class Guard:
    """Remembers which steps counted and which were left out. Numbers of a step are told once, in order."""

    def __init__(self, run: RunConfig, saved: Mapping[str, Any] | None = None):
        """`saved` is what `state()` gave; empty in a new run, and where an older program wrote the checkpoint."""
        self._run = run
        self._memory = Memory(**(saved or {}))

    def state(self) -> dict[str, Any]:
        """What decides about the steps to come, JSON-ready."""
        return dataclasses.asdict(self._memory)

    def limit(self, step: int) -> float:
        """The mean squared error above which `step` does not count; infinite while too little is known.

        It depends on the steps up to `step` - 2 alone: those are known when it is launched, whether or not something
        has waited for the one before. So a resumed run has the limits of one that never stopped.
        """
        if not self._run.skips or not self._run.spike_factor:
            return math.inf
        known = [error for at, error in self._memory.errors if at <= step - 2][-USUAL_STEPS:]
        return self._run.spike_factor * statistics.median(known) if len(known) >= KNOWN_STEPS else math.inf

    def counted(self, step: int, error: float) -> None:
        """The step counts, and its rows had this mean squared error."""
        self._memory.errors = [*self._memory.errors[-USUAL_STEPS:], [step, error]]

    def skip(self, step: int, why: str) -> str:
        """The update of this step was left out. Returns how often that was of late; NonFiniteError if it may not be."""
        run, memory = self._run, self._memory
        if not run.skips:
            raise NonFiniteError(f"{why}; nothing is saved after this step: {ADVICE}")
        memory.skipped = [at for at in [*memory.skipped, step] if at > step - run.skip_window]
        memory.why = why
        return f"{len(memory.skipped)} in {run.skip_window} steps, at most {run.skips} are borne"

    def lost(self, step: int) -> bool:
        """Whether too many of the steps before `step` were left out."""
        recent = [at for at in self._memory.skipped if step - 1 - self._run.skip_window < at < step]
        return len(recent) > self._run.skips

    def roll_back(
        self, state: Any, step: int, checkpoints: Checkpoints, restore: Restore, begin: Callable[[], dict[str, Any]]
    ) -> tuple[dict[str, Any], str]:
        """The arrays of the last checkpoint from before the trouble, to go on with after `step`; and what was done.

        `begin` gives those that the run began with.

        A run that has saved nothing yet takes those that it began with: to stop it would lose as much. `state` is
        deleted first: the devices may have no room for two. NonFiniteError where the run has gone back often enough,
        or there is nothing to go back to.
        """
        memory, most = self._memory, self._run.rollbacks
        trouble = memory.skipped[0]
        what = f"{len(memory.skipped)} steps were skipped from {trouble} on, the last because of {memory.why}"
        if memory.rollbacks >= most:
            raise NonFiniteError(f"{what}; the run has gone back {memory.rollbacks} times (run.rollbacks): {ADVICE}")
        checkpoints.wait()  # the one being written may be the one
        for leaf in jax.tree.leaves(state):
            leaf.delete()
        restored = restore(trouble)
        if restored is not None:
            arrays, where, lost = restored[0], f"of step {restored[1].step}", step - restored[1].step
        elif checkpoints.has_any():
            raise NonFiniteError(f"{what}; there is no checkpoint from before to go back to: {ADVICE}")
        else:
            try:
                arrays, where, lost = begin(), "that the run began with", step
            except (OSError, ValueError) as error:
                raise NonFiniteError(f"{what}; what the run began with cannot be had again: {error}") from error
        memory.errors = [known for known in memory.errors if known[0] < trouble]
        memory.skipped = []
        memory.rollbacks += 1
        done = f"back to the weights {where}, {lost} updates are lost, the data goes on"
        return arrays, f"{done}; time {memory.rollbacks} of at most {most}; {what}"


def describe(
    step: int,
    loss: float,
    grad_norm: float,
    row_loss: Float[np.ndarray, " b"],
    keys: Sequence[str],
    rows: Sequence[int],
) -> str:
    """One line on a bad step: its numbers and the keys of its samples, the worst rows first.

    `row_loss` is that of the global batch, `keys` are those of this process's rows, which have these numbers in it.
    """
    errors = row_loss[np.asarray(rows)]
    bad = [key for key, error in zip(keys, errors, strict=True) if not np.isfinite(error)]
    order = np.argsort(np.where(np.isfinite(errors), -errors, -np.inf), kind="stable")
    worst_first = [keys[int(row)] for row in order]
    which = f"rows that are not finite: {', '.join(bad)}; " if bad and len(bad) < len(keys) else ""
    return (
        f"step {step}: loss {loss:.6g}, gradient norm {grad_norm:.6g}; {which}"
        f"batch keys, the worst first: {', '.join(worst_first)}"
    )
