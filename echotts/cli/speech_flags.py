"""Flags of `echotts speak`, and the rules for them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from echotts.cli.sampler_flags import SamplerFlags
from echotts.synthesis.length import AutoDuration, Duration, as_duration, check_speed

STANDARD_STREAM = "-"
MOST_AT_ONCE = 64  # rows of a batch


@dataclass(frozen=True, kw_only=True)
class SpeechFlags:
    """The text, the voice and the model."""

    output: Path = Path("out.wav")
    """File to write (replaced if it exists): .wav, .flac, .ogg or .mp3. Missing folders are created. "-": standard
    output, for a player or another program; the speech starts before all of it is synthesised. With --script, the
    folder for the files of its rows."""
    text: str | None = None
    """Text to speak; "-": standard input, of which --output - speaks each sentence as soon as it is complete. This,
    --text_file or --script is required."""
    text_file: Path | None = None
    """UTF-8 file with the text to speak."""
    script: Path | None = None
    """Table of lines to speak, .jsonl or .csv with the columns text, voice, speaker_ref, pause, seed, duration, speed,
    output (docs/inference.md). Finished rows are not spoken again."""
    rows: int = 4
    """Rows of a --script that are synthesised at once."""
    speaker_ref: Path | None = None
    """Recording of the voice: any format, rate and channels, 0.5 to 300 seconds. None: a voice from the seed."""
    voice: str | None = None
    """Name of a saved voice (echotts voice save), instead of --speaker_ref."""
    checkpoint: str | None = None
    """Run directory (local or gs://bucket/run), one of its checkpoints, .safetensors, published .pkl or Hub id.
    Built in: demo, which speaks digits and is the default, and english."""
    adapter: str | None = None
    """Adapter (echotts train --tune lora): a .safetensors, or the run directory. It is merged into the checkpoint,
    which must be the one it was trained for."""
    codec: str | None = None
    """Codec instead of the one that the checkpoint names: weights.pth, .safetensors, directory or Hub id. Published
    checkpoints do not name one; the default is then facebook/dacvae-watermarked."""
    duration: Literal["auto"] | float = "auto"
    """auto: as long as the text takes, found by the model's duration predictor or else estimated from the text and the
    reference. Or the maximum for each piece in seconds; trailing silence is cropped. The model's longest window is a
    further limit."""
    duration_scale: float = 1.0
    """Factor on the found duration; above 1 for a voice that is slower than it seems. With --duration auto, as the next
    two."""
    duration_min: float = 0.0
    """Least duration to make room for, in seconds."""
    duration_max: float | None = None
    """Maximum duration of each piece in seconds, after which speech is cropped. None: the model's window."""
    speed: float = 1.0
    """Speed of the speech, 0.5 to 2; the pitch stays."""
    candidates: int = 1
    """Synthesise so many candidates of each piece at once and take the one with the fewest words wrong, then the most
    similar voice, as far as the extras asr and eval are installed, then the most usual duration."""
    language: str = "en"
    """Language in which --candidates are recognised."""
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
    """Embed a watermark that marks the speech as synthetic (docs/provenance.md)."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Computation dtype. None: float32 on a CPU, the model's own elsewhere."""

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.text, self.text_file, self.script)) != 1:
            raise ValueError("give either --text or --text_file or --script")
        if self.script is not None:
            self._check_script()
        if self.text is not None and not self.text.strip():
            raise ValueError("--text is empty")
        if self.voice is not None and self.speaker_ref is not None:
            raise ValueError("give --voice or --speaker_ref, not both")
        as_duration(self.length())
        check_speed(self.speed)
        for name, count in (("candidates", self.candidates), ("rows", self.rows)):
            if not 1 <= count <= MOST_AT_ONCE:
                raise ValueError(f"--{name} {count}: give a number from 1 to {MOST_AT_ONCE}")
        if self.live:
            self._check_live()
        self.check_sampling()
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed} must not be negative")
        if not -70 <= self.loudness <= 0:
            raise ValueError(f"--loudness {self.loudness} LUFS: give a value from -70 to 0")

    def length(self) -> Duration:
        """How long the speech may be. ValueError for flags of --duration auto beside seconds."""
        asked = AutoDuration(scale=self.duration_scale, least_s=self.duration_min, most_s=self.duration_max)
        if self.duration == "auto":
            return asked
        if asked != AutoDuration():
            raise ValueError(f"--duration {self.duration:g}: --duration_scale, _min and _max are for --duration auto")
        return self.duration

    @property
    def live(self) -> bool:
        """Whether the speech goes to standard output while it is made."""
        return str(self.output) == STANDARD_STREAM

    def _check_script(self) -> None:
        """ValueError for flags of a single text."""
        if self.live or self.output.suffix:
            raise ValueError(f"--output {self.output}: give the folder for the files of a --script")
        if self.save_latents is not None or self.normalise_text:
            raise ValueError("--save_latents and --normalise_text are for one text, not for a --script")

    def _check_live(self) -> None:
        """ValueError for flags that need the whole speech or the whole text."""
        if self.normalise not in (None, "clip", "none"):
            raise ValueError(f"--normalise {self.normalise} needs the whole speech: use clip or none with --output -")
        if self.save_latents is not None:
            raise ValueError("--save_latents needs a file as --output")
        if self.candidates > 1:
            raise ValueError("--candidates needs a file as --output")
        if self.normalise_text and self.text == STANDARD_STREAM:
            raise ValueError("--normalise_text needs the whole text: give a file as --output, or --text_file")
