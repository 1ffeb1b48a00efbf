"""Share of valid frames: how much of a step's computation is speech, with length buckets and with a single window.

    python -m benchmarks.buckets [--buckets 10] [--mean_s 8] [--sigma 0.6] [--steps 1200]

Lengths are log-normal, truncated at 30 s (750 frames of 1/25 s), with the given mean after truncation; `sigma` is the
spread of the logarithm. The buckets are chosen for this distribution (buckets.choose_buckets, the largest is 30 s), the
real stream runs over shards of such samples with one channel, and the share is that of valid frames in all frames of
its batches. Both sides are counted in one run. `longer_share` is 0 for the figure; the last line shows its cost.
"""

import argparse
import math
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from echotts.config import Bucket, DataConfig
from echotts.data.format.shards import Sample, ShardWriter
from echotts.data.remote.shard_file import ShardFile
from echotts.data.remote.store import Shards, Source
from echotts.data.stream.length_buckets import choose_buckets
from echotts.data.stream.stream import Stream
from echotts.text.tokens import ByteTokenizer

LONGEST_FRAMES, RATE_HZ, SHARDS, SAMPLES = 750, 25, 48, 400
WARM_STEPS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--buckets", type=int, default=10, help="maximum number of buckets")
    parser.add_argument("--mean_s", type=float, default=8.0, help="mean length after truncation, in seconds")
    parser.add_argument("--sigma", type=float, default=0.6, help="standard deviation of the logarithm of the length")
    parser.add_argument("--steps", type=int, default=1200, help="number of batches")
    arguments = parser.parse_args()
    frames = mix(SHARDS * SAMPLES, arguments.mean_s, arguments.sigma)
    edges = [*choose_buckets(list(Counter(frames.tolist()).items()), arguments.buckets)[:-1], LONGEST_FRAMES]
    print(f"{len(frames)} samples, mean {frames.mean() / RATE_HZ:.2f} s, truncated at {LONGEST_FRAMES / RATE_HZ:.0f} s")
    print(f"buckets of {' '.join(map(str, edges))} frames")
    with tempfile.TemporaryDirectory() as folder:
        files = write(Path(folder), frames)
        lengths = tuple((length, 3, count) for length, count in sorted(Counter(frames.tolist()).items()))
        for name, buckets, longer in (
            ("one window of 30 s", edges[-1:], 0.0),
            (f"{len(edges)} buckets", edges, 0.0),
            (f"{len(edges)} buckets, 10 % in a longer one", edges, 0.1),
        ):
            began = time.process_time()
            share, left_out = useful_share(files, lengths, buckets, longer, arguments.steps)
            cost_s = (time.process_time() - began) / arguments.steps
            print(
                f"{name:36s} useful frames {share:6.1%}   dropped {left_out}   {1e3 * cost_s:.1f} ms per step and core"
            )


def mix(samples: int, mean_s: float, sigma: float) -> np.ndarray:
    """Log-normal lengths in frames, those above LONGEST_FRAMES dropped; the mean is that of the rest."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(2 * samples)

    def lengths(mu: float) -> np.ndarray:
        frames = np.ceil(np.exp(mu + sigma * normal) * RATE_HZ)
        return frames[frames <= LONGEST_FRAMES][:samples].astype(int)

    low, high = math.log(mean_s) - 2, math.log(mean_s) + 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if lengths(middle).mean() < mean_s * RATE_HZ else (low, middle)
    return lengths(low)


def write(folder: Path, frames: np.ndarray) -> list[Path]:
    files = [folder / f"s-{shard:03d}.tar" for shard in range(SHARDS)]
    for file, own in zip(files, np.array_split(frames, SHARDS), strict=True):
        with ShardWriter(file, 1) as writer:
            for i, length in enumerate(own):
                writer.write(Sample(f"k{i}", np.zeros((length, 1), np.float16), None, "abc"))
    return files


def useful_share(
    files: list[Path], lengths: tuple[tuple[int, int, int], ...], edges: list[int], longer: float, steps: int
) -> tuple[float, int]:
    config = DataConfig(
        batch_size=32,
        streams=16,
        buckets=tuple(Bucket(frames=edge, tokens=8) for edge in edges),
        reference_frames=4,
        shuffle_samples=1024,
        longer_share=longer,
    )
    useful = total = 0
    shards = Shards([Source(tuple(ShardFile(url=str(file)) for file in files), 1.0, lengths)])
    with Stream(shards, config, 0, ByteTokenizer(), np.zeros((1, 1), np.float32)) as stream:
        for step in range(WARM_STEPS + steps):
            batch, _, _ = stream.next()
            if step >= WARM_STEPS:
                useful += int(batch.latent_mask.sum())
                total += batch.latent_mask.size
        return useful / total, stream.rejections.counts.total()


if __name__ == "__main__":
    main()
