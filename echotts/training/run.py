"""A run: how it starts or resumes, its parts and state, and each action of the training loop."""

import dataclasses
import json
import math
from contextlib import ExitStack
from dataclasses import dataclass, field

import jax
from jax.sharding import Mesh

from echotts.checkpoint.best import Best, best_step, note_best
from echotts.checkpoint.checkpoints import Checkpoints
from echotts.checkpoint.contents import Meta
from echotts.checkpoint.digests import json_digest
from echotts.checkpoint.guard import Guard
from echotts.checkpoint.weights import describe
from echotts.config import Config, to_dict
from echotts.data.stream.stream import merge_states
from echotts.disk.watchdog import space_maker
from echotts.latents import LatentScale
from echotts.multihost import messages, processes, runtime
from echotts.multihost.hang import HangWatch
from echotts.multihost.messages import any_process
from echotts.multihost.runtime import StopSignal
from echotts.multihost.waiting import wait_for_space
from echotts.rundir.claim import LOOK_S, claimed
from echotts.rundir.free_space import Space
from echotts.rundir.layout import CONFIG, writing
from echotts.rundir.location import RunDir, RunPath, open_run_dir, write_whole
from echotts.rundir.metrics import MetricsWriter
from echotts.rundir.tensorboard import TensorBoard
from echotts.training import mesh as meshes
from echotts.training.feed import Fed, Feed
from echotts.training.inputs import Inputs, open_inputs
from echotts.training.profiling import Profiler
from echotts.training.progress import Progress
from echotts.training.report import Reporter
from echotts.training.samples import Heldout, Speaker, choose_voices, write_samples
from echotts.training.start import begin, roll_back
from echotts.training.state import TrainState, load_base
from echotts.training.step import TrainStep, make_train_step
from echotts.training.tuning import (
    base_facts,
    check_base_facts,
    student_facts,
    student_of,
    voice_of,
    whole_weights,
)

SPEAKING_S = 3600.0  # for process 0 to synthesise and recognise the samples


@dataclass(kw_only=True)
class Run:
    """The parts and state of a run: `state` after `step` steps, the last of them on the batch `fed`."""

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
    best: Best
    state: TrainState
    step: int
    samples_seen: int
    fed: Fed = field(init=False)

    def launch(self) -> None:
        """Launches a step on the next batch; returns while the devices compute it."""
        with self.profiler.step(self.step + 1):
            self.fed = self.feed.next()
            self.watch.launching(self.step + 1, self.fed.bucket)
            limit = self.guard.limit(self.step + 1)  # maximum error of an accepted step
            self.state, numbers = self.train_step(self.state, self.fed.batch, limit)  # returns immediately
        self.step += 1
        self.samples_seen += self.config.data.batch_size
        self.reporter.launched(self.step, self.samples_seen, self.fed, numbers)  # reads the previous step's metrics
        self.profiler.launched(self.step)

    def go_back(self) -> None:
        """Rolls back to the weights from before the first of too many rejected steps."""
        with self.reporter.pause():
            self.state, what = roll_back(
                self.guard, self.state, self.step, self.config, self.mesh, self.checkpoints, self.inputs.first_voice
            )
            self.reporter.rolled_back(self.step, what)
            self._save()

    def wait_for_space(self, space: Space, stop: StopSignal) -> None:
        """Saves, if it fits, and waits until no process is asked to wait any more, or a stop is requested."""
        with self.reporter.pause(hang_s=math.inf):
            if not any_process(not self.checkpoints.fits(self.state.arrays())):
                self._save()
                self.checkpoints.wait()
            self.reporter.disk_full(self.step, space)
            wait_for_space(self.run_dir.local, stop)

    @property
    def settled(self) -> bool:
        """Whether the run stops early: `run.patience` evaluations were not better than the best."""
        return 0 < self.config.run.patience <= self.best.waited

    @property
    def judged_by_speech(self) -> bool:
        """Whether the best checkpoint is that of the best speech samples."""
        return self.config.run.patience > 0 and self.config.run.best_by == "speech"

    def measure(self, heldout: Heldout) -> bool:
        """Evaluates the held-out losses; True if the run looks for the lowest and this is it."""
        with self.reporter.pause():
            losses = heldout.losses(self.state.ema)
            self.reporter.measured(self.step, losses)
        if not self.config.run.patience or self.judged_by_speech:
            return False
        return self._judged(losses["heldout/loss"])

    def _judged(self, score: float) -> bool:
        """Compares an evaluation with the best so far; if it is better, its checkpoint will be kept."""
        if not self.best.measured(self.step, score):
            return False
        self.checkpoints.best = self.step
        if runtime.is_primary():
            note_best(self.run_dir.shared, self.step)
        return True

    def speak(self, speaker: Speaker) -> bool:
        """Writes speech samples with the current weights; True if the run looks for the best and these are."""
        run, figures = self.config.run, {}
        with self.reporter.pause():
            trained, frozen = runtime.whole((self.state.ema, self.train_step.frozen))
            if runtime.is_primary():
                params = whole_weights(self.config, trained, frozen)
                weights = describe(params, self.config.model, self._here(), "ema")
                weights = dataclasses.replace(weights, student=student_of(self.config, trained))
                voice = voice_of(self.config, trained, self.inputs.stream.scale)
                voices = choose_voices(run, self.heldout) if voice is None else [voice]
                folder, figures = write_samples(self.run_dir.local, self.step, run.sentences, speaker, weights, voices)
                self.reporter.spoken(self.step, self.run_dir.shown(folder), figures)
            if not self.judged_by_speech:
                return False
            agreed = messages.agree_on(f"speech/{self.step}", lambda: figures, "hear the samples", SPEAKING_S)
        return self._judged(agreed["speech/word_error_rate"] - agreed.get("speech/voice_similarity", 0.0))

    def save(self) -> None:
        """Starts writing a checkpoint; training goes on meanwhile."""
        with self.reporter.pause():  # reads this step's metrics, so that only finite weights are saved
            self._save()

    def end(self) -> None:
        """Waits until everything is written and reported."""
        with self.reporter.pause():
            self.checkpoints.wait()
        self.reporter.ended(self.step, settled=self.settled)

    def _here(self) -> Meta:
        return bookmark(self.config, self.inputs, self.step, self.samples_seen, self.fed)

    def _save(self) -> None:
        meta = for_checkpoint(self._here(), self.guard, self.best)
        self.reporter.saved(self.step, self.checkpoints.save(self.state.arrays(), meta))


def open_run(config: Config, stack: ExitStack) -> Run:
    """Starts or resumes a run, to be closed with `stack`. Collective."""
    run = config.run
    mesh = meshes.make_mesh(data=run.data_ways, tensor=run.tensor_ways)
    meshes.check_layout(config, mesh, jax.local_device_count())
    base = base_facts(config)
    scale = base and LatentScale.from_json(base.latent_scale, config.model.latent_channels)
    inputs = open_inputs(config, meshes.own_rows(mesh, config.data.batch_size), scale)
    if base:
        check_base_facts(config, base, inputs.facts)
    frozen = load_base(config, mesh)
    facts = dataclasses.replace(inputs.facts, base=frozen.weights_hash, student=student_facts(config))
    inputs = dataclasses.replace(inputs, facts=facts)
    processes.check_same("tokenizer and codec", json_digest(inputs.facts.to_dict()))
    train_step = make_train_step(config, mesh, frozen.params)
    heldout = Heldout(config, mesh, inputs.heldout, inputs.stream.scale, frozen.params) if inputs.heldout else None
    run_dir = stack.enter_context(open_run_dir(run.run_dir, create=runtime.is_primary()))
    processes.check_shared(run_dir.shared)
    claim = claimed(run_dir.shared)
    messages.agree_on("claim", lambda: stack.enter_context(claim), "claim the run directory", LOOK_S)
    stack.enter_context(writing(run_dir.local))
    checkpoints = stack.enter_context(Checkpoints(run_dir.shared, run, space_maker(run.disk_config)))
    state, step, samples_seen, frames_seen, guard, best = begin(config, mesh, checkpoints, inputs)
    checkpoints.best = best.step if run.patience else None
    if not run.patience and runtime.is_primary() and best_step(run_dir.shared) is not None:
        note_best(run_dir.shared, None)  # the run looked for its best before it was resumed
    if step < config.optim.steps:
        write_config(run_dir.shared, config)

    beside = TensorBoard(run_dir.local, step) if run.tensorboard and runtime.is_primary() else None
    metrics = stack.enter_context(MetricsWriter(run_dir.local, process=jax.process_index(), beside=beside))
    progress = stack.enter_context(Progress(config.optim.steps, step))
    feed = Feed(stack.enter_context(inputs.stream), mesh, frames_seen)
    watch = HangWatch(run.hang_s, run.hang_factor, start=step)
    reporter = Reporter(config, metrics, progress, feed, train_step, guard, watch, start=step)
    profiler = stack.enter_context(Profiler(run_dir.local, run, reporter))

    stack.enter_context(processes.all_end_at_once())  # before anything below waits for other processes while unwinding
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
        best=best,
        state=state,
        step=step,
        samples_seen=samples_seen,
    )


def write_config(run_dir: RunPath, config: Config) -> None:
    """Writes the resolved configuration to the run directory, once it is known to be accepted."""
    if runtime.is_primary():
        write_whole(run_dir / CONFIG, json.dumps(to_dict(config), indent=1) + "\n")


def bookmark(config: Config, inputs: Inputs, step: int, samples_seen: int, fed: Fed) -> Meta:
    """The metadata of a checkpoint after this batch."""
    return Meta(
        step=step,
        samples_seen=samples_seen,
        stream=fed.stream_state,
        config=to_dict(config),
        facts=inputs.facts,
        frames_seen=fed.frames_seen,
    )


def for_checkpoint(here: Meta, guard: Guard, best: Best) -> Meta:
    """The metadata as stored, with the stream states of all processes. Collective."""
    here = dataclasses.replace(here, guard=guard.state(), best=dataclasses.asdict(best))
    states = messages.gather(f"stream/{here.step}", here.stream)
    return dataclasses.replace(here, stream=merge_states(states)) if states else here  # written by process 0
