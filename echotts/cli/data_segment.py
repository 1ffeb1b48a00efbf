"""`echotts data segment`: raw recordings to clips with their texts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from echotts.cli.app import UsageError, parse
from echotts.cli.progress import Progress

PROG = "echotts data segment"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Cut raw recordings (talks, podcasts, videos) into clips with texts, to train on. A run that was stopped goes on.

    Speech is found by silero-vad and written down by Whisper; what is too short, clipped, over music, noisy, of several
    voices, in another language or not understood is left out, counted, and listed in rejected.jsonl. Writes
    {output}/{speaker}/*.flac and {output}/metadata.jsonl, which `data prepare --source {output}` reads.
    Needs the extras eval and asr; m4a and video files the extra m4a.
    """

    source: Path
    """A recording or video, or a folder of them."""
    output: Path
    """Folder of the clips; made if missing."""
    text: Path | None = None
    """Text file of what is said in the recording, word for word, with nothing left out: clips get its words in the
    place of what Whisper heard."""
    asr: str = "base"
    """Who writes down what is said: base or tiny.en (Whisper, in the extra asr), a folder with a Whisper model in
    CTranslate2's form, or a Hub id."""
    language: str = "en"
    """Language that is spoken."""
    speakers: Literal["file", "cluster"] = "file"
    """Whose voice a clip is: file, one speaker for each recording; cluster, voices told apart by their embedding."""
    min_s: float = 2.0
    """Shorter clips are left out, in seconds."""
    max_s: float = 20.0
    """Longer speech is cut at a pause, in seconds."""
    min_snr_db: float = 15.0
    """Clips whose background is less than this below the speech are left out, in dB."""


def main(argv: list[str]) -> int:
    """Parse, cut, say what is there; returns the exit code."""
    arguments = parse(Arguments, argv, prog=PROG)
    if not arguments.source.exists():
        raise FileNotFoundError(f"{arguments.source}: no such recording or folder")
    from echotts.evaluation.asr import Whisper
    from echotts.segment.quality import Limits
    from echotts.segment.run import Settings, segment

    try:
        limits = Limits(min_s=arguments.min_s, max_s=arguments.max_s, min_snr_db=arguments.min_snr_db)
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    if arguments.text is not None and not arguments.source.is_file():
        raise UsageError(f"--text {arguments.text}: goes with one recording, and --source {arguments.source} is none")
    text = None if arguments.text is None else arguments.text.read_text("utf-8")
    settings = Settings(language=arguments.language, speakers=arguments.speakers, limits=limits, text=text)
    recogniser = Whisper(arguments.asr, arguments.language)
    progress = Progress()
    try:
        summary = segment(arguments.source, arguments.output, recogniser, settings, progress)
    finally:
        progress.close()
    print(f"{arguments.output}: {summary.clips} clips, {summary.seconds / 60:.1f} minutes")
    if summary.rejected:
        causes = ", ".join(f"{cause} {count}" for cause, count in sorted(summary.rejected.items()))
        print(f"rejected: {causes}; each with its place in {arguments.output / 'rejected.jsonl'}")
    if summary.silent:
        print(f"nobody speaks in {', '.join(summary.silent)}")
    return 0
