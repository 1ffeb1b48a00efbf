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
    from collections.abc import Iterable

    from echotts.disk.settings import Root, Settings
    from echotts.disk.watchdog import Action

PROG = "echotts watchdog"
LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Keep this host's disks from filling: at 85 % full, delete unneeded files until 75 %; at 97 %, ask the trainers
    to save and wait.

    Without --config it watches what echotts and its libraries write on this host: the shard cache, spools of runs in
    buckets, /tmp/tpu_logs, the Hub's cache, and the run directories of --run_dir and of live trainers. A TOML file
    (docs/watchdog.md) names other roots and limits. Nothing outside the roots is touched. Run one on each host.
    """

    config: Path | None = None
    """TOML file of limits and roots."""
    run_dir: tuple[Path, ...] = ()
    """Run directories on this host, as roots of kind runs."""
    dry_run: bool = False
    """Print what may be deleted (now or later, bytes, path, reason), oldest first, and delete nothing."""
    once: bool = False
    """One pass, then exit."""


def main(argv: list[str]) -> int:
    """Parse, check the configuration, watch until told to stop; returns the exit code."""
    arguments = parse(Arguments, argv, prog=PROG)
    from echotts.disk.scan import live_runs
    from echotts.disk.settings import default_settings, load_settings, with_live_runs, with_run
    from echotts.disk.watchdog import Watchdog

    settings = default_settings() if arguments.config is None else load_settings(arguments.config)
    for run_dir in arguments.run_dir:
        settings = with_run(settings, run_dir)
    watchdog = Watchdog(settings, dry_run=arguments.dry_run, on_action=say_planned if arguments.dry_run else say_done)

    def look_for_runs() -> None:
        if arguments.config is None:
            before = set(watchdog.settings.roots)
            watchdog.settings = with_live_runs(settings, live_runs())
            say_roots(root for root in watchdog.settings.roots if root not in before)

    say_limits(settings)
    say_roots(settings.roots)
    look_for_runs()
    for path, space in watchdog.spaces().items():
        print(f"{path}: {space}", flush=True)
    if arguments.dry_run or arguments.once:
        actions = watchdog.run_pass()
        now = [action.freed_bytes for action in actions if action.now]
        what = "would be deleted now" if arguments.dry_run else "deleted"
        more = len(actions) - len(now)
        print(f"{len(now)} {what}, {sum(now) / 1e6:.1f} MB; {more} more may be, when space is needed")
        return 0
    with contextlib.suppress(OSError):
        os.nice(10)  # training comes first
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    while not stop.is_set():
        try:
            look_for_runs()
            watchdog.run_pass()
        except Exception as error:  # a disk that is gone for a while must not end the watch over the others
            LOGGER.warning("this pass failed, the next one follows: %s: %s", type(error).__name__, error)
        stop.wait(settings.limits.interval_s)
    return 0


def say_limits(settings: "Settings") -> None:
    """When cleaning starts and stops."""
    limits = settings.limits
    print(
        f"cleaning starts at {limits.start:.0%} used or less than {limits.min_free_gib:g} GiB free and stops at "
        f"{limits.stop:.0%}; trainers are asked to wait at {limits.pause:.0%}; a pass every {limits.interval_s:g} s",
        flush=True,
    )


def say_roots(roots: "Iterable[Root]") -> None:
    """One line a root: its kind, its path, and whether this host has it."""
    for root in roots:
        print(f"root {root.kind:<7} {root.path}{'' if root.path.is_dir() else ' (not there now)'}", flush=True)


def say_done(action: "Action") -> None:
    """One line for something deleted."""
    print(f"deleted {action.freed_bytes:>14} bytes  {action.what}", flush=True)


def say_planned(action: "Action") -> None:
    """One line for something that may be deleted, of a dry run."""
    print(f"{'now  ' if action.now else 'later'} {action.freed_bytes:>14} bytes  {action.what}")
