"""Round trips of clean, noisy and clipped recordings through a codec, and statistics of their latents."""

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from echotts.audio.levels import fitted
from echotts.codec.backbone import encode_frames
from echotts.codec.codec import Codec
from echotts.codec.evaluation.measures import SHORTEST_SAMPLES, level_db, si_sdr_db, spectral_distances, stoi

Condition = Literal["clean", "noisy", "clipped"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
NOISE_DB = -20.0  # level of the white noise relative to the recording
DRIVE_DB = 12.0  # gain of a normalised recording before clipping at full scale
STATISTICS_S = 30  # seconds of each clip used for the posterior's statistics
ACTIVE_KL = 0.1  # minimum KL divergence of an active channel

Sound = Float[np.ndarray, " _n"]
Listen = Callable[[str, Sound, Sound, int], Mapping[str, float]]
"""(clip name, original, decoded, sample rate) -> further metrics: word errors, speaker similarity."""


@dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """Metrics of one recording's round trip; distances are to the codec's input."""

    codec: str
    clip: str
    condition: Condition
    seconds: float
    mel_distance: float
    stft_distance: float
    spectral_convergence: float
    si_sdr_db: float
    stoi: float | None
    level_db: float
    encode_s: float
    decode_s: float
    heard: dict[str, float] = field(default_factory=dict)
    """Word errors and speaker similarity, if these are measured."""

    def to_dict(self) -> dict[str, Any]:
        """One line of results.jsonl."""
        fields = asdict(self)
        return fields | fields.pop("heard")


def round_trip(
    codec: Codec, clip: str, audio: Sound, condition: Condition = "clean", listen: Listen | None = None
) -> tuple[RoundTrip, Sound, Sound]:
    """Metrics, input and output of a round trip. `audio` is mono at the codec's rate.

    Raises ValueError for audio shorter than 1,024 samples.
    """
    if len(audio) < SHORTEST_SAMPLES:
        raise ValueError(f"a clip of {len(audio)} samples is too short to compare: use at least {SHORTEST_SAMPLES}")
    audio = disturbed(audio, condition)
    begin = time.perf_counter()
    latent = codec.encode(audio[None])
    middle = time.perf_counter()
    decoded = fitted(codec.decode(latent)[0], len(audio))
    end = time.perf_counter()
    rate = codec.sample_rate
    mel, stft, convergence = spectral_distances(audio, decoded, rate)
    heard = listen(clip, audio, decoded, rate) if listen is not None else {}
    figures = RoundTrip(
        codec=codec.codec_id,
        clip=clip,
        condition=condition,
        seconds=len(audio) / rate,
        mel_distance=mel,
        stft_distance=stft,
        spectral_convergence=convergence,
        si_sdr_db=si_sdr_db(audio, decoded),
        stoi=stoi(audio, decoded, rate),
        level_db=level_db(audio, decoded),
        encode_s=middle - begin,
        decode_s=end - middle,
        heard={name: float(value) for name, value in heard.items()},
    )
    return figures, audio, decoded


def disturbed(audio: Sound, condition: Condition) -> Sound:
    """The recording unchanged, with white noise (always the same), or amplified and clipped at full scale."""
    if condition == "noisy":
        noise = np.random.default_rng(0).standard_normal(len(audio))
        level = np.sqrt(np.mean(np.square(audio, dtype=np.float64))) * 10 ** (NOISE_DB / 20)
        return (audio + level * noise).astype(np.float32)
    if condition == "clipped":
        peak = max(float(np.abs(audio).max()), 1e-9)
        return np.clip(audio * 10 ** (DRIVE_DB / 20) / peak, -1, 1).astype(np.float32)
    return audio


def latent_statistics(codec: Codec, clips: Sequence[Sound]) -> dict[str, float]:
    """DACVAE: mean, standard deviation and KL divergence of the posterior over the clips, and the active channels.

    DAC: bits per second, and the share of its codebook vectors that the clips used.
    """
    if codec.config.quantized:
        codes = [np.asarray(codec.encode_tokens(clip[None]).codes)[0] for clip in clips]
        books = np.concatenate(codes, axis=1)
        used = sum(len(np.unique(book)) for book in books)
        frame_rate = codec.sample_rate / codec.hop_length
        bits = len(books) * np.log2(codec.config.codebook_size)
        return {"bits_per_s": frame_rate * bits, "codes_used_share": used / (len(books) * codec.config.codebook_size)}
    longest = STATISTICS_S * codec.sample_rate
    whole = [clip[: min(len(clip), longest) // codec.hop_length * codec.hop_length] for clip in clips]
    posteriors = [encode_frames(codec.params, codec.config, jnp.asarray(clip[None])) for clip in whole if len(clip)]
    mean, std = (np.concatenate([np.asarray(pair[part])[0] for pair in posteriors]) for part in (0, 1))
    kl = np.mean(mean**2 + std**2 - 2 * np.log(std) - 1, axis=0)
    return {
        "latent_mean": float(mean.mean()),
        "latent_std": float(mean.std()),
        "posterior_std": float(std.mean()),
        "kl": float(kl.sum()),
        "active_channels": float(np.sum(kl > ACTIVE_KL)),
    }


def summarise(results: Sequence[RoundTrip]) -> dict[str, float]:
    """Means over the clips of one codec and condition, coding speed in seconds per second, and peak memory.

    Word errors are the total number of errors over the total number of words. ValueError without clips.
    """
    if not results:
        raise ValueError("no clips to evaluate the codec on: check --data and --limit")
    seconds = sum(one.seconds for one in results)
    summary: dict[str, float] = {"clips": float(len(results)), "seconds": seconds}
    rows = [one.to_dict() for one in results]
    for name in (
        "mel_distance",
        "stft_distance",
        "spectral_convergence",
        "si_sdr_db",
        "stoi",
        "level_db",
        "similarity",
    ):
        if values := [row[name] for row in rows if row.get(name) is not None]:
            summary[name] = float(np.mean(values))
    if words := sum(row.get("words", 0) for row in rows):
        summary["word_errors"] = sum(row["words_wrong"] for row in rows) / words
        summary["word_errors_of_recordings"] = sum(row["words_wrong_before"] for row in rows) / words
    for what in ("encode", "decode"):
        summary[f"{what}_per_s"] = seconds / max(sum(row[f"{what}_s"] for row in rows), 1e-9)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    summary["peak_memory_bytes"] = float(peak * (1 if sys.platform == "darwin" else 1024))
    return summary
