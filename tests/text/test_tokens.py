"""Text to ids: bytes and pieces behind a BOS, limits, storage, Echo's normalisation."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts.text.tokens import (
    _PHONEME_BYTES,
    BOS,
    ByteTokenizer,
    EnglishTokenizer,
    SentencePieceTokenizer,
    normalise_text,
    tokenizer_from_json,
    tokenizer_to_json,
)


@pytest.fixture(scope="module")
def pieces() -> SentencePieceTokenizer:
    texts = [f"the {a} {b} sat on the {c}" for a in ("old", "red") for b in ("cat", "hat") for c in ("mat", "bat")]
    return SentencePieceTokenizer.train(texts * 8, vocabulary=300)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=50))
@settings(deadline=None, max_examples=50)
def test_bytes_behind_the_bos_are_the_text(text: str) -> None:
    ids = ByteTokenizer().encode(text)
    assert ids.dtype == np.int32
    assert ids[0] == BOS
    assert bytes(ids[1:].tolist()).decode() == text


def test_a_text_at_the_limit_passes_and_a_longer_one_is_an_error_with_the_limit() -> None:
    tokenizer = ByteTokenizer()
    assert len(tokenizer.encode("é" * 4, limit=9)) == 9
    with pytest.raises(ValueError, match="text has 9 bytes, at most 8 fit"):
        tokenizer.encode("é" * 4 + "a", limit=9)


def test_english_is_encoded_as_it_is_read_and_stored_by_its_name() -> None:
    english = tokenizer_from_json(json.loads(json.dumps(tokenizer_to_json(EnglishTokenizer()))))
    for written, read in (("It cost $4.", "It cost four dollars."), ("Their two", "There too")):
        assert english.encode(written).tolist() == english.encode(read).tolist()
    assert english.encode("She thinks.").tolist() == [BOS, *b"Si X'yNks."]
    assert english.readable("At 10:30") == "At ten thirty"
    with pytest.raises(ValueError, match="text has 13 phonemes, at most 9 fit"):
        english.encode("42 is", limit=10)
    for silent in ("\u4f60\u597d", "?!", ""):
        with pytest.raises(ValueError, match="contains no word of English"):
            english.encode(silent)
    with pytest.raises(ValueError, match="NUL"):
        english.encode("a\0")
    for text in ("It cost $4.", "No number."):
        assert ByteTokenizer().readable(text) == text


def test_every_phoneme_has_a_byte_of_its_own() -> None:
    alphabet = "AIOQWYabdfhijklmnpstuvwzæɑɒɔəɛɜɡŋɪɹɾʃʊʌʒʔʤʧˈˌθᵊᵻɐðT ,.!?;:—…"
    mapped = alphabet.translate(_PHONEME_BYTES)
    assert mapped.isascii()
    assert len(set(mapped)) == len(alphabet)


def test_half_a_surrogate_pair_is_rejected_with_its_position() -> None:
    with pytest.raises(ValueError, match="character 2"):
        ByteTokenizer().encode("ab\udc80")


@given(text=st.text(alphabet=st.characters(exclude_categories=["C"]), min_size=1, max_size=20))
@settings(deadline=None, max_examples=50)
def test_pieces_keep_every_character_also_unseen_ones(pieces: SentencePieceTokenizer, text: str) -> None:
    ids = pieces.encode(text)
    assert ids[0] == BOS
    assert (ids[1:] > BOS).all()
    assert (ids < pieces.vocabulary).all()
    assert pieces.decode(ids).strip() == text.replace("▁", " ").strip()


def test_pieces_are_fewer_than_bytes_and_keep_to_the_limit(pieces: SentencePieceTokenizer) -> None:
    text = "the old cat sat on the mat"
    ids = pieces.encode(text)
    assert pieces.vocabulary == 300
    assert len(ids) < len(text) / 2
    assert np.array_equal(pieces.encode(text, limit=len(ids)), ids)
    with pytest.raises(ValueError, match=f"text has {len(ids) - 1} pieces, at most {len(ids) - 2} fit"):
        pieces.encode(text, limit=len(ids) - 1)


def test_tokenizers_survive_json(pieces: SentencePieceTokenizer) -> None:
    for tokenizer in (ByteTokenizer(), pieces):
        restored = tokenizer_from_json(json.loads(json.dumps(tokenizer_to_json(tokenizer))))
        assert (restored.kind, restored.vocabulary) == (tokenizer.kind, tokenizer.vocabulary)
        assert np.array_equal(restored.encode("the red bat"), tokenizer.encode("the red bat"))


@pytest.mark.parametrize(
    ("stored", "complaint"),
    [
        ({"kind": "words"}, "unknown tokenizer kind 'words'"),
        ({"kind": "sentencepiece"}, "no base64 model"),
        ({"kind": "sentencepiece", "model": "?"}, "no base64 model"),
        ({"kind": "sentencepiece", "model": "aGVsbG8="}, "not a SentencePiece model"),
    ],
)
def test_a_broken_stored_tokenizer_is_refused(stored: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        tokenizer_from_json(stored)


def test_a_vocabulary_that_the_texts_cannot_fill_is_refused() -> None:
    with pytest.raises(ValueError, match="no SentencePiece vocabulary of 9000"):
        SentencePieceTokenizer.train(["too little text"], vocabulary=9000)
    with pytest.raises(ValueError, match="no SentencePiece vocabulary of 100"):
        SentencePieceTokenizer.train(["no room for the bytes"] * 10, vocabulary=100)


@pytest.mark.parametrize(
    ("written", "normalised"),
    [
        ("Hello…", "[S1] Hello..."),
        ("“It’s”: a—b;\nc", '[S1] "It\'s", a, b, c'),
        ("[S2] Hi", "[S2] Hi"),
        ("(laughs) ha", "(laughs) ha"),
        ("and S1: so", "and S1, so"),
    ],
)
def test_echos_normalisation(written: str, normalised: str) -> None:
    assert normalise_text(written) == normalised
