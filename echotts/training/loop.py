"""The training loop, top to bottom: open, restore; then next batch, step, log, save, evaluate, synthesise, stop."""

from contextlib import ExitStack
from dataclasses import dataclass

from echotts.config import Config
from echotts.multihost import processes
from echotts.multihost.runtime import StopSignal
from echotts.multihost.waiting import asked_to_wait
from echotts.rundir.location import check_run_dir
from echotts.training.run import open_run
from echotts.training.samples import Speaker


@dataclass(frozen=True)
class Result:
    """Where a run ended; `finished` is False if it was asked to stop before its last step.

    `best_step` is the checkpoint that counts, in a run that looks for its best one (`run.patience`).
    """

    step: int
    samples_seen: int
    finished: bool
    best_step: int | None = None


def train(config: Config, *, speak: Speaker | None = None, stop: StopSignal | None = None) -> Result:
    """Trains `config` in `run.run_dir`, resuming an existing run, until `optim.steps` or until asked to stop.

    With `run.patience` the run also ends when evaluations no longer get better.
    `speak` makes speech samples; without it none are written. Raises ConfigDiffersError, CheckpointError,
    NonFiniteError and errors of the data; in any case, committed checkpoints stay intact.
    """
    steps, settings = config.optim.steps, config.run
    check_run_dir(settings.run_dir)
    processes.join(config)
    with processes.all_end_at_once(), ExitStack() as stack:
        stop = stop or stack.enter_context(StopSignal())
        run = open_run(config, stack)
        while run.step < steps and not run.settled:
            run.checkpoints.check()  # a failed write ends the run now, not at the next save
            run.launch()  # returns while the devices compute
            if run.guard.lost(run.step):  # too many steps were rejected
                run.go_back()
            if space := asked_to_wait(run.run_dir.local, run.step, settings.log_every):  # request of the disk watchdog
                run.wait_for_space(space, stop)
            leaving = stop.agreed()
            measures = not leaving and _due(run.step, settings.eval_every, steps)
            speaks = not leaving and settings.sentences and _due(run.step, settings.sample_every, steps)
            found = bool(run.heldout and measures and run.measure(run.heldout))
            if speak and speaks and run.judged_by_speech:  # what is found out is saved with the weights
                found = run.speak(speak)
            if leaving or found or run.settled or run.step == steps or run.checkpoints.due(run.step):
                run.save()
            if leaving:  # at once, because whoever asked may not wait
                break
            if speak and speaks and not run.judged_by_speech:
                run.speak(speak)
        run.end()
    finished = run.settled or run.step >= steps
    return Result(step=run.step, samples_seen=run.samples_seen, finished=finished, best_step=run.best.step)


def _due(step: int, every: int, last: int) -> bool:
    """Whether something done every `every` steps (0: never) is due after this one; it always is at the last step."""
    return every > 0 and (step % every == 0 or step == last)
