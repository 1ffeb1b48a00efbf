"""An index of a tar file: the position of each member, grouped by sample key. The file is not trusted.

Headers are read in one pass and payloads by position, so the members of a sample may be anywhere, and a truncated file
is detected before its last sample is used. Names are split as in webdataset: the key ends at the first dot of the last
path component. Supported are POSIX.1-1988 (ustar), GNU long names, and pax path and size records; concatenated archives
are read as one.

Reading needs at most 1.5 times the file's size in memory (for a .gz file 4 times, plus 64 MiB) and linear time.
"""

import os
import tempfile
import unicodedata
import zlib
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from echotts.files import Closing
from echotts.rundir.rejections import Fault, Rejected

BLOCK = 512
CHUNK_BYTES = 1 << 20
MAX_NAME_BYTES = 1024
MAX_EXTENDED_HEADER_BYTES = 1 << 20
MAX_UNPACKED_BYTES = 16 << 30
MAX_UNPACKED_RATIO, SPARE_UNPACKED_BYTES = 64, 64 << 20  # of a .gz: unpacked bytes per packed one, plus a constant
PACKED_BYTES_PER_MEMBER, SPARE_MEMBERS = 128, 32768  # limit of a .gz: packed bytes per member, plus a constant
GZIP_CHUNK_BYTES = 1 << 14  # small, because the rest of a chunk is copied for each gzip stream in it
_ZERO_BLOCK = bytes(BLOCK)
_REGULAR = (b"0", b"\0", b"7")
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # would reorder a log line


@dataclass(slots=True)
class Entry:
    """The members of one key: suffix (lower case, without the leading dot) -> (offset, size) in bytes."""

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    fault: Fault | None = None


class TarFile(Closing):
    """An open, indexed tar file. `entries` are in the order in which their keys first appear.

    OSError means that the file could not be read at all; errors in its contents are in `faults` and `Entry.fault`. A
    `.gz` file is first unpacked to an unnamed temporary file; if its checksum is wrong, none of it is used.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file, fault, max_members = _open(self.path)
        self.entries: list[Entry] = []
        self.faults = [fault] if fault else []
        if fault is None:
            try:
                self.entries, self.faults = _Walk(self._file.fileno(), max_members).run()
            except BaseException:
                self._file.close()
                raise

    def read(self, entry: Entry, suffix: str, limit_bytes: int) -> bytes:
        """The bytes of one member. Raises Rejected if it is missing or larger than `limit_bytes`."""
        if suffix not in entry.members:
            has = ", ".join(sorted(entry.members)[:8])
            dotted = any(name.endswith(f".{suffix}") for name in entry.members)
            hint = ": a key ends at the first dot of the name" if dotted else ""
            raise Rejected("member_missing", f"no {suffix}, only {has}{hint}")
        offset, size = entry.members[suffix]
        if size > limit_bytes:
            raise Rejected("oversized_member", f"{suffix} has {size} bytes, the limit is {limit_bytes}")
        payload = os.pread(self._file.fileno(), size, offset)
        if len(payload) != size:
            raise OSError(
                f"{self.path}: read {len(payload)} of {size} bytes at {offset}: the file shrank while it was open"
            )
        return payload

    def close(self) -> None:
        self._file.close()


class _Walk:
    """One pass over the headers of an open file."""

    def __init__(self, descriptor: int, max_members: int) -> None:
        self.descriptor = descriptor
        self.max_members = max_members
        self.end = os.fstat(descriptor).st_size
        self.entries: dict[str, Entry] = {}
        self.faults: list[Fault] = []
        self.last: Entry | None = None
        self.unnamed: set[bytes] = set()  # stems of hostile names: the members of one sample count once
        self.extended: dict[str, Any] = {}

    def run(self) -> tuple[list[Entry], list[Fault]]:
        offset: int | None = 0
        members = 0
        while offset is not None:
            offset = self._next(offset)
            members += 1
            if members > self.max_members:
                return [], [Fault("oversized_shard", "the whole file", f"more than {self.max_members} members")]
        return list(self.entries.values()), self.faults

    def _next(self, offset: int) -> int | None:
        """Reads the header at `offset` and returns the offset of the next one, None after the last."""
        header = os.pread(self.descriptor, BLOCK, offset) if offset < self.end else b""
        if len(header) < BLOCK:
            return self._cut(f"ends at byte {self.end} without an end-of-archive mark")
        if header == _ZERO_BLOCK:
            return self._after_zeros(offset)
        size = _member_size(header)
        if size is None and offset:
            return self._cut(f"no valid header at byte {offset}")
        if size is None:
            self.faults.append(Fault("not_a_tar", "the whole file", "no valid header at byte 0"))
            return None
        kind, payload = header[156:157], offset + BLOCK
        if kind in (b"x", b"L"):
            self.extended |= self._extended_header(kind, payload, size)
        if kind in (b"x", b"L", b"g", b"K"):  # these describe the next member
            return payload + _padded(size)
        size = self.extended.get("size", size)
        name = self.extended.get("path", _ustar_name(header))
        self.extended = {}
        if kind != b"5":  # not a folder
            self._add(name, kind, payload, size)
        return payload + _padded(size)

    def _add(self, raw: bytes, kind: bytes, payload: int, size: int) -> None:
        name = _clean_name(raw)
        if name is None:
            folder, slash, base = raw.rpartition(b"/")
            stem = folder + slash + base.partition(b".")[0]
            if stem not in self.unnamed:
                self.unnamed.add(stem)
                detail = "a name that is not a plain relative path"
                self.faults.append(Fault("hostile_member", repr(raw[:80])[2:-1], detail))
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
        if kind not in _REGULAR:
            entry.fault = Fault("hostile_member", key, f"{suffix} is of type {kind!r}: a link or device")
        entry.members[suffix] = (payload, size)

    def _extended_header(self, kind: bytes, payload: int, size: int) -> dict[str, Any]:
        """The GNU long name or pax records of the next member."""
        if size > MAX_EXTENDED_HEADER_BYTES or payload > self.end:
            return {"path": b""}
        records = os.pread(self.descriptor, size, payload)
        return {"path": records.rstrip(b"\0")} if kind == b"L" else _pax_records(records)

    def _after_zeros(self, offset: int) -> int | None:
        """Looks past the end-of-archive mark (two or more zero blocks) for another, concatenated archive."""
        place = offset
        while chunk := os.pread(self.descriptor, CHUNK_BYTES, place):
            data = chunk.lstrip(b"\0")
            if data:
                place += (len(chunk) - len(data)) // BLOCK * BLOCK
                header = os.pread(self.descriptor, BLOCK, place)
                if place - offset >= 2 * BLOCK and len(header) == BLOCK and _member_size(header) is not None:
                    return place
                return self._cut(f"a zero block at byte {offset} followed by data")
            place += len(chunk)
        return None

    def _cut(self, detail: str) -> None:
        """Drops the last key before the truncation, since further members of it may be missing."""
        dropped = f"; {self.last.key}, before it, is dropped" if self.last else ""
        self.faults.append(Fault("truncated_shard", "the rest", detail + dropped))
        if self.last is not None:
            del self.entries[self.last.key]


def _pax_records(records: bytes) -> dict[str, Any]:
    """path and size from pax records, each `<decimal length of the record> <keyword>=<value>\\n`."""
    found: dict[str, Any] = {}
    place, longest = 0, len(str(MAX_EXTENDED_HEADER_BYTES))
    while (space := records.find(b" ", place, place + longest + 1)) > place and records[place:space].isdigit():
        end = place + int(records[place:space])
        if not space < end <= len(records):
            break
        keyword, _, value = records[space + 1 : end - 1].partition(b"=")
        if keyword == b"path":
            found["path"] = value
        elif keyword == b"size" and value.isdigit() and len(value) < 20:
            found["size"] = int(value)
        place = end
    return found


def begins_like_a_tar(path: Path) -> bool:
    """Whether the first block is that of a tar; an HTML error page, for example, is not."""
    with path.open("rb") as file:
        header = file.read(BLOCK)
    return len(header) == BLOCK and (header == _ZERO_BLOCK or _member_size(header) is not None)


def _open(path: Path) -> tuple[BinaryIO, Fault | None, int]:
    """The (unpacked) file, a fault of the file as a whole, and the maximum number of members."""
    if path.suffix != ".gz":
        file = path.open("rb", buffering=0)
        return file, None, os.fstat(file.fileno()).st_size // BLOCK + 2
    with ExitStack() as stack:
        unpacked = stack.enter_context(tempfile.TemporaryFile(buffering=0))
        with path.open("rb") as packed:
            size = os.fstat(packed.fileno()).st_size
            fault = _unpack(packed, unpacked, min(MAX_UNPACKED_BYTES, MAX_UNPACKED_RATIO * size + SPARE_UNPACKED_BYTES))
        stack.pop_all()
    return unpacked, fault, size // PACKED_BYTES_PER_MEMBER + SPARE_MEMBERS


def _unpack(packed: BinaryIO, unpacked: BinaryIO, limit_bytes: int) -> Fault | None:
    """Unpacks concatenated gzip streams; zlib verifies the checksums. Returns a fault, or None."""
    stream, rest, written = zlib.decompressobj(wbits=31), packed.read(GZIP_CHUNK_BYTES), 0
    if not rest.startswith(b"\x1f\x8b"):
        return Fault("not_a_tar", "the whole file", "not a gzip file")
    while rest:
        try:
            data = stream.decompress(rest, CHUNK_BYTES)
        except zlib.error as error:
            return Fault("corrupt_shard", "the whole file", f"gzip: {error}")
        written += len(data)
        if written > limit_bytes:
            return Fault("oversized_shard", "the whole file", f"unpacks to more than {limit_bytes} bytes")
        unpacked.write(data)
        rest = (stream.unused_data if stream.eof else stream.unconsumed_tail) or packed.read(GZIP_CHUNK_BYTES)
        if stream.eof:
            while rest and not (rest := rest.lstrip(b"\0")):  # padding
                rest = packed.read(GZIP_CHUNK_BYTES)
            if rest:
                stream = zlib.decompressobj(wbits=31)
    if not stream.eof:
        return Fault(
            "truncated_shard", "the whole file", "the gzip file is truncated: without a checksum none of it is used"
        )
    return None


def _member_size(header: bytes) -> int | None:
    """Payload size in bytes, or None if the header's checksum or a number is wrong."""
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
    """The member's name as a plain relative path, or None if absolute, with .. or control characters, or too long."""
    if not raw or len(raw) > MAX_NAME_BYTES:
        return None
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        return None
    name = name.removeprefix("./")
    if "\\" in name or name.startswith("/") or ".." in name.split("/"):
        return None
    if not name.isprintable() and any(map(_is_control, name)):  # joiners and unusual spaces are harmless
        return None
    return name


def _is_control(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Zl", "Zp") or letter in _DIRECTIONS
