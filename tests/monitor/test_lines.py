"""The reader of metrics files, with truncated, garbled and growing files."""

import contextlib
import json
import math
import os
from collections import Counter
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts.monitor import lines, parsing
from echotts.monitor.folders import LocalFolder
from echotts.monitor.lines import LineReader, sampled
from echotts.monitor.parsing import MAX_NAME, MAX_NAMES, parse
from tests.monitor.fake_run import event_line, run_lines, train_line

PATH = "metrics/host.jsonl"


def open_file(folder: Path, content: bytes = b"") -> tuple[Path, LineReader]:
    path = folder / PATH
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path, LineReader(LocalFolder(folder), PATH)


class Seen:
    """Everything a reader gave, in a form that can be compared."""

    def __init__(self) -> None:
        self.numbers: Counter = Counter()
        self.events: list = []

    def take(self, news) -> None:
        for parsed in news:
            for table in parsed.tables:
                for row, (when, step) in enumerate(zip(table.times, table.steps, strict=True)):
                    self.numbers[table.process, float(when), int(step), None, ""] += 1
                    for name, value in zip(table.names, table.values[:, row], strict=True):
                        self.numbers[table.process, float(when), int(step), name, repr(float(value))] += 1
            self.events += [(event.time, event.step, event.event, event.message) for event in parsed.events]


def one_by_one(content: bytes) -> tuple[Seen, int]:
    """The contents of a file by a naive parser, and the number of bad lines."""
    seen, bad = Seen(), 0
    for text in content.split(b"\n")[:-1]:
        if not text.strip():
            continue
        try:
            row = orjson.loads(text)
            when, step = float(row["time"]), float(row["step"])
            assert math.isfinite(when) and 0 <= step < 2**31 and step == int(step) and len(row) <= MAX_NAMES
        except (ValueError, TypeError, KeyError, AssertionError, OverflowError):
            bad += 1
            continue
        process = int(row.get("process") or 0)
        seen.numbers[process, when, int(step), None, ""] += 1
        for name, value in row.items():
            if name not in ("time", "step", "process", "event", "message") and not isinstance(value, list | dict):
                value = math.nan if value is None else value
                with contextlib.suppress(ValueError):
                    seen.numbers[process, when, int(step), name, repr(float(value))] += 1
        if isinstance(row.get("event"), str):
            seen.events.append((when, int(step), row["event"], row.get("message", "")))
    return seen, bad


numbers = st.one_of(st.floats(width=32), st.integers(-(2**40), 2**40), st.none(), st.booleans())
values = st.one_of(numbers, st.sampled_from(["words", "1.5", [1.0], {"a": 1}, []]))
rows = st.builds(
    lambda step, process, extra, more: {"time": 1.7e9 + step, "step": step, "process": process} | extra | more,
    st.integers(0, 50),
    st.integers(-1, 2),
    st.dictionaries(st.sampled_from(["loss/train", "grad/norm", "time/step_s"]), numbers),
    st.dictionaries(st.sampled_from(["loss/train", "x", '"}\n{\\']), values, max_size=1),
)
good = rows.map(lambda row: orjson.dumps(row))
events = st.builds(
    lambda step, what: json.dumps(event_line(step, 1e9, "nan", what)).encode(), st.integers(0, 9), st.text("ab")
)
broken = st.one_of(
    st.binary(max_size=20).map(lambda junk: junk.replace(b"\n", b"")),
    good.flatmap(lambda line: st.integers(0, len(line)).map(lambda end: line[:end])),
    good.flatmap(lambda line: st.integers(0, len(line)).map(lambda start: line[start:])),
    st.sampled_from([b"", b" ", b"7", b"null", b"[1]", b"{}", b'{"time": 1}', b'{"time": 1, "step": -1}', b"\xff"]),
    st.sampled_from([b'{"time": 1, "step": 1.5}', b'{"time": null, "step": 1}', b'{"time": 1, "step": 1e99}', b'"']),
    st.just(b'{"time": "soon", "step": 1}'),
)
files = st.lists(st.one_of(good, good, good, events, broken), max_size=30).map(
    lambda all_: b"".join(line + b"\n" for line in all_)
)


@settings(deadline=None, max_examples=150)
@given(
    content=files,
    cuts=st.lists(st.integers(0, 3000), max_size=6),
    block=st.sampled_from([1 << 10, 5000, 1 << 22]),
    usual=st.sampled_from([1, 3, 32]),
)
def test_a_growing_file_is_read_as_if_it_had_been_read_line_by_line(tmp_path_factory, content, cuts, block, usual):
    path, reader = open_file(tmp_path_factory.mktemp("growing"))
    seen = Seen()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block)
        patch.setattr(parsing, "USUAL", usual)
        for end in [*sorted(cuts), len(content)]:
            path.write_bytes(content[:end])  # at any byte: within a line, within a character
            restarted, news = reader.poll()
            assert not restarted
            seen.take(news)
    expected, bad = one_by_one(content)
    assert seen.numbers == expected.numbers
    assert sorted(seen.events) == sorted(expected.events)
    assert reader.bad == bad


def test_a_line_counts_once_it_is_complete(tmp_path):
    whole = json.dumps(train_line(1, 1e9)).encode() + b"\n"
    path, reader = open_file(tmp_path, whole + whole[:50])
    seen = Seen()
    seen.take(reader.poll()[1])
    assert sum(count for key, count in seen.numbers.items() if key[3] is None) == 1
    assert reader.has_half_line and reader.bad == 0
    with path.open("ab") as file:
        file.write(whole[50:])
    seen.take(reader.poll()[1])
    assert sum(count for key, count in seen.numbers.items() if key[3] is None) == 2
    assert not reader.has_half_line and reader.bad == 0


def test_each_poll_reads_only_new_lines(tmp_path, monkeypatch):
    line = json.dumps(train_line(1, 1e9)).encode() + b"\n"
    path, reader = open_file(tmp_path, line * 5000)
    list(reader.poll()[1])
    read: list[int] = []
    real = LocalFolder.read

    def counting(self, path, start, length):
        got = real(self, path, start, length)
        read.append(len(got))
        return got

    monkeypatch.setattr(LocalFolder, "read", counting)
    list(reader.poll()[1])
    assert read == []  # nothing has grown
    with path.open("ab") as file:
        file.write(line)
    [parsed] = reader.poll()[1]
    assert [len(table.times) for table in parsed.tables] == [1]
    assert sum(read) == lines.CHECKED_BYTES + len(line)


@pytest.mark.parametrize("how", ["cut", "replaced", "rewritten"])
def test_a_truncated_or_replaced_file_is_read_from_the_start(tmp_path, how):
    content = b"".join(json.dumps(line).encode() + b"\n" for line in run_lines(200, 1e9))
    path, reader = open_file(tmp_path, content)
    list(reader.poll()[1])
    other = b"".join(json.dumps(line).encode() + b"\n" for line in run_lines(900, 2e9, seed=1))
    if how == "cut":
        path.write_bytes(other[:300])
    elif how == "replaced":
        (tmp_path / "new").write_bytes(content)
        os.replace(tmp_path / "new", path)
    else:
        path.write_bytes(other)  # in place, and longer than before
    restarted, news = reader.poll()
    assert restarted and reader.cuts == 1
    seen = Seen()
    seen.take(news)
    assert seen.numbers == one_by_one(path.read_bytes())[0].numbers


def test_a_file_that_is_gone_is_forgotten(tmp_path):
    path, reader = open_file(tmp_path, b'{"time": 1, "step": 1}\n')
    list(reader.poll()[1])
    path.unlink()
    restarted, news = reader.poll()
    assert restarted and list(news) == []


def test_an_endless_line_costs_no_memory_and_counts_once(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1000)
    path, reader = open_file(tmp_path, b"x" * 10_000)
    list(reader.poll()[1])
    assert reader.done_bytes == 10_000 and reader.has_half_line
    with path.open("ab") as file:
        file.write(b"yyy\n" + json.dumps(train_line(3, 1e9)).encode() + b"\n")
    [parsed] = reader.poll()[1]
    assert reader.bad == 1
    assert parsed.tables[0].steps.tolist() == [3]


def test_two_lines_that_only_together_are_json_are_two_bad_lines():
    torn = b'{"time": 1, "step": 1, "a": 1\n"b": 2, "c": 3}\n'
    parsed = parse(torn + b'{"time": 2, "step": 2}\n')
    assert parsed.bad == 2
    assert [table.steps.tolist() for table in parsed.tables] == [[2]]


def test_a_sample_of_a_file_reaches_from_its_first_line_to_its_last(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "SAMPLE_BYTES", 4000)
    content = b"".join(json.dumps(train_line(step, 1e9 + step)).encode() + b"\n" for step in range(1, 1001))
    open_file(tmp_path, content)
    parts = list(sampled(LocalFolder(tmp_path), PATH, len(content), 8))
    steps = [step for parsed in parts for table in parsed.tables for step in table.steps.tolist()]
    assert len(parts) == 8 and sum(parsed.bad for parsed in parts) == 0
    assert steps == sorted(steps) and steps[0] == 1 and steps[-1] == 1000 and 16 < len(steps) < 80


@pytest.mark.parametrize(
    ("odd", "bad"),
    [
        (b'{"time": 2, "step": 2}{"time": 3, "step": 3}\n', 1),
        (b'{"time": 2,\n"step": 2}\n', 2),
        (b'{"time": 2, "step": 2}{"time": 3,\n"step": 3}\n', 2),  # as many objects as lines
        (b'\n \n{"time": null, "step": 2}\n', 1),
    ],
)
@pytest.mark.parametrize("name", ["a", "}{"])
def test_lines_that_are_not_one_object_are_bad_even_with_known_names(odd, bad, name, monkeypatch):
    monkeypatch.setattr(parsing, "USUAL", 1)
    good = f'{{"time": 1, "step": 1, "{name}": 1}}\n'.encode()
    assert parse(good).bad == 0
    parsed = parse(good + odd + good)
    assert parsed.bad == bad
    assert [step for table in parsed.tables for step in table.steps.tolist()] == [1, 1]
    assert not any(table.irregular for table in parsed.tables)


@pytest.mark.parametrize("name", ["", "}{", 'a"b', "a\\b", "a\nb", "x" * MAX_NAME, "x" * (MAX_NAME + 1)])
@pytest.mark.parametrize("usual", [1, 32])
def test_names_may_contain_anything_and_are_dropped_if_too_long(name, usual, monkeypatch):
    monkeypatch.setattr(parsing, "USUAL", usual)
    line = orjson.dumps({"time": 1, "step": 1, "loss/train": 2.0, name: 3.0}) + b"\n"
    for _ in range(2):
        parsed = parse(line * 2)
        [table] = parsed.tables
        assert (parsed.bad, table.steps.tolist()) == (0, [1, 1])
        found = dict(zip(table.names, table.values.tolist(), strict=True))
        assert found == {"loss/train": [2.0, 2.0]} | ({name: [3.0, 3.0]} if len(name) <= MAX_NAME else {})


def test_lines_with_the_same_names_in_another_order_stay_in_the_order_of_the_file(monkeypatch):
    monkeypatch.setattr(parsing, "USUAL", 3)
    one, other = b'{"time": %(n)d, "step": %(n)d, "a": 1}\n', b'{"a": 2, "step": %(n)d, "time": %(n)d}\n'
    [table] = parse(b"".join((other, one)[n % 2] % {b"n": n} for n in range(6))).tables
    assert table.steps.tolist() == [0, 1, 2, 3, 4, 5]
    assert table.values.tolist() == [[2, 1, 2, 1, 2, 1]]
