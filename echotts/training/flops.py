"""Analytic cost of a training step: floating-point operations and traffic, and what chips offer.

Operations are counted as a multiplication and an addition a weight, attention in full (docs/performance.md has the
formula with figures). The compiler's own count is of no use here: it counts a scanned layer once and a Pallas kernel
as nothing.
"""

from dataclasses import dataclass

from echotts.config import EncoderConfig, ModelConfig

TERA = 1e12
BF16_BYTES = 2
BACKWARD = 3  # forward, and twice as much for the gradients of inputs and of weights


@dataclass(frozen=True)
class Chip:
    """What a data sheet says of one chip."""

    name: str
    peak_tflops: float  # bfloat16, dense
    hbm_gib: float  # v4: what the compiler lets a program use; others: the whole
    interconnect_gbps: float  # gigabits a second, all links, both ways


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275.0, 30.75, 2400.0),
        Chip("v5e", 197.0, 16.0, 1600.0),
        Chip("v5p", 459.0, 95.0, 4800.0),
        Chip("v6e", 918.0, 32.0, 3584.0),
    )
}
GPU_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L4": 121.0, "L40S": 362.0, "RTX 4090": 165.0}

DEVICE_KINDS = {  # jax.Device.device_kind of a TPU, in lower case
    "tpu v4": "v4",
    "tpu v5 lite": "v5e",
    "tpu v5e": "v5e",
    "tpu v5": "v5p",
    "tpu v5p": "v5p",
    "tpu v6 lite": "v6e",
    "tpu v6e": "v6e",
}


@dataclass(frozen=True)
class ForwardFlops:
    """Operations of one forward pass of one sample, by part."""

    decoder: float  # matrix products over latent frames
    conditions: float  # text and speaker keys and values, every layer
    attention: float  # scores and sums of joint attention
    text_encoder: float
    speaker_encoder: float

    @property
    def total(self) -> float:
        return self.decoder + self.conditions + self.attention + self.text_encoder + self.speaker_encoder


def forward_flops(model: ModelConfig, frames: int, tokens: int, reference_frames: int) -> ForwardFlops:
    """Of one sample with so many latent frames, text tokens and reference frames, padding included."""
    patches = reference_frames // model.patch
    keys = frames + tokens + patches
    layer = 5 * model.width**2 + 3 * model.width * model.mlp_width
    condition = 2 * model.width * (tokens * model.text.width + patches * model.speaker.width)
    return ForwardFlops(
        decoder=2.0 * model.depth * layer * frames,
        conditions=2.0 * model.depth * condition,
        attention=4.0 * model.depth * frames * keys * model.width,
        text_encoder=_encoder_flops(model.text, tokens),
        speaker_encoder=_encoder_flops(model.speaker, patches),
    )


def training_flops(model: ModelConfig, frames: int, tokens: int, reference_frames: int) -> float:
    """Of one sample's forward and backward pass: what model FLOPs utilisation (MFU) counts, recomputation left out."""
    return BACKWARD * forward_flops(model, frames, tokens, reference_frames).total


def fsdp_traffic_bytes(parameters: int) -> int:
    """Bytes each device receives a step: weights gathered in bfloat16 twice, gradients scattered in float32."""
    return parameters * (2 * BF16_BYTES + 4)


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 operations a second of one device, by jax's name for it; None where it is not known."""
    chip = DEVICE_KINDS.get(device_kind.lower())
    if chip is not None:
        return CHIPS[chip].peak_tflops * TERA
    return next((peak * TERA for name, peak in GPU_TFLOPS.items() if name.lower() in device_kind.lower()), None)


def _encoder_flops(encoder: EncoderConfig, positions: int) -> float:
    layer = 5 * encoder.width**2 + 3 * encoder.width * encoder.mlp_width
    return encoder.depth * (2.0 * layer * positions + 4.0 * positions**2 * encoder.width)
