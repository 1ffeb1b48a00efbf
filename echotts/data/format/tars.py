"""A tar file as an index: which member lies where, grouped by sample key. Nothing in the file is trusted.

The headers are walked once and payloads are read by position, so members of a sample may lie anywhere and a cut
file is noticed before its last sample is used. Names are split as webdataset does: the key ends at the first dot
of the last path component. POSIX.1-1988 (ustar), GNU long names and pax path and size records are understood.
"""

import gzip
import os
import tempfile
import zlib
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from echotts.rundir.rejections import Fault, Rejected

BLOCK = 512
MAX_NAME_BYTES = 1024
MAX_EXTENDED_HEADER_BYTES = 1 << 20
MAX_UNPACKED_BYTES = 16 << 30
_ZERO_BLOCK = bytes(BLOCK)


@dataclass
class Entry:
    """The members of one key: suffix (lower case, without the first dot) -> (offset, size) in bytes."""

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    fault: Fault | None = None


class TarFile:
    """An open, indexed tar. `entries` come in the order in which their keys first appear.

    OSError means that the file could not be read at all; what is wrong inside it is in `faults` and `Entry.fault`.
    A `.gz` file is unpacked to an unnamed temporary file first.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = _open(self.path)
        try:
            self.entries, self.faults = _Walk(self._file.fileno()).run()
        except BaseException:
            self._file.close()
            raise

    def read(self, entry: Entry, suffix: str, limit_bytes: int) -> bytes:
        """The bytes of one member. Raises Rejected when it is absent or larger than `limit_bytes`."""
        if suffix not in entry.members:
            has = ", ".join(sorted(entry.members)[:8])
            raise Rejected("member_missing", f"no {suffix}, it has {has}")
        offset, size = entry.members[suffix]
        if size > limit_bytes:
            raise Rejected("oversized_member", f"{suffix} has {size} bytes, the limit is {limit_bytes}")
        payload = os.pread(self._file.fileno(), size, offset)
        if len(payload) != size:
            raise OSError(f"{self.path}: {len(payload)} of {size} bytes at {offset}: the file shrank while it was read")
        return payload

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "TarFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Walk:
    """One pass over the headers of an open file."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.end = os.fstat(descriptor).st_size
        self.entries: dict[str, Entry] = {}
        self.faults: list[Fault] = []
        self.last: Entry | None = None

    def run(self) -> tuple[list[Entry], list[Fault]]:
        offset = 0
        extended: dict[str, Any] = {}
        while True:
            header = os.pread(self.descriptor, BLOCK, offset)
            if len(header) < BLOCK:
                self.faults.append(Fault("truncated_shard", "", f"ends at byte {self.end} without an end mark"))
                break
            if header == _ZERO_BLOCK:
                self._check_end(offset)
                break
            size = _member_size(header)
            if size is None:
                cause = "truncated_shard" if offset else "not_a_tar"
                self.faults.append(Fault(cause, "", f"no valid header at byte {offset}"))
                break
            kind, payload = header[156:157], offset + BLOCK
            if kind in (b"x", b"L"):
                extended |= self._extended_header(kind, payload, size)
            if kind in (b"x", b"L", b"g", b"K"):  # they describe the member that follows
                offset = payload + _padded(size)
                continue
            size = extended.get("size", size)
            name = extended.get("path", _ustar_name(header))
            extended = {}
            offset = payload + _padded(size)
            if kind != b"5":  # a folder
                self._add(name, kind, payload, size)
        if self.faults and self.faults[-1].cause == "truncated_shard" and self.last is not None:
            # whether the key at the cut had more members cannot be known
            self.last.fault = Fault("truncated_shard", self.last.key, "lies where the shard is cut")
        return list(self.entries.values()), self.faults

    def _add(self, raw: bytes, kind: bytes, payload: int, size: int) -> None:
        name = _clean_name(raw)
        if name is None or kind not in (b"0", b"\0", b"7"):
            what = "a name that is not a plain relative path" if name is None else f"type {kind!r}: a link or device"
            self.faults.append(Fault("hostile_member", repr(raw[:80])[2:-1], what))
            return
        folder, _, base = name.rpartition("/")
        stem, dot, suffix = base.partition(".")
        if not dot or not stem:
            return
        key = f"{folder}/{stem}" if folder else stem
        entry = self.last = self.entries.setdefault(key, Entry(key))
        suffix = suffix.lower()
        if suffix in entry.members:
            entry.fault = Fault("duplicate_key", key, f"{suffix} occurs twice")
        entry.members[suffix] = (payload, size)

    def _extended_header(self, kind: bytes, payload: int, size: int) -> dict[str, Any]:
        """GNU long name or pax records of the member that follows."""
        if size > MAX_EXTENDED_HEADER_BYTES:
            return {"path": b""}
        records = os.pread(self.descriptor, size, payload)
        if kind == b"L":
            return {"path": records.rstrip(b"\0")}
        found: dict[str, Any] = {}
        while records:
            length, space, _ = records.partition(b" ")
            if not space or not length.isdigit() or not 0 < int(length) <= len(records):
                break
            keyword, _, value = records[len(length) + 1 : int(length) - 1].partition(b"=")
            if keyword == b"path":
                found["path"] = value
            elif keyword == b"size" and value.isdigit() and len(value) < 20:
                found["size"] = int(value)
            records = records[int(length) :]
        return found

    def _check_end(self, offset: int) -> None:
        following = os.pread(self.descriptor, BLOCK, offset + BLOCK)
        if following.strip(b"\0"):
            self.faults.append(Fault("truncated_shard", "", f"a zero block at byte {offset} with data behind it"))


def begins_like_a_tar(path: Path) -> bool:
    """Whether the first block is a tar's: a page that says why there is no file is not."""
    with path.open("rb") as file:
        header = file.read(BLOCK)
    return len(header) == BLOCK and (header == _ZERO_BLOCK or _member_size(header) is not None)


def _open(path: Path) -> BinaryIO:
    if path.suffix != ".gz":
        return path.open("rb", buffering=0)
    with ExitStack() as stack:
        unpacked = stack.enter_context(tempfile.TemporaryFile(buffering=0))
        with suppress(EOFError, gzip.BadGzipFile, zlib.error), gzip.open(path, "rb") as packed:
            # of a cut file the readable part is kept: the walk reports the missing end
            while chunk := packed.read(1 << 20):
                unpacked.write(chunk)
                if unpacked.tell() > MAX_UNPACKED_BYTES:
                    raise OSError(f"{path}: unpacks to more than {MAX_UNPACKED_BYTES >> 30} GiB")
        stack.pop_all()
    return unpacked


def _member_size(header: bytes) -> int | None:
    """Payload size in bytes, or None where the header's checksum or number is wrong."""
    try:
        expected = int(header[148:156].rstrip(b"\0 ") or b"0", 8)
        if sum(header) - sum(header[148:156]) + 8 * 32 != expected:
            return None
        field_bytes = header[124:136]
        if field_bytes[0] & 0x80:  # GNU base-256, for members of 8 GiB and more
            return int.from_bytes(field_bytes[1:], "big") if field_bytes[0] == 0x80 else None
        size = int(field_bytes.strip(b"\0 ") or b"0", 8)
    except ValueError:
        return None
    return size if size >= 0 else None


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _ustar_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _clean_name(raw: bytes) -> str | None:
    """The member's name as a plain relative path, or None: absolute, climbing, unprintable or overlong."""
    if not raw or len(raw) > MAX_NAME_BYTES:
        return None
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        return None
    name = name.removeprefix("./")
    if not name.isprintable() or "\\" in name or name.startswith("/") or ".." in name.split("/"):
        return None
    return name
