"""Our attention kernel, in the Pallas interpreter, against the same from XLA's operations: values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from echotts.model.attention import HeadNorms, attend, with_heads
from echotts.model.kernel import LANES, gated_attention
from echotts.model.layers import rope_table

HEADS, TURNED = 2, 1
WIDTH = HEADS * LANES
composed, interpreted = with_heads(attend), functools.partial(gated_attention, interpret=True)


def operands(queries: int, keys: tuple[int, ...], dtype=jnp.float32):
    """q, keys, values, gate, and the gains of both norms."""
    random = np.random.default_rng(0)

    def draw(*shape: int):
        return jnp.asarray(random.standard_normal(shape), dtype)

    parts = [draw(2, length, WIDTH) for length in 2 * keys]
    gains = (1 + 0.1 * draw(HEADS, LANES), 1 + 0.1 * draw(HEADS, LANES))
    return draw(2, queries, WIDTH), parts[: len(keys)], parts[len(keys) :], draw(2, queries, WIDTH), *gains


def output_and_gradients(attention, inputs, visible, **options):
    rope = rope_table(inputs[0].shape[1], LANES, 1e4)

    def value(q, keys, values, gate, q_gain, k_gain):
        out = attention(q, keys, values, gate, HeadNorms(q_gain, k_gain, 1e-5, TURNED), rope, visible, **options)
        return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

    return jax.tree.leaves(jax.jit(jax.grad(value, argnums=tuple(range(6)), has_aux=True))(*inputs))


def assert_equal(queries: int, keys: tuple[int, ...], visible=None, **options):
    inputs = operands(queries, keys)
    expected = output_and_gradients(composed, inputs, visible, **options)
    for want, got in zip(expected, output_and_gradients(interpreted, inputs, visible, **options), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normed", [False, True])
def test_the_kernel_equals_the_composed_attention_over_parts_that_fill_no_register(normed: bool):
    visible = np.random.default_rng(1).random((2, 150 + 40 + 130)) < 0.5
    assert_equal(150, (150, 40, 130), jnp.asarray(visible), normed=[False, normed, normed])


def test_the_kernel_sums_gradients_of_keys_over_blocks_of_queries(monkeypatch):
    monkeypatch.setattr("echotts.model.kernel.BLOCKS", (128,))
    assert_equal(256, (256, 128), normed=[False, False])


def test_the_causal_kernel_masks_later_keys():
    assert_equal(200, (200,), normed=[False], causal=True)


def test_a_row_that_sees_nothing_is_finite_forward_and_backward():
    visible = jnp.asarray([[False] * 60, [True] * 60])
    found = output_and_gradients(interpreted, operands(30, (30, 30)), visible, normed=[False, False])
    assert all(np.isfinite(array).all() for array in found)


def test_the_heads_of_one_device_know_which_of_the_layer_they_are():
    q, keys, values, gate, q_gain, k_gain = operands(64, (64,))
    rope = rope_table(64, LANES, 1e4)
    whole = composed(q, keys, values, gate, HeadNorms(q_gain, k_gain, 1e-5, TURNED), rope, normed=[False])

    def part(x):
        return x[..., LANES:]

    norms = HeadNorms(q_gain[1:], k_gain[1:], 1e-5, TURNED)
    inputs = (part(q), [part(keys[0])], [part(values[0])], part(gate), norms, rope)
    second = interpreted(*inputs, normed=[False], first_head=1)
    np.testing.assert_allclose(second, part(whole), rtol=1e-5, atol=1e-5)
