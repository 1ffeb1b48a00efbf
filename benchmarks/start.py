"""Time from the command to the first step: the demo preset in one and two processes, with empty and warm cache.

    python -m benchmarks.start         # about three minutes on two cores

Each line starts `train_pretrain.py` on this machine and measures until all processes have logged step 1: imports,
joining, listing the shards, the first batch, compilation and the step. The lines of a pair differ only in the compile
cache, which several processes on CPUs do not use. The last figure is the time from SIGTERM to one of the processes
until all have saved and exited. Target: at most 60 s for two processes with a warm cache; 10 s for exiting.
"""

import tempfile
import time
from pathlib import Path

from benchmarks.processes import stop, training, until, write_shards

PROCESSES = (1, 2)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shards = write_shards(root / "shards")
        for count in PROCESSES:
            for cache in ("empty", "warm"):
                run = root / f"{count} {cache}"
                flags = [f"--data={shards}", f"--run_dir={run / 'trained'}", "--run.log_every=1", "--run.eval_every=0"]
                began = time.perf_counter()
                with training(count, run, flags, root / f"compiled {count}") as processes:
                    until("step 1/", run, processes)
                    first_s = time.perf_counter() - began
                    left_s = stop(processes)
                print(f"{count} process(es), {cache:5s} cache: step 1 after {first_s:.1f} s, left in {left_s:.1f} s")


if __name__ == "__main__":
    main()
