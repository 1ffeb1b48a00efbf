"""What the built-in demo model can say: it was trained on spoken digits and knows no other word."""

import re

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_S = 0.28  # so 8 digits fit its window

_TOKEN = re.compile(r"[0-9]|[^\W\d_]+|\S")
_PUNCTUATION = set(".,;:!?-'\"")


def demo_text(text: str) -> str:
    """The digits in `text`, written out: "42, seven" is "four two seven". ValueError where it holds anything else."""
    tokens = [token for token in _TOKEN.findall(text.lower()) if token not in _PUNCTUATION]
    words = [WORDS[int(token)] if token in "0123456789" else token for token in tokens]
    if unknown := [word for word in words if word not in WORDS]:
        raise ValueError(
            f"the built-in demo model says the digits zero to nine and nothing else, not {unknown[0][:40]!r}: for "
            "other text give a model with --checkpoint (docs/training.md says how to train one)"
        )
    if not words:
        raise ValueError("the text holds no digit, and the built-in demo model says nothing else")
    return " ".join(words)


def demo_seconds(text: str) -> float:
    """How long the digits of a text take to say."""
    return DIGIT_S * len(demo_text(text).split())
