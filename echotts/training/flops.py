"""Analytic cost of a training step: floating-point operations and traffic, and data sheets of chips.

Operations are counted as a multiplication and an addition per weight, plus full attention (docs/performance.md has the
formula with figures). The compiler's own count is unusable here: it counts a scanned layer once and a Pallas kernel as
nothing.
"""

import re
from dataclasses import dataclass

from echotts.config import EncoderConfig, ModelConfig, TuneName

TERA = 1e12
BF16_BYTES = 2
BACKWARD = 3  # forward, plus twice as much for the gradients of inputs and of weights
THROUGH = 2  # forward, plus the gradient of inputs: weights are frozen


@dataclass(frozen=True)
class Chip:
    """Data sheet values of one chip."""

    name: str
    peak_tflops: float  # bfloat16, dense
    hbm_gib: float  # v4: usable by programs according to the compiler; others: total
    interconnect_gbps: float  # gigabits per second, all links
    hbm_gbps: float  # gigabytes per second
    clock_hz: float  # at which the peak is reached

    @property
    def peak(self) -> float:
        """Dense bfloat16 operations per second."""
        return self.peak_tflops * TERA

    @property
    def one_way_bytes_s(self) -> float:
        """Bytes per second received over half the links, since a chip at the corner of a slice has no more."""
        return self.interconnect_gbps * 1e9 / 8 / 2


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275.0, 30.75, 2400.0, 1228.0, 1.05e9),
        Chip("v5e", 197.0, 16.0, 1600.0, 819.0, 1.5e9),
        Chip("v5p", 459.0, 95.0, 4800.0, 2765.0, 1.75e9),
        Chip("v6e", 918.0, 32.0, 3584.0, 1640.0, 1.75e9),
        Chip("tpu7x", 1153.5, 96.0, 4800.0, 3690.0, 2.2e9),  # one of a chip's two TensorCores; each is a JAX device
    )
}
GPU_TFLOPS = {  # words that must all occur in jax.Device.device_kind; the first match wins
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,  # SXM
    "H200 NVL": 836.0,
    "H200": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
}

DEVICE_KINDS = {  # jax.Device.device_kind of a TPU, in lower case
    "tpu v4": "v4",
    "tpu v5 lite": "v5e",
    "tpu v5e": "v5e",
    "tpu v5": "v5p",
    "tpu v5p": "v5p",
    "tpu v6 lite": "v6e",
    "tpu v6e": "v6e",
    "tpu7x": "tpu7x",
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
    """Operations of one sample with these latent frames, text tokens and reference frames, including padding."""
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


def training_flops(
    model: ModelConfig, frames: int, tokens: int, reference_frames: int, method: TuneName = "none"
) -> float:
    """Forward and backward operations of one sample, without recomputation: the count of model FLOP utilisation.

    `method` says what is trained (training/tuning.py). Adapters, the predictor of durations and the inputs of a student
    are neglected, as they are small.
    """
    parts = forward_flops(model, frames, tokens, reference_frames)
    encoders = parts.text_encoder + parts.speaker_encoder
    if method in ("none", "full"):
        return BACKWARD * parts.total
    if method == "duration":
        return encoders
    decoder = THROUGH * parts.decoder + BACKWARD * parts.attention  # both factors of attention have gradients
    if method == "inversion":
        voice = forward_flops(model, frames, 0, reference_frames)
        return decoder + parts.conditions + voice.conditions + encoders + voice.speaker_encoder
    adapted = decoder + parts.conditions + encoders
    if method == "lora":
        return adapted
    # a student's target: two forward passes, guided or one after the other
    return adapted + 2 * (parts.decoder + parts.attention) + parts.conditions + encoders


def hardware_flops(
    model: ModelConfig, frames: int, tokens: int, reference_frames: int, method: TuneName = "none"
) -> float:
    """Operations a device executes for one sample, including recomputation by the configured remat: "full" repeats the
    forward pass; "dots" keeps the results of products, and its remaining recomputation is neglected."""
    shape = (model, frames, tokens, reference_frames)
    parts = forward_flops(*shape)
    again = parts.decoder + parts.attention + parts.conditions
    if method in ("none", "full"):
        again = parts.total
    return training_flops(*shape, method) + (again if model.remat == "full" and method != "duration" else 0.0)


def fsdp_traffic_bytes(parameters: int, accumulation: int = 1) -> int:
    """Bytes each device receives per step, in bfloat16: for each part of the batch the weights twice (forward and
    backward), and the reduce-scattered gradients once."""
    return accumulation * parameters * 3 * BF16_BYTES


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 operations per second of one device, by JAX's name for it; None if unknown."""
    chip = DEVICE_KINDS.get(device_kind.lower())
    if chip is not None:
        return CHIPS[chip].peak_tflops * TERA
    words = set(re.findall(r"\w+", device_kind.lower()))  # whole words: an L40S is not an L4
    return next((peak * TERA for name, peak in GPU_TFLOPS.items() if set(name.lower().split()) <= words), None)


def _encoder_flops(encoder: EncoderConfig, positions: int) -> float:
    layer = 5 * encoder.width**2 + 3 * encoder.width * encoder.mlp_width
    return encoder.depth * (2.0 * layer * positions + 4.0 * positions**2 * encoder.width)
