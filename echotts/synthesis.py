"""Text, and a voice if wanted, to speech: a checkpoint, its codec and the sampler behind one class.

    tts = EchoTTS.load("model.safetensors")
    tts.synthesize("Hello.", speaker_ref="ref.mp3", seed=42).save("hello.wav")

Everything is compiled once per bucket: frames, tokens and reference frames are rounded up to quarters of what the
model was trained with. Conditions are encoded once per utterance.
"""

import dataclasses
import io
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from echotts.audio import (
    OUTPUT_LOUDNESS_LUFS,
    Samples,
    duration_s,
    loudness_normalise,
    read_audio,
    resample,
    trim_silence,
    write_audio,
    write_whole,
)
from echotts.buckets import is_bucket
from echotts.config import DataConfig, DtypeName, ModelConfig
from echotts.flow.sampling import SamplerConfig, encode_conditions, sample
from echotts.model import Params, build
from echotts.model.fused import choose_attention
from echotts.text import Tokenizer, tokenizer_from_json

DEMO_MODEL = Path(__file__).parent / "assets" / "model" / "demo.safetensors"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILE = "model.safetensors"
DEFAULT_DURATION_S = 15.0
QUARTERS = 4  # buckets a checkpoint's largest sizes are cut into
BATCH_ROWS = 16

REFERENCE_LIMIT_S = 300.0
REFERENCE_LEAST_S = 0.5
REFERENCE_LOUDNESS_LUFS = -16.0  # as data preparation leaves recordings
CODEC_CONTEXT_FRAMES = 8  # what a codec frame can depend on, each side (docs/codec.md)

SILENT_WINDOW_FRAMES = 20
SILENT_SHARE = 0.35  # of the loud frames' distance to silence; measured: speech 0.3 to 1.2, encoded silence below 0.29
LOUD_FRAMES = 5  # the loudest but four is what loud means: a click does not count, a word of 0.2 s does
KEPT_TAIL_FRAMES = 1
ENERGY_THRESHOLD_DB = -40.0

logger = logging.getLogger(__name__)

SpeakerReference = str | Path | tuple[Samples, int] | np.ndarray
"""A recording of the voice: a file, (mono samples, rate in Hz), or its latent (m, c) by the model's codec."""


@runtime_checkable
class Codec(Protocol):
    """What this module needs of a codec (echotts.codec.load_codec)."""

    @property
    def sample_rate(self) -> int: ...

    @property
    def hop_length(self) -> int: ...

    @property
    def latent_channels(self) -> int: ...

    @property
    def codec_id(self) -> str: ...

    def encode(self, audio: Any, /) -> Any: ...

    def decode(self, latents: Any, /) -> Any: ...

    def silence_latent(self, frames: int) -> Any: ...


@dataclass(frozen=True)
class Speech:
    """What was said. `latents` are what the codec made `samples` from, cropped alike."""

    samples: Float[np.ndarray, " n"]
    sample_rate: int
    latents: Float[np.ndarray, "t c"]

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.sample_rate

    def save(self, path: str | Path, normalise: str = "peak", *, loudness_lufs: float = OUTPUT_LOUDNESS_LUFS) -> Path:
        """Writes .wav, .flac, .ogg or .mp3; `normalise` and errors as in `echotts.audio.write_audio`."""
        write_audio(path, self.samples, self.sample_rate, normalise, loudness_lufs=loudness_lufs)
        return Path(path)

    def save_latents(self, path: str | Path) -> Path:
        """Writes the latents as .npy, float32 (frames, channels)."""
        buffer = io.BytesIO()
        np.save(buffer, self.latents)
        write_whole(Path(path), buffer.getvalue())
        return Path(path)


@dataclass(frozen=True)
class Limits:
    """The largest sizes a model was trained with: latent frames, tokens (BOS included), reference frames."""

    frames: int
    tokens: int
    reference_frames: int

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> "Limits":
        """Those of a checkpoint; a published one does not say, then those of published training."""
        if "buckets" in metadata:
            return cls(**metadata["buckets"])
        data = DataConfig()
        return cls(data.buckets[-1].frames, data.buckets[-1].tokens, data.reference_frames)


class EchoTTS:
    """A model with its codec, ready to speak. Make one with `load`."""

    def __init__(self, params: Params, config: ModelConfig, metadata: Mapping[str, Any], codec: Codec) -> None:
        """`metadata` as in an export's header; ValueError where the codec or the tokenizer does not fit the model."""
        if codec.latent_channels != config.latent_channels:
            raise ValueError(
                f"the model makes latents of {config.latent_channels} channels, the codec {codec.codec_id} takes "
                f"{codec.latent_channels}: give the codec the model was trained with"
            )
        self.tokenizer: Tokenizer = tokenizer_from_json(metadata.get("tokenizer", {"kind": "byte"}))
        if self.tokenizer.vocabulary > config.vocabulary:
            raise ValueError(
                f"the checkpoint's tokenizer has {self.tokenizer.vocabulary} ids, its model knows {config.vocabulary}"
            )
        self.config = config
        self.codec = codec
        self.limits = Limits.of(metadata)
        self.metadata = dict(metadata)
        silence = metadata.get("silence")
        self.silence = np.asarray(_codec_silence(codec) if silence is None else silence, np.float32)  # (1, c)
        attend = choose_attention(jax.default_backend(), config)
        self._model = build(dataclasses.replace(config, remat="none"), params, attend=attend)

    @classmethod
    def load(
        cls,
        checkpoint: str | Path | None = None,
        codec: str | Path | None = None,
        *,
        weights: Literal["ema", "raw"] = "ema",
        dtype: DtypeName | None = None,
    ) -> "EchoTTS":
        """Run directory (gs:// too), one of its checkpoints, .safetensors, .pkl or Hub id; None is the demo model.

        The codec is found by what the checkpoint says of it; `codec` names another. `weights` ("ema" or "raw") chooses
        in a run directory. `dtype` of the computation is float32 on a CPU and the model's own elsewhere.
        Raises FileNotFoundError, OSError or ValueError with one line.
        """
        path = locate_checkpoint(checkpoint)
        # Here, not above: Orbax, which reads run directories, takes longer to import than everything else.
        from echotts.codec.registry import find_codec
        from echotts.training.export import load_weights

        loaded = load_weights(path, weights)
        about = loaded.metadata.get("codec") or {}
        if codec is None and not about.get("id") and not about.get("weights_hash"):
            raise ValueError(f"{path}: does not say which codec its latents are of: give one with --codec")
        found = find_codec(about.get("id"), about.get("weights_hash"), override=codec)
        dtype = dtype or ("float32" if jax.default_backend() == "cpu" else loaded.config.compute_dtype)
        config = dataclasses.replace(loaded.config, compute_dtype=dtype)
        try:
            return cls(loaded.params, config, loaded.metadata, found)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @property
    def sample_rate(self) -> int:
        return self.codec.sample_rate

    @property
    def frame_rate_hz(self) -> float:
        return self.codec.sample_rate / self.codec.hop_length

    @property
    def window_s(self) -> float:
        """The longest speech the model was trained to make, in seconds."""
        return self.limits.frames / self.frame_rate_hz

    @property
    def reference_window_s(self) -> float:
        """How much of a reference the model hears, in seconds."""
        return self.limits.reference_frames / self.frame_rate_hz

    def synthesize(
        self,
        text: str,
        speaker_ref: SpeakerReference | None = None,
        *,
        seed: int = 0,
        duration: float = DEFAULT_DURATION_S,
        steps: int = 32,
        cfg_scale: float = 3.0,
        text_scale: float | None = None,
        speaker_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        time_scale: float = 1.0,
        truncation: float = 1.0,
    ) -> Speech:
        """Speaks `text` in the voice of `speaker_ref`, or in one made up from the seed. The same seed, the same speech.

        `duration` is the most seconds; the silent tail is cropped. Guidance: see `flow.sampling.SamplerConfig`.
        Raises ValueError for empty or too long a text and for a reference that is silent, too short or unreadable.
        """
        sampler = SamplerConfig(
            steps=steps,
            cfg_scale=cfg_scale,
            text_scale=text_scale,
            speaker_scale=speaker_scale,
            interval=guidance_interval,
            time_scale=time_scale,
            truncation=truncation,
        )
        return self.synthesize_batch([text], [speaker_ref], seeds=[seed], duration=duration, sampler=sampler)[0]

    def synthesize_batch(
        self,
        texts: Sequence[str],
        speaker_refs: Sequence[SpeakerReference | None] | None = None,
        *,
        seeds: Sequence[int] | None = None,
        duration: float = DEFAULT_DURATION_S,
        sampler: SamplerConfig | None = None,
        rows: int = BATCH_ROWS,
    ) -> list[Speech]:
        """Many utterances, `rows` at a time through one compiled shape. `seeds` are 0, 1, 2, ... by default."""
        if not texts:
            return []
        rows = min(rows, len(texts))
        refs = list(speaker_refs) if speaker_refs is not None else [None] * len(texts)
        seeds = list(seeds) if seeds is not None else list(range(len(texts)))
        if not len(texts) == len(refs) == len(seeds):
            raise ValueError(
                f"{len(texts)} texts, {len(refs)} references and {len(seeds)} seeds: give one for each text"
            )
        most = self._most_frames(duration)
        ids = [self._encode_text(text) for text in texts]
        references = [self.encode_reference(ref) if ref is not None else None for ref in refs]
        tokens = _rounded(max(map(len, ids)), self.limits.tokens)
        reference_frames = _rounded(
            max(1 if latent is None else len(latent) for latent in references),
            self.limits.reference_frames,
            self.config.patch,
        )
        frames = _rounded(most, self.limits.frames)
        speeches: list[Speech] = []
        for start in range(0, len(texts), rows):
            chosen = [min(row, len(texts) - 1) for row in range(start, start + rows)]
            text = _padded([ids[i] for i in chosen], tokens)
            speaker = self._padded_references([references[i] for i in chosen], reference_frames)
            noise = np.stack([make_noise(seeds[i], frames, self.config.latent_channels) for i in chosen])
            conditions = encode_conditions(self._model, *map(jnp.asarray, (*text, *speaker)))
            latents = np.asarray(sample(self._model, conditions, jnp.asarray(noise), sampler or SamplerConfig()))
            speeches += [self._finish(latent[:most]) for latent in latents[: len(texts) - start]]
        return speeches

    def round_trip(self, samples: Samples, rate: int) -> Samples:
        """A recording through the codec and back, at the codec's rate and of the same length: what speech can be."""
        heard = loudness_normalise(resample(samples, rate, self.sample_rate), self.sample_rate, REFERENCE_LOUDNESS_LUFS)
        return np.asarray(self.codec.decode(self.codec.encode(heard[None])), np.float32)[0, : len(heard)]

    def encode_reference(self, reference: SpeakerReference) -> Float[np.ndarray, "m c"]:
        """The latent of a voice, at most the model's reference window long; what is cut is logged.

        Raises ValueError for a recording that is unreadable, silent or shorter than half a second.
        """
        window = self.limits.reference_frames
        if isinstance(reference, np.ndarray):
            return self._check_latent(reference)[:window]
        samples, name = self._read_reference(reference)
        check_reference(samples, self.sample_rate, name)
        seconds = len(samples) / self.sample_rate
        if seconds > self.reference_window_s:
            logger.warning(
                "%s: %.1f s long, the first %.1f s are used (the model's window for references)",
                name,
                seconds,
                self.reference_window_s,
            )
        level = loudness_normalise(samples, self.sample_rate, REFERENCE_LOUDNESS_LUFS)
        heard = level[: (window + CODEC_CONTEXT_FRAMES) * self.codec.hop_length]
        return np.asarray(self.codec.encode(heard[None]), np.float32)[0, :window]

    def _check_latent(self, latent: np.ndarray) -> Float[np.ndarray, "m c"]:
        channels = self.config.latent_channels
        if latent.ndim != 2 or not len(latent) or latent.shape[1] != channels:
            raise ValueError(f"reference: a latent of shape {latent.shape}, the model takes (frames, {channels})")
        return latent.astype(np.float32)

    def _read_reference(self, reference: str | Path | tuple[Samples, int]) -> tuple[Samples, str]:
        if isinstance(reference, tuple):
            samples, rate = reference
            if not np.isfinite(samples).all():
                raise ValueError("reference: holds samples that are not finite (NaN or infinite)")
            return resample(np.asarray(samples, np.float32), rate, self.sample_rate), "reference"
        if duration_s(reference) > REFERENCE_LIMIT_S:
            logger.warning("%s: longer than %.0f s, the rest is not read", reference, REFERENCE_LIMIT_S)
        return read_audio(reference, self.sample_rate, limit_s=REFERENCE_LIMIT_S), str(reference)

    def _encode_text(self, text: str) -> Int[np.ndarray, " n"]:
        if not text.strip():
            raise ValueError("the text is empty: there is nothing to say")
        return self.tokenizer.encode(text, self.limits.tokens)

    def _most_frames(self, duration: float) -> int:
        """The frames of `duration`, at most the model's window; a shorter one is logged where it was asked for."""
        if not 0 < duration < np.inf:
            raise ValueError(f"duration {duration} s: give the most seconds of speech, more than 0")
        if duration > self.window_s and duration != DEFAULT_DURATION_S:
            logger.warning("duration %.2f s: the model makes at most %.2f s at once", duration, self.window_s)
        return min(max(1, round(duration * self.frame_rate_hz)), self.limits.frames)

    def _padded_references(
        self, references: Sequence[Float[np.ndarray, "_m c"] | None], frames: int
    ) -> tuple[Float[np.ndarray, "b m c"], Bool[np.ndarray, "b m"]]:
        """Zeros behind the end; a voice that is not given has an empty mask, the dropped condition of training."""
        latent = np.zeros((len(references), frames, self.config.latent_channels), np.float32)
        lengths = np.zeros((len(references), 1), int)
        for row, reference in enumerate(references):
            if reference is not None:
                latent[row, : len(reference)] = reference
                lengths[row] = len(reference)
        return latent, np.arange(frames) < lengths

    def _finish(self, latents: Float[np.ndarray, "t c"]) -> Speech:
        """Crops the silent tail, decodes with the context a codec frame needs, trims the samples alike."""
        end = find_end(latents, self.silence, silent_window(self.limits.frames))
        known = end is not None
        decoded = latents if end is None else latents[: end + CODEC_CONTEXT_FRAMES]
        samples = np.asarray(self.codec.decode(decoded[None]), np.float32)[0]
        if not known:
            end = energy_end(samples, self.sample_rate, self.codec.hop_length)
        return Speech(samples[: end * self.codec.hop_length], self.sample_rate, latents[:end])


def locate_checkpoint(checkpoint: str | Path | None) -> str | Path:
    """The demo model for None, a download for a Hub id, a bucket's gs:// as it is; else a path on this machine.

    FileNotFoundError if there is none.
    """
    if checkpoint is None:
        if not DEMO_MODEL.is_file():
            raise FileNotFoundError(f"{DEMO_MODEL}: the demo model is not installed: give a checkpoint")
        return DEMO_MODEL
    if isinstance(checkpoint, str) and is_bucket(checkpoint):
        return checkpoint
    path = Path(checkpoint).expanduser()
    if path.exists():
        return path
    name = str(checkpoint)
    if path.suffix in (".safetensors", ".pkl", ".pickle") or not HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"{name}: no such checkpoint: give a run directory, .safetensors, .pkl or a Hub id")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, HUB_FILE))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(f"{name}: no such path here, and no {HUB_FILE} from the Hub ({reason})") from error


def check_reference(samples: Samples, rate: int, name: str) -> None:
    """ValueError where a recording is too short or too quiet to hold a voice."""
    seconds = len(samples) / rate
    if seconds < REFERENCE_LEAST_S:
        raise ValueError(f"{name}: {seconds:.2f} s long: a reference needs at least {REFERENCE_LEAST_S} s of a voice")
    if not len(trim_silence(samples, rate)):
        raise ValueError(f"{name}: is silent: a reference needs at least {REFERENCE_LEAST_S} s of a voice")


def make_noise(seed: int, frames: int, channels: int) -> Float[np.ndarray, "t c"]:
    """Unit noise for one utterance. A longer window begins with the noise of a shorter one."""
    return np.random.default_rng(seed).standard_normal((frames, channels), dtype=np.float32)


def silent_window(frames: int) -> int:
    """How many silent frames in a row are an end: 20 in a long window, an eighth of a short one."""
    return min(SILENT_WINDOW_FRAMES, max(2, frames // 8))


def find_end(latents: Float[np.ndarray, "t c"], silence: Float[np.ndarray, "1 c"], window: int) -> int | None:
    """Where speech ends, in frames: the first stretch of `window` silent frames after a frame that is not.

    A frame is silent when its distance to the silence latent is small beside that of the loudest frames. What lies
    behind the last frame counts as silent. None where no frame can be told from silence, or no end is found.
    """
    distance = np.sqrt(np.mean(np.square(latents - silence), axis=1))
    loud = np.sort(distance)[-LOUD_FRAMES:][0]
    silent = distance < SILENT_SHARE * loud
    if silent.all() or not silent.any():
        return None
    begun = int(np.argmin(silent))
    run = np.convolve(np.append(silent, np.ones(window - 1)), np.ones(window), mode="valid")
    ends = np.flatnonzero(run[begun:] == window)
    return min(begun + int(ends[0]) + KEPT_TAIL_FRAMES, len(latents)) if len(ends) else None


def energy_end(samples: Samples, rate: int, hop_samples: int) -> int:
    """Where sound ends, in frames: behind the last that is within 40 dB of the loudest. All frames of silence stay."""
    frames = len(samples) // hop_samples
    power = np.mean(np.square(samples.astype(np.float64)).reshape(frames, hop_samples), axis=1)
    loud = np.flatnonzero(power > power.max() * 10.0 ** (ENERGY_THRESHOLD_DB / 10.0))
    return min(int(loud[-1]) + 1 + KEPT_TAIL_FRAMES, frames) if len(loud) else frames


def _codec_silence(codec: Codec) -> np.ndarray:
    """One frame of the codec's silence: the median over a second, because the edges are not silence."""
    frames = round(codec.sample_rate / codec.hop_length)
    return np.median(np.asarray(codec.silence_latent(frames)), axis=0, keepdims=True)


def _rounded(size: int, largest: int, multiple: int = 1) -> int:
    """`size` up to the next quarter of `largest`, in whole multiples."""
    quarter = -(-largest // QUARTERS)
    step = -(-quarter // multiple) * multiple
    return min(-(-size // step) * step, -(-largest // multiple) * multiple)


def _padded(
    rows: Sequence[Int[np.ndarray, " _n"]], width: int
) -> tuple[Int[np.ndarray, "b n"], Bool[np.ndarray, "b n"]]:
    """Token ids with zeros behind the end, and the mask from their lengths (0 is also BOS)."""
    ids = np.zeros((len(rows), width), np.int32)
    lengths = np.array([[len(row)] for row in rows])
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, np.arange(width) < lengths
