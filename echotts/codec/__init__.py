"""Audio codecs (DACVAE and DAC): audio to a sequence of latents and back."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from echotts.codec.arrays import Tokens
    from echotts.codec.codec import Codec
    from echotts.codec.config import CodecConfig
    from echotts.codec.registry import find_codec, load_codec
    from echotts.codec.tokens import Encoded, load_encoded, save_encoded
    from echotts.codec.weights import save_codec

__all__ = [
    "Codec",
    "CodecConfig",
    "Encoded",
    "Tokens",
    "find_codec",
    "load_codec",
    "load_encoded",
    "save_codec",
    "save_encoded",
]

_MODULES = {
    "Codec": "codec",
    "CodecConfig": "config",
    "Encoded": "tokens",
    "Tokens": "arrays",
    "find_codec": "registry",
    "load_codec": "registry",
    "load_encoded": "tokens",
    "save_codec": "weights",
    "save_encoded": "tokens",
}


def __getattr__(name: str) -> Any:
    """Imports a module, and thus jax, on first use: checks of a codec's name and inputs run before that."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
