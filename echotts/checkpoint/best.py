"""The best checkpoint of a run with `run.patience`: that of the lowest held-out loss, or of the best speech."""

import json
from dataclasses import dataclass
from typing import Any

from echotts.rundir.layout import BEST
from echotts.rundir.location import RunPath, read_whole, write_whole
from echotts.strict_json import load_json


@dataclass
class Best:
    """What is known of past evaluations. Part of a checkpoint, therefore JSON-serialisable."""

    step: int | None = None
    score: float | None = None  # lower is better
    waited: int = 0  # evaluations since

    def measured(self, step: int, score: float) -> bool:
        """Reports an evaluation; True if it is the best so far. A score that is not finite never is."""
        better = score < (float("inf") if self.score is None else self.score)
        if better:
            self.step, self.score, self.waited = step, score, 0
        else:
            self.waited += 1
        return better


def note_best(run_dir: RunPath, step: int) -> None:
    """Records which step is the best, for those who read the run directory."""
    write_whole(run_dir / BEST, json.dumps({"step": step}) + "\n")


def best_step(run_dir: RunPath) -> int | None:
    """The recorded step; None if there is none. ValueError if the file is damaged."""
    text = read_whole(run_dir / BEST)
    if text is None:
        return None
    step = load_json(text, str(run_dir / BEST), dict[str, Any]).get("step")
    if not isinstance(step, int):
        raise ValueError(f"{run_dir / BEST}: damaged: delete it to use the newest checkpoint")
    return step
