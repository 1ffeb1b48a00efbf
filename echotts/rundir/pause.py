"""Requests to a trainer to save and wait: `pause.<hostname>.json` in its run directory, until space is free again.

The watchdog of a host writes the file when a disk is nearly full and nothing more can be deleted, and removes it when
space is free again; the host's trainer checks for it after each step. It may be empty, if there was no space to write
it. Hosts that share a run directory have a file each, since only a host itself knows how full its disks are.
"""

import contextlib
import json
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from echotts.rundir.free_space import Space, measure
from echotts.strict_json import load_json

LOOK_S = 1.0  # interval between checks while waiting
RESUME_SHARE = 0.95  # default used share of a disk below which a trainer continues


@dataclass(frozen=True)
class Request:
    """Why to wait, and until when."""

    place: str
    """A path on the full disk."""
    below: float = RESUME_SHARE
    """The used share below which the trainer continues, even if the watchdog no longer runs."""


def request_path(run_dir: Path) -> Path:
    """The request file for this host's trainers."""
    return run_dir / f"pause.{socket.gethostname()}.json"


def ask(run_dir: Path, request: Request) -> bool:
    """Writes the request; False if there already was one."""
    path = request_path(run_dir)
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    with contextlib.suppress(OSError):  # an empty file is a request, too
        path.write_text(json.dumps(asdict(request)) + "\n", encoding="utf-8")
    return True


def withdraw(run_dir: Path) -> None:
    with contextlib.suppress(OSError):
        request_path(run_dir).unlink(missing_ok=True)


def asked(run_dir: Path) -> Request | None:
    """The current request, or None to continue. Takes one system call if there is none."""
    try:
        content = request_path(run_dir).read_bytes()
    except OSError:
        return None
    try:
        return load_json(content, request_path(run_dir), Request)
    except ValueError:
        return Request(place=str(run_dir))


def full(run_dir: Path) -> Space | None:
    """The usage of the disk for which a pause is requested; None if there is no request or space is free again.

    An obsolete request is removed, in case the watchdog that wrote it no longer runs.
    """
    request = asked(run_dir)
    if request is None:
        return None
    try:
        space = measure(request.place)
    except OSError:  # the path does not exist on this host
        space = None
    if space is None or space.used_share < request.below:
        withdraw(run_dir)
        return None
    return space
