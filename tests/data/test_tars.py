"""Shards that are hostile or rotten: whatever their bytes, the answer is counted rejections, in bounded time."""

import gzip
import io
import json
import random
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts.data.format.shards import read_shard
from echotts.data.format.tars import BLOCK, TarFile
from echotts.rundir.rejections import CAUSES, Rejections
from tests.data.corpus import CHANNELS, npy, write_shards, write_tar

CASES = Path(__file__).parent / "cases/tars"
GOOD = npy(np.ones((6, CHANNELS), np.float16))
JSON = b'{"text": "one", "speaker": "ann"}'
END = bytes(2 * BLOCK)


def read(path: Path, channels: int | None = CHANNELS) -> tuple[list[str], dict[str, int]]:
    rejections = Rejections()
    keys = [sample.key for sample in read_shard(path, channels, rejections)]
    assert set(rejections.counts) <= set(CAUSES)
    return keys, dict(rejections.counts)


def header(name: bytes, size: int | bytes, kind: bytes = b"0") -> bytes:
    """One ustar header with a right checksum; `size` as its 12 bytes or as a number."""
    info = tarfile.TarInfo(name.decode())
    info.type = kind
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT)[:BLOCK])
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def sample_of(name: str) -> bytes:
    return b"".join(
        header(f"{name}.{suffix}".encode(), len(data)) + padded(data)
        for suffix, data in (("npy", GOOD), ("json", JSON))
    )


def test_tars_that_were_concatenated_are_read_to_the_end() -> None:
    assert read(CASES / "cat.tar", None) == (["a", "b"], {})


def test_something_else_behind_the_end_mark_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(sample_of("a") + sample_of("b") + END + bytes(4096) + b"not a tar" * 100)
    assert read(path) == (["a"], {"truncated_shard": 1})


def test_keys_with_several_dots_are_counted_once_each_and_the_cause_names_the_rule(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert read(CASES / "dotmix.tar", None) == (["a"], {"member_missing": 2})
    assert "a key ends at the first dot of the name" in caplog.text


def test_joiners_and_unusual_blanks_may_be_in_names_and_control_characters_may_not(tmp_path: Path) -> None:
    assert read(CASES / "zwj.tar", None) == (["\u0915\u094d\u200d\u0937", "c"], {})
    members = [
        (f"{name}.{suffix}", data)
        for name in ("a\u00a0b", "c\u2029d", "e\x85f", "g\u202eh")
        for suffix, data in (("npy", GOOD), ("json", JSON))
    ]
    assert read(write_tar(tmp_path / "s.tar", members)) == (["a\u00a0b"], {"hostile_member": 3})


@pytest.mark.parametrize(
    "size",
    [b"\x80" + b"\xff" * 11, b"\x80" + (1 << 63).to_bytes(11, "big"), b"77777777777\0"],
    ids=["2^88", "2^63", "8 GiB"],
)
def test_a_size_beyond_the_file_is_a_truncated_shard(tmp_path: Path, size: bytes) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(sample_of("a") + sample_of("b") + header(b"c.npy", size) + padded(GOOD) + END)
    assert read(path) == (["a", "b"], {"truncated_shard": 1})
    path.write_bytes(header(b"pax", size, b"x") + padded(b"9 path=x\n") + END)
    assert read(path) == ([], {"truncated_shard": 1})


@pytest.mark.parametrize(
    "records",
    [b"9" * 5000 + b" path=x\n", b"1 2 3 ", b"0 path=x\n", b"99 path=x\n", b"19 size=9999999999\n" * 3, b"\xff" * 400],
)
def test_pax_records_that_are_none_are_survived(tmp_path: Path, records: bytes) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(
        sample_of("a") + sample_of("b") + header(b"p", len(records), b"x") + padded(records) + sample_of("c")
    )
    keys, counts = read(path)
    assert keys == ["a", "b"]
    assert set(counts) == {"truncated_shard"}


def test_pax_headers_take_linear_time(tmp_path: Path) -> None:
    records = b"6 a=b\n" * ((1 << 20) // 6)
    path = tmp_path / "s.tar"
    path.write_bytes((header(b"p", len(records), b"x") + padded(records)) * 4 + sample_of("a") + END)
    began = time.thread_time()
    assert read(path) == (["a"], {})
    assert time.thread_time() - began < 8  # 2 s per MB


@pytest.mark.parametrize(
    ("unpacked", "expected"),
    [
        (b"".join(header(b"%06d.npy" % n, 0) for n in range(2000)) * 50, ([], {"oversized_shard": 1})),
        (bytes(200 << 20), ([], {"oversized_shard": 1})),
        (sample_of("a") + END, (["a"], {})),
    ],
    ids=["empty members", "zeros", "empty gzip streams"],
)
def test_a_gz_bomb_takes_bounded_time_and_space(
    tmp_path: Path, unpacked: bytes, expected: tuple[list[str], dict[str, int]]
) -> None:
    path = tmp_path / "s.tar.gz"
    path.write_bytes(gzip.compress(unpacked, 6) + gzip.compress(b"") * (100_000 if expected[0] else 0))
    began = time.thread_time()
    assert read(path) == expected
    assert time.thread_time() - began < 1 + 2 * path.stat().st_size / 1e6


def test_an_altered_gz_shard_is_rejected_entirely_and_named(tmp_path: Path) -> None:
    (plain,) = write_shards(tmp_path, 1, 8)
    packed = bytearray(gzip.compress(plain.read_bytes(), 0))  # not compressed: only the checksum tells
    path = tmp_path / "s.tar.gz"
    for place in (len(packed) // 2, len(packed) - 6):
        altered = packed.copy()
        altered[place] ^= 4
        path.write_bytes(altered)
        assert read(path) == ([], {"corrupt_shard": 1})
    path.write_bytes(packed + b"more")
    assert read(path) == ([], {"corrupt_shard": 1})
    path.write_bytes(packed + bytes(600))
    assert len(read(path)[0]) == 8
    path.write_bytes(packed[:-3])
    assert read(path) == ([], {"truncated_shard": 1})
    path.write_bytes(b"<html>")
    assert read(path) == ([], {"not_a_tar": 1})


@pytest.mark.parametrize(
    "meta",
    [
        b'{"text": "a", "duration_s": ' + b"9" * 401 + b"}",
        b'{"text": "a", "speaker": "\\ud800"}',
        b'{"text": "a", "source": "\\udcff"}',
        b'{"text": "a", "language": "' + b"x" * (1 << 16) + b'y"}',
        b'{"text": "a", "more": ' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"text": "\xed\xa0\x80"}',
    ],
)
def test_meta_data_out_of_bounds_is_rejected(tmp_path: Path, meta: bytes) -> None:
    members = [("a.json", JSON), ("a.npy", GOOD), ("x.json", meta), ("x.npy", GOOD)]
    assert read(write_tar(tmp_path / "s.tar", members)) == (["a"], {"bad_json": 1})


def test_a_byte_order_mark_before_meta_data_is_dropped(tmp_path: Path) -> None:
    assert read(write_tar(tmp_path / "s.tar", [("a.json", b"\xef\xbb\xbf" + JSON), ("a.npy", GOOD)])) == (["a"], {})


def test_npy_headers_of_other_writers_are_read(tmp_path: Path) -> None:
    value = np.ones((6, CHANNELS), np.float16).tobytes()
    for number, text in enumerate(
        [
            "{'descr':'<f2','fortran_order':False,'shape':(6,4)}",
            "{'descr': '<f2', 'fortran_order': False, 'shape': (6, 4,), }   \n",
        ]
    ):
        payload = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode() + value
        path = write_tar(tmp_path / f"{number}.tar", [("a.json", JSON), ("a.npy", payload)])
        assert read(path) == (["a"], {})


def test_a_sample_is_counted_once_however_many_of_its_members_are_wrong(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    names = [b"/x.npy", b"/x.json", b"/x.ref.npy", b"../y.npy", b"../y.json"]
    links = header(b"l.npy", 0, b"2") + header(b"l.json", 0, b"2")
    path.write_bytes(b"".join(header(name, 0) for name in names) + links + sample_of("a") + END)
    assert read(path) == (["a"], {"hostile_member": 3})
    path.write_bytes(sample_of("a") + sample_of("b")[:-100])
    assert read(path) == (["a"], {"truncated_shard": 1})


def rotten(data: bytes, rng: random.Random) -> bytes:
    """A few random changes: bits, bytes, and pieces that are deleted, duplicated, zeroed or swapped."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        place, width = rng.randrange(len(out)), rng.choice((1, 1, 1, 2, 8, 512, 3000))
        piece = bytes(out[place : place + width])
        match rng.randrange(6):
            case 0:
                out[place] ^= 1 << rng.randrange(8)
            case 1:
                out[place : place + width] = rng.randbytes(len(piece))
            case 2:
                out[place : place + width] = b""
            case 3:
                out[place:place] = piece
            case 4:
                out[place : place + width] = bytes(len(piece))
            case _:
                other = rng.randrange(len(out))
                out[other : other + width] = piece
        if not out:
            return b""
    return bytes(out)


def originals(folder: Path) -> list[bytes]:
    (plain,) = write_shards(folder, 1, 3, longest=6)
    with plain.open("rb") as file:
        data = file.read()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for suffix, payload in (("npy", GOOD), ("json", json.dumps({"text": "x", "duration_s": 1.5}).encode())):
            info = tarfile.TarInfo("é" * 60 + f".{suffix}")
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    return [data, stream.getvalue()[: 8 * BLOCK], gzip.compress(data)]


def fuzz(folder: Path, rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    whole = originals(folder)
    plain, packed = folder / "f.tar", folder / "f.tar.gz"
    for number in range(rounds):
        data = rng.choice(whole)
        path = packed if data is whole[2] else plain
        path.write_bytes(rotten(data, rng))
        began = time.thread_time()
        read(path, rng.choice((CHANNELS, None)))
        assert time.thread_time() - began < 5, f"round {number} of seed {seed}"


def test_shards_with_random_changes_give_counted_rejections_only(tmp_path: Path) -> None:
    fuzz(tmp_path, 400, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_20000_shards_with_random_changes_give_counted_rejections_only(tmp_path: Path) -> None:
    fuzz(tmp_path, 20_000, seed=2)


@given(
    header=st.binary(max_size=200)
    | st.from_regex(rb"\{'descr': '[<>|]?[a-zO]\d{0,5}', 'fortran_order': (True|False), 'shape': \([-0-9, ]*\), \}\n?"),
    version=st.sampled_from([b"\1\0", b"\2\0", b"\3\0"]),
    meta=st.binary(max_size=60) | st.recursive(st.none() | st.text() | st.integers() | st.floats(), st.lists).map(
        lambda value: json.dumps({"text": "a", "speaker": value, "duration_s": value}).encode()
    ),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_any_npy_header_and_any_json_give_counted_rejections_only(
    tmp_path_factory: pytest.TempPathFactory, header: bytes, version: bytes, meta: bytes
) -> None:
    length = len(header).to_bytes(2 if version == b"\1\0" else 4, "little")
    payload = b"\x93NUMPY" + version + length + header + bytes(48)
    path = tmp_path_factory.mktemp("any") / "s.tar"
    write_tar(
        path,
        [("a.json", meta), ("a.npy", GOOD), ("b.json", JSON), ("b.npy", payload), ("c.npy", GOOD), ("c.json", JSON)],
    )
    assert "c" in read(path)[0]


@given(st.binary(max_size=3000))
@settings(max_examples=100, deadline=None)
def test_any_bytes_behind_a_header_are_survived(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "s.tar"
    path.write_bytes(header(b"p", 700, b"x") + data)
    with TarFile(path) as tar:
        assert {fault.cause for fault in tar.faults} <= set(CAUSES)
