"""`codec evaluate`: measures the quality of codecs."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from echotts.cli.app import UsageError, parse
from echotts.cli.progress import Progress
from echotts.config import DEFAULT_CODEC

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Measure the quality of codecs: compare recordings with themselves after encoding and decoding.

    Word errors and speaker similarity are added if the recordings have texts and the extras eval and asr are installed.
    """

    data: str
    """Recordings: a folder, a table (csv, jsonl), or audio shards (.tar)."""
    codec: tuple[str, ...] = (DEFAULT_CODEC,)
    """One or several codecs: a .pth or .safetensors, a folder, a Hub id, a built-in one (demo), or a run directory."""
    limit: int = 100
    """Maximum number of clips."""
    loudness: float = -16.0
    """Loudness to which every recording is normalised, LUFS."""
    conditions: tuple[Literal["clean", "noisy", "clipped"], ...] = ("clean",)
    """Inputs: recordings unchanged, with white noise 20 dB below, or amplified by 12 dB and clipped."""
    asr: str = "auto"
    """Recogniser for word errors: none, digits, base, or a folder or Hub id of Whisper; auto: base if installed."""
    output: Path | None = None
    """Folder for results.jsonl, summary.json and index.html, a page with players and spectrograms."""
    played: int = 12
    """Number of clips on that page."""


def evaluate(argv: list[str]) -> int:
    """Prints the quality of round trips; returns the exit code."""
    arguments = parse(EvaluateArguments, argv, prog="echotts codec evaluate")
    if not arguments.codec or not arguments.conditions:
        raise UsageError("nothing to measure: give at least one --codec and one of --conditions")
    from echotts.codec.location import locate_codec
    from echotts.data.prepare.recordings import check_source

    check_source(arguments.data)
    for spec in arguments.codec:
        locate_codec(spec)
    from echotts.codec import load_codec
    from echotts.codec.evaluation import format_table, latent_statistics, round_trip, summarise, write_report

    codecs = [load_codec(spec) for spec in arguments.codec]
    listener = Listener.find(arguments)
    results: dict[tuple[str, str], list[Any]] = {}
    summaries: dict[tuple[str, str], dict[str, float]] = {}
    heard = []
    for spec, codec in zip(arguments.codec, codecs, strict=True):
        codec.decode(codec.encode(np.zeros((1, codec.hop_length), np.float32)))  # compiles before times are measured
        clips = list(clips_of(arguments.data, codec.sample_rate, arguments.loudness, spec, arguments.limit))
        for condition in arguments.conditions:
            rows = results.setdefault((spec, condition), [])
            for number, (name, clip) in enumerate(clips):
                listen = listener.recognise if listener is not None else None
                row, before, after = round_trip(codec, name, clip, condition, listen)
                rows.append(row)
                if number < arguments.played:
                    heard.append((row, before, after, codec.sample_rate))
            summaries[spec, condition] = dict(summarise(rows))
            if condition == "clean":
                summaries[spec, condition] |= latent_statistics(codec, [clip for _, clip in clips])
    for spec, codec in zip(arguments.codec, codecs, strict=True):
        print(f"{spec}: weights {codec.weights_hash[:12]}, {codec.sample_rate} Hz")
    print(format_table(summaries))
    if arguments.output is not None:
        write_report(arguments.output, summaries, [row for rows in results.values() for row in rows], heard)
        print(f"{arguments.output / 'index.html'}: players and spectrograms")
    return 0


def clips_of(
    data: str, sample_rate: int, loudness: float, title: str, limit: int | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and normalised clips; unreadable recordings are logged and skipped."""
    from echotts.audio import loudness_normalise
    from echotts.data.prepare.clips import list_clips
    from echotts.data.prepare.recordings import RecordingReader
    from echotts.rundir.rejections import Rejected

    recordings, skipped = list_clips(data)[:limit], 0
    with RecordingReader() as reader, Progress() as progress:
        for number, recording in enumerate(recordings, 1):
            try:
                clip = reader.read(recording, sample_rate)
                yield recording.origin, loudness_normalise(clip, sample_rate, loudness)
            except Rejected as error:
                LOGGER.warning("skipped: %s", error.detail)
                skipped += 1
            progress(title, number, len(recordings), skipped)


@dataclass
class Listener:
    """Counts word errors before and after the codec, and compares the speaker."""

    recogniser: Any
    voices: Any
    texts: Mapping[str, str]

    @staticmethod
    def find(arguments: EvaluateArguments) -> "Listener | None":
        """The requested listener; None if auto finds no recogniser."""
        if arguments.asr == "none":
            return None
        from echotts.data.prepare.recordings import list_recordings
        from echotts.evaluation.asr import load_recogniser
        from echotts.evaluation.voices import VoiceEncoder

        try:
            texts = {
                one.origin: str(one.meta["text"]) for one in list_recordings(arguments.data) if one.meta.get("text")
            }
            recogniser = load_recogniser("base" if arguments.asr == "auto" else arguments.asr)
            return Listener(recogniser, VoiceEncoder(), texts)
        except (ModuleNotFoundError, ValueError, FileNotFoundError):
            if arguments.asr != "auto":
                raise
            return None

    def recognise(self, clip: str, before: np.ndarray, after: np.ndarray, rate: int) -> Mapping[str, float]:
        """Number of words, word errors before and after the codec, and the similarity of the two voices."""
        first, second = self.voices.embed([(before, rate), (after, rate)])
        figures = {"similarity": float(first @ second)}
        if clip in self.texts:
            words, wrong_before = self._errors(clip, before, rate)
            _, wrong = self._errors(clip, after, rate)
            figures |= {"words": words, "words_wrong": wrong, "words_wrong_before": wrong_before}
        return figures

    def _errors(self, clip: str, samples: np.ndarray, rate: int) -> tuple[float, float]:
        from echotts.evaluation.asr import listen

        errors = listen(self.recogniser, self.texts[clip], samples, rate)
        return float(errors.words), float(errors.words_wrong)
