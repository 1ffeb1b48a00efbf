"""Inspection of shards: counts, hours, lengths, texts, channels; and decoding of a sample."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from echotts.audio import MP3_RATE_KBPS, check_mp3_rate, check_suffix, write_audio
from echotts.config import FRAME_RATE_HZ
from echotts.data.format.shards import Sample, ShardReader, read_shard
from echotts.data.prepare.assemble import ChannelMoments
from echotts.data.remote.dataset import Dataset, open_dataset
from echotts.data.stream.length_buckets import choose_buckets
from echotts.files import check_outputs
from echotts.rundir.rejections import Rejected, Rejections

HISTOGRAM_ROWS = 12
BAR_WIDTH = 40
NAMES_SHOWN = 12
SUGGESTED_BUCKETS = 4


@dataclass
class Inspection:
    """Statistics of the shards that were read. Lengths are in latent frames and in bytes."""

    dataset: Dataset
    frame_rate_hz: float
    moments: ChannelMoments
    rejections: Rejections
    shards: int = 0
    frames: list[int] = field(default_factory=list)
    reference_frames: list[int] = field(default_factory=list)
    text_bytes: list[int] = field(default_factory=list)
    speakers: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    limits: list[float] = field(default_factory=lambda: [float("inf"), -float("inf")])

    @property
    def samples(self) -> int:
        return len(self.frames)

    @property
    def hours(self) -> float:
        return sum(self.frames) / self.frame_rate_hz / 3600

    def add(self, sample: Sample) -> None:
        self.frames.append(len(sample.latent))
        self.text_bytes.append(len(sample.text.encode()))
        if sample.reference is not None:
            self.reference_frames.append(len(sample.reference))
        self.speakers[sample.speaker or "(unknown)"] += 1
        self.languages[sample.language or "(unknown)"] += 1
        self.moments.add(sample.latent)
        low, high = self.limits
        self.limits = [min(low, float(sample.latent.min())), max(high, float(sample.latent.max()))]


def inspect(spec: str, shards: int | None = None) -> Inspection:
    """Reads all shards that `spec` names, or only `shards` of them, evenly spaced.

    Invalid samples are counted. ValueError and FileNotFoundError as in open_dataset.
    """
    dataset = open_dataset(spec)
    info, files = dataset.info, dataset.files
    rate = info.sample_rate / info.hop_length if info.sample_rate and info.hop_length else float(FRAME_RATE_HZ)
    found = Inspection(dataset, rate, ChannelMoments(info.channels), Rejections())
    count = len(files) if shards is None else min(shards, len(files))
    for path in (files[number * len(files) // count] for number in range(count)):
        found.shards += 1
        for sample in read_shard(path, info.channels, found.rejections):
            found.add(sample)
    return found


def report(found: Inspection) -> str:
    """The inspection as text for a terminal."""
    info = found.dataset.info
    of = "" if found.shards == len(found.dataset.files) else f" of {len(found.dataset.files)}"
    lines = [
        f"shards      {found.shards}{of}",
        f"samples     {found.samples}, {len(found.reference_frames)} with a reference",
        f"hours       {found.hours:.2f} ({found.frame_rate_hz:g} frames per second)",
        f"codec       {info.codec_id or 'unknown'}, {info.channels} channels, weights {info.weights_hash or 'unknown'}",
        f"silence     {len(found.dataset.silence)} frames for padding",
        f"rejected    {found.rejections.summary()}",
        f"speakers    {_names(found.speakers)}",
        f"languages   {_names(found.languages)}",
    ]
    if not found.samples:
        return "\n".join(lines)
    lines += ["", "latent frames (seconds)", *histogram(found.frames, found.frame_rate_hz)]
    if found.reference_frames:
        lines += ["", "reference frames (seconds)", *histogram(found.reference_frames, found.frame_rate_hz)]
    lines += ["", "bytes of text", *histogram(found.text_bytes)]
    lines += [
        "",
        f"buckets with little padding:  --data.buckets {' '.join(suggest_buckets(found.frames, found.text_bytes))}",
    ]
    mean, std = found.moments.mean_and_std()
    lines += [
        "",
        f"latent values from {found.limits[0]:.3f} to {found.limits[1]:.3f}; mean and standard deviation per channel",
        *_channel_rows(mean, std),
    ]
    return "\n".join(lines)


def suggest_buckets(frames: Sequence[int], text_bytes: Sequence[int]) -> list[str]:
    """FRAMESxTOKENS of up to SUGGESTED_BUCKETS buckets that hold all samples; tokens are bytes plus BOS."""
    edges = choose_buckets([(count, 1) for count in frames], SUGGESTED_BUCKETS)
    longest = [max(text for length, text in zip(frames, text_bytes, strict=True) if length <= edge) for edge in edges]
    return [f"{edge}x{text + 1}" for edge, text in zip(edges, longest, strict=True)]


def histogram(values: Sequence[int], rate_hz: float | None = None) -> list[str]:
    """Rows of `first - last  count  bar`, about HISTOGRAM_ROWS of equal width; with a rate also in seconds."""
    low, high = min(values), max(values)
    width = max(1, -(-(high - low + 1) // HISTOGRAM_ROWS))
    counts = Counter((value - low) // width for value in values)
    tallest = max(counts.values())
    rows = []
    for row in range((high - low) // width + 1):
        first = low + row * width
        seconds = "" if rate_hz is None else f" ({first / rate_hz:6.2f} s)"
        bar = "#" * round(BAR_WIDTH * counts[row] / tallest)
        rows.append(f"  {first:6d} - {first + width - 1:6d}{seconds} {counts[row]:9d}  {bar}".rstrip())
    return rows


def pick_sample(files: Sequence[Path], channels: int, number: int) -> Sample:
    """The `number`-th sample, from 0, in the order of the files. ValueError if it does not exist or is invalid."""
    remaining = number
    for path in files if number >= 0 else ():
        with ShardReader(path, channels) as reader:
            if remaining < len(reader):
                try:
                    return reader.sample(remaining)
                except Rejected as fault:
                    raise ValueError(f"{path}: sample {number} ({reader.key(remaining)}) is invalid: {fault}") from None
            remaining -= len(reader)
    raise ValueError(f"there is no sample {number}: the shards have 0 to {number - remaining - 1}")


def listen(spec: str, number: int, output: Path, codec: Any = None, mp3_rate: int = MP3_RATE_KBPS) -> Sample:
    """Decodes sample `number` to the audio file `output`, and its reference to `<stem>.reference<suffix>`.

    `codec` None finds the one named in dataset.json. ValueError if the codec does not match the data.
    """
    check_mp3_rate(mp3_rate)
    reference = output.with_name(f"{output.stem}.reference{output.suffix}")
    check_outputs([check_suffix(output), reference])
    dataset = open_dataset(spec)
    sample = pick_sample(dataset.files, dataset.info.channels, number)
    if codec is None:
        from echotts.codec import find_codec  # imported lazily: counting needs neither codec nor jax

        codec = find_codec(dataset.info.codec_id, dataset.info.weights_hash)
    if codec.latent_channels != dataset.info.channels:
        raise ValueError(
            f"{spec}: latents of {dataset.info.channels} channels, but the codec has {codec.latent_channels}"
        )
    sounds = {output: sample.latent}
    if sample.reference is not None:
        sounds[reference] = sample.reference
    for path, latent in sounds.items():
        audio = np.asarray(codec.decode(latent[None].astype(np.float32)))[0]
        write_audio(path, audio, codec.sample_rate, strategy="clip", mp3_rate=mp3_rate)
    return sample


def _names(counts: Counter[str]) -> str:
    shown = ", ".join(f"{name!r} {count}" for name, count in counts.most_common(NAMES_SHOWN))
    return f"{len(counts)}: {shown}" + (", ..." if len(counts) > NAMES_SHOWN else "")


def _channel_rows(mean: np.ndarray, std: np.ndarray, columns: int = 4) -> list[str]:
    cells = [f"{channel:4d}: {m:8.4f} +- {s:7.4f}" for channel, (m, s) in enumerate(zip(mean, std, strict=True))]
    return ["  " + "  ".join(cells[first : first + columns]) for first in range(0, len(cells), columns)]
