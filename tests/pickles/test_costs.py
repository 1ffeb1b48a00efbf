"""Limits of cost: at most 4 times the file's size plus 64 MiB of memory, and 2 s of CPU per MB."""

import json
import pickle
import random
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from echotts.pickles import RestrictedPickleError, read_pickle, read_torch_zip
from tests.pickles.attacks import pickles, torch_files
from tests.pickles.written import assert_survives

ROOT = Path(__file__).parent.parent.parent
MIB = 1 << 20


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, Any]]:
    """The cost of each attack, by tests/pickles/measure.py in a subprocess without type checks."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.pickles.measure"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", [*pickles(0), *torch_files(0), "honest.pkl"])
def test_a_file_costs_a_few_times_its_size(measured: dict[str, dict[str, Any]], name: str):
    row = measured[name]
    assert row["peak_bytes"] < 4 * row["bytes"] + 64 * MIB
    assert row["cpu_s"] < 0.5 + 2 * row["bytes"] / 1e6
    assert "\n" not in (row["error"] or "")
    assert name != "honest.pkl" or row["error"] is None


@pytest.mark.parametrize("name", ["lists doubled", "tuples doubled", "dicts doubled", "lists tenfold", "dicts tenfold"])
def test_values_that_unfold_to_far_more_than_the_file_are_rejected(tmp_path: Path, name: str):
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickles(0)[name])
    with pytest.raises(RestrictedPickleError, match="unfold to far more"):
        read_pickle(path)


def mutated(source: random.Random, content: bytes) -> bytes:
    """A few bytes changed, or a piece of the file deleted, duplicated or moved."""
    data = bytearray(content)
    for _ in range(source.randint(1, 8)):
        data[source.randrange(len(data))] = source.randrange(256)
    if source.random() < 0.3:
        first, last = sorted(source.randrange(len(data) + 1) for _ in range(2))
        data[first:last] = data[first:last] * source.choice([0, 2, 3])
    return bytes(data)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_20000_mutations_of_pickles_and_torch_files_are_read_or_refused_in_one_line(tmp_path: Path):
    torch = pytest.importorskip("torch")
    state = {"a": [1, 2.5, "x", None], "b": np.arange(6.0).reshape(2, 3), "c": {"d": (np.float32(1), b"y" * 5000)}}
    whole = [pickle.dumps(state, protocol=protocol) for protocol in (2, 3, 4, 5)]
    torch.save({"w": torch.arange(6.0).reshape(2, 3), "h": torch.ones(2).bfloat16()}, tmp_path / "good.pth")
    with zipfile.ZipFile(tmp_path / "good.pth") as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    small = [content for name, content in pickles(3000).items()]
    path = tmp_path / "mutated"
    for seed in range(20_000):
        source = random.Random(seed)
        kind = source.choice(["pickle", "attack", "archive", "data.pkl"])
        began = time.thread_time()
        if kind in ("pickle", "attack"):
            path.write_bytes(mutated(source, source.choice(whole if kind == "pickle" else small)))
            assert_survives(read_pickle, path)
        else:
            if kind == "archive":
                path.write_bytes(mutated(source, (tmp_path / "good.pth").read_bytes()))
            else:
                with zipfile.ZipFile(path, "w") as archive:
                    for name, content in members.items():
                        archive.writestr(name, mutated(source, content) if name.endswith("data.pkl") else content)
            assert_survives(read_torch_zip, path)
        assert time.thread_time() - began < 2, seed
