"""Encodes clips of unequal length in batches of few shapes, and checks the codec's round trip."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from echotts.latents import LatentCodec

ENCODE_ROWS = 8
ENCODE_GRID_FRAMES = 16
CHECKED_CLIPS, CHECKED_FRAMES = 4, 48  # for the round trip check: the beginnings of this many clips
WORST_CONVERGENCE, WORST_LEVEL_DB = 0.5, 3.0


def encode_clips(
    codec: LatentCodec, clips: Sequence[Float[np.ndarray, " _"]], on_encoded: Callable[[int], None] = lambda _: None
) -> list[Float[np.ndarray, " _ c"]]:
    """The latents (ceil(n / hop), c) of each clip, encoded as if followed by silence.

    Clips are padded to a grid of lengths and encoded ENCODE_ROWS at a time, so that few shapes are compiled. Padding
    depends only on a clip's own length, so other clips do not affect its latents. `on_encoded` is called with the
    number of clips encoded so far.
    """
    grid = ENCODE_GRID_FRAMES * codec.hop_length
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, clip in enumerate(clips):
        by_length[-(-len(clip) // grid) * grid].append(index)
    latents: dict[int, np.ndarray] = {}
    for length, indices in sorted(by_length.items()):
        for first in range(0, len(indices), ENCODE_ROWS):
            rows = indices[first : first + ENCODE_ROWS]
            audio = np.zeros((ENCODE_ROWS, length), np.float32)
            for row, index in enumerate(rows):
                audio[row, : len(clips[index])] = clips[index]
            encoded = np.asarray(codec.encode(audio))
            for row, index in enumerate(rows):
                latents[index] = encoded[row, : -(-len(clips[index]) // codec.hop_length)]
            on_encoded(len(latents))
    return [latents[index] for index in range(len(clips))]


def check_round_trip(
    codec: LatentCodec, clips: Sequence[Float[np.ndarray, " _"]], latents: Sequence[Float[np.ndarray, " _ c"]]
) -> str | None:
    """A warning for the user if the codec does not reproduce these clips well, else None.

    Based on the means of spectral convergence (0 is equal, silence scores 1) and of the change in level.
    """
    from echotts.codec.evaluation import SHORTEST_SAMPLES, spectral_distances  # imported lazily: it loads jax

    chosen = [i for i, clip in enumerate(clips) if len(clip) >= SHORTEST_SAMPLES][:CHECKED_CLIPS]
    if not chosen:
        return None
    batch = np.array(codec.silence_latent(CHECKED_FRAMES), np.float32)[None].repeat(CHECKED_CLIPS, axis=0)
    for row, i in enumerate(chosen):
        batch[row, : len(latents[i])] = latents[i][:CHECKED_FRAMES]
    convergences, levels_db = [], []
    for decoded, i in zip(np.asarray(codec.decode(batch)), chosen, strict=False):
        clip = clips[i][: CHECKED_FRAMES * codec.hop_length]
        decoded = decoded[: len(clip)]
        convergences.append(spectral_distances(clip, decoded, codec.sample_rate).convergence)
        levels_db.append(10 * np.log10(max(np.square(decoded).mean(), 1e-12) / max(np.square(clip).mean(), 1e-12)))
    convergence, level_db = float(np.mean(convergences)), float(np.mean(levels_db))
    if convergence <= WORST_CONVERGENCE and abs(level_db) <= WORST_LEVEL_DB:
        return None
    return (
        f"codec {codec.codec_id} does not reproduce these recordings: after encoding and decoding {len(chosen)} of "
        f"them, spectral convergence is {convergence:.2f} (0 is equal, 1 is silence) and the level changes by "
        f"{level_db:+.1f} dB; a model cannot sound better than that: choose another --codec, or check with "
        "`data inspect --listen`"
    )
