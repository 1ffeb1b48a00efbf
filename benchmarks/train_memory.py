"""Peak memory of a train step of the 100M model at batch 4, with and without rematerialisation.

    python -m benchmarks.train_memory         # about 5 minutes on two cores

Each policy runs two steps (loss, gradient, clipped AdamW; float32; 375 frames, 200 text bytes, 248 reference frames) in
a process of its own. The figure is that process's peak resident memory as the system counted it, parameters, optimizer
state and the runtime itself included (target: full at most half of none).
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import jax
from flax import nnx

from benchmarks.models import adamw, model_100m, train_step, training_batch
from echotts.model import BlockDiT, split

POLICIES = ("none", "dots", "full")
BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", choices=POLICIES, help="measure one policy in this process, print it as JSON")
    if policy := parser.parse_args().policy:
        print(json.dumps(measure(policy)))
        return
    results = {}
    for policy in POLICIES:
        command = [sys.executable, "-m", "benchmarks.train_memory", "--policy", policy]
        results[policy] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        peak, seconds = results[policy]["peak_mib"], results[policy]["step_s"]
        share = peak / results["none"]["peak_mib"]
        print(f"remat {policy:5s} peak {peak:7.0f} MiB ({share:.2f} of none), step {seconds:.2f} s", flush=True)


def measure(policy: str) -> dict[str, float]:
    """Peak resident memory of this process in MiB, and the seconds of the second step."""
    graphdef, params = split(BlockDiT(model_100m(remat=policy), rngs=nnx.Rngs(0)))
    optimizer = adamw()
    state, batch = optimizer.init(params), training_batch(BATCH)
    step = jax.jit(train_step(optimizer, graphdef), donate_argnums=(0, 1))
    for _ in range(2):
        start = time.perf_counter()
        params, state, loss = step(params, state, batch, jax.random.key(0))
        loss.block_until_ready()
        seconds = time.perf_counter() - start
    return {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "step_s": seconds}


if __name__ == "__main__":
    main()
