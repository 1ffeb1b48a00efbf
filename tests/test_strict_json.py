"""Limits of JSON documents, and the errors for documents that exceed them."""

import json
import time
import tracemalloc
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts.strict_json import MAX_BYTES, MAX_DEPTH, check_type, load_json, load_rows


@dataclass(frozen=True)
class Inner:
    width: int
    scale: float = 1.0


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    rates: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("the name is empty")


DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)  # fmt: skip


def refusal(data: bytes | str, kind: Any = None) -> str:
    with pytest.raises(ValueError, match=r"^a/b\.json: ") as caught:
        load_json(data, "a/b.json", kind)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@given(DOCUMENTS)
def test_whatever_json_writes_is_read_as_it_was(value: Any):
    assert load_json(json.dumps(value), "x") == value
    assert load_json(json.dumps(value, ensure_ascii=False).encode(), "x") == value


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_nesting_is_limited_to_32_whatever_nests(opening: str):
    closing = "]" if opening == "[" else "}"

    def nested(depth: int) -> str:
        return opening * depth + "1" + closing * depth

    load_json(nested(MAX_DEPTH), "x")
    load_json(f'["{"[" * 1000}", {nested(MAX_DEPTH - 1)}]', "x")
    for depth in (MAX_DEPTH + 1, 400, 1500, 100_000):
        refusal(nested(depth))
    assert "nested more than 32 deep" in refusal(f"[1, {nested(MAX_DEPTH)}, 2]")


@pytest.mark.parametrize(
    "data",
    [b"", b" ", b"{", b"[1,]", b"[1] x", b"\xff", b'"\xff"', b'"\\ud800"', b"NaN", b"-Infinity", b"1e400", b"9" * 5000,
     b"\xef\xbb\xbf{}", b"\x00", "\ud800", '"\ud800"'],
)  # fmt: skip
def test_invalid_json_is_a_one_line_error(data: bytes | str):
    assert "not valid JSON" in refusal(data)


def test_an_integer_beyond_64_bits_is_no_integer():
    assert "width: Expected int, got float" in refusal(b'{"name": "a", "inner": {"width": 1%s}}' % (b"0" * 30), Outer)


def test_size_is_limited_before_anything_is_parsed():
    assert f"exceed the limit of {MAX_BYTES}" in refusal(b"[" * (MAX_BYTES + 1))
    with pytest.raises(ValueError, match="exceed the limit of 10"):
        load_json(b"[1, 2, 3, 4]", "x", max_bytes=10)
    assert load_json(b'"' + b"a" * MAX_BYTES + b'"', "x", max_bytes=2 * MAX_BYTES)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ('{"name": "a", "inner": {"width": "x"}}', "inner.width: Expected int, got str"),
        ('{"name": "a", "inner": {"width": true}}', "inner.width: Expected int, got bool"),
        ('{"name": "a", "inner": {"width": 1.5}}', "inner.width: Expected int, got float"),
        ('{"name": "a", "inner": 5}', "inner: Expected object, got int"),
        ('{"name": "a"}', "Object missing required field inner"),
        ('{"name": "a", "inner": {"width": 1, "depth": 2}}', "unknown field 'depth': known fields are scale, width"),
        ('{"name": "a", "inner": {"width": 1}, "rates": [1, "2"]}', "rates[1]: Expected int, got str"),
        ('{"name": "", "inner": {"width": 1}}', "the name is empty"),
        ("[]", "Expected object, got array"),
    ],
)
def test_a_document_of_other_types_is_refused_by_field(document: str, words: str):
    assert words in refusal(document, Outer)


def test_a_valid_document_is_converted():
    read = load_json('{"name": "a", "inner": {"width": 3, "scale": 2}, "rates": [1, 2]}', "x", Outer)
    assert read == Outer("a", Inner(3, 2.0), (1, 2))
    assert check_type({"a": 1}, "x", dict[str, int]) == {"a": 1}


@pytest.mark.parametrize("piece", [b"[],", b"{},", b"1.5,", b'"",', b'{"a":[]},', b"[[[[[[[[]]]]]]]],"])
def test_a_document_costs_a_few_times_its_size(piece: bytes):
    data = b"[" + piece * (MAX_BYTES // len(piece) - 1) + b"0]"
    seconds = []
    for _ in range(2):  # the better one counts: other processes slow this one down
        began = time.thread_time()
        load_json(data, "x")
        seconds.append(time.thread_time() - began)
    assert min(seconds) < 2.0, seconds
    tracemalloc.start()  # not above, where it would be timed, too
    try:
        load_json(data, "x")
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_documents_are_read_or_refused_in_one_line(data: st.DataObject):
    content = bytearray(b'{"name": "a\\u00e9", "inner": {"width": 12, "scale": 1e-5}, "rates": [1, 2, [3, null]]}')
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    message = "x: "
    try:
        load_json(bytes(content), "x", Outer)
    except ValueError as error:
        message = str(error)
    assert message.startswith("x: ")
    assert "\n" not in message


def test_lines_of_a_growing_file_end_only_at_line_feeds_and_an_incomplete_one_is_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert load_rows(path) == []
    path.write_bytes('{"text": "a\u2028b\x85c"}\n{"text": "gr\u00fc"}\n{"text": "cu'.encode())
    assert [row["text"] for row in load_rows(path, ["text"])] == ["a\u2028b\x85c", "gr\u00fc"]
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: has no audio"):
        load_rows(path, ["audio"])
    for line, words in ((b"[1]", "Expected object"), (b"\xff", "not UTF-8"), (b"[" * 400 + b"]" * 400, "nested")):
        path.write_bytes(b'{"text": ""}\n' + line + b"\n")
        with pytest.raises(ValueError, match=rf"rows\.jsonl, line 2.*{words}"):
            load_rows(path)
