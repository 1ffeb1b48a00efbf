"""The names in a run directory, listed once: the trainer writes them, inference, dashboard and watchdog read them.

config.json                                resolved configuration
data.json                                  pinned lists of shards
checkpoints/step_00001500/                 one checkpoint (CHECKPOINT_PARTS); `.broken` behind the name: unreadable
metrics/<hostname>.jsonl                   metrics.py
samples/step_00001500/                     speech samples
writer.lock, trainer.lock, verified.json, pause.<hostname>.json
"""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from echotts.files import atomic_write
from echotts.rundir.leases import lease

LOGGER = logging.getLogger(__name__)

CONFIG = "config.json"
DATA_PINS = "data.json"
CHECKPOINTS = "checkpoints"
METRICS = "metrics"
SAMPLES = "samples"
PROFILE = "profile"
WRITER = "writer.lock"
TRAINER = "trainer.lock"  # claim.py
VERIFIED = "verified.json"
SENTENCES = "sentences.json"  # in a folder of speech samples: which file says what

STEP_PREFIX, STEP_DIGITS = "step", 8
STEP = re.compile(rf"{STEP_PREFIX}_(\d{{{STEP_DIGITS},}})")
BROKEN_SUFFIX = ".broken"
BROKEN = re.compile(STEP.pattern + re.escape(BROKEN_SUFFIX))
COMMITTED = "commit_success.txt"  # written last: without it a checkpoint in a bucket is not whole
CHECKPOINT_METADATA = "meta/metadata"
CHECKPOINT_DIGESTS = "digests/metadata"  # absent in checkpoints of older programs
CHECKPOINT_ARRAYS = ("params", "ema", "opt_state")
CHECKPOINT_PARTS = (  # files that a whole checkpoint holds, the commit marker last; none of them is empty
    CHECKPOINT_METADATA,
    *(f"{arrays}/{name}" for arrays in CHECKPOINT_ARRAYS for name in ("_METADATA", "manifest.ocdbt")),
    COMMITTED,
)


def step_name(step: int) -> str:
    """The name of a step's folder of a checkpoint or of speech samples: step_00001500."""
    return f"{STEP_PREFIX}_{step:0{STEP_DIGITS}d}"


@contextmanager
def writing(run_dir: Path) -> Iterator[None]:
    """Leases the run directory for its trainer: while it lasts, no half-written file there counts as stale."""
    marker = run_dir / WRITER
    run_dir.mkdir(parents=True, exist_ok=True)
    marker.touch()
    with lease(marker):
        yield


def note_verified(run_dir: Path, step: int) -> None:
    """Notes that the checkpoint of this step was read back whole: the watchdog keeps it until a newer one was.

    Only logs a warning where the run directory cannot be written: restoring does not depend on the note.
    """
    try:
        with atomic_write(run_dir / VERIFIED) as path:
            path.write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")
    except OSError as error:
        LOGGER.warning("step %d was read back whole, but %s could not be written: %s", step, VERIFIED, error)
