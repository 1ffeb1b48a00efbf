"""Texts as a model takes them: without what is not spoken, in pieces that fit its window, as token ids."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from echotts.synthesis.length import AutoDuration, piece_limit_s
from echotts.synthesis.longform import pieces_of
from echotts.text.arriving import live_pieces
from echotts.text.pace import estimated_seconds, has_sound
from echotts.text.sentences import Piece
from echotts.text.tokens import Tokenizer
from echotts.text.written import Written, spoken_words

FILLED_SHARE = 0.9  # share of a window that a piece of a long text may fill by its estimated duration
LEAST_PIECE_S, LEAST_TEXT = 4.0, 8  # seconds and characters below which a text is not split because of its duration
MOST_CHARACTERS = 10_000_000  # of one text: a week of speech

logger = logging.getLogger(__name__)


@dataclass
class Texts:
    """The rules for texts of one model, which takes `most_tokens` and `window_s` seconds of speech at once."""

    tokenizer: Tokenizer
    most_tokens: int
    window_s: float
    readable: Callable[[str], str]
    """Applied to texts before encoding."""
    estimate: Callable[[str], float] = estimated_seconds
    """Estimates seconds of speech from a readable text."""
    raw: bool = False
    """True: texts keep markup and emoji."""

    def written(self, text: str) -> str:
        """The text without what is not spoken, which is logged. ValueError if nothing is left."""
        if not isinstance(text, str):
            raise TypeError(f'text: {text!r} is {type(text).__name__}: give a string, as in "four two"')
        if not text.strip():
            raise ValueError("the text is empty")
        if len(text) > MOST_CHARACTERS:
            raise ValueError(f"the text has {len(text):,} characters, at most {MOST_CHARACTERS:,} are spoken: split it")
        words = self._words_of_parts()(text)
        if not has_sound(words):
            raise ValueError(f"the text {text.strip()[:40]!r} contains no letter or digit to speak")
        return words

    def encode(self, text: str) -> Int[np.ndarray, " n"]:
        """Token ids of one piece; ValueError if it exceeds the model's window."""
        line = " ".join(text.split()) if "\n" in text else text
        return self.tokenizer.encode(self.readable(line), self.most_tokens)

    def seconds(self, text: str) -> float:
        """The estimated duration of a text."""
        return self.estimate(self.readable(text))

    def split(self, text: str, duration: float | AutoDuration) -> list[Piece]:
        """The pieces of a text for windows of such durations. ValueError if it has nothing to speak."""
        text, longest_s = self.written(text), self._longest_piece_s(duration)
        return pieces_of(text, lambda piece: self._fits(piece, longest_s))

    def split_live(self, text: str | Iterable[str], duration: float | AutoDuration) -> list[Piece] | Iterator[Piece]:
        """The pieces of a text to be spoken live: a list, all of which fit; of arriving text one by one."""
        if isinstance(text, str) or not isinstance(text, Iterable):
            text = self.written(text)
        pieces = live_pieces(text, self._fits, self._longest_piece_s(duration), self._words_of_parts())
        if isinstance(pieces, list):
            for piece in pieces:
                self.encode(piece.text)  # checks all pieces before the first is spoken
        return pieces

    def _words_of_parts(self) -> Callable[[str], str]:
        """What is spoken of the parts of one text, in order; the first part with anything else is logged."""
        notices: list[str] = []

        def words(part: str) -> str:
            written = Written(part) if self.raw else spoken_words(part)
            if written.notice and not notices:
                notices.append(written.notice)
                logger.warning("text: left out %s: see docs/inference.md", written.notice)
            return written.words

        return words

    def _fits(self, text: str, longest_s: float) -> bool:
        """Whether a text fits one window: by its number of tokens and its estimated duration."""
        if not has_sound(text):
            return True
        readable = self.readable(text)
        if len(self.tokenizer.encode(readable)) > self.most_tokens:
            return False
        return len(text) <= LEAST_TEXT or self.estimate(readable) <= longest_s

    def _longest_piece_s(self, duration: float | AutoDuration) -> float:
        """The estimated duration up to which text is spoken at once."""
        return FILLED_SHARE * min(self.window_s, max(piece_limit_s(duration), LEAST_PIECE_S))
