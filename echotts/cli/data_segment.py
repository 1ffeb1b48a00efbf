"""`echotts data segment`: cuts raw recordings into clips with transcripts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from echotts.cli.app import UsageError, parse, settings_of
from echotts.cli.progress import Progress

PROG = "echotts data segment"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Cut raw recordings (talks, podcasts, videos) into clips with transcripts to train on. Resumes if interrupted.

    Speech is detected by silero-vad and transcribed by Whisper. Clips that are too short, clipped, noisy, over music,
    of several voices, in another language or unintelligible are rejected, counted, and listed in rejected.jsonl. Writes
    {output}/{speaker}/*.flac and {output}/metadata.jsonl, the input of `data prepare --source {output}`.
    Needs the extras eval and asr; m4a and video files also need the extra m4a.
    """

    source: Path
    """A recording or video, or a folder of them."""
    output: Path
    """Folder for the clips; created if missing."""
    text: Path | None = None
    """Text file with the complete transcript of the recording, word for word: clips get its words instead of Whisper's
    output."""
    asr: str = "base"
    """Recogniser: base or tiny.en (Whisper, in the extra asr), a folder with a Whisper model in CTranslate2's format,
    or a Hub id."""
    language: str = "en"
    """Language of the recordings."""
    speakers: Literal["file", "cluster"] = "file"
    """Speaker labels: file, one speaker per recording; cluster, by clustering of speaker embeddings."""
    min_s: float = 2.0
    """Minimum duration of a clip in seconds."""
    max_s: float = 20.0
    """Maximum duration in seconds; longer speech is split at a pause."""
    min_snr_db: float = 15.0
    """Minimum ratio of speech to background level in dB."""


def main(argv: list[str]) -> int:
    """Parses the arguments, segments, prints a summary; returns the exit code."""
    arguments = parse(Arguments, argv, prog=PROG)
    if not arguments.source.exists():
        raise FileNotFoundError(f"{arguments.source}: no such recording or folder")
    from echotts.evaluation.asr import Whisper
    from echotts.segment.quality import Limits
    from echotts.segment.run import Settings, segment

    limits = settings_of(Limits, arguments)
    if arguments.text is not None and not arguments.source.is_file():
        raise UsageError(
            f"--text {arguments.text} needs a single recording, but --source {arguments.source} is not a file"
        )
    text = None if arguments.text is None else arguments.text.read_text("utf-8")
    settings = settings_of(Settings, arguments, limits=limits, text=text)
    recogniser = Whisper(arguments.asr, arguments.language)
    with Progress() as progress:
        summary = segment(arguments.source, arguments.output, recogniser, settings, progress)
    print(f"{arguments.output}: {summary.clips} clips, {summary.seconds / 60:.1f} minutes")
    if summary.rejected:
        causes = ", ".join(f"{cause} {count}" for cause, count in sorted(summary.rejected.items()))
        print(f"rejected: {causes}; for details see {arguments.output / 'rejected.jsonl'}")
    if summary.silent:
        print(f"no speech in {', '.join(summary.silent)}")
    return 0
