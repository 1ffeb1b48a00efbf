"""Splits long text into pieces that fit a model's window: paragraphs, sentences, and clauses of long sentences.

A sentence ends at . ! ? … and their equivalents in other scripts, including closing quotes and brackets after them.
A full stop does not end a sentence after an abbreviation or an initial, in a number, or before a lower-case word:

| text | pieces |
|---|---|
| Dr. Smith paid $3.50 to J. R. Jones. He left. | Dr. Smith paid $3.50 to J. R. Jones. / He left. |
| He got up at 6 a.m. Nobody saw him. | He got up at 6 a.m. / Nobody saw him. |
| "Stop!" she said. "Now." | "Stop!" she said. / "Now." |
| Well... maybe. Really?! | Well... maybe. / Really?! |
| 它很好。你呢？ | 它很好。 / 你呢？ |

A single line break counts as a space unless the next line is a list item; an empty line ends a paragraph.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

LONGEST_WORD = 80  # characters before and after a full stop that are used to decide whether it ends a sentence

Break = Literal["clause", "sentence", "paragraph"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Followed by a name, a number or the rest of the phrase: these never end a sentence.
_TITLES = _words(
    """
    mr mrs ms mx dr prof rev hon gen col capt cpt lt sgt maj cmdr adm gov sen rep pres st ste mt messrs mme mlle sr
    sra srta dra ud uds sig dott hr fr frau herr hrn nr no nos vol fig figs eq ch sec pp p art op ca approx cf vs
    viz e.g i.e z.b d.h u.a v.a bzw vgl p.ex par.ex
    """
)
# These end a sentence if an upper-case word follows.
_ABBREVIATIONS = _words(
    """
    etc al inc ltd co corp jr bros dept est a.m p.m u.s u.k u.n e.u d.c usw usf ggf str tel min max jan feb mar apr
    jun jul aug sep sept oct nov dec mon tue wed thu fri sat sun
    """
)
_MONTHS = _words(
    """
    januar februar märz april mai juni juli august september oktober november dezember jänner jahrhundert
    """
)
_CLOSING = "\"'”’»›)]}"
_CLOSED = f"[{re.escape(_CLOSING)}]*"
_END = re.compile(rf"(?:(?<![.!?…؟।])[.!?…؟।]++(?:\s»|{_CLOSED})(?=\s|$)|[。！？｡]+{_CLOSED}[」』）]*)")
_PARAGRAPH = re.compile(r"\n[^\S\n]*(?:\n[^\S\n]*)+")
_ITEM = re.compile(r"\n(?=[^\S\n]*(?:[-*•–]|\d{1,3}[.)]|[a-z][.)])[^\S\n]+\S)")
_CLAUSE = re.compile(rf"[,;:،；：，、]{_CLOSED}(?=\s|$)|[，、；：]|\s[–—-]+(?=\s)|—")
_ORDINAL = re.compile(r"\d{1,2}")
_FOLLOWED = re.compile(r"\s+\S+\s")  # by a whole word
_FOLLOWED_CJK = re.compile(rf"\s*[^\s{re.escape(_CLOSING)}」』）]")


@dataclass(frozen=True)
class Piece:
    """A part of a text to be spoken at once, and the kind of break after it."""

    text: str
    ends: Break


def split_text(text: str, fits: Callable[[str], bool]) -> list[Piece]:
    """The pieces of a text, in order, as long as `fits` allows; none crosses a paragraph.

    Sentences that fit together stay together. A longer one is split at the clause marks that give the most even parts,
    then between words, and an overlong word anywhere. Joined, the pieces are the text except for white space.
    ValueError if not even one character fits.
    """
    pieces: list[Piece] = []
    for paragraph in _paragraphs(text):
        parts: list[Piece] = []
        for sentence in sentences(paragraph):
            *begun, last = _cut(sentence, fits)
            parts += [*(Piece(part, "clause") for part in begun), Piece(last, "sentence")]
        merged = _merged(parts, fits)
        pieces += [*merged[:-1], Piece(merged[-1].text, "paragraph")]
    return pieces


def settled_length(text: str) -> int:
    """How many characters of a growing text are complete sentences, whatever follows.

    They end at an empty line, before a list item, at a line break after a sentence, or at a sentence of which the next
    word is known, since that word decides whether a full stop ends a sentence.
    """
    settled = max((found.end() for marks in (_PARAGRAPH, _ITEM) for found in marks.finditer(text)), default=0)
    ended = text.endswith("\n")
    known = f"{text}A" if ended else text  # A stands for the sentence that begins on the next line
    for mark in _END.finditer(known, settled):
        followed = _FOLLOWED_CJK if mark[0][0] in "。！？｡" else _FOLLOWED
        if not ended and not followed.match(known, mark.end()):
            break
        if _ends(known, settled, mark):
            settled = mark.end()
    return settled


def sentences(paragraph: str) -> list[str]:
    """The sentences of one paragraph, without the white space between them."""
    found: list[str] = []
    start = 0
    for end in _END.finditer(paragraph):
        if end.start() < start or not _ends(paragraph, start, end):
            continue
        found.append(paragraph[start : end.end()].strip())
        start = end.end()
    found.append(paragraph[start:].strip())
    return [sentence for sentence in found if sentence]


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs and list items, each on one line."""
    for block in _PARAGRAPH.split(text.replace("\r\n", "\n")):
        for item in _ITEM.split(block):
            if line := " ".join(item.split()):
                yield line


def _ends(text: str, start: int, mark: re.Match[str]) -> bool:
    """Whether the sentence from `start` ends at `mark`."""
    stops = mark[0].rstrip(_CLOSING)
    following = text[mark.end() : mark.end() + LONGEST_WORD].lstrip().lstrip("\"'“‘«‹([{¿¡")
    if not following or stops[-1] in "。！？｡।":
        return True
    if following[0].islower():  # "Stop!" she said; well... maybe; approx. five
        return False
    if stops != ".":
        return True
    words = text[max(start, mark.start() - LONGEST_WORD) : mark.start()].split()
    last = words[-1].strip("\"'“‘«‹([{").lower() if words else ""
    if last in _TITLES:
        return False
    if last in _ABBREVIATIONS or re.fullmatch(r"(?:[^\W\d_]\.)+[^\W\d_]", last):
        return following[0].isupper()
    if len(last) == 1 and last.isalpha() and words[-1].isupper() and last != "i":  # an initial
        return False
    if _ORDINAL.fullmatch(last):  # a list item's number; in German a day or a century
        return len(words) > 1 and re.split(r"\W", following, maxsplit=1)[0].lower() not in _MONTHS
    return True


def _cut(sentence: str, fits: Callable[[str], bool]) -> list[str]:
    """Splits a sentence into parts that fit."""
    if fits(sentence):
        return [sentence]
    for marks in (_CLAUSE, re.compile(r"\s+")):
        middle = len(sentence) / 2
        ends = [mark.end() for mark in marks.finditer(sentence) if mark.end() < len(sentence)]
        if ends:
            at = min(ends, key=lambda end: abs(end - middle))
            return [*_cut(sentence[:at].strip(), fits), *_cut(sentence[at:].strip(), fits)]
    if len(sentence) == 1:
        raise ValueError(f"not even one character fits the model's window: {sentence!r}")
    half = len(sentence) // 2
    return [*_cut(sentence[:half], fits), *_cut(sentence[half:], fits)]


def _merged(parts: Sequence[Piece], fits: Callable[[str], bool]) -> list[Piece]:
    """Merges neighbouring parts while they fit."""
    merged: list[Piece] = []
    for part in parts:
        together = f"{merged[-1].text} {part.text}" if merged else ""
        if merged and fits(together):
            merged[-1] = Piece(together, part.ends)
        else:
            merged.append(part)
    return merged
