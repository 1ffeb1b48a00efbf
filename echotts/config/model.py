"""The network: sizes of the decoder and its condition encoders, and how they are computed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from echotts.strict_json import check_type

MAX_SIZE = 1 << 20  # upper limit of numbers of channels, layers, heads and ids
RematName = Literal["none", "dots", "full"]
AttentionName = Literal["auto", "splash", "xla"]
DtypeName = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A condition encoder (text or speaker). Widths are in channels."""

    width: int
    """Channels of the residual stream."""
    depth: int
    """Layers."""
    heads: int
    """Attention heads; they divide the width."""
    mlp_width: int
    """Hidden channels of the SwiGLU."""

    def __post_init__(self) -> None:
        _check_sizes("encoder", self)
        _check_heads("encoder", self.width, self.heads)

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The BlockDiT velocity network."""

    latent_channels: int = 128
    """Channels of a codec latent; must match the data."""
    width: int
    """Channels of the decoder's residual stream."""
    depth: int
    """Decoder layers."""
    heads: int
    """Decoder attention heads, an even number that divides the width."""
    mlp_width: int
    """Hidden channels of the decoder's SwiGLU."""
    text: EncoderConfig
    speaker: EncoderConfig
    vocabulary: int = 256
    """Token ids; 256 for bytes."""
    patch: int = 4
    """Reference frames that make one speaker position."""
    timestep_width: int = 256
    """Channels of the sinusoidal timestep embedding; even."""
    adaln_rank: int = 256
    """Rank of the low-rank AdaLN projections."""
    norm_eps: float = 1e-5
    """Epsilon of every RMS norm."""
    rope_theta: float = 10000.0
    """Base of the rotary position embedding (RoPE)."""
    compute_dtype: DtypeName = "bfloat16"
    """Dtype of matrix products and activations; weights, norms and softmax stay float32."""
    attention: AttentionName = "auto"
    """auto: a fused kernel if the platform has one (TPU, GPU); splash: on TPU, JAX's kernel instead of this package's;
    xla: plain softmax attention everywhere."""
    remat: RematName = "none"
    """What the backward pass recomputes (rematerialization): nothing, all but matrix products, or whole layers."""

    def __post_init__(self) -> None:
        _check_sizes("decoder", self)
        if not (0 < self.norm_eps < 1 and 0 < self.rope_theta < float("inf")):
            raise ValueError(f"norm_eps {self.norm_eps} must be from 0 to 1 and rope_theta {self.rope_theta} above 0")
        _check_heads("decoder", self.width, self.heads)
        if self.heads % 2:
            raise ValueError(f"decoder heads {self.heads} is odd: rotary embedding applies to half of the heads")
        if self.timestep_width % 2:
            raise ValueError(f"timestep_width {self.timestep_width} is odd, but it consists of cosine and sine pairs")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


def read_model_config(fields: Any, where: str | Path) -> ModelConfig:
    """The ModelConfig from its stored form (`to_dict`, through JSON). ValueError names the invalid field."""
    return check_type(fields, where, ModelConfig)


def _check_sizes(owner: str, config: EncoderConfig | ModelConfig) -> None:
    for name, value in vars(config).items():
        if isinstance(value, int) and not 1 <= value <= MAX_SIZE:
            raise ValueError(f"{owner} {name} {value} must be from 1 to {MAX_SIZE}")


def _check_heads(owner: str, width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"{owner} width {width} is not a multiple of heads {heads}")
    if width // heads % 2:
        raise ValueError(f"{owner} head width {width // heads} is odd: rotary embedding rotates pairs of channels")
