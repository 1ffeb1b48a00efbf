"""The window of an utterance: which sizes there are, which one a duration gets, and wrong durations."""

import dataclasses

import jax
import numpy as np
import pytest

from echotts import EchoTTS
from echotts.audio.stretch import stretch
from echotts.checkpoint.facts import Limits
from echotts.flow.options import SamplerConfig
from echotts.model.duration import create_duration
from echotts.synthesis import synthesizer
from echotts.synthesis.length import (
    MARGIN,
    SPARE_FRAMES,
    AutoDuration,
    as_duration,
    check_speed,
    piece_limit_s,
    size_for,
    window_sizes,
)
from echotts.synthesis.longform import joined, speak_pieces
from echotts.synthesis.speech import Speech
from echotts.synthesis.synthesizer import Synthesizer
from echotts.text.sentences import Piece
from tests.synthesis.conftest import RATE
from tests.tiny_speaker import CHANNELS, CONFIG, FACTS, LinearCodec, random_params


def test_windows_are_parts_of_the_longest_but_not_shorter_than_a_second():
    assert window_sizes(768, 25.0) == [96, 192, 384, 576, 768]
    assert window_sizes(64, 25.0) == [32, 48, 64]
    assert window_sizes(375, 25.0) == [47, 94, 188, 282, 375]
    assert window_sizes(20, 25.0) == [20]


def test_the_smallest_window_with_room_is_taken():
    sizes = [32, 48, 64]
    assert [size_for(frames, sizes) for frames in (0.0, 32.0, 32.1, 48.0, 64.0, 100.0)] == [32, 32, 48, 48, 64, 64]


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


@pytest.fixture(scope="module")
def predicting():
    """The tiny model with a predictor that gives every token the same time: a third of a second."""
    params = create_duration(CONFIG, jax.random.key(0))
    params["duration"]["frames"]["bias"] = np.full(1, np.log(np.expm1(25 / 3)), np.float32)
    facts = dataclasses.replace(FACTS, buckets=Limits(frames=200, tokens=24, reference_frames=16))
    return EchoTTS(Synthesizer(random_params(), CONFIG, facts, LinearCodec(), predictor=params))


@pytest.fixture
def watched(predicting, monkeypatch):
    """Row counts and windows of all batches; speech ends after 12 frames, in windows that are not too short."""
    batches, sampled = [], predicting._synthesizer._sampled
    too_short = []

    def watch(prompts, most, sampler, rows):
        batches.append((len(prompts), most))
        return sampled(prompts, most, sampler, rows)

    monkeypatch.setattr(predicting._synthesizer, "_sampled", watch)
    monkeypatch.setattr(synthesizer, "find_end", lambda latents, *_: None if len(latents) in too_short else 12)
    return batches, too_short


def test_a_window_has_room_for_the_predicted_duration_and_the_silence_after_it(predicting, watched):
    batches, _ = watched
    assert predicting.predict_duration("x" * 5) == pytest.approx(6 / 3)  # the first token is not a letter
    for letters, window in ((1, 50), (2, 100), (6, 100), (7, 150), (20, 200)):
        predicting.synthesize("x" * letters, steps=1)
        assert MARGIN * 25 * (letters + 1) / 3 + 20 + SPARE_FRAMES <= window or window == 200
        assert batches.pop() == (1, window)
        assert predicting.window_for("x" * letters) == window / 25
    for duration, window in (
        (AutoDuration(scale=3.0), 150),
        (AutoDuration(least_s=4.0), 150),
        (AutoDuration(most_s=1.2), 30),
        (1.6, 40),
    ):
        predicting.synthesize("xx", duration=duration, steps=1)
        assert batches.pop() == (1, window)


def test_texts_of_a_batch_with_equal_windows_are_synthesised_together_as_if_alone(predicting, watched):
    batches, _ = watched
    texts = ["x" * 6, "x", "y" * 6, "y", "z" * 6]
    fast = SamplerConfig(steps=2)
    together = predicting.synthesize_batch(texts, seeds=range(5), rows=2, sampler=fast)
    assert batches == [(2, 50), (3, 100)]
    for seed, (text, speech) in enumerate(zip(texts, together, strict=True)):
        alone = predicting.synthesize(text, seed=seed, steps=2)
        np.testing.assert_allclose(speech.latents, alone.latents, atol=1e-4)


def test_what_does_not_end_in_its_window_is_synthesised_again_in_the_longest(predicting, watched):
    batches, too_short = watched
    too_short.append(50)
    speeches = predicting.synthesize_batch(["x", "x" * 6, "y"], rows=4, sampler=SamplerConfig(steps=1))
    assert batches == [(2, 50), (1, 100), (2, 200)]
    assert [len(speech.latents) for speech in speeches] == [12, 12, 12]
    batches.clear()
    predicting.synthesize("x", duration=AutoDuration(most_s=2.0), steps=1)
    assert batches == [(1, 50)]  # the maximum


def test_an_end_counts_only_with_all_of_its_silence(predicting):
    rng = np.random.default_rng(0)
    silence = np.ones((1, CHANNELS), np.float32)
    for silent, ends in ((19, False), (20, True)):
        latents = np.concatenate([3 * rng.standard_normal((30, CHANNELS)), np.repeat(silence, silent, 0)])
        assert predicting._synthesizer._ends_in(latents.astype(np.float32)) == ends


def test_a_predictor_changes_the_fingerprint(predicting):
    plain = EchoTTS(Synthesizer(random_params(), CONFIG, predicting.facts, LinearCodec()))
    assert plain.fingerprint != predicting.fingerprint
    assert plain.predict_duration("abcd") == pytest.approx(4 * 0.075)


def test_speed_changes_the_samples_but_not_the_latents_also_live(predicting, watched):
    usual = predicting.synthesize("one two", seed=1, steps=2)
    for speed in (0.5, 1.6):
        speech = predicting.synthesize("one two", seed=1, steps=2, speed=speed)
        np.testing.assert_array_equal(speech.latents, usual.latents)
        np.testing.assert_array_equal(speech.samples, stretch(usual.samples, usual.sample_rate, speed))
        live = list(predicting.stream("one two", seed=1, speed=speed, sampler=SamplerConfig(steps=2)))
        np.testing.assert_allclose(joined(live).samples, speech.samples, atol=1e-5)
        (batch,) = predicting.synthesize_batch(["one two"], seeds=[1], speed=speed, sampler=SamplerConfig(steps=2))
        assert len(batch.samples) == round(len(usual.samples) / speed)


def test_pauses_between_pieces_follow_the_speed():
    pieces = [Piece("One", "clause"), Piece("two.", "sentence"), Piece("Three.", "paragraph")]
    said = Speech(np.full(RATE, 0.1, np.float32), RATE, np.zeros((25, CHANNELS), np.float32))
    usual, fast = (joined(list(speak_pieces(pieces, None, lambda *_: said, (), speed))) for speed in (1.0, 2.0))
    assert usual.duration_s - fast.duration_s == pytest.approx((0.12 + 0.35) / 2, abs=1e-3)
    interrupted = list(speak_pieces(pieces, None, lambda *_: said, (), 2.0))
    rest = list(speak_pieces(pieces, None, lambda *_: said, interrupted[:1], 2.0))
    np.testing.assert_array_equal(joined(rest).samples, joined(interrupted[1:]).samples)
