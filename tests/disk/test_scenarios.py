"""A trainer, a reader and the watchdog on a small real disk, each killed at random; tests/disk/scenarios.py plays."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HAPPENED = (  # must have happened for the proof to mean anything
    "saved",
    "leased read",
    "deleted",
    "deleted before a save",
    "killed",
    "no room",
    "asked",
    "nearly full",
    "could not be helped",
)


def played(tmp_path: Path, first: int, count: int) -> dict:
    command = [sys.executable, "-m", "tests.disk.scenarios", "--work", tmp_path]
    done = subprocess.run(
        [*command, "--first", str(first), "--count", str(count)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    print(result["disk"], result["counts"], result["seconds"], "s")
    assert result["broken"] == []
    assert result["scenarios"] == count
    return result


def test_nothing_needed_is_lost_and_the_disk_is_never_full_when_it_could_be_helped(tmp_path):
    counts = played(tmp_path, 0, 12)["counts"]
    assert [name for name in HAPPENED[:5] if not counts.get(name)] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_500_scenarios(tmp_path):
    counts = played(tmp_path, 1000, 500)["counts"]
    assert [name for name in HAPPENED if not counts.get(name)] == []
