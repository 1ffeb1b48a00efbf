"""Which sample comes when: everything here is arithmetic on (seed, position), the same in every process.

The shards are dealt to V virtual streams. Where there are fewer shards than streams, each is cut into `parts`; one
part of one shard is a unit. All epochs' permutations of the units, one behind the other, are dealt like cards:
stream v gets units v, v + V, v + 2V and so on, without end. The samples of a shard are permuted anew in each epoch,
and its parts are equal shares of that permutation. Each source of a mixture is dealt by itself, and every stream
takes its samples from them in turns that follow the weights.

A batch of B rows is dealt to g = gcd(B, V) groups of neighbouring streams, B/g rows a step to each; inside a group
the streams take turns. So with B a multiple of V every stream gives B/V rows to every batch; with V a multiple of
B every row has V/B streams that take turns step by step. A row is a function of its number in the global batch, the
seed and the step; which process owns it (training/mesh.py) changes nothing in it.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from echotts.config import Bucket

# Large buckets are chosen this much more often than their samples come (see bucket_thresholds): a little where the
# lengths of all samples are known, more where they were estimated.
HEADROOM, ESTIMATE_HEADROOM = 1.02, 1.1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: multiples of it, modulo 2^64, are spread most evenly
_ROOT_OF_2 = 0x6A09E667F3BCC909  # 2^64 times the fractional part of the square root of 2
_WORD = 1 << 64


def hash_int(*parts: int | str) -> int:
    """64 bits that depend on every part and on nothing else: no library's generator, no version of it."""
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
        """The places in its shard of the unit's samples, in reading order; the shard holds `samples`."""
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
    """Which virtual stream fills which row of the global batch, and which of its rows this process owns.

    Rows are numbered over the global batch. A process may own any of them: on a TPU slice the rows of a host are
    seldom neighbours. Where a group's rows lie on several processes, each of them reads the whole group.
    """

    def __init__(self, batch_size: int, streams: int, own: Sequence[int] | None = None) -> None:
        """`own` are this process's row numbers; None: all of them. ValueError for a row that is not in the batch."""
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
        """(virtual stream, whether the row is this process's) for each row to draw at a step, in row order."""
        turn, own = step * self.rows_per_group, set(self.own)
        for row in self._drawn:
            group, place = divmod(row, self.rows_per_group)
            yield group * self.streams_per_group + (turn + place) % self.streams_per_group, row in own


class Mixture:
    """From which source a virtual stream takes its next sample: a Weyl sequence over the weights' shares."""

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
    """From which of the shards that a stream interleaves its sample number `turn` comes: each gets its share.

    A Weyl sequence too, over another irrational number than the mixture's, so that every source uses all its lanes.
    """
    return (turn * _ROOT_OF_2) % _WORD * lanes // _WORD


class Promotion:
    """A share of the samples goes into a longer bucket than theirs, so that the model learns to end in any window."""

    def __init__(self, share: float, buckets: int, seed: int) -> None:
        self.share = share
        self.buckets = buckets
        self.seed = seed

    def bucket(self, own: int, *sample: int) -> int:
        """The bucket of a sample whose own is `own`: that or, by the hash of `sample`, one of the longer ones."""
        if own + 1 >= self.buckets or hash_int(self.seed, "longer", *sample) >= self.share * _WORD:
            return own
        return own + 1 + hash_int(self.seed, "how long", *sample) % (self.buckets - own - 1)

    def counts(self, own: Sequence[int | float]) -> list[float]:
        """How many samples come to each bucket, of how many each has as its own."""
        counts = [float(count) for count in own]
        for bucket, count in enumerate(own[:-1]):
            moved = self.share * count
            counts[bucket] -= moved
            for longer in range(bucket + 1, len(own)):
                counts[longer] += moved / (len(own) - bucket - 1)
        return counts


class BucketSchedule:
    """The bucket of each step: a Weyl sequence over the wanted shares, so that they hold over any short span."""

    def __init__(self, counts: Sequence[int | float], seed: int, headroom: float = HEADROOM) -> None:
        """`counts` are the samples that belong to each bucket, shortest first; only their ratios matter."""
        self.thresholds = bucket_thresholds(counts, headroom)
        self.offset = hash_int(seed, "buckets")

    def at(self, step: int) -> int:
        """Index of the bucket of this step."""
        place = (self.offset + step * _GOLDEN) % _WORD / _WORD
        return sum(place >= threshold for threshold in self.thresholds)


def bucket_thresholds(counts: Sequence[int | float], headroom: float = HEADROOM) -> list[float]:
    """Bucket k is chosen for u in [threshold k-1, threshold k), u uniform in [0, 1).

    Samples may ride in a larger bucket than theirs, never in a smaller one. So buckets k and above are chosen
    `headroom` times as often as samples of k and above come: their queue then shrinks on average, however long
    the run, and the spare places carry shorter samples.
    """
    total = sum(counts)
    if total <= 0:
        return [0.0] * (len(counts) - 1)
    return [max(0.0, 1.0 - headroom * sum(counts[k:]) / total) for k in range(1, len(counts))]


def smallest_bucket(buckets: Sequence[Bucket], frames: int, tokens: int) -> int | None:
    """Index of the first bucket that fits, None when none does."""
    for index, bucket in enumerate(buckets):
        if frames <= bucket.frames and tokens <= bucket.tokens:
            return index
    return None
