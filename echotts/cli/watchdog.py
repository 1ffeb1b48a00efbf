"""`echotts watchdog`: keeps the disks of this host from filling up, without deleting what is needed."""

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
    """Keep this host's disks from filling up: at 85 % full, delete unneeded files until 75 %; at 97 %, ask trainers to
    save and wait.

    Without --config it watches what echotts and its libraries write on this host: the shard cache, spools of runs in
    buckets, /tmp/tpu_logs, the Hub's cache, and the run directories of --run_dir and of live trainers. A TOML file
    (docs/watchdog.md) sets other roots and limits. Nothing outside of the roots is touched. Run one on each host.
    """

    config: Path | None = None
    """TOML file with limits and roots."""
    run_dir: tuple[Path, ...] = ()
    """Run directories on this host, added as roots of kind runs."""
    dry_run: bool = False
    """Print what may be deleted (now or later, bytes, path, reason), oldest first, without deleting."""
    once: bool = False
    """Do one pass, then exit."""


def main(argv: list[str]) -> int:
    """Parses the arguments, checks the configuration, and watches until stopped; returns the exit code."""
    arguments = parse(Arguments, argv, prog=PROG)
    from echotts.disk.scan import live_runs
    from echotts.disk.settings import default_settings, load_settings, with_live_runs, with_run
    from echotts.disk.watchdog import Watchdog

    settings = default_settings() if arguments.config is None else load_settings(arguments.config)
    for run_dir in arguments.run_dir:
        settings = with_run(settings, run_dir)
    watchdog = Watchdog(
        settings, dry_run=arguments.dry_run, on_action=print_planned if arguments.dry_run else print_done
    )

    def look_for_runs() -> None:
        if arguments.config is None:
            before = set(watchdog.settings.roots)
            watchdog.settings = with_live_runs(settings, live_runs())
            print_roots(root for root in watchdog.settings.roots if root not in before)

    stop = threading.Event()
    if not (arguments.dry_run or arguments.once):
        for number in (signal.SIGINT, signal.SIGTERM):  # before the first line, which a caller may wait for
            signal.signal(number, lambda *_: stop.set())
    print_limits(settings)
    print_roots(settings.roots)
    look_for_runs()
    for path, space in watchdog.spaces().items():
        print(f"{path}: {space}", flush=True)
    if arguments.dry_run or arguments.once:
        actions = watchdog.run_pass()
        now = [action.freed_bytes for action in actions if action.now]
        what = "would be deleted now" if arguments.dry_run else "deleted"
        more = len(actions) - len(now)
        print(f"{len(now)} {what}, {sum(now) / 1e6:.1f} MB; {more} more can be when space is needed")
        return 0
    with contextlib.suppress(OSError):
        os.nice(10)  # training has priority
    while not stop.is_set():
        try:
            look_for_runs()
            watchdog.run_pass()
        except Exception as error:  # a disk that disappears temporarily must not end the watch over the others
            LOGGER.warning("this pass failed, the next one will follow: %s: %s", type(error).__name__, error)
        stop.wait(settings.limits.interval_s)
    return 0


def print_limits(settings: "Settings") -> None:
    """Prints when cleaning starts and stops."""
    limits = settings.limits
    print(
        f"cleaning starts at {limits.start:.0%} used or less than {limits.min_free_gib:g} GiB free and stops at "
        f"{limits.stop:.0%}; trainers are asked to wait at {limits.pause:.0%}; a pass every {limits.interval_s:g} s",
        flush=True,
    )


def print_roots(roots: "Iterable[Root]") -> None:
    """Prints one line per root: its kind, its path, and whether it exists on this host."""
    for root in roots:
        print(f"root {root.kind:<7} {root.path}{'' if root.path.is_dir() else ' (does not exist)'}", flush=True)


def print_done(action: "Action") -> None:
    """Prints one line for something deleted."""
    print(f"deleted {action.freed_bytes:>14} bytes  {action.what}", flush=True)


def print_planned(action: "Action") -> None:
    """Prints one line for something that may be deleted, in a dry run."""
    print(f"{'now  ' if action.now else 'later'} {action.freed_bytes:>14} bytes  {action.what}")
