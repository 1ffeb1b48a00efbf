"""The shard format: tar files of latents and texts, written with webdataset and validated on reading.

For each key there are `{key}.npy`, a (n, c) float16 latent; optionally `{key}.ref.npy`, a (m, c) float16 latent of the
speaker's reference; and `{key}.json` with "text" and, if known, "speaker", "language", "duration_s", "source". Invalid
samples are skipped and counted by cause. A file that cannot be read at all (OSError) is not skipped, because the order
of the stream must depend only on file contents, not on transient errors.
"""

import codecs
import io
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16

from echotts.data.format.tars import Entry, TarFile
from echotts.files import Closing, atomic_write
from echotts.rundir.rejections import Rejected, Rejections
from echotts.strict_json import load_json

MAX_NPY_BYTES = 64 << 20
MAX_JSON_BYTES = 1 << 20
MAX_NPY_HEADER_BYTES = 1 << 10
MAX_WORD_BYTES = 64 << 10  # limit of speaker, language and source
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}")
# The dictionary in an npy header, in the order in which all writers put it; whitespace may differ.
NPY_HEADER = re.compile(
    rb"\s*\{\s*'descr'\s*:\s*(?P<descr>'[^'\\]*'|\[.*\])\s*,\s*'fortran_order'\s*:\s*(?P<fortran>True|False)\s*,"
    rb"\s*'shape'\s*:\s*\((?P<shape>[0-9, -]*)\)\s*,?\s*\}\s*"
)
MAX_SIZE_DIGITS = 18


@dataclass(frozen=True, eq=False)
class Sample:
    """One utterance. `latent` is (n, c), `reference` (m, c) or None, both float16; `shard` is the file name."""

    key: str
    latent: np.ndarray
    reference: np.ndarray | None
    text: str
    speaker: str | None = None
    language: str | None = None
    duration_s: float | None = None
    source: str | None = None
    shard: str = ""

    @property
    def name(self) -> str:
        """The sample's name in logs and errors."""
        return f"{self.shard}/{self.key}" if self.shard else self.key


class ShardReader(Closing):
    """Random access to the samples of a shard: `len(reader)` keys in file order, `reader.sample(i)`."""

    def __init__(self, path: str | Path, channels: int | None = None, shard: str | None = None) -> None:
        """`channels` None takes those of the first valid latent; `shard` is the name used in messages."""
        self.shard = shard or Path(path).name
        self.channels = channels
        self.tar = TarFile(path)
        self._members = [entry for entry in self.tar.entries if _is_sample(entry)]

    def __len__(self) -> int:
        return len(self._members)

    def key(self, index: int) -> str:
        return self._members[index].key

    def sample(self, index: int) -> Sample:
        """A validated sample that owns its arrays. Raises Rejected with the cause."""
        entry = self._members[index]
        if entry.fault is not None:
            raise Rejected(entry.fault.cause, entry.fault.detail)
        meta = parse_meta(self.tar.read(entry, "json", MAX_JSON_BYTES))
        latent = parse_latent(self.tar.read(entry, "npy", MAX_NPY_BYTES), self.channels)
        if self.channels is None:
            self.channels = latent.shape[1]
        reference = None
        if "ref.npy" in entry.members:
            reference = parse_latent(self.tar.read(entry, "ref.npy", MAX_NPY_BYTES), self.channels)
        return Sample(key=entry.key, latent=latent, reference=reference, shard=self.shard, **meta)

    def close(self) -> None:
        self.tar.close()


def read_shard(path: str | Path, channels: int | None, rejections: Rejections) -> Iterator[Sample]:
    """The valid samples of a shard in file order; invalid ones are counted in `rejections`."""
    with ShardReader(path, channels) as reader:
        rejections.opened(reader.shard, reader.tar.faults)
        for index in range(len(reader)):
            rejections.read += 1
            try:
                sample = reader.sample(index)
            except Rejected as fault:
                rejections.add(fault.cause, reader.shard, reader.key(index), fault.detail)
                continue
            yield sample


def parse_latent(payload: bytes, channels: int | None) -> Float16[np.ndarray, "n c"]:
    """A latent from the bytes of an npy file, never through pickle. Raises Rejected.

    float16 values are non-finite if all their exponent bits are set.
    """
    dtype, fortran, shape, offset = _npy_header(payload)
    if dtype != "<f2":
        raise Rejected("wrong_dtype", f"{dtype}, expected <f2")
    if len(shape) != 2 or shape[0] < 1 or shape[1] < 1 or (channels is not None and shape[1] != channels):
        raise Rejected("wrong_shape", f"{shape}, expected (frames, {channels or 'channels'})")
    if len(payload) - offset != 2 * shape[0] * shape[1]:
        raise Rejected("wrong_shape", f"{len(payload) - offset} bytes of values for shape {shape}")
    values = np.frombuffer(payload, np.dtype("<f2"), offset=offset)
    if (values.view(np.uint16) & 0x7FFF).max() >= 0x7C00:
        raise Rejected("non_finite", f"{np.count_nonzero(~np.isfinite(values))} of {values.size} values")
    return values.reshape(shape, order="F" if fortran else "C")


def parse_meta(payload: bytes) -> dict[str, Any]:
    """text, speaker, language, duration_s and source from a json member. Raises Rejected."""
    try:
        meta = load_json(payload.removeprefix(codecs.BOM_UTF8), "json", max_bytes=MAX_JSON_BYTES)
    except ValueError as error:
        raise Rejected("bad_json", str(error)[:120]) from None
    if not isinstance(meta, dict):
        raise Rejected("bad_json", f"a {type(meta).__name__}, expected an object")
    return {"text": _text(meta.get("text")), "duration_s": _duration(meta.get("duration_s"))} | {
        name: _word(name, meta.get(name)) for name in ("speaker", "language", "source")
    }


def _text(value: Any) -> str:
    if value is None:
        raise Rejected("empty_text", "no text")
    if not isinstance(value, str) or "\0" in value:
        raise Rejected("bad_json", f"text is {str(value)[:40]!r}, expected a string without NUL")
    if not value.strip():
        raise Rejected("empty_text", "text is blank")
    return value


def _word(name: str, value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):  # some corpora number their speakers
        value = str(value)
    if value is None or (isinstance(value, str) and len(value.encode()) <= MAX_WORD_BYTES):
        return value
    raise Rejected("bad_json", f"{name} is {str(value)[:40]!r}, expected a string of at most {MAX_WORD_BYTES} bytes")


def _duration(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Rejected("bad_json", f"duration_s is {str(value)[:40]!r}, expected seconds")
    return float(value)


def _is_sample(entry: Entry) -> bool:
    """Whether an entry is a sample rather than another file (README, picture). Keys with dots count, to be rejected."""
    return any(suffix == "json" or suffix == "npy" or suffix.endswith(".npy") for suffix in entry.members)


def _npy_header(payload: bytes) -> tuple[str, bool, tuple[int, ...], int]:
    """dtype string, Fortran order, shape and the offset of the values.

    NumPy's own parser raises an open-ended set of exceptions on bad input (SyntaxError, TokenError, MemoryError).
    """
    length_bytes = 4 if payload[6:7] == b"\2" else 2
    start = 8 + length_bytes
    size = int.from_bytes(payload[8:start], "little")
    if payload[:6] != b"\x93NUMPY" or payload[6:8] not in (b"\1\0", b"\2\0") or size > MAX_NPY_HEADER_BYTES:
        raise Rejected("bad_npy", f"begins with {payload[:start]!r}")
    header = payload[start : start + size]
    found = NPY_HEADER.fullmatch(header)
    sizes = re.findall(rb"-?\d+", found["shape"]) if found else []
    if found is None or any(len(digits) > MAX_SIZE_DIGITS for digits in sizes):
        raise Rejected("bad_npy", f"its header is {header[:80]!r}")
    dtype = found["descr"].strip(b"'").decode("latin-1")
    if "O" in dtype:
        raise Rejected("pickled_npy", "an array of Python objects")
    return dtype, found["fortran"] == b"True", tuple(map(int, sizes)), start + size


class ShardWriter:
    """Writes one shard with webdataset's TarWriter; the file appears only once it is complete.

    A context manager; after an exception no file is left. ValueError for a sample that the reader would reject.
    """

    def __init__(self, path: str | Path, channels: int) -> None:
        self.path = Path(path)
        self.channels = channels
        self.keys: set[str] = set()

    def __enter__(self) -> "ShardWriter":
        # Imported here because webdataset imports torch if it is installed, which readers do not need.
        from webdataset.writer import TarWriter

        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_write(self.path))
            file = stack.enter_context(temporary.open("wb"))
            self._tar = stack.enter_context(TarWriter(file, encoder=False, mtime=0))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, sample: Sample) -> None:
        """Appends one sample; latents of any float type are stored as float16."""
        if not KEY_PATTERN.fullmatch(sample.key) or sample.key in self.keys:
            raise ValueError(
                f"{self.path}: key {sample.key!r} is a duplicate or not 1 to 80 characters of A-Z a-z 0-9 _ -"
            )
        meta = {"text": sample.text} | {
            name: value
            for name in ("speaker", "language", "duration_s", "source")
            if (value := getattr(sample, name)) is not None
        }
        member: dict[str, Any] = {"__key__": sample.key, "json": json.dumps(meta, ensure_ascii=False).encode()}
        member["npy"] = npy_bytes(sample.latent)
        if sample.reference is not None:
            member["ref.npy"] = npy_bytes(sample.reference)
        try:
            parse_meta(member["json"])
            for suffix in member.keys() & {"npy", "ref.npy"}:
                parse_latent(member[suffix], self.channels)
        except Rejected as fault:
            raise ValueError(f"{self.path}: {sample.key}: {fault}") from None
        self._tar.write(member)
        self.keys.add(sample.key)


def npy_bytes(latent: np.ndarray) -> bytes:
    """A latent as the bytes of a float16 npy file. Values beyond +-65504 become infinite and are rejected later."""
    stream = io.BytesIO()
    with np.errstate(over="ignore"):
        np.lib.format.write_array(stream, latent.astype("<f2"), allow_pickle=False)
    return stream.getvalue()
