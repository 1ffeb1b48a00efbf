"""Asking a trainer to save and wait: `pause.json` in its run directory, until there is room again.

The watchdog writes it when a disk is nearly full and nothing more may be deleted, and takes it away when there is
room; the trainer looks for it after each step. It can be empty, for want of room to write it.
"""

import contextlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from echotts.disk.measure import Space, measure
from echotts.disk.settings import Limits

NAME = "pause.json"
LOOK_S = 1.0

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """Why to wait, and until when."""

    place: str
    """A path on the disk that is full."""
    below: float = Limits.resume
    """The used share below which it is over, whether or not the watchdog is still there to say so."""


def ask(run_dir: Path, request: Request) -> bool:
    """Leaves the request there; False where it was there already."""
    path = run_dir / NAME
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    with contextlib.suppress(OSError):  # an empty one asks as well
        path.write_text(json.dumps(asdict(request)) + "\n", encoding="utf-8")
    return True


def withdraw(run_dir: Path) -> None:
    """Takes the request away."""
    with contextlib.suppress(OSError):
        (run_dir / NAME).unlink(missing_ok=True)


def asked(run_dir: Path) -> Request | None:
    """What the trainer is asked; None: to go on. One system call where nothing is asked."""
    try:
        content = (run_dir / NAME).read_text(encoding="utf-8")
    except OSError:
        return None
    try:
        return Request(**json.loads(content))
    except (ValueError, TypeError):
        return Request(place=str(run_dir))


def full(run_dir: Path) -> Space | None:
    """The space on the disk for which a pause is asked; None where none is, or where there is room by now.

    A request that is over is taken away, in case that who asked is no more.
    """
    request = asked(run_dir)
    if request is None:
        return None
    try:
        space = measure(request.place)
    except OSError:  # this host knows no such place, so nothing holds it
        space = None
    if space is None or space.used_share < request.below:
        withdraw(run_dir)
        return None
    return space
