"""Dashboard server: time to first data, cost of polling, and opening a very large file.

    python -m benchmarks.monitor [--lines 2000000]

1. A run of 100,000 steps with one trainer line each: seconds from the first request to a server that has not read it
   yet until runs, names and the first charts are there (target: 1 s).
2. A page open on that run while it grows by a line per second: CPU time of the server for one page that polls every
   two seconds, as a share of one core (target: 1 %).
3. A file of 2,000,000 lines, with 3 numbers each or the trainer's 23: seconds until the first chart, from a sample of
   the lines, and until every line is read; the peak memory (targets: 2 s, 10 s, 200 MiB).

Reports wall-clock and CPU seconds: on a busy machine only the latter are comparable.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHARTS: str = (
    "loss/train,grad/norm,grad/clip_share,optim/learning_rate,throughput/samples_per_s,time/step_p50_s,time/step_p95_s,"
    "throughput/mfu_share,data/frames_valid_share,time/data_wait_share,device/memory_bytes,heldout/loss"
)
POLL_S, POLLED_S = 2.0, 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2_000_000, help="of the very large file")
    parser.add_argument("--part", choices=["page", "open"], help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        print(json.dumps({"page": measure_page, "open": measure_open}[asked.part](asked.run)))
        return
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        write_run(run, 100_000, "full")
        figures = apart("page", run)
        print("a run of 100,000 steps, 23 numbers a line:")
        print(f"  first charts after {figures['first_s']:.2f} s ({figures['first_cpu_s']:.2f} s of one core)")
        print(f"  one page polling every {POLL_S:.0f} s: {figures['polling_share']:.2%} of a core")
        for kind, numbers in (("short", 3), ("full", 23)):
            run = Path(folder) / kind
            size = write_run(run, asked.lines, kind)
            figures = apart("open", run)
            print(f"{asked.lines:,} lines of {numbers} numbers, {size / 1e6:.0f} MB:")
            print(f"  first chart, of some lines: {figures['rough_s']:.2f} s ({figures['rough_cpu_s']:.2f} s cpu)")
            print(f"  every line: {figures['whole_s']:.2f} s ({figures['whole_cpu_s']:.2f} s cpu)")
            print(f"  memory: {figures['peak_mib']:.0f} MiB at most")
            (run / "metrics" / "host-0.jsonl").unlink()


def apart(part: str, run: Path) -> dict[str, float]:
    """Measures in a separate process, whose memory and CPU time are those of the server alone."""
    command = [sys.executable, "-m", "benchmarks.monitor", "--part", part, "--run", str(run)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_page(run: Path) -> dict[str, float]:
    """First data and polling, by real requests to a real server; this thread's own CPU time is excluded."""
    from echotts.monitor.runs import Library
    from echotts.monitor.security import called
    from echotts.monitor.serve import listen, make_server

    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        server = make_server(Library([str(run)], None), called("127.0.0.1", (), False, "", None, port))
        threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True).start()
        while not server.started:
            time.sleep(0.01)
        base = f"http://127.0.0.1:{port}/api/runs"
        began, cpu = time.perf_counter(), time.process_time()
        [first] = ask(base)["runs"]
        base = f"{base}/{first['id']}"
        ask(f"{base}/names")
        cursor = ask(f"{base}/series?names={CHARTS}&smooth=0.9")["cursor"]
        first_s, first_cpu_s = time.perf_counter() - began, time.process_time() - cpu
        rows = (run / "metrics" / "host-0.jsonl").open("a")
        last = json.loads((run / "metrics" / "host-0.jsonl").read_text().rsplit("\n", 2)[-2])
        began, cpu, asking = time.perf_counter(), time.process_time(), time.thread_time()
        while time.perf_counter() - began < POLLED_S:
            time.sleep(POLL_S)
            for _ in range(int(POLL_S)):
                last |= {"step": last["step"] + 1, "time": time.time()}
                rows.write(json.dumps(last) + "\n")
            rows.flush()
            ask(f"http://127.0.0.1:{port}/api/runs")
            ask(f"http://127.0.0.1:{port}/api/alerts")
            ask(f"{base}/hosts")
            ask(f"{base}/events?since={cursor}")
            cursor = ask(f"{base}/series?names={CHARTS}&smooth=0.9&since={cursor}")["cursor"]
        spent = time.process_time() - cpu - (time.thread_time() - asking)
        share = spent / (time.perf_counter() - began)
        return {"first_s": first_s, "first_cpu_s": first_cpu_s, "polling_share": share}


def measure_open(run: Path) -> dict[str, float]:
    """A preview of the chart, then all lines, as the server reads them."""
    from echotts.monitor import serve  # the server's imports count as memory
    from echotts.monitor.folders import open_folder
    from echotts.monitor.history import History
    from echotts.monitor.series import answer

    assert serve
    history = History(open_folder(str(run)))
    rough_s, rough_cpu_s = timed(lambda: answer(history.preview(), ["loss/train"], "step", 2000, 0.9, None))
    memory = Memory()
    whole_s, whole_cpu_s = timed(history.refresh)
    timed(lambda: answer(history, [*CHARTS.split(",")], "step", 2000, 0.9, None))
    peak_mib = memory.peak_mib()
    return {
        "rough_s": rough_s,
        "rough_cpu_s": rough_cpu_s,
        "whole_s": whole_s,
        "whole_cpu_s": whole_cpu_s,
        "peak_mib": peak_mib,
    }


class Memory(threading.Thread):
    """Tracks the total memory of this process and its children; shared pages are counted once."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._most = 0
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._over.wait(0.1):
            self._look()

    def peak_mib(self) -> float:
        self._over.set()
        self.join()
        self._look()
        return self._most / 1024

    def _look(self) -> None:
        processes = [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]
        ours = [process for process in processes if process == str(os.getpid()) or parent(process) == os.getpid()]
        self._most = max(self._most, sum(map(proportional_kib, ours)))


def parent(process: str) -> int:
    """The parent of a process; -1 if it ended."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def proportional_kib(process: str) -> int:
    """The memory of a process; pages shared by n processes count 1/n (proc(5): smaps_rollup). 0 if it ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall-clock and CPU seconds, including those of child processes."""
    began, cpu = time.perf_counter(), cpu_s()
    work()
    return time.perf_counter() - began, cpu_s() - cpu


def cpu_s() -> float:
    """CPU time of this process and of its ended children."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def write_run(run: Path, lines: int, kind: str) -> int:
    """Writes a metrics file with this many lines, one per step; returns its size in bytes."""
    import numpy as np

    from tests.monitor.fake_run import train_line

    path = run / "metrics" / "host-0.jsonl"
    path.parent.mkdir(parents=True)
    rng = np.random.default_rng(0)
    began = time.time() - lines
    patterns = []
    for _ in range(1000):  # this many different lines, repeated with new steps and times
        line = train_line(1000, began, 0, rng)
        if kind == "short":
            line = {name: line[name] for name in ("time", "step", "process", "loss/train", "grad/norm", "time/step_s")}
        patterns.append(json.dumps(line | {"time": "@", "step": "#"}).replace('"@"', "%.3f").replace('"#"', "%d"))
    with path.open("w") as file:
        for start in range(0, lines, 1000):
            file.write("".join(f"{p}\n" % (began + start + i, start + i + 1) for i, p in enumerate(patterns)))
    return path.stat().st_size


def ask(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url) as answer:
        return json.loads(answer.read())


if __name__ == "__main__":
    main()
