"""Training of DACVAE and DAC codecs: losses, discriminators, crops, and the training loop with its run directories."""

from echotts.codec.training.config import PRESETS, CodecTraining, preset
from echotts.codec.training.loop import Placement, train_codec

__all__ = ["PRESETS", "CodecTraining", "Placement", "preset", "train_codec"]
