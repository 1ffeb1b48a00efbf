"""Processes whose devices interleave in the mesh, as on a TPU slice: together they train on what one trains on."""

import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.multihost.group import FORKED, hashes, permuted
from tests.tiny_training import TINY, with_sections

# Each of two processes has every other row, each of four has two rows that are not adjacent.
INTERLEAVED = [0, 4, 1, 5, 2, 6, 3, 7]
STEPS = 3


def train_a_little(index: int, count: int, address: str, shards: Path, order: Sequence[int], answer: Path) -> None:
    """What a process does: a few steps on its rows; what all of them together had is its answer."""
    os.dup2(os.open(answer.with_suffix(".log"), os.O_WRONLY | os.O_CREAT, 0o644), 2)
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8 // count)
    jax.config.update("jax_disable_most_optimizations", True)
    if count > 1:
        jax.distributed.initialize(address, count, index, cluster_detection_method="deactivate")
    from echotts.checkpoint.digests import global_digests
    from echotts.multihost import messages
    from echotts.training import mesh as meshes
    from echotts.training.feed import Feed
    from echotts.training.inputs import open_inputs
    from echotts.training.state import new_state
    from echotts.training.step import make_train_step

    config = with_sections(TINY, data={"data": str(shards)}, model={"depth": 1, "remat": "none"})
    mesh = permuted(meshes.make_mesh, order)()
    inputs = open_inputs(config, meshes.own_rows(mesh, config.data.batch_size))
    feed, state, compiled = Feed(inputs.stream, mesh), new_state(config, mesh, inputs.first_voice)[0], None
    mine, losses, digests = [], [], {}
    for step in range(STEPS):
        fed = feed.next()
        mine += [[step, row, name] for row, name in zip(fed.rows, hashes(fed.batch), strict=True)]
        digests = global_digests(fed.batch)
        if compiled is None:
            limit = np.float32(np.inf)
            compiled = make_train_step(config, mesh).jitted.lower(state, fed.batch, limit, {}).compile()
            messages.all_gather("compiled", index)  # the first collective waits half a minute at most
        state, numbers = compiled(state, fed.batch, limit, {})
        losses.append(numbers["row_loss"].addressable_data(0).tolist())
    inputs.stream.close()
    each = messages.all_gather("rows", mine)
    own = [sorted({row for _, row, _ in part}) for part in each]
    answer.write_text(
        json.dumps(
            {"own": own, "rows": sorted(row for part in each for row in part), "digests": digests, "losses": losses}
        )
    )


def trained_by(count: int, shards: Path, order: Sequence[int], folder: Path) -> dict:
    """What process 0 of so many says they trained on together; all must say the same."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    answers = [folder / f"{count}-{order[1]}-{index}.json" for index in range(count)]
    started = [
        FORKED.Process(target=train_a_little, args=(index, count, address, shards, order, answer))
        for index, answer in enumerate(answers)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    logs = "\n".join(answer.with_suffix(".log").read_text()[-2000:] for answer in answers)
    assert [process.exitcode for process in started] == [0] * count, logs
    told = [json.loads(answer.read_text()) for answer in answers]
    assert all(one == told[0] for one in told)
    return told[0]


@pytest.mark.multiprocess
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("count", "own"),
    [
        (2, [[0, 2, 4, 6], [1, 3, 5, 7]]),
        pytest.param(4, [[0, 2], [4, 6], [1, 3], [5, 7]], marks=pytest.mark.slow),
    ],
)
def test_processes_that_interleave_train_on_the_rows_noise_and_times_of_one(shards, tmp_path, count, own) -> None:
    """The loss of a row at the first step says which noise and time it met: all else is equal there."""
    alone = trained_by(1, shards, range(8), tmp_path)
    together = trained_by(count, shards, INTERLEAVED, tmp_path)
    assert (alone.pop("own"), together.pop("own")) == ([list(range(8))], own)
    expected, losses = alone.pop("losses"), together.pop("losses")
    assert alone == together
    assert losses[0] == expected[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)  # weights differ in rounding: sums have another order
