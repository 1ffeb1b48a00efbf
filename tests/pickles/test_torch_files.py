"""The restricted reader against PyTorch's own writer, and against torch files that mean harm."""

import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from echotts.pickles import read_pickle, read_torch_zip
from tests.pickles.written import Runs, assert_same, assert_survives, refusal

torch = pytest.importorskip("torch")

FLOATS = ("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")
INTEGERS = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def rewritten(
    source: Path, target: Path, change: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED
) -> Path:
    """A copy of a torch file with members (without their root) replaced, added, or removed if None."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        root = old.namelist()[0].split("/")[0]
        members = {name.removeprefix(f"{root}/"): old.read(name) for name in old.namelist()} | change
        for name, content in members.items():
            if content is not None:
                new.writestr(f"{root}/{name}", content)
    return target


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
    }
    read = read_torch_zip(saved(tmp_path / "tensors.pth", {"tensors": tensors, "views": views}))
    for name, tensor in (tensors | views).items():
        ours = (read["tensors"] | read["views"])[name]
        assert ours.shape == tuple(tensor.shape), name
        assert str(tensor.dtype) == f"torch.{ours.dtype}", name
        wide = torch.complex128 if tensor.is_complex() else torch.float64
        np.testing.assert_array_equal(
            ours.astype(np.complex128 if tensor.is_complex() else np.float64),
            tensor.detach().to(wide).numpy(),
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
    assert read["metadata"]["kwargs"] == {"rates": [2, 8], "size": (1, 2), "dtype": "float16", "device": "cpu"}
    assert_same(read["metadata"]["logs"], {"loss": [0.5, np.ones(2)]})


def test_tensors_that_are_only_marked_as_conjugated_or_negated_are_refused(tmp_path: Path):
    single = torch.ones(3)
    for tensor in (torch.complex(single, single).conj(), torch.complex(single, single).conj().imag):
        assert "conjugation or negation" in refusal(read_torch_zip, saved(tmp_path / "lazy.pth", [tensor]))


def test_classes_of_torch_that_are_no_tensors_are_refused_by_name(tmp_path: Path):
    module = torch.nn.Linear(2, 2)
    assert "torch.nn.modules.linear.Linear" in refusal(read_torch_zip, saved(tmp_path / "module.pth", module))
    sparse = torch.eye(2).to_sparse()
    assert "torch._utils._rebuild_sparse_tensor" in refusal(read_torch_zip, saved(tmp_path / "sparse.pth", sparse))


class Storage:
    """Represents a persistent id in a handwritten pickle."""

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


def test_malicious_archives_are_rejected(tmp_path: Path):
    path = saved(tmp_path / "good.pth", [torch.zeros(1000)])
    runs = pickle.dumps([Runs()], protocol=2)
    assert "posix.system" in refusal(read_torch_zip, rewritten(path, tmp_path / "a.pth", {"data.pkl": runs}))
    packed = rewritten(path, tmp_path / "b.pth", {}, zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(read_torch_zip, packed)
    assert "storage 0 is missing" in refusal(read_torch_zip, rewritten(path, tmp_path / "c.pth", {"data/0": None}))
    nested = rewritten(path, tmp_path / "d.pth", {"data/0": path.read_bytes()})
    assert "storage 0 should have" in refusal(read_torch_zip, nested)
    script = rewritten(path, tmp_path / "e.pth", {"constants.pkl": b"."})
    assert "TorchScript" in refusal(read_torch_zip, script)
    order = rewritten(path, tmp_path / "f.pth", {"byteorder": b"big"})
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
    assert "but not by torch.save" in refusal(read_torch_zip, tmp_path / "h.pth")
    assert "a zip file, not a pickle" in refusal(read_pickle, path)


def test_old_foreign_and_truncated_files_are_rejected_with_a_remedy(tmp_path: Path):
    torch.save([torch.zeros(3)], tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert "before PyTorch 1.6" in refusal(read_torch_zip, tmp_path / "old.pth")
    whole = saved(tmp_path / "good.pth", [torch.zeros(3000)]).read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pth").write_bytes(whole[:size])
        refusal(read_torch_zip, tmp_path / "cut.pth")
    for read in (read_pickle, read_torch_zip):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "missing.pth")


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
