"""What is written but not spoken is left out and counted; all other text is unchanged."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts.text.pace import has_sound
from echotts.text.sentences import split_text
from echotts.text.written import spoken_words

UNCHANGED = [
    "Hello there, it's 5 * 3 = 15, 2**3, a_b and snake_case.",
    "if x < y and z > w, then a<b; 3 <4 and 5> 2",
    "[S1] Hello (laughs) [S2] Yes, a*b*c.",
    "#1 in C# with a #hashtag, ~5 or -5 degrees - maybe",
    "1. First\n2. Second",
    "It costs €5, 20° C, ©, ™, № 3, ① and ½",
    "naïve Привет 你好 مرحبا नमस्ते mixed in оne line",
    "نمی‌خواهم क्‍ष",  # with joiners of these scripts
    "https://example.com/a_b_c?d=1 stays",
    "  two  spaces,\ttabs\n\n\n\nand lines  ",
    "\\d is not \\n an escape",
    "...",
]
SPOKEN = {
    '<speak>One <break time="1s"/> two</speak>': ("One \n\n two", "3 tags"),
    "wo<b>r</b>d<br>next <!-- a <note> --> end": ("word\n\nnext end", "4 tags"),
    "<?xml version='1.0'?><!DOCTYPE x><![CDATA[raw]]>": ("raw", "4 tags"),
    "AT&amp;T &lt;b&gt; &#233;&unknown;": ("AT&T <b> é&unknown;", ""),
    "# One\nTwo.\n## C# ##\n": ("One\n\nTwo.\n\nC#", "2 marks of Markdown"),
    'He said *wait*, "**now**", ***then***, _it_ and __b__.': (
        'He said wait, "now", then, it and b.',
        "10 marks of Markdown",
    ),
    "- one\n* two\n+ [x] three\n• four": ("one\n\ntwo\n\nthree\n\nfour", "4 marks of Markdown"),
    "> > quote\n> more": ("quote\nmore", "2 marks of Markdown"),
    '[words](https://e.com "Title"), ![a cat](cat.png), [t][ref], <https://x.org>[^1]': (
        "words, a cat, t, https://x.org",
        "5 marks of Markdown",
    ),
    "[![alt](i.png)](http://l)": ("alt", "2 marks of Markdown"),
    "Use `code` here.\n\n```py\nx = 1\n```\nAfter": ("Use code here.\n\nAfter", "1 block of code, 2 marks of Markdown"),
    "~~~\n```\n~~~\nx\n```\nunclosed": ("x\nunclosed", "1 block of code, 1 mark of Markdown"),
    "Title\n=====\ntext\n\n* * *\nmore": ("Title\n\ntext\n\nmore", "2 marks of Markdown"),
    "| a | b |\n|---|:-:|\n| 1 | 2 |": ("a, b\n\n1, 2", "3 marks of Markdown"),
    "[ref]: http://x 'y'\ntext": ("text", "1 mark of Markdown"),
    r"\*not\* a\.b": ("not a.b", "3 marks of Markdown"),
    "I ❤️ you 👨‍👩‍👧! 1️⃣ is → 1 😀.": ("I you! 1 is 1.", "9 emoji"),
    "a\0b\x1b[0mc\u200bd\ufeff\ue000\ud800": ("ab[0mcd", "6 control characters"),
    "😀 &#128512;\x07": ("", "2 emoji, 1 control character"),
}


@pytest.mark.parametrize("text", UNCHANGED)
def test_text_without_markup_is_unchanged(text):
    assert spoken_words(text).words == text
    assert not spoken_words(text).notice


@pytest.mark.parametrize("text", SPOKEN)
def test_markup_emoji_and_control_characters_are_left_out_and_counted(text):
    written = spoken_words(text)
    assert (written.words, written.notice) == SPOKEN[text]


def test_windows_line_breaks_do_not_hide_markup():
    assert spoken_words("# One\r\n\r\n- two\r\n").words == "One\n\ntwo"


@settings(deadline=None, max_examples=200)
@given(st.text(st.sampled_from("ab1 .*_`~#>|[]()<>!-=\n\\&;/:\"'😀\u200d\0é你"), max_size=60) | st.text(max_size=60))
def test_any_text_gives_pieces_with_sound_of_characters_that_can_be_spoken_or_nothing(text):
    words = spoken_words(text).words
    assert not any(0xD800 <= ord(character) < 0xE000 or character in "\0\x1b😀" for character in words)
    for piece in split_text(words, lambda piece: len(piece) <= 20) if has_sound(words) else []:
        assert 0 < len(piece.text) <= 20
    if text.isalnum():
        assert words == text


@pytest.mark.parametrize(
    "part",
    [". x", ".", "<", "<a b=", "<!--", "[", "[a](", "[a](/ 'b", "*", "**a** ", "_", "`", "> ", "\n ", "\n- a", "# ",
     "|", "\u200d", "&", "😀", "a", "a, ", "\\", "Dr. ", "'", ". »", "。", "```\n", "|-"],
)  # fmt: skip
def test_the_time_is_linear_in_the_length_of_hostile_text(part):
    text = part * (60_000 // len(part)) + "x"
    began = time.thread_time()
    split_text(spoken_words(text).words, lambda piece: len(piece) <= 200)
    assert time.thread_time() - began < 6.0  # below 1 s; quadratic patterns take minutes
