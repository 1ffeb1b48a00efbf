"""`echotts data speak`: synthesises a training corpus."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from echotts.cli.app import parse, settings_of
from echotts.cli.progress import Progress

PROG = "echotts data speak"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Synthesise training recordings: a text-to-speech system speaks a list of texts. Resumes if interrupted.

    Writes {output}/{voice}/{number}.flac and {output}/metadata.jsonl, the input of `data prepare --source {output}`.
    kokoro and espeak need the extra teachers, flite and festival the programs of these names.
    """

    teacher: Literal["kokoro", "flite", "festival", "espeak"]
    """The text-to-speech system."""
    texts: Path
    """Text file with one sentence per line (scripts/english_texts.py writes one)."""
    output: Path
    """Folder for the recordings; created if missing."""
    voices: tuple[str, ...] = ()
    """Voices: slt (flite), en-us+f2 (espeak), jf_alpha or a mix such as jf_alpha:60+jm_kumo:40 (kokoro). Empty: all
    voices of the teacher."""
    per_text: int = 1
    """Number of voices that speak each text; voices alternate."""
    hours: float | None = None
    """Stop after this many hours of audio. At any time, the output is a representative sample of texts and voices."""
    pace: tuple[float, float] = (1.0, 1.0)
    """Slowest and fastest pace, drawn at random for each clip. 1.1 is 10 % faster than normal."""
    language: str = "en"
    """Language of the texts, for the table."""
    seed: int = 0
    """Seed of the order of clips and of their pace."""
    processes: int = 1
    """Number of parallel processes; each uses one core."""


def main(argv: list[str]) -> int:
    """Parses the arguments, speaks, prints a summary; returns the exit code."""
    arguments = parse(Arguments, argv, prog=PROG)
    from echotts.data.teachers import read_texts, speak
    from echotts.data.teachers.speak import Settings

    settings = settings_of(Settings, arguments)
    with Progress() as progress:
        summary = speak(read_texts(arguments.texts), arguments.output, settings, progress)
    refused = f", {summary.refused} texts refused (see refused.jsonl)" if summary.refused else ""
    print(f"{arguments.output}: {summary.clips} clips, {summary.hours:.2f} hours{refused}")
    return 0
