"""Saved voices: the best phrases of one or several recordings, encoded once, in a small .safetensors file.

A voice can also be trained for a model (`echotts train --tune inversion`). Voices are stored in
~/.local/share/echotts/voices (or below XDG_DATA_HOME). A voice requires the codec that encoded it, and a trained voice
the weights that it was trained for.
"""

import difflib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from jaxtyping import Float

from echotts.checkpoint.facts import Facts
from echotts.files import write_whole
from echotts.latents import LatentCodec
from echotts.strict_json import load_json
from echotts.strict_tensors import open_tensors

SUFFIX = ".safetensors"
TENSOR, HEADER = "latent", "voice"
NAME = re.compile(r"[\w][\w.-]{0,63}")
MOST_FRAMES, MOST_CHANNELS = 1 << 16, 4096


@dataclass(frozen=True, kw_only=True)
class About:
    """The metadata of a voice file. `base` is the hash of the weights that a trained voice is for, otherwise empty."""

    codec_id: str
    weights_hash: str
    frame_rate_hz: float
    recordings: tuple[str, ...] = ()
    base: str = ""


@dataclass(frozen=True, eq=False)
class Voice:
    """A voice: the codec latents of a reference, and their origin."""

    latent: Float[np.ndarray, "m c"]
    about: About

    @property
    def duration_s(self) -> float:
        return len(self.latent) / self.about.frame_rate_hz


def trained_voice(latent: Float[np.ndarray, "m c"], facts: Facts, origin: str) -> Voice:
    """The voice of an inversion, whose data had the codec in `facts`. ValueError if that codec is unknown."""
    codec = facts.codec
    if not codec.weights_hash or not codec.sample_rate or not codec.hop:
        raise ValueError(f"{origin}: the codec of its data is unknown: prepare them with echotts data prepare")
    rate_hz = codec.sample_rate / codec.hop
    about = About(
        codec_id=codec.id or "",
        weights_hash=codec.weights_hash,
        frame_rate_hz=rate_hz,
        recordings=(origin,),
        base=facts.base or "",
    )
    return Voice(latent, about)


def voices_folder() -> Path:
    """The folder of saved voices, which may not exist yet. OSError without a home folder."""
    chosen = os.environ.get("XDG_DATA_HOME")
    try:
        root = Path(chosen) if chosen else Path.home() / ".local" / "share"
    except RuntimeError as error:
        raise OSError("there is no home folder for voices: set XDG_DATA_HOME") from error
    return root / "echotts" / "voices"


def save_voice(name: str, voice: Voice) -> Path:
    """Writes or replaces a voice; equal voices give equal files. ValueError for an invalid name."""
    path = _path(name)
    header = json.dumps({**vars(voice.about), "recordings": list(voice.about.recordings)}, sort_keys=True)
    tensors = {TENSOR: np.ascontiguousarray(voice.latent, np.float32)}
    write_whole(path, safetensors.numpy.save(tensors, metadata={HEADER: header}))
    return path


def read_voice(path: str | Path) -> Voice:
    """Reads a voice file. FileNotFoundError, or ValueError if it is invalid."""
    with open_tensors(path) as file:
        if HEADER not in file.header or file.names != [TENSOR]:
            raise ValueError(f"{path}: is not a saved voice: make one with echotts voice save")
        about = load_json(file.header[HEADER], path, About)
        latent = file.read(TENSOR)
    if latent.ndim != 2 or not 1 <= len(latent) <= MOST_FRAMES or not 1 <= latent.shape[1] <= MOST_CHANNELS:
        raise ValueError(f"{path}: holds a latent of shape {latent.shape}: save the voice again")
    if not 0 < about.frame_rate_hz < 1e4:
        raise ValueError(f"{path}: frame_rate_hz {about.frame_rate_hz} is not possible: save the voice again")
    return Voice(latent, about)


def list_voices() -> list[str]:
    """The names of the saved voices, sorted."""
    return sorted(path.stem for path in voices_folder().glob(f"*{SUFFIX}") if NAME.fullmatch(path.stem))


def find_voice(name: str) -> Path:
    """The file of a saved voice. ValueError with the nearest names if it does not exist."""
    path = _path(name)
    if path.is_file():
        return path
    known = list_voices()
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known[:5]
    hint = f"saved are {', '.join(near)}" if near else "none is saved yet: make one with echotts voice save"
    raise ValueError(f"voice {name!r}: there is none of that name; {hint}")


def latent_for(
    path: str | Path, codec: LatentCodec, find_hash: Callable[[], str] | None = None
) -> Float[np.ndarray, "m c"]:
    """The latent of a saved voice, for a model that uses `codec`. ValueError if another codec encoded it,
    or it was trained for other weights than those of the hash that `find_hash` returns (None: not checked).
    """
    voice = read_voice(path)
    if voice.about.weights_hash != codec.weights_hash:
        raise ValueError(
            f"{path}: encoded by the codec {voice.about.codec_id} ({voice.about.weights_hash[:12]}), this model speaks "
            f"with {codec.codec_id} ({codec.weights_hash[:12]}): save the voice again with this model"
        )
    wanted = voice.about.base
    if wanted and find_hash is not None and (found := find_hash()) != wanted:
        raise ValueError(
            f"{path}: a voice trained for weights with hash {wanted[:12]}, but this model has {found[:12]}: use "
            "it with the weights that it was trained with"
        )
    return voice.latent


def check_name(name: str) -> str:
    """Returns `name`; ValueError if it is not a valid name of a voice."""
    if not NAME.fullmatch(name):
        raise ValueError(f"voice {name!r}: a name has letters, digits, _ . or -, 64 at most, and begins with a letter")
    return name


def _path(name: str) -> Path:
    return voices_folder() / f"{check_name(name)}{SUFFIX}"
