"""Fused attention against the plain softmax, on every mask of the golden set and on masks that see nothing."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from echotts.config import demo, echo_1b3, echo_840m
from echotts.model.attention import MANY_SCORES, attend, attend_by_head, with_heads
from echotts.model.fused import choose_attention, cudnn, splash
from echotts.model.kernel import gated_attention
from tests.blockdit_golden import Golden

HEADS, CHANNELS = 2, 128
interpreted = functools.partial(splash, interpret=True)


def operands(rows: int, queries: int, keys: int):
    random = np.random.default_rng(0)
    shapes = [(rows, length, HEADS, CHANNELS) for length in (queries, keys, keys)]
    return [jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes]


def joint_mask(golden: Golden):
    """Visible keys of [latents, text, speaker patches] in a golden example."""
    _, text_mask, _, speaker_mask = golden.conditions()
    latents = np.ones(golden["in_x"].shape[:2], bool)
    return np.concatenate([latents, text_mask, np.asarray(speaker_mask)[:, ::4]], axis=1)


def outputs_and_gradients(attention, q, k, v, visible, causal=False):
    def value(q, k, v):
        out = attention(q, k, v, visible, causal=causal)
        return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

    gradients, out = jax.jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return out, *gradients


def assert_equal(visible, queries: int, causal=False, rows=slice(None)):
    inputs = operands(len(visible), queries, visible.shape[1])
    expected = outputs_and_gradients(attend, *inputs, visible, causal)
    actual = outputs_and_gradients(interpreted, *inputs, visible, causal)
    for want, got in zip(expected, actual, strict=True):
        np.testing.assert_allclose(got[rows], want[rows], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["tiny_forward", "medium_forward"])
def test_splash_equals_the_plain_softmax_on_the_golden_masks(name: str):
    golden = Golden(name)
    assert_equal(jnp.asarray(joint_mask(golden)), golden["in_x"].shape[1])


def test_splash_equals_the_plain_softmax_over_several_blocks_and_holes():
    visible = np.random.default_rng(1).random((2, 300)) < 0.5
    assert_equal(jnp.asarray(visible), 200)


def test_causal_splash_equals_the_plain_softmax():
    assert_equal(jnp.ones((1, 150), bool), 150, causal=True)


def test_a_row_that_sees_nothing_is_finite_forward_and_backward():
    visible = jnp.asarray([[False] * 40, [True] * 40])
    for array in outputs_and_gradients(interpreted, *operands(2, 30, 40), visible):
        assert np.isfinite(array).all()
    assert_equal(visible, 30, rows=slice(1, None))


def test_the_platform_and_the_head_size_choose():
    large, small = echo_1b3().model, demo().model
    wide = dataclasses.replace(large, width=3072)  # heads of 256 channels
    assert choose_attention("tpu", large) is choose_attention("tpu", echo_840m().model) is gated_attention
    assert choose_attention("tpu", wide) is with_heads(splash)
    assert choose_attention("tpu", dataclasses.replace(large, attention="splash")) is with_heads(splash)
    assert choose_attention("tpu", small) is with_heads(attend)  # heads of 48 channels fill no register
    assert choose_attention("gpu", large) is with_heads(cudnn)
    assert choose_attention("gpu", small) is with_heads(attend)  # float32
    assert choose_attention("cpu", large) is with_heads(attend_by_head)
    assert choose_attention("cpu", dataclasses.replace(large, attention="xla")) is with_heads(attend)
    assert choose_attention("tpu", dataclasses.replace(large, attention="xla")) is with_heads(attend)


@pytest.mark.parametrize("causal", [False, True])
def test_head_by_head_equals_all_heads_at_once(causal):
    frames = keys = math.isqrt(MANY_SCORES)
    inputs = operands(2, frames, keys)
    visible = jnp.arange(keys) < jnp.asarray([[keys], [40]])
    for rows in (frames - 1, frames):  # just too few scores to be worth it, and enough
        q, k, v = inputs[0][:, :rows], inputs[1], inputs[2]
        k, v, seen = (k[:, :rows], v[:, :rows], visible[:, :rows]) if causal else (k, v, visible)
        want, got = (f(q, k, v, seen, causal=causal) for f in (attend, attend_by_head))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
def test_cudnn_equals_the_plain_softmax():
    visible = jnp.asarray(joint_mask(Golden("medium_forward")))
    frames = Golden("medium_forward")["in_x"].shape[1]
    inputs = [x.astype(jnp.bfloat16) for x in operands(len(visible), frames, visible.shape[1])]
    for want, got in zip(
        outputs_and_gradients(attend, *inputs, visible), outputs_and_gradients(cudnn, *inputs, visible), strict=True
    ):
        np.testing.assert_allclose(got.astype(jnp.float32), want.astype(jnp.float32), rtol=3e-2, atol=3e-2)
