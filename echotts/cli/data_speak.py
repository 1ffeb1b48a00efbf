"""`echotts data speak`: a corpus of synthetic speech."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from echotts.cli.app import UsageError, parse
from echotts.cli.progress import Progress

PROG = "echotts data speak"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Have a text-to-speech system say a list of texts: recordings to train on. A run that was stopped goes on.

    Writes {output}/{voice}/{number}.flac and {output}/metadata.jsonl, which `data prepare --source {output}` reads.
    kokoro and espeak need the extra teachers, flite and festival the programs of these names.
    """

    teacher: Literal["kokoro", "flite", "festival", "espeak"]
    """Who speaks."""
    texts: Path
    """Text file, a sentence a line (scripts/english_texts.py writes one)."""
    output: Path
    """Folder of the recordings; made if missing."""
    voices: tuple[str, ...] = ()
    """Voices: slt (flite), en-us+f2 (espeak), jf_alpha or a mix such as jf_alpha:60+jm_kumo:40 (kokoro). Empty: all
    that the teacher has."""
    per_text: int = 1
    """How many of the voices say each text; they take turns."""
    hours: float | None = None
    """Stop at so many hours of sound. Whenever it stops, what is there is a fair sample of the texts and voices."""
    pace: tuple[float, float] = (1.0, 1.0)
    """Slowest and fastest pace; each clip has its own, drawn between them. 1.1 is a tenth faster than normal."""
    language: str = "en"
    """Language of the texts, for the table."""
    seed: int = 0
    """Decides the order of the work and the pace of each clip."""
    processes: int = 1
    """Processes that speak side by side; each takes one core."""


def main(argv: list[str]) -> int:
    """Parse, speak, say what is there; returns the exit code."""
    arguments = parse(Arguments, argv, prog=PROG)
    from echotts.data.teachers import read_texts, speak
    from echotts.data.teachers.speak import Settings

    try:
        settings = Settings(
            teacher=arguments.teacher,
            voices=arguments.voices,
            per_text=arguments.per_text,
            hours=arguments.hours,
            pace=arguments.pace,
            language=arguments.language,
            seed=arguments.seed,
            processes=arguments.processes,
        )
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    progress = Progress()
    try:
        summary = speak(read_texts(arguments.texts), arguments.output, settings, progress)
    finally:
        progress.close()
    refused = f", {summary.refused} texts refused (refused.jsonl says why)" if summary.refused else ""
    print(f"{arguments.output}: {summary.clips} clips, {summary.hours:.2f} hours{refused}")
    return 0
