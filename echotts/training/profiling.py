"""Profiler traces of a few steps: at `run.profile_step`, or on request by touching `<run dir>/profile`.

All processes trace the same steps, each into `<run dir>/profiles/step_*/<process>_<host>`, where TensorBoard's profiler
(xprof) and Perfetto find them. A profiler error loses the trace, but never affects the run.
"""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from echotts.config import RunConfig
from echotts.files import Closing
from echotts.multihost.runtime import Announcements
from echotts.rundir.layout import PROFILE
from echotts.training.report import Reporter

LOGGER = logging.getLogger(__name__)

FOLDER = "profiles"


class Profiler(Closing):
    """Checks for a request every `run.log_every` steps; with several processes, process 0 checks and announces it."""

    def __init__(self, run_dir: Path, run: RunConfig, reporter: Reporter):
        self._run_dir = run_dir
        self._steps = run.profile_steps
        self._asked = Announcements("profile", every=max(run.log_every, 1))
        self._reporter = reporter
        self._begins = {run.profile_step} - {0}  # first steps of scheduled traces
        self._tracing: tuple[int, Path] | None = None  # first step, folder
        self._step = 0

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Wraps fetching and launching of a step; labels it with its number in a trace."""
        if step in self._begins and self._tracing is None:
            self._start(step)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def launched(self, step: int) -> None:
        """Ends a trace whose last step this was, and checks for a request."""
        self._step = step
        if self._tracing is not None and step >= self._tracing[0] + self._steps - 1:
            with self._reporter.pause():  # waits until the step is done
                self.close()
        if self._asked.due(step, self._requested):
            self._begins.add(step + 1)

    def _requested(self) -> bool:
        """Whether the request file exists; removes it. If that fails, logs a warning and ignores the request."""
        path = self._run_dir / PROFILE
        try:
            if not path.is_file():
                return False
            path.unlink()
        except OSError as error:
            LOGGER.warning("no profiler trace: %s cannot be removed: %s", path, error)
            return False
        return True

    def _start(self, step: int) -> None:
        folder = self._run_dir / FOLDER / f"step_{step:08d}" / f"{jax.process_index():03d}_{socket.gethostname()}"
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # tracing Python calls would make the trace many times larger
        with self._reporter.pause():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                jax.profiler.start_trace(folder, profiler_options=options)
                self._tracing = step, folder
            except Exception as error:  # errors of the profiler or the disk must not stop training
                self._reporter.profiled(step, f"no profiler trace: {error}")

    def close(self) -> None:
        """Ends the trace, if there is one."""
        if self._tracing is None:
            return
        (first, folder), self._tracing = self._tracing, None
        try:
            jax.profiler.stop_trace()
        except Exception as error:  # as above
            self._reporter.profiled(self._step, f"no profiler trace in {folder}: {error}")
        else:
            self._reporter.profiled(self._step, f"profiler trace of steps {first} to {self._step}: {folder}")
