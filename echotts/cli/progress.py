"""Progress of long work on standard error."""

import sys
import time

from echotts.files import Closing

LINE_EVERY_S = 10.0


class Progress(Closing):
    """Rate and remaining time of long work: a progress bar on a terminal, otherwise a line now and then."""

    def __init__(self) -> None:
        self._bar = None
        self._stage = ""
        self._began = self._logged = 0.0
        self._first = 0

    def __call__(self, stage: str, done: int, total: int, rejected: int = 0) -> None:
        if stage != self._stage:
            self._start(stage, done, total)
        note = f", {rejected} rejected" if rejected else ""
        if self._bar is not None:
            self._bar.set_postfix_str(note.removeprefix(", "), refresh=False)
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if now - self._logged < LINE_EVERY_S and done < total:
            return
        self._logged = now
        rate = (done - self._first) / max(now - self._began, 1e-9)
        pace = f", {rate:.1f} per second" if rate else ""
        left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
        print(f"{stage} {done}/{total}{pace}{left}{note}", file=sys.stderr, flush=True)

    def _start(self, stage: str, done: int, total: int) -> None:
        self.close()
        self._stage, self._first = stage, done
        self._began = self._logged = time.monotonic()
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=stage, dynamic_ncols=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
