"""Random crops of recordings as training batches, with augmentation.

A batch is a pure function of (seed, step) and the row, so a resumed run sees the batches of an uninterrupted one, and
each of several processes reads only its own rows.
"""

import hashlib
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import numpy as np
import soxr
from jaxtyping import Float

from echotts.audio import measure_loudness
from echotts.audio.levels import fitted
from echotts.codec.training.config import CodecTraining, CropConfig

LOGGER = logging.getLogger(__name__)

MAX_DRAWS = 8  # to find a crop that is neither silent, clipped nor unreadable
MOST_GAIN_DB = 30.0  # maximum gain applied to a quiet crop
NARROW_HZ = 8000  # telephone sample rate
MANY_CLIPS = 20  # from this many on, at least one is held out

Crop = Float[np.ndarray, " n"]


@runtime_checkable
class Clips(Protocol):
    """Recordings that can be read in part (data.prepare.clips.AudioClips)."""

    @property
    def seconds(self) -> Float[np.ndarray, " n"]: ...

    def name(self, clip: int) -> str: ...

    def read(self, clip: int, start_s: float, limit_s: float, sample_rate: int) -> Float[np.ndarray, " n"]: ...


class Crops:
    """Batches of random crops. Clips are drawn in proportion to their length; short ones are padded with zeros.

    `rows` is this process's part of the batch. `rejected` counts redrawn crops by cause.
    """

    def __init__(self, clips: Clips, training: CodecTraining, rows: range, *, heldout: bool = False) -> None:
        self.training = training
        self.rejected = {"silent": 0, "clipped": 0, "unreadable": 0}
        self._clips = clips
        self._rows = rows
        self._stream = 1 if heldout else 0
        self._settings = CropConfig(loudness=training.crops.loudness) if heldout else training.crops
        self._numbers = choose_clips(clips, training.crops.heldout_share, heldout)
        weights = clips.seconds[self._numbers]
        self._share = weights / weights.sum() if len(weights) else weights
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="crops")
        self._ahead: dict[int, Future[Float[np.ndarray, "b n"]]] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def batch(self, step: int) -> Float[np.ndarray, "b n"]:
        """The rows of `step`, float32 in -1..1; the next step's rows are prefetched."""
        future = self._ahead.pop(step, None)
        batch = self._read(step) if future is None else future.result()
        self._ahead = {step + 1: self._pool.submit(self._read, step + 1)}
        return batch

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _read(self, step: int) -> Float[np.ndarray, "b n"]:
        return np.stack([self._row(step, row) for row in self._rows])

    def _row(self, step: int, row: int) -> Crop:
        rng = np.random.default_rng([self.training.run.seed, self._stream, step, row])
        samples, rate = self.training.crop_samples, self.training.codec.sample_rate
        crop = np.zeros(samples, np.float32)
        for _ in range(MAX_DRAWS):
            spread = self._settings.speed_spread
            played_rate = round(rate * rng.uniform(1 - spread, 1 + spread))
            clip = int(rng.choice(self._numbers, p=self._share))
            seconds = samples / played_rate
            start_s = rng.uniform(0, max(0.0, self._clips.seconds[clip] - seconds))
            try:
                found = self._clips.read(clip, start_s, seconds + 0.01, played_rate)[:samples]
            except ValueError as error:
                LOGGER.debug("redrawing a crop: %s", error)
                self.rejected["unreadable"] += 1
                continue
            crop = np.zeros(samples, np.float32)
            crop[: len(found)] = found
            fault = fault_of(crop, self._settings)
            if fault is None:
                break
            self.rejected[fault] += 1
        return vary(crop, rate, self._settings, rng)


def choose_clips(clips: Clips, share: float, heldout: bool) -> np.ndarray:
    """Indices of the training clips, or of the held-out ones: those with the smallest hashes of their names.

    At least one clip is held out of 20 or more; none of fewer, or if the share is 0.
    """
    count = len(clips.seconds)
    held = max(1, round(share * count)) if share and count >= MANY_CLIPS else 0
    hashes = [hashlib.sha256(clips.name(clip).encode()).digest() for clip in range(count)]
    order = np.array(sorted(range(count), key=lambda clip: hashes[clip]), int)
    return np.sort(order[:held] if heldout else order[held:])


def fault_of(crop: Crop, settings: CropConfig) -> str | None:
    """Why a crop must be redrawn: "silent" or "clipped"; None if it is usable."""
    level = np.sqrt(np.mean(np.square(crop, dtype=np.float64)))
    if level < 10 ** (settings.silence_db / 20):
        return "silent"
    peak = np.abs(crop).max()
    if peak > 0.99 and np.mean(np.abs(crop) > 0.999 * peak) > settings.clipped_share:
        return "clipped"
    return None


def vary(crop: Crop, rate: int, settings: CropConfig, rng: np.random.Generator) -> Crop:
    """Augments a crop: room response, bandwidth, noise, level. All draws come from `rng`, in a fixed order."""
    room, narrow, noise, level = rng.random(4)
    if room < settings.room_share:
        crop = _in_room(crop, rate, rng)
    if narrow < settings.narrow_share and rate > NARROW_HZ:
        low = soxr.resample(crop, rate, NARROW_HZ)
        crop = fitted(soxr.resample(low, NARROW_HZ, rate), len(crop))
    if noise < settings.noise_share:
        crop = crop + _noise(len(crop), rng) * np.sqrt(np.mean(crop**2)) * 10 ** (-rng.uniform(20, 45) / 20)
    if settings.loudness is not None and np.isfinite(measured := measure_loudness(crop, rate)):
        gain_db = min(settings.loudness - measured, MOST_GAIN_DB) - level * settings.level_spread_db
        crop = crop * 10 ** (gain_db / 20)
    return (crop / max(1.0, np.abs(crop).max())).astype(np.float32)


def _in_room(crop: Crop, rate: int, rng: np.random.Generator) -> Crop:
    """Convolution with the direct sound plus noise that decays by 60 dB within 0.1 to 0.6 s."""
    decay_s = rng.uniform(0.1, 0.6)
    time_s = np.arange(int(decay_s * rate)) / rate
    response = rng.standard_normal(len(time_s)) * 10 ** (-3 * time_s / decay_s)
    response *= rng.uniform(0.1, 0.5) / np.sqrt(np.sum(response**2))
    response[0] = 1.0
    size = len(crop) + len(response)
    return np.fft.irfft(np.fft.rfft(crop, size) * np.fft.rfft(response, size), size)[: len(crop)].astype(np.float32)


def _noise(samples: int, rng: np.random.Generator) -> Crop:
    """Noise of RMS 1 with power falling as 1/f^k, k random from 0 (white) to 2 (brown)."""
    spectrum = rng.standard_normal(samples // 2 + 1) + 1j * rng.standard_normal(samples // 2 + 1)
    spectrum *= np.maximum(np.arange(len(spectrum)), 1.0) ** (-rng.uniform(0, 2) / 2)
    noise = np.fft.irfft(spectrum, samples)
    return (noise / np.sqrt(np.mean(noise**2))).astype(np.float32)
