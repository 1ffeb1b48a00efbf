"""Recordings as clips that are read in part, for codec training. Only names and lengths are kept in memory."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Float

from echotts.data.prepare.recordings import AUDIO_SUFFIXES, Recording, RecordingReader, check_source, list_recordings
from echotts.rundir.rejections import Rejected

LOGGER = logging.getLogger(__name__)

_SHOWN = 5  # maximum number of rejected recordings that are logged


class AudioClips:
    """The clips of one or several sources, numbered in a fixed order. Safe to read from several threads."""

    def __init__(self, recordings: Sequence[Recording], seconds: Float[np.ndarray, " n"], reader: RecordingReader):
        self.seconds = seconds
        self._recordings = recordings
        self._reader = reader

    def name(self, clip: int) -> str:
        """The clip's origin; the same in every run on the same files."""
        return self._recordings[clip].origin

    def read(self, clip: int, start_s: float, limit_s: float, sample_rate: int) -> Float[np.ndarray, " n"]:
        """A part of a clip as mono float32. Raises Rejected if it cannot be decoded."""
        return self._reader.read(self._recordings[clip], sample_rate, start_s=start_s, limit_s=limit_s)

    def close(self) -> None:
        self._reader.close()


def open_clips(source: str) -> AudioClips:
    """The clips of folders, tables (csv, jsonl) or audio shards; separate several sources by commas.

    A folder needs no texts. Recordings without a readable header are skipped and counted in a warning. Raises
    ValueError if none is left.
    """
    recordings = [recording for part in _parts(source) for recording in list_clips(part)]
    reader = RecordingReader()

    def length(recording: Recording) -> float | Rejected:
        try:
            return reader.seconds(recording)
        except Rejected as error:
            return error

    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
        lengths = list(pool.map(length, recordings))
    bad = [found for found in lengths if isinstance(found, Rejected)]
    for error in bad[:_SHOWN]:
        LOGGER.warning("skipped: %s", error.detail)
    if len(bad) > _SHOWN:
        LOGGER.warning("skipped: %d recordings in total", len(bad))
    good = [(r, s) for r, s in zip(recordings, lengths, strict=True) if not isinstance(s, Rejected) and s > 0]
    if not good:
        raise ValueError(f"{source}: contains no readable recordings")
    return AudioClips([recording for recording, _ in good], np.array([seconds for _, seconds in good]), reader)


def check_clips(source: str) -> None:
    """Raises the errors of `open_clips` for missing sources, without reading them."""
    for part in _parts(source):
        check_source(part)


def _parts(source: str) -> list[str]:
    return [part.strip() for part in source.split(",")]


def list_clips(source: str) -> list[Recording]:
    """The recordings of one source, with or without texts, in a fixed order."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
        if files:
            return [Recording(path.stem, {}, path) for path in files]
    return list_recordings(source)
