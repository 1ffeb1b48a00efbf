"""How much of a recording survives the codec: spectra and waveform of the round trip against the original.

The mel distance and the spectral convergence use the scales the codecs are trained on (losses.SCALES), the first in
log10 of magnitudes as the Descript audio codec's evaluation does; SI-SDR is the scale-invariant ratio of
arXiv 1811.02508. Waveform figures punish harmless phase shifts, spectra do not: read them together.
"""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float

from echotts.codec.codec import Codec
from echotts.codec.losses import LOG_FLOOR, SCALES, mel_filters

SHORTEST_SAMPLES = SCALES[-1][0]  # the longest window that spectra are taken of
_BLOCK_FRAMES = 4096  # spectra are taken so many at a time: long recordings need no more memory
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """One recording through the codec and back."""

    seconds: float
    mel_distance: float
    """Mean absolute difference of log10 mel magnitudes: 0 is equal, a tenth is a quarter louder or quieter."""
    spectral_convergence: float
    """Norm of the magnitude error over the norm of the magnitudes: 0 is equal, 1 is what silence scores."""
    si_sdr_db: float
    """Waveform signal over distortion, whatever the gain: higher is better."""
    encode_s: float
    decode_s: float


def round_trip(codec: Codec, audio: Float[np.ndarray, " n"]) -> RoundTrip:
    """Encodes and decodes mono audio at the codec's rate and compares. ValueError for audio under 1,024 samples."""
    if len(audio) < SHORTEST_SAMPLES:
        raise ValueError(f"a clip of {len(audio)} samples is too short to compare: give at least {SHORTEST_SAMPLES}")
    begin = time.perf_counter()
    latent = codec.encode(audio[None])
    middle = time.perf_counter()
    decoded = codec.decode(latent)[0, : len(audio)]
    end = time.perf_counter()
    mel, convergence = spectral_distances(audio, decoded, codec.sample_rate)
    return RoundTrip(
        seconds=len(audio) / codec.sample_rate,
        mel_distance=mel,
        spectral_convergence=convergence,
        si_sdr_db=si_sdr_db(audio, decoded),
        encode_s=middle - begin,
        decode_s=end - middle,
    )


def spectral_distances(
    original: Float[np.ndarray, " n"], decoded: Float[np.ndarray, " n"], sample_rate: int
) -> tuple[float, float]:
    """Mel distance and spectral convergence, each the mean over the scales."""
    mels, convergences = [], []
    for window, bands in SCALES:
        filters = mel_filters(window, bands, sample_rate)
        error = power = distance = 0.0
        frames = 0
        for first, second in zip(_spectra(original, window), _spectra(decoded, window), strict=True):
            error += np.square(first - second).sum()
            power += np.square(first).sum()
            distance += np.abs(_log_mel(first, filters) - _log_mel(second, filters)).sum()
            frames += len(first)
        mels.append(distance / (frames * bands))
        convergences.append(np.sqrt(error / max(power, _TINY)))
    return float(np.mean(mels)), float(np.mean(convergences))


def si_sdr_db(original: Float[np.ndarray, " n"], decoded: Float[np.ndarray, " n"]) -> float:
    """Scale-invariant signal-to-distortion ratio of mean-free signals, dB; limited to -120..120."""
    reference = original.astype(np.float64) - original.mean(dtype=np.float64)
    estimate = decoded.astype(np.float64) - decoded.mean(dtype=np.float64)
    target = reference * (estimate @ reference / max(reference @ reference, _TINY))
    distortion = estimate - target
    ratio = max(target @ target, _TINY) / max(distortion @ distortion, _TINY)
    return float(10 * np.log10(ratio))


def summarise(results: Iterable[RoundTrip]) -> dict[str, float]:
    """Means over the clips, the number and length of them, and how many seconds are coded in one second."""
    rows = [asdict(result) for result in results]
    if not rows:
        raise ValueError("no clips to evaluate the codec on: check --data and --limit")
    total = {name: sum(row[name] for row in rows) for name in rows[0]}
    means = {name: total[name] / len(rows) for name in ("mel_distance", "spectral_convergence", "si_sdr_db")}
    speed = {f"{what}_per_s": total["seconds"] / max(total[f"{what}_s"], _TINY) for what in ("encode", "decode")}
    return {"clips": float(len(rows)), "seconds": total["seconds"]} | means | speed


def _spectra(audio: Float[np.ndarray, " n"], window: int) -> Iterable[Float[np.ndarray, "f k"]]:
    """Hann-windowed magnitudes, hop a quarter of the window, a unit sine about 1; some thousand frames at a time."""
    hop = window // 4
    hann = np.hanning(window + 1)[:-1] * 4 / window
    frames = np.lib.stride_tricks.sliding_window_view(audio, window)[::hop]
    for first in range(0, len(frames), _BLOCK_FRAMES):
        yield np.abs(np.fft.rfft(frames[first : first + _BLOCK_FRAMES] * hann))


def _log_mel(magnitudes: Float[np.ndarray, "f k"], filters: Float[np.ndarray, "k m"]) -> Float[np.ndarray, "f m"]:
    return np.log10(np.maximum(magnitudes @ filters, LOG_FLOOR))
