"""English words to phonemes, in the alphabet that Kokoro reads: misaki's lexica (Apache-2.0), endings, else a guess.

misaki's own reader tags parts of speech with spaCy; here a word with several pronunciations gets the lexicon's default,
which is right for most.
"""

import functools
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from echotts.text.spoken import spoken
from echotts.wheels import package_folder

VOWELS = frozenset("AIOQWYaiuæɑɒɔəɛɜɪʊʌᵻɐ")
VOICELESS = frozenset("ptkfθ")
SIBILANT = frozenset("szʃʒʧʤ")
FLAPPED_AFTER = frozenset("AIOWYiuæɑəɛɪɹʊʌ")
STRESSES = "ˈˌ"
PAUSES = ",.!?;:—…"
LONGEST_GUESS = 40  # letters of an unknown word that are read
WEAK = {"a": "ɐ", "an": "ɐn", "and": "ænd", "i": "ˌI"}
# letters of unknown words and how they usually sound, longest first; others sound as they are written
SPELLINGS = """tch=ʧ sch=ʃ ch=ʧ sh=ʃ th=θ ph=f gh=ɡ ck=k qu=kw ee=i ea=i ie=i oo=u ou=W ai=A ay=A oi=Y oy=Y au=ɔ aw=ɔ
    er=əɹ ar=ɑɹ or=ɔɹ ce=sɛ ci=sɪ cy=si c=k x=ks a=æ e=ɛ g=ɡ i=ɪ j=ʤ o=ɑ q=k r=ɹ u=ʌ y=i"""
GRAPHEMES = {letters: sound for letters, _, sound in (pair.partition("=") for pair in SPELLINGS.split())}
GRAPHEMES |= {letter: letter for letter in "bdfhklmnpstvwz"}
_PARTS = re.compile("|".join(GRAPHEMES))


class Phonemes:
    """Maps text to phonemes. `lexica` is the folder of us_gold.json and us_silver.json; `guess` reads unknown words."""

    def __init__(self, lexica: Path, guess: Callable[[str], str]) -> None:
        self._lexica: list[dict[str, Any]] = [
            json.loads((lexica / f"us_{name}.json").read_text("utf-8")) for name in ("gold", "silver")
        ]
        self._guess = guess
        self.word = functools.lru_cache(maxsize=1 << 16)(self.word)

    def __call__(self, text: str) -> str:
        """The text's phonemes; numbers are spelled out first."""
        text = spoken(text.translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0x2013: "—", 0x2026: "…"}))
        text = re.sub(r"\b(Mr|Mrs|Ms|Dr|St|Prof)\.", r"\1", text)  # no pause after these
        pieces = re.findall(r"[^\W\d_]+(?:['.][^\W\d_]+)*|[,.!?;:—…]", text)
        said: list[str] = []
        following = ""  # the first phoneme after the word, a pause, or nothing at the end
        for piece in reversed(pieces):
            if piece in PAUSES:
                said.append(piece)
                following = ""
                continue
            phonemes = self.word(piece, following)
            if phonemes:
                said.append(phonemes)
                following = phonemes.lstrip(STRESSES)[:1]
        return re.sub(r" (?=[,.!?;:…])", "", " ".join(reversed(said)))

    def word(self, word: str, following: str = "") -> str:
        """The phonemes of one word; `following` is the first phoneme after it, empty before a pause."""
        low = word.lower()
        if low == "the":
            return "ði" if following in VOWELS else "ðə"
        if low == "to" and following:
            return "tʊ" if following in VOWELS else "tə"
        if low in WEAK and (following or low == "i") and word != "A.":
            return WEAK[low]
        return (
            self._lookup(word, following)
            or self._spelled(word)
            or self._lookup(low, following)
            or self._lookup(low.capitalize(), following)
            or self._with_ending(word)
            or self._guess(word)
        )

    def _lookup(self, word: str, following: str = "") -> str:
        for lexicon in self._lexica:
            found = lexicon.get(word)
            if isinstance(found, dict):
                found = (None if following else found.get("None")) or found["DEFAULT"]
            if found:
                return found
        return ""

    def _known(self, word: str) -> str:
        return self._lookup(word) or self._lookup(word.capitalize())

    def _spelled(self, word: str) -> str:
        """Acronyms (U.S., NBC) letter by letter with the last one stressed; empty for other words."""
        letters = word.replace(".", "")
        dotted = "." in word and max(map(len, word.split("."))) == 1
        if not letters.isascii() or not (dotted or (1 < len(letters) <= 4 and letters.isupper())):
            return ""
        if not dotted and self._known(letters.lower()):
            return ""
        names = [self._lookup(letter.upper()).replace("ˈ", "ˌ") for letter in letters]
        return "".join([*names[:-1], names[-1].replace("ˌ", "ˈ")])

    def _with_ending(self, word: str) -> str:
        """Possessives, plurals, past tenses and -ing forms of words in the lexica."""
        if word.endswith("'s") and len(word) > 2:
            return _plural(self.word(word[:-2], "s"))
        word = word.lower()
        for stem in _stems(word, ("s'", "s", "es", "ies")):
            if found := self._known(stem):
                return _plural(found)
        for stem in _stems(word, ("d", "ed", "ied")):
            if found := self._known(stem):
                return _past(found)
        for stem in _stems(word, ("ing",)):
            if found := self._known(stem):
                flapped = found[-1] == "t" and found[-2:-1] and found[-2] in FLAPPED_AFTER
                return (found[:-1] + "ɾ" if flapped else found) + "ɪŋ"
        return ""


@functools.cache
def english() -> Phonemes:
    """The phonemes of English, the same on every machine. ModuleNotFoundError if misaki is missing."""
    return Phonemes(package_folder("misaki", "pip install misaki") / "data", sounded_out)


def sounded_out(word: str) -> str:
    """A guess at a word by its letters: stressed on its first vowel, without a final e and accents."""
    letters = re.sub(r"(.)\1", r"\1", unicodedata.normalize("NFKD", word).lower()[:LONGEST_GUESS])
    letters = re.sub(r"(?<=[^aeiou]{2})e$|(?<=[aeiouy][^aeiou])e$", "", letters)
    phonemes = "".join(GRAPHEMES[part] for part in _PARTS.findall(letters))
    return re.sub(f"([{''.join(VOWELS)}])", r"ˈ\1", phonemes, count=1)


def _plural(stem: str) -> str:
    return stem + ("ᵻz" if stem[-1] in SIBILANT else "s" if stem[-1] in VOICELESS else "z")


def _past(stem: str) -> str:
    if stem[-1] == "t" and stem[-2:-1] and stem[-2] in FLAPPED_AFTER:
        return stem[:-1] + "ɾᵻd"
    if stem[-1] in "td":
        return stem + "ᵻd"
    return stem + ("t" if stem[-1] in VOICELESS or stem[-1] in "sʃʧ" else "d")


def _stems(word: str, endings: tuple[str, ...]) -> list[str]:
    """Possible stems for each ending, with spelling changes undone: y for ies, silent e, doubled consonants."""
    stems = []
    for ending in endings:
        stem = word.removesuffix(ending)
        if stem == word or len(stem) < 2 or (ending == "s" and stem.endswith("s")):
            continue
        stems.append(stem + "y" if ending in ("ies", "ied") else stem)
        if ending in ("ed", "ing"):
            stems.append(stem + "e")
            if stem[-1] == stem[-2]:
                stems.append(stem[:-1])
    return stems
