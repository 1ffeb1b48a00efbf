"""Common parts of the model benchmarks: the 100M model, an example of its inputs, and its layers unrolled."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from echotts.config import EncoderConfig, FlowConfig, ModelConfig, RematName
from echotts.flow.matching import flow_loss
from echotts.model import BlockDiT

FRAMES, TOKENS, REFERENCE_FRAMES = 375, 200, 248  # 15 s, and a reference of 10 s


def model_100m(remat: RematName = "none") -> ModelConfig:
    """About 100M parameters, float32."""
    encoder = EncoderConfig(width=384, depth=4, heads=6, mlp_width=1024)
    return ModelConfig(
        width=640, depth=12, heads=10, mlp_width=1760, text=encoder, speaker=encoder, adaln_rank=64,
        compute_dtype="float32", remat=remat,
    )  # fmt: skip


def example(rows: int) -> tuple[Any, Any, Any, Any]:
    """Text and reference of full length for every row, in the model's argument order."""
    rng = np.random.default_rng(0)
    return (
        jnp.asarray(rng.integers(1, 256, (rows, TOKENS)), jnp.int32),
        jnp.ones((rows, TOKENS), bool),
        jnp.asarray(rng.standard_normal((rows, REFERENCE_FRAMES, model_100m().latent_channels)), jnp.float32),
        jnp.ones((rows, REFERENCE_FRAMES), bool),
    )


def unrolled(model: BlockDiT) -> BlockDiT:
    """The same model with a separate module per layer. Run it while `layers.scan_layers` is `loop_over_layers`."""
    model = nnx.clone(model)
    for owner in (model, model.text_encoder, model.speaker_encoder):
        graphdef, params = nnx.split(owner.blocks)
        depth = jax.tree.leaves(params)[0].shape[0]
        owner.blocks = nnx.List(
            [nnx.merge(graphdef, jax.tree.map(lambda leaf, i=i: leaf[i], params)) for i in range(depth)]
        )
    return model


def loop_over_layers(
    blocks: nnx.List, apply: Any, carry: Any, xs: Any = None, *, remat: RematName, gather: Any = None
) -> tuple[Any, Any]:
    """Replaces `model.layers.scan_layers`: a Python loop, in which every layer is compiled separately."""
    ys = []
    for i, block in enumerate(blocks):
        carry, y = apply(block, carry, jax.tree.map(lambda leaf, i=i: leaf[i], xs))
        ys.append(y)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)


class Batch(NamedTuple):
    """The fields of a batch that the loss reads."""

    latent: Any
    latent_mask: Any
    text_ids: Any
    text_mask: Any
    speaker_latent: Any
    speaker_mask: Any


def training_batch(rows: int) -> Batch:
    """A batch of full length."""
    channels = model_100m().latent_channels
    latent = jax.random.normal(jax.random.key(0), (rows, FRAMES, channels))
    return Batch(latent, jnp.ones((rows, FRAMES), bool), *example(rows))


def train_step(optimizer: Any, graphdef: Any) -> Any:
    """(params, optimizer state, batch, key) -> (params, optimizer state, loss): loss, gradient, clipped AdamW."""

    def step(params: Any, state: Any, batch: Batch, key: Any) -> tuple[Any, Any, Any]:
        def loss(params: Any) -> Any:
            return flow_loss(nnx.merge(graphdef, params), batch, key, FlowConfig(), train=False)[0]

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


def adamw() -> Any:
    """The published optimizer with a constant learning rate."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, b1=0.9, b2=0.99, weight_decay=1e-2))
