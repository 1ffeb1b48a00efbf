"""A file appears under its name when it is whole, and never otherwise."""

import hashlib
from pathlib import Path

import pytest

from echotts.files import atomic_write, sha256_file


def test_the_file_appears_whole_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    with atomic_write(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_bytes(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_previous_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"before")
    with pytest.raises(RuntimeError, match="midway"), atomic_write(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        raise RuntimeError("midway")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/out\.wav: cannot be written: (not a directory|file exists)"):
        atomic_write(tmp_path / "file" / "out.wav").__enter__()
    with pytest.raises(IsADirectoryError, match="cannot be written: it is a folder"):
        atomic_write(tmp_path).__enter__()


def test_the_file_may_be_read_by_whom_new_files_may_be_read_by(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    with atomic_write(tmp_path / "file") as temporary:
        temporary.unlink()
        temporary.touch(0o600)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_the_hash_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 100_000)
    assert sha256_file(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()
