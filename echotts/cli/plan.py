"""`echotts plan`: what a training needs on a TPU slice, without one."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from echotts import config as configs
from echotts.cli.app import UsageError, parse
from echotts.cli.train import bucket_registry
from echotts.config import Bucket, Config
from echotts.files import atomic_write, check_place

PROG = "echotts plan"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compile the train step for a TPU slice, on any machine, and say what it needs: memory, time, data, disk.

    The compiler (libtpu, extra tpu) takes minutes a bucket for the large presets. Without it the formulas answer
    alone. What does not fit is an answer, with figures.
    """

    topology: str
    """Slice: v4-8 ... v4-512, v5e-4 ... v5e-256 (or v5litepod-*), v5p-8 ... v5p-512, v6e-4 ... v6e-256."""
    preset: Literal["demo", "840m", "1.3b"] = "1.3b"
    """Sizes to plan for."""
    batch_size: int | None = None
    """Samples a step, over all chips. None: the preset's."""
    remat: Literal["none", "dots", "full"] | None = None
    """What the backward pass recomputes: nothing, all but matrix products, whole layers. None: the preset's."""
    attention: Literal["auto", "xla"] = "auto"
    """auto: the fused kernel; xla: the plain softmax, which stores all scores."""
    buckets: tuple[Bucket, ...] | None = None
    """Static shapes, FRAMESxTOKENS each, 25 frames a second. None: the preset's."""
    reference_frames: int | None = None
    """Frames of a reference. None: the preset's."""
    accumulation: int = 1
    """Equal parts a batch is computed in."""
    data_ways: int = 1
    """Whole copies of the model; parameters are cut over the chips of each."""
    tensor_ways: int = 1
    """Parts in which heads and MLP channels are cut."""
    search: bool = False
    """Also find, for each remat, the largest batch whose largest bucket fits, and the cheapest remat for batch_size:
    several compilations each."""
    output: Path | None = None
    """Also write the answer as JSON."""


def main(argv: list[str]) -> int:
    """Parse, plan, print; returns the exit code."""
    arguments = parse(Arguments, argv, prog=PROG, registry=bucket_registry())
    config = make_config(arguments)
    import jax

    jax.config.update("jax_platforms", "cpu")  # shapes only; the slice is the compiler's
    from echotts.training import plan, topology

    try:
        slice_ = topology.parse_topology(arguments.topology)
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        devices, missing = topology.compiler_devices(slice_), None
    except topology.NoCompilerError as error:
        devices, missing = None, str(error)
    if arguments.output is not None:
        check_place(arguments.output)
    result = plan.make_plan(config, slice_, devices)
    answer = result.to_dict() | {"missing": missing}
    print(_describe(answer), flush=True)
    if arguments.search and devices is not None:
        mesh, largest_bucket = plan.slice_mesh(config, devices), config.data.buckets[-1]

        def compile_one(tried: Config) -> plan.Memory:
            memory = plan.compile_memory(tried, mesh, largest_bucket, slice_)
            print(f"  batch {tried.data.batch_size}, remat {tried.model.remat}: {_memory(memory)}", flush=True)
            return memory

        print(f"search, bucket {largest_bucket.frames}x{largest_bucket.tokens}")
        answer["largest_batch"] = plan.search(config, mesh, slice_, compile_one)
        for remat, rows in answer["largest_batch"].items():
            print(f"remat {remat:<5} largest batch {rows}" if rows else f"remat {remat:<5} fits no batch")
        rows = config.data.batch_size
        remat = answer["cheapest_remat"] = plan.cheapest_remat(answer["largest_batch"], rows)
        print(f"batch {rows}: {f'remat {remat} is the cheapest that fits' if remat else 'does not fit'}")
    if arguments.output is not None:
        with atomic_write(arguments.output) as path:
            path.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    return 0


def make_config(arguments: Arguments) -> Config:
    """The preset with the given flags; UsageError where they contradict each other."""
    config = configs.preset(arguments.preset)
    try:
        return replace(
            config,
            model=replace(config.model, attention=arguments.attention, **_given(remat=arguments.remat)),
            data=replace(
                config.data,
                **_given(
                    batch_size=arguments.batch_size,
                    buckets=arguments.buckets,
                    reference_frames=arguments.reference_frames,
                ),
            ),
            optim=replace(config.optim, accumulation=arguments.accumulation),
            run=replace(config.run, data_ways=arguments.data_ways, tensor_ways=arguments.tensor_ways),
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _describe(answer: dict[str, Any]) -> str:
    lines = [
        f"{answer['preset']} on {answer['topology']}: {answer['chips']} chips, {answer['hosts']} hosts; "
        f"batch {answer['batch_size']}, remat {answer['remat']}, attention {answer['attention']}",
        f"parameters       {answer['parameters'] / 1e6:,.2f}M",
        f"state a chip     {answer['state_bytes_chip'] / 2**30:.2f} GiB (float32 weights, average, two moments)",
        f"checkpoint       {answer['checkpoint_bytes'] / 1e9:.1f} GB",
        f"FSDP traffic     {answer['fsdp_bytes_chip'] / 1e9:.1f} GB a chip and step, "
        f"{answer['fsdp_s'] * 1e3:.0f} ms at the data sheet's rate",
    ]
    for bucket in answer["buckets"]:
        times = ", ".join(f"{value:.3f} s at {share}" for share, value in bucket["step_s"].items())
        lines += [
            f"bucket {bucket['frames']}x{bucket['tokens']}",
            f"  work           {bucket['step_flops'] / 1e12:,.0f} TFLOP a step: {times} of peak",
            f"  data           {bucket['samples_per_s_host']:.0f} samples/s and "
            f"{bucket['megabytes_per_s_host']:.0f} MB/s a host, at 50% of peak",
            f"  memory a chip  {_memory_of(bucket['memory'], answer['missing'])}",
        ]
    return "\n".join(lines)


def _memory_of(memory: dict[str, Any] | None, missing: str | None) -> str:
    from echotts.training.plan import Memory

    return f"not known: {missing}" if memory is None else _memory(Memory(**memory))


def _memory(memory: Any) -> str:
    gib = 2**30
    verdict = "fits" if memory.fits else "DOES NOT FIT"
    parts = (
        f" (arguments {memory.arguments / gib:.2f}, temporaries {memory.temporaries / gib:.2f})"
        if memory.arguments is not None
        else ""
    )
    return (
        f"{memory.needed / gib:.2f} of {memory.available / gib:.2f} GiB{parts}: {verdict}; "
        f"compiled in {memory.compile_s:.0f} s"
    )
