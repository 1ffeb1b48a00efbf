"""A codec's training by two processes of one device equals that of one process with two."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

RUN = """
import sys
import numpy as np
from echotts.cli.codec.training import _placement
from echotts.codec.training.loop import train_codec
from echotts.codec.weights import flatten
from echotts.multihost import processes, runtime
from tests.codec.training.test_loop import Tones, run_in

folder, count, index, address = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
joined = {"coordinator": address, "processes": count, "process_index": index} if count > 1 else {}
training = run_in(folder, eval_every=3, sample_every=6, **joined)
processes.join(training)
with processes.all_end_at_once():
    params, step = train_codec(training, Tones(), _placement(training))
    if runtime.is_primary():
        np.savez(folder + "/params.npz", **dict(flatten(params)))
"""


def run(folder: Path, count: int) -> dict[str, np.ndarray]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    folder.mkdir()
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={2 // count}", "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, str(folder), str(count), str(index), address],
            env=os.environ | flags,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    try:
        for process in started:
            said = process.communicate(timeout=400)[1]
            assert process.returncode == 0, said[-3000:]
    finally:
        for process in started:
            process.kill()
    with np.load(folder / "params.npz") as file:
        return dict(file)


def test_two_processes_train_the_codec_that_one_does(tmp_path: Path):
    one, two = run(tmp_path / "one", 1), run(tmp_path / "two", 2)
    assert one.keys() == two.keys()
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, atol=2e-5, err_msg=name)
    (lines,) = (tmp_path / "two" / "metrics").glob("*.jsonl")
    assert {json.loads(line)["process"] for line in lines.read_text().splitlines()} == {0, 1}
    assert len(list((tmp_path / "two" / "samples").glob("step_*/*_decoded.wav"))) == 2
