"""Texts for the built-in demo model, which was trained on spoken digits and knows no other words."""

import re

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_S = 0.28  # such that 8 digits fit its window

_TOKEN = re.compile(r"[0-9]|[^\W\d_]+|\S")
_PUNCTUATION = set(".,;:!?-'\"")


def demo_text(text: str) -> str:
    """The digits in `text`, spelled out: "42, seven" is "four two seven". ValueError if it contains anything else."""
    tokens = [token for token in _TOKEN.findall(text.lower()) if token not in _PUNCTUATION]
    words = [WORDS[int(token)] if token in "0123456789" else token for token in tokens]
    if unknown := [word for word in words if word not in WORDS]:
        raise ValueError(
            f"the built-in demo model speaks only the digits zero to nine, not {unknown[0][:40]!r}: for other text "
            "give a model with --checkpoint (docs/training.md explains how to train one)"
        )
    if not words:
        raise ValueError("the text contains no digits, and the built-in demo model speaks nothing else")
    return " ".join(words)


def demo_seconds(text: str) -> float:
    """Estimated duration in seconds of the digits in a text."""
    return DIGIT_S * len(demo_text(text).split())
