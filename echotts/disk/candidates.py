"""Candidates for deletion in the roots of one disk, in the order in which they are deleted."""

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
class Place:
    """A root of this pass, held open."""

    rule: Root
    root: OpenRoot
    runs: list[Folder]

    def run_dir(self, folder: Folder) -> Path:
        return self.root.path.joinpath(*folder)


Stage = Callable[[Place, scan.OpenFiles], Iterator[scan.Found]]


class Candidate(NamedTuple):
    """Something that may go."""

    path: Path
    size_bytes: int
    why: str
    run: Path | None  # the run it is of
    remove: Callable[[], int]


def open_place(rule: Root, stack: contextlib.ExitStack) -> Place | None:
    """The root of a rule, held open; None where this host has none."""
    try:
        root = stack.enter_context(OpenRoot(rule.path))
        return Place(rule, root, runs.run_folders(root.descriptor) if rule.kind == "runs" else [])
    except OSError as error:
        level = logging.DEBUG if isinstance(error, FileNotFoundError) else logging.WARNING
        LOGGER.log(level, "%s: passed over: %s", rule.path, error.strerror or error)
        return None


def candidates(places: list[Place], in_use: scan.OpenFiles, count: int) -> Generator[Candidate, None, None]:
    """Candidates in these roots, in order; of each stage the `count` oldest, which is all that is held in memory."""
    for stage in (_partials, _shards, _logs):
        yield from _of_stage(stage, places, in_use, count)
    for place in places:
        if place.rule.kind == "hub":
            yield from _hub_candidates(place, in_use)
    yield from _of_stage(_checkpoints, places, in_use, count)


def _of_stage(stage: Stage, places: list[Place], in_use: scan.OpenFiles, count: int) -> Iterator[Candidate]:
    found = ((one, number) for number, place in enumerate(places) for one in _alone(stage, place, in_use))
    try:
        for one, number in heapq.nsmallest(count, found):
            place = places[number]
            run = next((place.run_dir(run) for run in place.runs if one.folder[: len(run)] == run), None)

            def remove(place: Place = place, one: scan.Found = one) -> int:
                return place.root.remove(one, in_use, lambda: _still(stage, place, one, in_use))

            yield Candidate(place.root.path_of(one), one.size_bytes, one.why, run, remove)
    finally:
        for place in places:
            place.root.leave()


def _alone(stage: Stage, place: Place, in_use: scan.OpenFiles) -> Iterator[scan.Found]:
    """What a stage finds in a root, run by run: what goes wrong in one is logged, and the others go on."""
    parts = [Place(place.rule, place.root, [run]) for run in place.runs] if place.rule.kind == "runs" else [place]
    for part in parts:
        try:
            yield from stage(part, in_use)
        except Exception as error:  # whatever lies there: it is kept, and the watch goes on
            where = part.run_dir(part.runs[0]) if part.runs else part.root.path
            LOGGER.warning("%s: passed over: %s: %s", where, type(error).__name__, error)


def _still(stage: Stage, place: Place, one: scan.Found, in_use: scan.OpenFiles) -> bool:
    """Whether something of a run may go even now: its trainer may have started, or read an old checkpoint, since."""
    if place.rule.kind != "runs":
        return not (stage is _partials and is_being_written(place.root.descriptor, one.folder))
    run = next(run for run in place.runs if one.folder[: len(run)] == run)
    alone = Place(place.rule, place.root, [run])
    return any((again.folder, again.name) == (one.folder, one.name) for again in stage(alone, in_use))


def _partials(place: Place, in_use: scan.OpenFiles) -> Iterator[scan.Found]:
    root, rule = place.root, place.rule
    if rule.kind == "hub":
        return hub.hub_partials(root, rule.partial_min_age_s, in_use)
    if rule.kind == "runs":
        of_runs = (runs.run_partials(root.descriptor, run, rule.partial_min_age_s, in_use) for run in place.runs)
        return itertools.chain.from_iterable(of_runs)
    patterns = {"partial": rule.patterns, "shards": scan.PARTIAL_NAMES}.get(rule.kind, ())
    return scan.partial_files(root.descriptor, patterns, rule.partial_min_age_s, in_use)


def _shards(place: Place, in_use: scan.OpenFiles) -> Iterator[scan.Found]:
    rule = place.rule
    if rule.kind == "shards":
        yield from scan.matching_files(
            place.root.descriptor, rule.patterns, rule.min_age_s, in_use, "consumed shard", reading_counts=True
        )


def _logs(place: Place, in_use: scan.OpenFiles) -> Iterator[scan.Found]:
    rule = place.rule
    if rule.kind == "logs":
        yield from scan.matching_files(
            place.root.descriptor, rule.patterns, rule.min_age_s, in_use, "old log", reading_counts=False
        )


def _checkpoints(place: Place, in_use: scan.OpenFiles) -> Iterator[scan.Found]:
    for run in place.runs:
        yield from runs.old_checkpoints(place.root.descriptor, run, place.rule, time.time() - place.rule.min_age_s)


def _hub_candidates(place: Place, in_use: scan.OpenFiles) -> Iterator[Candidate]:
    try:
        found = hub.unused_revisions(place.root, place.rule)
    except Exception as error:  # the Hub's own reader meets whatever lies there
        LOGGER.warning("%s: its revisions are passed over: %s", place.root.path, error)
        return
    for revision in found:

        def remove(revision: hub.Revision = revision) -> int:
            return hub.remove_revision(place.root, place.rule, revision, in_use)

        path = place.root.path / revision.repo / revision.commit
        yield Candidate(path, revision.size_bytes, revision.why, None, remove)
