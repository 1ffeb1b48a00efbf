"""One virtual stream: reads its units in order, holds back a pool of samples, draws from it.

The pool mixes the samples of neighbouring shards, and it sorts by length: samples lie by the bucket they belong to, a
draw takes one of the bucket that the step asks for or, when there is none, of the next shorter one (a batch may carry
shorter samples, never longer ones), and the stream reads on until the pool is full again. Pools are bounded: where a
stream finds nothing short enough among CROWD_SAMPLES (shards sorted by length do that), long samples are let go,
counted as `crowded_out`.

Too long samples and texts are rejected and counted, not cropped: a cut recording under its whole text teaches the
model to swallow words. References are cropped to their beginning.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from echotts.config import Bucket
from echotts.data.order import Order, hash_int, smallest_bucket
from echotts.data.rejections import Rejected, Rejections
from echotts.data.shards import Sample, ShardReader
from echotts.text import Tokenizer

CROWD_SAMPLES = 256
BARREN_ROUNDS = 20  # a stream that finds nothing usable in so many times all units gives up


@dataclass(frozen=True)
class StreamPlan:
    """What all virtual streams of a process share and none changes."""

    files: tuple[Path, ...]
    order: Order
    seed: int
    buckets: tuple[Bucket, ...]
    tokenizer: Tokenizer
    channels: int
    reference_frames: int
    pool_samples: int


@dataclass(frozen=True)
class _Held:
    """A sample in a pool, and where it came from: unit ordinal and place in its shard."""

    unit: int
    place: int
    sample: Sample


class VirtualStream:
    """One of the V streams: reads its units in order, holds a pool, draws from it."""

    def __init__(self, index: int, plan: StreamPlan, rejections: Rejections) -> None:
        self.index = index
        self.plan = plan
        self.rejections = rejections
        self.unit = 0
        self.taken = 0  # samples of the unit that were looked at
        self.draws = 0
        self.read = 0
        self.rejected: Counter[str] = Counter()
        self.pool: list[list[_Held]] = [[] for _ in plan.buckets]
        self._reader: ShardReader | None = None
        self._places: list[int] = []

    def draw(self, bucket: int) -> Sample:
        """The next sample that fits the bucket of this index."""
        while self._held() < self.plan.pool_samples:
            self._read_one()
        last_unit = self._last_unit()
        while not any(self.pool[: bucket + 1]):
            if self._held() >= max(CROWD_SAMPLES, 2 * self.plan.pool_samples):
                self._crowd_out()
            self._read_one()
            self._give_up_after(last_unit, f"no sample that fits {self.plan.buckets[bucket]}")
        held = next(self.pool[k] for k in range(bucket, -1, -1) if self.pool[k])
        place = hash_int(self.plan.seed, "draw", self.index, self.draws) % len(held)
        held[place], held[-1] = held[-1], held[place]
        self.draws += 1
        return held.pop().sample

    def state(self) -> dict[str, Any]:
        """Everything that decides what comes next, as plain JSON values."""
        return {
            "unit": self.unit,
            "taken": self.taken,
            "draws": self.draws,
            "read": self.read,
            "rejected": dict(self.rejected),
            "pool": [[number for item in held for number in (item.unit, item.place)] for held in self.pool],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes the place that `state` describes and reads the pool's samples again."""
        self.close()
        self.unit, self.taken, self.draws = state["unit"], state["taken"], state["draws"]
        self.read, self.rejected = state["read"], Counter(state["rejected"])
        wanted = [list(zip(held[::2], held[1::2], strict=True)) for held in state["pool"]]
        found: dict[tuple[int, int], Sample] = {}
        for unit in sorted({unit for held in wanted for unit, _ in held}):
            with self._open(unit) as reader:
                places = sorted(place for held in wanted for other, place in held if other == unit)
                found |= {(unit, place): self._again(reader, place) for place in places}
        self.pool = [[_Held(unit, place, found[unit, place]) for unit, place in held] for held in wanted]

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _held(self) -> int:
        return sum(map(len, self.pool))

    def _last_unit(self) -> int:
        return self.unit + BARREN_ROUNDS * self.plan.order.units

    def _give_up_after(self, last_unit: int, lack: str) -> None:
        if self.unit > last_unit:
            raise ValueError(
                f"stream {self.index} found {lack} in {len(self.plan.files)} shards, first {self.plan.files[0]}: "
                f"{self.rejections.summary()}"
            )

    def _read_one(self) -> None:
        """Reads on to the next usable sample and adds it to the pool."""
        order, last_unit = self.plan.order, self._last_unit()
        while True:
            if self._reader is None:
                self._reader = self._open(self.unit)
                self._places = order.places(self.index, self.unit, len(self._reader))
                if self.taken == 0 and order.unit(self.index, self.unit)[1] == 0:
                    self._count_faults(self._reader)
            while self.taken < len(self._places):
                self.taken += 1
                if self._take(self._reader, self._places[self.taken - 1]):
                    return
            self.close()
            self.unit, self.taken = self.unit + 1, 0
            self._give_up_after(last_unit, "no usable sample")

    def _take(self, reader: ShardReader, place: int) -> bool:
        """Adds the sample to the pool, or counts why not."""
        self.read += 1
        self.rejections.read += 1
        try:
            sample = reader.sample(place)
            bucket = self._bucket(sample)
        except Rejected as fault:
            self._reject(fault.cause, reader.shard, reader.key(place), fault.detail)
            return False
        self.pool[bucket].append(_Held(self.unit, place, self._cropped(sample)))
        return True

    def _bucket(self, sample: Sample) -> int:
        frames, largest = len(sample.latent), self.plan.buckets[-1]
        if frames > largest.frames:
            raise Rejected("latent_too_long", f"{frames} frames, the largest bucket has {largest.frames}")
        try:
            tokens = len(self.plan.tokenizer.encode(sample.text, largest.tokens))
        except ValueError as error:
            raise Rejected("text_too_long", str(error)) from None
        bucket = smallest_bucket(self.plan.buckets, frames, tokens)
        if bucket is None:
            raise Rejected("text_too_long", f"{tokens} tokens, the largest bucket has {largest.tokens}")
        return bucket

    def _cropped(self, sample: Sample) -> Sample:
        """Only as much of the reference as a batch takes: references may be minutes long."""
        limit = self.plan.reference_frames
        if sample.reference is None or len(sample.reference) <= limit:
            return sample
        return replace(sample, reference=sample.reference[:limit].copy())

    def _crowd_out(self) -> None:
        crowd = next(held for held in reversed(self.pool) if held)
        sample = crowd.pop(0).sample
        self._reject("crowded_out", sample.shard, sample.key, f"{len(sample.latent)} frames wait while short ones lack")

    def _count_faults(self, reader: ShardReader) -> None:
        self.read += len(reader.tar.faults)
        self.rejected.update(fault.cause for fault in reader.tar.faults)
        self.rejections.opened(reader.shard, reader.tar.faults)

    def _reject(self, cause: str, shard: str, key: str, detail: str) -> None:
        self.rejected[cause] += 1
        self.rejections.add(cause, shard, key, detail)

    def _open(self, unit: int) -> ShardReader:
        shard, _ = self.plan.order.unit(self.index, unit)
        return ShardReader(self.plan.files[shard], self.plan.channels)

    def _again(self, reader: ShardReader, place: int) -> Sample:
        try:
            return self._cropped(reader.sample(place))
        except (Rejected, IndexError) as error:
            raise ValueError(
                f"{reader.tar.path}: sample {place} was there when the state was saved and is not now ({error}): "
                "the shard has changed, start a new run"
            ) from None
