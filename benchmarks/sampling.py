"""Speed of sampling on this machine's CPU: guidance in one batch with cached conditions, and against PyTorch.

    pip install --no-deps echo-tts==0.1.4     # the PyTorch model; of its requirements it needs only torch
    python -m benchmarks.sampling             # about 10 minutes on two cores; --steps 8 --rounds 1 for a look

Model: about 100M parameters (640 wide, 12 layers, 10 heads, encoders 384/4/6), float32. One utterance: 375 frames
(15 s), 200 text bytes, 248 reference frames (10 s). Sides take turns in one process; the best round of each counts.

guidance  A step that encodes the conditions again and runs two forwards, against `flow.sampling`: joint guidance at
          every t (target: at least 1.2 times as fast) and within the default interval (at least 1.6 times).
torch     One forward row of `BlockDiT.velocity` against one of echo-tts's EchoDiT, both with cached conditions, both
          on one thread: the section runs in a process that may use one core only (target: at most 1.3 times as long).
"""

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.measure import best_of
from benchmarks.models import FRAMES, example, model_100m
from echotts.flow.options import GUIDANCE_INTERVAL, SamplerConfig
from echotts.flow.sampling import encode_conditions, sample
from echotts.model import BlockDiT
from echotts.model.fused import choose_attention

SCALE = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--section", choices=["all", "guidance", "torch"], default="all")
    arguments = parser.parse_args()
    if arguments.section in ("all", "guidance"):
        guidance(arguments.steps, arguments.rounds)
    if arguments.section == "torch":
        torch_row(arguments.rounds)
    if arguments.section == "all":
        core = {max(os.sched_getaffinity(0))}
        command = [sys.executable, "-m", "benchmarks.sampling", "--section", "torch", "--rounds"]
        subprocess.run(
            [*command, str(4 * arguments.rounds)], check=True, preexec_fn=lambda: os.sched_setaffinity(0, core)
        )


def guidance(steps: int, rounds: int) -> None:
    model, noise, conditions = new_model(), noise_of(1), example(1)

    def ours(interval: tuple[float, float]) -> Callable[[], Any]:
        config = SamplerConfig(steps=steps, cfg_scale=SCALE, interval=interval)
        return lambda: sample(model, encode_conditions(model, *conditions), noise, config)

    dropped = jax.tree.map(jnp.zeros_like, conditions)
    sides = {
        "encode each step, two forwards": lambda: encode_each_step(model, noise, conditions, dropped, SCALE, steps),
        "joint guidance at every t": ours((0.0, 1.0)),
        f"joint guidance for t in {GUIDANCE_INTERVAL}": ours(GUIDANCE_INTERVAL),
    }
    outputs = {name: np.asarray(run()) for name, run in sides.items()}  # compiles; and the first two must agree
    first, second, _ = outputs.values()
    np.testing.assert_allclose(second, first, atol=1e-3)
    times = best_of(sides, rounds)
    slow = times[next(iter(sides))]
    print(f"sampling, {steps} steps, {len(os.sched_getaffinity(0))} cores, best of {rounds}")
    for (name, spent), target in zip(times.items(), (1.0, 1.2, 1.6), strict=True):
        ratios = f"{slow.wall / spent.wall:.2f} times as fast (target {target}), by CPU time {slow.cpu / spent.cpu:.2f}"
        print(f"  {name:40s} {spent.wall:7.2f} s, CPU {spent.cpu:7.2f} s: {ratios}")


def encode_each_step(model: Any, noise: Any, conditions: Any, dropped: Any, scale: Any, steps: int) -> Any:
    """Joint guidance as commonly implemented: both encoders and the whole decoder, twice per step.

    The loop is in Python: XLA would hoist the encoders out of a compiled loop.
    """
    x = noise
    for i in range(steps):
        x = naive_step(model, x, jnp.full((1,), 1 - i / steps), conditions, dropped, scale, jnp.float32(1 / steps))
    return x


@jax.jit
def naive_step(model: Any, x: Any, t: Any, conditions: Any, dropped: Any, scale: Any, size: Any) -> Any:
    conditioned, unconditioned = model(x, t, *conditions), model(x, t, *dropped)
    return x - (conditioned + scale * (conditioned - unconditioned)) * size


def torch_row(rounds: int) -> None:
    import torch

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    config = model_100m()
    ours, theirs = new_model(), echo_dit(config)
    velocity = jax.jit(lambda model, x, t, conditions: model.velocity(x, model.modulate(t), conditions))
    print(f"one forward row, {len(os.sched_getaffinity(0))} core, best of {rounds}")
    for rows in (1, 2, 3):
        x, t, conditions = noise_of(rows), jnp.full((1,), 0.7), example(rows)
        encoded = encode_conditions(ours, *conditions)
        ids, text_mask, speaker, speaker_mask = (torch.from_numpy(np.array(leaf)) for leaf in conditions)
        cached = {"kv_cache_text": theirs.get_kv_cache_text(ids.long(), text_mask)}
        cached["kv_cache_speaker"] = theirs.get_kv_cache_speaker(speaker)
        x_torch, t_torch = torch.from_numpy(np.array(x)), torch.full((rows,), 0.7)

        def run_torch(x=x_torch, t=t_torch, text_mask=text_mask, speaker_mask=speaker_mask, cached=cached) -> Any:
            return theirs(x, t, text_mask, speaker_mask, **cached)

        def run_ours(x=x, t=t, encoded=encoded) -> Any:
            return velocity(ours, x, t, encoded)

        theirs_spent, ours_spent = best_of({"torch": run_torch, "ours": run_ours}, rounds).values()
        print(
            f"  {rows} rows: PyTorch {theirs_spent.wall / rows:.3f} s, ours {ours_spent.wall / rows:.3f} s a row: "
            f"{ours_spent.wall / theirs_spent.wall:.2f} times as long (target 1.3)"
        )


def echo_dit(config: Any) -> Any:
    """EchoDiT of the installed echo-tts at our sizes. Loads only its model file: the package needs torchaudio."""
    package = importlib.util.find_spec("echo_tts")
    if package is None or not package.submodule_search_locations:
        sys.exit("echo-tts is not installed: pip install --no-deps echo-tts==0.1.4")
    path = os.path.join(package.submodule_search_locations[0], "model.py")
    spec = importlib.util.spec_from_file_location("echo_tts_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sizes = {
        f"{prefix}{name}": value
        for prefix, part in (("text_", config.text), ("speaker_", config.speaker), ("", config))
        for name, value in {
            "model_size": part.width,
            "num_layers": part.depth,
            "num_heads": part.heads,
            "intermediate_size": part.mlp_width,
        }.items()
    }
    return module.EchoDiT(
        latent_size=config.latent_channels,
        norm_eps=config.norm_eps,
        text_vocab_size=config.vocabulary,
        speaker_patch_size=config.patch,
        timestep_embed_size=config.timestep_width,
        adaln_rank=config.adaln_rank,
        **sizes,
    ).eval()


def new_model() -> BlockDiT:
    """A model with the attention that `EchoTTS` would choose."""
    config = model_100m()
    return BlockDiT(config, rngs=nnx.Rngs(0), attend=choose_attention(jax.default_backend(), config))


def noise_of(rows: int) -> Any:
    return jax.random.normal(jax.random.key(1), (rows, FRAMES, model_100m().latent_channels))


if __name__ == "__main__":
    main()
