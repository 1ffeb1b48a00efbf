"""The codec's training loop: open and restore; then next crops, step, log, evaluate, decode samples, save, stop."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack

from echotts.codec.layers import Params
from echotts.codec.training.config import CodecTraining
from echotts.codec.training.crops import Clips
from echotts.codec.training.run import Placement, one_device, open_run
from echotts.codec.training.step import exported
from echotts.multihost import runtime
from echotts.multihost.runtime import StopSignal
from echotts.multihost.waiting import asked_to_wait
from echotts.rundir.location import check_run_dir


def train_codec(
    training: CodecTraining,
    clips: Clips,
    placement: Placement | None = None,
    start: Params | None = None,
    *,
    report: Callable[[int, Mapping[str, float]], None] = lambda step, numbers: None,
    stop: StopSignal | None = None,
) -> tuple[Params, int]:
    """Trains in `run.run_dir`, resuming an existing run; returns the folded EMA weights and the step reached.

    Starts from the folded parameters `start`, or from random ones. `report` is called with each line of metrics. Fewer
    steps are done if SIGINT or SIGTERM requested a stop. Raises ValueError if there are no clips, if the configuration
    differs from the saved one, or if `decoder_only` has no `start`; NonFiniteError if too many steps are rejected.
    """
    if training.decoder_only and start is None:
        raise ValueError("decoder_only needs an existing codec to train the decoder of: name it with --init_from")
    check_run_dir(training.run.run_dir)
    with ExitStack() as stack:
        stop = stop or stack.enter_context(StopSignal())
        run = open_run(training, clips, placement or one_device(), start, stack)
        settings = training.run
        while run.step < training.steps:
            run.checkpoints.check()
            run.launch()
            if run.guard.lost(run.step):
                run.roll_back()
            if space := asked_to_wait(run.run_dir.local, run.step, settings.log_every):
                run.wait_for_space(space, stop)
            if run.due(settings.log_every):
                report(run.step, run.write_line())
            leaving = stop.agreed() or run.step == training.steps
            if run.due(settings.eval_every):
                run.measure()
            if run.due(settings.sample_every):
                run.play()
            if leaving or run.checkpoints.due(run.step):
                run.save()
            if leaving:
                break
        with run.pause():
            run.checkpoints.wait()
        event = "finished" if run.step == training.steps else "stopped"
        run.writer.event(run.step, event, f"saved after step {run.step} of {training.steps}")
        return exported(training, runtime.whole(run.state.ema), start), run.step
