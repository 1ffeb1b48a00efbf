"""Audio codecs (DACVAE and DAC): audio to a sequence of latents and back."""

from echotts.codec.backbone import CodecConfig
from echotts.codec.codec import Codec, Tokens
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
