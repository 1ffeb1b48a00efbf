"""English as phonemes: weak forms, endings, numbers; unknown words are sounded out by their letters."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts.text.phonemes import Phonemes, english, sounded_out


@pytest.mark.parametrize(
    ("text", "phonemes"),
    [
        ("The apple, the pear.", "ði ˈæpᵊl, ðə pˈɛɹ."),
        ("to eat, to see to", "tʊ ˈit, tə sˈi tu"),
        ("cats dogs boxes", "kˈæts dˈɔɡz bˈɑksᵻz"),
        ("stopped crying started", "stˈɑpt kɹˈIɪŋ stˈɑɹɾᵻd"),
        ("Dr. Smith's cat", "dˈɑktəɹ smˈɪθs kˈæt"),
        ("12 cats", "twˈɛlv kˈæts"),
        ("Zyglorp!", "zˈiɡlɔɹp!"),
        ("", ""),
    ],
)
def test_english_is_read_with_its_weak_forms_and_endings(text: str, phonemes: str) -> None:
    assert english()(text) == phonemes


@pytest.mark.parametrize(
    ("word", "phonemes"),
    [("Quillfeather", "kwˈɪlfiθəɹ"), ("Blone", "blˈɑn"), ("José", "ʤˈɑsɛ"), ("Cerro", "sˈɛɹɑ"), ("Дом", ""), ("", "")],
)
def test_an_unknown_word_is_sounded_out_by_its_letters(word: str, phonemes: str) -> None:
    assert sounded_out(word) == phonemes


def test_phonemes_need_no_more_than_the_two_lexica(tmp_path: Path) -> None:
    (tmp_path / "us_gold.json").write_text('{"cat": "kˈæt", "read": {"DEFAULT": "ɹˈid", "None": "ɹˈɛd"}}')
    (tmp_path / "us_silver.json").write_text("{}")
    assert Phonemes(tmp_path, lambda word: f"<{word}>")("read cats, Hm read") == "ɹˈid kˈæts, <Hm> ɹˈɛd"


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=200)
def test_any_text_has_phonemes_of_the_known_alphabet_or_none(text: str) -> None:
    known = "AIOQWYabdfhijklmnpstuvwzæɑɒɔəɛɜɡŋɪɹɾʃʊʌʒʔʤʧˈˌθᵊᵻɐðT ,.!?;:—…"
    assert set(english()(text)) <= set(known)
