"""Locating checkpoints: the demo model, a local path, a bucket, or a download from the Hub."""

import re
from pathlib import Path

from echotts.files import ASSETS
from echotts.gcs import is_bucket

DEMO = "demo"
DEMO_MODEL = ASSETS / "model" / "demo.safetensors"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILE = "model.safetensors"


def locate_checkpoint(checkpoint: str | Path | None) -> str | Path:
    """The demo model for None or "demo", a local path, a bucket URL unchanged, or a download for a Hub id.

    FileNotFoundError if there is none.
    """
    if checkpoint in (None, DEMO):
        if not DEMO_MODEL.is_file():
            raise FileNotFoundError(f"{DEMO_MODEL}: the demo model is not installed: give a checkpoint")
        return DEMO_MODEL
    if isinstance(checkpoint, str) and is_bucket(checkpoint):
        return checkpoint
    assert checkpoint is not None
    path = Path(checkpoint).expanduser()
    if path.exists():
        return path
    name = str(checkpoint)
    if path.suffix in (".safetensors", ".pkl", ".pickle") or not HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"{name}: no such checkpoint: give a run directory, .safetensors, .pkl or a Hub id")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, HUB_FILE))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(f"{name}: no such local path, and no {HUB_FILE} on the Hub ({reason})") from error
