"""Text that arrives in parts, cut into pieces to be spoken before the rest is known.

The first piece is short, so that speech starts soon. Each further one may be GROWTH times as long, because it is
synthesised while the previous one is heard: without gaps if synthesis takes at most 1 / GROWTH of the audio's duration.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from echotts.text.pace import has_sound
from echotts.text.sentences import Break, Piece, settled_length, split_text
from echotts.text.written import find_code

FIRST_S = 2.0  # estimated duration of the first piece: five or six English words, about the shortest usual clause
GROWTH = 2.0
LONGEST_WAIT = 2000  # characters without the end of a sentence after which text is cut between two words
LONGEST_CODE = 200_000  # characters after which a block of code that is still open counts as text
_HEAD = 4000  # characters among which the next short piece is searched

NOTHING: tuple[int, Break] = (0, "sentence")  # of the text is settled
OPEN: tuple[int, Break] = (0, "paragraph")  # nothing either, before the end of a block of code

Fits = Callable[[str, float], bool]
"""Whether a text is at most so many seconds long, and fits a model's window."""


def live_pieces(
    text: str | Iterable[str], fits: Fits, longest_s: float, words: Callable[[str], str] = str
) -> list[Piece] | Iterator[Piece]:
    """The pieces of a text as a list, of arriving text one by one. A text of at most FIRST_S is not changed.

    `words` gives what is spoken of complete sentences of arriving text (written.py).

    ValueError if there is nothing to speak.
    """
    if not isinstance(text, str):
        return _arriving_pieces(text, fits, longest_s, words)
    if has_sound(text) and fits(text, min(FIRST_S, longest_s)):
        return [Piece(text, "paragraph")]
    pieces = list(growing_pieces([(text, "paragraph")], fits, longest_s))
    if not pieces:
        raise ValueError(f"the text {text.strip()[:40]!r} contains no letter or digit to speak")
    return pieces


def _arriving_pieces(
    parts: Iterable[str], fits: Fits, longest_s: float, words: Callable[[str], str]
) -> Iterator[Piece]:
    piece = None
    settled: Iterator[tuple[str, Break]] = ((words(part), ends) for part, ends in settled_parts(parts))
    for piece in growing_pieces(settled, fits, longest_s):
        yield piece
    if piece is None:
        raise ValueError("the text contains no letter or digit to speak")


def settled_parts(parts: Iterable[str]) -> Iterator[tuple[str, Break]]:
    """Complete sentences as soon as they have arrived, and the kind of break after them; at the end what is left.

    Fenced blocks of code are not cut, so that they can be left out (written.py).
    """
    pending, cut = "", NOTHING
    for part in parts:
        pending += part
        if cut == OPEN and "\n" not in part and len(pending) <= LONGEST_CODE:
            continue  # a block ends with a line: no need to search a long one at every word
        while (cut := _settled(pending))[0]:
            settled, pending = pending[: cut[0]], pending[cut[0] :]
            if settled.strip():
                yield settled, "paragraph" if settled.endswith("\n") else cut[1]
    if pending.strip():
        yield pending, "paragraph"


def _settled(pending: str) -> tuple[int, Break]:
    """The number of characters that later ones cannot change, and the kind of break after them."""
    start, end = find_code(pending)
    if start == 0 < end:
        return end, "paragraph"
    if start == 0 > end:
        return (len(pending), "paragraph") if len(pending) > LONGEST_CODE else OPEN
    if start < len(pending):
        return start, "paragraph"
    if length := settled_length(pending):
        return length, "sentence"
    if len(pending) > LONGEST_WAIT:
        return pending.rfind(" ", 0, LONGEST_WAIT) + 1 or LONGEST_WAIT, "clause"
    return NOTHING


def growing_pieces(parts: Iterable[tuple[str, Break]], fits: Fits, longest_s: float) -> Iterator[Piece]:
    """The pieces with anything to speak: the first at most FIRST_S long, each GROWTH times its predecessor at most."""
    most_s = min(FIRST_S, longest_s)
    for text, ends in parts:
        while text.strip():
            if most_s < longest_s:
                first, *others = split_text(text[:_HEAD], lambda piece, most_s=most_s: fits(piece, most_s))
                text = text[_length_of(first.text, text) :]
                pieces = [first] if others or text.strip() else [dataclasses.replace(first, ends=ends)]
            else:
                *pieces, last = split_text(text, lambda piece: fits(piece, longest_s))
                pieces, text = [*pieces, dataclasses.replace(last, ends=ends)], ""
            for piece in pieces:
                if has_sound(piece.text):
                    most_s = min(most_s * GROWTH, longest_s)
                    yield piece


def _length_of(piece: str, text: str) -> int:
    """The number of characters at the start of `text` that make up its first piece, which has other white space."""
    left = sum(not character.isspace() for character in piece)
    for position, character in enumerate(text):
        if not left:
            return position
        left -= not character.isspace()
    return len(text)
