"""Long text is split where a reader would pause, without losing anything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echotts.text.sentences import Piece, sentences, split_text

# One sentence a line; blank lines part the paragraphs they came from.
CASES = {
    "titles and amounts": "Dr. Smith paid $3.50 to J. R. Jones.|He left.",
    "abbreviation before a capital": "He got up at 6 a.m.|Nobody saw him.",
    "abbreviation inside": "It opens at 9 a.m. on Sundays, etc. and so on.|Closed today.",
    "country": "She moved to the U.S. in 1999.|It rained.",
    "initials": "I met J. K. Rowling and George R. R. Martin.|Nice people.",
    "the pronoun I": "She is taller than I.|He knows.",
    "quoted speech": '"Stop!" she said.|"Now."|He did.',
    "stop inside quotes": 'He whispered, "I know."|Then he left.',
    "brackets": "It works (see fig. 3).|Or does it?",
    "ellipsis": "Well... maybe.|Wait...|Really?!|Yes!",
    "a year ends a sentence": "It began in 1999.|Then it stopped.",
    "a decimal": "Pi is 3.14159 or so.|E is 2.71828.",
    "addresses": "Write to a.b@example.com or see www.example.com.|Thanks.",
    "versus": "It was Smith vs. Jones.|Jones won.",
    "German": "Am 3. Mai kam Dr. Weiß, d.h. gestern.|Er blieb z.B. Hier.|Gut.",
    "Spanish": "¿Cómo está Ud. Hoy?|¡Muy bien!|La Sra. López llegó.",
    "French": "M. Dupont est là.|« Oui. »|Il part.",
    "Chinese": "它很好。|你呢？|“好！”|走吧。",
    "Japanese": "「はい。」|そうです。",
    "Hindi": "यह अच्छा है।|हाँ।",
    "Arabic": "كيف حالك؟|بخير.",
    "Russian": "Он пришёл.|А ты?|Нет!",
    "no end": "no punctuation at all",
    "sentence in capitals": "STOP.|GO.",
    "apostrophe": "It's Tom's.|Who's there?",
}


@pytest.mark.parametrize("name", CASES)
def test_a_paragraph_is_split_into_sentences(name):
    wanted = CASES[name].split("|")
    joint = "" if name in ("Chinese", "Japanese") else " "
    assert sentences(joint.join(wanted)) == wanted


def test_line_breaks_are_spaces_empty_lines_end_paragraphs_and_items_of_a_list_stand_alone():
    text = "A line\nthat goes on.\n\nShopping:\n- milk\n- two eggs\n1. First. Then.\n2. Second.\r\n\r\nThe end."
    assert [(piece.text, piece.ends) for piece in split_text(text, lambda text: True)] == [
        ("A line that goes on.", "paragraph"),
        ("Shopping:", "paragraph"),
        ("- milk", "paragraph"),
        ("- two eggs", "paragraph"),
        ("1. First. Then.", "paragraph"),
        ("2. Second.", "paragraph"),
        ("The end.", "paragraph"),
    ]


def test_sentences_that_fit_together_stay_together():
    pieces = split_text("One. Two. Three is longer. Four.", lambda text: len(text) <= 12)
    assert pieces == [
        Piece("One. Two.", "sentence"),
        Piece("Three is", "clause"),
        Piece("longer.", "sentence"),
        Piece("Four.", "paragraph"),
    ]


def test_a_long_sentence_is_split_at_the_middle_clause_then_between_words_then_within_one():
    clauses = split_text("When it rained, we stayed in, and nobody spoke.", lambda text: len(text) <= 30)
    assert [piece.text for piece in clauses] == ["When it rained, we stayed in,", "and nobody spoke."]
    assert [piece.ends for piece in clauses] == ["clause", "paragraph"]
    words = split_text("one two three four five six seven", lambda text: len(text) <= 20)
    assert [piece.text for piece in words] == ["one two three", "four five six seven"]
    word = split_text("x" * 50, lambda text: len(text) <= 20)
    assert "".join(piece.text for piece in word) == "x" * 50


def test_where_nothing_fits_the_answer_is_one_line():
    with pytest.raises(ValueError, match="not even one character fits"):
        split_text("word", lambda text: False)


@given(st.text(alphabet="ab .!?,;:\n\"'(1)A…。—-", max_size=200), st.integers(1, 40))
def test_pieces_fit_and_together_equal_the_text(text, limit):
    pieces = split_text(text, lambda text: len(text) <= limit)
    assert "".join("".join(piece.text.split()) for piece in pieces) == "".join(text.split())
    assert all(0 < len(piece.text) <= limit for piece in pieces)
