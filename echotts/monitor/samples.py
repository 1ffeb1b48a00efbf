"""Speech samples of a run: an index of its audio files, and pictures of their spectrograms.

Files are identified by ids made here; paths never come from a request.
"""

import io
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from echotts.monitor.folders import Folder, hashed
from echotts.rundir.layout import SAMPLES, SENTENCES
from echotts.spectrogram import draw_spectrogram
from echotts.strict_json import load_json

STEP_FOLDER = re.compile(r"step_(\d{1,18})")
TYPES = {"wav": "audio/wav", "flac": "audio/flac", "mp3": "audio/mpeg", "ogg": "audio/ogg", "opus": "audio/ogg"}
AUDIO_BYTES = 64 << 20  # larger files are not listed
TEXT_BYTES = 1 << 20
SHOWN_STEPS = 200  # the newest

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
                _id(path, name), f"{path}/{name}", text, size_bytes, _id(path, reference) if reference else None, heard
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
    return draw_spectrogram(sound, rate) if len(sound) else None


def _id(path: str, name: str) -> str:
    return hashed(f"{path}/{name}")[:16]
