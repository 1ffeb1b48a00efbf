"""Prepared kernels equal plain ones: convolutions by Toom-Cook, transposed convolutions as one product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from echotts.codec import Codec, layers
from echotts.codec.fast import FEWEST_CHANNELS, WIDTH, prepare
from echotts.codec.windows import decode_windows, encode_windows
from tests.codec import reference
from tests.codec.conftest import noise, tiny_params, with_config

ROUNDING = 2e-5  # of sums of 7 * 64 products of unit size
WIDE = with_config(encoder_dim=FEWEST_CHANNELS, encoder_rates=(4,), decoder_dim=2 * FEWEST_CHANNELS, decoder_rates=(4,))


@pytest.mark.parametrize(("dilation", "outputs"), [(1, 1), (1, 64), (3, 11), (3, 48), (9, 100)])
def test_a_prepared_convolution_is_the_sum_of_products_at_any_length(dilation: int, outputs: int):
    kernel = noise(WIDTH, FEWEST_CHANNELS, FEWEST_CHANNELS) / np.sqrt(np.float32(WIDTH * FEWEST_CHANNELS))
    bias = noise(FEWEST_CHANNELS, seed=1)
    x = noise(2, outputs + (WIDTH - 1) * dilation, FEWEST_CHANNELS, seed=2)
    taps = [x[:, tap * dilation :][:, :outputs].astype(np.float64) @ kernel[tap] for tap in range(WIDTH)]
    prepared = prepare({"wide": {"kernel": kernel, "bias": jnp.asarray(bias)}})["wide"]
    assert "kernel" not in prepared
    found = layers.conv(jnp.asarray(x), prepared, dilation, padding=(0, 0))
    np.testing.assert_allclose(found, sum(taps) + bias, atol=ROUNDING)


def test_narrow_convolutions_stay_as_they_are():
    narrow = {"wide": {"kernel": noise(WIDTH, FEWEST_CHANNELS, FEWEST_CHANNELS - 1), "bias": noise(1)}}
    assert prepare(narrow)["wide"] is narrow["wide"]


def test_windows_with_prepared_parameters_equal_the_whole_without():
    params = tiny_params(WIDE)
    prepared = {**params, "encoder": prepare(params["encoder"]), "decoder": prepare(params["decoder"])}
    latent, audio = noise(1, 40, WIDE.latent_channels), noise(1, 40 * WIDE.hop_length, seed=1)
    np.testing.assert_allclose(
        decode_windows(prepared, WIDE, latent, 16), reference.decode(params, WIDE, latent), atol=1e-5
    )
    pieces = [mean for mean, _ in encode_windows(prepared, WIDE, audio, 16)]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), reference.encode(params, WIDE, audio)[0], atol=1e-5)


def test_only_wide_networks_are_prepared_and_their_weights_stay_what_they_were(tiny: Codec, full: Codec):
    assert tiny.encoding is tiny.params
    for part, tree in (("encoder", full.encoding), ("decoder", full.decoding)):
        assert (
            "points" in tree[part]["blocks"][0]["units"][0]["wide"] and tree["bottleneck"] is full.params["bottleneck"]
        )
        assert not any("points" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(full.params))
    assert "encoder" not in full.decoding and "watermark" in full.decoding
