"""The names in a run directory: the trainer writes them; inference, dashboard and watchdog read them.

config.json                                resolved configuration
data.json                                  pinned lists of shards
checkpoints/step_00001500/                 one checkpoint (CHECKPOINT_PARTS); with suffix `.broken`: unreadable
metrics/<hostname>.jsonl                   metrics.py
samples/step_00001500/                     speech samples
best.json                                  step of the best checkpoint, in a run with run.patience
writer.lock, trainer.lock, verified.json, pause.<hostname>.json
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from echotts.files import write_json
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
BEST = "best.json"  # checkpoint/best.py
SENTENCES = "sentences.json"  # in a folder of speech samples: the text of each file

STEP_PREFIX, STEP_DIGITS = "step", 8
STEP = re.compile(rf"{STEP_PREFIX}_(\d{{{STEP_DIGITS},}})")
BROKEN_SUFFIX = ".broken"
BROKEN = re.compile(STEP.pattern + re.escape(BROKEN_SUFFIX))
COMMITTED = "commit_success.txt"  # written last: without it a checkpoint in a bucket is incomplete
CHECKPOINT_METADATA = "meta/metadata"
CHECKPOINT_DIGESTS = "digests/metadata"  # absent in checkpoints of older versions
CHECKPOINT_ARRAYS = ("params", "ema", "opt_state")
CHECKPOINT_PARTS = (  # files of a complete checkpoint, none of them empty; the commit marker is last
    CHECKPOINT_METADATA,
    *(f"{arrays}/{name}" for arrays in CHECKPOINT_ARRAYS for name in ("_METADATA", "manifest.ocdbt")),
    COMMITTED,
)


def step_name(step: int) -> str:
    """The folder name of a step, for checkpoints and speech samples: step_00001500."""
    return f"{STEP_PREFIX}_{step:0{STEP_DIGITS}d}"


@contextmanager
def writing(run_dir: Path) -> Iterator[None]:
    """Leases the run directory for its trainer; meanwhile no partial file in it counts as stale."""
    marker = run_dir / WRITER
    run_dir.mkdir(parents=True, exist_ok=True)
    marker.touch()
    with lease(marker):
        yield


def note_verified(run_dir: Path, step: int) -> None:
    """Records that the checkpoint of this step was restored successfully; the watchdog keeps it until a newer one was.

    Only logs a warning if the run directory cannot be written: restoring does not depend on the record.
    """
    try:
        write_json(run_dir / VERIFIED, {"step": step})
    except OSError as error:
        LOGGER.warning("step %d was restored, but %s could not be written: %s", step, VERIFIED, error)
