"""`make demo` from end to end, with a handful of training steps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from echotts.audio import read_audio

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_runs_from_recordings_to_the_evaluation(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "demo.py", "--steps", "4", "--output", tmp_path / "demo"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    spoken = sorted((tmp_path / "demo").glob("*.wav"))
    assert len(spoken) == 6
    for path in spoken:
        assert len(read_audio(path, 16000)) > 0
    systems = [row["system"] for row in json.loads((tmp_path / "demo" / "meter.json").read_text())["scores"]]
    whole = [name for name in systems if "texts of 1 or 2 words" not in name]
    assert whole[1:] == ["recordings", "codec round trip", "shuffled text and voice", "noise"]
    assert f"{whole[0]}, texts of 1 or 2 words" in systems
    assert "recordings" in done.stdout
