"""Cost of a batch with many shards, and number of shards that neighbouring batches have in common.

    python -m benchmarks.shuffle [--shards 1000 10000 100000] [--shuffle 1024] [--interleave 0 1 16]

One shard of 100 short samples has as many names (hard links). Milliseconds of processor time: of the state stored with
every batch (in its own thread), and of the whole batch of 256 over 64 streams. Common shards are counted between
batches 1, 2 and 8 steps apart, beside the expected number for independent draws from all shards.
"""

import argparse
import itertools
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from echotts.config import Bucket, DataConfig
from echotts.data.format.shards import Sample, ShardWriter
from echotts.data.remote.shard_file import ShardFile
from echotts.data.remote.store import Shards, Source
from echotts.data.stream.stream import Stream
from echotts.text.tokens import ByteTokenizer

CHANNELS, SAMPLES, BATCH, STREAMS, STEPS, WARM_UP = 4, 100, 256, 64, 40, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--shuffle", type=int, nargs="+", default=[1024], help="--data.shuffle_samples, each in turn")
    parser.add_argument("--interleave", type=int, nargs="+", default=[0, 1], help="--data.interleave, 0: its default")
    arguments = parser.parse_args()
    print(" shards  shuffle  interleave  state ms  batch ms  shards a batch   common at 1   at 2   at 8   independent")
    with tempfile.TemporaryDirectory() as folder:
        names = linked(Path(folder), max(arguments.shards))
        for shards, *settings in itertools.product(arguments.shards, arguments.shuffle, arguments.interleave):
            print(measured(names[:shards], *settings), flush=True)


def measured(names: list[Path], shuffle: int, interleave: int) -> str:
    config = DataConfig(
        batch_size=BATCH,
        streams=STREAMS,
        buckets=(Bucket(frames=4, tokens=8),),
        reference_frames=4,
        shuffle_samples=shuffle,
        interleave=interleave or None,
    )
    lengths = [(2, 3, SAMPLES * len(names))]
    shards = Shards([Source(tuple(ShardFile(url=str(name)) for name in names), 1.0, lengths)])
    with Stream(shards, config, 0, ByteTokenizer(), np.zeros((1, CHANNELS), np.float32)) as stream:
        for _ in range(WARM_UP):
            stream.next()
        began = time.thread_time()  # the loader runs beside it
        for _ in range(STEPS):
            stream._snapshot()
        state_ms = (time.thread_time() - began) / STEPS * 1e3
        began = time.process_time()
        seen = [{name.split("/")[0] for name in stream.next()[1]} for _ in range(STEPS)]
        batch_ms = (time.process_time() - began) / STEPS * 1e3
    lanes = stream._plan.lanes
    common = [np.mean([len(one & other) for one, other in zip(seen, seen[far:], strict=False)]) for far in (1, 2, 8)]
    independent = len(names) * (1 - (1 - 1 / len(names)) ** BATCH) ** 2
    each = np.mean([len(one) for one in seen])
    return (
        f"{len(names):7d} {shuffle:8d} {lanes:11d} {state_ms:9.3f} {batch_ms:9.2f} {each:15.1f} "
        f"{common[0]:13.1f} {common[1]:6.1f} {common[2]:6.1f} {independent:13.1f}"
    )


def linked(folder: Path, count: int) -> list[Path]:
    first = folder / "s-000000.tar"
    with ShardWriter(first, CHANNELS) as writer:
        for number in range(SAMPLES):
            latent = np.full((2, CHANNELS), number / SAMPLES, np.float16)
            writer.write(Sample(key=f"k{number:03d}", latent=latent, reference=None, text="one"))
    names = [first]
    for number in range(1, count):
        names.append(folder / f"s-{number:06d}.tar")
        try:
            os.link(first, names[-1])
        except OSError:  # file systems limit the number of hard links
            first = names[-1]
            first.write_bytes(names[0].read_bytes())
    return names


if __name__ == "__main__":
    main()
