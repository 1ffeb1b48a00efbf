"""Live races: a renamer and a trainer that saves work against passes that delete whatever they may."""

import contextlib
import os
import random
import shutil
import threading
import time

import pytest

from echotts.disk.settings import Root
from echotts.disk.watchdog import Watchdog, make_space
from echotts.rundir.layout import note_verified, writing
from echotts.rundir.leases import LeaseError, lease
from tests.disk.layout import checkpoint, run_dir, settings, steps, write

KEPT = 2


def rename_things(logs, outside, stop):
    """Folders of logs are renamed, deleted, recreated, and replaced by links to protected files."""
    rng = random.Random(0)
    while not stop.is_set():
        first, second = rng.sample("abcd", 2)
        with contextlib.suppress(OSError):
            write(logs / first / "old.log", 10, age_h=900)
            (logs / first).rename(logs / second)
        with contextlib.suppress(OSError):
            shutil.rmtree(logs / first)
            (logs / first).symlink_to(outside)
            time.sleep(rng.random() / 1000)
            (logs / first).unlink()
        with contextlib.suppress(OSError):
            os.replace(write(logs / "new.log", 10), logs / second / "old.log")


def train(run, rules, stop, faults):
    """Saves a checkpoint after making space for it, reads it back under a lease, and looks for the newest ones."""
    step = 0
    with writing(run):
        while not stop.is_set():
            step += 1
            make_space(rules, run, 1000)
            path = checkpoint(run, step, 300)
            try:
                with lease(path):
                    if not (path / "params" / "d" / "data").read_bytes():
                        faults.append(f"{path} is empty")
            except (LeaseError, OSError) as error:
                faults.append(f"the newest checkpoint: {error}")
            note_verified(run, step)
            if not {step, max(step - 1, 1)} <= set(steps(run)):
                faults.append(f"after step {step} there are {steps(run)}")


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(3, id="3 s"),
        pytest.param(600, id="10 min", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_a_renamer_and_a_trainer_race_with_passes_and_nothing_needed_is_lost(tmp_path, seconds):
    outside, logs = tmp_path / "outside", tmp_path / "logs"
    precious = [write(outside / f"{number}.log", 10, age_h=900) for number in range(20)]
    logs.mkdir()
    run = run_dir(tmp_path / "runs" / "live", keep_last=KEPT)
    roots = Root(kind="logs", path=logs, names=("*",)), Root(kind="runs", path=run.parent, min_age_hours=0.0)
    rules = settings(*roots, interval_s=0.1)
    stop, faults, passes, deleted = threading.Event(), [], 0, 0
    others = [
        threading.Thread(target=rename_things, args=(logs, outside, stop)),
        threading.Thread(target=train, args=(run, rules, stop, faults)),
    ]
    for other in others:
        other.start()
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline and not faults:
            deleted += len(Watchdog(rules).run_pass())
            passes += 1
    finally:
        stop.set()
        for other in others:
            other.join(60)
    assert faults == []
    assert all(path.exists() for path in precious)
    assert passes > 3 and deleted > 0
    assert len(steps(run)) >= KEPT
