"""One virtual stream: reads its units in order into a pool of samples and draws from the pool.

The pool mixes the samples of neighbouring shards and sorts them by bucket. A draw takes a sample of the bucket of the
step or, if there is none, of the next shorter one (a batch may contain shorter samples, never longer ones), and the
stream reads on until the pool is full again. Where a stream reads several shards alternately, a draw avoids the shards
of the previous batch. Pools are bounded: if a stream finds nothing short enough among CROWD_SAMPLES (as with shards
sorted by length), long samples are dropped and counted as `crowded_out`.

Samples with too many frames or too long a text are rejected and counted, not cropped: cropped speech under the whole
text would teach the model to swallow words. References are cropped to their beginning.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from echotts.config import Bucket
from echotts.data.format.shards import Sample, ShardReader
from echotts.data.remote.store import Shards
from echotts.data.remote.web import Unavailable
from echotts.data.stream.order import Mixture, Order, Promotion, hash_int, lane_at, smallest_bucket
from echotts.gcs import first_line
from echotts.rundir.rejections import Fault, Rejected, Rejections
from echotts.text.tokens import Tokenizer

CROWD_SAMPLES = 256
BARREN_ROUNDS = 20  # passes over all units without a usable sample before a stream gives up


@dataclass(frozen=True)
class StreamPlan:
    """What all virtual streams of a process share. Immutable."""

    shards: Shards
    orders: tuple[Order, ...]  # one per source
    mixture: Mixture
    promotion: Promotion
    seed: int
    buckets: tuple[Bucket, ...]
    tokenizer: Tokenizer
    channels: int
    reference_frames: int
    pool_samples: int
    lanes: int = 1  # units of a source read alternately; lane l has units l, l + lanes, l + 2 lanes, ...
    rows: int = 1  # maximum samples per batch from a stream

    @property
    def apart(self) -> int:
        """Number of draws, about a batch, for which a drawn unit is avoided if the pool has others.

        At most half of the lanes, since with fewer choices units would be drawn in a fixed cycle.
        """
        return min(2 * self.rows - 1, self.lanes // 2)


@dataclass(frozen=True)
class _Held:
    """A sample in a pool, and its origin: source, unit ordinal, index in its shard."""

    source: int
    unit: int
    place: int
    sample: Sample

    @property
    def origin(self) -> tuple[int, int]:
        return self.source, self.unit


class _Cursor:
    """The position of a stream in one source: the unit, and how many of its samples were read."""

    def __init__(self, unit: int = 0, taken: int = 0) -> None:
        self.unit = unit
        self.taken = taken
        self.reader: ShardReader | None = None
        self.places: list[int] = []

    def close(self) -> None:
        if self.reader is not None:
            self.reader.close()
            self.reader = None


class VirtualStream:
    """One of the V streams: reads its units in order, holds a pool, draws from it."""

    def __init__(self, index: int, plan: StreamPlan, rejections: Rejections) -> None:
        self.index = index
        self.plan = plan
        self.rejections = rejections
        self.cursors = [_Cursor(lane) for _ in plan.orders for lane in range(plan.lanes)]  # each source's lanes
        self.turns = 0  # samples added to the pool
        self.draws = 0
        self.read = 0
        self.rejected: Counter[str] = Counter()
        self.pool: list[list[_Held]] = [[] for _ in plan.buckets]
        self.recent: list[tuple[int, int]] = []  # (source, unit) of the last draws

    def draw(self, bucket: int) -> Sample:
        """The next sample that fits the bucket of this index."""
        while self._held() < self.plan.pool_samples:
            self._read_one()
        began = [cursor.unit for cursor in self.cursors]
        while not any(self.pool[: bucket + 1]):
            if self._held() >= max(CROWD_SAMPLES, 2 * self.plan.pool_samples):
                self._crowd_out()
            self._read_one()
            for number, unit in enumerate(began):
                self._give_up(number, unit, f"no sample that fits {self.plan.buckets[bucket]}")
        held = next(self.pool[k] for k in range(bucket, -1, -1) if self.pool[k])
        first = hash_int(self.plan.seed, "draw", self.index, self.draws) % len(held)
        places = ((first + further) % len(held) for further in range(len(held)))
        place = next((place for place in places if held[place].origin not in self.recent), first)
        self.recent = [*self.recent, held[place].origin][-self.plan.apart :] if self.plan.apart else []
        held[place], held[-1] = held[-1], held[place]
        self.draws += 1
        return held.pop().sample

    def state(self) -> dict[str, Any]:
        """Everything that determines the next samples, as plain JSON values."""
        return {
            "cursors": [[cursor.unit, cursor.taken] for cursor in self.cursors],
            "turns": self.turns,
            "draws": self.draws,
            "recent": [number for origin in self.recent for number in origin],
            "read": self.read,
            "rejected": dict(self.rejected),
            "pool": [
                [number for item in held for number in (item.source, item.unit, item.place)] for held in self.pool
            ],
        }

    def expect(self, state: Mapping[str, Any] | None = None) -> None:
        """Announces the next shards to the store; with a `state` about to be restored, those of its pool first."""
        units = sorted({item[:2] for held in state["pool"] for item in _triples(held)}) if state else []
        cursors = state["cursors"] if state else [(cursor.unit, cursor.taken) for cursor in self.cursors]
        for depth in range(self.plan.shards.ahead + 1):
            for number, (unit, _) in enumerate(cursors):
                opened = depth == 0 and not state and self.cursors[number].reader is not None
                units += [] if opened else [(number // self.plan.lanes, unit + depth * self.plan.lanes)]
        self.plan.shards.expect(self.index, list(dict.fromkeys(self._shard(source, unit) for source, unit in units)))

    def restore(self, state: Mapping[str, Any], accept_changed: bool = False) -> None:
        """Moves to the position in `state` and reads the pool's samples again."""
        self.close()
        self.cursors = [_Cursor(unit, taken) for unit, taken in state["cursors"]]
        self.turns, self.draws = state["turns"], state["draws"]
        recent = state.get("recent", [])  # missing in older states
        self.recent = list(zip(recent[::2], recent[1::2], strict=True))
        self.read, self.rejected = state["read"], Counter(state["rejected"])
        wanted = [_triples(held) for held in state["pool"]]
        found: dict[tuple[int, int, int], Sample] = {}
        for source, unit in sorted({(source, unit) for held in wanted for source, unit, _ in held}):
            try:
                reader = self._open(source, unit)
            except Unavailable as error:
                self._skip(source, unit, error)
                continue
            with reader:
                places = sorted(item[2] for held in wanted for item in held if item[:2] == (source, unit))
                again = {(source, unit, place): self._again(reader, place, accept_changed) for place in places}
                found |= {item: sample for item, sample in again.items() if sample is not None}
        self.pool = [[_Held(*item, found[item]) for item in held if item in found] for held in wanted]
        self.expect()

    def close(self) -> None:
        for cursor in self.cursors:
            cursor.close()

    def _held(self) -> int:
        return sum(map(len, self.pool))

    def _give_up(self, number: int, began: int, lack: str) -> None:
        """ValueError if a cursor has passed through its source too often since the unit `began`."""
        source = number // self.plan.lanes
        if self.cursors[number].unit > began + BARREN_ROUNDS * self.plan.orders[source].units:
            shards = self.plan.shards
            files = shards.sources[source].files
            raise ValueError(
                f"stream {self.index} found {lack} in {len(files)} shards, first {files[0].url}: "
                f"{self.rejections.summary()}"
            )

    def _read_one(self) -> None:
        """Reads up to the next usable sample of the source whose turn it is and adds it to the pool."""
        source = self.plan.mixture.at(self.index, self.turns)
        number = source * self.plan.lanes + lane_at(self.turns, self.plan.lanes)
        cursor = self.cursors[number]
        began = cursor.unit
        while True:
            if cursor.reader is None and not self._begin_unit(source, cursor):
                self._give_up(number, began, "no usable sample")
                continue
            assert cursor.reader is not None
            while cursor.taken < len(cursor.places):
                cursor.taken += 1
                if self._take(source, cursor, cursor.places[cursor.taken - 1]):
                    self.turns += 1
                    return
            cursor.close()
            cursor.unit, cursor.taken = cursor.unit + self.plan.lanes, 0
            self._give_up(number, began, "no usable sample")

    def _begin_unit(self, source: int, cursor: _Cursor) -> bool:
        """Opens the shard at the cursor. If it is unavailable, moves the cursor on and returns False."""
        order = self.plan.orders[source]
        try:
            cursor.reader = self._open(source, cursor.unit)
        except Unavailable as error:
            self._skip(source, cursor.unit, error)
            cursor.unit, cursor.taken = cursor.unit + self.plan.lanes, 0
            return False
        self.expect()
        cursor.places = order.places(self.index, cursor.unit, len(cursor.reader))
        if cursor.taken == 0 and order.unit(self.index, cursor.unit)[1] == 0:
            self._count_faults(cursor.reader)
        return True

    def _take(self, source: int, cursor: _Cursor, place: int) -> bool:
        """Adds the sample to the pool, or counts why it was rejected."""
        reader = cursor.reader
        assert reader is not None
        self.read += 1
        self.rejections.read += 1
        try:
            sample = reader.sample(place)
            bucket = self._bucket(sample)
        except Rejected as fault:
            self._reject(fault.cause, reader.shard, reader.key(place), fault.detail)
            return False
        bucket = self.plan.promotion.bucket(bucket, self.index, source, cursor.unit, place)
        self.pool[bucket].append(_Held(source, cursor.unit, place, self._cropped(sample)))
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
        """Keeps only as much of the reference as a batch uses: references may be minutes long."""
        limit = self.plan.reference_frames
        if sample.reference is None or len(sample.reference) <= limit:
            return sample
        return replace(sample, reference=sample.reference[:limit].copy())

    def _crowd_out(self) -> None:
        crowd = next(held for held in reversed(self.pool) if held)
        sample = crowd.pop(0).sample
        self._reject("crowded_out", sample.shard, sample.key, f"{len(sample.latent)} frames, short samples are lacking")

    def _count_faults(self, reader: ShardReader) -> None:
        self.read += len(reader.tar.faults)
        self.rejected.update(fault.cause for fault in reader.tar.faults)
        self.rejections.opened(reader.shard, reader.tar.faults)

    def _skip(self, source: int, unit: int, error: Unavailable) -> None:
        """Counts an unavailable shard: its samples are skipped, nothing else changes."""
        self.read += 1
        self.rejected["shard_unavailable"] += 1
        name = self.plan.shards.files[self._shard(source, unit)].name
        self.rejections.opened(name, [Fault("shard_unavailable", "the whole shard", first_line(error))])

    def _reject(self, cause: str, shard: str, key: str, detail: str) -> None:
        self.rejected[cause] += 1
        self.rejections.add(cause, shard, key, detail)

    def _shard(self, source: int, unit: int) -> int:
        """The number of a unit's shard, counted through all sources."""
        return self.plan.shards.first[source] + self.plan.orders[source].unit(self.index, unit)[0]

    def _open(self, source: int, unit: int) -> ShardReader:
        return self.plan.shards.open(self._shard(source, unit), self.plan.channels)

    def _again(self, reader: ShardReader, place: int, accept_changed: bool) -> Sample | None:
        try:
            return self._cropped(reader.sample(place))
        except (Rejected, IndexError) as error:
            if accept_changed:
                return None
            raise ValueError(
                f"{reader.tar.path}: sample {place} existed when the state was saved and does not now ({error}): "
                "the shard has changed, start a new run"
            ) from None


def _triples(held: Sequence[int]) -> list[tuple[int, int, int]]:
    """The flat numbers of a state as (source, unit, index)."""
    return list(zip(held[::3], held[1::3], held[2::3], strict=True))
