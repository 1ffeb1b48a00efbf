"""Creates synthetic run directories like a trainer's, for the tests and benchmarks of the dashboard.

    python -m tests.monitor.fake_run DIR [--steps 2000] [--hosts 2] [--live] [--ending finished]

With --live it appends a line per second until Ctrl-C, so that the page updates.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from echotts.rundir.metrics import EVENTS, METRICS, timestep_bucket_names

SENTENCES = ("seven three one nine", "zero zero four")
STEP_S = 0.5


def train_line(step: int, when: float, process: int = 0, rng: np.random.Generator | None = None) -> dict[str, Any]:
    """The trainer's line of a log step: 27 numbers of METRICS."""
    noise = rng.normal() if rng is not None else 0.0
    loss = 0.3 + 0.8 * math.exp(-step / 1500) + 0.02 * noise
    line: dict[str, Any] = {"time": round(when, 3), "step": step, "process": process}
    return line | {
        "loss/train": round(loss, 8),
        "grad/norm": round(0.5 + 0.1 * abs(noise), 8),
        "grad/clip_share": 0.1,
        "param/norm": round(200 + step / 1000, 6),
        "optim/learning_rate": round(1e-3 * min(step / 100, 1), 10),
        "data/samples_seen": 32 * step,
        "data/audio_hours": round(32 * step * 1.6 / 3600, 6),
        "data/frames_valid_share": round(0.8 + 0.01 * noise, 8),
        "data/bucket_frames": 64,
        "data/rejected_samples": 3,
        "data/rejected_empty_text": 2,
        "data/rejected_non_finite": 1,
        "time/step_s": round(STEP_S + 0.01 * noise, 8),
        "time/step_p50_s": STEP_S,
        "time/step_p95_s": round(STEP_S * 1.2, 8),
        "time/data_wait_share": 0.02,
        "time/left_s": round((5000 - step) * STEP_S, 3),
        "throughput/samples_per_s": round(32 / STEP_S + noise, 6),
        "throughput/mfu_share": 0.4,
        "compile/count": 1,
        "host/memory_bytes": 3_000_000_000 + 1000 * step,
        "host/disk_free_bytes": 50_000_000_000,
        "host/disk_free_share": 0.5,
        "host/retries": 0,
        "device/memory_bytes": 12_000_000_000,
    }


def event_line(step: int, when: float, event: str, message: str, process: int = 0, **values: float) -> dict[str, Any]:
    """The trainer's line of an event."""
    assert event in EVENTS
    return {"time": round(when, 3), "step": step, "process": process, "event": event, "message": message} | values


def run_lines(steps: int, end: float, process: int = 0, every: int = 10, seed: int = 0) -> Iterator[dict[str, Any]]:
    """The lines of a run that resumed once, half way, and whose last line is of `end`, Unix s."""
    rng = np.random.default_rng(seed)
    began = end - steps * STEP_S
    yield event_line(0, began, "started", "a new model of 4.86 M parameters", process)
    half = steps // 2 // every * every
    for first, last in ((0, half + 5 * every), (half, steps)):
        for step in range(first + every, last + 1, every):
            when = began + step * STEP_S
            yield train_line(step, when, process, rng)
            if step % (50 * every) == 0:
                held = {name: round(0.3 + 0.1 * place, 6) for place, name in enumerate(timestep_bucket_names())}
                head = {"time": round(when + 0.1, 3), "step": step, "process": process}
                yield head | {"heldout/loss": round(0.4 + math.exp(-step / 1500), 6)} | held
                yield head | {"checkpoint/save_s": 0.4}
        if last != steps:
            yield event_line(half, began + last * STEP_S, "resumed", f"after step {half}, {32 * half} samples", process)


def write_lines(path: Path, lines: Iterator[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def make_run(
    run_dir: Path,
    *,
    steps: int = 2000,
    hosts: int = 2,
    ending: str | None = None,
    end: float | None = None,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> Path:
    """A complete run directory: metrics of all hosts, configuration, checkpoints, samples; `ending`: its last event."""
    end = time.time() if end is None else end
    for host in range(hosts):
        path = run_dir / "metrics" / f"host-{host}.jsonl"
        write_lines(path, run_lines(steps - 20 * host, end, host, seed=seed + host))
        if ending:
            why = "OSError: disk quota exceeded" if ending == "failed" else f"step {steps}"
            write_lines(path, iter([event_line(steps, end, ending, why, host)]))
        freed = event_line(
            steps // 3,
            end - steps * STEP_S / 2,
            "disk_cleaned",
            "removed 3 consumed shards, 1.2 GB",
            -1,
            **{"host/disk_free_share": 0.3},
        )
        write_lines(run_dir / "metrics" / f"host-{host}.watchdog.jsonl", iter([freed]))
    config = {
        "preset": "demo",
        "optim": {"steps": 5000, "learning_rate": learning_rate},
        "data": {"batch_size": 32, "buckets": [{"frames": 64, "tokens": 48}]},
        "run": {"sentences": list(SENTENCES)},
    }
    (run_dir / "config.json").write_text(json.dumps(config))
    for step in range(500, steps + 1, 500):
        make_checkpoint(run_dir, step)
        make_samples(run_dir, step)
    (run_dir / "checkpoints" / f"step_{steps + 1:08d}.orbax-checkpoint-tmp").mkdir(parents=True, exist_ok=True)
    return run_dir


def make_checkpoint(run_dir: Path, step: int) -> Path:
    """A folder that looks like a complete checkpoint."""
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    (folder / "params").mkdir(exist_ok=True)
    (folder / "meta" / "metadata").write_text("{}")
    (folder / "commit_success.txt").write_text("")
    (folder / "params" / "array").write_bytes(b"0" * 10_000)
    return folder


def make_samples(run_dir: Path, step: int, seconds: float = 1.0, rate: int = 16_000) -> Path:
    """Two tones for two sentences, one of them with a reference."""
    folder = run_dir / "samples" / f"step_{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    time_s = np.arange(int(seconds * rate)) / rate
    said: dict[str, Any] = {}
    for place, sentence in enumerate(SENTENCES):
        name = f"{place:02d}_{sentence.replace(' ', '-')}.wav"
        tone = 0.3 * np.sin(2 * np.pi * (200 + step / 10 + 300 * time_s + 100 * place) * time_s)
        soundfile.write(folder / name, tone, rate)
        said[name] = sentence
    soundfile.write(folder / "reference.wav", 0.2 * np.sin(2 * np.pi * 150 * time_s), rate)
    first = next(iter(said))
    said[first] = {"text": said[first], "reference": "reference.wav"}
    (folder / "sentences.json").write_text(json.dumps(said))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--ending", choices=["finished", "failed", "stopped"])
    parser.add_argument("--live", action="store_true")
    asked = parser.parse_args()
    make_run(asked.run_dir, steps=asked.steps, hosts=asked.hosts, ending=asked.ending)
    rng = np.random.default_rng(1)
    step = asked.steps
    while asked.live:
        time.sleep(1)
        step += 10
        for host in range(asked.hosts):
            line = train_line(step - 10 * host, time.time(), host, rng)
            write_lines(asked.run_dir / "metrics" / f"host-{host}.jsonl", iter([line]))


assert set(train_line(1, 0.0)) - {"time", "step", "process"} <= set(METRICS)

if __name__ == "__main__":
    main()
