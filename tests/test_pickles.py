"""The restricted reader against Python's and PyTorch's own writers, and against files that mean harm."""

import collections
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from echotts.pickles import RestrictedPickleError, read_pickle, read_torch_zip

torch = pytest.importorskip("torch")

FLOATS = ("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")
INTEGERS = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


class Runs:
    """Pickles as a call of os.system."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/echotts-was-here",)


class Pair(NamedTuple):
    first: int
    second: int


def pickled(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def rewritten(
    source: Path, target: Path, change: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED
) -> Path:
    """A copy of a torch file with members (without their root) replaced, added, or left out where None."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        root = old.namelist()[0].split("/")[0]
        members = {name.removeprefix(f"{root}/"): old.read(name) for name in old.namelist()} | change
        for name, content in members.items():
            if content is not None:
                new.writestr(f"{root}/{name}", content)
    return target


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            assert_same(ours[key], value)
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert np.asarray(ours).tobytes() == theirs.tobytes()
    else:
        assert ours == theirs


@pytest.mark.parametrize("protocol", range(6))
def test_plain_containers_and_arrays_read_as_python_reads_them(tmp_path: Path, protocol: int):
    rng = np.random.default_rng(0)
    shared = [1, 2]
    content = {
        "scalars": [0, -1, 255, 70_000, -(2**40), 2**100, True, False, None, 0.1, float("inf"), 1 + 2j],
        "texts": ["", "ascii", "na\u00efve \U0001f600\n'\"", b"", b"\x00\xff", bytearray(b"abc"), b"y" * 5000],
        "containers": [(), (1,), (1, 2, 3, 4), {1: {2: []}}, {1, "two"}, frozenset({3}), shared, shared],
        "mappings": [collections.OrderedDict(a=1, b=2), collections.defaultdict(list, a=[1])],
        "arrays": [rng.standard_normal((2, 3)).astype(t) for t in ("f4", "f8", ">f4", "f2", "i8", "u1", "?", "c8")],
        "order": [np.asfortranarray(rng.standard_normal((3, 4))), rng.standard_normal((4, 6))[::2, ::3]],
        "edges": [np.zeros((0, 3)), np.array(2.5), np.array(["ab", "c"]), np.float32(1.5), np.bool_(True)],
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


def test_boxed_parameters_are_opened(tmp_path: Path):
    from flax.core import freeze
    from flax.core.meta import Partitioned

    content = freeze({"kernel": Partitioned(np.ones(3, np.float32), names=("embed",))})  # pyright: ignore
    assert_same(read_pickle(pickled(tmp_path / "boxed.pkl", content)), {"kernel": np.ones(3, np.float32)})


def test_a_shared_object_stays_shared(tmp_path: Path):
    shared = {"a": [1]}
    read = read_pickle(pickled(tmp_path / "shared.pkl", [shared, shared]))
    assert read[0] is read[1]


def test_tensors_read_as_torch_reads_them(tmp_path: Path):
    base = torch.arange(24).reshape(2, 3, 4)
    tensors = {name: base.to(getattr(torch, name)) for name in (*FLOATS, *INTEGERS, "bool", "complex64", "complex128")}
    single = base.float()
    views = {
        "transposed": single.transpose(0, 2),
        "sliced": single[:, 1:, ::2],
        "expanded": single[:1].expand(5, 3, 4),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(single),
        "conjugate": torch.complex(single, single).conj(),
        "negative": torch.complex(single, single).conj().imag,
    }
    read = read_torch_zip(saved(tmp_path / "tensors.pth", {"tensors": tensors, "views": views}))
    for name, tensor in (tensors | views).items():
        ours = (read["tensors"] | read["views"])[name]
        assert ours.shape == tuple(tensor.shape), name
        assert str(tensor.dtype) == f"torch.{ours.dtype}", name
        wide = torch.complex128 if tensor.is_complex() else torch.float64
        np.testing.assert_array_equal(
            ours.astype(np.complex128 if tensor.is_complex() else np.float64),
            tensor.detach().to(wide).resolve_conj().resolve_neg().numpy(),
            err_msg=name,
        )


def test_a_state_dict_with_metadata_reads_as_plain_containers(tmp_path: Path):
    module = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(2, 3, 5))
    content = {
        "state_dict": module.state_dict(),
        "metadata": {
            "kwargs": {
                "rates": [2, 8],
                "size": torch.Size([1, 2]),
                "dtype": torch.float16,
                "device": torch.device("cpu"),
            },
            "logs": collections.defaultdict(list, loss=[np.float64(0.5), np.ones(2)]),
        },
    }
    read = read_torch_zip(saved(tmp_path / "model.pth", content))
    assert type(read["state_dict"]) is dict
    assert_same(read["state_dict"], {key: value.numpy() for key, value in module.state_dict().items()})
    assert read["metadata"]["kwargs"] == {"rates": [2, 8], "size": (1, 2), "dtype": "torch.float16", "device": "cpu"}
    assert_same(read["metadata"]["logs"], {"loss": [0.5, np.ones(2)]})


def test_big_endian_files_are_swapped(tmp_path: Path):
    path = saved(tmp_path / "little.pth", [torch.arange(3.0)])
    big = np.arange(3).astype(">f4").tobytes()
    read = read_torch_zip(rewritten(path, tmp_path / "big.pth", {"byteorder": b"big", "data/0": big}))
    np.testing.assert_array_equal(read[0], np.arange(3.0))


def refusal(read: Any, path: Path) -> str:
    with pytest.raises(RestrictedPickleError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert not Path("/tmp/echotts-was-here").exists()
    return message


@pytest.mark.parametrize("protocol", range(6))
def test_a_call_of_os_system_is_refused_by_name(tmp_path: Path, protocol: int):
    assert "posix.system" in refusal(read_pickle, pickled(tmp_path / "bad.pkl", {"a": [1, Runs()]}, protocol))


@pytest.mark.parametrize(
    ("stream", "name"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"(S'true'\nios\nsystem\n.", "os.system"),
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
    assert f"refused: it asks for {name}, " in refusal(read_pickle, path)


def test_classes_of_other_modules_are_refused_by_name(tmp_path: Path):
    assert "Pair" in refusal(read_pickle, pickled(tmp_path / "pair.pkl", Pair(1, 2)))
    assert "pathlib." in refusal(read_pickle, pickled(tmp_path / "path.pkl", Path("x")))
    module = torch.nn.Linear(2, 2)
    assert "torch.nn.modules.linear.Linear" in refusal(read_torch_zip, saved(tmp_path / "module.pth", module))
    sparse = torch.eye(2).to_sparse()
    assert "torch._utils._rebuild_sparse_tensor" in refusal(read_torch_zip, saved(tmp_path / "sparse.pth", sparse))


def doubled(times: int) -> bytes:
    """A pickle that nests a tuple in itself twice over, `times` times: 2**times leaves in a few bytes."""
    return b"\x80\x04)" + b"2\x86" * times


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"\x80\x04",
        b"\x80\x04N",
        b"hello",
        b"\x80\x04(.",
        b"\x80\x04K\x01K\x02s.",
        b"\x80\x04]2a.",  # a list in itself
        b"\x80\x04" + b"]" * 5000 + b"a" * 4999 + b".",
        b"\x80\x04}" + doubled(60)[2:] + b"Ns.",  # hashing it would never end
        b"\x80\x04\x8f(" + doubled(60)[2:] + b"\x90.",
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 50) + b"x.",
        b"\x80\x04\x8b" + struct.pack("<i", 1 << 30) + b"x.",
        b"\x80\x04\x8b" + struct.pack("<i", -1) + b"x.",
        b"\x80\x04Nr\xff\xff\xff\xff0j\xfe\xff\xff\xff.",
        b"\x80\x04]b.",
        b"\x80\x04NN\x86b.",
        b"\x80\x05\x97.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02cnumpy\nndarray\n)R.",
        b"\x80\x02cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.",
        b"\x80\x02cnumpy\ndtype\n" + doubled(60)[2:] + b"\x85R.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)RK\x01K\x02\x86b.",
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


def test_a_million_nested_tuples_cost_nothing(tmp_path: Path):
    path = tmp_path / "doubled.pkl"
    path.write_bytes(doubled(60) + b".")
    value = read_pickle(path)
    assert value[0] is value[1]


class Storage:
    """Stands for a persistent id in a pickle written by hand."""

    def __init__(self, identity: tuple) -> None:
        self.identity = identity


def rebuilt(storage: Any, offset: Any, shape: Any, strides: Any) -> bytes:
    """data.pkl with one tensor of the given geometry, as torch would write it if it were mad."""

    class Call:
        def __reduce__(self) -> tuple[Any, ...]:
            hooks = collections.OrderedDict()
            return torch._utils._rebuild_tensor_v2, (Storage(storage), offset, shape, strides, False, hooks)

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return obj.identity if isinstance(obj, Storage) else None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump([Call()])
    return buffer.getvalue()


FLOAT = ("storage", torch.FloatStorage, "0", "cpu", 6)


@pytest.mark.parametrize(
    ("storage", "offset", "shape", "strides"),
    [
        (FLOAT, 0, (7,), (1,)),
        (FLOAT, 1, (2, 3), (3, 1)),
        (FLOAT, -1, (2,), (1,)),
        (FLOAT, 0, (2,), (-1,)),
        (FLOAT, 0, (-2,), (1,)),
        (FLOAT, 0, (2, 3), (1,)),
        (FLOAT, 0, (1 << 62,), (0,)),
        (FLOAT, 0, (1 << 40,), (0,)),
        (FLOAT, 0, (1 << 40, 1 << 40), (0, 0)),
        (FLOAT, 0, (True,), (1,)),
        (FLOAT, 0, [6], [1]),
        (FLOAT, 0.0, (6,), (1,)),
        (("storage", torch.FloatStorage, "0", "cpu", 1 << 50), 0, (6,), (1,)),
        (("storage", torch.FloatStorage, "0", "cpu", 5), 0, (5,), (1,)),
        (("storage", torch.DoubleStorage, "0", "cpu", 6), 0, (6,), (1,)),
        (("storage", torch.FloatStorage, "../../etc/passwd", "cpu", 6), 0, (6,), (1,)),
        (("storage", torch.FloatStorage, "9", "cpu", 6), 0, (6,), (1,)),
        (("storage", collections.OrderedDict, "0", "cpu", 6), 0, (6,), (1,)),
        (("module", torch.FloatStorage, "0", "cpu", 6), 0, (6,), (1,)),
        (("storage",), 0, (6,), (1,)),
    ],
)
def test_a_tensor_outside_of_its_storage_is_refused(
    tmp_path: Path, storage: Any, offset: Any, shape: Any, strides: Any
):
    path = saved(tmp_path / "good.pth", [torch.arange(6.0)])
    sane = read_torch_zip(rewritten(path, tmp_path / "sane.pth", {"data.pkl": rebuilt(FLOAT, 1, (2, 2), (2, 1))}))
    np.testing.assert_array_equal(sane[0], [[1, 2], [3, 4]])
    bad = rebuilt(storage, offset, shape, strides)
    refusal(read_torch_zip, rewritten(path, tmp_path / "bad.pth", {"data.pkl": bad}))


def test_archives_with_tricks_are_refused(tmp_path: Path):
    path = saved(tmp_path / "good.pth", [torch.zeros(1000)])
    runs = pickle.dumps([Runs()], protocol=2)
    assert "posix.system" in refusal(read_torch_zip, rewritten(path, tmp_path / "a.pth", {"data.pkl": runs}))
    packed = rewritten(path, tmp_path / "b.pth", {}, zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(read_torch_zip, packed)
    assert "storage 0 is missing" in refusal(read_torch_zip, rewritten(path, tmp_path / "c.pth", {"data/0": None}))
    nested = rewritten(path, tmp_path / "d.pth", {"data/0": path.read_bytes()})
    assert "storage 0 says" in refusal(read_torch_zip, nested)
    script = rewritten(path, tmp_path / "e.pth", {"constants.pkl": b"."})
    assert "TorchScript" in refusal(read_torch_zip, script)
    order = rewritten(path, tmp_path / "f.pth", {"byteorder": b"middle"})
    assert "byte order" in refusal(read_torch_zip, order)
    two = tmp_path / "g.pth"
    with zipfile.ZipFile(two, "w") as archive:
        archive.writestr("a/data.pkl", b"N.")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/data.pkl", runs)
    assert "twice" in refusal(read_torch_zip, two)
    grown = rewritten(path, tmp_path / "i.pth", {})
    with zipfile.ZipFile(grown, "a") as archive:
        info = archive.getinfo("good/data/0")
        info.file_size = info.compress_size = 1 << 30
        archive.writestr("good/more", b"")
    assert "overlap" in refusal(read_torch_zip, grown)
    with zipfile.ZipFile(tmp_path / "h.pth", "w") as archive:
        archive.writestr("a/data.pkl", b"N.")
        archive.writestr("b/data.pkl", runs)
    assert "not one that torch.save wrote" in refusal(read_torch_zip, tmp_path / "h.pth")
    assert "a zip file, not a pickle" in refusal(read_pickle, path)


def test_old_foreign_and_cut_files_are_refused_with_a_remedy(tmp_path: Path):
    torch.save([torch.zeros(3)], tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert "before PyTorch 1.6" in refusal(read_torch_zip, tmp_path / "old.pth")
    whole = saved(tmp_path / "good.pth", [torch.zeros(3000)]).read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pth").write_bytes(whole[:size])
        refusal(read_torch_zip, tmp_path / "cut.pth")
    for read in (read_pickle, read_torch_zip):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "missing.pth")


EXAMPLE = {"a": [1, 2.5, "x", None], "b": np.arange(6.0).reshape(2, 3), "c": {3, 4}, "run": Runs()}


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), protocol=st.integers(0, 5))
def test_corrupted_pickles_never_run_and_fail_in_one_line(tmp_path: Path, data: st.DataObject, protocol: int):
    content = bytearray(pickle.dumps(EXAMPLE, protocol=protocol))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "corrupt.pkl"
    path.write_bytes(content)
    assert_survives(read_pickle, path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_corrupted_torch_files_never_run_and_fail_in_one_line(tmp_path: Path, data: st.DataObject):
    good = tmp_path / "good.pth"
    if not good.exists():
        saved(good, {"w": torch.arange(6.0).reshape(2, 3), "h": torch.ones(2).bfloat16(), "meta": {"rates": [1, 2]}})
    if data.draw(st.booleans()):
        with zipfile.ZipFile(good) as archive:
            content = bytearray(archive.read("good/data.pkl"))
    else:
        content = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "corrupt.pth"
    if content[:2] == b"PK":
        path.write_bytes(content)
    else:
        rewritten(good, path, {"data.pkl": bytes(content)})
    assert_survives(read_torch_zip, path)


def assert_survives(read: Any, path: Path) -> None:
    message = ""
    try:
        read(path)
    except RestrictedPickleError as error:
        message = str(error)
    assert "\n" not in message
    assert not Path("/tmp/echotts-was-here").exists()
