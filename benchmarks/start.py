"""From the command to the first step: the demo preset over two processes, with an empty and with a warm compile cache.

    python -m benchmarks.start         # about two minutes on two cores

Each side starts `train_pretrain.py` twice on this machine and stops the clock when both have said the numbers of step
1: imports, joining, listing the shards, the first batch, compiling and the step are in it. The sides differ in the
compile cache alone. The last figure of a side is from SIGTERM to one of the two until both have saved and left.
Target: at most 60 s with a warm cache; 10 s for leaving.
"""

import tempfile
import time
from pathlib import Path

from benchmarks.processes import stop, training, until, write_shards

PROCESSES, REPEATS = 2, 2


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shards = write_shards(root / "shards")
        for number in range(1 + REPEATS):
            run = root / f"run {number}"
            flags = [f"--data={shards}", f"--run_dir={run / 'trained'}", "--run.log_every=1", "--run.eval_every=0"]
            began = time.perf_counter()
            with training(PROCESSES, run, flags, root / "compiled") as processes:
                until("step 1/", run, processes)
                first_s = time.perf_counter() - began
                left_s = stop(processes)
            cache = "warm" if number else "empty"
            print(
                f"{cache:5s} compile cache: first step after {first_s:5.1f} s, leaving took {left_s:.1f} s", flush=True
            )


if __name__ == "__main__":
    main()
