"""Training codecs, DACVAE and DAC: reconstruction losses, discriminators, the trainer's own run directories."""

from echotts.codec.training.config import PRESETS, CodecTraining, preset
from echotts.codec.training.loop import Placement, train_codec

__all__ = ["PRESETS", "CodecTraining", "Placement", "preset", "train_codec"]
