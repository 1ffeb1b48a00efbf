"""`echotts watchdog`: keeps the disks of this host from filling, without deleting what is needed."""

import contextlib
import logging
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from echotts.cli.app import parse

if TYPE_CHECKING:
    from echotts.disk.watchdog import Action

PROG = "echotts watchdog"
LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Keep this host's disks from filling: at 85 % full, delete what nobody needs until 75 %; at 97 %, ask the trainers
    to save and wait.

    What may go lies in the roots of the configuration, a TOML file (docs/watchdog.md); nothing outside them is touched.
    Run one on each host.
    """

    config: Path
    """TOML file of limits and roots."""
    run_dir: Path | None = None
    """A run on this host, a root of kind runs beside those of the file."""
    dry_run: bool = False
    """Print what may be deleted (now or later, bytes, path, reason), oldest first, and delete nothing."""
    once: bool = False
    """One pass, then leave."""


def main(argv: list[str]) -> int:
    """Parse, check the configuration, watch until told to stop; returns the exit code."""
    arguments = parse(Arguments, argv, prog=PROG)
    from echotts.disk.settings import load_settings, with_run
    from echotts.disk.watchdog import Watchdog

    settings = load_settings(arguments.config)
    if arguments.run_dir is not None:
        settings = with_run(settings, arguments.run_dir)
    watchdog = Watchdog(settings, dry_run=arguments.dry_run, say=say_planned if arguments.dry_run else say_done)
    for path, space in watchdog.spaces().items():
        print(f"{path}: {space}", flush=True)
    if arguments.dry_run or arguments.once:
        actions = watchdog.run_pass()
        now = [action.freed_bytes for action in actions if action.now]
        what = "would be deleted now" if arguments.dry_run else "deleted"
        print(f"{len(now)} {what}, {sum(now) / 1e6:.1f} MB; {len(actions) - len(now)} more may be, when room is needed")
        return 0
    with contextlib.suppress(OSError):
        os.nice(10)  # training comes first
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    while not stop.is_set():
        try:
            watchdog.run_pass()
        except OSError as error:  # a disk that is gone for a while must not end the watch over the others
            LOGGER.warning("this pass failed, the next one follows: %s", error)
        stop.wait(settings.limits.interval_s)
    return 0


def say_done(action: "Action") -> None:
    """One line for something deleted."""
    print(f"deleted {action.freed_bytes:>14} bytes  {action.what}", flush=True)


def say_planned(action: "Action") -> None:
    """One line for something that may be deleted, of a dry run."""
    print(f"{'now  ' if action.now else 'later'} {action.freed_bytes:>14} bytes  {action.what}")
