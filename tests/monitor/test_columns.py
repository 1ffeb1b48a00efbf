"""Columns of one kind of line: thinning, and what it preserves."""

import itertools

import numpy as np

from echotts.monitor.columns import Columns, halved, standing
from echotts.monitor.parsing import Table


def test_old_parts_are_thinned_alike_however_long_the_run():
    columns = Columns(0, ("x",))
    for start in range(0, 400_000, 1000):
        steps = np.arange(start, start + 1000)
        columns.append(Table(0, ("x",), steps.astype(float), steps, steps[None].astype(float)))
        while columns.rows > 10_000:
            assert columns.thin()
    shown = np.histogram(columns.steps, bins=20, range=(0, 400_000))[0]
    assert shown.min() > 60  # no stretch of the run has faded
    assert columns.steps[-2000:].tolist() == list(range(398_000, 400_000))
    assert columns.rows + columns.thinned == 400_000
    assert (np.diff(columns.steps) > 0).all()


def test_lines_superseded_by_a_resume_do_not_count_after_thinning_either():
    columns = Columns(0, ("x",))
    steps = np.concatenate([np.arange(1000), np.arange(500, 3000)])
    columns.append(Table(0, ("x",), steps.astype(float), steps, steps[None].astype(float)))
    assert columns.thin()
    counting = columns.standing
    assert not isinstance(counting, slice)
    assert counting.tolist() == np.flatnonzero(standing(columns.steps)).tolist()
    assert columns.rows > len(counting) > 1000


def test_of_four_values_the_least_and_the_greatest_stay_in_their_order():
    for four in itertools.product(range(4), repeat=4):
        least, most = min(four), max(four)
        expected = [most, least] if four.index(most) < four.index(least) else [least, most]
        assert halved(np.array(four, np.float32), spikes=True).tolist() == expected, four


def test_a_gap_among_four_values_hides_none():
    nan = np.nan
    values = np.array([nan, 3, 1, nan, nan, nan, nan, nan, nan, nan, 2, nan], np.float32)
    np.testing.assert_array_equal(halved(values, spikes=True), np.array([3, 1, nan, nan, 2, 2], np.float32))
