"""Peak memory of a train step of the 100M model at batch 4, with and without rematerialisation.

    python -m benchmarks.train_memory         # about 5 minutes on two cores

Each policy runs two steps (loss, gradient, clipped AdamW; float32; 375 frames, 200 text bytes, 248 reference frames) in
its own process. Two figures: the compiler's planned peak for the step, including parameters and optimizer state, and
the process's peak resident memory, including Python and the runtime; compilation, which needs memory itself, happens in
another process that fills a cache. Target: full at most half of none.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

import jax
from flax import nnx

from benchmarks.models import adamw, model_100m, train_step, training_batch
from echotts.model import BlockDiT, split

POLICIES = ("none", "dots", "full")
KINDS = ("planned_mib", "resident_mib")
BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", choices=POLICIES, help="measure one policy in this process, print it as JSON")
    if policy := parser.parse_args().policy:
        print(json.dumps(measure(policy)))
        return
    none: dict[str, float] = {}
    for policy in POLICIES:
        result = in_process(policy)
        none = none or result
        shares = {name: f"{result[name]:6.0f} MiB ({result[name] / none[name]:.2f} of none)" for name in KINDS}
        print(
            f"remat {policy:5s} planned {shares['planned_mib']}, resident {shares['resident_mib']}, "
            f"step {result['step_s']:.1f} s",
            flush=True,
        )


def in_process(policy: str) -> dict[str, float]:
    """`measure` in a separate process, after another one has compiled the step."""
    command = [sys.executable, "-m", "benchmarks.train_memory", "--policy", policy]
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
        runs = [subprocess.run(command, check=True, capture_output=True, text=True, env=environment) for _ in range(2)]
    return json.loads(runs[-1].stdout)


def measure(policy: str) -> dict[str, float]:
    """Planned and resident peak in MiB, and the seconds of the second step."""
    graphdef, params = split(BlockDiT(model_100m(remat=policy), rngs=nnx.Rngs(0)))
    optimizer = adamw()
    state, batch = optimizer.init(params), training_batch(BATCH)
    jitted = jax.jit(train_step(optimizer, graphdef), donate_argnums=(0, 1))
    step = jitted.lower(params, state, batch, jax.random.key(0)).compile()
    plan = step.memory_analysis()
    planned = plan.argument_size_in_bytes + plan.temp_size_in_bytes  # outputs reuse donated arguments
    for _ in range(2):
        start = time.perf_counter()
        params, state, loss = step(params, state, batch, jax.random.key(0))
        loss.block_until_ready()
        seconds = time.perf_counter() - start
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"planned_mib": planned / 2**20, "resident_mib": resident / 2**20, "step_s": seconds}


if __name__ == "__main__":
    main()
