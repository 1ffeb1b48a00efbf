"""Candidates for deletion in the roots on one disk, in the order of deletion."""

import contextlib
import heapq
import itertools
import logging
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from echotts.disk import hub, runs, scan
from echotts.disk.remove import OpenRoot
from echotts.disk.settings import Root
from echotts.disk.tree import Folder, is_being_written

LOGGER = logging.getLogger(__name__)


@dataclass
class Target:
    """A root opened for one pass."""

    rule: Root
    root: OpenRoot
    runs: list[Folder]

    def run_dir(self, folder: Folder) -> Path:
        return self.root.path.joinpath(*folder)


Stage = Callable[[Target, scan.OpenFiles], Iterator[scan.Found]]


class Candidate(NamedTuple):
    """Something that may be deleted."""

    path: Path
    size_bytes: int
    why: str
    run: Path | None  # the run directory it belongs to
    remove: Callable[[], int]


def open_target(rule: Root, stack: contextlib.ExitStack) -> Target | None:
    """Opens the root of a rule; None if it does not exist on this host or cannot be opened."""
    try:
        root = stack.enter_context(OpenRoot(rule.path))
        return Target(rule, root, runs.run_folders(root.descriptor) if rule.kind == "runs" else [])
    except OSError as error:
        level = logging.DEBUG if isinstance(error, FileNotFoundError) else logging.WARNING
        LOGGER.log(level, "%s: skipped: %s", rule.path, error.strerror or error)
        return None


def candidates(targets: list[Target], in_use: scan.OpenFiles, count: int) -> Generator[Candidate, None, None]:
    """Yields candidates in order; each stage holds only its `count` oldest in memory."""
    for stage in (_partials, _shards, _logs):
        yield from _of_stage(stage, targets, in_use, count)
    for target in targets:
        if target.rule.kind == "hub":
            yield from _hub_candidates(target, in_use)
    yield from _of_stage(_checkpoints, targets, in_use, count)


def _of_stage(stage: Stage, targets: list[Target], in_use: scan.OpenFiles, count: int) -> Iterator[Candidate]:
    found = ((one, number) for number, target in enumerate(targets) for one in _alone(stage, target, in_use))
    try:
        for one, number in heapq.nsmallest(count, found):
            target = targets[number]
            run = next((target.run_dir(run) for run in target.runs if one.folder[: len(run)] == run), None)

            def remove(target: Target = target, one: scan.Found = one) -> int:
                return target.root.remove(one, in_use, lambda: _still(stage, target, one, in_use))

            yield Candidate(target.root.path_of(one), one.size_bytes, one.why, run, remove)
    finally:
        for target in targets:
            target.root.leave()


def _alone(stage: Stage, target: Target, in_use: scan.OpenFiles) -> Iterator[scan.Found]:
    """Candidates of one stage in a root, run by run; an error in one run is logged and does not affect the others."""
    parts = [Target(target.rule, target.root, [run]) for run in target.runs] if target.rule.kind == "runs" else [target]
    for part in parts:
        try:
            yield from stage(part, in_use)
        except Exception as error:  # unexpected contents: keep them and continue
            where = part.run_dir(part.runs[0]) if part.runs else part.root.path
            LOGGER.warning("%s: skipped: %s: %s", where, type(error).__name__, error)


def _still(stage: Stage, target: Target, one: scan.Found, in_use: scan.OpenFiles) -> bool:
    """Checks again, right before deletion: a trainer may have started, or restored an old checkpoint, meanwhile."""
    if target.rule.kind != "runs":
        return not (stage is _partials and is_being_written(target.root.descriptor, one.folder))
    run = next(run for run in target.runs if one.folder[: len(run)] == run)
    alone = Target(target.rule, target.root, [run])
    return any((again.folder, again.name) == (one.folder, one.name) for again in stage(alone, in_use))


def _partials(target: Target, in_use: scan.OpenFiles) -> Iterator[scan.Found]:
    root, rule = target.root, target.rule
    if rule.kind == "hub":
        return hub.hub_partials(root, rule.partial_min_age_s, in_use)
    if rule.kind == "runs":
        of_runs = (runs.run_partials(root.descriptor, run, rule.partial_min_age_s, in_use) for run in target.runs)
        return itertools.chain.from_iterable(of_runs)
    patterns = {"partial": rule.patterns, "shards": scan.PARTIAL_NAMES}.get(rule.kind, ())
    return scan.partial_files(root.descriptor, patterns, rule.partial_min_age_s, in_use)


def _shards(target: Target, in_use: scan.OpenFiles) -> Iterator[scan.Found]:
    rule = target.rule
    if rule.kind == "shards":
        yield from scan.matching_files(
            target.root.descriptor, rule.patterns, rule.min_age_s, in_use, "consumed shard", reading_counts=True
        )


def _logs(target: Target, in_use: scan.OpenFiles) -> Iterator[scan.Found]:
    rule = target.rule
    if rule.kind == "logs":
        yield from scan.matching_files(
            target.root.descriptor, rule.patterns, rule.min_age_s, in_use, "old log", reading_counts=False
        )


def _checkpoints(target: Target, in_use: scan.OpenFiles) -> Iterator[scan.Found]:
    for run in target.runs:
        yield from runs.old_checkpoints(target.root.descriptor, run, target.rule, time.time() - target.rule.min_age_s)


def _hub_candidates(target: Target, in_use: scan.OpenFiles) -> Iterator[Candidate]:
    try:
        found = hub.unused_revisions(target.root, target.rule)
    except Exception as error:  # the Hub's scanner fails on unexpected contents
        LOGGER.warning("%s: its revisions are skipped: %s", target.root.path, error)
        return
    for revision in found:

        def remove(revision: hub.Revision = revision) -> int:
            return hub.remove_revision(target.root, target.rule, revision, in_use)

        path = target.root.path / revision.repo / revision.commit
        yield Candidate(path, revision.size_bytes, revision.why, None, remove)
