"""Starts processes of the real training program, for the benchmarks of starting and saving."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from echotts.cli.app import EXIT_ASKED_TO_LEAVE
from echotts.config import demo
from echotts.data.format.shards import Sample, ShardWriter

ROOT = Path(__file__).parents[1]
LIMIT_S = 900


def write_shards(folder: Path, shards: int = 8, samples: int = 32) -> Path:
    """Shards of noise for the demo preset: clips of 20 to 60 frames, each with a text and a reference."""
    config, rng = demo(), np.random.default_rng(0)
    channels = config.model.latent_channels
    folder.mkdir()
    for number in range(shards):
        with ShardWriter(folder / f"s-{number:03d}.tar", channels) as writer:
            for index in range(samples):
                latent = rng.normal(size=(int(rng.integers(20, 61)), channels)).astype(np.float16)
                reference = rng.normal(size=(40, channels)).astype(np.float16)
                writer.write(Sample(f"k{number}-{index}", latent, reference, "seven three one nine"))
    np.save(folder / "silence.npy", np.zeros((4, channels), np.float32))
    return folder


@contextlib.contextmanager
def training(count: int, folder: Path, flags: Sequence[str], cache: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """`count` processes of the demo preset, ended with the context. Each writes to `folder`/log<index>."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    processes = []
    try:
        for index in range(count):
            joined = [f"--run.coordinator={address}", f"--run.processes={count}", f"--run.process_index={index}"]
            with (folder / f"log{index}").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "train_pretrain.py", "--preset=demo", *flags, *(joined if count > 1 else [])],
                        cwd=ROOT,
                        env=environment,
                        stdout=log,
                        stderr=log,
                    )
                )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def until(words: str, folder: Path, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Waits until each process has logged these words."""
    end = time.monotonic() + LIMIT_S
    logs = [folder / f"log{index}" for index in range(len(processes))]
    while not all(words in log.read_text(errors="replace") for log in logs):
        if time.monotonic() > end or any(process.poll() is not None for process in processes):
            raise SystemExit("\n".join(log.read_text(errors="replace") for log in logs))
        time.sleep(0.02)


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> float:
    """Sends SIGTERM to the last process; returns the seconds until all have saved and exited."""
    began = time.perf_counter()
    processes[-1].send_signal(signal.SIGTERM)
    codes = [process.wait(timeout=LIMIT_S) for process in processes]
    if set(codes) != {EXIT_ASKED_TO_LEAVE}:
        raise SystemExit(f"exit codes {codes} after SIGTERM")
    return time.perf_counter() - began


def metric_lines(run_dir: Path) -> list[dict]:
    """All lines of the run, in order of writing."""
    return [
        json.loads(line) for path in (run_dir / "metrics").glob("*.jsonl") for line in path.read_text().splitlines()
    ]
