"""Live speech: blocks of samples while a piece is still being decoded, which together equal the piece decoded whole."""

import numpy as np
import pytest

from echotts.audio.marking import MESSAGE, marked
from echotts.flow.options import SamplerConfig
from echotts.synthesis import synthesizer as synthesizer_module
from echotts.synthesis.live import LEVEL_S, Utterance, faded, live_blocks
from echotts.synthesis.longform import EDGE_S, PAUSE_S, joined
from echotts.synthesis.speech import find_start
from echotts.text.sentences import Piece
from tests.synthesis.conftest import HOP, RATE, SILENCE, voice
from tests.tiny_speaker import CHANNELS, WINDOW_FRAMES

MODEL = "tiny"
FAST = SamplerConfig(steps=2)
TEXT = "one two three. four five six, seven eight nine ten. one two"


@pytest.fixture
def ending(tts, monkeypatch):
    """The tiny model with an end of speech in its latents, which are random and show none."""
    monkeypatch.setattr(synthesizer_module, "find_end", lambda latents, *_: min(24, len(latents)))
    return tts


def tones(levels, blocks=6):
    """An utterance for each level: 0.5 s blocks of a tone."""
    clock = np.arange(RATE // 2) / RATE
    decoded = []

    def say(number, piece, voice):
        def decode():
            for block in range(blocks):
                decoded.append((number, block))
                yield (levels[number] * np.sin(2 * np.pi * 400 * clock)).astype(np.float32)

        return Utterance(np.full((3, 2), number, np.float32), decode(), blocks * len(clock))

    return say, decoded


def test_the_blocks_of_a_piece_equal_the_piece_decoded_whole(ending):
    blocks = list(ending.stream("one two", (voice(), RATE), seed=5, sampler=FAST))
    whole = ending.synthesize("one two", (voice(), RATE), seed=5, steps=2)
    assert len(blocks) > 2
    np.testing.assert_allclose(joined(blocks).samples, whole.samples, atol=1e-5)
    np.testing.assert_array_equal(joined(blocks).latents, whole.latents)
    assert {block.model for block in blocks} == {whole.model}


def test_the_blocks_of_every_piece_of_a_long_text_equal_its_latents_decoded_whole(ending):
    pieces = []
    for block in ending.stream(TEXT, seed=3, duration=1.0, sampler=FAST):
        if len(block.latents):
            pieces.append([block.latents])
        if block.samples.any():
            pieces[-1].append(block.samples)
    assert len(pieces) > 2
    for number, (latents, *blocks) in enumerate(pieces):
        first = find_start(latents, SILENCE) * HOP
        whole = ending.codec.decode(latents[None])[0, first:]
        (whole,) = faded([whole], len(whole), round(EDGE_S * RATE))
        heard = np.concatenate(blocks)
        assert len(heard) == len(whole)
        gain = 1.0 if number == 0 else float(heard @ whole / (whole @ whole))
        np.testing.assert_allclose(heard, gain * whole, atol=1e-5)


def test_the_watermark_goes_through_all_blocks_as_through_the_whole():
    pieces, levels = [Piece("One", "clause"), Piece("two.", "sentence")], [0.2, 0.3]
    plain, ours = (
        joined(list(live_blocks(pieces, None, tones(levels)[0], RATE, MODEL, message=message))).samples
        for message in (None, MESSAGE)
    )
    change = ours - plain
    np.testing.assert_allclose(change, marked(plain, RATE, MESSAGE) - plain, atol=0.05 * np.abs(change).max())


def test_a_block_comes_before_the_next_window_is_decoded(ending, monkeypatch):
    decoded = []
    real = ending.codec.decode
    monkeypatch.setattr(ending.codec, "decode", lambda latents: decoded.append(latents.shape[1]) or real(latents))
    next(ending.stream("one two", seed=5, sampler=FAST))
    assert decoded == [WINDOW_FRAMES]


def test_text_in_parts_is_the_text_and_is_spoken_while_it_arrives(tts):
    whole = list(tts.stream(TEXT, seed=3, duration=1.0, sampler=FAST))
    parts = list(tts.stream([TEXT], seed=3, duration=1.0, sampler=FAST))
    np.testing.assert_array_equal(joined(whole).samples, joined(parts).samples)
    read = []
    text = (read.append(part) or part for part in ("one two.\n", "three four.\n"))
    next(tts.stream(text, seed=3, sampler=FAST))
    assert read == ["one two.\n"]


def test_pieces_have_the_pause_of_their_place_and_the_loudness_of_the_first():
    pieces = [Piece("One", "clause"), Piece("two.", "sentence"), Piece("Three.", "paragraph")]
    say, _ = tones([0.2, 0.3, 0.15])
    blocks = list(live_blocks(pieces, None, say, RATE, MODEL))
    pauses = [len(block.samples) / RATE for block in blocks if not block.samples.any()]
    assert pauses == pytest.approx([PAUSE_S["clause"], PAUSE_S["sentence"]], abs=1e-3)
    loudest = [np.abs(block.samples).max() for block in blocks if block.samples.any()]
    np.testing.assert_allclose(loudest, 0.2, rtol=0.02)
    assert [len(block.latents) for block in blocks if block.samples.any()].count(3) == 3


def test_the_first_piece_waits_for_one_block_and_a_later_one_for_its_level():
    say, decoded = tones([0.2, 0.2])
    blocks = live_blocks([Piece("One", "clause"), Piece("two", "clause")], None, say, RATE, MODEL)
    next(blocks)
    assert decoded == [(0, 0)]
    while len(next(blocks).samples) != round(LEVEL_S * RATE):
        pass
    assert decoded[-1] == (1, round(LEVEL_S / 0.5) - 1)


def test_without_a_reference_the_first_piece_is_the_voice_of_the_others():
    voices = []
    say, _ = tones([0.2, 0.2, 0.2])
    pieces = [Piece("One", "clause")] * 3
    list(live_blocks(pieces, None, lambda *given: voices.append(given[2]) or say(*given), RATE, MODEL))
    assert voices[0] is None
    assert all((voice == 0).all() for voice in voices[1:])


def test_a_fade_does_not_depend_on_the_blocks():
    samples = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    (whole,) = faded([samples], 1000, 240)
    assert whole[0] == 0
    assert abs(whole[-1]) < 1e-6
    np.testing.assert_array_equal(whole[240:760], samples[240:760])
    for widths in (1, 7, 100, 999):
        blocks = [samples[start : start + widths] for start in range(0, 1000, widths)]
        np.testing.assert_array_equal(np.concatenate(list(faded(blocks, 1000, 240))), whole)
    np.testing.assert_array_equal(next(faded([samples[:3]], 3, 240))[1:2], samples[1:2])


def test_speech_whose_end_the_latents_do_not_show_is_decoded_whole(tts, monkeypatch):
    monkeypatch.setattr(tts._synthesizer, "silence", np.full((1, CHANNELS), 50.0, np.float32))
    blocks = list(tts.stream("one two", seed=5, sampler=FAST))
    assert len(blocks) == 1
    np.testing.assert_array_equal(blocks[0].samples, tts.synthesize("one two", seed=5, steps=2).samples)


def test_speech_that_does_not_end_in_a_short_window_is_not_cut_off_there(tts, monkeypatch):
    asked, sampled, window = [], tts._synthesizer._sampled, tts.limits.frames

    def watched(prompts, most, sampler, rows):
        asked.append(most)
        return sampled(prompts, most, sampler, rows)

    monkeypatch.setattr(tts._synthesizer, "_sampled", watched)
    monkeypatch.setattr(tts._synthesizer, "_sizes", [window // 2, window])
    monkeypatch.setattr(synthesizer_module, "find_end", lambda latents, *_: 20 if len(latents) == window else None)
    blocks = list(tts.stream("a", seed=1, sampler=FAST))
    assert asked == [window // 2, window]
    assert len(blocks[0].latents) == 20
