"""Text of any length is spoken in pieces that fit, in one voice, with pauses between them and at one loudness."""

import numpy as np
import pytest

from echotts.audio import measure_loudness, sound_span
from echotts.audio.marking import MESSAGE, marked
from echotts.synthesis.longform import PAUSE_S, joined, pieces_of, speak_pieces
from echotts.synthesis.speech import Speech
from echotts.text.sentences import Piece

RATE = 8000
PIECES = [Piece("One.", "clause"), Piece("Two.", "sentence"), Piece("Three.", "paragraph"), Piece("Four.", "paragraph")]


def tone(level, lead_s=0.2, tail_s=0.4):
    wave = level * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE).astype(np.float32)
    return np.concatenate([np.zeros(int(lead_s * RATE), np.float32), wave, np.zeros(int(tail_s * RATE), np.float32)])


def speeches(voices, levels=(0.2, 0.3, 0.1, 0.2)):
    def speak(number, voice):
        voices.append(voice)
        return Speech(tone(levels[number]), RATE, np.full((5, 2), number, np.float32))

    return speak


def test_pieces_have_the_first_ones_loudness_and_the_pause_of_their_place():
    spoken = list(speak_pieces(PIECES, None, speeches([])))
    spans = [sound_span(speech.samples, RATE) for speech in spoken]
    assert all(start <= 0.05 * RATE for start, _ in spans)
    pauses = [(len(speech.samples) - end) / RATE for speech, (_, end) in zip(spoken, spans, strict=True)]
    wanted = [PAUSE_S["clause"], PAUSE_S["sentence"], PAUSE_S["paragraph"], 0.0]
    np.testing.assert_allclose(pauses, np.add(wanted, 0.03), atol=0.02)
    levels = [
        measure_loudness(speech.samples[start:end], RATE) for speech, (start, end) in zip(spoken, spans, strict=True)
    ]
    np.testing.assert_allclose(levels, levels[0], atol=0.5)
    assert all(np.abs(speech.samples[[0, -1]]).max() < 1e-3 for speech in spoken), "ends are faded: nothing clicks"


def test_without_a_reference_the_first_piece_is_the_voice_of_the_others():
    made_up, given = [], []
    list(speak_pieces(PIECES, None, speeches(made_up)))
    assert made_up[0] is None
    assert all((voice == 0).all() and voice.shape == (5, 2) for voice in made_up[1:])
    reference = np.ones((3, 2), np.float32)
    list(speak_pieces(PIECES, reference, speeches(given)))
    assert all(voice is reference for voice in given)


def test_the_watermark_goes_through_all_pieces_as_through_one_and_is_the_same_when_continued():
    levels = (0.3, 0.1, 0.2, 0.3)
    plain, ours = (
        list(speak_pieces(PIECES, None, speeches([], levels), message=message)) for message in (None, MESSAGE)
    )
    whole, change = joined(plain).samples, joined(ours).samples - joined(plain).samples
    np.testing.assert_allclose(change, marked(whole, RATE, MESSAGE) - whole, atol=0.05 * np.abs(change).max())
    continued = list(speak_pieces(PIECES, None, speeches([], levels), ours[:2], message=MESSAGE))
    for piece, again in zip(ours[2:], continued, strict=True):
        np.testing.assert_array_equal(piece.samples, again.samples)


def test_text_that_fits_is_not_changed():
    assert pieces_of("Two\nlines. ", lambda text: True) == [Piece("Two\nlines. ", "paragraph")]
    speech = next(speak_pieces([PIECES[0]], None, speeches([])))
    np.testing.assert_array_equal(speech.samples, tone(0.2))


def test_pieces_without_speech_are_dropped_and_a_text_without_any_is_rejected():
    assert [piece.text for piece in pieces_of("a. — !!! b.", lambda text: len(text) <= 3)] == ["a.", "b."]
    with pytest.raises(ValueError, match=r"'\?! \.\.\.' contains no letter or digit"):
        pieces_of("?! ...", lambda text: True)


def test_a_silent_piece_neither_sets_nor_gets_a_level():
    spoken = list(speak_pieces(PIECES, None, speeches([], levels=(0.0, 0.3, 0.1, 0.2))))
    assert not spoken[0].samples.any()
    assert np.isfinite(joined(spoken).samples).all()


def test_a_long_text_is_its_pieces_joined_and_the_same_every_time(tts):
    text = "one two three. four five six, seven eight nine ten. one two"
    pieces = list(tts.pieces(text, seed=3, duration=1.0))
    assert len(pieces) > 2
    whole = tts.synthesize(text, seed=3, duration=1.0)
    np.testing.assert_array_equal(whole.samples, joined(pieces).samples)
    np.testing.assert_array_equal(whole.latents, joined(pieces).latents)
    assert len(whole.latents) == sum(len(piece.latents) for piece in pieces)


def test_a_text_that_fits_is_not_split(tts):
    assert len(list(tts.pieces("one two", seed=5))) == 1


def test_the_largest_seed_is_as_good_as_any(tts):
    pieces = list(tts.pieces("one two three four. five six seven eight. nine", seed=2**63 - 1, duration=0.5))
    assert len(pieces) > 1
