"""Puts batches onto the devices, and measures the time spent waiting for them. The stream itself prefetches."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from echotts.config import Bucket
from echotts.data.stream.batch import Batch
from echotts.data.stream.stream import Stream
from echotts.training import mesh as meshes


@dataclass(frozen=True)
class Fed:
    """A global batch, the keys and row numbers of this process's rows, and the stream state after it."""

    batch: Batch
    keys: Sequence[str]
    rows: Sequence[int]
    bucket: Bucket
    stream_state: dict[str, Any]
    frames_seen: int  # frames of speech in all batches up to this one


class Feed:
    """`next()` returns the next global batch; `waited_s` is the total time spent waiting for the stream."""

    def __init__(self, stream: Stream, mesh: Mesh, frames_seen: int = 0):
        self.waited_s = 0.0
        self._frames_seen = frames_seen
        self._stream = stream
        self._mesh = mesh

    @property
    def rejected(self) -> Mapping[str, int]:
        """Samples rejected by this process, by cause."""
        return self._stream.rejections.counts

    @property
    def retries(self) -> int:
        """Number of retried requests for shards since the start."""
        return self._stream.shards.retries

    def on_retry(self, listener: Callable[[str], None]) -> None:
        """Calls `listener` with one line for each retry from now on, from any thread."""
        self._stream.shards.on_retry(listener)

    @property
    def cache_bytes(self) -> int:
        """Bytes of downloaded shards on this machine's disk."""
        return self._stream.shards.cache_bytes

    def next(self) -> Fed:
        """The next batch; its copy to the devices is in progress."""
        began = time.perf_counter()
        with jax.profiler.TraceAnnotation("next batch"):
            batch, keys, bucket = self._stream.next()
        self.waited_s += time.perf_counter() - began
        # each process sees only its own rows, whose lengths are those of the others on average
        self._frames_seen += int(np.sum(batch.latent_mask)) * jax.process_count()
        return Fed(
            to_devices(batch, self._mesh), keys, self._stream.rows.own, bucket, self._stream.state(), self._frames_seen
        )


def to_devices(batch: Batch, mesh: Mesh) -> Batch:
    """This process's rows (meshes.own_rows, in order) as part of the global batch, on its devices."""
    sharding = meshes.batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)), batch)
