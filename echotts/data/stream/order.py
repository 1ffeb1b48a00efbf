"""Which sample comes when: everything here is arithmetic on (seed, position), the same in every process.

The shards are dealt to V virtual streams. Where there are fewer shards than streams, each is cut into `parts`; one
part of one shard is a unit. All epochs' permutations of the units, one behind the other, are dealt like cards:
stream v gets units v, v + V, v + 2V and so on, without end. The samples of a shard are permuted anew in each epoch,
and its parts are equal shares of that permutation. Each source of a mixture is dealt by itself, and every stream
takes its samples from them in turns that follow the weights.

A batch of B rows is dealt to g = gcd(B, V) groups of neighbouring streams, B/g rows a step to each; inside a group
the streams take turns. So with B a multiple of V every stream gives B/V rows to every batch; with V a multiple of
B every row has V/B streams that take turns step by step. A process that owns a whole number of groups owns
neighbouring rows of every batch, and the rows do not depend on how many processes there are.
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
    """Which virtual stream fills which row of the global batch, and which of them this process owns."""

    def __init__(self, batch_size: int, streams: int, process_index: int, process_count: int) -> None:
        self.groups = math.gcd(batch_size, streams)
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index {process_index} is not one of {process_count} processes")
        if self.groups % process_count:
            raise ValueError(
                f"batch_size {batch_size} and streams {streams} have the common divisor {self.groups}, "
                f"which {process_count} processes do not share evenly: choose both as multiples of {process_count}"
            )
        self.rows_per_group = batch_size // self.groups
        self.streams_per_group = streams // self.groups
        first = process_index * self.groups // process_count
        self.own_groups = range(first, first + self.groups // process_count)

    @property
    def own_streams(self) -> range:
        size = self.streams_per_group
        return range(self.own_groups.start * size, self.own_groups.stop * size)

    def at(self, step: int) -> Iterator[int]:
        """The virtual streams that fill this process's rows at a step, in row order."""
        turn = step * self.rows_per_group
        for group in self.own_groups:
            for row in range(turn, turn + self.rows_per_group):
                yield group * self.streams_per_group + row % self.streams_per_group


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
