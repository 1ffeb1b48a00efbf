"""Asking a trainer to save and wait: `pause.<hostname>.json` in its run directory, until there is room again.

The watchdog of a host writes it when a disk is nearly full and nothing more may be deleted, and takes it away when
there is room; the host's trainer looks for it after each step. It can be empty, for want of room to write it. Hosts
that share a run directory have a file each, since nobody else can tell how full a host's disks are.
"""

import contextlib
import json
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from echotts.rundir.free_space import Space, measure
from echotts.strict_json import load_json

LOOK_S = 1.0
RESUME_SHARE = 0.95  # used share of a disk below which a trainer goes on, where the watchdog names no other


@dataclass(frozen=True)
class Request:
    """Why to wait, and until when."""

    place: str
    """A path on the disk that is full."""
    below: float = RESUME_SHARE
    """The used share below which it is over, whether or not the watchdog is still there to say so."""


def request_path(run_dir: Path) -> Path:
    """Where this host's trainers are asked."""
    return run_dir / f"pause.{socket.gethostname()}.json"


def ask(run_dir: Path, request: Request) -> bool:
    """Leaves the request there; False where it was there already."""
    path = request_path(run_dir)
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
        request_path(run_dir).unlink(missing_ok=True)


def asked(run_dir: Path) -> Request | None:
    """What the trainer is asked; None: to go on. One system call where nothing is asked."""
    try:
        content = request_path(run_dir).read_bytes()
    except OSError:
        return None
    try:
        return load_json(content, request_path(run_dir), Request)
    except ValueError:
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
