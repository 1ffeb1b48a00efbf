"""Seconds and memory of a watchdog pass over 100,000 files: scanning them, and deleting the excess over a cap.

    python -m benchmarks.watchdog [--files 100000] [--folder FOLDER]

The files are old logs and shards in 200 folders. Each pass is a separate process that prints its wall and CPU seconds
and its peak resident memory. Goal: under 5 s and 100 MiB.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from echotts.disk.settings import Limits, Root, Settings
from echotts.disk.watchdog import Watchdog

FOLDERS = 200
HIDDEN = "--one-pass"


def main() -> None:
    if HIDDEN in sys.argv:
        one_pass(Path(sys.argv[-1]), dry_run=sys.argv[-2] == "look")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where to make them; a temporary folder if not given")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        make_files(Path(folder), arguments.files)
        print(f"{arguments.files} files in {FOLDERS} folders")
        for what in ("look", "delete"):
            subprocess.run([sys.executable, "-m", "benchmarks.watchdog", HIDDEN, what, folder], check=True)


def make_files(folder: Path, files: int) -> None:
    for number in range(FOLDERS):
        kind, suffix = (("logs", "log"), ("shards", "tar"))[number % 2]
        inner = folder / kind / f"{number:03d}"
        inner.mkdir(parents=True)
        for index in range(files // FOLDERS):
            path = inner / f"tpu_driver.worker-{number}.{index:06d}.{suffix}"
            path.touch()
            os.utime(path, (index, index))


def one_pass(folder: Path, *, dry_run: bool) -> None:
    limits = Limits(start=1e-9, stop=1e-9, min_free_gib=0.0, min_free_inodes=0)
    roots = (Root(kind="logs", path=folder / "logs"), Root(kind="shards", path=folder / "shards"))
    watchdog = Watchdog(Settings(limits=limits, roots=roots), dry_run=dry_run)
    wall, cpu = time.perf_counter(), time.process_time()
    actions = watchdog.run_pass()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    what = "found, none deleted" if dry_run else "deleted"
    print(f"{len(actions):6d} {what}: {wall:.2f} s, {cpu:.2f} s of CPU, {memory_mib:.0f} MiB at most")


if __name__ == "__main__":
    main()
