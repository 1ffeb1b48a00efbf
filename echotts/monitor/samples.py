"""Speech samples of a run: an index of its audio files, and pictures of their spectrograms.

Files are identified by ids made here; paths never come from a request.
"""

import io
import math
import re
import struct
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from echotts.monitor.folders import Folder, hashed
from echotts.rundir.layout import SAMPLES, SENTENCES
from echotts.strict_json import load_json

STEP_FOLDER = re.compile(r"step_(\d{1,18})")
TYPES = {"wav": "audio/wav", "flac": "audio/flac", "mp3": "audio/mpeg", "ogg": "audio/ogg", "opus": "audio/ogg"}
AUDIO_BYTES = 64 << 20  # larger files are not listed
TEXT_BYTES = 1 << 20
SHOWN_STEPS = 200  # the newest

PICTURE_WIDTH, BANDS = 512, 96  # pixels
WINDOW = 1024
LOWEST_HZ, FLOOR_DB = 40.0, -80.0
KEPT_PICTURES = 200  # about 30 kB each
PICTURE_SECONDS = 60.0  # from the beginning


@dataclass(frozen=True)
class Item:
    """One audio file of the samples."""

    id: str
    path: str
    text: str
    size_bytes: int
    reference_id: str | None
    heard: str = ""  # the recogniser's transcript; empty if there is none

    @property
    def media_type(self) -> str:
        return TYPES[self.path.rpartition(".")[2].lower()]


class Samples:
    """The samples of one run. `steps` lists them again; `find` uses the last listing."""

    def __init__(self, folder: Folder):
        self._folder = folder
        self._items: dict[str, Item] = {}
        self._seconds: dict[tuple[str, int], float | None] = {}
        self._pictures: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def steps(self) -> list[tuple[int, list[Item]]]:
        """(step, its samples in order), newest step first. References are not listed, but can be found by id."""
        found = []
        for entry in self._folder.entries(SAMPLES):
            if entry.is_folder and (matched := STEP_FOLDER.fullmatch(entry.name)):
                found.append((int(matched[1]), f"{SAMPLES}/{entry.name}"))
        items: dict[str, Item] = {}
        steps = []
        for step, path in sorted(found, reverse=True)[:SHOWN_STEPS]:
            listed = self._of_step(path, items)
            if listed:
                steps.append((step, listed))
        self._items = items
        return steps

    def find(self, item_id: str) -> Item | None:
        """The item with this id; the samples are listed again if it is unknown."""
        if item_id not in self._items:
            self.steps()
        return self._items.get(item_id)

    def local_path(self, item: Item) -> str | None:
        """The path of the file on this machine; None in a bucket."""
        return self._folder.local_path(item.path)

    def audio(self, item: Item) -> bytes:
        """The whole file."""
        return self._folder.read(item.path, 0, AUDIO_BYTES)

    def seconds(self, item: Item) -> float | None:
        """The duration; None if unreadable."""
        key = (item.path, item.size_bytes)
        if key not in self._seconds:
            import soundfile

            try:
                info = soundfile.info(io.BytesIO(self.audio(item)))
                self._seconds[key] = round(info.frames / info.samplerate, 3)
            except (soundfile.SoundFileError, ZeroDivisionError):
                self._seconds[key] = None
        return self._seconds[key]

    def picture(self, item: Item) -> bytes | None:
        """PNG of the log-mel spectrogram; None if the file contains no audio."""
        key = (item.path, item.size_bytes)
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
                return self._pictures[key]
        picture = draw(self.audio(item))
        if picture is not None:
            with self._lock:
                self._pictures[key] = picture
                if len(self._pictures) > KEPT_PICTURES:
                    self._pictures.popitem(last=False)
        return picture

    def _of_step(self, path: str, items: dict[str, Item]) -> list[Item]:
        """The samples of one folder; adds all audio files, including references, to `items`."""
        described = self._described(path)
        audio = {
            entry.name: entry.size_bytes
            for entry in self._folder.entries(path)
            if not entry.is_folder and entry.size_bytes <= AUDIO_BYTES and entry.name.lower().endswith(tuple(TYPES))
        }
        references = {name: about["reference"] for name, about in described.items() if about.get("reference") in audio}
        listed = []
        for name, size_bytes in audio.items():
            reference = references.get(name)
            text, heard = (described.get(name, {}).get(key, "") for key in ("text", "heard"))
            item = Item(
                _id(path, name),
                f"{path}/{name}",
                text,
                size_bytes,
                _id(path, reference) if reference else None,
                heard,
            )
            items[item.id] = item
            if name not in references.values():
                listed.append(item)
        return listed

    def _described(self, path: str) -> dict[str, dict[str, Any]]:
        """The entries of sentences.json by file: text, or an object with "text", "reference" (a file), "heard"."""
        try:
            said = load_json(self._folder.read(f"{path}/{SENTENCES}", 0, TEXT_BYTES), SENTENCES, dict[str, Any])
        except ValueError:
            return {}
        objects = {name: about if isinstance(about, dict) else {"text": about} for name, about in said.items()}
        return {
            name: {key: word for key, word in about.items() if isinstance(word, str)} for name, about in objects.items()
        }


def draw(audio: bytes) -> bytes | None:
    """PNG of the mel spectrogram of an audio file: time to the right, 96 mel bands upwards, louder is brighter."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(audio)) as file:
            rate = file.samplerate
            sound = file.read(int(PICTURE_SECONDS * rate), dtype="float32", always_2d=True).mean(axis=1)
    except (soundfile.SoundFileError, ValueError):
        return None
    if not len(sound):
        return None
    sound = np.nan_to_num(np.pad(sound, WINDOW // 2))
    starts = np.linspace(0, len(sound) - WINDOW, PICTURE_WIDTH).astype(int)
    frames = sound[starts[:, None] + np.arange(WINDOW)] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    mel = power @ mel_filters(rate).T
    decibel = 10 * np.log10(np.maximum(mel / max(mel.max(), 1e-12), 1e-12))
    return png(colours(np.clip(1 - decibel / FLOOR_DB, 0, 1).T[::-1]))


def mel_filters(rate: int) -> np.ndarray:
    """(bands, bins): triangles equally spaced on the mel scale 2595 log10(1 + f / 700)."""
    edges_mel = np.linspace(_mel(LOWEST_HZ), _mel(rate / 2), BANDS + 2)
    edges_hz = 700 * (10 ** (edges_mel / 2595) - 1)
    bins_hz = np.fft.rfftfreq(WINDOW, 1 / rate)
    low, middle, high = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    triangles = np.clip(np.minimum((bins_hz - low) / (middle - low), (high - bins_hz) / (high - middle)), 0, None)
    # the lowest bands are narrower than a bin: use the nearest bin
    empty = triangles.sum(axis=1) == 0
    triangles[empty, np.abs(bins_hz - middle[empty]).argmin(axis=1)] = 1
    return triangles


def _mel(frequency_hz: float) -> float:
    return 2595 * math.log10(1 + frequency_hz / 700)


def colours(share: np.ndarray) -> np.ndarray:
    """(height, width) in 0 to 1 as (height, width, 3) bytes: dark blue, violet, orange, pale yellow."""
    stops = np.array([[6, 8, 30], [70, 20, 110], [185, 50, 90], [250, 140, 30], [252, 250, 190]], float)
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(share, places, stops[:, channel]) for channel in range(3)], axis=-1).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """(height, width, 3) bytes as a PNG file (RFC 2083: each row starts with its filter type, 0 for none)."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _id(path: str, name: str) -> str:
    return hashed(f"{path}/{name}")[:16]
