"""The interface of a teacher, and the list of teachers."""

import importlib
from typing import Protocol, runtime_checkable

from echotts.audio import Samples

TEACHERS = {  # name -> module and class, imported on demand
    "kokoro": ("kokoro", "Kokoro"),
    "flite": ("programs", "Flite"),
    "festival": ("programs", "Festival"),
    "espeak": ("espeak", "Espeak"),
}


@runtime_checkable
class Teacher(Protocol):
    """A text-to-speech system that speaks training data."""

    def voices(self) -> list[str]:
        """The voices it has; a teacher may accept others as well (mixes, variants)."""
        ...

    def check(self, voice: str) -> None:
        """Raises ValueError for an unknown voice, naming the known ones."""
        ...

    def licence(self, voice: str) -> str: ...

    def say(self, text: str, voice: str, pace: float) -> tuple[Samples, int]:
        """Mono samples and their rate in Hz; `pace` 1.1 is 10 % faster. Raises ValueError for text it cannot speak."""
        ...


def load_teacher(name: str) -> Teacher:
    """The teacher of that name. ModuleNotFoundError or FileNotFoundError say what to install."""
    if name not in TEACHERS:
        raise ValueError(f"unknown teacher {name!r}: choose one of {', '.join(TEACHERS)}")
    module, kind = TEACHERS[name]
    return getattr(importlib.import_module(f"echotts.data.teachers.{module}"), kind)()
