"""Text to token ids: UTF-8 bytes, as written (the default) or as English is read, or SentencePiece; and Echo's rules.

Id 0 starts every sequence (BOS) and pads it; a mask distinguishes the two.
"""

import base64
import io
from collections.abc import Iterable
from typing import Literal, NotRequired, TypedDict

import numpy as np
import sentencepiece
from jaxtyping import Int32

from echotts.text.phonemes import english
from echotts.text.spoken import spoken

BOS = 0

_PHONEME_BYTES = str.maketrans("ɛæɑɒɔəɜɪʊʌᵻɐɡŋɹʃʒʧʤθðɾˈˌᵊ—…ʔ", "e{o0c63yUV14gNrSZCJXDR'`9-~q")  # of those not ASCII

Ids = Int32[np.ndarray, "n"]
TokenizerKind = Literal["byte", "english", "sentencepiece"]

# The format of Echo's training transcripts (docs/training.md); not for models trained on raw text.
_ECHO_REPLACEMENTS = {"…": "...", "‘": "'", "’": "'", "“": '"', "”": '"', "\n": " ", ":": ",", ";": ",", "—": ", "}


class ByteTokenizer:
    """UTF-8 bytes after a BOS: supports every language, needs no training."""

    kind: TokenizerKind = "byte"
    vocabulary = 256

    def readable(self, text: str) -> str:
        """The text in words, as it is read: unchanged."""
        return text

    def encode(self, text: str, limit: int | None = None) -> Ids:
        """BOS and the bytes of `text`; ValueError if there are more than `limit` ids."""
        data = _utf8(text)
        if limit is not None and len(data) + 1 > limit:
            raise ValueError(f"text has {len(data)} bytes, at most {limit - 1} fit: shorten or split it")
        return np.frombuffer(bytes([BOS]) + data, dtype=np.uint8).astype(np.int32)


class EnglishTokenizer(ByteTokenizer):
    """Phonemes of English (phonemes.py), each of one byte; numbers and a few signs are spelled out (spoken.py).

    A phoneme has the byte of a letter that may sound like it, so that a model of bytes can be trained further.
    """

    kind: TokenizerKind = "english"

    def readable(self, text: str) -> str:
        """The text in words, as it is read: with numbers and signs spelled out."""
        return spoken(text)

    def encode(self, text: str, limit: int | None = None) -> Ids:
        """BOS and the phonemes of `text`; ValueError if there are more than `limit` ids, or no word is English."""
        phonemes = english()(_utf8(text).decode()).translate(_PHONEME_BYTES)
        if not any(phoneme.isalnum() for phoneme in phonemes):
            raise ValueError(f"the text {text.strip()[:40]!r} contains no word of English to speak")
        if limit is not None and len(phonemes) + 1 > limit:
            raise ValueError(f"text has {len(phonemes)} phonemes, at most {limit - 1} fit: shorten or split it")
        return np.frombuffer(bytes([BOS]) + phonemes.encode("ascii", "ignore"), dtype=np.uint8).astype(np.int32)


class SentencePieceTokenizer:
    """Pieces of a trained SentencePiece model, shifted by one so that 0 is BOS and padding.

    `model_bytes` is the serialised model, as produced by `train`; ValueError if it is invalid.
    """

    kind: TokenizerKind = "sentencepiece"

    def __init__(self, model_bytes: bytes) -> None:
        self._model_bytes = bytes(model_bytes)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._model_bytes)
            self.vocabulary = self._processor.vocab_size() + 1
        except RuntimeError as error:
            raise ValueError(f"not a SentencePiece model ({len(model_bytes)} bytes): {error}") from error

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int) -> "SentencePieceTokenizer":
        """Learns `vocabulary` ids (including BOS) from `texts`; unseen characters fall back to bytes.

        Raises ValueError if `texts` cannot fill the vocabulary, or it is too small for the 256 bytes.
        """
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=model,
                vocab_size=vocabulary - 1,
                model_type="bpe",
                character_coverage=1.0,
                byte_fallback=True,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                minloglevel=3,
            )
        except (RuntimeError, OSError) as error:
            raise ValueError(f"no SentencePiece vocabulary of {vocabulary} from these texts: {error}") from error
        return cls(model.getvalue())

    def readable(self, text: str) -> str:
        """The text in words, as it is read: unchanged."""
        return text

    def encode(self, text: str, limit: int | None = None) -> Ids:
        """BOS and the pieces of `text`; ValueError if there are more than `limit` ids."""
        pieces = self._processor.encode(_utf8(text).decode("utf-8"))
        if limit is not None and len(pieces) + 1 > limit:
            raise ValueError(f"text has {len(pieces)} pieces, at most {limit - 1} fit: shorten or split it")
        return np.asarray([BOS, *(piece + 1 for piece in pieces)], dtype=np.int32)

    def decode(self, ids: Ids) -> str:
        """The text of `ids`, ignoring BOS and padding."""
        return self._processor.decode([int(i) - 1 for i in ids if i != BOS])

    def to_bytes(self) -> bytes:
        """The serialised model."""
        return self._model_bytes


Tokenizer = ByteTokenizer | SentencePieceTokenizer
BYTES: dict[str, type[ByteTokenizer]] = {"byte": ByteTokenizer, "english": EnglishTokenizer}  # by kind


class TokenizerJson(TypedDict):
    """The JSON form of a tokenizer in checkpoints and exports."""

    kind: str
    model: NotRequired[str]  # of SentencePiece, base64


def tokenizer_to_json(tokenizer: Tokenizer) -> TokenizerJson:
    if isinstance(tokenizer, SentencePieceTokenizer):
        return {"kind": tokenizer.kind, "model": base64.b64encode(tokenizer.to_bytes()).decode("ascii")}
    return {"kind": tokenizer.kind}


def tokenizer_from_json(value: TokenizerJson) -> Tokenizer:
    """The inverse of `tokenizer_to_json`; ValueError says what is invalid."""
    kind = value["kind"]
    if kind in BYTES:
        return BYTES[kind]()
    if kind == SentencePieceTokenizer.kind:
        try:
            model_bytes = base64.b64decode(value["model"], validate=True)  # pyright: ignore[reportTypedDictNotRequiredAccess]
        except (KeyError, ValueError) as error:
            raise ValueError("tokenizer of kind 'sentencepiece' has no base64 model") from error
        return SentencePieceTokenizer(model_bytes)
    raise ValueError(f"unknown tokenizer kind {kind!r}: byte, english and sentencepiece are known")


def normalise_text(text: str) -> str:
    """Applies Echo's rules: plain quotes, no colons, dashes or line breaks, and a speaker tag unless present."""
    for written, plain in _ECHO_REPLACEMENTS.items():
        text = text.replace(written, plain)
    if text.startswith(("[", "(")) or "S1" in text or "S2" in text:
        return text
    return f"[S1] {text}"


def _utf8(text: str) -> bytes:
    if "\0" in text:
        raise ValueError(f"text contains NUL at character {text.index(chr(0))}: remove it")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"text is not Unicode at character {error.start}: {text[error.start]!r}") from error
