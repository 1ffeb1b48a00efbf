"""Batches onto the devices, and how long the loop waited for them. Reading ahead is the stream's own affair."""

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
    """A global batch, the keys of this process's rows with their numbers, and the stream's state behind it."""

    batch: Batch
    keys: Sequence[str]
    rows: Sequence[int]
    bucket: Bucket
    stream_state: dict[str, Any]
    frames_seen: int  # frames of speech in all batches up to this one


class Feed:
    """`next()` gives the next global batch; `waited_s` sums the seconds spent waiting for the stream."""

    def __init__(self, stream: Stream, mesh: Mesh, frames_seen: int = 0):
        self.waited_s = 0.0
        self._frames_seen = frames_seen
        self._stream = stream
        self._mesh = mesh

    @property
    def rejected(self) -> Mapping[str, int]:
        """Samples this process has refused, by cause, by the stream's count."""
        return self._stream.rejections.counts

    @property
    def retries(self) -> int:
        """Requests for shards that had to be made again since the start."""
        return self._stream.shards.retries

    def on_retry(self, listener: Callable[[str], None]) -> None:
        """`listener` hears of each such request from now on, in one line, from any thread."""
        self._stream.shards.on_retry(listener)

    @property
    def cache_bytes(self) -> int:
        """What fetched shards take on this machine's disk."""
        return self._stream.shards.cache_bytes

    def next(self) -> Fed:
        """The next batch, its copy to the devices under way."""
        began = time.perf_counter()
        with jax.profiler.TraceAnnotation("next batch"):
            batch, keys, bucket = self._stream.next()
        self.waited_s += time.perf_counter() - began
        # of several processes each sees its own rows, which are as long as the others' on average
        self._frames_seen += int(np.sum(batch.latent_mask)) * jax.process_count()
        return Fed(
            to_devices(batch, self._mesh), keys, self._stream.rows.own, bucket, self._stream.state(), self._frames_seen
        )


def to_devices(batch: Batch, mesh: Mesh) -> Batch:
    """This process's rows (meshes.own_rows, in order) as part of the global batch, on its devices."""
    sharding = meshes.batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)), batch)
