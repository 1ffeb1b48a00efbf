"""The restricted reader against Python's own writer, and against pickles that mean harm."""

import collections
import os
import pickle
import struct
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from echotts.pickles import RestrictedPickleError, read_npy_pickle, read_pickle
from tests.pickles.written import Runs, assert_same, assert_survives, pickled, refusal


class Pair(NamedTuple):
    first: int
    second: int


@pytest.mark.parametrize("protocol", range(2, 6))
def test_plain_containers_and_arrays_read_as_python_reads_them(tmp_path: Path, protocol: int):
    rng = np.random.default_rng(0)
    shared = [1, 2]
    content = {
        "scalars": [0, -1, 255, 70_000, -(2**40), 2**100, True, False, None, 0.1, float("inf")],
        "texts": ["", "ascii", "na\u00efve \U0001f600\n'\"", b"", b"\x00\xff", b"y" * 5000],
        "containers": [(), (1,), (1, 2, 3, 4), {1: {2: []}, None: 0}, shared, shared],
        "mappings": [collections.OrderedDict(a=1, b=2), collections.defaultdict(list, a=[1])],
        "arrays": [rng.standard_normal((2, 3)).astype(t) for t in ("f4", "f8", ">f4", "f2", "i8", "u1", "?", "c8")],
        "order": [np.asfortranarray(rng.standard_normal((3, 4))), rng.standard_normal((4, 6))[::2, ::3]],
        "edges": [np.zeros((0, 3)), np.array(2.5), np.float32(1.5), np.bool_(True)],
        "halves": [np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3), ml_dtypes.bfloat16(2)],
    }
    assert_same(read_pickle(pickled(tmp_path / "plain.pkl", content, protocol)), content)


def test_optimizer_states_become_tuples_and_dicts(tmp_path: Path):
    params = {"layer": {"kernel": np.ones((2, 3), np.float32)}}
    state = optax.ScaleByAdamState(count=np.int32(7), mu=params, nu=params)  # pyright: ignore[reportArgumentType]
    content = {"opt_state": (optax.EmptyState(), (state, optax.MaskedState(optax.EmptyState()))), "step": 7}
    read = read_pickle(pickled(tmp_path / "state.pkl", content))
    assert read["opt_state"][0] == ()
    adam, masked = read["opt_state"][1]
    assert type(adam) is tuple
    assert adam[0] == 7
    assert_same(adam[1], params)
    assert masked == ((),)


def test_boxed_parameters_are_unwrapped(tmp_path: Path):
    from flax.core import freeze
    from flax.core.meta import Partitioned

    content = freeze({"kernel": Partitioned(np.ones(3, np.float32), names=("embed",))})  # pyright: ignore
    assert_same(read_pickle(pickled(tmp_path / "boxed.pkl", content)), {"kernel": np.ones(3, np.float32)})


def test_shared_objects_stay_shared(tmp_path: Path):
    shared = {"a": [1]}
    read = read_pickle(pickled(tmp_path / "shared.pkl", [shared, shared]))
    assert read[0] is read[1]


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_call_of_os_system_is_refused_by_name(tmp_path: Path, protocol: int):
    assert "posix.system" in refusal(read_pickle, pickled(tmp_path / "bad.pkl", {"a": [1, Runs()]}, protocol))


@pytest.mark.parametrize(
    ("stream", "name"),
    [
        (b"\x80\x02cos\nsystem\n(X\x04\0\0\0truetR.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "builtins.eval"),
        (b"\x80\x04\x8c\x05optax\x8c\x0f_src.base.chain\x93.", "optax._src.base.chain"),
        (b"\x80\x04\x8c\x0anumpy.load\x8c\x01\n\x93.", r"numpy.load.\n"),
        (b"\x80\x02ctorch.serialization\nload\n.", "torch.serialization.load"),
    ],
)
def test_each_way_to_name_a_function_is_refused_by_name(tmp_path: Path, stream: bytes, name: str):
    path = tmp_path / "bad.pkl"
    path.write_bytes(stream)
    assert f"refused: it references {name}, " in refusal(read_pickle, path)


def test_classes_of_other_modules_are_refused_by_name(tmp_path: Path):
    assert "Pair" in refusal(read_pickle, pickled(tmp_path / "pair.pkl", Pair(1, 2)))
    assert "pathlib." in refusal(read_pickle, pickled(tmp_path / "path.pkl", Path("x")))


def doubled(times: int) -> bytes:
    """A pickle that nests a tuple in itself twice over, `times` times: 2**times leaves in a few bytes."""
    return b"\x80\x04)\x94" + b"".join(b"h%ch%c\x86\x94" % (level, level) for level in range(times)) + b"."


@pytest.mark.parametrize("protocol", [0, 1])
def test_a_pickle_of_an_old_protocol_is_refused_with_a_remedy(tmp_path: Path, protocol: int):
    assert "write it again with protocol 4" in refusal(read_pickle, pickled(tmp_path / "old.pkl", {"a": 1}, protocol))


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"\x80\x04",
        b"\x80\x04N",
        b"hello",
        b"\x80\x04(.",
        b"\x80\x04K\x01K\x02s.",
        b"\x80\x04]\x94h\x00a.",  # a list that contains itself
        b"\x80\x04]\x94(h\x00h\x00e.",  # a list that contains itself twice
        b"\x80\x04" + b"]" * 5000 + b"a" * 4999 + b".",
        b"\x80\x04" + b"]" * 66 + b"a" * 65 + b".",
        b"\x80\x04}" + doubled(60)[2:-1] + b"Ns.",  # hashing it would never end
        b"\x80\x04}K\x01\x85Ns.",
        b"\x80\x04}J\0\0\1\0Ns.",
        b"\x80\x04}G" + bytes(8) + b"Ns.",
        b"\x80\x04\x8f.",
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 50) + b"x.",
        b"\x80\x04X" + struct.pack("<I", 1 << 30) + b"x.",
        b"\x80\x04\x8a\xffx.",
        b"\x80\x04Nr\xff\xff\xff\xffj\xfe\xff\xff\xff.",
        b"\x80\x04Nq\x01.",
        b"\x80\x04]b.",
        b"\x80\x04]Nb.",
        b"\x80\x04NN\x86b.",
        b"\x80\x05\x97.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02c" + b"x" * 300 + b"\ny\n.",
        b"\x80\x02cnumpy\nndarray\n)R.",
        b"\x80\x02cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.",
        b"\x80\x02cnumpy\ndtype\n" + doubled(60)[2:-1] + b"\x85R.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)RK\x01K\x02\x86b.",
        b"\x80\x02cbuiltins\nlist\n)R.",
        b"\x80\x02U\x01aQ.",
    ],
)
def test_malformed_pickles_are_one_line(tmp_path: Path, stream: bytes):
    path = tmp_path / "bad.pkl"
    path.write_bytes(stream)
    refusal(read_pickle, path)


def test_arrays_of_objects_or_of_other_sizes_are_refused(tmp_path: Path):
    refusal(read_pickle, pickled(tmp_path / "objects.pkl", np.array([None, {}])))
    refusal(read_pickle, pickled(tmp_path / "fields.pkl", np.zeros(2, [("a", "f4")])))
    good = pickle.dumps(np.zeros(3, np.float32), protocol=4)
    path = tmp_path / "shape.pkl"
    path.write_bytes(good.replace(b"K\x03\x85", b"K\x04\x85"))
    assert "12 bytes" in refusal(read_pickle, path)


EXAMPLE = {"a": [1, 2.5, "x", None], "b": np.arange(6.0).reshape(2, 3), "c": (3, 4), "run": Runs()}


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), protocol=st.integers(2, 5))
def test_corrupted_pickles_never_run_and_fail_in_one_line(tmp_path: Path, data: st.DataObject, protocol: int):
    content = bytearray(pickle.dumps(EXAMPLE, protocol=protocol))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "corrupt.pkl"
    path.write_bytes(content)
    assert_survives(read_pickle, path)


def test_a_dict_that_numpy_saved_is_read_as_data(tmp_path: Path):
    """A zero-dimensional array with one object; larger arrays of objects are rejected."""
    path = tmp_path / "x.npy"
    content = {"codes": np.arange(6, dtype=np.uint16).reshape(1, 2, 3), "about": {"rate": 8000, "name": "x"}}
    np.save(path, np.array(content, dtype=object), allow_pickle=True)
    read = read_npy_pickle(path)
    np.testing.assert_array_equal(read["codes"], content["codes"])
    assert read["about"] == content["about"]
    for wrong in ({"a": np.array([1, {}], dtype=object)}, {"a": os.system}):
        np.save(path, np.array(wrong, dtype=object), allow_pickle=True)
        with pytest.raises(RestrictedPickleError, match=r"of objects|posix\.system"):
            read_npy_pickle(path)
    np.save(path, np.zeros(3))
    with pytest.raises(RestrictedPickleError, match="contains an array"):
        read_npy_pickle(path)
