"""Only found targets are deleted: not through symlinks, not replacements, not files in use."""

import os
from pathlib import Path

import pytest

from echotts.disk import remove, scan
from echotts.disk.remove import KeptError, OpenRoot
from echotts.disk.scan import Found
from echotts.rundir.leases import lease
from tests.disk.layout import aged, write


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    with OpenRoot(tmp_path / "root") as opened:
        yield opened


def found(root: OpenRoot, path: Path) -> Found:
    about = path.stat(follow_symlinks=False)
    *folder, name = path.relative_to(root.path).parts
    newest = max([about.st_mtime, *(each.lstat().st_mtime for each in path.rglob("*"))])
    return Found(newest, tuple(folder), name, 1, about.st_dev, about.st_ino, "old")


def thing(path: Path, is_folder: bool) -> Path:
    if not is_folder:
        return write(path, age_h=1)
    write(path / "a" / "data")
    (path / "link").symlink_to("/etc/passwd")
    return aged(path, 1)


both = pytest.mark.parametrize("is_folder", [True, False])


@both
def test_a_found_target_is_deleted(root, is_folder):
    path = thing(root.path / "sub" / "thing", is_folder)
    write(root.path / "sub" / "other")
    assert root.remove(found(root, path)) > 0
    assert [entry.name for entry in (root.path / "sub").iterdir()] == ["other"]


@both
def test_a_replacement_of_the_same_name_is_kept(root, is_folder):
    path = thing(root.path / "thing", is_folder)
    was = found(root, path)
    path.rename(root.path / "old")
    thing(path, is_folder)
    with pytest.raises(KeptError, match="was replaced by another file"):
        root.remove(was)
    assert path.exists()


@both
def test_a_replacement_at_the_last_moment_is_kept(root, is_folder, monkeypatch):
    """A log is rotated between the last check of a name and the deletion."""
    path = thing(root.path / "thing", is_folder)
    was = found(root, path)
    really = os.rename

    def rename_after_a_swap(source, target, **folders):
        really(path, root.path / "rotated")
        thing(path, is_folder)
        monkeypatch.setattr(os, "rename", really)
        really(source, target, **folders)

    monkeypatch.setattr(os, "rename", rename_after_a_swap)
    with pytest.raises(KeptError, match="another file took its name"):
        root.remove(was)
    assert sorted(entry.name for entry in root.path.iterdir()) == ["rotated", "thing"]


@both
def test_a_leased_target_is_kept(root, is_folder):
    path = thing(root.path / "thing", is_folder)
    was = found(root, path)
    with lease(path), pytest.raises(KeptError, match="leased"):
        root.remove(was)
    root.remove(was)
    assert not path.exists()


@both
def test_a_target_leased_only_by_a_lock_is_kept(root, is_folder):
    path = thing(root.path / "thing", is_folder)
    (root.path / ".leases").touch()  # no record can be written
    was = found(root, path)
    with lease(path), pytest.raises(KeptError, match="leased"):
        root.remove(was)
    assert path.exists()


def test_a_target_in_a_leased_folder_is_kept(root):
    path = write(root.path / "a" / "b" / "thing")
    was = found(root, path)
    for folder in (root.path, root.path / "a", root.path / "a" / "b"):
        with OpenRoot(root.path) as anew, lease(folder), pytest.raises(KeptError, match="leased"):
            anew.remove(was)
    root.remove(was)
    assert not path.exists()


@pytest.mark.parametrize("inner", ["a", "a/data"])
def test_a_folder_containing_a_lease_is_kept(root, inner):
    path = thing(root.path / "thing", True)
    was = found(root, path)
    with lease(path / inner), pytest.raises(KeptError, match=r"leased|written again"):
        root.remove(was)
    (path / ".leases").touch()  # no record can be written: the lock must suffice
    (path / "a" / ".leases").touch()
    was = found(root, path)
    with lease(path / inner), pytest.raises(KeptError, match="something in it is leased"):
        root.remove(was)


def test_a_folder_is_restored_if_something_in_it_was_leased_at_the_last_moment(root, monkeypatch):
    path = thing(root.path / "thing", True)
    (path / "a" / ".leases").touch()
    was = found(root, path)
    really, taken = remove._check_inside, []

    def check_then_lease(*arguments):
        really(*arguments)
        if not taken:
            taken.append(lease(path / "a" / "data"))
            taken[0].__enter__()

    monkeypatch.setattr(remove, "_check_inside", check_then_lease)
    with pytest.raises(KeptError, match="something in it is leased"):
        root.remove(was)
    assert path.is_dir()
    taken[0].__exit__(None, None, None)


@both
def test_a_target_that_is_written_again_is_kept(root, is_folder):
    path = thing(root.path / "thing", is_folder)
    was = found(root, path)
    (path / "a" / "data" if is_folder else path).write_bytes(b"new")
    with pytest.raises(KeptError, match="written again"):
        root.remove(was)
    assert path.exists()


def test_a_folder_with_an_open_file_is_kept(root):
    path = thing(root.path / "thing", True)
    with (path / "a" / "data").open("rb"):
        was, in_use = found(root, path), scan.open_files()
        with pytest.raises(KeptError, match="something in it is open"):
            root.remove(was, in_use)
    root.remove(was, scan.open_files())


def test_a_folder_that_became_a_symlink_is_not_gone_through(root, tmp_path):
    inside, outside = root.path / "sub", tmp_path / "outside"
    path = write(inside / "thing", age_h=1)
    was = found(root, path)
    inside.rename(outside)
    inside.symlink_to(outside)
    with pytest.raises(KeptError, match="cannot be opened"):
        root.remove(was)
    assert (outside / "thing").exists()


def test_a_thing_that_became_a_symlink_is_left_and_so_is_its_target(root, tmp_path):
    path = write(root.path / "thing", age_h=1)
    was = found(root, path)
    target = path.rename(tmp_path / "target")
    path.symlink_to(target)
    with pytest.raises(KeptError, match="cannot be opened"):
        root.remove(was)
    assert target.exists() and path.is_symlink()


def test_the_target_of_a_link_in_a_deleted_folder_is_kept(root, tmp_path):
    outside = write(tmp_path / "outside" / "precious")
    path = thing(root.path / "thing", True)
    (path / "files").symlink_to(outside.parent)
    aged(path, 1)
    root.remove(found(root, path))
    assert not path.exists() and outside.exists()


def test_a_root_that_is_moved_away_is_still_the_folder_that_was_scanned(root, tmp_path):
    path = write(root.path / "thing", age_h=1)
    was = found(root, path)
    root.path.rename(tmp_path / "elsewhere")
    write(root.path / "thing", age_h=1)
    root.remove(was)
    assert (root.path / "thing").exists() and not (tmp_path / "elsewhere" / "thing").exists()


@both
def test_a_target_that_is_needed_when_it_is_locked_is_kept(root, is_folder):
    path = thing(root.path / "thing", is_folder)
    with pytest.raises(KeptError, match="is needed again"):
        root.remove(found(root, path), frozenset(), lambda: False)
    assert path.exists()


def test_one_pass_at_a_time_goes_over_a_root(root):
    with OpenRoot(root.path) as other:
        assert other.lock()
        assert not root.lock(0.05)
    assert root.lock()


def test_a_symlink_is_never_opened_as_a_root(tmp_path):
    (tmp_path / "real" / "logs").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for place in ("link", "link/logs"):
        with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
            OpenRoot(tmp_path / place)
