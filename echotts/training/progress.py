"""The progress line: a bar on a terminal, a plain line per log step otherwise."""

import sys
from typing import Any

from tqdm import tqdm

from echotts.files import Closing

BAR = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix}"
MINUTE_S, HOUR_S = 60, 3600


class Progress(Closing):
    """Shows the progress of a training. `steps` is the last step, `start` the step it resumes after."""

    def __init__(self, steps: int, start: int = 0, stream: Any = None):
        self._stream = sys.stderr if stream is None else stream
        self._steps = steps
        self._bar = (
            tqdm(total=steps, initial=start, file=self._stream, desc="train", bar_format=BAR, dynamic_ncols=True)
            if self._stream.isatty()
            else None
        )

    def advance(self, step: int) -> None:
        """Reports that step number `step` has been launched."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def report(self, step: int, loss: float, samples_per_s: float, data_wait_share: float, left_s: float) -> None:
        """Shows the figures of a log step."""
        figures = (
            f"loss {loss:.4f}, {samples_per_s:.1f} samples/s, "
            f"waiting for data {data_wait_share:.0%}, {duration(left_s)} left"
        )
        if self._bar is not None:
            self._bar.set_postfix_str(figures, refresh=True)
        else:
            self.say(f"step {step}/{self._steps}: {figures}")

    def say(self, line: str) -> None:
        """Prints a permanent line."""
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            self._stream.write(line + "\n")
            self._stream.flush()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def duration(seconds: float) -> str:
    """A duration for people: 42 s, 12 min, 3 h 20 min."""
    if seconds < 2 * MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR_S:
        return f"{seconds / MINUTE_S:.0f} min"
    hours, rest = divmod(seconds, HOUR_S)
    return f"{hours:.0f} h {rest / MINUTE_S:.0f} min"
