"""Both codecs reimplemented in PyTorch and float64: single pass, independent of echotts."""

from typing import Any

import numpy as np
import torch

from echotts.codec.config import CodecConfig


def decode(params: Any, config: CodecConfig, latent: np.ndarray) -> np.ndarray:
    decoder = params["decoder"]
    x = _tensor(latent).mT
    x = _conv(x if config.quantized else _conv(x, params["bottleneck"]["out"]), decoder["stem"])
    for block, stride in zip(decoder["blocks"], config.decoder_rates, strict=True):
        kernel, bias = _tensor(block["up"]["kernel"]), _tensor(block["up"]["bias"])
        x = _snake(x, block["snake"])
        x = torch.nn.functional.conv_transpose1d(
            x,
            kernel.permute(1, 2, 0),
            bias,
            stride,
            (stride + 1) // 2,
            output_padding=0 if config.quantized else stride % 2,
        )
        x = _units(x, block["units"])
    return torch.tanh(_conv(_snake(x, decoder["snake"]), decoder["head"]))[:, 0].numpy()


def encode(params: Any, config: CodecConfig, audio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, or embeddings and codes; for complete frames only."""
    encoder = params["encoder"]
    x = _conv(_tensor(audio)[:, None], encoder["stem"])
    for block, stride in zip(encoder["blocks"], config.encoder_rates, strict=True):
        x = _snake(_units(x, block["units"]), block["snake"])
        left = (stride + 1) // 2 if config.quantized else stride // 2
        x = torch.nn.functional.pad(x, (left, stride - left))
        x = _conv(x, block["down"], stride=stride, padding=0)
    x = _conv(_snake(x, encoder["snake"]), encoder["head"])
    if config.quantized:
        return quantize(params, x)
    mean, scale = _conv(x, params["bottleneck"]["in"]).mT.chunk(2, -1)
    return mean.numpy(), (torch.nn.functional.softplus(scale) + 1e-4).numpy()


def quantize(params: Any, features: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    total, residual, codes = torch.zeros_like(features), features, []
    for stage in params["bottleneck"]["quantizers"]:
        book = _tensor(stage["codebook"])
        projected = torch.nn.functional.normalize(_conv(residual, stage["in"]), dim=1)
        distance = torch.cdist(projected.mT, torch.nn.functional.normalize(book)[None])
        codes.append(distance.argmin(-1))
        quantized = _conv(book[codes[-1]].mT, stage["out"])
        total, residual = total + quantized, residual - quantized
    return total.mT.numpy(), torch.stack(codes, 1).numpy()


def _units(x: torch.Tensor, units: Any) -> torch.Tensor:
    for unit, dilation in zip(units, (1, 3, 9), strict=True):
        y = _conv(_snake(x, unit["snake_in"]), unit["wide"], dilation=dilation)
        x = x + _conv(_snake(y, unit["snake_out"]), unit["point"])
    return x


def _conv(x: torch.Tensor, params: Any, dilation: int = 1, stride: int = 1, padding: int | None = None) -> torch.Tensor:
    kernel = _tensor(params["kernel"]).permute(2, 1, 0)
    reach = (kernel.shape[2] - 1) * dilation
    padding = reach // 2 if padding is None else padding
    return torch.nn.functional.conv1d(x, kernel, _tensor(params["bias"]), stride, padding, dilation)


def _snake(x: torch.Tensor, alpha: Any) -> torch.Tensor:
    alpha = _tensor(alpha)[:, None]
    return x + torch.sin(alpha * x) ** 2 / (alpha + 1e-9)


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array, np.float64))
