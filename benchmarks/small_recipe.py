"""What makes a small model learn to read: short trainings of the preset small, each with one thing changed.

    python -m benchmarks.small_recipe --data english/train --heldout english/heldout --runs recipe [--steps 600]

Each training is `echotts train --preset small` with the flags of its row in VARIANTS, in its own run directory; started
again, the benchmark continues where it was interrupted. Further flags go to every training. The table has the means
over the seeds, with their range, at the last step: the held-out loss, by how much it rises with texts of other samples
(`heldout/text_gain`, 0 for a model that does not read), and the time of a step relative to the first row, which only
counts if the machine did nothing else. Ten minutes per training on one core with the defaults.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median

VARIANTS: dict[str, tuple[str, ...]] = {
    "preset small": (),
    "bytes, not phonemes": ("--data.tokenizer", "byte"),
    "no alignment loss": ("--flow.alignment", "0"),
    "times around 0.5, as published": ("--flow.time_mean", "0"),
    "Muon": ("--optim.method", "muon"),
    "kernels initialised as published": ("--optim.init", "published"),
    "only clips of up to 2.6 s": ("--data.buckets", "64x48"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="shards to train on")
    parser.add_argument("--heldout", required=True, help="held-out shards")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the run directories")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=VARIANTS, help="rows to measure; default: all")
    given, further = parser.parse_known_args()
    print("| training | held-out loss | more with other texts | time of a step |\n|---|---|---|---|", flush=True)
    usual_s = None
    for name in given.only or VARIANTS:
        runs = [given.runs / f"{name.replace(' ', '_')}-{seed}" for seed in range(given.seeds)]
        for seed, run in enumerate(runs):
            data = ["--data", given.data, "--heldout", given.heldout, "--run_dir", str(run), "--seed", str(seed)]
            train([*data, "--steps", str(given.steps), *further, *VARIANTS[name]])
        loss, gain = ([list(values(run, f"heldout/{what}"))[-1] for run in runs] for what in ("loss", "text_gain"))
        step_s = median(seconds for run in runs for seconds in values(run, "time/step_p50_s"))
        usual_s = usual_s or step_s
        print(f"| {name} | {with_range(loss)} | {with_range(gain)} | {step_s / usual_s:.2f} |", flush=True)


def train(flags: Sequence[str]) -> None:
    """Trains quietly to the end; exits with the training's own message if it fails."""
    rare = ["--run.sample_every", "0", "--run.eval_batches", "8", "--data.max_rejected_share", "1"]
    command = [sys.executable, "-m", "echotts", "train", "--preset", "small", *rare, *flags]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def values(run: Path, name: str) -> Iterator[float]:
    """The values of a metric of a run, in order."""
    for path in sorted((run / "metrics").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            if name in (numbers := json.loads(line)):
                yield numbers[name]


def with_range(numbers: Sequence[float]) -> str:
    return f"{mean(numbers):.4f} ({min(numbers):.4f} to {max(numbers):.4f})"


if __name__ == "__main__":
    main()
