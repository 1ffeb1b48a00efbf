"""Synthesised speech: finding its end, and writing it to files.

The end is found by the latents' distance to silence or, if that is inconclusive, by signal energy.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from echotts.audio import MP3_RATE_KBPS, OUTPUT_LOUDNESS_LUFS, Samples, write_audio
from echotts.files import write_whole

SILENT_WINDOW_FRAMES = 20
SILENT_SHARE = (
    0.35  # relative to the loud frames' distance to silence; measured: speech 0.3 to 1.2, encoded silence below 0.29
)
LOUD_FRAMES = 5  # the fifth loudest frame defines loud: a click does not count, a word of 0.2 s does
KEPT_TAIL_FRAMES = 1
ENERGY_THRESHOLD_DB = -40.0
USUAL_PEAKS_HZ = 5.0  # of loudness in speech of medium pace
PACE_TRUST, PACE_LIMITS = 0.5, (0.7, 1.4)  # how much of a difference from that counts, since it is half by chance
LEAST_PACE_S = 1.0  # of speech, from which a pace is measured


@dataclass(frozen=True)
class Speech:
    """Synthesised speech: `samples` and the `latents` they were decoded from, cropped alike."""

    samples: Float[np.ndarray, " n"]
    sample_rate: int
    latents: Float[np.ndarray, "t c"]
    model: str | None = "unknown"
    """Name of the model, for the tags of files; None for a recording, whose files have none."""

    def __repr__(self) -> str:
        frames, channels = self.latents.shape
        return f"Speech({self.duration_s:.2f} s at {self.sample_rate} Hz, latents {frames} x {channels})"

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.sample_rate

    def save(
        self,
        path: str | Path,
        normalise: str = "peak",
        *,
        loudness_lufs: float = OUTPUT_LOUDNESS_LUFS,
        mp3_rate: int = MP3_RATE_KBPS,
    ) -> Path:
        """Writes .wav, .flac, .ogg or .mp3, tagged as synthetic; arguments and errors as in `audio.write_audio`."""
        write_audio(
            path,
            self.samples,
            self.sample_rate,
            normalise,
            loudness_lufs=loudness_lufs,
            mp3_rate=mp3_rate,
            model=self.model,
        )
        return Path(path)

    def save_latents(self, path: str | Path) -> Path:
        """Writes the latents as .npy, float32 (frames, channels)."""
        buffer = io.BytesIO()
        np.save(buffer, self.latents)
        write_whole(Path(path), buffer.getvalue())
        return Path(path)


def silent_window(frames: int) -> int:
    """How many consecutive silent frames end speech: 20 in a long window, an eighth of a short one."""
    return min(SILENT_WINDOW_FRAMES, max(2, frames // 8))


def find_end(latents: Float[np.ndarray, "t c"], silence: Float[np.ndarray, "1 c"], window: int) -> int | None:
    """Where speech ends, in frames: at the first run of `window` silent frames after a non-silent one.

    What follows the last frame counts as silent. None if no frame differs from silence, or no end is found.
    """
    silent = _silent_frames(latents, silence)
    if silent.all() or not silent.any():
        return None
    begun = int(np.argmin(silent))
    run = np.convolve(np.append(silent, np.ones(window - 1)), np.ones(window), mode="valid")
    ends = np.flatnonzero(run[begun:] == window)
    return min(begun + int(ends[0]) + KEPT_TAIL_FRAMES, len(latents)) if len(ends) else None


def find_start(latents: Float[np.ndarray, "t c"], silence: Float[np.ndarray, "1 c"]) -> int:
    """Where speech starts, in frames: one before the first frame that is not silent; 0 if none differs from silence."""
    return max(0, int(np.argmin(_silent_frames(latents, silence))) - KEPT_TAIL_FRAMES)


def reference_pace(latents: Float[np.ndarray, "m c"], silence: Float[np.ndarray, "1 c"], rate_hz: float) -> float:
    """How many times as long as usual a text takes in the voice of a reference, by its peaks of loudness per second.

    Loudness is the distance of a frame to silence, smoothed over three frames; its peaks are about the syllables.
    """
    sounding = ~_silent_frames(latents, silence)
    seconds = float(np.sum(sounding)) / rate_hz
    if seconds < LEAST_PACE_S:
        return 1.0
    loudness = np.convolve(_distance(latents, silence), (0.25, 0.5, 0.25), mode="same")
    peaks = (loudness[1:-1] > loudness[:-2]) & (loudness[1:-1] >= loudness[2:]) & sounding[1:-1]
    pace = (USUAL_PEAKS_HZ * seconds / max(1, int(np.sum(peaks)))) ** PACE_TRUST
    return float(np.clip(pace, *PACE_LIMITS))


def energy_end(samples: Samples, rate: int, hop_samples: int) -> int:
    """Where sound ends, in frames: after the last frame within 40 dB of the loudest. Pure silence is not cropped."""
    frames = len(samples) // hop_samples
    power = np.mean(np.square(samples.astype(np.float64)).reshape(frames, hop_samples), axis=1)
    loud = np.flatnonzero(power > power.max() * 10.0 ** (ENERGY_THRESHOLD_DB / 10.0))
    return min(int(loud[-1]) + 1 + KEPT_TAIL_FRAMES, frames) if len(loud) else frames


def _silent_frames(latents: Float[np.ndarray, "t c"], silence: Float[np.ndarray, "1 c"]) -> Bool[np.ndarray, " t"]:
    """The frames whose distance to the silence latent is small relative to that of the loudest frames."""
    distance = _distance(latents, silence)
    return distance < SILENT_SHARE * np.sort(distance)[-LOUD_FRAMES:][0]


def _distance(latents: Float[np.ndarray, "t c"], silence: Float[np.ndarray, "1 c"]) -> Float[np.ndarray, " t"]:
    return np.sqrt(np.mean(np.square(latents - silence), axis=1))
