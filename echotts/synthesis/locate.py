"""Locating checkpoints (the built-in models, a local path, a bucket, or a download from the Hub) and their codecs."""

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from echotts.checkpoint.facts import CodecFacts
from echotts.files import MODELS
from echotts.gcs import first_line, is_bucket

if TYPE_CHECKING:
    from echotts.codec import Codec

DEMO = "demo"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILE = "model.safetensors"
PUBLISHED_CODEC = "facebook/dacvae-watermarked"  # the codec of published checkpoints with PUBLISHED_CHANNELS
PUBLISHED_CHANNELS = 128

logger = logging.getLogger(__name__)


def locate_checkpoint(checkpoint: str | Path | None) -> str | Path:
    """A built-in model for its name (None: demo), a local path, a bucket URL unchanged, or a download for a Hub id.

    FileNotFoundError if there is none.
    """
    checkpoint = DEMO if checkpoint is None else checkpoint
    if checkpoint in MODELS:
        path = MODELS[str(checkpoint)]
        if not path.is_file():
            raise FileNotFoundError(f"{path}: the built-in model {checkpoint} is not installed: give a checkpoint")
        return path
    if isinstance(checkpoint, str) and is_bucket(checkpoint):
        return checkpoint
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
        reason = first_line(error)
        raise FileNotFoundError(f"{name}: no such local path, and no {HUB_FILE} on the Hub ({reason})") from error


def locate_codec(
    checkpoint: str | Path, trained: CodecFacts, latent_channels: int, override: str | Path | None, watermark: bool
) -> "Codec":
    """The codec that a checkpoint was trained with, or `override`, with its watermark unless that is unwanted.

    Published checkpoints name none; if they have PUBLISHED_CHANNELS, PUBLISHED_CODEC is used, which is logged. Raises
    ValueError if there is no codec to use, OSError if it is missing.
    """
    from echotts.codec.registry import find_codec  # imports jax

    if override is None and not trained.id and not trained.weights_hash:
        if latent_channels != PUBLISHED_CHANNELS:
            raise ValueError(
                f"{checkpoint}: does not name the codec of its latents of {latent_channels} channels: "
                "give one with --codec"
            )
        logger.info("%s names no codec: using %s (override with --codec)", checkpoint, PUBLISHED_CODEC)
        override = PUBLISHED_CODEC
    codec = find_codec(trained.id, trained.weights_hash, override=override)
    if codec.has_watermark and watermark:
        return codec.watermarked()
    if not watermark:
        logger.warning("watermark off: speech carries no mark, only the tags of its file say that it is synthetic")
    return codec
