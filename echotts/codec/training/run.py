"""A codec training in progress, in a run directory with the layout of the TTS trainer's.

config.json, checkpoints/, metrics/, samples/. The caller's `Placement`, made from the trainer's sharding table, says
how rows are split over devices; weights are replicated.
"""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from echotts.audio import write_audio
from echotts.checkpoint.checkpoints import Checkpoints
from echotts.checkpoint.contents import Meta
from echotts.checkpoint.guard import Guard, NonFiniteError
from echotts.codec.layers import Params
from echotts.codec.training.config import CodecTraining
from echotts.codec.training.crops import Clips, Crops
from echotts.codec.training.step import (
    CodecState,
    compiled_loss,
    compiled_round_trip,
    compiled_step,
    initial_state,
    without_run,
)
from echotts.disk.watchdog import space_maker
from echotts.files import write_json
from echotts.multihost import runtime
from echotts.multihost.hang import HangWatch
from echotts.multihost.messages import any_process
from echotts.multihost.runtime import StopSignal
from echotts.multihost.waiting import wait_for_space
from echotts.rundir.claim import claimed
from echotts.rundir.free_space import Space
from echotts.rundir.layout import CONFIG, SAMPLES, SENTENCES, step_name, writing
from echotts.rundir.location import RunDir, open_run_dir, write_whole
from echotts.rundir.metrics import MetricsWriter

LOGGER = logging.getLogger(__name__)

LINE = {"total": "loss/train", "grad_norm": "grad/norm", "discriminator_grad_norm": "grad/discriminator_norm"}
LINE |= {"learning_rate": "optim/learning_rate"}
TERMS = ("mel", "stft", "wave", "kl", "commitment", "codebook", "feature", "adversarial", "discriminator")
LINE |= {name: f"loss/{name}" for name in TERMS}
SAMPLES_WRITTEN = 4  # decoded samples written per step


@dataclass(frozen=True)
class Placement:
    """Shardings: `rows` splits a batch over the devices, `whole` replicates an array on each of them."""

    rows: Any
    whole: Any


def one_device() -> Placement:
    """Everything on the first device of this process."""
    device = jax.local_devices()[0]
    return Placement(device, device)


@dataclass(kw_only=True)
class Run:
    """A run in progress: `state` after `step` steps. A step's metrics are read after the next one is launched."""

    training: CodecTraining
    start: Params | None
    placement: Placement
    run_dir: RunDir
    checkpoints: Checkpoints
    guard: Guard
    writer: MetricsWriter
    crops: Crops
    heldout: Crops
    state: CodecState
    watch: HangWatch
    step: int
    began: tuple[int, float]
    settled: float
    pending: dict[str, Array] | None = None
    last: dict[str, float] = dataclasses.field(default_factory=dict)

    def launch(self) -> None:
        """Launches a step on the next crops; returns while the devices compute it."""
        batch = self._to_devices(self.crops.batch(self.step))
        adversarial = self.training.loss.uses_discriminators and self.step >= self.training.loss.adversarial_from
        self.watch.launching(self.step + 1, adversarial)
        limit = np.float32(self.guard.limit(self.step + 1))
        self.state, numbers = compiled_step(without_run(self.training), adversarial)(self.state, batch, limit)
        self._settle()
        self.step += 1
        self.pending = numbers

    def due(self, every: int) -> bool:
        """Whether something done every `every` steps (0: never) is due now; it always is at the last step."""
        return every > 0 and (self.step % every == 0 or self.step == self.training.steps)

    def write_line(self) -> dict[str, float]:
        """Waits for the metrics of the last step and writes them."""
        self._settle()
        first, at = self.began
        step_s = (time.monotonic() - at) / (self.step - first)
        self.began = (self.step, time.monotonic())
        line = {LINE[name]: value for name, value in self.last.items() if name in LINE} | {
            "time/step_s": step_s,
            "time/left_s": step_s * (self.training.steps - self.step),
            "throughput/samples_per_s": self.training.batch_size / step_s,
            "data/samples_seen": self.step * self.training.batch_size,
        }
        line |= {f"data/redrawn_{cause}": count for cause, count in self.crops.rejected.items()}
        self.writer.write(self.step, line)
        return line

    @contextmanager
    def pause(self, hang_s: float = 0.0) -> Iterator[None]:
        """Settles first. The hang watch allows operations inside to take `hang_s`, or an hour if that is more."""
        self._settle()
        with self.watch.pause(hang_s):
            yield
        self.settled = time.monotonic()

    def wait_for_space(self, space: Space, stop: StopSignal) -> None:
        """Saves if that fits, and waits until no process is asked to wait any more, or a stop is requested."""
        with self.pause(hang_s=math.inf):
            if not any_process(not self.checkpoints.fits(self.state.arrays())):
                self._save()
                self.checkpoints.wait()
            free = {"host/disk_free_bytes": space.free_bytes, "host/disk_free_share": 1 - space.used_share}
            what = f"the disk is nearly full ({space}): saved if possible, waiting for free space"
            self.writer.event(self.step, "disk_full", what, free)
            wait_for_space(self.run_dir.local, stop)

    def measure(self) -> None:
        """Evaluates the EMA weights on held-out crops, the same ones each time."""
        if not len(self.heldout):
            return
        totals: dict[str, float] = {"mel": 0.0, "stft": 0.0, "total": 0.0}
        batches = self.training.run.eval_batches
        with self.pause():
            for number in range(batches):
                batch = self._to_devices(self.heldout.batch(number))
                loss, terms = compiled_loss(without_run(self.training))(self.state.ema, batch)
                for name, value in jax.device_get({"total": loss, **terms}).items():
                    if name in totals:
                        totals[name] += float(value) / batches
        names = {"mel": "heldout/mel", "stft": "heldout/stft", "total": "heldout/loss"}
        self.writer.write(self.step, {names[name]: value for name, value in totals.items()})

    def play(self) -> None:
        """Writes held-out crops and their decoded versions, which the dashboard plays and plots."""
        crops = self.heldout if len(self.heldout) else self.crops
        with self.pause():
            batch = self._to_devices(crops.batch(0))
            decoded = compiled_round_trip(without_run(self.training))(self.state.ema, batch, jax.random.key(0))
            before, after = (np.asarray(sounds) for sounds in runtime.whole((batch, decoded)))
            if runtime.is_primary():
                write_samples(self.run_dir.local, self.step, self.training.codec.sample_rate, before, after)

    def roll_back(self) -> None:
        """Rolls back to the weights from before the first of too many rejected steps."""
        given = self.training.to_dict()
        with self.pause():
            abstract = jax.tree.map(_abstract, self.state.arrays())
            arrays, what = self.guard.roll_back(
                self.state,
                self.step,
                self.checkpoints,
                lambda before: self.checkpoints.restore(abstract, given, before=before),
                lambda: jax.device_put(initial_state(self.training, self.start), self.placement.whole).arrays(),
            )
            self.state = CodecState(step=jax.device_put(jnp.int32(self.step), self.placement.whole), **arrays)
            self.writer.event(self.step, "rolled_back", what[:500])
            self._save()

    def save(self) -> None:
        """Starts writing a checkpoint; training goes on meanwhile."""
        with self.pause():
            self._save()

    def hung(self, step: int, why: str) -> None:
        """Called by the hang watch before it ends this process."""
        self.writer.event(step, "hang", why)
        self.writer.event(step, "failed", why)

    def _save(self) -> None:
        meta = Meta(
            step=self.step,
            samples_seen=self.step * self.training.batch_size,
            stream={},
            config=self.training.to_dict(),
            guard=self.guard.state(),
        )
        self.writer.write(self.step, {"checkpoint/save_s": self.checkpoints.save(self.state.arrays(), meta)})

    def _settle(self) -> None:
        """Reads the last step's metrics and passes them to the guard. NonFiniteError if the run must end."""
        if self.pending is None:
            return
        numbers = {name: float(value) for name, value in jax.device_get(self.pending).items()}
        self.pending, step = None, self.step
        before, self.settled = self.settled, time.monotonic()
        self.watch.finished(step, self.settled - before)
        if numbers["good"]:
            self.guard.counted(step, numbers["error"])
            self.last = numbers
            return
        what = f"step {step}: loss {numbers['total']:.6g}, gradient norm {numbers['grad_norm']:.6g}"
        self.writer.event(step, "spike" if numbers["finite"] else "nan", what)
        try:
            often = self.guard.skip(step, what)
        except NonFiniteError as error:
            self.writer.event(step, "failed", str(error)[:500])
            raise
        self.writer.event(step, "skipped", f"{often}; {what}"[:500])

    def _to_devices(self, rows: np.ndarray) -> Array:
        if jax.process_count() == 1:
            return jax.device_put(rows, self.placement.rows)
        return jax.make_array_from_process_local_data(self.placement.rows, rows)


def write_samples(run_dir: Path, step: int, sample_rate: int, originals: np.ndarray, decoded: np.ndarray) -> None:
    """Writes `samples/step_*/NN_decoded.wav` with NN_original.wav as reference, as the dashboard expects them."""
    folder = run_dir / SAMPLES / step_name(step)
    folder.mkdir(parents=True, exist_ok=True)
    described = {}
    for number, (before, after) in enumerate(zip(originals[:SAMPLES_WRITTEN], decoded[:SAMPLES_WRITTEN], strict=False)):
        names = [f"{number:02d}_{kind}.wav" for kind in ("original", "decoded")]
        for name, samples in zip(names, (before, after), strict=True):
            write_audio(folder / name, np.asarray(samples), sample_rate, "none")
        described[names[1]] = {"text": f"crop {number + 1}, beside the original", "reference": names[0]}
    write_json(folder / SENTENCES, described)


def open_run(
    training: CodecTraining, clips: Clips, placement: Placement, start: Params | None, stack: ExitStack
) -> Run:
    count, index = jax.process_count(), jax.process_index()
    if training.batch_size % count:
        raise ValueError(f"batch_size {training.batch_size} is not a multiple of the {count} processes")
    share = training.batch_size // count
    rows = range(index * share, (index + 1) * share)
    crops, heldout = (Crops(clips, training, rows, heldout=kind) for kind in (False, True))
    if not len(crops):
        raise ValueError("no clips to train the codec on: check the --data folder and the list of rejected files")
    stack.callback(crops.close)
    stack.callback(heldout.close)
    run_dir = stack.enter_context(open_run_dir(training.run.run_dir))
    if runtime.is_primary():
        stack.enter_context(claimed(run_dir.shared))
    stack.enter_context(writing(run_dir.local))
    checkpoints = stack.enter_context(Checkpoints(run_dir.shared, training.run, space_maker(training.run.disk_config)))
    state = jax.device_put(initial_state(training, start), placement.whole)
    restored = checkpoints.restore(jax.tree.map(_abstract, state.arrays()), training.to_dict())
    step, guard = 0, Guard(training.run)
    if restored is not None:
        arrays, meta = restored
        step, guard = meta.step, Guard(training.run, meta.guard)
        state = CodecState(step=jax.device_put(jnp.int32(step), placement.whole), **arrays)
        LOGGER.info("resuming codec training after step %d", step)
    if runtime.is_primary():
        write_whole(run_dir.shared / CONFIG, json.dumps(training.to_dict(), indent=1) + "\n")
    writer = stack.enter_context(MetricsWriter(run_dir.local, process=index))
    what = f"after step {step}" if step else "a new codec training"
    writer.event(step, "resumed" if step else "started", f"{what}, {len(crops)} recordings")
    run = Run(
        training=training,
        start=start,
        placement=placement,
        run_dir=run_dir,
        checkpoints=checkpoints,
        guard=guard,
        writer=writer,
        crops=crops,
        heldout=heldout,
        state=state,
        watch=HangWatch(training.run.hang_s, training.run.hang_factor, start=step),
        step=step,
        began=(step, time.monotonic()),
        settled=time.monotonic(),
    )
    stack.enter_context(run_dir.sent_if_it_fails())
    stack.enter_context(run.watch.telling(run.hung, run_dir.send))
    return run


def _abstract(leaf: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
