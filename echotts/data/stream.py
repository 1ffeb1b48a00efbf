"""The endless, shuffled stream of batches: a pure function of (seed, step), whatever the number of processes.

`order` says which sample comes when, `pool` how a virtual stream reads and draws. A bucket is chosen for each step
and every row of the global batch asks its stream for a sample of that bucket.

The state is JSON: per stream where it reads, how many samples it has drawn, and where in the shards the samples of
its pool lie, so that restoring reads exactly those again. It says nothing of processes: any process count that
divides the streams can go on from it.
"""

import hashlib
import itertools
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from echotts.config import Bucket, DataConfig
from echotts.data.batch import Batch, collate
from echotts.data.loader import Loader
from echotts.data.order import BucketSchedule, Order, Rows, smallest_bucket
from echotts.data.pool import StreamPlan, VirtualStream
from echotts.data.rejections import Rejections
from echotts.data.shards import ShardReader
from echotts.text import Tokenizer

logger = logging.getLogger(__name__)

STATE_VERSION = 1
MIN_POOL_SAMPLES = 16
SCAN_SHARDS, SCAN_SAMPLES = 16, 128

Lengths = Sequence[tuple[int, int, int]]  # latent frames, bytes of text, samples that are no longer than that


class Stream:
    """Batches without end; `next()` gives the batch, its samples' names in row order, and its bucket.

    A process sees its own rows, batch_size / process_count of them; all processes together see the global batch.
    Loading runs ahead in a background thread; `state()` is always that of the last batch handed out.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        config: DataConfig,
        seed: int,
        tokenizer: Tokenizer,
        silence: Float[np.ndarray, "k c"],
        process_index: int = 0,
        process_count: int = 1,
        lengths: Lengths = (),
    ) -> None:
        """`files` are the shards, in the same order everywhere; `lengths` (dataset.json) spares a scan for them."""
        _check_buckets(config.buckets)
        self.config = config
        self.silence = np.asarray(silence, np.float32)
        self.rows = Rows(config.batch_size, config.streams, process_index, process_count)
        self.rejections = Rejections(config.max_rejected_share)
        self._plan = StreamPlan(
            files=tuple(map(Path, files)),
            order=Order(len(files), config.streams, seed),
            seed=seed,
            buckets=config.buckets,
            tokenizer=tokenizer,
            channels=self.silence.shape[1],
            reference_frames=config.reference_frames,
            pool_samples=max(MIN_POOL_SAMPLES, -(-config.shuffle_samples // config.streams)),
        )
        self._streams = {v: VirtualStream(v, self._plan, self.rejections) for v in self.rows.own_streams}
        self._schedule = BucketSchedule(bucket_counts(self._plan.files, lengths, tokenizer, config.buckets), seed)
        self._step = 0
        self._state = self._snapshot()
        self._loader: Loader | None = None
        self._waited_s = 0.0
        self._watch_start = time.monotonic()

    def next(self) -> tuple[Batch, list[str], Bucket]:
        """The batch of the next step; waits for it where loading is slower than its use.

        Raises TooManyRejected past the configured share, ValueError where nothing is usable, OSError where a
        shard cannot be read.
        """
        if self._loader is None:
            self._loader = Loader(self._produce)
        start = time.monotonic()
        batch, names, bucket, self._state = self._loader.get()
        self._waited_s += time.monotonic() - start
        return batch, names, bucket

    def state(self) -> dict[str, Any]:
        """JSON-able place behind the last batch of `next()`, of this process's streams (see merge_states)."""
        return self._state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on behind the batch after which `state` was taken. ValueError where data or settings differ."""
        _compare(self._identity(), state)
        missing = [v for v in self._streams if str(v) not in state["streams"]]
        if missing:
            raise ValueError(f"the stream state lacks stream {missing[0]}: merge the states of all processes first")
        self._stop()
        self._step = state["step"]
        self._schedule.thresholds = list(state["thresholds"])
        for index, stream in self._streams.items():
            stream.restore(state["streams"][str(index)])
        self.rejections.read = sum(stream.read for stream in self._streams.values())
        self.rejections.counts = sum((stream.rejected for stream in self._streams.values()), Counter())
        self._state = self._snapshot()

    def waiting_share(self) -> float:
        """Share of the time since the last call of this that went into waiting for data, 0 to 1."""
        now = time.monotonic()
        share = self._waited_s / max(now - self._watch_start, 1e-9)
        self._waited_s, self._watch_start = 0.0, now
        return min(share, 1.0)

    def close(self) -> None:
        """Ends the thread and closes the shards."""
        self._stop()
        for stream in self._streams.values():
            stream.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _produce(self) -> tuple[Batch, list[str], Bucket, dict[str, Any]]:
        bucket = self._schedule.at(self._step)
        samples = [self._streams[v].draw(bucket) for v in self.rows.at(self._step)]
        self._step += 1
        shape = self.config.buckets[bucket]
        batch, names = collate(samples, shape, self._plan.tokenizer, self.silence, self.config.reference_frames)
        return batch, names, shape, self._snapshot()

    def _snapshot(self) -> dict[str, Any]:
        return self._identity() | {
            "step": self._step,
            "thresholds": list(self._schedule.thresholds),
            "streams": {str(v): stream.state() for v, stream in self._streams.items()},
        }

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a state to mean the same."""
        names = "\n".join(path.name for path in self._plan.files)
        return {
            "version": STATE_VERSION,
            "shards": len(self._plan.files),
            "shard_names_sha256": hashlib.sha256(names.encode()).hexdigest(),
            "seed": self._plan.seed,
            "batch_size": self.config.batch_size,
            "virtual_streams": self.config.streams,
            "pool_samples": self._plan.pool_samples,
            "buckets": [[bucket.frames, bucket.tokens] for bucket in self.config.buckets],
        }

    def _stop(self) -> None:
        if self._loader is not None:
            self._loader.stop()
            self._loader = None


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


def bucket_counts(
    files: Sequence[Path], lengths: Lengths, tokenizer: Tokenizer, buckets: Sequence[Bucket]
) -> list[int]:
    """How many samples belong to each bucket: from `lengths`, else from a scan of a few samples of a few shards.

    The scan depends on `files` alone, so every process finds the same. Where it is partial the largest bucket
    gets one sample more, so that samples which it missed find a place.
    """
    if len(buckets) == 1:
        return [1]
    counts = [0] * len(buckets)
    if lengths and tokenizer.kind == "byte":
        for frames, text_bytes, samples in lengths:
            bucket = smallest_bucket(buckets, frames, text_bytes + 1)
            counts[len(buckets) - 1 if bucket is None else bucket] += samples
        return counts
    scanned, whole = 0, len(files) <= SCAN_SHARDS
    for path in [files[i * len(files) // SCAN_SHARDS] for i in range(SCAN_SHARDS)] if not whole else files:
        with ShardReader(path) as reader:
            stride = max(1, -(-len(reader) // SCAN_SAMPLES))
            whole &= stride == 1
            for place in range(0, len(reader), stride):
                bucket = _scan_bucket(reader, place, tokenizer, buckets)
                if bucket is not None:
                    counts[bucket] += 1
                    scanned += 1
    counts[-1] += 0 if whole else 1
    logger.info("length buckets follow %d scanned samples: %s", scanned, [int(count) for count in counts])
    return counts


def _scan_bucket(reader: ShardReader, place: int, tokenizer: Tokenizer, buckets: Sequence[Bucket]) -> int | None:
    try:
        sample = reader.sample(place)
        tokens = len(tokenizer.encode(sample.text, buckets[-1].tokens))
    except ValueError:  # the stream will meet it again and say what is wrong
        return None
    return smallest_bucket(buckets, len(sample.latent), tokens)


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
