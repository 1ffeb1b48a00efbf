"""Processes whose devices interleave in the mesh, as on a TPU slice: together they read the batches that one reads."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys
import jax

index, count, address, shards = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.config.update("jax_num_cpu_devices", 8 // count)
if count > 1:
    jax.distributed.initialize(address, count, index, cluster_detection_method="deactivate")
from echotts.checkpoint.digests import global_digests
from echotts.multihost import messages
from echotts.training import mesh as meshes
from echotts.training.feed import Feed
from echotts.training.inputs import open_inputs
from tests.multihost.group import hashes, permuted
from tests.tiny_training import TINY, with_sections

config = with_sections(TINY, data={"data": shards})
mesh = permuted(meshes.make_mesh, [0, 4, 1, 5, 2, 6, 3, 7])()
inputs = open_inputs(config, meshes.own_rows(mesh, config.data.batch_size))
feed, mine = Feed(inputs.stream, mesh), []
for step in range(3):
    fed = feed.next()
    mine += [[step, row, name] for row, name in zip(fed.rows, hashes(fed.batch), strict=True)]
inputs.stream.close()
digests = global_digests(fed.batch)
each = messages.all_gather("rows", mine)
own = [sorted({row for _, row, _ in part}) for part in each]
print(json.dumps({"own": own, "rows": sorted(sum(each, [])), "digests": digests}))
"""


def read_by(count: int, shards: Path) -> dict:
    """The result of process 0 of this many processes; all must agree."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(index), str(count), address, str(shards)],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    ended = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0] * count, "\n".join(errors[-2000:] for _, errors in ended)
    answers = [json.loads(said.splitlines()[-1]) for said, _ in ended]
    assert all(answer == answers[0] for answer in answers)
    return answers[0]


@pytest.mark.multiprocess
@pytest.mark.timeout(600)
def test_each_process_reads_the_rows_that_its_devices_hold_and_all_read_the_same_batches(shards) -> None:
    one, two, four = (read_by(count, shards) for count in (1, 2, 4))
    assert two.pop("own") == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert four.pop("own") == [[0, 2], [4, 6], [1, 3], [5, 7]]
    assert one.pop("own") == [list(range(8))]
    assert one == two == four
