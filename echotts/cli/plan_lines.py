"""The lines that `echotts plan` prints."""

from typing import Any

from echotts.config import Bucket

COSTLIEST = 20


def describe_plan(answer: dict[str, Any]) -> str:
    lines = [
        f"{answer['preset']} on {answer['topology']}: {answer['chips']} chips, {answer['hosts']} hosts; "
        f"batch {answer['batch_size']}, remat {answer['remat']}, attention {answer['attention']}",
        f"parameters       {answer['parameters'] / 1e6:,.2f}M",
        f"state per chip   {answer['state_bytes_chip'] / 2**30:.2f} GiB (float32 weights, EMA, two moments)",
        f"checkpoint       {answer['checkpoint_bytes'] / 1e9:.1f} GB",
        f"FSDP traffic     {answer['fsdp_bytes_chip'] / 1e9:.1f} GB per chip and step, "
        f"{answer['fsdp_s'] * 1e3:.0f} ms at half the chip's links",
    ]
    for bucket in answer["buckets"]:
        times = ", ".join(f"{value:.3f} s at {share}" for share, value in bucket["step_s"].items())
        again = bucket["hardware_flops"] / bucket["step_flops"]
        remat = f"; with remat the chip computes {again:.2f} times that" if again > 1 else ""
        lines += [
            f"bucket {bucket['frames']}x{bucket['tokens']}",
            f"  work           {bucket['step_flops'] / 1e12:,.0f} TFLOP per step: {times} of peak{remat}",
            f"  data           {bucket['samples_per_s_host']:.0f} samples/s and "
            f"{bucket['megabytes_per_s_host']:.0f} MB/s per host, at 50% of peak",
        ]
    return "\n".join(lines)


def describe_compiled(bucket: Bucket, compiled: Any, *, explain: bool) -> str:
    lines = [f"bucket {bucket.frames}x{bucket.tokens}", f"  memory/chip    {describe_memory(compiled.memory)}"]
    time = compiled.time
    if time is None:
        return "\n".join(lines)
    lines += [
        f"  step           {time.step_s:.3f} s at {time.cost.clock_hz / 1e9:.2f} GHz: MFU {time.mfu_share:.1%}, "
        f"{time.hfu_share:.1%} including remat; {time.samples_per_s:,.0f} samples/s",
        *breakdown(time.cost),
        f"  the run        {time.run_hours:,.0f} hours if all steps are in this bucket",
    ]
    if time.step_price is not None:
        lines.append(f"  price          {time.step_price:.4f} per step, {time.run_price:,.0f} for the run")
    return "\n".join([*lines, *(costliest(time.cost) if explain else [])])


def breakdown(cost: Any) -> list[str]:
    """A breakdown of a program's time."""
    parts = {
        "products": cost.products_s,
        "other fusions": cost.fusions_s,
        "copies": cost.copies_s,
        "Pallas kernels": cost.kernels_s,
        "collectives": cost.collectives_s,
    }
    milliseconds = ", ".join(f"{name} {seconds * 1e3:.1f}" for name, seconds in parts.items())
    hidden = f" ({cost.hidden_s * 1e3:.1f} of these hidden behind computation)" if cost.collectives_s else ""
    lines = [f"  breakdown, ms  {milliseconds}{hidden}"]
    if cost.collectives:
        moved = ", ".join(f"{count} {name}" for name, count in sorted(cost.collectives.items()))
        lines.append(f"  collectives    {cost.collective_bytes / 1e9:.2f} GB per chip: {moved}")
    if cost.unknown_kernels:
        lines.append(f"  not estimated  {cost.unknown_kernels} runs of Pallas kernels that do not state their work")
    return lines


def costliest(cost: Any) -> list[str]:
    lines = ["  costliest      ms, runs, kind, line, operation"]
    for one in cost.operations[:COSTLIEST]:
        operation = one.op_name.rpartition("/")[2] or one.name
        lines.append(f"  {one.seconds * 1e3:10.2f} {one.runs:6} {one.kind:<10} {one.source}  {operation}")
    return lines


def describe_memory(memory: Any) -> str:
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
