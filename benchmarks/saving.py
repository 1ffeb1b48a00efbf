"""Cost of a checkpoint: the pause of the training loop, and the total, as a share of the default interval.

    python -m benchmarks.saving [--processes 2]         # five minutes on two cores, with two processes seven

The demo preset trains STEPS steps twice, without saving and with a checkpoint every EVERY steps; both sides take turns
with the same program and compile cache. `stands still` is the longest checkpoint/save_s (the copy from the devices);
`costs` is the total wall time added by one save, including writing in the background. Both are given as a share of the
time between two saves at the preset's default interval, and the first also of a single step.
Target: at most 5 % of the time of the steps.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.processes import metric_lines, training, write_shards
from echotts.config import demo

STEPS, EVERY, WARM = 60, 10, 10
ROUNDS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1)
    count = parser.parse_args().processes
    interval = demo().run.save_every_steps
    sides: dict[int, list[tuple[float, float]]] = {0: [], EVERY: []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shards = write_shards(root / "shards")
        for turn in range(int(count > 1), 1 + ROUNDS):  # 0 fills the compile cache, which several processes do not use
            for every, figures in sides.items():
                run = root / f"run {turn} {every}"
                measured = measure(run, count, shards, every, root / "compiled")
                figures += [measured] if turn else []
    step_s = min(seconds for seconds, _ in sides[0])
    stall_s = max(stall for _, stall in sides[EVERY])
    cost_s = max(0.0, (min(seconds for seconds, _ in sides[EVERY]) - step_s) * EVERY)
    print(f"{count} process(es): step {step_s:.3f} s; default interval {interval} steps, {interval * step_s:.0f} s")
    print(f"a save stands still {stall_s:.3f} s: {stall_s / step_s:.0%} of a step, {share(stall_s, step_s, interval)}")
    print(f"a save costs {cost_s:.2f} s in all: {share(cost_s, step_s, interval)}")


def share(seconds: float, step_s: float, interval: int) -> str:
    return f"{seconds / (interval * step_s):.3%} of the steps between two saves (target 5 %)"


def measure(run: Path, count: int, shards: Path, every: int, cache: Path) -> tuple[float, float]:
    """(wall seconds per step including saves; the longest pause) of one run."""
    flags = [
        *(f"--data={shards}", f"--run_dir={run / 'trained'}", f"--steps={STEPS}", "--run.log_every=1"),
        *("--run.eval_every=0", "--run.save_every_minutes=0", f"--run.save_every_steps={every}"),
    ]
    with training(count, run, flags, cache) as processes:
        if any(process.wait() for process in processes):
            raise SystemExit("\n".join(log.read_text() for log in run.glob("log*")))
    lines = metric_lines(run / "trained")
    times = {line["step"]: line["time"] for line in lines if "loss/train" in line and line["process"] == 0}
    last = STEPS - 1  # excludes the save after the last step
    stalls = [line["checkpoint/save_s"] for line in lines if "checkpoint/save_s" in line and line["step"] < STEPS]
    return (times[last] - times[WARM]) / (last - WARM), max(stalls, default=0.0)


if __name__ == "__main__":
    main()
