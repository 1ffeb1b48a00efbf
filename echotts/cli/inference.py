"""`echotts speak`: speak a text into a file."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from echotts.cli.app import UsageError, parse
from echotts.cli.sampler_flags import SamplerFlags

PROG = "echotts speak"


@dataclass(frozen=True, kw_only=True)
class SpeechFlags:
    """What is said, by what and whose voice."""

    output: Path = Path("out.wav")
    """File to write, over what was there: .wav, .flac, .ogg or .mp3. A missing folder is made."""
    text: str | None = None
    """What to say. This or --text_file is needed."""
    text_file: Path | None = None
    """File that holds what to say, UTF-8."""
    speaker_ref: Path | None = None
    """Recording of the voice: any format, rate and channels, 0.5 to 300 seconds. None: one made up from the seed."""
    voice: str | None = None
    """Name of a saved voice (echotts voice save), instead of --speaker_ref."""
    checkpoint: str | None = None
    """Run directory (gs://bucket/run too), one of its checkpoints, .safetensors, published .pkl or Hub id.
    None: the built-in demo model, which says digits."""
    codec: str | None = None
    """Codec instead of the one that the checkpoint names: weights.pth, .safetensors, directory or Hub id. Published
    checkpoints name none: then facebook/dacvae-watermarked."""
    duration: float = 15.0
    """Maximum duration in seconds; trailing silence is cropped. Each model also has a longest window of its own."""
    seed: int = 42
    """Seed of the noise, and so of the voice where no reference is given; the same seed gives the same file."""


@dataclass(frozen=True, kw_only=True)
class Arguments(SamplerFlags, SpeechFlags):
    """Speak a text, in the voice of a recording or in one made up from the seed, into a file."""

    normalise: Literal["peak", "rms", "clip", "loudness", "none"] = "peak"
    """Level of the output: largest sample at -1 dB, RMS at -18 dB, cut at -1 dB, --loudness, or as it comes."""
    loudness: float = -14.0
    """Loudness in LUFS for --normalise loudness."""
    mp3_rate: int = 320
    """Bit rate of an .mp3, kbit/s; below 32 kHz mp3 ends at 160, below 16 kHz at 64."""
    save_latents: Path | None = None
    """Also write the latents, float32 (frames, channels), as .npy."""
    normalise_text: bool = False
    """Write quotes, colons and dashes as Echo's training texts have them; only for models trained on such texts."""
    weights: Literal["ema", "raw"] = "ema"
    """Which weights of a run directory."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Computation in this type. None: float32 on a CPU, the model's own elsewhere."""

    def __post_init__(self) -> None:
        if (self.text is None) == (self.text_file is None):
            raise ValueError("give --text or --text_file, one of the two")
        if self.text is not None and not self.text.strip():
            raise ValueError("--text is empty: there is nothing to say")
        if self.voice is not None and self.speaker_ref is not None:
            raise ValueError("give --voice or --speaker_ref, not both")
        if not 0 < self.duration < float("inf"):
            raise ValueError(f"--duration {self.duration} s: give the maximum duration in seconds, above 0")
        self.check_sampling()
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: it must not be negative")
        if not -70 <= self.loudness <= 0:
            raise ValueError(f"--loudness {self.loudness} LUFS: give a value from -70 to 0")


def main(argv: list[str]) -> int:
    """Parse, load, speak, write; returns the exit code."""
    arguments = parse(Arguments, argv, prog=PROG)
    text = read_text(arguments)
    check_files(arguments)
    from echotts.synthesis.locate import DEMO, locate_checkpoint
    from echotts.synthesis.references import check_recording

    reference = arguments.speaker_ref
    if arguments.voice is not None:
        from echotts.synthesis.voices import find_voice

        reference = find_voice(arguments.voice)
    if reference is not None:
        check_recording(reference)
    sampler = arguments.sampler()
    checkpoint = None if arguments.checkpoint in (None, DEMO) else locate_checkpoint(arguments.checkpoint)
    from echotts.synthesis import EchoTTS  # with jax, whose import takes longer than these checks
    from echotts.synthesis.longform import joined

    began = time.perf_counter()
    tts = EchoTTS.load(checkpoint, arguments.codec, weights=arguments.weights, dtype=arguments.dtype)
    loaded = time.perf_counter()
    pieces = tts.stream(text, reference, seed=arguments.seed, duration=arguments.duration, sampler=sampler)
    speech = joined(list(pieces))
    spoken = time.perf_counter()
    speech.save(arguments.output, arguments.normalise, loudness_lufs=arguments.loudness, mp3_rate=arguments.mp3_rate)
    if arguments.save_latents is not None:
        speech.save_latents(arguments.save_latents)
    print(
        f"{arguments.output}: {speech.duration_s:.2f} s at {speech.sample_rate} Hz, spoken in {spoken - loaded:.2f} s "
        f"({speech.duration_s / (spoken - loaded):.2f} s of audio per second, compilation included), "
        f"loaded in {loaded - began:.2f} s"
    )
    return 0


def check_files(arguments: Arguments) -> None:
    """The outputs can be written and would not replace what is read; OSError or ValueError where not."""
    from echotts.audio import check_mp3_rate, check_suffix
    from echotts.files import check_outputs

    check_mp3_rate(arguments.mp3_rate)
    outputs = [check_suffix(arguments.output), arguments.save_latents]
    inputs = [arguments.speaker_ref, arguments.text_file, arguments.checkpoint, arguments.codec]
    check_outputs(filter(None, outputs), filter(None, inputs))


def read_text(arguments: Arguments) -> str:
    """What to say, from the flag or the file; UsageError where the file holds nothing."""
    if arguments.text is not None:
        text = arguments.text
    else:
        assert arguments.text_file is not None
        from echotts import files

        text = files.read_text(arguments.text_file).strip()
        if not text:
            raise UsageError(f"{arguments.text_file}: is empty: there is nothing to say")
    if arguments.normalise_text:
        from echotts.text.tokens import normalise_text

        text = normalise_text(text)
    return text
