"""Samples per second and core: our validating reader and the whole stream, against webdataset's decoding.

    python -m benchmarks.reader [--samples 2000] [--frames 300]

Both read the same shards (frames of 128 channels, a reference of the same length, JSON) from a warm cache in one run,
taking turns; figures are per second of process time, the best of three. webdataset does not validate.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import webdataset

from echotts.config import Bucket, DataConfig
from echotts.data.format.shards import Sample, ShardWriter, read_shard
from echotts.data.remote.shard_file import ShardFile
from echotts.data.remote.store import Shards, Source
from echotts.data.stream.stream import Stream
from echotts.rundir.rejections import Rejections
from echotts.text.tokens import ByteTokenizer

CHANNELS, SHARDS, ROUNDS = 128, 4, 3
TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps until the morning. " * 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000, help="samples in all, over 4 shards")
    parser.add_argument("--frames", type=int, default=300, help="latent frames of a sample, and of its reference")
    arguments = parser.parse_args()
    samples, frames = arguments.samples, arguments.frames
    with tempfile.TemporaryDirectory() as folder:
        files = write(Path(folder), samples, frames)
        megabytes = sum(file.stat().st_size for file in files) / samples / 1e6
        print(f"{samples} samples in {len(files)} shards, {megabytes:.2f} MB each")
        readers: dict[str, Callable[[], int]] = {
            "echotts read_shard, validated": lambda: sum(
                1 for file in files for _ in read_shard(file, CHANNELS, Rejections())
            ),
            "webdataset .decode()": lambda: sum(1 for _ in decoded(files)),
            "echotts Stream, float32 batches of 32": lambda: batches(files, samples, frames),
        }
        best = dict.fromkeys(readers, 0.0)
        for _ in range(ROUNDS):
            for name, read in readers.items():
                start = time.process_time()
                count = read()
                best[name] = max(best[name], count / (time.process_time() - start))
    theirs = best["webdataset .decode()"]
    for name, rate in best.items():
        print(f"{name:40s} {rate:7.0f} samples/s and core   {rate / theirs:5.2f} x webdataset")


def write(folder: Path, samples: int, frames: int) -> list[Path]:
    rng = np.random.default_rng(0)
    files = [folder / f"s-{shard:03d}.tar" for shard in range(SHARDS)]
    for file in files:
        with ShardWriter(file, CHANNELS) as writer:
            for i in range(samples // SHARDS):
                latent, reference = rng.standard_normal((2, frames, CHANNELS), np.float32).astype(np.float16)
                writer.write(Sample(f"k{i}", latent, reference, TEXT, "ann", "en", frames / 25, "benchmark"))
    return files


def decoded(files: list[Path]) -> Iterator[dict]:
    return iter(webdataset.WebDataset([str(file) for file in files], shardshuffle=False).decode())


def batches(files: list[Path], samples: int, frames: int) -> int:
    """Order, reading, validation, pools, collation and padding, all in the stream's thread."""
    config = DataConfig(
        batch_size=32, buckets=(Bucket(frames=frames + 20, tokens=256),), streams=8, shuffle_samples=128
    )
    silence = np.zeros((1, CHANNELS), np.float32)
    shards = Shards([Source(tuple(ShardFile(url=str(file)) for file in files))])
    with Stream(shards, config, 0, ByteTokenizer(), silence) as stream:
        return sum(len(stream.next()[1]) for _ in range(samples // 32))


if __name__ == "__main__":
    main()
