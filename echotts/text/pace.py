"""Estimates the duration of a spoken text from its characters, for a reader of medium pace.

A letter of an alphabet counts 0.075 s (with spaces about 155 English words per minute), a character that represents a
syllable or a word more, a punctuation mark its pause.
"""

import unicodedata

LETTER_S = 0.075
SPACE_S = 0.03
DIGIT_S = 0.3
COMMA_S, STOP_S = 0.15, 0.3
_SYLLABLES = {"HIRAGANA": 0.13, "KATAKANA": 0.13, "HANGUL": 0.19, "CJK": 0.23, "ETHIOPIC": 0.16}


def estimated_seconds(text: str) -> float:
    return sum(map(_seconds, text))


def has_sound(text: str) -> bool:
    """Whether `text` contains anything that is spoken: a letter or a digit."""
    return any(character.isalnum() for character in text)


def _seconds(character: str) -> float:
    if character.isascii():
        if character.isalpha():
            return LETTER_S
        if character.isdigit():
            return DIGIT_S
    elif character.isalnum():
        return _SYLLABLES.get(unicodedata.name(character, "").split(" ")[0], LETTER_S)
    if character in ".!?…。！？":
        return STOP_S
    if character in ",;:、，；：—–":
        return COMMA_S
    return SPACE_S if character.isspace() else 0.0
