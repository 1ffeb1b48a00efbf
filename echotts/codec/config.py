"""Sizes of a codec; without jax, since the command line checks its arguments before that is imported."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Sizes of a codec. Widths are in channels.

    `n_codebooks == 0` selects a Gaussian bottleneck with `codebook_dim` channels (DACVAE). Otherwise the bottleneck is
    a residual vector quantizer with that many codebooks, each of `codebook_size` vectors of `codebook_dim` channels
    (DAC).
    """

    encoder_dim: int = 64
    encoder_rates: tuple[int, ...] = (2, 8, 10, 12)
    latent_dim: int = 1024
    decoder_dim: int = 1536
    decoder_rates: tuple[int, ...] = (12, 10, 8, 2)
    codebook_dim: int = 128
    sample_rate: int = 48000
    n_codebooks: int = 0
    codebook_size: int = 1024

    def __post_init__(self) -> None:
        if math.prod(self.encoder_rates) != math.prod(self.decoder_rates):
            raise ValueError(f"encoder_rates {self.encoder_rates} and decoder_rates {self.decoder_rates} differ in hop")
        if self.decoder_dim % 2 ** len(self.decoder_rates):
            raise ValueError(
                f"decoder_dim {self.decoder_dim} must halve {len(self.decoder_rates)} times, once per block"
            )
        if self.codebook_size > 1 << 16:
            raise ValueError(f"codebook_size {self.codebook_size} does not fit 16-bit codes")

    @property
    def quantized(self) -> bool:
        """Whether the bottleneck is a residual vector quantizer (DAC)."""
        return self.n_codebooks > 0

    @property
    def kind(self) -> str:
        """The family's name in weights files: "dac" or "dacvae"."""
        return "dac" if self.quantized else "dacvae"

    @property
    def hop_length(self) -> int:
        """Samples per latent frame."""
        return math.prod(self.encoder_rates)

    @property
    def latent_channels(self) -> int:
        """Channels of the input of `decode_frames`: of a Gaussian latent, or of the sum of quantized vectors."""
        return self.latent_dim if self.quantized else self.codebook_dim

    def left_padding(self, stride: int) -> int:
        """Zeros padded before a strided convolution. DACVAE and DAC differ where the stride is odd."""
        return (stride + 1) // 2 if self.quantized else stride // 2

    def trim(self, stride: int) -> int:
        """Samples that a transposed convolution's output lacks to stride * input: one for DAC and odd strides."""
        return stride % 2 if self.quantized else 0

    def output_samples(self, frames: int) -> int:
        """Samples decoded from `frames`: frames * hop_length, minus 8 for DAC at 16 and 24 kHz."""
        for stride in self.decoder_rates:
            frames = frames * stride - self.trim(stride)
        return max(frames, 0)
