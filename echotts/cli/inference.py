"""`echotts speak`: synthesises a text to a file, or live to standard output."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from echotts.cli import piped
from echotts.cli.app import UsageError, parse
from echotts.cli.sampler_flags import SamplerFlags

PROG = "echotts speak"
STANDARD_STREAM = "-"


@dataclass(frozen=True, kw_only=True)
class SpeechFlags:
    """The text, the voice and the model."""

    output: Path = Path("out.wav")
    """File to write (replaced if it exists): .wav, .flac, .ogg or .mp3. Missing folders are created. "-": standard
    output, for a player or another program; the speech starts before all of it is synthesised."""
    text: str | None = None
    """Text to speak; "-": standard input, of which --output - speaks each sentence as soon as it is complete. Either
    this or --text_file is required."""
    text_file: Path | None = None
    """UTF-8 file with the text to speak."""
    speaker_ref: Path | None = None
    """Recording of the voice: any format, rate and channels, 0.5 to 300 seconds. None: a voice from the seed."""
    voice: str | None = None
    """Name of a saved voice (echotts voice save), instead of --speaker_ref."""
    checkpoint: str | None = None
    """Run directory (local or gs://bucket/run), one of its checkpoints, .safetensors, published .pkl or Hub id.
    None: the built-in demo model, which speaks digits."""
    adapter: str | None = None
    """Adapter (echotts train --tune lora): a .safetensors, or the run directory. It is merged into the checkpoint,
    which must be the one it was trained for."""
    codec: str | None = None
    """Codec instead of the one that the checkpoint names: weights.pth, .safetensors, directory or Hub id. Published
    checkpoints do not name one; the default is then facebook/dacvae-watermarked."""
    duration: float = 15.0
    """Maximum duration in seconds; trailing silence is cropped. The model's longest window is a further limit."""
    seed: int = 42
    """Seed of the noise, and without a reference also of the voice; the same seed gives the same file."""


@dataclass(frozen=True, kw_only=True)
class Arguments(SamplerFlags, SpeechFlags):
    """Speak a text to a file, in the voice of a recording or in one determined by the seed."""

    pipe: Literal["wav", "raw"] = "wav"
    """Format of --output -: a .wav whose header leaves the length open, or raw samples; both 16 bit, mono."""
    normalise: Literal["peak", "rms", "clip", "loudness", "none"] | None = None
    """Output level: peak at -1 dB, RMS at -18 dB, clipped at -1 dB, --loudness, or unchanged. None: peak; with
    --output -, which does not know the rest of the speech, clip."""
    loudness: float = -14.0
    """Loudness in LUFS for --normalise loudness."""
    mp3_rate: int = 320
    """Bit rate of an .mp3, kbit/s; at most 160 below 32 kHz and 64 below 16 kHz."""
    save_latents: Path | None = None
    """Also write the latents, float32 (frames, channels), as .npy."""
    normalise_text: bool = False
    """Convert quotes, colons and dashes to the form in Echo's training texts; only for models trained on such texts."""
    raw_text: bool = False
    """Keep markup, emoji and control characters in the text; for models trained with them (docs/inference.md)."""
    weights: Literal["ema", "raw"] = "ema"
    """Weights to take from a run directory."""
    watermark: Literal["on", "off"] = "on"
    """Embed the codec's watermark, if it has one (docs/provenance.md)."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Computation dtype. None: float32 on a CPU, the model's own elsewhere."""

    def __post_init__(self) -> None:
        if (self.text is None) == (self.text_file is None):
            raise ValueError("give either --text or --text_file")
        if self.text is not None and not self.text.strip():
            raise ValueError("--text is empty")
        if self.voice is not None and self.speaker_ref is not None:
            raise ValueError("give --voice or --speaker_ref, not both")
        if not 0 < self.duration < float("inf"):
            raise ValueError(f"--duration {self.duration} s: give the maximum duration in seconds, above 0")
        if self.live:
            self._check_live()
        self.check_sampling()
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed} must not be negative")
        if not -70 <= self.loudness <= 0:
            raise ValueError(f"--loudness {self.loudness} LUFS: give a value from -70 to 0")

    @property
    def live(self) -> bool:
        """Whether the speech goes to standard output while it is made."""
        return str(self.output) == STANDARD_STREAM

    def _check_live(self) -> None:
        """ValueError for flags that need the whole speech or the whole text."""
        if self.normalise not in (None, "clip", "none"):
            raise ValueError(f"--normalise {self.normalise} needs the whole speech: use clip or none with --output -")
        if self.save_latents is not None:
            raise ValueError("--save_latents needs a file as --output")
        if self.normalise_text and self.text == STANDARD_STREAM:
            raise ValueError("--normalise_text needs the whole text: give a file as --output, or --text_file")


def main(argv: list[str]) -> int:
    """Parses the arguments, loads, synthesises, writes; returns the exit code."""
    arguments = parse(Arguments, argv, prog=PROG)
    if arguments.live:
        piped.check_standard_output()
    text = piped.arriving_text() if arguments.live and arguments.text == STANDARD_STREAM else read_text(arguments)
    reference = arguments.speaker_ref
    if arguments.voice is not None:
        from echotts.synthesis.voices import find_voice

        reference = find_voice(arguments.voice)
    check_files(arguments, reference)
    from echotts.synthesis.locate import DEMO, locate_checkpoint
    from echotts.synthesis.references import check_recording

    if reference is not None:
        check_recording(reference)
    sampler = arguments.sampler()
    checkpoint = None if arguments.checkpoint in (None, DEMO) else locate_checkpoint(arguments.checkpoint)
    from echotts.synthesis import EchoTTS  # imports jax, which takes longer than the checks above
    from echotts.synthesis.longform import joined

    began = time.perf_counter()
    tts = EchoTTS.load(
        checkpoint,
        arguments.codec,
        weights=arguments.weights,
        dtype=arguments.dtype,
        adapter=arguments.adapter,
        watermark=arguments.watermark == "on",
    )
    tts.raw_text = arguments.raw_text
    loaded = time.perf_counter()
    if arguments.live:
        blocks = tts.stream(text, reference, seed=arguments.seed, duration=arguments.duration, sampler=sampler)
        written = piped.write(blocks, arguments.pipe, arguments.normalise or "clip")
        print(f"{written}, loaded in {loaded - began:.2f} s", file=sys.stderr)
        return 0
    assert isinstance(text, str)
    pieces = tts.pieces(text, reference, seed=arguments.seed, duration=arguments.duration, sampler=sampler)
    speech = joined(list(pieces))
    spoken = time.perf_counter()
    level = arguments.normalise or "peak"
    speech.save(arguments.output, level, loudness_lufs=arguments.loudness, mp3_rate=arguments.mp3_rate)
    if arguments.save_latents is not None:
        speech.save_latents(arguments.save_latents)
    took_s = spoken - loaded
    print(
        f"{arguments.output}: {speech.duration_s:.2f} s at {speech.sample_rate} Hz, synthesised in {took_s:.2f} s "
        f"({speech.duration_s / took_s:.2f} s of audio per second, compilation included), "
        f"loaded in {loaded - began:.2f} s"
    )
    return 0


def check_files(arguments: Arguments, reference: Path | None) -> None:
    """Checks that the outputs can be written and would not replace an input; OSError or ValueError if not."""
    from echotts.audio import check_mp3_rate, check_suffix
    from echotts.files import check_outputs

    check_mp3_rate(arguments.mp3_rate)
    outputs = [] if arguments.live else [check_suffix(arguments.output), arguments.save_latents]
    inputs = [reference, arguments.text_file, arguments.checkpoint, arguments.adapter, arguments.codec]
    check_outputs(filter(None, outputs), filter(None, inputs))


def read_text(arguments: Arguments) -> str:
    """The text to speak, from the flag, standard input or the file; UsageError if the input or file is empty."""
    if arguments.text == STANDARD_STREAM:
        text = "".join(piped.arriving_text()).strip()
        if not text:
            raise UsageError("standard input: there is no text")
    elif arguments.text is not None:
        text = arguments.text
    else:
        assert arguments.text_file is not None
        from echotts import files

        text = files.read_text(arguments.text_file).strip()
        if not text:
            raise UsageError(f"{arguments.text_file}: the file is empty")
    if arguments.normalise_text:
        from echotts.text.tokens import normalise_text

        text = normalise_text(text)
    return text
