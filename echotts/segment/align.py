"""Aligns a known text with recognised clips: each clip gets the words of the text that are spoken in it."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

LEAST_MATCHED = 0.6  # minimum share of a clip's recognised words found in the text


def align(text: str, heard: Sequence[str]) -> list[str | None]:
    """For each clip, in order, the part of `text` spoken in it; None if too few of its words are in the text.

    Words are compared without case and punctuation. Misrecognised words at the edges of a clip are replaced by the
    words of the text at that position, unless another clip has them.
    """
    written = text.split()
    words = [re.findall(r"\S+", clip) for clip in heard]
    spoken = [_plain(word) for clip in words for word in clip]
    places: dict[int, int] = {}  # index of a recognised word -> its index in the text
    for start, other, size in SequenceMatcher(
        None, list(map(_plain, written)), spoken, autojunk=False
    ).get_matching_blocks():
        places.update({other + i: start + i for i in range(size)})
    spans = []
    first = 0
    for clip in words:
        found = [(number, places[first + number]) for number in range(len(clip)) if first + number in places]
        first += len(clip)
        fits = found and len(found) >= LEAST_MATCHED * len(clip)
        spans.append((found[0][1] - found[0][0], found[-1][1] + len(clip) - found[-1][0]) if fits else None)
    known = [span for span in spans if span is not None]
    aligned: list[str | None] = []
    for span in spans:
        if span is None:
            aligned.append(None)
            continue
        before = max((other[1] for other in known if other[0] < span[0]), default=0)
        aligned.append(" ".join(written[max(0, span[0], before) : span[1]]))
    return aligned


def _plain(word: str) -> str:
    return re.sub(r"[^\w']", "", word.lower())
