"""The stream: the same samples in the same order whatever the number of processes, restored or not."""

import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts.config import Bucket, DataConfig
from echotts.data.format.shards import ShardWriter
from echotts.data.remote.shard_file import ShardFile
from echotts.data.remote.store import Source
from echotts.data.stream.batch import Batch
from echotts.data.stream.length_buckets import bucket_counts
from echotts.data.stream.stream import Stream, choose_lanes, merge_states
from echotts.text.tokens import SentencePieceTokenizer, Tokenizer
from tests.data.corpus import (
    BUCKETS,
    CHANNELS,
    SILENCE,
    TOKENIZER,
    config,
    local_shards,
    neighbours,
    sample,
    write_shards,
)

Step = tuple[Batch, list[str], Bucket]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_shards(tmp_path_factory.mktemp("shards"), shards=5, samples=40)


def open_stream(files: list[Path], settings: DataConfig, seed: int = 1, process: int = 0, processes: int = 1) -> Stream:
    rows = neighbours(settings.batch_size, process, processes)
    return Stream(local_shards(files), settings, seed, TOKENIZER, SILENCE, rows)


def steps(stream: Stream, count: int) -> list[Step]:
    return [stream.next() for _ in range(count)]


def assert_equal(expected: list[Step], found: list[Step]) -> None:
    for (batch, names, bucket), (other, other_names, other_bucket) in zip(expected, found, strict=True):
        assert (names, bucket) == (other_names, other_bucket)
        jax.tree.map(np.testing.assert_array_equal, batch, other)


def together(parts: list[list[Step]]) -> list[Step]:
    """The batches of several processes as the global ones."""
    joined = []
    for same_step in zip(*parts, strict=True):
        (bucket,) = {bucket for _, _, bucket in same_step}
        batch = jax.tree.map(lambda *rows: np.concatenate(rows), *(batch for batch, _, _ in same_step))
        joined.append((batch, [name for _, names, _ in same_step for name in names], bucket))
    return joined


@given(stop=st.integers(0, 60), more=st.integers(1, 12), layout=st.sampled_from([(8, 4), (4, 8), (6, 4)]))
@settings(max_examples=10, deadline=None)
def test_a_restored_stream_continues_identically(
    shards: list[Path], stop: int, more: int, layout: tuple[int, int]
) -> None:
    with open_stream(shards, config(*layout)) as stream:
        steps(stream, stop)
        saved = json.dumps(stream.state())
        expected = steps(stream, more)
        after = stream.state()
    with open_stream(shards, config(*layout)) as other:
        steps(other, 3)
        other.restore(json.loads(saved))
        assert other.state() == json.loads(saved)
        assert_equal(expected, steps(other, more))
        assert other.state() == after


@pytest.mark.parametrize("layout", [(8, 4), (4, 16), (12, 8)])
def test_the_global_batch_does_not_depend_on_the_number_of_processes(
    shards: list[Path], layout: tuple[int, int]
) -> None:
    with open_stream(shards, config(*layout)) as alone:
        expected = steps(alone, 20)
    for processes in (2, 4):
        streams = [open_stream(shards, config(*layout), 1, process, processes) for process in range(processes)]
        assert_equal(expected, together([steps(stream, 20) for stream in streams]))
        for stream in streams:
            stream.close()


@pytest.mark.parametrize(("layout", "owned"), [((8, 4), 4), ((4, 16), 2), ((12, 2), 3)])
def test_the_global_batch_does_not_depend_on_which_process_owns_which_rows(
    shards: list[Path], layout: tuple[int, int], owned: int
) -> None:
    with open_stream(shards, config(*layout)) as alone:
        expected = steps(alone, 12)
    numbers = np.random.default_rng(0).permutation(layout[0]).tolist()
    for start in range(0, layout[0], owned):
        rows = sorted(numbers[start : start + owned])
        with Stream(local_shards(shards), config(*layout), 1, TOKENIZER, SILENCE, rows) as stream:
            mine = steps(stream, 12)
        for (batch, names, bucket), (part, own_names, own_bucket) in zip(expected, mine, strict=True):
            assert (own_names, own_bucket) == ([names[row] for row in rows], bucket)
            jax.tree.map(lambda whole, own: np.testing.assert_array_equal(whole[rows], own), batch, part)  # noqa: B023


def test_a_run_continues_with_more_or_fewer_processes(shards: list[Path]) -> None:
    with open_stream(shards, config()) as alone:
        expected = steps(alone, 30)
    done: list[Step] = []
    state = None
    for processes in (2, 1, 4):
        streams = [open_stream(shards, config(), 1, process, processes) for process in range(processes)]
        for stream in streams:
            if state is not None:
                stream.restore(json.loads(json.dumps(state)))
        done += together([steps(stream, 10) for stream in streams])
        state = merge_states(stream.state() for stream in streams)
        for stream in streams:
            stream.close()
    assert_equal(expected, done)


def test_another_seed_gives_another_order(shards: list[Path]) -> None:
    with open_stream(shards, config(), 1) as one, open_stream(shards, config(), 2) as other:
        assert [step[1] for step in steps(one, 5)] != [step[1] for step in steps(other, 5)]


def test_samples_fit_their_bucket_and_all_are_seen_about_equally_often(shards: list[Path]) -> None:
    with open_stream(shards, config()) as stream:
        taken = steps(stream, 250)  # 2,000 rows of 200 samples
    assert {bucket for _, _, bucket in taken} == set(BUCKETS)
    for batch, _, bucket in taken:
        assert batch.latent.shape == (8, bucket.frames, CHANNELS)
        assert batch.text_ids.shape == (8, bucket.tokens)
        assert batch.latent_mask.any(axis=1).all()
    counts = Counter(name for _, names, _ in taken for name in names)
    assert len(counts) == 200
    assert 6 <= min(counts.values()) <= max(counts.values()) <= 14


def test_consecutive_batches_do_not_follow_the_order_of_the_shard(shards: list[Path]) -> None:
    with open_stream(shards[:1], config(batch_size=1, streams=1, buckets=BUCKETS[-1:])) as stream:
        names = [step[1][0] for step in steps(stream, 40)]
    assert names != sorted(names)


def test_the_pool_mixes_neighbouring_shards(tmp_path: Path) -> None:
    files = write_shards(tmp_path, shards=10, samples=20)
    settings = config(batch_size=1, streams=1, buckets=BUCKETS[-1:], shuffle_samples=20)
    with open_stream(files, settings) as stream:
        shards = [names[0].split("/")[0] for _, names, _ in steps(stream, 200)]
    assert sum(one != other for one, other in itertools.pairwise(shards)) > 60


def test_long_runs_keep_the_pools_bounded_and_lose_nothing(tmp_path: Path) -> None:
    files = write_shards(tmp_path, shards=12, samples=60)
    with open_stream(files, config(batch_size=8, streams=8)) as stream:
        steps(stream, 600)
        assert stream.rejections.summary().startswith("0 of ")
        pools = [len(held) // 3 for one in stream.state()["streams"].values() for held in one["pool"]]
    assert sum(pools) <= 2 * 8 * 16  # the usual fill of a pool is 16


def test_shards_sorted_by_length_use_bounded_memory_and_report_dropped_samples(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = []
    for index, frames in enumerate((4, 20)):
        files.append(tmp_path / f"s{index}.tar")
        with ShardWriter(files[-1], CHANNELS) as writer:
            for i in range(900):
                writer.write(sample(f"k{i}", frames, None))
    settings = config(batch_size=1, streams=1, buckets=BUCKETS[::2], max_rejected_share=1.0, interleave=1)
    with open_stream(files, settings) as stream, caplog.at_level(logging.WARNING):
        taken = steps(stream, 1000)
        assert set(stream.rejections.counts) == {"crowded_out"}
        assert sum(len(held) // 3 for held in stream.state()["streams"]["0"]["pool"]) <= 256
    assert len({bucket for _, _, bucket in taken}) == 2
    assert "crowded_out" in caplog.text


def test_too_long_latents_and_texts_are_counted_and_skipped(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s.tar", CHANNELS) as writer:
        for i in range(10):
            writer.write(sample(f"good{i}"))
            writer.write(sample(f"long{i}", frames=25))
            writer.write(sample(f"wordy{i}", text="a" * 64))
    with open_stream([tmp_path / "s.tar"], config(max_rejected_share=1.0)) as stream:
        names = {name for _, names, _ in steps(stream, 20) for name in names}
        assert names == {f"s.tar/good{i}" for i in range(10)}
        assert set(stream.rejections.counts) == {"latent_too_long", "text_too_long"}
    with (
        open_stream([tmp_path / "s.tar"], config()) as strict,
        pytest.raises(ValueError, match=r"more than the maximum share 0\.05.*max_rejected_share"),
    ):
        steps(strict, 20)


def test_counts_of_rejected_samples_survive_a_restore(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s.tar", CHANNELS) as writer:
        for i in range(30):
            writer.write(sample(f"k{i}", frames=25 if i == 7 else 6))
    with open_stream([tmp_path / "s.tar"], config()) as stream:
        steps(stream, 30)
        state = stream.state()
    with open_stream([tmp_path / "s.tar"], config()) as stream:
        stream.restore(state)
        rejected = sum(one["rejected"].get("latent_too_long", 0) for one in state["streams"].values())
        assert stream.rejections.counts == {"latent_too_long": rejected}
        assert stream.rejections.read == sum(one["read"] for one in state["streams"].values())


def test_one_sample_is_enough_and_none_is_an_error(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "one.tar", CHANNELS) as writer:
        writer.write(sample("only"))
    with ShardWriter(tmp_path / "none.tar", CHANNELS):
        pass
    with open_stream([tmp_path / "one.tar"], config(batch_size=8, streams=8)) as stream:
        assert stream.next()[1] == ["one.tar/only"] * 8
    with (
        open_stream([tmp_path / "none.tar"], config()) as stream,
        pytest.raises(ValueError, match=r"no usable sample in 1 shards, first .*none\.tar"),
    ):
        stream.next()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 16}, "batch_size is 8 in the state, 16 here"),
        ({"buckets": BUCKETS[:2]}, "buckets"),
        ({"streams": 8, "shuffle_samples": 128}, "virtual_streams is 4 in the state, 8 here"),
    ],
)
def test_a_state_of_other_settings_is_refused_with_the_difference(
    shards: list[Path], changes: dict, words: str
) -> None:
    with open_stream(shards, config()) as stream, open_stream(shards, config(**changes)) as other:
        state = stream.state()
        with pytest.raises(ValueError, match=words):
            other.restore(state)
    with (
        open_stream(shards[:4], config()) as fewer,
        pytest.raises(ValueError, match="shards is 5 in the state, 4 here"),
    ):
        fewer.restore(state)
    with (
        open_stream(shards, config(), seed=9) as reseeded,
        pytest.raises(ValueError, match="seed is 1 in the state, 9 here"),
    ):
        reseeded.restore(state)


def test_a_state_of_one_of_several_processes_is_not_enough(shards: list[Path]) -> None:
    with (
        open_stream(shards, config(), 1, 1, 2) as half,
        open_stream(shards, config()) as whole,
        pytest.raises(ValueError, match="merge the states"),
    ):
        whole.restore(half.state())
    with open_stream(shards, config(), 1, 0, 2) as first, open_stream(shards, config(), 1, 1, 2) as second:
        second.next()
        with pytest.raises(ValueError, match="are from different steps"):
            merge_states([first.state(), second.state()])


def test_a_shard_that_changed_since_the_state_was_saved_is_noticed(tmp_path: Path) -> None:
    files = write_shards(tmp_path, 1, 40)
    with open_stream(files, config()) as stream:
        steps(stream, 2)
        state = stream.state()
    with ShardWriter(files[0], CHANNELS) as writer:
        writer.write(sample("other"))
    with (
        open_stream(files, config()) as stream,
        pytest.raises(ValueError, match=r"s-000\.tar.*the shard has changed"),
    ):
        stream.restore(state)


def test_a_missing_shard_stops_the_stream_at_every_further_call(tmp_path: Path) -> None:
    files = write_shards(tmp_path, 2, 20)
    stream = open_stream(files, config())
    files[1].unlink()
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            steps(stream, 100)
    stream.close()


def test_a_batch_costs_nothing_that_grows_with_the_number_of_shards(shards: list[Path]) -> None:
    with open_stream(shards[:1] * 20_000, config(batch_size=4, streams=4)) as stream:
        began = time.thread_time()
        for _ in range(100):
            stream._snapshot()
        assert time.thread_time() - began < 0.1  # 1 ms per batch


def test_buckets_that_hold_less_text_when_longer_are_refused(shards: list[Path]) -> None:
    with pytest.raises(ValueError, match="holds less text"):
        open_stream(shards, config(buckets=(Bucket(frames=8, tokens=32), Bucket(frames=16, tokens=16))))


def test_bucket_counts_come_from_the_histogram_or_from_a_scan(shards: list[Path]) -> None:
    histogram = [(8, 15, 5), (8, 16, 3), (16, 10, 2), (24, 63, 1), (99, 1, 1)]

    def counts(
        files: list[Path], lengths: list, buckets: Sequence[Bucket] = BUCKETS, tokenizer: Tokenizer = TOKENIZER
    ) -> tuple[list[float], bool]:
        return bucket_counts(local_shards(files, lengths).sources, tokenizer, buckets)

    assert counts(shards, histogram) == ([5, 5, 2], True)
    assert sum(counts(shards, [])[0]) == 200
    huge = (BUCKETS[2], Bucket(frames=99, tokens=99))
    assert counts(shards * 20, [], huge)[0][1] == 1  # a partial scan may have missed some
    assert not counts(shards * 20, [], huge)[1]
    assert counts(shards, [], huge)[0][1] == 0
    pieces = SentencePieceTokenizer.train([f"text {i} {j}" for i in range(9) for j in range(50)], 300)
    assert counts(shards, histogram, BUCKETS, pieces)[0] != [5, 5, 2]


def test_references_longer_than_a_batch_takes_are_not_kept(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s.tar", CHANNELS) as writer:
        writer.write(replace(sample("a"), reference=np.ones((5000, CHANNELS), np.float16)))
    with open_stream([tmp_path / "s.tar"], config()) as stream:
        batch, _, _ = stream.next()
        assert batch.speaker_mask.all()
        assert all(
            held.sample.reference.base is None and len(held.sample.reference) == 8
            for one in stream._streams.values()
            for bucket in one.pool
            for held in bucket
        )


def test_interleaved_streams_resume_exactly_on_any_number_of_processes(shards: list[Path]) -> None:
    settings = config(interleave=3)
    with open_stream(shards, settings) as alone:
        first = steps(alone, 15)
        state = json.loads(json.dumps(alone.state()))
        rest = steps(alone, 15)
    streams = [open_stream(shards, settings, 1, process, 2) for process in range(2)]
    for stream in streams:
        stream.restore(state)
    assert_equal(rest, together([steps(stream, 15) for stream in streams]))
    for stream in streams:
        stream.close()
    with open_stream(shards, config(interleave=1)) as plain:
        assert [names for _, names, _ in steps(plain, 15)] != [names for _, names, _ in first]
        with pytest.raises(ValueError, match="interleave is 3 in the state, 1 here"):
            plain.restore(state)
    with open_stream(shards, config()) as left_open:  # takes what the state says
        left_open.restore(state)
        assert_equal(rest, steps(left_open, 15))


def test_a_state_of_before_streams_interleaved_by_default_goes_on(shards: list[Path]) -> None:
    with open_stream(shards, config(streams=2, batch_size=4, interleave=1)) as before:
        steps(before, 15)
        state = json.loads(json.dumps(before.state()))
        rest = steps(before, 15)
    del state["interleave"]
    for stream in state["streams"].values():
        del stream["recent"]
    with open_stream(shards, config(streams=2, batch_size=4)) as now:
        assert now.state()["interleave"] == 2
        now.restore(state)
        assert_equal(rest, steps(now, 15))


def test_neighbouring_batches_share_hardly_more_shards_than_independent_draws_would(tmp_path: Path) -> None:
    (first,) = write_shards(tmp_path, shards=1, samples=40, longest=8)
    files = [first]
    for number in range(1, 128):
        files.append(tmp_path / f"link-{number:03d}.tar")
        files[-1].hardlink_to(first)
    batch, bucket = 32, BUCKETS[-1:]

    with open_stream(files, config(batch_size=batch, streams=8, buckets=bucket)) as stream:
        seen = [{name.split("/")[0] for name in names} for _, names, _ in steps(stream, 60)]
    independent = len(files) * (1 - (1 - 1 / len(files)) ** batch) ** 2
    for apart in (1, 2):
        shared = [len(one & other) for one, other in zip(seen, seen[apart:], strict=False)]
        assert np.mean(shared) < 1.3 * independent, apart


@pytest.mark.parametrize(
    ("batch_size", "files", "shard_gb", "lanes"),
    [
        (256, 10_000, None, 16),
        (512, 10_000, None, 32),
        (32, 10_000, None, 4),
        (256, 640, None, 10),  # as many as there are
        (256, 20, None, 1),
        (256, 10_000, 0.1, 6),  # 40 GB of cache
        (256, 10_000, 1.0, 1),
    ],
)
def test_a_stream_reads_as_many_shards_by_turns_as_shards_and_cache_allow(batch_size, files, shard_gb, lanes) -> None:
    size = None if shard_gb is None else round(shard_gb * 1e9)
    url = "/s.tar" if size is None else "https://host/s.tar"
    source = Source((ShardFile(url=url, bytes=size),) * files)
    assert choose_lanes([source], DataConfig(batch_size=batch_size)) == lanes
    assert choose_lanes([source], DataConfig(batch_size=batch_size, interleave=3)) == 3


def test_interleaved_streams_give_every_sample_within_one_of_the_epochs(tmp_path: Path) -> None:
    files = write_shards(tmp_path, shards=12, samples=60)
    settings = config(batch_size=4, streams=4, buckets=BUCKETS[-1:], interleave=3)
    with open_stream(files, settings) as stream:
        counts = Counter(name for _, names, _ in steps(stream, 3 * 720 // 4) for name in names)
    assert len(counts) == 720
    assert 2 <= min(counts.values()) <= max(counts.values()) <= 4
