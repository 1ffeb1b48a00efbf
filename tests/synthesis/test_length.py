"""The window of an utterance: which sizes there are, which one a duration gets, and wrong durations."""

import numpy as np
import pytest

from echotts.synthesis.length import AutoDuration, as_duration, check_speed, piece_limit_s, size_for, window_sizes


def test_windows_are_parts_of_the_longest_but_not_shorter_than_a_second():
    assert window_sizes(768, 25.0) == [96, 192, 384, 576, 768]
    assert window_sizes(64, 25.0) == [32, 48, 64]
    assert window_sizes(375, 25.0) == [47, 94, 188, 282, 375]
    assert window_sizes(20, 25.0) == [20]


def test_the_smallest_window_with_room_is_taken():
    sizes = [32, 48, 64]
    assert [size_for(frames, sizes) for frames in (0, 32, 32.1, 48, 64, 100)] == [32, 32, 48, 48, 64, 64]


def test_a_predicted_duration_is_scaled_and_then_limited():
    assert AutoDuration().limited(3.0) == 3.0
    assert AutoDuration(scale=1.5).limited(3.0) == 4.5
    assert AutoDuration(scale=0.1, least_s=1.0).limited(3.0) == 1.0
    assert AutoDuration(scale=2.0, most_s=5.0).limited(3.0) == 5.0


def test_a_duration_is_seconds_or_auto():
    assert as_duration("auto") == AutoDuration()
    assert as_duration(3) == 3.0
    assert as_duration(AutoDuration(scale=2.0)).scale == 2.0
    for wrong in (0.0, -1.0, np.nan, np.inf, "soon", True):
        with pytest.raises(ValueError, match='give the maximum duration in seconds, above 0, or "auto"'):
            as_duration(wrong)
    for wrong in ({"scale": 0.0}, {"least_s": -1.0}, {"most_s": 0.0}, {"least_s": 3.0, "most_s": 2.0}):
        with pytest.raises(ValueError, match=r"(scale|duration) .*: give"):
            AutoDuration(**wrong)


def test_pieces_of_long_texts_are_at_most_15_s_unless_told_otherwise():
    assert [piece_limit_s(one) for one in (AutoDuration(), AutoDuration(most_s=8.0), 20.0)] == [15.0, 8.0, 20.0]


def test_a_speed_is_from_half_to_twice():
    assert (check_speed(0.5), check_speed(2.0)) == (0.5, 2.0)
    for wrong in (0.49, 2.01, 0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"speed .*: give a factor from 0\.5 to 2\.0"):
            check_speed(wrong)
