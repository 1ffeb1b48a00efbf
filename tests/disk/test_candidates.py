"""Candidates for deletion: everything unneeded, in order; never anything needed."""

import os
import time
from contextlib import ExitStack

import pytest

from echotts.disk import scan
from echotts.disk.candidates import candidates, open_target
from echotts.disk.remove import KeptError
from echotts.disk.settings import Root
from echotts.rundir.layout import STEP, note_verified, writing
from echotts.rundir.leases import lease
from tests.disk.layout import aged, checkpoint, hub_revision, run_dir, steps, write


def listed(*roots: Root, count: int = 1000) -> list[str]:
    """Names of the candidates in these roots, in order; for partial files with the first word of the reason."""
    with ExitStack() as stack:
        targets = [target for root in roots if (target := open_target(root, stack))]
        return [candidate.path.name for candidate in candidates(targets, scan.open_files(), count)]


def checkpoints_listed(run, **rule) -> list[int]:
    names = listed(Root(kind="runs", path=run, **rule))
    return [int(name.split("_")[1]) for name in names if STEP.fullmatch(name)]


def test_partial_files_go_when_they_are_old_and_their_writer_is_gone(tmp_path):
    root = Root(kind="partial", path=tmp_path)
    write(tmp_path / "old.tar.partial", age_h=2)
    write(tmp_path / "deep" / "er" / "x.incomplete", age_h=3)
    write(tmp_path / "young.partial", age_h=0.5)
    write(tmp_path / f".mine.{os.getpid()}.partial", age_h=2)
    write(tmp_path / ".gone.4194304.partial", age_h=2)
    write(tmp_path / "data.tar", age_h=100)
    write(tmp_path / ".leases" / "x.tmp", age_h=2)
    (tmp_path / "link.partial").symlink_to(tmp_path / "data.tar")
    aged(tmp_path / "link.partial", 2)
    with write(tmp_path / "open.tmp", age_h=2).open("rb"):
        assert sorted(listed(root)) == sorted(["x.incomplete", "old.tar.partial", ".gone.4194304.partial"])
    assert "open.tmp" in listed(root)
    with lease(tmp_path / "open.tmp"):
        assert "open.tmp" not in listed(root)


def test_a_partial_folder_is_as_young_as_the_newest_file_in_it(tmp_path):
    root = Root(kind="partial", path=tmp_path)
    write(tmp_path / "step.orbax-checkpoint-tmp" / "a" / "data")
    aged(tmp_path / "step.orbax-checkpoint-tmp", 2)
    assert listed(root) == ["step.orbax-checkpoint-tmp"]
    write(tmp_path / "step.orbax-checkpoint-tmp" / "a" / "data", age_h=0.5)
    assert listed(root) == []


def test_leftovers_of_a_killed_pass_are_deleted_immediately(tmp_path):
    write(tmp_path / ".watchdog-12-3.trash" / "data")
    for kind in ("partial", "shards", "logs"):
        assert listed(Root(kind=kind, path=tmp_path)) == [".watchdog-12-3.trash"]


def test_shards_go_by_their_last_reading_and_logs_by_their_last_writing(tmp_path):
    now = time.time()
    for kind, name in (("shards", "s.tar"), ("logs", "s.log")):
        for age_h, number in ((5, 1), (30, 2), (60, 3), (40, 4)):
            path = write(tmp_path / kind / f"{number}-{name}")
            os.utime(path, (now - 3600 * age_h, now - 3600 * 200))  # read, written
        write(tmp_path / kind / "other", age_h=500)
        write(tmp_path / kind / "half.tar.partial.log", age_h=500)
        os.link(write(tmp_path / kind / f"linked-{name}", age_h=500), tmp_path / kind / f"again-{name}")
    (tmp_path / "logs" / "sub").mkdir()
    (tmp_path / "logs" / "sub" / "link.log").symlink_to("/etc/passwd")
    shards = Root(kind="shards", path=tmp_path / "shards", min_age_hours=24.0)
    assert listed(shards) == ["3-s.tar", "4-s.tar", "2-s.tar"]
    logs = Root(kind="logs", path=tmp_path / "logs", min_age_hours=24.0, names=("*-s.log",))
    assert sorted(listed(logs)) == ["1-s.log", "2-s.log", "3-s.log", "4-s.log"]
    with (tmp_path / "logs" / "1-s.log").open("rb"):
        assert sorted(listed(logs)) == ["2-s.log", "3-s.log", "4-s.log"]


def test_the_order_is_partial_shards_logs_hub_checkpoints_and_in_each_the_oldest_first(tmp_path):
    run_dir(tmp_path / "runs" / "one", 100, 200, 300, keep_last=1)
    write(tmp_path / "runs" / "one" / ".config.json.4194304.partial", age_h=9)
    snapshot = hub_revision(tmp_path / "hub", "org/model", "a" * 40, {"w": b"weights"}, age_h=1000, ref="main")
    write(tmp_path / "logs" / "a.log", age_h=900)
    write(tmp_path / "logs" / "b.log", age_h=950)
    write(tmp_path / "shards" / "c.tar", age_h=50)
    write(tmp_path / "shards" / "d.tar.partial", age_h=8)
    roots = [Root(kind=kind, path=tmp_path / kind) for kind in ("runs", "hub", "logs", "shards")]
    order = [".config.json.4194304.partial", "d.tar.partial", "c.tar", "b.log", "a.log", snapshot.name]
    assert listed(*roots) == [*order, "step_00000100", "step_00000200"]
    assert listed(*roots, count=1) == [".config.json.4194304.partial", "c.tar", "b.log", "a" * 40, "step_00000100"]


def test_checkpoints_beyond_the_newest_ones_go(tmp_path):
    run = run_dir(tmp_path / "run", 1, 2, 3, 4, 5, keep_last=2)
    assert checkpoints_listed(run) == [1, 2, 3]
    assert checkpoints_listed(run, keep_last=4) == [1]
    assert checkpoints_listed(run, keep_last=1) == [1, 2, 3, 4]
    assert checkpoints_listed(run, min_age_hours=996.5) == [1, 2, 3]
    assert checkpoints_listed(run, min_age_hours=998.5) == [1]


def test_runs_below_a_folder_are_found_except_through_symlinks(tmp_path):
    run_dir(tmp_path / "runs" / "one", 1, 2, keep_last=1)
    run_dir(tmp_path / "elsewhere", 3, 4, keep_last=1)
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "two").mkdir()
    (tmp_path / "runs" / "two" / "checkpoints").symlink_to(tmp_path / "elsewhere" / "checkpoints")
    assert checkpoints_listed(tmp_path / "runs") == [1]


def test_every_nth_checkpoint_is_kept_if_the_run_or_the_file_says_so(tmp_path):
    run = run_dir(tmp_path / "run", *range(1, 11), keep_last=1, keep_every=4)
    assert checkpoints_listed(run) == [1, 2, 3, 5, 6, 7, 9]
    assert checkpoints_listed(run, keep_every=3) == [1, 2, 5, 7]


def test_the_newest_complete_checkpoint_and_newer_ones_are_kept(tmp_path):
    run = run_dir(tmp_path / "run", 1, 2, 3, 4, keep_last=1)
    (run / "checkpoints" / "step_00000004" / "commit_success.txt").unlink()
    (run / "checkpoints" / "step_00000003" / "meta" / "metadata").write_text("{")
    assert checkpoints_listed(run, min_age_hours=0.0) == [1]
    checkpoint(run, 5)
    assert sorted(checkpoints_listed(run, min_age_hours=0.0)) == [1, 2, 3, 4]


@pytest.mark.parametrize("part", ["params/manifest.ocdbt", "opt_state/_METADATA", "commit_success.txt"])
def test_a_checkpoint_with_a_missing_or_empty_part_is_incomplete(tmp_path, part):
    run = run_dir(tmp_path / "run", 1, 2, keep_last=1)
    assert checkpoints_listed(run) == [1]
    (run / "checkpoints" / "step_00000002" / part).write_bytes(b"")
    assert checkpoints_listed(run) == []


def test_the_newest_verified_checkpoint_is_kept(tmp_path):
    run = run_dir(tmp_path / "run", 1, 2, 3, 4, keep_last=1)
    note_verified(run, 2)
    assert checkpoints_listed(run) == [1, 3]
    note_verified(run, 3)
    assert checkpoints_listed(run) == [1, 2]


def test_a_checkpoint_that_became_needed_since_it_was_found_is_kept(tmp_path):
    run = run_dir(tmp_path / "run", 1, 2, 3, keep_last=1)
    write(run / "x.tmp", age_h=5)
    with ExitStack() as stack:
        target = open_target(Root(kind="runs", path=run), stack)
        assert target is not None
        half, first, second = candidates([target], scan.open_files(), 10)
        note_verified(run, 1)
        with pytest.raises(KeptError, match="is needed again"):
            first.remove()
        second.remove()
        with writing(run), pytest.raises(KeptError, match="is needed again"):
            half.remove()
        half.remove()
    assert steps(run) == [1, 3]


@pytest.mark.parametrize("content", [None, "{", "[]", '{"run": {}}', '{"run": {"keep_last": "2", "keep_every": 0}}'])
def test_all_checkpoints_are_kept_if_the_configuration_of_the_run_is_unreadable(tmp_path, content):
    run = run_dir(tmp_path / "run", 1, 2, 3, keep_last=1)
    (run / "config.json").unlink() if content is None else (run / "config.json").write_text(content)
    assert checkpoints_listed(run, keep_last=1) == []


def test_all_checkpoints_are_kept_if_none_is_complete_even_unreadable_ones(tmp_path):
    run = run_dir(tmp_path / "run", 1, keep_last=1)
    broken = checkpoint(run, 1, name="step_00000001.broken")
    rule = Root(kind="runs", path=run)
    assert listed(rule) == [broken.name]
    (run / "checkpoints" / "step_00000001" / "commit_success.txt").unlink()
    assert listed(rule) == []


def test_files_of_a_run_are_not_stale_while_its_process_lives(tmp_path):
    run = run_dir(tmp_path / "run", 1)
    half = ["checkpoints/step_2.orbax-checkpoint-tmp/params/d", "samples/.step_00000001.partial/a.wav", "x.tmp"]
    for name in half:
        write(run / name)
    aged(run, 5)
    write(run / "checkpoints" / "step_00000001" / "params" / "keep.tmp", age_h=5)
    rule = Root(kind="runs", path=tmp_path)
    with writing(run):
        assert listed(rule) == []
    assert sorted(listed(rule)) == [".step_00000001.partial", "step_2.orbax-checkpoint-tmp", "x.tmp"]


def test_hub_revisions_go_by_their_last_use_those_without_a_name_first(tmp_path):
    for letter, age_h, ref in (("a", 500, "main"), ("b", 300, ""), ("c", 400, ""), ("d", 3, "")):
        hub_revision(tmp_path, "org/model", letter * 40, {"w": letter.encode() * 99}, age_h=age_h, ref=ref)
    hub_revision(tmp_path, "org/kept", "e" * 40, {"w": b"e"}, age_h=900)
    write(tmp_path / "models--org--model" / "blobs" / "half.incomplete", age_h=2)
    rule = Root(kind="hub", path=tmp_path, keep=("org/kept",))
    assert listed(rule) == ["half.incomplete", "c" * 40, "b" * 40, "a" * 40]
    assert "e" * 40 in listed(Root(kind="hub", path=tmp_path))


def test_a_hub_repository_behind_a_symlink_and_a_commit_that_is_in_two_are_left(tmp_path):
    cache, elsewhere = tmp_path / "hub", tmp_path / "elsewhere"
    hub_revision(elsewhere, "org/model", "a" * 40, {"w": b"a"}, age_h=500)
    hub_revision(cache, "org/linked", "b" * 40, {"w": b"b"}, age_h=500)
    (cache / "models--org--model").symlink_to(elsewhere / "models--org--model")
    (cache / "models--org--linked" / "blobs").rename(elsewhere / "blobs")
    (cache / "models--org--linked" / "blobs").symlink_to(elsewhere / "blobs")
    assert listed(Root(kind="hub", path=cache)) == []
    for repo in ("org/one", "org/two"):
        hub_revision(cache, repo, "c" * 40, {"w": b"c"}, age_h=500)
    names = listed(Root(kind="hub", path=cache))
    assert names == ["c" * 40]  # only of the one that the Hub's deletion by hash would remove, never of the other
