"""`codec detect`: finds the watermark of speech in recordings."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from echotts.cli.app import parse, report

EXIT_UNREADABLE, EXIT_UNMARKED = 1, 3


@dataclass(frozen=True, kw_only=True)
class DetectArguments:
    """Find the watermark that echotts embeds in speech (docs/provenance.md).

    Exit code 0: all files carry it. 3: at least one does not. 1: at least one could not be read. The watermark of the
    published DACVAE is another one, which cannot be detected: its weights have no detector.
    """

    recordings: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Recordings: any format, rate, length and number of channels."""
    output: Path | None = None
    """Also write the results as JSON."""

    def __post_init__(self) -> None:
        if not self.recordings:
            raise ValueError("give at least one recording")


def detect(argv: list[str]) -> int:
    """Prints a line for each recording; returns the exit code."""
    arguments = parse(DetectArguments, argv, prog="echotts codec detect")
    from echotts.files import check_outputs, write_json

    check_outputs(filter(None, [arguments.output]), arguments.recordings)
    results, code = [], 0
    for path in arguments.recordings:
        try:
            result = _examined(path)
        except (ValueError, OSError) as error:
            report(error)
            results.append({"recording": str(path), "error": str(error)})
            code = EXIT_UNREADABLE
            continue
        code = code or (0 if result["message"] else EXIT_UNMARKED)
        results.append({"recording": str(path)} | result)
    if arguments.output is not None:
        write_json(arguments.output, results)
    return code


def _examined(path: Path) -> dict[str, object]:
    """Looks for the mark in a recording and prints the result."""
    from echotts.audio.detecting import RATE_HZ, Detector
    from echotts.codec.sound import SoundFile

    sound = SoundFile(path)
    detector = Detector(sound.channels)
    for block in sound.blocks(RATE_HZ):
        detector.push(block)
    detection = detector.finish()
    chance = f"false alarm probability at most {detection.false_alarm:.1g}"
    print(f"{path}: {f'watermark {detection.message}' if detection.message else 'no watermark found'}, {chance}")
    return asdict(detection)
