"""The arithmetic of the data order: which process reads what, and the bucket of each step."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts.data.stream.order import BucketSchedule, Mixture, Order, Rows, bucket_thresholds, hash_int, lane_at


def test_the_hash_never_changes_because_old_runs_must_resume() -> None:
    assert hash_int(7, "units", 0, 3) == 11943787669295682692


@given(shards=st.integers(1, 40), streams=st.integers(1, 24), seed=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_every_epoch_deals_each_part_of_each_shard_once(shards: int, streams: int, seed: int) -> None:
    order = Order(shards, streams, seed)
    assert order.units >= streams
    dealt: dict[int, Counter] = {}
    for stream in range(streams):
        ordinal = 0
        while (epoch := order.epoch(stream, ordinal)) < 2:
            dealt.setdefault(epoch, Counter())[order.unit(stream, ordinal)] += 1
            ordinal += 1
    every = {(shard, part): 1 for shard in range(shards) for part in range(order.parts)}
    assert dealt == {0: every, 1: every}


def test_epochs_and_seeds_have_different_permutations() -> None:
    def epoch_order(seed: int, epoch: int) -> list[tuple[int, int]]:
        return [Order(50, 1, seed).unit(0, epoch * 50 + i) for i in range(50)]

    assert len({tuple(epoch_order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@given(
    batch=st.sampled_from([1, 2, 4, 6, 8, 12, 16, 24, 48]),
    streams=st.sampled_from([1, 2, 4, 8, 12, 16, 64]),
    step=st.integers(0, 1000),
    processes=st.integers(1, 8),
    owners=st.randoms(use_true_random=False),
)
@settings(max_examples=100, deadline=None)
def test_a_row_is_the_same_whichever_process_owns_it(batch, streams, step, processes, owners) -> None:
    whole = [stream for stream, _ in Rows(batch, streams).at(step)]
    numbers = list(range(batch))
    owners.shuffle(numbers)
    for process in range(min(processes, batch)):
        own = numbers[process::processes]
        rows = Rows(batch, streams, own)
        drawn = list(rows.at(step))
        assert [stream for stream, mine in drawn if mine] == [whole[row] for row in sorted(own)]
        assert {stream for stream, _ in drawn} <= set(rows.own_streams)
        assert rows.shares_groups == (len(drawn) > len(own))


@pytest.mark.parametrize(
    ("own", "wrong"), [([], r"\[\]"), ([0, 8], r"\[0, 8\]"), ([1, 1], r"\[1, 1\]"), ([-1], r"\[-1\]")]
)
def test_rows_that_are_not_in_the_batch_are_refused(own, wrong) -> None:
    with pytest.raises(ValueError, match=f"rows {wrong} are not rows of a batch of 8"):
        Rows(8, 4, own)


@pytest.mark.parametrize(("batch", "streams"), [(8, 4), (4, 4), (4, 16), (6, 4), (48, 64), (3, 2)])
def test_every_stream_serves_equally_many_rows(batch: int, streams: int) -> None:
    rows = Rows(batch, streams)
    steps = streams  # a whole number of turns in every group
    served = Counter(v for step in range(steps) for v, _ in rows.at(step))
    assert served == dict.fromkeys(range(streams), batch * steps // streams)
    if batch % streams == 0:
        assert Counter(v for v, _ in rows.at(5)) == dict.fromkeys(range(streams), batch // streams)


def test_bucket_shares_follow_the_counts_with_headroom_over_any_short_span() -> None:
    schedule = BucketSchedule([500, 300, 200], seed=3, headroom=1.1)
    for start in (0, 12345):
        chosen = Counter(schedule.at(step) for step in range(start, start + 200))
        assert chosen[2] / 200 == pytest.approx(0.22, abs=0.02)
        assert (chosen[1] + chosen[2]) / 200 == pytest.approx(0.55, abs=0.02)


def test_a_bucket_without_samples_is_never_chosen_and_no_counts_mean_the_largest() -> None:
    assert bucket_thresholds([10, 0]) == [1.0]
    assert {BucketSchedule([10, 0], 1).at(step) for step in range(100)} == {0}
    assert {BucketSchedule([0, 0], 1).at(step) for step in range(100)} == {1}


def test_the_parts_of_a_shard_share_its_samples_in_an_order_that_changes_with_the_epoch() -> None:
    order = Order(shards=2, streams=6, seed=5)
    assert order.parts == 3
    by_epoch: dict[int, list[list[int]]] = {0: [], 1: []}
    for stream in range(6):
        for ordinal in range(2):
            if order.unit(stream, ordinal)[0] == 0:
                by_epoch[order.epoch(stream, ordinal)].append(order.places(stream, ordinal, 20))
    for parts in by_epoch.values():
        assert sorted(place for places in parts for place in places) == list(range(20))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert sorted(by_epoch[0]) != sorted(by_epoch[1])


@given(lanes=st.integers(1, 16), first=st.integers(0, 10**9))
@settings(max_examples=20, deadline=None)
def test_every_source_of_a_mixture_uses_all_the_lanes_it_interleaves(lanes: int, first: int) -> None:
    mixture = Mixture([1.0, 1.0], 3)
    counts = Counter((mixture.at(0, turn), lane_at(turn, lanes)) for turn in range(first, first + 200 * lanes))
    assert len(counts) == 2 * lanes
    assert 60 < min(counts.values()) <= max(counts.values()) < 140
