"""Revival of dead latent channels: those that a KL weight silenced, and no gradient brings back."""

import jax
import jax.numpy as jnp

from echotts.codec.backbone import init_params
from echotts.codec.config import CodecConfig
from echotts.codec.layers import Params

DEAD_SHARE = 0.05  # of the largest norm: dead channels are at 0.001, live ones at 0.3 or more
DEVIATION_BIAS = -2.0  # softplus of it is 0.13: less noise than signal, like live channels


def dead_channels(params: Params) -> list[int]:
    """Indices of the latent channels of DACVAE whose posterior mean does not depend on the audio."""
    mean = jnp.split(jnp.asarray(params["bottleneck"]["in"]["kernel"], jnp.float32), 2, axis=-1)[0]
    norms = jnp.sqrt(jnp.sum(mean**2, axis=(0, 1)))
    return [int(channel) for channel in jnp.flatnonzero(norms < DEAD_SHARE * jnp.max(norms))]


def revived(params: Params, config: CodecConfig, key: jax.Array) -> Params:
    """Folded parameters with the projections of dead channels drawn anew; all others are unchanged.

    A revived channel has a random direction of the features as its mean, a small posterior deviation, and a small
    weight in the decoder, which has to learn to use it.
    """
    dead = jnp.array(dead_channels(params), jnp.int32)
    fresh = init_params(config, key)["bottleneck"]
    inward, outward = ({k: jnp.asarray(v) for k, v in params["bottleneck"][name].items()} for name in ("in", "out"))
    width = config.codebook_dim
    kernel = inward["kernel"].at[:, :, dead].set(fresh["in"]["kernel"][:, :, dead])
    kernel = kernel.at[:, :, width + dead].set(0.1 * fresh["in"]["kernel"][:, :, width + dead])
    bias = inward["bias"].at[dead].set(0.0).at[width + dead].set(DEVIATION_BIAS)
    decoder = outward["kernel"].at[:, dead].set(0.25 * fresh["out"]["kernel"][:, dead])
    bottleneck = {"in": {"kernel": kernel, "bias": bias}, "out": outward | {"kernel": decoder}}
    return params | {"bottleneck": params["bottleneck"] | bottleneck}
