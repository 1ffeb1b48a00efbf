"""Text and a voice in, speech out: a flow-matching diffusion transformer over codec latents, in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

from echotts.version import __version__

if TYPE_CHECKING:
    from echotts.checkpoint.interop import load_published
    from echotts.codec import load_codec
    from echotts.synthesis import EchoTTS, Speech

__all__ = ["EchoTTS", "Speech", "__version__", "load_codec", "load_published"]

_HOMES = {
    "EchoTTS": "echotts.synthesis",
    "Speech": "echotts.synthesis",
    "load_codec": "echotts.codec",
    "load_published": "echotts.checkpoint.interop",
}


def __getattr__(name: str) -> Any:
    """Imports a public name on first use: it needs jax, and `--help` must not wait for that."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'echotts' has no attribute {name!r}")
