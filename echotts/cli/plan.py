"""`echotts plan`: estimates what a training needs on a TPU slice, or on one device, without having it."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from echotts import config as configs
from echotts.cli.app import UsageError, parse
from echotts.cli.plan_lines import breakdown, costliest, describe_compiled, describe_memory, describe_plan
from echotts.cli.train import bucket_registry
from echotts.config import MAX_RANK, Bucket, Config, TuneConfig, TuneName
from echotts.files import check_writable, write_json

PROG = "echotts plan"
ESTIMATE = "memory and time: estimates by the TPU compiler, not measured"
DEVICE = re.compile(r"(\d+(?:\.\d+)?) ?GiB", re.IGNORECASE)
ONE_CHIP = "v6e-1"  # the single device that the compiler knows


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compile the train step for a TPU slice, on any machine, and report what it needs: memory, time, data, disk.

    Formulas are evaluated at once; the compiler (libtpu, extra tpu) takes minutes per bucket for the large presets, and
    its results are printed as they arrive. Times are estimates by the compiler, not measured. A configuration that does
    not fit is reported with its figures.
    """

    topology: str | None = None
    """Slice as named by `launch` and Google Cloud, in any case: v4-64, v5litepod-32 (or v5e-32), v5p-128, v6e-8."""
    device: str | None = None
    """Instead of a slice: one device with this memory, such as 24GiB. The program is compiled for a TPU v6e, because
    the compiler of a GPU needs one; a GPU's temporaries differ."""
    tune: TuneName = "none"
    """With --device: what --tune of echotts train would train."""
    rank: int = 16
    """Rank of the adapters for --tune lora."""
    what: Literal["train", "speak"] = "train"
    """train: the train step on the whole slice; speak: 15 s of speech with guidance and 32 steps, on one chip of it."""
    preset: Literal["demo", "small", "840m", "1.3b"] = "1.3b"
    """Model preset."""
    batch_size: int | None = None
    """Samples per step, over all chips. None: the preset's."""
    remat: Literal["none", "dots", "full"] | None = None
    """What the backward pass recomputes: nothing, all but matrix products, whole layers. None: the preset's."""
    attention: Literal["auto", "splash", "xla"] = "auto"
    """auto: this package's fused kernel; splash: JAX's; xla: plain softmax, which stores all scores."""
    buckets: tuple[Bucket, ...] | None = None
    """Static shapes, FRAMESxTOKENS each, 25 frames per second. None: the preset's."""
    reference_frames: int | None = None
    """Maximum reference length in frames. None: the preset's."""
    accumulation: int = 1
    """Gradient accumulation: number of equal parts of a batch."""
    data_ways: int = 1
    """Data-parallel replicas; parameters are sharded over the chips of each."""
    tensor_ways: int = 1
    """Tensor parallelism: shards of heads and MLP channels."""
    steps: int | None = None
    """Steps of the whole run, for its duration and price. None: the preset's."""
    chip_hour_price: float | None = None
    """Price of one chip hour, in any currency, for the price of a step and of the run."""
    explain: bool = False
    """Also print the twenty costliest operations of each bucket's step, with their source lines."""
    search: bool = False
    """Also find the largest batch that fits with the largest bucket for each remat, and the cheapest remat for
    batch_size; takes several compilations each."""
    output: Path | None = None
    """Also write the results as JSON."""

    def __post_init__(self) -> None:
        if (self.topology is None) == (self.device is None):
            raise ValueError("give either --topology or --device")
        if self.device is None and self.tune != "none":
            raise ValueError(f"--tune {self.tune} is planned for one device: give its memory, as in --device 24GiB")
        if self.device is not None and (self.what == "speak" or self.search or self.explain):
            raise ValueError("--device gives the memory of a training; --what, --search and --explain need --topology")
        if self.device is not None and not DEVICE.fullmatch(self.device):
            raise ValueError(f"--device {self.device!r}: give its memory, as in 24GiB")
        if not 1 <= self.rank <= MAX_RANK:
            raise ValueError(f"--rank {self.rank} must be from 1 to {MAX_RANK}")


def main(argv: list[str]) -> int:
    """Parses the arguments, plans, prints; returns the exit code."""
    arguments = parse(Arguments, argv, prog=PROG, registry=bucket_registry())
    config = make_config(arguments)
    import jax

    jax.config.update("jax_platforms", "cpu")  # only shapes are needed; the slice exists only for the compiler
    from echotts.training import plan, topology

    if arguments.output is not None:
        check_writable(arguments.output)
    try:
        slice_ = topology.parse_topology(arguments.topology or ONE_CHIP)
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        devices, missing = topology.compiler_devices(slice_), None
    except topology.NoCompilerError as error:
        devices, missing = None, str(error)
    if arguments.device is not None:
        _write(_on_device(config, arguments.device, slice_, devices, missing), arguments.output)
        return 0
    if arguments.what == "speak":
        if devices is None:
            raise UsageError(f"--what speak needs the compiler: {missing}")
        answer = _speak(config, slice_, devices[0], explain=arguments.explain)
        _write(answer, arguments.output)
        return 0
    result = plan.make_plan(config, slice_, devices)
    answer: dict[str, Any] = result.to_dict() | {"missing": missing}
    print(describe_plan(answer), flush=True)
    if devices is None:
        print(f"memory and time  unknown: {missing}")
    else:
        mesh = plan.slice_mesh(config, devices)
        print(ESTIMATE, flush=True)
        for bucket, planned in zip(config.data.buckets, answer["buckets"], strict=True):
            compiled = plan.compile_bucket(config, mesh, bucket, slice_, arguments.chip_hour_price)
            planned |= compiled.to_dict()
            print(describe_compiled(bucket, compiled, explain=arguments.explain), flush=True)
        if arguments.search:
            answer |= _search(config, mesh, slice_)
    _write(answer, arguments.output)
    return 0


def _write(answer: dict[str, Any], output: Path | None) -> None:
    if output is not None:
        write_json(output, answer)


def _on_device(config: Config, device: str, slice_: Any, devices: Any, missing: str | None) -> dict[str, Any]:
    """Prints and returns what a training needs on one device of this memory."""
    from echotts.training import plan

    found = DEVICE.fullmatch(device)
    assert found is not None
    slice_ = replace(slice_, name=device, chip=replace(slice_.chip, hbm_gib=float(found[1])))
    state = plan.state_sizes(config)
    answer: dict[str, Any] = {"preset": config.preset, "device": device, "tune": config.tune.method} | state
    print(
        f"{config.preset}, tune {config.tune.method}, on one device of {device}: batch {config.data.batch_size}, remat "
        f"{config.model.remat}\n"
        f"parameters       {state['parameters'] / 1e6:,.2f}M, of which {state['trained'] / 1e6:,.2f}M are trained\n"
        f"state            {state['state_bytes'] / 2**30:.2f} GiB (trained: weights, EMA, two moments, float32; "
        f"frozen: {state['frozen_bytes'] / 2**30:.2f} GiB)\n"
        f"checkpoint       {state['checkpoint_bytes'] / 1e9:.2f} GB",
        flush=True,
    )
    if devices is None:
        print(f"memory           unknown: {missing}")
        return answer | {"missing": missing}
    print("memory: an estimate by the TPU compiler for one chip, not measured, and not on a GPU", flush=True)
    mesh, buckets = plan.slice_mesh(config, devices), []
    for bucket in config.data.buckets:
        memory = plan.compile_bucket(config, mesh, bucket, slice_).memory
        memory = replace(memory, available=int(float(found[1]) * 2**30))
        print(f"bucket {bucket.frames}x{bucket.tokens}: {describe_memory(memory)}", flush=True)
        buckets.append({"frames": bucket.frames, "tokens": bucket.tokens, "needed": memory.needed, "fits": memory.fits})
    return answer | {"buckets": buckets}


def _speak(config: Config, slice_: Any, device: Any, *, explain: bool) -> dict[str, Any]:
    from echotts.codec.config import CodecConfig
    from echotts.flow.options import SamplerConfig
    from echotts.synthesis.lowered import SECONDS, lower_speaking
    from echotts.training import cost

    sampler = SamplerConfig()
    print(
        f"{config.preset} on one chip of {slice_.name}: {SECONDS:.0f} s of speech, {sampler.steps} steps, guidance "
        f"{sampler.cfg_scale:g}; time estimated by the TPU compiler, not measured",
        flush=True,
    )
    answer: dict[str, Any] = {"preset": config.preset, "topology": slice_.name, "speech_s": SECONDS, "programs": {}}
    for name, (lowered, runs) in lower_speaking(config.model, CodecConfig(), sampler, device).items():
        found = cost.estimate(lowered.compile().as_text(), slice_.chip, unknown_trips=sampler.steps)
        answer["programs"][name] = found.to_dict() | {"runs": runs}
        print(f"{name}: {runs * found.step_s:.3f} s ({runs} runs)", *breakdown(found), sep="\n", flush=True)
        if explain:
            print(*costliest(found), sep="\n", flush=True)
    total = sum(part["runs"] * part["step_s"] for part in answer["programs"].values())
    answer["total_s"] = total
    print(f"total {total:.3f} s: {SECONDS / total:,.0f} times faster than real time")
    return answer


def _search(config: Config, mesh: Any, slice_: Any) -> dict[str, Any]:
    from echotts.training import plan

    largest_bucket = config.data.buckets[-1]

    def compile_one(tried: Config) -> plan.Memory:
        memory = plan.compile_bucket(tried, mesh, largest_bucket, slice_).memory
        print(f"  batch {tried.data.batch_size}, remat {tried.model.remat}: {describe_memory(memory)}", flush=True)
        return memory

    print(f"search, bucket {largest_bucket.frames}x{largest_bucket.tokens}")
    largest = plan.search(config, mesh, slice_, compile_one)
    for remat, rows in largest.items():
        print(f"remat {remat:<5} largest batch {rows}" if rows else f"remat {remat:<5} no batch fits")
    rows = config.data.batch_size
    remat = plan.cheapest_remat(largest, rows)
    print(f"batch {rows}: {f'remat {remat} is the cheapest that fits' if remat else 'does not fit'}")
    return {"largest_batch": largest, "cheapest_remat": remat}


def make_config(arguments: Arguments) -> Config:
    """The preset with the given flags; UsageError if they contradict each other."""
    from echotts.checkpoint.facts import Facts, Limits
    from echotts.training.recipes import tuning

    config = configs.preset(arguments.preset)
    try:
        if arguments.tune != "none":
            facts = Facts(buckets=Limits.of(configs.to_dict(config.data)))
            sections = tuning(config, arguments.tune, "base", config.model, facts)
            given = {"data": replace(sections["data"], heldout="heldout")}
            given["tune"] = TuneConfig(method=arguments.tune, rank=arguments.rank)
            config = replace(config, **(sections | given))
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
            optim=replace(config.optim, accumulation=arguments.accumulation, **_given(steps=arguments.steps)),
            run=replace(config.run, data_ways=arguments.data_ways, tensor_ways=arguments.tensor_ways),
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
