"""Small datasets for the data tests: shards of random latents, and invalid tars of many kinds."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from echotts.config import Bucket, DataConfig
from echotts.data.format.shards import Sample, ShardWriter
from echotts.data.remote.shard_file import ShardFile
from echotts.data.remote.store import Lengths, Shards, Source
from echotts.text.tokens import ByteTokenizer

CHANNELS = 4
SILENCE = np.full((3, CHANNELS), -0.5, np.float32)
BUCKETS = (Bucket(frames=8, tokens=16), Bucket(frames=16, tokens=32), Bucket(frames=24, tokens=64))
TOKENIZER = ByteTokenizer()


def sample(key: str, frames: int = 6, reference: int | None = 5, text: str = "one two", seed: int = 0) -> Sample:
    rng = np.random.default_rng([seed, frames, len(key), *key.encode()])
    latent = rng.normal(size=(frames, CHANNELS)).astype(np.float16)
    ref = None if reference is None else rng.normal(size=(reference, CHANNELS)).astype(np.float16)
    return Sample(key=key, latent=latent, reference=ref, text=text, speaker="ann", duration_s=frames / 25)


def write_shards(folder: Path, shards: int, samples: int, seed: int = 0, longest: int = 24) -> list[Path]:
    """Shards of samples whose lengths are skewed to the short side, as recordings' are."""
    rng = np.random.default_rng(seed)
    paths = []
    for s in range(shards):
        paths.append(folder / f"s-{s:03d}.tar")
        with ShardWriter(paths[-1], CHANNELS) as writer:
            for i in range(samples):
                frames = int(min(longest, 1 + rng.gamma(2.0, 4.0)))
                reference = int(rng.integers(1, 9)) if rng.random() < 0.8 else None
                writer.write(sample(f"s{s}_{i:04d}", frames, reference, f"text {s} {i}"))
    return paths


def config(batch_size: int = 8, streams: int = 4, buckets: Sequence[Bucket] = BUCKETS, **changes: float) -> DataConfig:
    return DataConfig(
        batch_size=batch_size,
        streams=streams,
        buckets=tuple(buckets),
        reference_frames=8,
        shuffle_samples=int(changes.pop("shuffle_samples", 16 * streams)),
        **changes,
    )


def local_shards(files: Sequence[str | Path], lengths: Lengths = ()) -> Shards:
    """A list of files as one source."""
    return Shards([Source(tuple(ShardFile(url=str(file)) for file in files), 1.0, lengths)])


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar with exactly these members, by Python's own writer."""
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, payload in members:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    return path


def neighbours(batch_size: int, process: int, processes: int) -> range:
    """The rows of one of several processes that each own neighbouring rows."""
    share = batch_size // processes
    return range(process * share, (process + 1) * share)
