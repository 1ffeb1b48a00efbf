"""Text that arrives in parts is cut into complete sentences at once; the first piece is short, the next ones grow."""

import pytest

from echotts.text.arriving import (
    FIRST_S,
    GROWTH,
    LONGEST_CODE,
    LONGEST_WAIT,
    growing_pieces,
    live_pieces,
    settled_parts,
)
from echotts.text.pace import estimated_seconds
from echotts.text.sentences import settled_length
from echotts.text.written import spoken_words

LONG = "When the rain had stopped, the two of them, who had waited long, went out. " * 12


def fits(text, seconds):
    return estimated_seconds(text) <= seconds


@pytest.mark.parametrize(
    ("text", "settled"),
    [
        ("He left. She", ""),  # the word may go on
        ("He left. She stayed", "He left."),
        ("He left.", ""),
        ("He left.\n", "He left."),
        ("He met Dr. ", ""),
        ("He met Dr.\n", ""),
        ("He met Dr. Smith again", ""),
        ('"Stop!" she said', ""),
        ("Well... maybe so", ""),
        ("It is 3.5 or so", ""),
        ("One. Two. Three. Four is", "One. Two. Three."),
        ("A heading\n\nand", "A heading\n\n"),
        ("- milk\n- eggs", "- milk\n"),
        ("它很好。", ""),
        ("它很好。你", "它很好。"),
        ("", ""),
    ],
)
def test_a_sentence_is_complete_when_nothing_that_follows_can_change_it(text, settled):
    assert text[: settled_length(text)] == settled


def test_however_text_is_cut_into_parts_the_same_sentences_come_out():
    text = 'One two. "Three!" she said. Dr. Four is five... six. Seven? Eight\n\nNine ten. '
    whole = "".join(part for part, _ in settled_parts([text]))
    for width in (1, 2, 3, 7):
        parts = [text[start : start + width] for start in range(0, len(text), width)]
        settled = [part.strip() for part, _ in settled_parts(parts)]
        assert "".join(settled).replace(" ", "") == "".join(whole.split())
        assert settled[:3] == ["One two.", '"Three!" she said.', "Dr. Four is five... six."]


def test_a_sentence_is_spoken_before_the_next_part_is_read():
    read = []

    def parts():
        for part in ("One two three.\n", "Four five.\n"):
            read.append(part)
            yield part

    assert next(growing_pieces(settled_parts(parts()), fits, 10.0)).text == "One two three."
    assert len(read) == 1


def test_text_without_an_end_is_cut_between_words_and_not_kept_for_ever():
    parts = list(settled_parts(["word " * 100] * 50))
    assert max(len(part) for part, _ in parts) <= LONGEST_WAIT
    assert "".join(part for part, _ in parts) == "word " * 5000


@pytest.mark.parametrize("width", [1, 3, 1000])
def test_a_block_of_code_is_left_out_however_its_text_is_cut(width):
    code = ("```sh\nls. Then cd ..\n\nrm -r x\n```\n", "  ~~~\nNo. Code\n~~~~\n")
    text = f"Run this:\n{code[0]}It `works` well. Use ```x``` now.\n{code[1]}End of it."
    parts = [text[start : start + width] for start in range(0, len(text), width)]
    said = " ".join(piece.text for piece in live_pieces(parts, fits, 10.0, lambda part: spoken_words(part).words))
    assert " ".join(said.split()) == "Run this: It works well. Use x now. End of it."


def test_a_block_of_code_without_an_end_is_spoken_and_not_kept_for_ever():
    words = "word " * 100
    assert [part for part, _ in settled_parts(["```\n", words, "\nend."])] == [f"```\n{words}\nend."]
    parts = [part for part, _ in settled_parts(["```\n", *[words] * 500])]
    assert "".join(parts) == "```\n" + words * 500
    assert max(map(len, parts)) <= LONGEST_CODE + len(words)


def test_the_first_piece_is_short_and_each_next_one_at_most_twice_as_long():
    pieces = live_pieces(LONG, fits, 12.0)
    seconds = [estimated_seconds(piece.text) for piece in pieces]
    assert seconds[0] <= FIRST_S
    assert max(seconds) > 8.0
    for number, length in enumerate(seconds):
        assert length <= min(FIRST_S * GROWTH**number, 12.0)
    assert " ".join(piece.text for piece in pieces).split() == LONG.split()
    assert [piece.ends for piece in pieces][:2] == ["clause", "sentence"]


def test_a_short_text_is_not_changed_and_a_text_without_speech_is_rejected():
    assert [piece.text for piece in live_pieces("Two\nlines. ", fits, 10.0)] == ["Two\nlines. "]
    for silent in ("... !", ["...", " ?"]):
        with pytest.raises(ValueError, match="contains no letter or digit"):
            list(live_pieces(silent, fits, 10.0))
