"""`echotts eval`: measure how well a model speaks."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from echotts.cli.app import parse

if TYPE_CHECKING:
    from echotts.evaluation.clips import Clip
    from echotts.evaluation.report import Recording
    from echotts.synthesis import EchoTTS

PROG = "echotts eval"
ENROLMENT_CLIPS = 200  # a voice is known by the mean of about 40 clips: with 8 the recordings themselves match to 81 %

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Word error rate (pocketsphinx, digits) and voice match (nearest of the known voices, Resemblyzer) of a model.

    The model speaks texts it was not trained on, each in the voice of a reference clip. Beside it stand the recordings
    themselves, the codec's round trip, its own outputs judged by other texts, and noise. Needs the extra eval.
    """

    checkpoint: str | None = None
    """Run directory, here or gs://bucket/run, one of its checkpoints, .safetensors, published .pkl or Hub id.
    None: the demo model."""
    codec: str | None = None
    """Codec in place of the one the checkpoint names."""
    data: Path | None = None
    """Folder of audio shards of spoken digits, with splits train, heldout and reference. None: the built-in corpus."""
    count: int = 100
    """How many held-out texts are spoken."""
    seed: int = 0
    """The first text's seed; each next one counts up."""
    steps: int = 32
    """Euler steps from noise to speech."""
    cfg_scale: float = 3.0
    """Guidance towards text and voice together; 0 is none."""
    text_scale: float | None = None
    """Guidance towards the text alone; this or --speaker_scale takes the place of --cfg_scale."""
    speaker_scale: float | None = None
    """Guidance towards the voice alone."""
    guidance_interval: tuple[float, float] | None = None
    """Times t between which guidance acts, 1 = noise."""
    weights: Literal["ema", "raw"] = "ema"
    """Which weights of a run directory."""
    rows: int = 20
    """Utterances that are spoken at once."""
    output: Path | None = None
    """Also write the table as JSON."""
    save_audio: Path | None = None
    """Folder for what the model said, one .wav for each text."""

    def __post_init__(self) -> None:
        for name in ("count", "steps", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: at least 1 is needed")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: it must not be negative")


def main(argv: list[str]) -> int:
    """Parse, speak, listen, print the table; returns the exit code."""
    arguments = parse(Arguments, argv, prog=PROG)
    from echotts.audio import write_audio
    from echotts.data.prepare.demo import corpus_path
    from echotts.evaluation import report
    from echotts.evaluation.clips import read_clips
    from echotts.files import check_outputs, write_whole
    from echotts.synthesis import EchoTTS

    check_outputs(filter(None, [arguments.output, arguments.save_audio and arguments.save_audio / "clip.wav"]))
    data = arguments.data or corpus_path()
    clips = read_clips(data, "heldout", arguments.count)
    references = report.choose_references(clips, read_clips(data, "reference"))
    meter = report.Meter(read_clips(data, "train", ENROLMENT_CLIPS))
    tts = EchoTTS.load(arguments.checkpoint, arguments.codec, weights=arguments.weights)
    name = arguments.checkpoint or "demo model"
    began = time.perf_counter()
    spoken = speak(tts, clips, references, arguments)
    seconds = time.perf_counter() - began
    said_s = sum(len(samples) / rate for samples, rate in spoken)
    LOGGER.info("%d texts, %.1f s of audio, spoken in %.1f s; now listening", len(clips), said_s, seconds)
    if arguments.save_audio is not None:
        for clip, (samples, rate) in zip(clips, spoken, strict=True):
            write_audio(arguments.save_audio / f"{clip.key}_{clip.speaker}.wav", samples, rate)
    scores = report.measure(name, spoken, round_trip(tts, clips), clips, meter)
    print(report.format_table(scores))
    if arguments.output is not None:
        about = describe(arguments, tts, data, said_s / seconds)
        write_whole(arguments.output, (json.dumps(report.to_report(scores, about), indent=1) + "\n").encode())
    return 0


def speak(
    tts: "EchoTTS", clips: Sequence["Clip"], references: Sequence["Clip"], arguments: Arguments
) -> list["Recording"]:
    """Each clip's text in the voice of the reference beside it."""
    from echotts.evaluation.clips import RATE_HZ
    from echotts.flow.sampling import SamplerConfig

    sampler = SamplerConfig(
        steps=arguments.steps,
        cfg_scale=arguments.cfg_scale,
        text_scale=arguments.text_scale,
        speaker_scale=arguments.speaker_scale,
        interval=arguments.guidance_interval,
    )
    heard = int(tts.reference_window_s * RATE_HZ)
    speeches = tts.synthesize_batch(
        [clip.text for clip in clips],
        [(reference.samples[:heard], RATE_HZ) for reference in references],
        seeds=range(arguments.seed, arguments.seed + len(clips)),
        sampler=sampler,
        rows=arguments.rows,
    )
    return [(speech.samples, speech.sample_rate) for speech in speeches]


def round_trip(tts: "EchoTTS", clips: Sequence["Clip"]) -> list["Recording"]:
    """Each clip through the codec and back, at the codec's rate."""
    from echotts.evaluation.clips import RATE_HZ

    return [(tts.round_trip(clip.samples, RATE_HZ), tts.sample_rate) for clip in clips]


def describe(arguments: Arguments, tts: "EchoTTS", data: Path, speed: float) -> dict[str, Any]:
    """What was measured and how, JSON-ready."""
    return {
        "checkpoint": arguments.checkpoint or "demo",
        "step": tts.metadata.get("step"),
        "weights": tts.metadata.get("weights"),
        "codec": tts.codec.codec_id,
        "data": data.name,
        "seed": arguments.seed,
        "steps": arguments.steps,
        "cfg_scale": arguments.cfg_scale,
        "text_scale": arguments.text_scale,
        "speaker_scale": arguments.speaker_scale,
        "audio_s_per_s": round(speed, 3),
    }
