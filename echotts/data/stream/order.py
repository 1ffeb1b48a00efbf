"""The order of samples: arithmetic on (seed, position), identical in every process.

The shards are distributed over V virtual streams. If there are fewer shards than streams, each shard is split into
`parts`; one part of one shard is a unit. The permutations of the units of all epochs are concatenated and dealt
round-robin: stream v gets units v, v + V, v + 2V and so on, without end. The samples of a shard are permuted again in
each epoch, and its parts are equal shares of that permutation. Each source of a mixture is distributed separately, and
every stream alternates between its sources according to the weights.

A batch of B rows is divided into g = gcd(B, V) groups of neighbouring streams, with B/g rows per step each; within a
group the streams take turns. So if B is a multiple of V, every stream contributes B/V rows to every batch; if V is a
multiple of B, every row has V/B streams that take turns by step. A row depends only on its number in the global batch,
the seed and the step, not on which process owns it (training/mesh.py).
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from echotts.config import Bucket

# Long buckets are chosen this much more often than their samples occur (see bucket_thresholds): slightly if the lengths
# of all samples are known, more if they were estimated.
HEADROOM, ESTIMATE_HEADROOM = 1.02, 1.1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: multiples of it, modulo 2^64, are spread most evenly
_ROOT_OF_2 = 0x6A09E667F3BCC909  # 2^64 times the fractional part of the square root of 2
_WORD = 1 << 64


def hash_int(*parts: int | str) -> int:
    """A 64-bit hash of the parts, independent of any library's generator or version."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class Order:
    """The endless sequence of units of each virtual stream."""

    KEPT_EPOCHS = 8

    def __init__(self, shards: int, streams: int, seed: int) -> None:
        if shards < 1:
            raise ValueError("a stream needs at least one shard")
        self.streams = streams
        self.seed = seed
        self.parts = -(-streams // shards) if shards < streams else 1
        self.units = shards * self.parts
        self._permutations: OrderedDict[int, list[int]] = OrderedDict()

    def unit(self, stream: int, ordinal: int) -> tuple[int, int]:
        """Shard index and part of the `ordinal`-th unit of a virtual stream."""
        epoch, place = divmod(stream + ordinal * self.streams, self.units)
        return divmod(self._permutation(epoch)[place], self.parts)

    def epoch(self, stream: int, ordinal: int) -> int:
        return (stream + ordinal * self.streams) // self.units

    def places(self, stream: int, ordinal: int, samples: int) -> list[int]:
        """The indices of the unit's samples within its shard of `samples`, in reading order."""
        shard, part = self.unit(stream, ordinal)
        epoch = self.epoch(stream, ordinal)
        shuffled = sorted(
            range(samples), key=lambda place: (hash_int(self.seed, "samples", epoch, shard, place), place)
        )
        return shuffled[part :: self.parts]

    def _permutation(self, epoch: int) -> list[int]:
        if epoch not in self._permutations:
            self._permutations[epoch] = sorted(
                range(self.units), key=lambda unit: (hash_int(self.seed, "units", epoch, unit), unit)
            )
            while len(self._permutations) > self.KEPT_EPOCHS:
                self._permutations.popitem(last=False)
        return self._permutations[epoch]


class Rows:
    """Maps virtual streams to rows of the global batch, and says which rows this process owns.

    Rows are numbered over the global batch. A process may own any of them: on a TPU slice the rows of a host are often
    not contiguous. If a group's rows lie on several processes, each of them reads the whole group.
    """

    def __init__(self, batch_size: int, streams: int, own: Sequence[int] | None = None) -> None:
        """`own` are this process's row numbers, None means all. ValueError for rows outside of the batch."""
        self.own = range(batch_size) if own is None else sorted(own)
        if not self.own or len(set(self.own)) != len(self.own) or not 0 <= self.own[0] <= self.own[-1] < batch_size:
            raise ValueError(f"rows {list(self.own)} are not rows of a batch of {batch_size}")
        self.groups = math.gcd(batch_size, streams)
        self.rows_per_group = batch_size // self.groups
        self.streams_per_group = streams // self.groups
        self.own_groups = sorted({row // self.rows_per_group for row in self.own})
        self._drawn = [
            group * self.rows_per_group + place for group in self.own_groups for place in range(self.rows_per_group)
        ]

    @property
    def shares_groups(self) -> bool:
        """Whether other processes read some of the same streams."""
        return len(self.own) < len(self._drawn)

    @property
    def own_streams(self) -> list[int]:
        size = self.streams_per_group
        return [stream for group in self.own_groups for stream in range(group * size, (group + 1) * size)]

    def at(self, step: int) -> Iterator[tuple[int, bool]]:
        """(virtual stream, whether this process owns the row) for each row to draw at a step, in row order."""
        turn, own = step * self.rows_per_group, set(self.own)
        for row in self._drawn:
            group, place = divmod(row, self.rows_per_group)
            yield group * self.streams_per_group + (turn + place) % self.streams_per_group, row in own


class Mixture:
    """The source of each sample of a virtual stream: a Weyl sequence over the weights' shares."""

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self.seed = seed
        self.edges = [sum(weights[: number + 1]) / sum(weights) for number in range(len(weights) - 1)]

    def at(self, stream: int, turn: int) -> int:
        """Index of the source of this stream's sample number `turn`."""
        if not self.edges:
            return 0
        place = (hash_int(self.seed, "mixture", stream) + turn * _GOLDEN) % _WORD / _WORD
        return sum(place >= edge for edge in self.edges)


def lane_at(turn: int, lanes: int) -> int:
    """Which of the shards interleaved by a stream its sample number `turn` comes from; each gets an equal share.

    Also a Weyl sequence, with another irrational number than the mixture's, so that every source uses all its lanes.
    """
    return (turn * _ROOT_OF_2) % _WORD * lanes // _WORD


class Promotion:
    """Moves a share of the samples to a longer bucket than theirs, so that the model learns to end in any window."""

    def __init__(self, share: float, buckets: int, seed: int) -> None:
        self.share = share
        self.buckets = buckets
        self.seed = seed

    def bucket(self, own: int, *sample: int) -> int:
        """The bucket of a sample whose own is `own`: the same or, by the hash of `sample`, a longer one."""
        if own + 1 >= self.buckets or hash_int(self.seed, "longer", *sample) >= self.share * _WORD:
            return own
        return own + 1 + hash_int(self.seed, "how long", *sample) % (self.buckets - own - 1)

    def counts(self, own: Sequence[int | float]) -> list[float]:
        """The number of samples in each bucket after promotion, given those that belong there."""
        counts = [float(count) for count in own]
        for bucket, count in enumerate(own[:-1]):
            moved = self.share * count
            counts[bucket] -= moved
            for longer in range(bucket + 1, len(own)):
                counts[longer] += moved / (len(own) - bucket - 1)
        return counts


class BucketSchedule:
    """The bucket of each step: a Weyl sequence over the target shares, which keeps them over any short span."""

    def __init__(self, counts: Sequence[int | float], seed: int, headroom: float = HEADROOM) -> None:
        """`counts` are the samples that belong to each bucket, shortest first; only their ratios matter."""
        self.thresholds = bucket_thresholds(counts, headroom)
        self.offset = hash_int(seed, "buckets")

    def at(self, step: int) -> int:
        """Index of the bucket of this step."""
        place = (self.offset + step * _GOLDEN) % _WORD / _WORD
        return sum(place >= threshold for threshold in self.thresholds)


def bucket_thresholds(counts: Sequence[int | float], headroom: float = HEADROOM) -> list[float]:
    """Bucket k is chosen for u in [threshold k-1, threshold k), with u uniform in [0, 1).

    A sample may go into a larger bucket than its own, never into a smaller one. So buckets k and above are chosen
    `headroom` times as often as samples of k and above arrive: their queue then shrinks on average, however long the
    run, and spare rows are filled with shorter samples.
    """
    total = sum(counts)
    if total <= 0:
        return [0.0] * (len(counts) - 1)
    return [max(0.0, 1.0 - headroom * sum(counts[k:]) / total) for k in range(1, len(counts))]


def smallest_bucket(buckets: Sequence[Bucket], frames: int, tokens: int) -> int | None:
    """Index of the first bucket that fits, None if none does."""
    for index, bucket in enumerate(buckets):
        if frames <= bucket.frames and tokens <= bucket.tokens:
            return index
    return None
