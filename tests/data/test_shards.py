"""The shard format: webdataset reads what the writer writes; invalid samples are counted by cause and skipped."""

import gzip
import io
import json
import logging
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts.data.format.shards import Sample, ShardReader, ShardWriter, read_shard
from echotts.rundir.rejections import CAUSES, Rejections, TooManyRejected
from tests.data.corpus import CHANNELS, npy, sample, write_shards, write_tar

GOOD = np.ones((6, CHANNELS), np.float16)
JSON = json.dumps({"text": "one", "speaker": "ann"}).encode()


def read(path: Path, channels: int | None = CHANNELS) -> tuple[list[str], dict[str, int]]:
    rejections = Rejections()
    keys = [sample.key for sample in read_shard(path, channels, rejections)]
    assert set(rejections.counts) <= set(CAUSES)
    return keys, dict(rejections.counts)


def test_writing_and_reading_is_bitwise_exact(tmp_path: Path) -> None:
    written = [sample("a"), sample("b", frames=1, reference=None, text="Grüße, 世界"), sample("c", frames=40)]
    with ShardWriter(tmp_path / "s.tar", CHANNELS) as writer:
        for one in written:
            writer.write(one)
    found = list(read_shard(tmp_path / "s.tar", CHANNELS, Rejections()))
    for one, other in zip(written, found, strict=True):
        assert (one.key, one.text, one.speaker, one.duration_s) == (
            other.key,
            other.text,
            other.speaker,
            other.duration_s,
        )
        assert other.name == f"s.tar/{one.key}"
        np.testing.assert_array_equal(one.latent, other.latent)
        if one.reference is None:
            assert other.reference is None
        else:
            np.testing.assert_array_equal(one.reference, other.reference)


def test_webdataset_reads_our_shards(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    (path,) = write_shards(tmp_path, shards=1, samples=5)
    ours = list(read_shard(path, CHANNELS, Rejections()))
    theirs = list(webdataset.WebDataset(str(path), shardshuffle=False).decode())
    assert [one["__key__"] for one in theirs] == [one.key for one in ours]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one.latent, other["npy"])
        assert other["json"]["text"] == one.text
        assert ("ref.npy" in other) == (one.reference is not None)


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = (write_shards(tmp_path / name, 1, 3)[0].read_bytes() for name in "ab")
    assert first == second


def write(path: Path, *samples: Sample) -> None:
    with ShardWriter(path, CHANNELS) as writer:
        for one in samples:
            writer.write(one)
            assert not path.exists()


def test_a_shard_appears_only_when_complete(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="empty_text"):
        write(tmp_path / "s.tar", sample("a"), sample("b", text=""))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "frames", "text", "words"),
    [("a.b", 6, "x", "key"), ("../a", 6, "x", "key"), ("a", 6, " ", "empty_text"), ("a", 0, "x", "wrong_shape")],
)
def test_the_writer_refuses_what_the_reader_would_reject(
    tmp_path: Path, key: str, frames: int, text: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        write(tmp_path / "s.tar", sample(key, frames, None, text))


def test_the_writer_rejects_repeated_keys_and_values_beyond_float16(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a duplicate"):
        write(tmp_path / "s.tar", sample("a"), sample("a"))
    with pytest.raises(ValueError, match="non_finite"):
        write(tmp_path / "s.tar", replace(sample("b"), latent=np.full((3, CHANNELS), 1e6, np.float32)))


def broken_json(**changes: object) -> bytes:
    return json.dumps({"text": "one"} | changes).encode()


def header_only(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return stream.getvalue()


NAN = GOOD.copy()
NAN[2, 1] = np.nan
INFINITE = GOOD.copy()
INFINITE[0, 0] = -np.inf

BROKEN = {
    "latent missing": ([("x.json", JSON)], "member_missing"),
    "json missing": ([("x.npy", npy(GOOD))], "member_missing"),
    "float32": ([("x.json", JSON), ("x.npy", npy(GOOD.astype(np.float32)))], "wrong_dtype"),
    "big endian": ([("x.json", JSON), ("x.npy", npy(GOOD.astype(">f2")))], "wrong_dtype"),
    "one axis": ([("x.json", JSON), ("x.npy", npy(GOOD[0]))], "wrong_shape"),
    "no frames": ([("x.json", JSON), ("x.npy", npy(GOOD[:0]))], "wrong_shape"),
    "other channels": ([("x.json", JSON), ("x.npy", npy(GOOD[:, :3]))], "wrong_shape"),
    "shape beyond the payload": ([("x.json", JSON), ("x.npy", header_only((1 << 40, CHANNELS)))], "wrong_shape"),
    "negative shape": ([("x.json", JSON), ("x.npy", header_only((-1, CHANNELS)))], "wrong_shape"),
    "payload cut": ([("x.json", JSON), ("x.npy", npy(GOOD)[:-3])], "wrong_shape"),
    "nan": ([("x.json", JSON), ("x.npy", npy(NAN))], "non_finite"),
    "infinite reference": ([("x.json", JSON), ("x.npy", npy(GOOD)), ("x.ref.npy", npy(INFINITE))], "non_finite"),
    "reference of other channels": (
        [("x.json", JSON), ("x.npy", npy(GOOD)), ("x.ref.npy", npy(GOOD[:, :2]))],
        "wrong_shape",
    ),
    "pickled": ([("x.json", JSON), ("x.npy", npy(np.array([{}, 1], object), allow_pickle=True))], "pickled_npy"),
    "a bare pickle": ([("x.json", JSON), ("x.npy", pickle.dumps(GOOD))], "bad_npy"),
    "empty npy": ([("x.json", JSON), ("x.npy", b"")], "bad_npy"),
    "html": ([("x.json", JSON), ("x.npy", b"<html>" * 100)], "bad_npy"),
    "npy header that is code": (
        [("x.json", JSON), ("x.npy", b"\x93NUMPY\1\0\x20\0" + b"__import__('os').getcwd()".ljust(32))],
        "bad_npy",
    ),
    "huge npy header": ([("x.json", JSON), ("x.npy", b"\x93NUMPY\2\0\xff\xff\xff\x7f" + b"(" * 5000)], "bad_npy"),
    "no text": ([("x.json", b"{}"), ("x.npy", npy(GOOD))], "empty_text"),
    "blank text": ([("x.json", broken_json(text=" \n")), ("x.npy", npy(GOOD))], "empty_text"),
    "text a number": ([("x.json", broken_json(text=7)), ("x.npy", npy(GOOD))], "bad_json"),
    "text with NUL": ([("x.json", broken_json(text="a\0b")), ("x.npy", npy(GOOD))], "bad_json"),
    "lone surrogate": ([("x.json", b'{"text": "\\ud800"}'), ("x.npy", npy(GOOD))], "bad_json"),
    "speaker a list": ([("x.json", broken_json(speaker=[1])), ("x.npy", npy(GOOD))], "bad_json"),
    "endless duration": ([("x.json", b'{"text": "a", "duration_s": Infinity}'), ("x.npy", npy(GOOD))], "bad_json"),
    "json cut": ([("x.json", JSON[:-4]), ("x.npy", npy(GOOD))], "bad_json"),
    "json not text": ([("x.json", b"\xff\xfe\x00"), ("x.npy", npy(GOOD))], "bad_json"),
    "json a list": ([("x.json", b"[1]"), ("x.npy", npy(GOOD))], "bad_json"),
    "json too deep": ([("x.json", b"[" * 200000), ("x.npy", npy(GOOD))], "bad_json"),
    "json too large": ([("x.json", b" " * (2 << 20)), ("x.npy", npy(GOOD))], "oversized_member"),
    "twice the same key": ([("x.json", JSON), ("x.npy", npy(GOOD)), ("x.npy", npy(GOOD))], "duplicate_key"),
    "absolute name": ([("/etc/x.json", JSON)], "hostile_member"),
    "climbing name": ([("a/../../x.json", JSON)], "hostile_member"),
    "control characters": ([("x\x1b[31m.json", JSON)], "hostile_member"),
}


@pytest.mark.parametrize(("members", "cause"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_sample_is_counted_by_cause_and_its_neighbours_are_read(
    tmp_path: Path, members: list[tuple[str, bytes]], cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = [("a.json", JSON), ("a.npy", npy(GOOD))], [("z.npy", npy(GOOD)), ("z.json", JSON)]
    path = write_tar(tmp_path / "s.tar", [*good[0], *members, *good[1]])
    with caplog.at_level(logging.WARNING, "echotts.data"):
        assert read(path) == (["a", "z"], {cause: 1})
    assert len(caplog.records) == 1
    assert cause in caplog.text
    assert "\x1b" not in caplog.text


def test_an_npy_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    payload = npy(np.array([Evil()], object), allow_pickle=True)
    path = write_tar(tmp_path / "s.tar", [("x.json", JSON), ("x.npy", payload), ("x.pyd", pickle.dumps(Evil()))])
    assert read(path) == ([], {"pickled_npy": 1})
    assert not (tmp_path / "ran").exists()


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"x{kind.decode()}.npy")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    assert read(path) == ([], {"hostile_member": 4})


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_usual_tar_formats_and_member_orders_are_read(tmp_path: Path, tar_format: int) -> None:
    long = "folder/" + "k" * 90 + ("é" * 60 if tar_format != tarfile.USTAR_FORMAT else "")
    members = [("b.npy", npy(GOOD)), (f"./{long}.json", JSON), ("README", b"hi"), ("notes.md", b"hi"), ("b.json", JSON)]
    path = write_tar(tmp_path / "s.tar", [*members, (f"{long}.NPY", npy(np.asfortranarray(GOOD)))], tar_format)
    assert read(path) == (["b", long], {})


def test_fortran_order_is_the_same_latent(tmp_path: Path) -> None:
    latent = np.arange(8, dtype=np.float16).reshape(2, 4)
    path = write_tar(tmp_path / "s.tar", [("a.json", JSON), ("a.npy", npy(np.asfortranarray(latent)))])
    (found,) = read_shard(path, 4, Rejections())
    np.testing.assert_array_equal(found.latent, latent)


@given(cut=st.integers(0, 20 * 1024))
@settings(max_examples=60, deadline=None)
def test_a_truncated_tar_is_reported_and_gives_only_complete_samples(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    (path,) = write_shards(folder, 1, 6)
    whole = path.read_bytes()
    with ShardReader(path) as reader:
        ends = [max(sum(member) for member in entry.members.values()) for entry in reader.tar.entries]
    original = list(read_shard(path, CHANNELS, Rejections()))
    path.write_bytes(whole[:cut])
    rejections = Rejections()
    kept = list(read_shard(path, CHANNELS, rejections))
    for one, other in zip(original, kept, strict=False):
        assert (one.key, one.reference is None) == (other.key, other.reference is None)
    end_mark = -(-max(ends) // 512) * 512 + 512
    if cut < end_mark:
        assert rejections.counts["truncated_shard"] >= 1
        assert sum(end <= cut for end in ends) - 1 <= len(kept) <= sum(end <= cut for end in ends)
    else:
        assert not rejections.counts
        assert len(kept) == len(original)


def test_a_hole_of_zeros_in_a_tar_is_noticed(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, 1, 6)
    whole = path.read_bytes()
    with ShardReader(path) as reader:
        third = min(offset for offset, _ in reader.tar.entries[3].members.values()) - 512
    path.write_bytes(whole[:third] + bytes(512) + whole[third + 512 :])
    keys, counts = read(path)
    assert keys == ["s0_0000", "s0_0001"]
    assert counts == {"truncated_shard": 1}  # with the key before the hole


@pytest.mark.parametrize("payload", [b"<html>503 Service Unavailable</html>" * 40, b"\1" * 5000])
def test_a_file_that_is_not_a_tar_is_reported_as_such(tmp_path: Path, payload: bytes) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(payload)
    assert read(path) == ([], {"not_a_tar": 1})


def test_a_missing_shard_is_an_error_and_not_a_rejection(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing.tar")


def test_a_gzipped_shard_is_read_and_a_truncated_one_is_detected(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, 1, 4)
    packed = tmp_path / "s.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed) == (read(path)[0], {})
    packed.write_bytes(packed.read_bytes()[:-200])
    keys, counts = read(packed)
    assert len(keys) < 4
    assert counts["truncated_shard"] >= 1


def test_a_rising_share_of_rejected_samples_stops_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = []
    for i in range(300):
        members += [(f"k{i}.json", JSON if i % 10 else b"{"), (f"k{i}.npy", npy(GOOD))]
    path = write_tar(tmp_path / "s.tar", members)
    tolerant = Rejections(max_share=0.2)
    assert len(list(read_shard(path, CHANNELS, tolerant))) == 270
    assert tolerant.summary() == "30 of 300 samples rejected: bad_json 30"
    assert len([record for record in caplog.records if "bad_json" in record.message]) == 1
    with pytest.raises(TooManyRejected, match=r"bad_json.*0\.05"):
        list(read_shard(path, CHANNELS, Rejections(max_share=0.05)))


def test_too_many_truncated_shards_stop_the_run(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, 1, 200)
    cut = tmp_path / "cut.tar"
    cut.write_bytes(path.read_bytes()[:-11000])
    rejections = Rejections(max_share=0.1)
    for _ in range(9):
        assert len([*read_shard(cut, CHANNELS, rejections), *read_shard(path, CHANNELS, rejections)]) == 398
    list(read_shard(path, CHANNELS, rejections))
    with pytest.raises(TooManyRejected, match="shards are truncated"):
        list(read_shard(cut, CHANNELS, rejections))
