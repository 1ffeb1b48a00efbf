"""The endless, shuffled stream of batches: a pure function of (seed, step), independent of the number of processes.

`order` determines which sample comes when, `pool` how a virtual stream reads and draws, `store` where shards come from.
A bucket is chosen for each step, and every row of the global batch draws a sample of that bucket from its stream.

The state is JSON: for each virtual stream its read position, its number of draws, and the positions of the samples in
its pool, so that restoring reads exactly those again. It does not depend on processes: any process count that divides
the streams can continue from it.
"""

import hashlib
import itertools
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Float

from echotts.config import Bucket, DataConfig
from echotts.data.remote.store import Shards, Source
from echotts.data.stream.batch import Batch, collate
from echotts.data.stream.length_buckets import bucket_counts
from echotts.data.stream.order import (
    ESTIMATE_HEADROOM,
    HEADROOM,
    BucketSchedule,
    Mixture,
    Order,
    Promotion,
    Rows,
    hash_int,
)
from echotts.data.stream.pool import StreamPlan, VirtualStream
from echotts.files import Closing
from echotts.latents import UNSCALED, LatentScale
from echotts.rundir.rejections import Rejections
from echotts.text.tokens import Tokenizer

logger = logging.getLogger(__name__)

STATE_VERSION = 2
MIN_POOL_SAMPLES = 16
READY_RESULTS = 3
LANES_PER_ROW = 4  # shards that a stream alternates between, per sample that it contributes to a batch

T = TypeVar("T")
_OLDER: dict[str, Any] = {"interleave": 1}  # defaults for states that lack these keys


class Stream(Closing):
    """Endless batches; `next()` returns the batch, its samples' names in row order, and its bucket.

    A process gets its own rows of the global batch; the content of a row does not depend on which process owns it.
    Loading runs ahead in a background thread; `state()` always belongs to the last batch returned.
    """

    def __init__(
        self,
        shards: Shards,
        config: DataConfig,
        seed: int,
        tokenizer: Tokenizer,
        silence: Float[np.ndarray, "k c"],
        own_rows: Sequence[int] | None = None,
        scale: LatentScale = UNSCALED,
        lanes: int | None = None,
    ) -> None:
        """`shards` are identical, in the same order, in all processes; they are closed with the stream.

        `own_rows` are the numbers of this process's rows in the global batch, None means all. Batches hold latents and
        `silence` normalised by `scale`. Each stream reads `lanes` shards alternately, None means `choose_lanes`.
        """
        _check_buckets(config.buckets)
        self.config = config
        self.silence = np.asarray(silence, np.float32)
        self.scale = scale
        self.rows = Rows(config.batch_size, config.streams, own_rows)
        self.rejections = Rejections(config.max_rejected_share)
        self.shards = shards
        buckets = len(config.buckets)
        self._plan = StreamPlan(
            shards=shards,
            orders=tuple(
                Order(len(source.files), config.streams, seed if number == 0 else hash_int(seed, "source", number))
                for number, source in enumerate(shards.sources)
            ),
            mixture=Mixture([source.weight for source in shards.sources], seed),
            promotion=Promotion(config.longer_share, buckets, seed),
            seed=seed,
            buckets=config.buckets,
            tokenizer=tokenizer,
            channels=self.silence.shape[1],
            reference_frames=config.reference_frames,
            pool_samples=max(MIN_POOL_SAMPLES, -(-config.shuffle_samples // config.streams)),
            lanes=lanes or choose_lanes(shards.sources, config),
            rows=-(-config.batch_size // config.streams),
        )
        self._warn_of_shared_reads()
        self._streams = {v: VirtualStream(v, self._plan, self.rejections) for v in self.rows.own_streams}
        counts, whole = bucket_counts(shards.sources, tokenizer, config.buckets)
        headroom = HEADROOM if whole else ESTIMATE_HEADROOM
        self._schedule = BucketSchedule(self._plan.promotion.counts(counts), seed, headroom)
        self._step = 0
        self._identity = self._what_must_agree()
        self._state = self._snapshot()
        self._loader: Loader | None = None

    def next(self) -> tuple[Batch, list[str], Bucket]:
        """The batch of the next step; waits if loading is slower than training.

        Raises TooManyRejected beyond the configured share, ValueError if nothing is usable, OSError if a shard cannot
        be read.
        """
        if self._loader is None:
            for stream in self._streams.values():
                stream.expect()
            self._loader = Loader(self._produce)
        batch, names, bucket, self._state = self._loader.get()
        return batch, names, bucket

    def state(self) -> dict[str, Any]:
        """The JSON-serialisable position after the last batch, for this process's streams (see merge_states)."""
        return self._state

    def restore(self, state: Mapping[str, Any], accept_changed: bool = False) -> None:
        """Continues after the batch at which `state` was taken. ValueError if data or settings differ.

        With `accept_changed`, pool samples that no longer exist in their shards are dropped.
        """
        state = {**_OLDER, **state}
        if self.config.interleave is None and state["interleave"] != self._plan.lanes:
            self._plan = replace(self._plan, lanes=state["interleave"])
            self._identity = self._what_must_agree()
        _compare(self._identity, state)
        missing = [v for v in self._streams if str(v) not in state["streams"]]
        if missing:
            raise ValueError(f"the stream state lacks stream {missing[0]}: merge the states of all processes first")
        self._stop()
        self._step = state["step"]
        self._schedule.thresholds = list(state["thresholds"])
        for index, stream in self._streams.items():
            stream.plan = self._plan
            stream.expect(state["streams"][str(index)])
        for index, stream in self._streams.items():
            stream.restore(state["streams"][str(index)], accept_changed)
        self.rejections.read = sum(stream.read for stream in self._streams.values())
        self.rejections.counts = sum((stream.rejected for stream in self._streams.values()), Counter())
        self._state = self._snapshot()

    def close(self) -> None:
        """Ends the threads and closes the shards."""
        self.shards.close()  # first, because the loader may be waiting for one
        self._stop()
        for stream in self._streams.values():
            stream.close()

    def _produce(self) -> tuple[Batch, list[str], Bucket, dict[str, Any]]:
        bucket = self._schedule.at(self._step)
        drawn = [(self._streams[v].draw(bucket), own) for v, own in self.rows.at(self._step)]
        samples = [sample for sample, own in drawn if own]
        self._step += 1
        shape = self.config.buckets[bucket]
        batch, names = collate(
            samples, shape, self._plan.tokenizer, self.silence, self.config.reference_frames, self.scale
        )
        return batch, names, shape, self._snapshot()

    def _snapshot(self) -> dict[str, Any]:
        return self._identity | {
            "step": self._step,
            "thresholds": list(self._schedule.thresholds),
            "streams": {str(v): stream.state() for v, stream in self._streams.items()},
        }

    def _what_must_agree(self) -> dict[str, Any]:
        """What must match for a state to be valid. Computed once: it takes a second for 100,000 shards."""
        names = "\n".join(file.name for file in self.shards.files)
        return {
            "version": STATE_VERSION,
            "shards": len(self.shards.files),
            "shard_names_sha256": hashlib.sha256(names.encode()).hexdigest(),
            "mixture": [[len(source.files), source.weight] for source in self.shards.sources],
            "seed": self._plan.seed,
            "batch_size": self.config.batch_size,
            "virtual_streams": self.config.streams,
            "pool_samples": self._plan.pool_samples,
            "interleave": self._plan.lanes,
            "longer_share": self.config.longer_share,
            "buckets": [[bucket.frames, bucket.tokens] for bucket in self.config.buckets],
        }

    def _warn_of_shared_reads(self) -> None:
        """Warns if several processes read the same shards, because there are too few shards or row groups."""
        several = len(self.rows.own) < self.config.batch_size
        if self.rows.shares_groups:
            logger.warning(
                "batch_size %d and streams %d make %d groups of %d rows, which are split between processes, so shards "
                "are read by several of them; make --data.streams a multiple of the devices",
                *(self.config.batch_size, self.config.streams, self.rows.groups, self.rows.rows_per_group),
            )
        for source, order in zip(self.shards.sources, self._plan.orders, strict=True):
            if order.parts > 1 and (several or source.files[0].remote):
                logger.warning(
                    "%s: %d shards for %d streams: each is split into %d parts and read by several processes; "
                    "split the data into more shards, or lower --data.streams",
                    *(source.files[0].url, len(source.files), order.streams, order.parts),
                )

    def _stop(self) -> None:
        if self._loader is not None:
            self._loader.stop()
            self._loader = None


class Loader(Generic[T]):
    """Calls `produce` repeatedly in a thread and keeps READY_RESULTS results ready."""

    def __init__(self, produce: Callable[[], T]) -> None:
        self._produce = produce
        self._ready: queue.Queue[tuple[T] | BaseException] = queue.Queue(READY_RESULTS)
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="data loader", daemon=True)
        self._thread.start()

    def get(self) -> T:
        """The next result, or the exception that ended the thread (again at every further call)."""
        if self._failure is None:
            result = self._ready.get()
            if not isinstance(result, BaseException):
                return result[0]
            self._failure = result
        raise self._failure

    def stop(self) -> None:
        """Waits for the current call to end and discards what is ready."""
        self._stopping.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.02)
            except queue.Empty:
                continue

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                result = (self._produce(),)
            except BaseException as error:  # raised by `get`
                self._ready.put(error)
                return
            self._ready.put(result)


def choose_lanes(sources: Sequence[Source], config: DataConfig) -> int:
    """Number of shards each stream alternates between: `config.interleave`, or enough to vary neighbouring batches.

    If it is not configured: LANES_PER_ROW per sample that a stream contributes to a batch, limited by the number of
    shards and by the cache, which must fit those of all streams at once. It does not depend on the number of processes.
    """
    if config.interleave is not None:
        return config.interleave
    shards = min(len(source.files) for source in sources) // config.streams
    largest = sum(max((file.bytes or 0 for file in source.files if file.remote), default=0) for source in sources)
    cached = int(config.cache_gb * 1e9 / (largest * config.streams)) if largest else shards
    return max(1, min(LANES_PER_ROW * -(-config.batch_size // config.streams), shards, cached))


def merge_states(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merges the states of all processes at one step into one, from which any process count can continue."""
    merged: dict[str, Any] = {}
    for state in states:
        if not merged:
            merged = dict(state) | {"streams": {}}
        if state["step"] != merged["step"]:
            raise ValueError(f"stream states are from different steps, {merged['step']} and {state['step']}")
        _compare({name: value for name, value in merged.items() if name not in ("streams", "step")}, state)
        merged["streams"] |= state["streams"]
    return merged


def _check_buckets(buckets: Sequence[Bucket]) -> None:
    for shorter, longer in itertools.pairwise(buckets):
        if longer.tokens < shorter.tokens:
            raise ValueError(
                f"bucket {longer} holds less text than {shorter}: what fits a bucket must fit the next one"
            )


def _compare(expected: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    different = [
        f"{name} is {state.get(name)!r} in the state, {value!r} here"
        for name, value in expected.items()
        if state.get(name) != value
    ]
    if different:
        raise ValueError(f"the stream state belongs to another run: {'; '.join(different)}")
