"""The guard: decides which steps are rejected, and when a run rolls back to an earlier checkpoint.

A step itself decides on the devices whether it is accepted (training/step.py): loss and gradient must be finite, and
the mean squared error of its rows must not exceed a limit. If it is rejected, weights, EMA and optimizer state stay
unchanged. The limit is a multiple of the median over the last accepted steps that are known when the step is launched.
All processes have the same numbers, so they agree without communication.

If more than `run.skips` of `run.skip_window` steps are rejected, the run restores the last checkpoint from before the
first of them or, if it has not saved any, its initial weights. Step, schedule and data continue from where they are, so
the data that caused the trouble are not seen again, all random draws are new, and nothing is counted twice. After
`run.rollbacks` rollbacks the run stops.
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
"""(step) -> arrays and metadata of the last checkpoint before it, like `Checkpoints.restore`."""

USUAL_STEPS = 128  # the limit is based on the median over this many steps
KNOWN_STEPS = 32  # minimum number of steps for a limit
ADVICE = "look at these samples, or resume with a lower learning rate in another run directory"


class NonFiniteError(ValueError):
    """Loss, gradient or weights are not finite, or the loss is far too high, and the run cannot continue."""


@dataclass
class History:
    """What the guard knows about past steps. Part of a checkpoint, therefore JSON-serialisable."""

    errors: list[list[int | float]] = dataclasses.field(default_factory=list)  # [step, error] of the last accepted
    skipped: list[int] = dataclasses.field(default_factory=list)  # rejected steps within the window
    rollbacks: int = 0
    why: str = ""  # reason of the last rejection


class Guard:
    """Keeps track of accepted and rejected steps, which must be reported once and in order."""

    def __init__(self, run: RunConfig, saved: Mapping[str, Any] | None = None):
        """`saved` is the result of `state()`; None or empty in a new run or for older checkpoints."""
        self._run = run
        self._history = History(**(saved or {}))

    def state(self) -> dict[str, Any]:
        """Everything that determines later decisions, JSON-serialisable."""
        return dataclasses.asdict(self._history)

    def limit(self, step: int) -> float:
        """The mean squared error above which `step` is rejected; infinite while too few steps are known.

        It depends only on steps up to `step` - 2, which are known at launch whether or not the previous step has been
        waited for. So a resumed run has the same limits as an uninterrupted one.
        """
        if not self._run.skips or not self._run.spike_factor:
            return math.inf
        known = [error for at, error in self._history.errors if at <= step - 2][-USUAL_STEPS:]
        return self._run.spike_factor * statistics.median(known) if len(known) >= KNOWN_STEPS else math.inf

    def counted(self, step: int, error: float) -> None:
        """Reports an accepted step and the mean squared error of its rows."""
        self._history.errors = [*self._history.errors[-USUAL_STEPS:], [step, error]]

    def skip(self, step: int, why: str) -> str:
        """Reports a rejected step. Returns a summary of recent rejections; NonFiniteError if none are allowed."""
        run, history = self._run, self._history
        if not run.skips:
            raise NonFiniteError(f"{why}; the run stops without saving: {ADVICE}")
        history.skipped = [at for at in [*history.skipped, step] if at > step - run.skip_window]
        history.why = why
        return f"{len(history.skipped)} skipped within {run.skip_window} steps, at most {run.skips} are allowed"

    def lost(self, step: int) -> bool:
        """Whether too many of the steps before `step` were rejected."""
        recent = [at for at in self._history.skipped if step - 1 - self._run.skip_window < at < step]
        return len(recent) > self._run.skips

    def roll_back(
        self, state: Any, step: int, checkpoints: Checkpoints, restore: Restore, begin: Callable[[], dict[str, Any]]
    ) -> tuple[dict[str, Any], str]:
        """Restores the arrays from before the trouble, to continue with after `step`; also returns a description.

        `begin` returns the initial arrays, which are used if no checkpoint was saved yet. `state` is deleted first,
        because device memory may not suffice for two. NonFiniteError if the run has rolled back too often, or there is
        nothing to roll back to.
        """
        history, most = self._history, self._run.rollbacks
        trouble = history.skipped[0]
        what = f"{len(history.skipped)} steps were skipped from {trouble} on, the last because of {history.why}"
        if history.rollbacks >= most:
            raise NonFiniteError(f"{what}; the run has rolled back {history.rollbacks} times (run.rollbacks): {ADVICE}")
        checkpoints.wait()  # the checkpoint being written may be the one to restore
        for leaf in jax.tree.leaves(state):
            leaf.delete()
        restored = restore(trouble)
        if restored is not None:
            arrays, where, lost = restored[0], f"of step {restored[1].step}", step - restored[1].step
        elif checkpoints.has_any():
            raise NonFiniteError(f"{what}; there is no earlier checkpoint to roll back to: {ADVICE}")
        else:
            try:
                arrays, where, lost = begin(), "that the run started with", step
            except (OSError, ValueError) as error:
                raise NonFiniteError(f"{what}; the initial weights are unavailable: {error}") from error
        history.errors = [known for known in history.errors if known[0] < trouble]
        history.skipped = []
        history.rollbacks += 1
        done = f"rolled back to the weights {where}, losing {lost} updates; the data continues"
        return arrays, f"{done}; rollback {history.rollbacks} of at most {most}; {what}"


def describe(
    step: int,
    loss: float,
    grad_norm: float,
    row_loss: Float[np.ndarray, " b"],
    keys: Sequence[str],
    rows: Sequence[int],
) -> str:
    """One line about a bad step: its loss, gradient norm and the keys of its samples, worst rows first.

    `row_loss` is that of the global batch; `keys` and `rows` are the sample keys and row numbers of this process.
    """
    errors = row_loss[np.asarray(rows)]
    bad = [key for key, error in zip(keys, errors, strict=True) if not np.isfinite(error)]
    order = np.argsort(np.where(np.isfinite(errors), -errors, -np.inf), kind="stable")
    worst_first = [keys[int(row)] for row in order]
    which = f"non-finite rows: {', '.join(bad)}; " if bad and len(bad) < len(keys) else ""
    return (
        f"step {step}: loss {loss:.6g}, gradient norm {grad_norm:.6g}; {which}"
        f"batch keys, worst first: {', '.join(worst_first)}"
    )
