"""Files of encoded recordings: .npz and .safetensors for both families, .dac as descript-audio-codec writes it.

.npz and .safetensors hold "codes" (channels, codebooks, frames) as uint16 or "latents" (channels, frames, values) as
float32, and what is needed to restore the recording: the other fields of `Encoded`, as 0-d arrays in .npz and in the
header in .safetensors. `.dac` is a NumPy file with one pickled dictionary; the pickle is read as data only.
"""

import tokenize
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from echotts.files import atomic_write
from echotts.pickles import read_npy_pickle

TOKEN_SUFFIXES = (".npz", ".safetensors", ".dac")
MOST_PACKED = 8  # maximum compression ratio of an .npz; codes and latents hardly compress
_DAC_VERSION = "1.0.0"
# What NumPy, whose header parser raises TokenError, zipfile and safetensors raise for a damaged file.
_DAMAGED = (ValueError, TypeError, EOFError, OSError, MemoryError, SyntaxError, tokenize.TokenError, KeyError)
_DAMAGED += (zipfile.BadZipFile, NotImplementedError, SafetensorError)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A recording as codec tokens, with what is needed to restore it. Rows of `tokens` are its channels.

    Raises ValueError for values out of range.
    """

    tokens: np.ndarray
    """Integer codes (c, q, t), or float latents (c, t, values)."""
    sample_rate: int | None = None
    """Of the recording, in Hz; None: the codec's rate."""
    original_length: int | None = None
    """Samples per channel at that rate; None: keep everything decoded."""
    loudness_lufs: float | None = None
    """Level to restore after decoding; None: leave the level unchanged."""
    codec_id: str | None = None
    weights_hash: str | None = None
    chunk_length: int | None = None
    """Frames per chunk that descript-audio-codec encoded without padding; None: encoded as a whole, as echotts does."""

    def __post_init__(self) -> None:
        codes = self.tokens.dtype.kind in "iu"
        if self.tokens.ndim != 3 or not self.tokens.size or not (codes or self.tokens.dtype.kind == "f"):
            raise ValueError(
                "tokens must be codes (channels, codebooks, frames) or latents (channels, frames, values), "
                f"not {self.tokens.dtype} {self.tokens.shape}"
            )
        limits = {"sample_rate": 1 << 24, "original_length": 1 << 48, "chunk_length": 1 << 31}
        for name, largest in limits.items():
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and 0 < value <= largest):
                raise ValueError(f"{name} must be an integer from 1 to {largest}, not {value!r}")
        if not all(isinstance(name, str | None) for name in (self.codec_id, self.weights_hash)):
            raise ValueError("codec_id and weights_hash must be strings")
        if self.loudness_lufs is not None and not -200 < self.loudness_lufs < 100:
            raise ValueError(f"loudness_lufs {self.loudness_lufs} must be in -200..100")

    @property
    def are_codes(self) -> bool:
        return self.tokens.dtype.kind in "iu"

    @property
    def frames(self) -> int:
        return self.tokens.shape[2 if self.are_codes else 1]


def save_encoded(path: str | Path, encoded: Encoded) -> None:
    """Writes .npz, .safetensors or .dac; the file appears only once it is complete. ValueError for another suffix."""
    path = check_token_path(path, encoded.are_codes)
    key, dtype = ("codes", np.uint16) if encoded.are_codes else ("latents", np.float32)
    tokens = encoded.tokens.astype(dtype, copy=False)
    about = {name: value for name, value in vars(encoded).items() if name != "tokens" and value is not None}
    with atomic_write(path) as temporary:
        if path.suffix == ".npz":
            with temporary.open("wb") as file:
                np.savez(file, **{key: tokens}, **about)
        elif path.suffix == ".safetensors":
            save_file(
                {key: np.ascontiguousarray(tokens)}, temporary, {name: str(value) for name, value in about.items()}
            )
        else:
            with temporary.open("wb") as file:
                np.save(file, np.array(_dac_contents(encoded, tokens), dtype=object), allow_pickle=True)


def load_encoded(path: str | Path) -> Encoded:
    """Reads a file of `save_encoded` or descript-audio-codec. Raises FileNotFoundError, or ValueError if damaged."""
    path = check_token_path(path, codes=True)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    readers: dict[str, Callable[[Path], Encoded]] = {".npz": _load_npz, ".safetensors": _load_safetensors}
    try:
        return readers.get(path.suffix, _load_dac)(path)
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if reason.startswith(f"{path}:"):
            raise ValueError(reason) from error
        raise ValueError(f"{path}: cannot be read as tokens ({reason}): encode the recording again") from error


def check_token_path(path: str | Path, codes: bool) -> Path:
    """The path, if its suffix is that of a token file; ValueError otherwise."""
    path = Path(path)
    if path.suffix not in TOKEN_SUFFIXES:
        raise ValueError(f"{path}: unknown suffix {path.suffix!r}: use one of {', '.join(TOKEN_SUFFIXES)}")
    if path.suffix == ".dac" and not codes:
        raise ValueError(f"{path}: .dac holds DAC codes only: write latents as .npz or .safetensors")
    return path


def _load_npz(path: Path) -> Encoded:
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > MOST_PACKED * path.stat().st_size:
            raise ValueError(f"it unpacks to {unpacked} bytes, more than {MOST_PACKED} times its size")
    with np.load(path, allow_pickle=False) as file:
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("not a zip of arrays")
        key = _token_key(file.files)
        about = {name: file[name].item() for name in file.files if name in _FIELDS and file[name].ndim == 0}
        return Encoded(tokens=_finite(file[key]), **about)


def _load_safetensors(path: Path) -> Encoded:
    with safe_open(path, framework="numpy") as file:
        header = file.metadata() or {}
        tokens = file.get_tensor(_token_key(list(file.keys())))
    about = {name: _FIELDS[name](value) for name, value in header.items() if name in _FIELDS}
    return Encoded(tokens=_finite(tokens), **about)


_FIELDS: dict[str, Callable[[str], Any]] = {
    "sample_rate": int,
    "original_length": int,
    "loudness_lufs": float,
    "codec_id": str,
    "weights_hash": str,
    "chunk_length": int,
}


def _token_key(names: list[str]) -> str:
    found = [name for name in names if name in ("codes", "latents")]
    if len(found) != 1:
        raise ValueError('it holds neither "codes" nor "latents"' if not found else "it holds both codes and latents")
    return found[0]


def _finite(tokens: np.ndarray) -> np.ndarray:
    if tokens.dtype.kind == "f" and not np.isfinite(tokens).all():
        raise ValueError("some latents are not finite")
    return tokens


def _dac_contents(encoded: Encoded, codes: np.ndarray) -> dict[str, Any]:
    """The dictionary of descript-audio-codec's DACFile; "padding" means that the recording was encoded as a whole."""
    if encoded.sample_rate is None or encoded.original_length is None:
        raise ValueError("a .dac file needs the recording's sample_rate and original_length: give them, or write .npz")
    return {
        "codes": np.ascontiguousarray(codes),
        "metadata": {
            "input_db": np.array([-70.0 if encoded.loudness_lufs is None else encoded.loudness_lufs], np.float32),
            "original_length": encoded.original_length,
            "sample_rate": encoded.sample_rate,
            "chunk_length": encoded.chunk_length or encoded.frames,
            "channels": len(codes),
            "padding": encoded.chunk_length is None,
            "dac_version": _DAC_VERSION,
        },
    }


def _load_dac(path: Path) -> Encoded:
    contents = read_npy_pickle(path)
    metadata = contents.get("metadata") if isinstance(contents, dict) else None
    codes = contents.get("codes") if isinstance(metadata, dict) else None
    if not isinstance(codes, np.ndarray) or not isinstance(metadata, dict):
        raise ValueError("it lacks codes or metadata")
    if metadata.get("dac_version") != _DAC_VERSION:
        raise ValueError(f"dac_version {metadata.get('dac_version')!r}, only {_DAC_VERSION} is supported")
    channels = metadata["channels"]
    if channels != len(codes):
        raise ValueError(f"the metadata gives {channels} channels, the codes have {len(codes)}")
    return Encoded(
        tokens=codes,
        sample_rate=index(metadata["sample_rate"]),
        original_length=index(metadata["original_length"]),
        loudness_lufs=float(np.max(metadata["input_db"])),
        chunk_length=None if metadata["padding"] else index(metadata["chunk_length"]),
    )
