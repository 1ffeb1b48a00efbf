"""The duration predictor: its formula in float64, and what it does not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from echotts.model import build
from echotts.model.duration import create_duration, duration_shapes, predict_frames
from echotts.model.parameters import flatten
from tests.tiny_speaker import CHANNELS, CONFIG, random_params

ROWS, TOKENS, REFERENCE = 3, 12, 8


@pytest.fixture(scope="module")
def model():
    return build(CONFIG, random_params())


@pytest.fixture(scope="module")
def predictor():
    rng = np.random.default_rng(2)
    return jax.tree.map(
        lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape).astype(np.float32),
        create_duration(CONFIG, jax.random.key(0)),
    )


def conditions(seed=0):
    """Texts of 5, 12 and 7 tokens; references of 8 and 4 frames, and none."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, 256, (ROWS, TOKENS)).astype(np.int32)
    text_mask = np.arange(TOKENS) < np.array([[5], [12], [7]])
    speaker_mask = np.arange(REFERENCE) < np.array([[8], [4], [0]])
    latent = rng.standard_normal((ROWS, REFERENCE, CHANNELS)).astype(np.float32) * speaker_mask[..., None]
    return tuple(map(jnp.asarray, (ids * text_mask, text_mask, latent, speaker_mask)))


def test_it_equals_its_formula_in_float64(model, predictor):
    ids, text_mask, latent, speaker_mask = conditions()
    text = np.asarray(model.encode_text(ids, text_mask), np.float64)
    speaker = np.asarray(model.encode_speaker(latent), np.float64)
    weights = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(predictor["duration"]).items()}
    expected = []
    for row in range(ROWS):
        patches = speaker[row][np.asarray(speaker_mask)[row, :: CONFIG.patch]]
        voice = patches.mean(axis=0) if len(patches) else np.zeros(speaker.shape[-1])
        frames = 0.0
        for state in text[row][np.asarray(text_mask)[row]]:
            z = state @ weights["text/kernel"] + voice @ weights["speaker/kernel"] + weights["text/bias"]
            hidden = z / (1 + np.exp(-z))
            frames += np.log1p(np.exp(hidden @ weights["frames/kernel"] + weights["frames/bias"]))[0]
        expected.append(frames)
    np.testing.assert_allclose(predict_frames(predictor, model, *conditions()), expected, rtol=1e-5)


def test_it_does_not_depend_on_padding_and_hears_the_voice(model, predictor):
    ids, text_mask, latent, speaker_mask = conditions()
    padded = [jnp.pad(ids, ((0, 0), (0, 9)), constant_values=7), jnp.pad(text_mask, ((0, 0), (0, 9)))]
    longer = [jnp.pad(latent, ((0, 0), (0, 4), (0, 0)), constant_values=2.0), jnp.pad(speaker_mask, ((0, 0), (0, 4)))]
    usual = predict_frames(predictor, model, ids, text_mask, latent, speaker_mask)
    np.testing.assert_allclose(predict_frames(predictor, model, *padded, *longer), usual, rtol=1e-5)
    other = predict_frames(predictor, model, ids, text_mask, -latent, speaker_mask)
    assert np.all(np.abs(other - usual)[:2] > 1e-3 * usual[:2])
    assert other[2] == pytest.approx(float(usual[2]))


def test_a_fresh_one_gives_every_token_the_same_time_and_has_the_listed_shapes(model):
    fresh = create_duration(CONFIG, jax.random.key(0))
    np.testing.assert_allclose(predict_frames(fresh, model, *conditions()), np.log(2) * np.array([5, 12, 7]), rtol=1e-6)
    assert {path: leaf.shape for path, leaf in flatten(fresh).items()} == {
        path: leaf.shape for path, leaf in duration_shapes(CONFIG).items()
    }
