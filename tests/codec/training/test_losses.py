"""Each loss against an independent computation in PyTorch on the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from echotts.codec.training import losses
from echotts.codec.training.spectra import magnitudes
from echotts.spectrogram import mel_filters

RATE = 16000
RNG = np.random.default_rng(0)
TARGET = (0.1 * RNG.standard_normal((2, 3000))).astype(np.float32)
OUTPUT = (TARGET + 0.05 * RNG.standard_normal(TARGET.shape)).astype(np.float32)
SCALES = ((64, 10), (512, 40))
FLOOR = 1e-5


def torch_stft(audio: np.ndarray, window: int) -> torch.Tensor:
    hann = torch.hann_window(window)
    return torch.stft(torch.tensor(audio), window, window // 4, window=hann, return_complex=True).abs()


def torch_mel_filters(window: int, bands: int) -> torch.Tensor:
    """librosa.filters.mel, written out: Slaney's scale and norm, one band after the other."""

    def to_mel(hz: float) -> float:
        return 3 * hz / 200 if hz < 1000 else 15 + 27 * np.log(hz / 1000) / np.log(6.4)

    def to_hz(mel: float) -> float:
        return 200 * mel / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    edges = [to_hz(mel) for mel in np.linspace(0, to_mel(RATE / 2), bands + 2)]
    filters = torch.zeros(bands, window // 2 + 1, dtype=torch.float64)
    for band, (low, middle, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        for k in range(window // 2 + 1):
            hz = k * RATE / window
            filters[band, k] = (
                max(0, min((hz - low) / (middle - low), (high - hz) / (high - middle))) * 2 / (high - low)
            )
    return filters.float()


@pytest.mark.parametrize("window", [64, 512])
def test_magnitudes_are_those_of_torch_stft(window: int):
    expected = torch_stft(TARGET, window).numpy().transpose(0, 2, 1)
    np.testing.assert_allclose(magnitudes(jnp.asarray(TARGET), window), expected, atol=2e-4)


def test_mel_filters_are_librosas():
    np.testing.assert_allclose(mel_filters(512, 40, RATE), torch_mel_filters(512, 40).numpy().T, atol=1e-8)


def test_the_mel_loss_is_the_sum_over_scales_of_log10_l1():
    expected = torch.zeros(())
    for window, bands in SCALES:
        got, wanted = (
            torch.log10(torch.clamp(torch_mel_filters(window, bands) @ torch_stft(audio, window), min=FLOOR))
            for audio in (OUTPUT, TARGET)
        )
        expected += torch.nn.functional.l1_loss(got, wanted)
    found = losses.mel_loss(jnp.asarray(OUTPUT), jnp.asarray(TARGET), RATE, SCALES, FLOOR)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_stft_loss_is_spectral_convergence_and_log_magnitude():
    expected = torch.zeros(())
    for window, _ in SCALES:
        got, wanted = torch_stft(OUTPUT, window), torch_stft(TARGET, window)
        norms = torch.linalg.norm(got - wanted, dim=(1, 2)) / torch.linalg.norm(wanted, dim=(1, 2))
        logs = torch.log(got.clamp(min=FLOOR)) - torch.log(wanted.clamp(min=FLOOR))
        expected += (norms.mean() + logs.abs().mean()) / len(SCALES)
    windows = [window for window, _ in SCALES]
    found = losses.stft_loss(jnp.asarray(OUTPUT), jnp.asarray(TARGET), windows, FLOOR)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_reconstruction_losses_are_zero_for_equal_sound_and_finite_with_gradients_for_silence():
    target = jnp.asarray(TARGET)
    assert float(losses.mel_loss(target, target, RATE, SCALES, FLOOR)) == 0
    silence = jnp.zeros((1, 2000))

    def loss(output):
        mel = losses.mel_loss(output, silence, RATE, SCALES, FLOOR)
        return mel + losses.stft_loss(output, silence, (64,), FLOOR) + losses.wave_loss(output, silence)

    for output in (silence, silence + 0.1):
        value, gradient = jax.value_and_grad(loss)(output)
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_the_divergence_is_torchs_twice_and_channels_below_the_free_bits_are_left_alone():
    mean = jnp.asarray(RNG.standard_normal((2, 5, 3)) * [0.01, 1, 3], jnp.float32)
    std = jnp.asarray(RNG.uniform(0.5, 1.5, (2, 5, 3)) ** [0.01, 1, 1], jnp.float32)
    normal = torch.distributions.Normal
    posterior = normal(torch.tensor(np.asarray(mean)), torch.tensor(np.asarray(std)))
    each = 2 * torch.distributions.kl_divergence(posterior, normal(torch.zeros(()), torch.ones(())))
    np.testing.assert_allclose(losses.kl_loss(mean, std), each.sum(-1).mean(), rtol=1e-5)

    channels = each.mean(dim=(0, 1)).clamp(min=0.1)
    np.testing.assert_allclose(losses.kl_loss(mean, std, 0.1), channels.sum(), rtol=1e-5)
    gradient = jax.grad(lambda m: losses.kl_loss(m, std, 0.1))(mean)
    assert (gradient[..., 0] == 0).all() and (gradient[..., 1:] != 0).all()


def test_adversarial_losses_are_least_squares_and_feature_matching_leaves_the_judgement_out():
    real, fake = (
        [[jnp.asarray(RNG.standard_normal((2, 4, 3)), jnp.float32) for _ in range(3)] for _ in range(2)]
        for _ in range(2)
    )
    mse, l1 = torch.nn.functional.mse_loss, torch.nn.functional.l1_loss

    def judged(maps: list) -> list[torch.Tensor]:
        return [torch.tensor(np.asarray(one[-1])) for one in maps]

    pairs = zip(judged(real), judged(fake), strict=True)
    wanted = sum(mse(a, torch.ones_like(a)) + mse(b, torch.zeros_like(b)) for a, b in pairs)
    np.testing.assert_allclose(losses.discriminator_loss(real, fake), wanted, rtol=1e-5)
    wanted = sum(mse(b, torch.ones_like(b)) for b in judged(fake))
    np.testing.assert_allclose(losses.adversarial_loss(fake), wanted, rtol=1e-5)
    wanted = sum(
        l1(torch.tensor(np.asarray(a)), torch.tensor(np.asarray(b)))
        for x, y in zip(real, fake, strict=True)
        for a, b in zip(x[:-1], y[:-1], strict=True)
    )
    np.testing.assert_allclose(losses.feature_loss(real, fake), wanted, rtol=1e-5)
