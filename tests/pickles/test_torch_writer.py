"""Files that PyTorch opens as data, written without it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from echotts.pickles import read_torch_zip
from echotts.pickles.torch_writer import write_torch_zip

CONTENT = {
    "state_dict": {
        "a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
        "half": np.array([1.5, -2], np.float16),
        "count": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
    },
    "metadata": {"kwargs": {"rates": [2, -8], "dim": 1 << 40, "dropout": False, "scale": 0.1, "none": None, "t": (1,)}},
}


def test_torch_opens_the_file_as_weights_only(tmp_path: Path):
    path = tmp_path / "weights.pth"
    write_torch_zip(path, CONTENT)
    found = torch.load(path, weights_only=True)
    assert found["metadata"] == CONTENT["metadata"]
    for name, array in CONTENT["state_dict"].items():
        np.testing.assert_array_equal(found["state_dict"][name].numpy(), array)
        assert found["state_dict"][name].numpy().dtype == array.dtype


def test_our_own_reader_opens_it_too(tmp_path: Path):
    path = tmp_path / "weights.pth"
    write_torch_zip(path, CONTENT)
    found = read_torch_zip(path)
    for name, array in CONTENT["state_dict"].items():
        np.testing.assert_array_equal(found["state_dict"][name], array)


def test_unsupported_values_are_rejected_and_no_file_is_left(tmp_path: Path):
    for value, message in ((object(), "a object"), (np.array([1 + 2j]), "complex128")):
        with pytest.raises(TypeError, match=message):
            write_torch_zip(tmp_path / "weights.pth", {"x": value})
    assert not list(tmp_path.iterdir())
