"""Texts for the built-in demo model, and its errors for other texts."""

import pytest

from echotts.synthesis.demo import demo_text


def test_digits_are_written_out():
    assert demo_text("42") == "four two"
    assert demo_text("Seven, three; 1") == "seven three one"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, this is a test.", "speaks only the digits zero to nine, not 'hello'.*--checkpoint"),
        ("four and two", "not 'and'"),
        ("4 \u00b2", "not '\u00b2'"),
        ("...", "contains no digits"),
    ],
)
def test_other_texts_are_rejected_with_an_explanation(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        demo_text(text)
    assert "\n" not in str(caught.value)
