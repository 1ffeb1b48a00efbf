"""Length buckets: the number of samples that belong to each, and the choice of buckets with the least padding."""

import logging
from collections.abc import Sequence

import numpy as np

from echotts.config import Bucket
from echotts.data.format.shards import ShardReader
from echotts.data.remote.store import Source
from echotts.data.stream.order import smallest_bucket
from echotts.text.tokens import Tokenizer

logger = logging.getLogger(__name__)

SCAN_SHARDS, SCAN_SAMPLES = 16, 128


def choose_buckets(lengths: Sequence[tuple[int, int | float]], count: int) -> list[int]:
    """The latent lengths of at most `count` buckets with the least padding; `lengths` are (frames, samples) pairs.

    Dynamic programming over distinct lengths: cost(n lengths, k buckets) = min over where the last bucket starts.
    """
    totals: dict[int, float] = {}
    for frames, samples in lengths:
        totals[frames] = totals.get(frames, 0.0) + samples
    distinct = np.array(sorted(totals))
    cumulative = np.cumsum([0.0, *(totals[int(frames)] for frames in distinct)])
    cost = np.full(len(distinct) + 1, np.inf)
    cost[0] = 0.0
    cuts: list[list[int]] = []
    for _ in range(min(count, len(distinct))):
        padded = [cost[:n] + distinct[n - 1] * (cumulative[n] - cumulative[:n]) for n in range(1, len(distinct) + 1)]
        cuts.append([0, *(int(np.argmin(costs)) for costs in padded)])
        cost = np.array([np.inf, *(costs.min() for costs in padded)])
    chosen, end = [], len(distinct)
    for cut in reversed(cuts):
        chosen.append(int(distinct[end - 1]))
        end = cut[end]
    return chosen[::-1]


def bucket_counts(
    sources: Sequence[Source], tokenizer: Tokenizer, buckets: Sequence[Bucket]
) -> tuple[list[float], bool]:
    """The number of samples per bucket, and whether it covers all samples or only some.

    It comes from each source's length histogram, or from a scan of a few samples of a few local shards; sources count
    by their weights. It depends only on the sources, so all processes agree. If only some samples are known, the
    largest bucket gets a little more, so that unseen long samples fit.
    """
    if len(buckets) == 1:
        return [1.0], True
    counts, whole = np.zeros(len(buckets)), True
    for source in sources:
        known = source.lengths and (tokenizer.kind == "byte" or source.files[0].remote)
        own, all_known = _from_lengths(source, buckets) if known else _from_scan(source, tokenizer, buckets)
        own[-1] += 0 if all_known else 1
        whole &= all_known
        counts += own if len(sources) == 1 else source.weight * own / max(own.sum(), 1)
    logger.info("samples per length bucket: %s", " ".join(f"{count:.6g}" for count in counts))
    return counts.tolist(), whole


def _from_lengths(source: Source, buckets: Sequence[Bucket]) -> tuple[np.ndarray, bool]:
    counts = np.zeros(len(buckets))
    for frames, text_bytes, samples in source.lengths:
        bucket = smallest_bucket(buckets, frames, text_bytes + 1)
        counts[-1 if bucket is None else bucket] += samples
    return counts, source.lengths_whole


def _from_scan(source: Source, tokenizer: Tokenizer, buckets: Sequence[Bucket]) -> tuple[np.ndarray, bool]:
    files, counts = source.files, np.zeros(len(buckets))
    whole = len(files) <= SCAN_SHARDS
    for file in [files[i * len(files) // SCAN_SHARDS] for i in range(SCAN_SHARDS)] if not whole else files:
        if file.remote:  # its head was already read, and had no usable sample
            return counts, False
        with ShardReader(file.url) as reader:
            stride = max(1, -(-len(reader) // SCAN_SAMPLES))
            whole &= stride == 1
            for place in range(0, len(reader), stride):
                bucket = _scan_bucket(reader, place, tokenizer, buckets)
                if bucket is not None:
                    counts[bucket] += 1
    return counts, whole


def _scan_bucket(reader: ShardReader, place: int, tokenizer: Tokenizer, buckets: Sequence[Bucket]) -> int | None:
    try:
        sample = reader.sample(place)
        tokens = len(tokenizer.encode(sample.text, buckets[-1].tokens))
    except ValueError:  # the stream will meet it again and report the error
        return None
    return smallest_bucket(buckets, len(sample.latent), tokens)
