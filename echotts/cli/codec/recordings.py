"""Shared by codec commands: reading the clips of a source of recordings, with progress."""

import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")
LOGGER = logging.getLogger(__name__)


def clips_of(
    data: str, sample_rate: int, loudness: float, title: str, limit: int | None = None
) -> Iterator[tuple[str, Any]]:
    """Names and normalised clips of a source of recordings; unreadable ones are logged and skipped."""
    from echotts.audio import AUDIO_SUFFIXES, loudness_normalise
    from echotts.data.prepare.recordings import Recording, RecordingReader, list_recordings
    from echotts.rundir.rejections import Rejected

    # texts are not needed here, so a folder of audio files alone is a source, too
    files = sorted(path for path in Path(data).rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    recordings = [Recording(path.stem, {}, path) for path in files] or list_recordings(data)
    with RecordingReader() as reader:
        for recording in progress(recordings[:limit], title, len(recordings[:limit])):
            try:
                clip = reader.read(recording, sample_rate)
            except Rejected as error:
                LOGGER.warning("skipped: %s", error.detail)
                continue
            yield recording.origin, loudness_normalise(clip, sample_rate, loudness)


def progress(items: Iterable[Item], title: str, total: int) -> Iterable[Item]:
    """A progress bar with rate and remaining time on a terminal, otherwise a line at every tenth."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=title, total=total, dynamic_ncols=True)
        return
    import time

    start = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        if number * 10 // total > (number - 1) * 10 // total and total > 1:
            rate = number / max(time.monotonic() - start, 1e-9)
            left = (total - number) / rate
            print(f"{title}: {number} of {total}, {rate:.1f}/s, {left:.0f} s left", file=sys.stderr, flush=True)
