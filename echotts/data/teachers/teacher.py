"""What a teacher is, and which there are."""

import importlib
from typing import Protocol, runtime_checkable

from echotts.audio import Samples

TEACHERS = {  # name -> module and class: a teacher's packages are imported when it is asked for
    "kokoro": ("kokoro", "Kokoro"),
    "flite": ("programs", "Flite"),
    "festival": ("programs", "Festival"),
    "espeak": ("espeak", "Espeak"),
}


@runtime_checkable
class Teacher(Protocol):
    """A text-to-speech system."""

    def voices(self) -> list[str]:
        """The voices it has; a teacher may take others too (mixes, variants)."""
        ...

    def check(self, voice: str) -> None:
        """Raises ValueError for a voice that it does not have, naming those it has."""
        ...

    def licence(self, voice: str) -> str:
        """The licence of a voice, for the table."""
        ...

    def say(self, text: str, voice: str, pace: float) -> tuple[Samples, int]:
        """Mono samples and their rate in Hz; `pace` 1.1 is a tenth faster. Raises ValueError for text it cannot say."""
        ...


def load_teacher(name: str) -> Teacher:
    """The teacher of that name. Raises ModuleNotFoundError or FileNotFoundError: what is missing, what to install."""
    if name not in TEACHERS:
        raise ValueError(f"unknown teacher {name!r}: choose one of {', '.join(TEACHERS)}")
    module, kind = TEACHERS[name]
    return getattr(importlib.import_module(f"echotts.data.teachers.{module}"), kind)()
