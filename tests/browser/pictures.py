"""Draws the dashboard's pictures in docs/ from made-up runs and the built-in recordings.

python -m tests.browser.pictures docs
"""

import argparse
import io
import json
import math
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from playwright.sync_api import sync_playwright

import echotts
from echotts.rundir.metrics import timestep_bucket_names
from tests.browser.conftest import Dashboard, launch
from tests.monitor.fake_run import event_line, make_checkpoint, train_line, write_lines

STEPS, STEP_S, EVERY = 100_000, 0.42, 50
WIDTH, HEIGHT = 1440, 1000
PHONE = (390, 844)


def lines(steps: int, end: float, seed: int, loss: float) -> Iterator[dict[str, Any]]:
    """A run that was preempted once and met a bad batch once."""
    rng = np.random.default_rng(seed)
    began = end - steps * STEP_S
    yield event_line(0, began, "started", "a new model of 1.29 B parameters on 8 hosts, 16 chips")
    for step in range(EVERY, steps + 1, EVERY):
        when, fall = began + step * STEP_S, (1 + step / 2500) ** -0.8
        spike = 0.25 if rng.random() < 0.002 else 0.0
        line = train_line(step, when)
        line["loss/train"] = loss + 0.75 * fall + 0.018 * rng.normal() + spike
        line["grad/norm"] = 0.35 + 2.2 * fall + 0.06 * abs(rng.normal()) + 4 * spike
        line["grad/clip_share"] = min(1.0, 0.01 + 0.7 * fall**2 + 0.01 * rng.random())
        line["optim/learning_rate"] = 2e-4 * min(step / 3000, 1) * (0.55 + 0.45 * math.cos(math.pi * step / STEPS))
        line["throughput/samples_per_s"] = 610 + 5 * rng.normal()
        line["time/step_p50_s"], line["time/step_p95_s"] = STEP_S, STEP_S * 1.08 + 0.01 * abs(rng.normal())
        line["throughput/mfu_share"] = 0.431 + 0.004 * rng.normal()
        line["data/frames_valid_share"] = 0.93 + 0.006 * rng.normal()
        line["time/data_wait_share"] = 0.004 + 0.003 * abs(rng.normal())
        line["device/memory_bytes"] = 24.6 * 2**30
        line["data/samples_seen"], line["data/audio_hours"] = 256 * step, 256 * step * 6.1 / 3600
        line["time/left_s"] = (STEPS - step) * STEP_S
        yield line
        if step % 1000 == 0:
            held = {name: (0.25 + 0.11 * place) * (1 + 2 * fall) for place, name in enumerate(timestep_bucket_names())}
            head = {"time": when + 0.1, "step": step, "process": 0}
            gain = {"heldout/text_gain": 0.09 * (1 - fall)}
            yield head | {"heldout/loss": loss + 0.012 + 0.72 * fall} | gain | held
        if step == 21_000:
            yield event_line(step, when, "preempted", "maintenance; saved at step 21000")
            yield event_line(step, when + 900, "resumed", "after step 21000, on 8 hosts")
        if step == 48_000:
            yield event_line(step, when, "skipped", "gradient norm 41.2 is 60 times the usual; batch left out")
        if step == 52_000:
            yield event_line(step, when, "slow_step", "2.31 s, usual is 0.42 s; worst on host t1v-n-3f-w-5")


def make(root: Path) -> None:
    """Two runs, of which the first is live and complete."""
    now = time.time()
    for name, steps, end, seed, loss in (
        ("pod-1.3b", 84_000, now, 1, 0.31),
        ("pod-840m", 62_000, now - 90_000, 2, 0.33),
    ):
        run_dir = root / name
        write_lines(run_dir / "metrics" / "t1v-n-3f-w-0.jsonl", lines(steps, end, seed, loss))
        config = {
            "preset": name[4:],
            "optim": {"steps": STEPS, "learning_rate": 2e-4},
            "model": {"width": 2048 - 512 * (seed - 1)},
        }
        (run_dir / "config.json").write_text(json.dumps(config))
    write_lines(
        root / "pod-840m" / "metrics" / "t1v-n-3f-w-0.jsonl",
        iter([event_line(62_000, now - 90_000, "stopped", "asked to stop; saved at step 62000")]),
    )
    run_dir = root / "pod-1.3b"
    for host in range(1, 8):
        line = train_line(84_000, now - host % 3, host) | {
            "host/disk_free_share": 0.62 - 0.05 * host,
            "host/cache_bytes": 21e9,
        }
        write_lines(run_dir / "metrics" / f"t1v-n-3f-w-{host}.jsonl", iter([line]))
    cleaned = event_line(84_000, now - 3000, "disk_cleaned", "removed 96 consumed shards, 41.2 GiB", -1)
    write_lines(run_dir / "metrics" / "t1v-n-3f-w-3.watchdog.jsonl", iter([cleaned]))
    for step in (70_000, 80_000):
        make_checkpoint(run_dir, step)
        speak(run_dir / "samples" / f"step_{step:08d}", step)


def speak(folder: Path, step: int) -> None:
    """Recordings of the built-in corpus, noisier at earlier steps."""
    folder.mkdir(parents=True)
    said: dict[str, Any] = {}
    rng = np.random.default_rng(step)
    with tarfile.open(next((Path(echotts.__file__).parent / "assets" / "digits").glob("heldout-*"))) as tar:
        names = sorted(name for name in tar.getnames() if name.endswith(".opus"))[:2]
        for name in names:
            sound, rate = soundfile.read(io.BytesIO(tar.extractfile(name).read()))  # pyright: ignore[reportOptionalMemberAccess]
            text = json.load(tar.extractfile(name.replace(".opus", ".json")))["text"]  # pyright: ignore[reportArgumentType]
            noise = rng.normal(size=len(sound)) * (90_000 - step) / 20_000_000
            soundfile.write(folder / f"{Path(name).stem}.wav", sound + noise, rate)
            said[f"{Path(name).stem}.wav"] = {"text": text, "reference": f"{Path(names[-1]).stem}.reference.wav"}
            soundfile.write(folder / f"{Path(name).stem}.reference.wav", sound[: rate * 2], rate)
    for file in folder.glob("*.reference.wav"):
        if not any(about["reference"] == file.name for about in said.values()):
            file.unlink()
    (folder / "sentences.json").write_text(json.dumps(said))


def draw(url: str, folder: Path) -> None:
    """dashboard-light.png, dashboard-dark.png, dashboard-phone.png."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        for name, (width, height), section in (
            ("light", (WIDTH, HEIGHT), None),
            ("dark", (1090, 600), "#samples"),
            ("phone", PHONE, None),
        ):
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="dark" if name == "dark" else "light",
                device_scale_factor=2 if name == "phone" else 1,
            )
            page = context.new_page()
            page.goto(url)
            page.locator('#connection[data-state="live"]').wait_for()
            if name == "light":
                page.get_by_label("Draw pod-840m over the open run").check()
                page.get_by_role("radio", name="Log").check()
            if section:
                page.locator(section).evaluate("section => section.scrollIntoView()")
            page.wait_for_timeout(1500)
            page.screenshot(path=folder / f"dashboard-{name}.png")
            context.close()
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as root:
        make(Path(root))
        dashboard = Dashboard(("--runs_root", root, "--stale_s", "600")).start()
        try:
            draw(dashboard.url, folder)
        finally:
            dashboard.stop()


if __name__ == "__main__":
    main()
