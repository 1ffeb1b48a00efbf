"""Reference voices: recordings, validated and normalised, encoded to latents of the model's codec."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from echotts.audio import Samples, loudness_normalise, read_audio, resample, trim_silence
from echotts.audio.faults import find_faults
from echotts.latents import LatentCodec
from echotts.synthesis.stretches import best_stretches
from echotts.synthesis.voices import SUFFIX, About, Voice, latent_for, read_voice

LIMIT_S = 300.0
CHECK_RATE_HZ, CHECK_S = 16_000, 60.0  # rate and duration for the early check of a recording
LEAST_S = 0.5
CONTEXT_FRAMES = 8  # frames on each side that a codec frame can depend on (docs/codec.md)
LOUDNESS_LUFS = -16.0  # as in data preparation

SpeakerReference = str | Path | tuple[Samples, int] | np.ndarray
"""A recording of the voice: a file, (mono samples, rate in Hz), its latent (m, c) by the model's codec, or the file of
a saved voice (voices.py)."""

logger = logging.getLogger(__name__)


def check_reference(samples: Samples, rate: int, name: str) -> None:
    """ValueError if a recording is too short or too quiet to contain a voice."""
    seconds = len(samples) / rate
    if seconds < LEAST_S:
        raise ValueError(f"{name}: is {seconds:.2f} s long: a reference needs at least {LEAST_S} s of speech")
    if not len(trim_silence(samples, rate)):
        raise ValueError(f"{name}: is silent: a reference needs at least {LEAST_S} s of speech")


def check_recording(path: str | Path) -> None:
    """An early check of a reference file; ValueError or OSError if it is neither a recording nor a saved voice."""
    if Path(path).suffix == SUFFIX:
        read_voice(Path(path).expanduser())
        return
    check_reference(read_audio(Path(path).expanduser(), CHECK_RATE_HZ, limit_s=CHECK_S), CHECK_RATE_HZ, str(path))


def encode_reference(
    reference: SpeakerReference,
    codec: LatentCodec,
    window_frames: int,
    find_hash: Callable[[], str] | None = None,
) -> Float[np.ndarray, "m c"]:
    """The latent of a voice, at most `window_frames` long; truncation, noise, music and other faults are logged.

    `find_hash`: see `voices.latent_for`. Raises ValueError if a recording is unreadable, silent or shorter than half a
    second.
    """
    if isinstance(reference, str | Path) and Path(reference).suffix == SUFFIX:
        reference = latent_for(Path(reference).expanduser(), codec, find_hash)
    if isinstance(reference, np.ndarray):
        return _checked_latent(reference, codec.latent_channels)[:window_frames]
    samples, name = _read(reference, codec.sample_rate)
    check_reference(samples, codec.sample_rate, name)
    seconds = len(samples) / codec.sample_rate
    window_s = window_frames / (codec.sample_rate / codec.hop_length)
    if seconds > window_s:
        logger.warning(
            "%s: is %.1f s long, only the first %.1f s are used (the model's window for references)",
            name,
            seconds,
            window_s,
        )
    for fault in find_faults(samples[: round(window_s * codec.sample_rate)], codec.sample_rate).values():
        logger.warning("%s: %s", name, fault)
    return _encode(samples, codec, window_frames)


def record_voice(recordings: Sequence[str | Path], codec: LatentCodec, window_frames: int) -> Voice:
    """A new voice: the best `window_frames` of the recordings, as latents of `codec`.

    Raises ValueError or OSError if a recording is unreadable, silent or without speech.
    """
    names, rate = [str(path) for path in recordings], codec.sample_rate
    samples = [read_audio(Path(path).expanduser(), rate, limit_s=LIMIT_S) for path in recordings]
    for recording, name in zip(samples, names, strict=True):
        check_reference(recording, rate, name)
    frame_rate_hz = rate / codec.hop_length
    best = best_stretches(samples, rate, window_frames / frame_rate_hz, names)
    about = About(
        codec_id=codec.codec_id,
        weights_hash=codec.weights_hash,
        frame_rate_hz=frame_rate_hz,
        recordings=tuple(Path(name).name for name in names),
    )
    faults = find_faults(best, rate)
    for kind in faults.keys() - {"clipped", "noise"}:  # the selection of phrases warns of these, per recording
        logger.warning("%s: %s", ", ".join(names), faults[kind])
    return Voice(_encode(best, codec, window_frames), about)


def silence_of(codec: LatentCodec) -> Float[np.ndarray, "1 c"]:
    """One frame of the codec's silence: the median over a second, since the edges differ."""
    frames = round(codec.sample_rate / codec.hop_length)
    return np.median(np.asarray(codec.silence_latent(frames)), axis=0, keepdims=True)


def round_trip(samples: Samples, rate: int, codec: LatentCodec) -> Samples:
    """A recording encoded and decoded, at the codec's rate and the same length: an upper bound of speech quality."""
    heard = loudness_normalise(resample(samples, rate, codec.sample_rate), codec.sample_rate, LOUDNESS_LUFS)
    return np.asarray(codec.decode(codec.encode(heard[None])), np.float32)[0, : len(heard)]


def _encode(samples: Samples, codec: LatentCodec, window_frames: int) -> Float[np.ndarray, "m c"]:
    level = loudness_normalise(samples, codec.sample_rate, LOUDNESS_LUFS)
    heard = level[: (window_frames + CONTEXT_FRAMES) * codec.hop_length]
    return np.asarray(codec.encode(heard[None]), np.float32)[0, :window_frames]


def _checked_latent(latent: np.ndarray, channels: int) -> Float[np.ndarray, "m c"]:
    if latent.ndim == 1:
        raise ValueError("speaker_ref: a bare waveform has no sample rate: give (samples, rate), or the path of a file")
    if latent.ndim != 2 or not len(latent) or latent.shape[1] != channels:
        raise ValueError(f"speaker_ref: a latent of shape {latent.shape}, expected (frames, {channels})")
    if not np.isfinite(latent).all():
        raise ValueError("speaker_ref: the latent has values that are not finite (NaN or infinite)")
    return latent.astype(np.float32)


def _read(reference: str | Path | tuple[Samples, int], sample_rate: int) -> tuple[Samples, str]:
    if isinstance(reference, tuple):
        samples, rate = reference
        samples = np.asarray(samples, np.float32)
        if samples.ndim != 1:
            raise ValueError(f"speaker_ref: samples of shape {samples.shape}: give one channel, as in (samples, rate)")
        if not np.isfinite(samples).all():
            raise ValueError("speaker_ref: has samples that are not finite (NaN or infinite)")
        return resample(samples, rate, sample_rate), "speaker_ref"
    if not isinstance(reference, str | Path):
        raise TypeError(
            f"speaker_ref: {type(reference).__name__}: give the path of a recording, (samples, rate) or a latent"
        )
    samples = read_audio(reference, sample_rate, limit_s=LIMIT_S)
    if len(samples) >= round(LIMIT_S * sample_rate):
        logger.warning("%s: longer than %.0f s, the rest is ignored", reference, LIMIT_S)
    return samples, str(reference)
