"""Reads every attack and a valid file, and prints the cost of each: one JSON object per line."""

import gc
import json
import pickle
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from echotts.pickles import RestrictedPickleError, read_pickle, read_torch_zip
from tests.pickles.attacks import pickles, torch_files

SIZE = 1 << 20


def main() -> None:
    weights = {f"block_{n}": {"kernel": np.ones((64, 64), np.float32), "bias": np.ones(64)} for n in range(500)}
    files = {name: (read_pickle, content) for name, content in pickles(SIZE).items()}
    files |= {name: (read_torch_zip, content) for name, content in torch_files(SIZE).items()}
    files["honest.pkl"] = read_pickle, pickle.dumps({"params": weights, "ema": weights, "step": 3}, protocol=4)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        for name, (read, content) in files.items():
            path.write_bytes(content)
            print(json.dumps({"name": name, "bytes": len(content), **cost(read, path)}), flush=True)


def cost(read: Any, path: Path) -> dict[str, Any]:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before, began, error = resident_bytes("VmRSS"), time.thread_time(), None
    try:
        walked(read(path))
    except RestrictedPickleError as refusal:
        error = str(refusal)
    return {
        "cpu_s": round(time.thread_time() - began, 3),
        "peak_bytes": resident_bytes("VmHWM") - before,
        "error": error,
    }


def resident_bytes(figure: str) -> int:
    """VmRSS, this process's memory now, or VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{figure}:"))


def walked(value: Any) -> Any:
    """Typical use of the result: copies each array, and names each leaf by its path."""
    if isinstance(value, dict):
        return [walked(item) for item in value.values()], paths(value, "")
    if isinstance(value, (list, tuple)):
        return [walked(item) for item in value]
    return np.array(value, copy=True) if isinstance(value, np.ndarray) else value


def paths(tree: dict[Any, Any], above: str) -> list[str]:
    return [
        path
        for name, item in tree.items()
        for path in (paths(item, f"{above}/{name}") if isinstance(item, dict) else [f"{above}/{name}"])
    ]


if __name__ == "__main__":
    main()
