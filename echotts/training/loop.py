"""The training loop, top to bottom: build, restore; then next batch, step, log, eval, speak, save, stop."""

import math
from contextlib import ExitStack
from dataclasses import dataclass

import jax

from echotts.config import Config
from echotts.disk.runs import writing
from echotts.training import mesh as meshes
from echotts.training import processes, runtime
from echotts.training.checkpoint import Checkpoints
from echotts.training.export import describe
from echotts.training.feed import Feed
from echotts.training.hang import HangWatch
from echotts.training.heldout import Heldout
from echotts.training.inputs import open_inputs
from echotts.training.metrics import MetricsWriter
from echotts.training.profiling import Profiler
from echotts.training.progress import Progress
from echotts.training.report import Reporter
from echotts.training.room import any_process, asked_to_wait, wait_for_room
from echotts.training.rundir import check_run_dir, open_run_dir
from echotts.training.runtime import StopSignal
from echotts.training.samples import Speaker, choose_voices, write_samples
from echotts.training.start import begin, bookmark, for_checkpoint, write_config
from echotts.training.step import make_train_step
from echotts.training.tensorboard import TensorBoard


@dataclass(frozen=True)
class Result:
    """Where a run ended; `finished` is False where it was asked to stop before its last step."""

    step: int
    samples_seen: int
    finished: bool


def train(config: Config, *, speak: Speaker | None = None, stop: StopSignal | None = None) -> Result:
    """Trains `config` in `run.run_dir`, resuming what is there, until `optim.steps` or until asked to stop.

    `speak` makes speech samples; without it none are written. Raises ConfigDiffersError, CheckpointError,
    NonFiniteError and what the data raises; whatever happens, committed checkpoints stay whole.
    """
    steps, run = config.optim.steps, config.run
    check_run_dir(run.run_dir)
    processes.join(config)
    with processes.all_end_at_once(), ExitStack() as stack:
        stop = stop or stack.enter_context(StopSignal())
        mesh = meshes.make_mesh(data=run.data_ways, tensor=run.tensor_ways)
        inputs = open_inputs(config)
        train_step = make_train_step(config, mesh)
        heldout = Heldout(config, mesh, inputs.heldout) if inputs.heldout else None
        run_dir = stack.enter_context(open_run_dir(run.run_dir))
        processes.check_shared(run_dir.shared)
        stack.enter_context(writing(run_dir.local))
        checkpoints = stack.enter_context(Checkpoints(run_dir.shared, run))
        state, step, samples_seen, frames_seen, guard = begin(config, mesh, checkpoints, inputs)
        write_config(run_dir.shared, config)

        beside = TensorBoard(run_dir.local, step) if run.tensorboard and runtime.is_primary() else None
        metrics = stack.enter_context(MetricsWriter(run_dir.local, process=jax.process_index(), beside=beside))
        progress = stack.enter_context(Progress(steps, step))
        feed = Feed(stack.enter_context(inputs.stream), mesh, frames_seen)
        watch = HangWatch(run.hang_s, run.hang_factor, start=step)
        reporter = Reporter(config, metrics, progress, feed, train_step, guard, watch, start=step)
        profiler = stack.enter_context(Profiler(run_dir.local, run, reporter))

        stack.enter_context(processes.all_end_at_once())  # before anything below waits for the others on its way out
        stack.enter_context(run_dir.sent_if_it_fails())
        stack.enter_context(reporter.telling_why())
        reporter.began(run_dir.local, samples_seen)
        stack.enter_context(watch.telling(reporter.hung, run_dir.send))
        while step < steps:
            checkpoints.check()  # a write that failed ends the run now, not at the next one
            with profiler.step(step + 1):
                fed = feed.next()
                watch.launching(step + 1, fed.bucket)
                limit = guard.limit(step + 1)  # of a good step's error
                state, numbers = train_step(state, fed.batch, limit)  # returns at once; the devices work on
            step, samples_seen = step + 1, samples_seen + config.data.batch_size
            reporter.launched(step, samples_seen, fed, numbers)  # reads the numbers of the step before
            profiler.launched(step)
            here = bookmark(config, inputs, step, samples_seen, fed)
            if guard.lost(step):  # too many steps were left out: the weights are taken from before the first of them
                with reporter.pause():
                    state, what = guard.roll_back(state, step, config, mesh, checkpoints)
                    reporter.rolled_back(step, what)
                    reporter.saved(step, checkpoints.save(state.arrays(), for_checkpoint(here, guard)))
            if space := asked_to_wait(run_dir.local, step, run.log_every):  # by the disk watchdog
                with reporter.pause(hang_s=math.inf):
                    if not any_process(not checkpoints.fits(state.arrays())):
                        reporter.saved(step, checkpoints.save(state.arrays(), for_checkpoint(here, guard)))
                        checkpoints.wait()
                    reporter.disk_full(step, space)
                    wait_for_room(run_dir.local, stop)
            leaving = stop.agreed() or step == steps

            if heldout and _due(step, run.eval_every, steps):
                with reporter.pause():
                    reporter.measured(step, heldout.losses(state.ema))
            if speak and run.sentences and _due(step, run.sample_every, steps):
                with reporter.pause():
                    weights = describe(runtime.whole(state.ema), config.model, here, "ema")
                    if runtime.is_primary():
                        voices = choose_voices(run, heldout)
                        spoken = write_samples(run_dir.local, step, run.sentences, speak, weights, voices)
                        reporter.spoken(step, run_dir.shown(spoken))
            if leaving or checkpoints.due(step):
                with reporter.pause():  # which reads this step's numbers: what is saved was finite
                    reporter.saved(step, checkpoints.save(state.arrays(), for_checkpoint(here, guard)))
            if leaving:
                break

        with reporter.pause():
            checkpoints.wait()
        reporter.ended(step)
    return Result(step=step, samples_seen=samples_seen, finished=step == steps)


def _due(step: int, every: int, last: int) -> bool:
    """Whether something done every so many steps (0: never) is done after this one; the last step counts."""
    return every > 0 and (step % every == 0 or step == last)
