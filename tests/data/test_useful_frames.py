"""The share of speech in a batch: benchmarks/buckets.py with fewer samples."""

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.buckets import LONGEST_FRAMES, RATE_HZ, mix, useful_share, write
from echotts.data.stream.length_buckets import choose_buckets


@pytest.mark.slow
def test_ten_buckets_keep_more_than_85_percent_of_the_frames_useful(tmp_path: Path) -> None:
    frames = mix(4800, mean_s=8.0, sigma=0.6)
    assert frames.mean() / RATE_HZ == pytest.approx(8.0, abs=0.05)
    counts = Counter(frames.tolist())
    edges = [*choose_buckets(list(counts.items()), 10)[:-1], LONGEST_FRAMES]
    files = write(tmp_path, frames)
    lengths = tuple((length, 3, count) for length, count in sorted(counts.items()))
    share, left_out = useful_share(files, lengths, edges, 0.0, 300)
    assert share >= 0.85
    assert left_out == 0
    padded, _ = useful_share(files, lengths, edges[-1:], 0.0, 50)
    assert padded == pytest.approx(0.267, abs=0.02)
