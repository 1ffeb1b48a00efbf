"""Files appear under their names only when complete."""

import hashlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from echotts.files import atomic_write, check_outputs, check_writable, sha256_file, write_whole


def test_the_complete_file_appears_when_the_block_ends(tmp_path: Path) -> None:
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


def killed_while_writing(path: Path) -> Path:
    """The partial file of a killed writer."""
    code = f"import os; from echotts.files import atomic_write\nwith atomic_write({str(path)!r}): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    [left] = path.parent.glob(".*.partial")
    return left


def test_files_of_a_killed_writer_are_removed_by_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "out [1].wav"
    left = killed_while_writing(path)
    with atomic_write(tmp_path / "other.wav") as temporary:
        temporary.write_bytes(b"x")
    assert left.exists()
    with atomic_write(path) as writing, atomic_write(tmp_path / "third.wav"):
        assert not left.exists()
        subprocess.run(
            [sys.executable, "-c", f"from echotts.files import check_writable; check_writable({str(path)!r})"],
            check=True,
        )
        assert writing.exists()  # its writer still runs


def test_partial_files_of_another_machine_are_kept_for_an_hour(tmp_path: Path) -> None:
    theirs = tmp_path / ".out.wav.0123abcd.4194304.partial"
    for age_s, stays in ((600, True), (4000, False)):
        theirs.touch()
        os.utime(theirs, (time.time() - age_s,) * 2)
        check_writable(tmp_path / "out.wav")
        assert theirs.exists() == stays


def test_a_place_that_cannot_be_written_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/out\.wav: cannot be written: (not a directory|file exists)"):
        atomic_write(tmp_path / "file" / "out.wav").__enter__()
    with pytest.raises(OSError, match="cannot be written: it is a folder"):
        atomic_write(tmp_path).__enter__()


def specials(folder: Path) -> list[Path]:
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
    (folder / "link").symlink_to("/dev/null")
    return [Path("/dev/full"), Path("/dev/null"), *sorted(folder.iterdir())]


def test_a_device_pipe_or_socket_is_rejected_and_unchanged(tmp_path: Path) -> None:
    for path in specials(tmp_path):
        before = path.lstat()
        for write in (check_writable, lambda path: write_whole(path, b"x"), lambda path: check_outputs([path])):
            with pytest.raises(OSError, match=rf"^{path}: cannot be written: it is a (device|pipe|socket), not a file"):
                write(path)
        assert (path.lstat().st_mode, path.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe", "socket"]


def test_outputs_are_checked_before_the_work_and_nothing_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "ref.mp3").write_bytes(b"voice")
    check_outputs([tmp_path / "new" / "a.wav", tmp_path / "new" / "b.npy"], [tmp_path / "ref.mp3"])
    assert list((tmp_path / "new").iterdir()) == []
    for outputs, inputs in [
        (["a.wav", "a.wav"], []),
        (["a.wav", "new/../a.wav"], []),
        (["a.wav", "link.wav"], []),
        (["ref.mp3"], ["ref.mp3"]),
        (["a.wav", "hard.mp3"], ["ref.mp3"]),
    ]:
        (tmp_path / "link.wav").unlink(missing_ok=True)
        (tmp_path / "link.wav").symlink_to("a.wav")
        if not (tmp_path / "hard.mp3").exists():
            os.link(tmp_path / "ref.mp3", tmp_path / "hard.mp3")
        with pytest.raises(ValueError, match=r"is the same file as .*: choose another name"):
            check_outputs([tmp_path / name for name in outputs], [tmp_path / name for name in inputs])
    assert (tmp_path / "ref.mp3").read_bytes() == b"voice"


@pytest.mark.parametrize("path", ["/proc/out.wav", "/sys/out.wav", "a\0b.wav", "x" * 300 + ".wav", "", "."])
def test_a_place_where_no_file_can_be_made_is_one_line_before_the_work(path: str) -> None:
    with pytest.raises(OSError, match="cannot be written: ") as caught:
        check_outputs([path])
    assert "\n" not in str(caught.value)


def test_the_file_may_be_read_by_whom_new_files_may_be_read_by(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    with atomic_write(tmp_path / "file") as temporary:
        temporary.unlink()
        temporary.touch(0o600)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_a_file_is_always_complete_when_two_writers_are_killed_at_random(tmp_path: Path) -> None:
    program = (
        "import hashlib, os, sys; from pathlib import Path; from echotts.files import write_whole\n"
        "while True:\n"
        "    data = os.urandom(300_000)\n"
        "    write_whole(Path(sys.argv[1]), hashlib.sha256(data).digest() + data)\n"
        "    print('.', flush=True)"
    )
    path = tmp_path / "out.wav"
    for _ in range(3):
        writers = [
            subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) for _ in range(2)
        ]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.read(2)
        for writer in writers:
            writer.kill()
            writer.communicate()
        data = path.read_bytes()
        assert hashlib.sha256(data[32:]).digest() == data[:32]


def test_the_hash_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 100_000)
    assert sha256_file(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()
