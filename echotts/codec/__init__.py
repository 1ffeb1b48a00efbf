"""Codecs: audio to a sequence of latents and back (DACVAE)."""

from echotts.codec.backbone import CodecConfig
from echotts.codec.codec import Codec
from echotts.codec.registry import find_codec, load_codec
from echotts.codec.weights import save_codec

__all__ = ["Codec", "CodecConfig", "find_codec", "load_codec", "save_codec"]
