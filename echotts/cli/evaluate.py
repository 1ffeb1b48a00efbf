"""`echotts eval`: measures the quality of a model's speech."""

import dataclasses
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from echotts.cli.app import parse
from echotts.cli.sampler_flags import SamplerFlags

if TYPE_CHECKING:
    from echotts.evaluation.clips import Task
    from echotts.evaluation.report import Recording
    from echotts.synthesis import EchoTTS

PROG = "echotts eval"
RATE_HZ = 16000  # sample rate of the clips

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MeasuredFlags:
    """The model, the recogniser and the texts of an evaluation."""

    checkpoint: str | None = None
    """Run directory (local or gs://bucket/run), one of its checkpoints, .safetensors, published .pkl or Hub id.
    Built in: demo, the default, and english."""
    codec: str | None = None
    """Codec to use instead of the one that the checkpoint names."""
    against: str | None = None
    """A second checkpoint, evaluated on the same texts and seeds; prints the difference."""
    asr: str = "digits"
    """Recogniser: digits (pocketsphinx), base or tiny.en (Whisper, in the extra asr), a folder with a Whisper model in
    CTranslate2's format, or a Hub id such as Systran/faster-whisper-base.en."""
    language: str = "en"
    """Language for Whisper."""
    data: Path | None = None
    """Texts and references: a folder of audio shards with splits train, heldout and reference, a table of recordings
    (metadata.jsonl of `data speak`), or a list in the layout of seed-tts-eval (.lst). None: the built-in digits."""
    count: int = 150
    """Number of held-out texts."""
    seed: int = 0
    """Seed of the first text; the following ones count up."""


@dataclass(frozen=True, kw_only=True)
class Arguments(SamplerFlags, MeasuredFlags):
    """Measure word errors and voice similarity of a model's speech, with a recogniser and a speaker encoder.

    The model speaks texts it was not trained on, each in the voice of a reference clip. The table also has the original
    recordings, the codec's round trip, the model's output scored against other texts, and noise. Digits need the extra
    eval, any other text the extras eval and asr.
    """

    weights: Literal["ema", "raw"] = "ema"
    """Weights to take from a run directory."""
    rows: int = 20
    """Utterances synthesised at once."""
    output: Path | None = None
    """Also write the table as JSON."""
    report: Path | None = None
    """Folder for a page with players, results.jsonl (one line per clip) and table.json."""
    save_audio: Path | None = None
    """Folder for the model's speech, one .wav per text."""

    def __post_init__(self) -> None:
        self.check_sampling()
        for name in ("count", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)} must be at least 1")
        if self.against is not None and self.against == self.checkpoint:
            raise ValueError(f"--against {self.against} is the same as --checkpoint")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed} must not be negative")


def main(argv: list[str]) -> int:
    """Parses the arguments, synthesises, evaluates, prints the table; returns the exit code."""
    arguments = parse(Arguments, argv, prog=PROG)
    from echotts.synthesis.locate import locate_checkpoint

    if arguments.data is not None and not arguments.data.exists():
        raise FileNotFoundError(f"{arguments.data}: no such file or folder")
    for checkpoint in (arguments.checkpoint, arguments.against):
        locate_checkpoint(checkpoint)
    from echotts.data.prepare.demo import corpus_path
    from echotts.evaluation import report
    from echotts.evaluation.asr import load_recogniser
    from echotts.evaluation.clips import read_tasks
    from echotts.evaluation.page import write_report
    from echotts.files import check_outputs, write_json

    folders = [folder and folder / "clip.wav" for folder in (arguments.report, arguments.save_audio)]
    check_outputs(filter(None, [arguments.output, *folders]))
    data = arguments.data or corpus_path()
    tasks, enrolment = read_tasks(data, arguments.count)
    evaluator = report.Evaluator(load_recogniser(arguments.asr, arguments.language), enrolment)
    for task in tasks:
        evaluator.recogniser.normalise(task.text)  # raises for a text that cannot be scored
    said, tts, about = speak_all(arguments.checkpoint, tasks, arguments, data)
    spoken = {arguments.checkpoint or "demo model": said}
    about["asr"] = evaluator.recogniser.name
    if arguments.against is not None:
        spoken[arguments.against], _, about["against"] = speak_all(arguments.against, tasks, arguments, data)
    decoded = [(tts.round_trip(task.recording.samples, RATE_HZ), tts.sample_rate) for task in tasks]
    scores = report.measure(spoken, decoded, tasks, evaluator)
    print(report.format_table(scores))
    if arguments.against is not None:
        change, (low, high) = report.difference(*scores[:2])
        print(f"{scores[1].system} against {scores[0].system}: word errors {change:+.1%} ({low:+.1%} to {high:+.1%})")
        about |= {"word_error_rate_change": change, "word_error_rate_change_95": [low, high]}
    if arguments.output is not None:
        write_json(arguments.output, report.to_report(scores, about))
    if arguments.report is not None:
        write_report(arguments.report, scores, tasks, spoken, decoded, about)
        print(f"{arguments.report / 'index.html'}: clips with players")
    return 0


def speak_all(
    checkpoint: str | None, tasks: Sequence["Task"], arguments: Arguments, data: Path
) -> tuple[list["Recording"], "EchoTTS", dict[str, Any]]:
    """Speech of a checkpoint for every task, the model, and how it was measured."""
    from echotts.audio import write_audio
    from echotts.synthesis import EchoTTS

    tts = EchoTTS.load(checkpoint, arguments.codec, weights=arguments.weights)
    began = time.perf_counter()
    spoken = speak(tts, tasks, arguments)
    seconds = time.perf_counter() - began
    said_s = sum(len(samples) / rate for samples, rate in spoken)
    LOGGER.info("%d texts, %.1f s of audio, synthesised in %.1f s; now evaluating", len(tasks), said_s, seconds)
    if arguments.save_audio is not None and checkpoint == arguments.checkpoint:
        for task, (samples, rate) in zip(tasks, spoken, strict=True):
            speaker = re.sub(r"[^A-Za-z0-9_.-]+", "-", task.speaker)
            write_audio(arguments.save_audio / f"{task.key}_{speaker}.wav", samples, rate, model=tts.name)
    return spoken, tts, describe(checkpoint, arguments, tts, data, said_s / seconds)


def speak(tts: "EchoTTS", tasks: Sequence["Task"], arguments: Arguments) -> list["Recording"]:
    """Synthesises each task's text in the voice of its reference."""
    heard = int(tts.reference_window_s * RATE_HZ)
    speeches = tts.synthesize_batch(
        [task.text for task in tasks],
        [(task.reference.samples[:heard], RATE_HZ) for task in tasks],
        seeds=range(arguments.seed, arguments.seed + len(tasks)),
        sampler=arguments.sampler(tts.has_student),
        rows=arguments.rows,
    )
    return [(speech.samples, speech.sample_rate) for speech in speeches]


def describe(checkpoint: str | None, arguments: Arguments, tts: "EchoTTS", data: Path, speed: float) -> dict[str, Any]:
    """What was measured and how, JSON-serialisable."""
    return {
        "checkpoint": checkpoint or "demo",
        "step": tts.facts.step,
        "weights": tts.facts.weights,
        "codec": tts.codec.codec_id,
        "data": data.name,
        "seed": arguments.seed,
        "sampler": dataclasses.asdict(arguments.sampler(tts.has_student)),
        "audio_s_per_s": round(speed, 3),
    }
