"""Pass 2 of a preparation: assembles the final shards from encoded clips, and computes dataset.json."""

import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from echotts.data.format.info import DatasetInfo, ShardInfo
from echotts.data.format.shards import Sample, ShardReader, ShardWriter, read_shard
from echotts.data.stream.order import hash_int
from echotts.files import sha256_file
from echotts.latents import LatentCodec
from echotts.rundir.rejections import Rejections

EXACT_BITS = 6  # lengths in the histogram keep this many leading bits, so they are exact below 64
OPEN_PARTS = 128


@dataclass(frozen=True)
class Clip:
    """An encoded clip, and its position in the parts of pass 1."""

    key: str
    speaker: str | None
    part: Path
    place: int


def write_shards(
    clips: Sequence[Clip],
    references: Mapping[str, Clip],
    output: Path,
    channels: int,
    shard_samples: int,
    seed: int,
    on_progress: Callable[[str, int, int, int], None],
) -> list[Path]:
    """Distributes the shuffled clips over shards of nearly equal size; existing shards are kept."""
    shuffled = sorted(clips, key=lambda clip: (hash_int(seed, "shard", clip.key), clip.key))
    count = math.ceil(len(clips) / shard_samples)
    width = max(5, len(str(count - 1)))
    paths = [output / f"shard-{number:0{width}d}.tar" for number in range(count)]
    parts = _Parts()
    done = 0
    for number, path in enumerate(paths):
        dealt = shuffled[number * len(clips) // count : (number + 1) * len(clips) // count]
        if not path.exists():
            with ShardWriter(path, channels) as writer:
                for clip in dealt:
                    sample = parts.sample(clip)
                    reference = references.get(clip.key)
                    if reference is not None:
                        sample = replace(sample, reference=parts.sample(reference).latent)
                    writer.write(sample)
        done += len(dealt)
        on_progress("written", done, len(clips), 0)
    parts.close()
    return paths


def choose_heldout(clips: Sequence[Clip], texts: Mapping[str, str], share: float, seed: int) -> set[str]:
    """The keys of about `share` of the clips, at least one; clips with the same text stay together.

    ValueError if nothing would be left to train on.
    """
    by_text: dict[str, list[str]] = defaultdict(list)
    for clip in clips:
        by_text[" ".join(texts[clip.key].casefold().split())].append(clip.key)
    chosen: set[str] = set()
    for text in sorted(by_text, key=lambda text: (hash_int(seed, "heldout", text), text)):
        if len(chosen) >= share * len(clips):
            break
        chosen.update(by_text[text])
    if len(chosen) == len(clips):
        raise ValueError(
            f"heldout_share {share:g} of {len(clips)} clips with {len(by_text)} texts leaves none to train on"
        )
    return chosen


def choose_references(clips: Sequence[Clip], seed: int) -> dict[str, Clip]:
    """For each clip's key another clip of its speaker; none for unknown speakers and speakers with a single clip."""
    by_speaker: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        if clip.speaker is not None:
            by_speaker[clip.speaker].append(clip)
    chosen = {}
    for own in by_speaker.values():
        for place, clip in enumerate(own):
            if len(own) > 1:
                other = hash_int(seed, "reference", clip.key) % (len(own) - 1)
                chosen[clip.key] = own[other + (other >= place)]
    return chosen


def summarise_shards(
    shards: Sequence[Path], codec: LatentCodec, on_progress: Callable[[str, int, int, int], None]
) -> tuple[DatasetInfo, int]:
    """The dataset.json of newly written shards, and the number of samples with a reference. Reads all shards."""
    moments = ChannelMoments(codec.latent_channels)
    lengths: Counter[tuple[int, int]] = Counter()
    infos, frames, referenced = [], 0, 0
    for number, path in enumerate(shards, 1):
        samples = 0
        for sample in read_shard(path, codec.latent_channels, Rejections(max_share=0.0)):
            samples += 1
            frames += len(sample.latent)
            referenced += sample.reference is not None
            moments.add(sample.latent)
            lengths[length_cell(sample)] += 1
        infos.append(ShardInfo(name=path.name, samples=samples, bytes=path.stat().st_size, sha256=sha256_file(path)))
        on_progress("checked", number, len(shards), 0)
    mean, std = moments.mean_and_std()
    info = DatasetInfo(
        channels=codec.latent_channels,
        codec_id=codec.codec_id,
        weights_hash=codec.weights_hash,
        sample_rate=codec.sample_rate,
        hop_length=codec.hop_length,
        latent_mean=tuple(round(float(value), 6) for value in mean),
        latent_std=tuple(round(float(value), 6) for value in std),
        hours=round(frames * codec.hop_length / codec.sample_rate / 3600, 6),
        lengths=tuple((*cell, count) for cell, count in sorted(lengths.items())),
        shards=tuple(infos),
    )
    return info, referenced


def length_cell(sample: Sample) -> tuple[int, int]:
    """The cell of the length histogram for a sample: its upper edges in frames and bytes of text."""
    tokens = len(sample.text.encode()) + 1  # cell edges match buckets, which count tokens including BOS
    return _cell_edge(len(sample.latent)), _cell_edge(tokens) - 1


def _cell_edge(length: int) -> int:
    cell = 1 << max(0, length.bit_length() - EXACT_BITS)
    return -(-length // cell) * cell


class ChannelMoments:
    """Mean and standard deviation per channel over all frames, summed in double precision."""

    def __init__(self, channels: int) -> None:
        self.frames = 0
        self.sums = np.zeros((2, channels))

    def add(self, latent: np.ndarray) -> None:
        values = latent.astype(np.float64)
        self.frames += len(values)
        self.sums += values.sum(axis=0), np.square(values).sum(axis=0)

    def mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        mean, square = self.sums / max(self.frames, 1)
        return mean, np.sqrt(np.maximum(square - mean**2, 0))


class _Parts:
    """Random access to the parts of pass 1; recently used ones stay open."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, ShardReader] = OrderedDict()

    def sample(self, clip: Clip) -> Sample:
        if clip.part not in self._open:
            self._open[clip.part] = ShardReader(clip.part)
        self._open.move_to_end(clip.part)
        if len(self._open) > OPEN_PARTS:
            self._open.popitem(last=False)[1].close()
        return self._open[clip.part].sample(clip.place)

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()
