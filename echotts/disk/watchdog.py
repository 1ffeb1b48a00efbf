"""A pass: measures each disk, deletes in order until enough is free, and asks trainers to wait if that fails.

Order: stale partial files, consumed shards, old logs, unused revisions in the Hub's cache, checkpoints that need not be
kept; the oldest first in each. A stage is scanned only if the previous ones did not free enough.
"""

import contextlib
import functools
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from echotts.disk import logs, runs, scan
from echotts.disk.candidates import Candidate, Target, candidates, open_target
from echotts.disk.journal import write_event
from echotts.disk.remove import OpenRoot
from echotts.disk.settings import Limits, Settings, load_settings
from echotts.disk.tree import KeptError, UnusualError
from echotts.rundir import pause
from echotts.rundir.free_space import Space, measure

MAX_LINES = 100  # maximum lines per pass in a run's metrics; one more counts the rest
LOCK_WAIT_S = 5.0  # wait for another pass over the same root, for example a trainer's before it saves
LOGGER = logging.getLogger(__name__)


class Action(NamedTuple):
    """Something that was deleted or, in a dry run, would be."""

    path: Path
    freed_bytes: int
    why: str
    run: Path | None
    now: bool = True  # in a dry run: whether this pass would delete it, not a later one

    @property
    def what(self) -> str:
        """A description: the path, with non-printable characters escaped for terminals, and the reason."""
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(self.path))
        return f"{shown}: {self.why}"


@dataclass(frozen=True)
class Goal:
    """When a disk is too full, and when enough is free again."""

    limits: Limits
    needed_bytes: int = 0
    """Bytes about to be written."""

    def too_full(self, space: Space) -> bool:
        return space.used_share >= self.limits.start or self._too_little(space)

    def reached(self, space: Space) -> bool:
        return space.used_share <= self.limits.stop and not self._too_little(space)

    def _too_little(self, space: Space) -> bool:
        least = self.limits.min_free_gib * 2**30 + self.needed_bytes
        return space.free_bytes < least or space.free_inodes < self.limits.min_free_inodes


class Watchdog:
    """Passes over the roots of `settings`, which may be replaced between passes. `on_action` gets each action."""

    def __init__(
        self, settings: Settings, *, dry_run: bool = False, on_action: Callable[[Action], None] = lambda action: None
    ):
        self.settings = settings
        self._dry_run = dry_run
        self._on_action = on_action
        self._warned: set[tuple[Path, str]] = set()  # (path, reason) already logged as kept
        self._nearly_full = False
        self._cleaning: set[int] = set()  # devices whose cleaning was started and not finished

    def run_pass(self, *, needed_bytes: int = 0, on: Path | None = None) -> list[Action]:
        """One pass over all disks; `needed_bytes` are about to be written to the disk of `on`.

        Returns what was deleted or, in a dry run, could be.
        """
        with contextlib.ExitStack() as stack:
            targets = [target for rule in self.settings.roots if (target := open_target(rule, stack)) is not None]
            in_use = scan.open_files()
            actions = [action for target in targets for action in self._cap(target, in_use)]
            for device in dict.fromkeys(target.root.device for target in targets):
                here = [target for target in targets if target.root.device == device]
                needs = on is not None and on.stat().st_dev == device
                actions += self._clean(here, Goal(self.settings.limits, needed_bytes if needs else 0), in_use)
            if not self._dry_run:
                self._report(targets, actions)
                self._ask(targets)
            return actions

    def spaces(self) -> dict[Path, Space]:
        """Usage of the disk of each root; for roots on one disk only the first is listed."""
        found: dict[int, tuple[Path, Space]] = {}
        for rule in self.settings.roots:
            with contextlib.suppress(OSError):
                found.setdefault(rule.path.stat().st_dev, (rule.path, measure(rule.path)))
        return dict(found.values())

    def _clean(self, targets: list[Target], goal: Goal, in_use: scan.OpenFiles) -> list[Action]:
        """Deletes in order on one disk until the goal or the pass's cap is reached, or nothing is left."""
        root = targets[0].root
        if not self._is_needed(root, goal) and not self._dry_run:
            self._cleaning.discard(root.device)
            return []
        if not self._dry_run:
            targets = [target for target in targets if target.root.lock(LOCK_WAIT_S)]
        needed, space = self._is_needed(root, goal), measure(root.descriptor)  # another pass may have just done it
        actions: list[Action] = []
        freed = 0
        cap_bytes, cap_files = goal.limits.max_gib_per_pass * 2**30, goal.limits.max_files_per_pass
        with contextlib.closing(candidates(targets, in_use, cap_files)) as found:
            for candidate in found:
                now = needed and not goal.reached(space)
                capped = len(actions) >= cap_files or (freed > 0 and freed + candidate.size_bytes > cap_bytes)
                if not self._dry_run and (not now or capped):
                    break
                action = self._act(candidate, now and not capped)
                if action is not None:
                    actions.append(action)
                    freed += action.freed_bytes
                    self._on_action(action)
                space = space.after_freeing(candidate.size_bytes, 1) if self._dry_run else measure(root.descriptor)
        if actions and not goal.reached(space):
            self._cleaning.add(root.device)
        else:
            self._cleaning.discard(root.device)
        return actions

    def _cap(self, target: Target, in_use: scan.OpenFiles) -> list[Action]:
        """Keeps a root of logs below its cap, however much space is free."""
        actions: list[Action] = []
        if not target.rule.max_gib or not (self._dry_run or target.root.lock(LOCK_WAIT_S)):
            return actions
        for excess in logs.beyond_cap(target, in_use):
            candidate = Candidate(target.root.path_of(excess.found), excess.size_bytes, excess.why, None, excess.remove)
            if (action := self._act(candidate, now=True)) is not None:
                actions.append(action)
                self._on_action(action)
        return actions

    def _is_needed(self, root: OpenRoot, goal: Goal) -> bool:
        space = measure(root.descriptor)
        return goal.too_full(space) or (root.device in self._cleaning and not goal.reached(space))

    def _act(self, candidate: Candidate, now: bool) -> Action | None:
        if self._dry_run:
            return Action(candidate.path, candidate.size_bytes, candidate.why, candidate.run, now)
        try:
            freed_bytes = candidate.remove()
        except KeptError as error:
            known = (candidate.path, str(error)) in self._warned or not isinstance(error, UnusualError)
            self._warned.add((candidate.path, str(error)))
            LOGGER.log(logging.DEBUG if known else logging.WARNING, "%s: kept: %s", candidate.path, error)
            return None
        return Action(candidate.path, freed_bytes, candidate.why, candidate.run)

    def _report(self, targets: list[Target], actions: list[Action]) -> None:
        """Writes a line per action to its run's metrics or, if it belongs to none, to those of the live runs."""
        if not actions:
            return
        steps = {target.run_dir(run): (target, run) for target in targets for run in target.runs}
        live = [run for run, (target, name) in steps.items() if runs.is_written(target.root.descriptor, name)]
        others = live or sorted(steps, key=lambda path: path.stat().st_mtime)[-1:]
        for path, (target, run) in steps.items():
            own = [action for action in actions if action.run == path or (action.run is None and path in others)]
            if not own:
                continue
            space, step = measure(target.root.descriptor), runs.newest_step(target.root.descriptor, run)
            for action in own[:MAX_LINES]:
                write_event(path, "disk_cleaned", step, action.what, space, action.freed_bytes)
            if rest := own[MAX_LINES:]:
                freed_bytes = sum(action.freed_bytes for action in rest)
                write_event(path, "disk_cleaned", step, f"{len(rest)} more like {rest[0].what}", space, freed_bytes)

    def _ask(self, targets: list[Target]) -> None:
        """Asks this host's trainers to save and wait if a disk is nearly full; withdraws that when none is."""
        if not targets:
            return
        limits = self.settings.limits
        space, fullest = max(((measure(p.root.descriptor), p) for p in targets), key=lambda found: found[0].used_share)
        if space.used_share < limits.resume:
            self._nearly_full = False
            for target in targets:
                for run in target.runs:
                    pause.withdraw(target.run_dir(run))
            return
        if space.used_share < limits.pause:
            return
        request = pause.Request(place=str(fullest.root.path), below=limits.resume)
        message = f"{fullest.root.path} on {socket.gethostname()}: {space}; nothing more can be deleted"
        if not self._nearly_full:
            LOGGER.warning("%s", message)
        self._nearly_full = True
        for target in targets:
            for run in target.runs:
                run_dir = target.run_dir(run)
                if runs.is_written(target.root.descriptor, run) and _asked_now(run_dir, request):
                    step = runs.newest_step(target.root.descriptor, run)
                    write_event(
                        run_dir, "disk_full", step, f"{message}; the trainer was asked to save and wait", space, 0
                    )


def space_maker(config: str) -> Callable[[Path, int], None] | None:
    """A function (folder, bytes needed) that frees space by the rules of a TOML file; None without a file."""
    return functools.partial(make_space, load_settings(Path(config).expanduser())) if config else None


def make_space(settings: Settings, folder: Path, needed_bytes: int) -> None:
    """Runs cleaning passes until `needed_bytes` are free on the folder's disk or nothing more can be deleted.

    An error in a pass is logged and ends the cleaning: the trainer checks the free space itself.
    """
    watchdog = Watchdog(settings)
    try:
        while actions := watchdog.run_pass(needed_bytes=needed_bytes, on=folder):
            for action in actions:
                LOGGER.info("deleted %.1f MB: %s", action.freed_bytes / 1e6, action.what)
    except Exception as error:  # a save must not fail because of some root's contents
        LOGGER.warning("freeing space failed: %s: %s", type(error).__name__, error)


def _asked_now(run_dir: Path, request: pause.Request) -> bool:
    try:
        return pause.ask(run_dir, request)
    except OSError as error:
        LOGGER.warning("%s: the trainer cannot be asked to wait: %s", run_dir, error.strerror)
        return False
