"""Compile time of the train step of a 24-layer model: scanned layers against unrolled layers.

    python -m benchmarks.compile_time         # about 10 minutes on two cores, nearly all of it the unrolled side

Model: the 840m preset (24 decoder layers, two encoders of 8), float32, batch 4 of 375 frames, 200 text bytes and 248
reference frames; loss, gradient and clipped AdamW. Nothing is run, no parameters are allocated: the time is that of
tracing, lowering and compiling, both sides in this process (target: scanned at most 0.35 of unrolled).
"""

import argparse
import dataclasses
import time
from typing import Any
from unittest import mock

import jax
from flax import nnx

from benchmarks.models import adamw, loop_over_layers, train_step, training_batch, unrolled
from echotts.config import echo_840m
from echotts.model import BlockDiT, layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=24, help="decoder layers")
    config = dataclasses.replace(
        echo_840m().model, depth=parser.parse_args().depth, compute_dtype="float32", remat="none"
    )
    scanned_s = seconds_to_compile(lambda: BlockDiT(config, rngs=nnx.Rngs(0)))
    with mock.patch.object(layers, "scan_layers", loop_over_layers):
        unrolled_s = seconds_to_compile(lambda: unrolled(BlockDiT(config, rngs=nnx.Rngs(0))))
    print(f"compiling the train step of {config.depth} layers: scanned {scanned_s:.1f} s, unrolled {unrolled_s:.1f} s")
    print(f"ratio {scanned_s / unrolled_s:.2f} (target 0.35)")


def seconds_to_compile(create: Any) -> float:
    """Wall time of tracing, lowering and compiling one train step."""
    graphdef, params = nnx.split(nnx.eval_shape(create))
    optimizer = adamw()
    state, batch = jax.eval_shape(optimizer.init, params), jax.eval_shape(lambda: training_batch(4))
    start = time.perf_counter()
    jax.jit(train_step(optimizer, graphdef)).lower(params, state, batch, jax.random.key(0)).compile()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
