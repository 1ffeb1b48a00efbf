"""The layers' own gradients: those of the plain formulas, only faster."""

import jax
import jax.numpy as jnp
import numpy as np

from echotts.codec.layers import add_bias, snake


def test_the_gradient_of_snake_is_that_of_its_formula():
    x = jax.random.normal(jax.random.key(0), (2, 50, 3)) * 4
    alpha = jnp.array([0.3, 1.0, 7.0])
    weight = jax.random.normal(jax.random.key(1), x.shape)

    def plain(x, alpha):
        return x + jnp.sin(alpha * x) ** 2 / (alpha + 1e-9)

    found = jax.grad(lambda x, a: jnp.sum(weight * snake(x, a)), (0, 1))(x, alpha)
    expected = jax.grad(lambda x, a: jnp.sum(weight * plain(x, a)), (0, 1))(x, alpha)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


def test_the_gradient_of_a_bias_is_the_sum_over_batch_and_time():
    x, bias = jnp.ones((2, 5, 3)), jnp.array([1.0, 2.0, 3.0])
    grad_x, grad_bias = jax.grad(lambda x, b: jnp.sum(add_bias(x, b) ** 2), (0, 1))(x, bias)
    np.testing.assert_allclose(grad_x, 2 * (x + bias))
    np.testing.assert_allclose(grad_bias, [40, 60, 80])
