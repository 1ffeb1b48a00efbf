"""The endless, shuffled stream of batches: a pure function of (seed, step), whatever the number of processes.

`order` says which sample comes when, `pool` how a virtual stream reads and draws, `store` where shards come from. A
bucket is chosen for each step and every row of the global batch asks its stream for a sample of that bucket.

The state is JSON: per stream where it reads, how many samples it has drawn, and where in the shards the samples of
its pool lie, so that restoring reads exactly those again. It says nothing of processes: any process count that
divides the streams can go on from it.
"""

import hashlib
import itertools
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Float

from echotts.config import Bucket, DataConfig
from echotts.data.remote.store import Shards
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
from echotts.latents import UNSCALED, LatentScale
from echotts.rundir.rejections import Rejections
from echotts.text.tokens import Tokenizer

logger = logging.getLogger(__name__)

STATE_VERSION = 2
MIN_POOL_SAMPLES = 16
READY_RESULTS = 3

T = TypeVar("T")


class Stream:
    """Batches without end; `next()` gives the batch, its samples' names in row order, and its bucket.

    A process sees its own rows of the global batch; what a row holds does not depend on which process owns it.
    Loading runs ahead in a background thread; `state()` is always that of the last batch handed out.
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
    ) -> None:
        """`shards` are the same, in the same order, everywhere; they are closed with the stream.

        `own_rows` are the numbers of this process's rows in the global batch; None: all of them. Batches hold what
        `scale` makes of the latents and of `silence`.
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
            lengthening=Promotion(config.longer_share, buckets, seed),
            seed=seed,
            buckets=config.buckets,
            tokenizer=tokenizer,
            channels=self.silence.shape[1],
            reference_frames=config.reference_frames,
            pool_samples=max(MIN_POOL_SAMPLES, -(-config.shuffle_samples // config.streams)),
            lanes=config.interleave,
        )
        self._warn_of_shared_reads()
        self._streams = {v: VirtualStream(v, self._plan, self.rejections) for v in self.rows.own_streams}
        counts, whole = bucket_counts(shards.sources, tokenizer, config.buckets)
        headroom = HEADROOM if whole else ESTIMATE_HEADROOM
        self._schedule = BucketSchedule(self._plan.lengthening.counts(counts), seed, headroom)
        self._step = 0
        self._identity = self._what_must_agree()
        self._state = self._snapshot()
        self._loader: Loader | None = None

    def next(self) -> tuple[Batch, list[str], Bucket]:
        """The batch of the next step; waits for it where loading is slower than its use.

        Raises TooManyRejected past the configured share, ValueError where nothing is usable, OSError where a
        shard cannot be read.
        """
        if self._loader is None:
            for stream in self._streams.values():
                stream.expect()
            self._loader = Loader(self._produce)
        batch, names, bucket, self._state = self._loader.get()
        return batch, names, bucket

    def state(self) -> dict[str, Any]:
        """JSON-able place behind the last batch of `next()`, of this process's streams (see merge_states)."""
        return self._state

    def restore(self, state: Mapping[str, Any], accept_changed: bool = False) -> None:
        """Goes on behind the batch after which `state` was taken. ValueError where data or settings differ.

        With `accept_changed` held samples that are gone from their shards are left out.
        """
        _compare(self._identity, {"interleave": 1} | dict(state))  # older states do not say it
        missing = [v for v in self._streams if str(v) not in state["streams"]]
        if missing:
            raise ValueError(f"the stream state lacks stream {missing[0]}: merge the states of all processes first")
        self._stop()
        self._step = state["step"]
        self._schedule.thresholds = list(state["thresholds"])
        for index, stream in self._streams.items():
            stream.expect(state["streams"][str(index)])
        for index, stream in self._streams.items():
            stream.restore(state["streams"][str(index)], accept_changed)
        self.rejections.read = sum(stream.read for stream in self._streams.values())
        self.rejections.counts = sum((stream.rejected for stream in self._streams.values()), Counter())
        self._state = self._snapshot()

    def close(self) -> None:
        """Ends the threads and closes the shards."""
        self.shards.close()  # first: the loader may be waiting for one
        self._stop()
        for stream in self._streams.values():
            stream.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        """What must be equal for a state to mean the same. Made once: it takes a second for 100,000 shards."""
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
            "interleave": self.config.interleave,
            "longer_share": self.config.longer_share,
            "buckets": [[bucket.frames, bucket.tokens] for bucket in self.config.buckets],
        }

    def _warn_of_shared_reads(self) -> None:
        """Fewer shards or row groups than the layout wants work, but then several processes read the same shards."""
        several = len(self.rows.own) < self.config.batch_size
        if self.rows.shares_groups:
            logger.warning(
                "batch_size %d and streams %d make %d groups of %d rows, which the processes cut: shards are read by "
                "several of them; choose --data.streams as a multiple of the devices",
                *(self.config.batch_size, self.config.streams, self.rows.groups, self.rows.rows_per_group),
            )
        for source, order in zip(self.shards.sources, self._plan.orders, strict=True):
            if order.parts > 1 and (several or source.files[0].remote):
                logger.warning(
                    "%s: %d shards for %d streams: each is cut into %d parts and read by several processes; "
                    "cut the data into more shards, or lower --data.streams",
                    *(source.files[0].url, len(source.files), order.streams, order.parts),
                )

    def _stop(self) -> None:
        if self._loader is not None:
            self._loader.stop()
            self._loader = None


class Loader(Generic[T]):
    """Calls `produce` again and again in a thread and keeps READY_RESULTS ready."""

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
        """Waits for the call in progress to end and forgets what is ready."""
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
            except BaseException as error:  # handed to whoever waits for the result
                self._ready.put(error)
                return
            self._ready.put(result)


def merge_states(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The states of all processes at one step as one, from which any process count can go on."""
    merged: dict[str, Any] = {}
    for state in states:
        if not merged:
            merged = dict(state) | {"streams": {}}
        if state["step"] != merged["step"]:
            raise ValueError(f"stream states of steps {merged['step']} and {state['step']} do not belong together")
        _compare({name: value for name, value in merged.items() if name not in ("streams", "step")}, state)
        merged["streams"] |= state["streams"]
    return merged


def _check_buckets(buckets: Sequence[Bucket]) -> None:
    for shorter, longer in itertools.pairwise(buckets):
        if longer.tokens < shorter.tokens:
            raise ValueError(f"bucket {longer} holds less text than {shorter}: what fits one must fit the next")


def _compare(expected: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    different = [
        f"{name} {state.get(name)!r} there, {value!r} here"
        for name, value in expected.items()
        if state.get(name) != value
    ]
    if different:
        raise ValueError(f"the stream state is of another run: {'; '.join(different)}")
