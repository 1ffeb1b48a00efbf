"""A run under way: what it works with, where it stands, and each thing that the loop does with it."""

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import jax
from jax.sharding import Mesh

from echotts.checkpoint.checkpoints import Checkpoints
from echotts.checkpoint.contents import Meta
from echotts.checkpoint.digests import json_digest
from echotts.checkpoint.export import describe
from echotts.checkpoint.guard import Guard
from echotts.config import Config
from echotts.disk.watchdog import space_maker
from echotts.multihost import messages, processes, runtime
from echotts.multihost.messages import any_process
from echotts.multihost.runtime import StopSignal
from echotts.rundir import pause
from echotts.rundir.claim import LOOK_S, claimed
from echotts.rundir.free_space import Space, measure
from echotts.rundir.layout import writing
from echotts.rundir.location import RunDir, open_run_dir
from echotts.rundir.metrics import MetricsWriter
from echotts.rundir.tensorboard import TensorBoard
from echotts.training import mesh as meshes
from echotts.training.feed import Fed, Feed
from echotts.training.hang import HangWatch
from echotts.training.heldout import Heldout
from echotts.training.inputs import Inputs, open_inputs
from echotts.training.profiling import Profiler
from echotts.training.progress import Progress
from echotts.training.report import Reporter
from echotts.training.samples import Speaker, choose_voices, write_samples
from echotts.training.start import begin, bookmark, for_checkpoint, roll_back, write_config
from echotts.training.state import TrainState
from echotts.training.step import TrainStep, make_train_step


@dataclass(kw_only=True)
class Run:
    """What a run works with, and where it stands: `state` after `step` steps, the last of them on the batch `fed`."""

    config: Config
    mesh: Mesh
    inputs: Inputs
    train_step: TrainStep
    heldout: Heldout | None
    run_dir: RunDir
    checkpoints: Checkpoints
    guard: Guard
    feed: Feed
    watch: HangWatch
    reporter: Reporter
    profiler: Profiler
    state: TrainState
    step: int
    samples_seen: int
    fed: Fed = field(init=False)

    def launch(self) -> None:
        """The next batch, and a step on it, which the devices work on when this returns."""
        with self.profiler.step(self.step + 1):
            self.fed = self.feed.next()
            self.watch.launching(self.step + 1, self.fed.bucket)
            limit = self.guard.limit(self.step + 1)  # of a good step's error
            self.state, numbers = self.train_step(self.state, self.fed.batch, limit)  # returns at once
        self.step += 1
        self.samples_seen += self.config.data.batch_size
        self.reporter.launched(self.step, self.samples_seen, self.fed, numbers)  # reads the numbers of the step before
        self.profiler.launched(self.step)

    def go_back(self) -> None:
        """Takes the weights from before the first of too many steps that were left out."""
        with self.reporter.pause():
            self.state, what = roll_back(self.guard, self.state, self.step, self.config, self.mesh, self.checkpoints)
            self.reporter.rolled_back(self.step, what)
            self._save()

    def wait_for_space(self, space: Space, stop: StopSignal) -> None:
        """Saves, if that fits, and waits until no process is asked to wait any more, or one is asked to stop."""
        with self.reporter.pause(hang_s=math.inf):
            if not any_process(not self.checkpoints.fits(self.state.arrays())):
                self._save()
                self.checkpoints.wait()
            self.reporter.disk_full(self.step, space)
            wait_for_space(self.run_dir.local, stop)

    def measure(self, heldout: Heldout) -> None:
        """The losses on data that are never trained on."""
        with self.reporter.pause():
            self.reporter.measured(self.step, heldout.losses(self.state.ema))

    def speak(self, speaker: Speaker) -> None:
        """Writes what the weights say by now."""
        run = self.config.run
        with self.reporter.pause():
            weights = describe(runtime.whole(self.state.ema), self.config.model, self._here(), "ema")
            if runtime.is_primary():
                voices = choose_voices(run, self.heldout)
                folder, heard = write_samples(self.run_dir.local, self.step, run.sentences, speaker, weights, voices)
                self.reporter.spoken(self.step, self.run_dir.shown(folder), heard)

    def save(self) -> None:
        """A checkpoint, which is written while the run goes on."""
        with self.reporter.pause():  # which reads this step's numbers: what is saved was finite
            self._save()

    def end(self) -> None:
        """Returns when everything is written and told."""
        with self.reporter.pause():
            self.checkpoints.wait()
        self.reporter.ended(self.step)

    def _here(self) -> Meta:
        return bookmark(self.config, self.inputs, self.step, self.samples_seen, self.fed)

    def _save(self) -> None:
        meta = for_checkpoint(self._here(), self.guard)
        self.reporter.saved(self.step, self.checkpoints.save(self.state.arrays(), meta))


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


def open_run(config: Config, stack: ExitStack) -> Run:
    """A run that begins or goes on, and is closed with `stack`, on all processes alike."""
    run = config.run
    mesh = meshes.make_mesh(data=run.data_ways, tensor=run.tensor_ways)
    meshes.check_layout(config, mesh, jax.local_device_count())
    inputs = open_inputs(config, meshes.own_rows(mesh, config.data.batch_size))
    processes.check_same("tokenizer and codec", json_digest(inputs.facts))
    train_step = make_train_step(config, mesh)
    heldout = Heldout(config, mesh, inputs.heldout, inputs.stream.scale) if inputs.heldout else None
    run_dir = stack.enter_context(open_run_dir(run.run_dir, create=runtime.is_primary()))
    processes.check_shared(run_dir.shared)
    claim = claimed(run_dir.local)
    messages.agree_on("claim", lambda: stack.enter_context(claim), "claim the run directory", LOOK_S)
    stack.enter_context(writing(run_dir.local))
    checkpoints = stack.enter_context(Checkpoints(run_dir.shared, run, space_maker(run.disk_config)))
    state, step, samples_seen, frames_seen, guard = begin(config, mesh, checkpoints, inputs)
    if step < config.optim.steps:
        write_config(run_dir.shared, config)

    beside = TensorBoard(run_dir.local, step) if run.tensorboard and runtime.is_primary() else None
    metrics = stack.enter_context(MetricsWriter(run_dir.local, process=jax.process_index(), beside=beside))
    progress = stack.enter_context(Progress(config.optim.steps, step))
    feed = Feed(stack.enter_context(inputs.stream), mesh, frames_seen)
    watch = HangWatch(run.hang_s, run.hang_factor, start=step)
    reporter = Reporter(config, metrics, progress, feed, train_step, guard, watch, start=step)
    profiler = stack.enter_context(Profiler(run_dir.local, run, reporter))

    stack.enter_context(processes.all_end_at_once())  # before anything below waits for the others on its way out
    stack.enter_context(run_dir.sent_if_it_fails())
    stack.enter_context(reporter.telling_why())
    reporter.began(run_dir.local, samples_seen)
    stack.enter_context(watch.telling(reporter.hung, run_dir.send))
    return Run(
        config=config,
        mesh=mesh,
        inputs=inputs,
        train_step=train_step,
        heldout=heldout,
        run_dir=run_dir,
        checkpoints=checkpoints,
        guard=guard,
        feed=feed,
        watch=watch,
        reporter=reporter,
        profiler=profiler,
        state=state,
        step=step,
        samples_seen=samples_seen,
    )
