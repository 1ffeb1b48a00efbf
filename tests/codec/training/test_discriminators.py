"""DAC's discriminators against PyTorch's layers with the same weights, layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from echotts.codec.training.discriminators import (
    DiscriminatorConfig,
    discriminate,
    init_discriminators,
    period_maps,
    prepare,
    spectral_maps,
)
from echotts.codec.training.weight_norm import fold, unfold

CONFIG = DiscriminatorConfig(periods=(2, 5), period_channels=(2, 3, 4, 4, 4), windows=(64,), band_channels=3)
PARAMS = init_discriminators(CONFIG, jax.random.key(0))
AUDIO = np.random.default_rng(1).standard_normal((2, 500)).astype(np.float32) * 0.1


def torch_kernel(layer: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, in, ...) and the bias."""
    kernel = np.asarray(layer["kernel"])
    return torch.tensor(np.moveaxis(kernel, (-1, -2), (0, 1)).copy()), torch.tensor(np.asarray(layer["bias"]))


def leaky(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.leaky_relu(x, 0.1)


@pytest.mark.parametrize(("index", "samples"), [(0, 500), (1, 499)])
def test_a_multi_period_discriminator_is_a_torch_conv2d_over_the_folded_signal(index: int, samples: int):
    params, period = PARAMS["periods"][index], CONFIG.periods[index]
    found = period_maps(params, jnp.asarray(AUDIO[:, :samples]), period)
    x = torch.tensor(AUDIO[:, None, :samples])
    x = torch.nn.functional.pad(x, (0, period - samples % period), mode="reflect")
    x = x.reshape(2, 1, -1, period)
    expected = []
    for layer, stride in zip(params["layers"], (3, 3, 3, 3, 1), strict=True):
        kernel, bias = torch_kernel(layer)
        x = leaky(torch.nn.functional.conv2d(x, kernel[..., None], bias, (stride, 1), (2, 0)))
        expected.append(x)
    kernel, bias = torch_kernel(params["head"])
    expected.append(torch.nn.functional.conv2d(x, kernel[..., None], bias, 1, (1, 0)))
    for mine, wanted in zip(found, expected, strict=True):
        columns = np.asarray(mine).reshape(2, period, mine.shape[1], -1)  # (b * p, t, c): one column after the other
        np.testing.assert_allclose(columns.transpose(0, 3, 2, 1), wanted.numpy(), atol=1e-6)


def test_a_band_discriminator_is_torch_conv2d_over_the_bands_of_torch_stft():
    params, window = PARAMS["spectra"][0], CONFIG.windows[0]
    hop, samples = window // 4, AUDIO.shape[1]
    found = spectral_maps(params, jnp.asarray(AUDIO), window, CONFIG.bands)
    pad = (window - hop) // 2
    padded = torch.nn.functional.pad(torch.tensor(AUDIO), (pad, pad + (-samples) % hop), mode="reflect")
    spectrum = torch.stft(padded, window, hop, window=torch.hann_window(window), return_complex=True)[..., 2:-2]
    assert spectrum.shape[-1] == -(-samples // hop)
    x = torch.view_as_real(spectrum).permute(0, 3, 2, 1)  # (b, 2, t, f)
    cuts = [int(edge * (window // 2 + 1)) for edge in CONFIG.bands]
    expected, ends = [], []
    for low, high, layers in zip(cuts, cuts[1:], params["bands"], strict=False):
        band = x[..., low:high]
        for layer, stride in zip(layers, (1, 2, 2, 2, 1), strict=True):
            kernel, bias = torch_kernel(layer)
            padding = [size // 2 for size in kernel.shape[2:]]
            band = leaky(torch.nn.functional.conv2d(band, kernel, bias, (1, stride), padding))
            expected.append(band)
        ends.append(band)
    kernel, bias = torch_kernel(params["head"])
    expected.append(torch.nn.functional.conv2d(torch.cat(ends, -1), kernel, bias, 1, 1))
    for mine, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(mine).transpose(0, 3, 1, 2), wanted.numpy(), atol=2e-5)


def test_discriminator_inputs_have_no_offset_and_a_fixed_peak_and_silence_stays_silent():
    prepared = np.asarray(prepare(jnp.asarray([[1.0, 2.0, 6.0], [0.3, 0.3, 0.3]])))
    np.testing.assert_allclose(prepared[0], 0.8 * np.array([-2, -1, 3]) / 3, rtol=1e-6)
    np.testing.assert_allclose(prepared[1], 0, atol=0.8)
    np.testing.assert_array_equal(np.asarray(prepare(jnp.zeros((1, 9)))), 0)


def test_the_default_ones_are_as_large_as_dacs():
    shapes = jax.eval_shape(lambda: init_discriminators(DiscriminatorConfig(), jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 42_503_752
    assert len(discriminate(PARAMS, CONFIG, jnp.asarray(AUDIO[:1]))) == 3


def test_weight_norm_folds_back_in_one_and_two_dimensions():
    folded = fold(unfold(PARAMS))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), folded, PARAMS)
    kernel = unfold(PARAMS)["spectra"][0]["head"]
    expected = torch.linalg.norm(torch_kernel(PARAMS["spectra"][0]["head"])[0].reshape(1, -1), dim=1)
    np.testing.assert_allclose(np.asarray(kernel["gain"]).ravel(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"period_channels": (2, 2)}, "give 5 widths"),
        ({"windows": (50,)}, "multiples of 4"),
        ({"bands": (0.5, 0.1)}, "increasing edges"),
    ],
)
def test_invalid_discriminator_settings_are_rejected(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        DiscriminatorConfig(**changes)
