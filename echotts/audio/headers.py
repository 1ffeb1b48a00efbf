"""What the headers of Ogg pages and mp3 frames say, for files of which libsndfile alone drops or invents samples."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader, BytesIO

LEAST_JOINED_BYTES = 1 << 13

File = BytesIO | BufferedReader


@dataclass(frozen=True)
class OggPage:
    """The header of a page (RFC 3533). `position`: the frames until its end, from wherever the stream began."""

    start: int
    end: int
    flags: int
    position: int

    @property
    def ends(self) -> bool:
        return bool(self.flags & 4)

    def begins_after(self, before: "OggPage | None") -> bool:
        """Whether it is the first page of the file or of a link; several streams may begin in a row."""
        return bool(self.flags & 2) and (before is None or not before.flags & 2)


def ogg_pages(data: bytes) -> Iterator[OggPage]:
    """The pages one after another; bytes between them, of damage, are passed over."""
    at = 0
    while (at := data.find(b"OggS\0", at)) >= 0 and at + 27 <= len(data):
        sizes = data[at + 27 : at + 27 + data[at + 26]]
        end = at + 27 + data[at + 26] + sum(sizes)
        yield OggPage(at, end, data[at + 5], int.from_bytes(data[at + 6 : at + 14], "little"))
        at = end


@dataclass(frozen=True)
class MpegFrame:
    """The first frame of an mp3 (ISO 11172-3): its position, its first 4 bytes, and the facts of its Xing header.

    `end`: the end of the audio by that header, None if it does not say.
    """

    start: int
    head: bytes
    tagged: bool
    end: int | None

    @classmethod
    def find(cls, file: File, position: int = 0) -> "MpegFrame | None":
        """The frame at `position`, or after an ID3v2 tag there; None if there is none."""
        file.seek(position)
        tag = file.read(10)
        if tag.startswith(b"ID3") and len(tag) == 10:
            position += 10 + sum((byte & 0x7F) << 7 * (3 - place) for place, byte in enumerate(tag[6:]))
        file.seek(position)
        head = file.read(64)
        if not re.match(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xef].", head, re.DOTALL) or head[2] & 0x0C == 0x0C:
            return None
        found = re.search(rb"Xing|Info|VBRI", head)
        if found is None:
            return cls(position, head[:4], False, None)
        if found[0] == b"VBRI":
            size = int.from_bytes(head[46:50], "big")
        else:
            fields = head[found.end() : found.end() + 12]
            flags, *counts = (int.from_bytes(fields[at : at + 4], "big") for at in (0, 4, 8))
            size = counts[flags & 1] if flags & 2 else 0  # the frame count, if present, comes first
        return cls(position, head[:4], True, position + size if size else None)

    def is_followed(self, file: File) -> bool:
        """Whether another mp3 begins where this one ends."""
        if self.end is None or file.seek(0, os.SEEK_END) - self.end < LEAST_JOINED_BYTES:
            return False
        return MpegFrame.find(file, self.end) is not None

    def endless(self, file: File) -> bytes:
        """The file behind a Xing header that claims far too many frames, so that all existing ones are read."""
        _, second, third, fourth = self.head
        first_version = second & 0x08
        rates = {0x18: (44100, 48000, 32000), 0x10: (22050, 24000, 16000), 0x00: (11025, 12000, 8000)}[second & 0x18]
        rate = rates[third >> 2 & 3]
        length = 144 * 128_000 // rate if first_version else 72 * 80_000 // rate  # bit rate index 9
        mono = fourth >> 6 == 3
        side = (17 if mono else 32) if first_version else (9 if mono else 17)
        file.seek(self.start)
        sound = file.read()
        frame = bytes((0xFF, second | 1, 0x90 | third & 0x0C, fourth & 0xC0)) + bytes(side)
        frame += b"Xing" + (1).to_bytes(4, "big") + (len(sound) + 1).to_bytes(4, "big")
        return frame.ljust(length, b"\0") + sound
