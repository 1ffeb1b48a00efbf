"""BlockDiT against its golden vectors, and the properties it must keep."""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.models import loop_over_layers, unrolled
from echotts.checkpoint.interop import params_to_published, published_shapes
from echotts.config import echo_1b3, echo_840m
from echotts.flow.sampling import encode_conditions
from echotts.model import BlockDiT, build, count_parameters, layers, merge
from echotts.model.attention import attend, with_heads
from echotts.model.parameters import computed_with, expected_shapes, flatten, structure
from tests.blockdit_golden import GOLDEN, Golden, assert_golden, config_of, relative_rms
from tests.compiling import as_users_compile


@pytest.fixture(scope="module")
def tiny() -> Golden:
    return Golden("tiny_forward")


@pytest.fixture(scope="module")
def tiny_model(tiny: Golden) -> BlockDiT:
    return tiny.model()


@jax.jit
def forward(model: BlockDiT, x: Any, t: Any, *conditions: Any) -> Any:
    return model(x, t, *conditions)


def test_the_parameters_are_initialised_as_in_the_golden_file(tiny: Golden):
    leaves = [leaf.astype(np.float64) for leaf in jax.tree.leaves(tiny.params())]
    assert sum(leaf.size for leaf in leaves) == tiny.meta["num_params"]
    np.testing.assert_allclose(sum(leaf.sum() for leaf in leaves), tiny.meta["param_sum"], rtol=1e-9)
    np.testing.assert_allclose(sum((leaf**2).sum() for leaf in leaves), tiny.meta["param_sumsq"], rtol=1e-9)


@pytest.mark.parametrize("name", ["tiny_forward", "tiny_shared_t", "medium_forward"])
@as_users_compile()
def test_velocity_equals_the_golden_vector(name: str):
    golden = Golden(name)
    actual = forward(golden.model(), golden["in_x"], golden["in_t"], *golden.conditions())
    assert actual.dtype == jnp.float32
    assert_golden(actual, golden["out_velocity"])


@jax.jit
def intermediates(model: BlockDiT, x: Any, t: Any, *conditions: Any) -> dict[str, Any]:
    """Intermediate values of the golden file: encoder states, time, and the first decoder block."""
    text_ids, text_mask, speaker_latent, speaker_mask = conditions
    text_state, speaker_state = model.encode_text(text_ids, text_mask), model.encode_speaker(speaker_latent)
    time = model.embed_time(t)
    graphdef, stacked = nnx.split(model.blocks)
    block = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[0], stacked))
    hidden = model.embed_latent(x)
    visible = jnp.ones(x.shape[:2], dtype=bool)
    mask = jnp.concatenate([visible, text_mask, model.patch_mask(speaker_mask)], axis=1)
    rope = layers.rope_table(x.shape[1], model.config.head_dim, model.config.rope_theta)
    keys_values = block.attention.project_conditions(text_state, speaker_state)
    modulation = block.modulate(model.modulation(time))
    y = block.attn_adaln(hidden, modulation.attention)
    return {
        "mid_text_state": text_state,
        "mid_speaker_state": speaker_state,
        "mid_timestep_embedding": layers.timestep_embedding(t, model.config.timestep_width),
        "mid_cond_embed": time,
        "mid_block0": block(hidden, modulation, keys_values, mask, rope, with_heads(attend), normed=False),
        "mid_block0_attention": block.attention(y, keys_values, mask, rope, with_heads(attend), normed=False),
    }


@pytest.mark.parametrize("name", ["tiny_forward", "medium_forward"])
@as_users_compile()
def test_intermediates_equal_the_golden_vectors(name: str):
    golden = Golden(name)
    actual = intermediates(golden.model(), golden["in_x"], golden["in_t"], *golden.conditions())
    defined = np.asarray(golden["in_text_mask"]).any(axis=1)  # a text row with no visible token is not defined
    for key, value in actual.items():
        rows = defined if key == "mid_text_state" else slice(None)
        assert_golden(value[rows], golden[key][rows])


def test_the_1_3b_preset_has_the_published_tensors_shape_by_shape():
    manifest = json.loads((GOLDEN / "blockdit_manifest.json").read_text())
    preset = echo_1b3().model
    assert preset == dataclasses.replace(
        config_of(manifest["config"]), compute_dtype=preset.compute_dtype, remat=preset.remat
    )
    assert published_shapes(preset) == {path: tuple(shape) for path, shape in manifest["params"].items()}
    assert count_parameters(expected_shapes(preset)) == manifest["total"] == 1_303_763_072


def test_the_840m_preset_has_840m_parameters():
    assert count_parameters(expected_shapes(echo_840m().model)) == 840_536_960


def test_a_fresh_model_returns_zeros_and_its_layers_differ(tiny: Golden):
    model = jax.jit(lambda: BlockDiT(tiny.config, rngs=nnx.Rngs(0)))()
    velocity = forward(model, tiny["in_x"], tiny["in_t"], *tiny.conditions())
    np.testing.assert_array_equal(velocity, 0)
    kernels = np.asarray(model.blocks.attention.wq.kernel[...])
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01
    assert 0.015 < kernels.std() < 0.02  # truncated at two standard deviations of 0.02
    assert float(jnp.abs(model.blocks.attn_adaln.gate.kernel[...]).max()) == 0


def test_cached_conditions_give_the_velocity_of_the_direct_call(tiny: Golden, tiny_model: BlockDiT):
    @jax.jit
    def cached(model: BlockDiT, x: Any, t: Any, *conditions: Any) -> Any:
        return model.velocity(x, model.modulate(t), model.encode_conditions(*conditions))

    actual = cached(tiny_model, tiny["in_x"], tiny["in_t"], *tiny.conditions())
    assert_golden(actual, tiny["out_velocity"])


def test_alignment_scores_are_those_of_the_middle_layers_attention(tiny: Golden, tiny_model: BlockDiT):
    seen: list[Any] = []

    def watched(q: Any, k: Any, v: Any, visible: Any = None, *, causal: bool = False) -> Any:
        seen.append(jnp.einsum("bthd,bshd->bts", q, k) * q.shape[-1] ** -0.5 / q.shape[2])
        return attend(q, k, v, visible, causal=causal)

    arguments = (tiny["in_x"], tiny["in_t"], *tiny.conditions())
    velocity, scores = jax.jit(lambda model, *rest: model.with_alignment(*rest))(tiny_model, *arguments)
    np.testing.assert_allclose(velocity, forward(tiny_model, *arguments), rtol=0, atol=2e-5)
    looped = build(tiny.config, jax.tree.map(jnp.asarray, tiny.params()), attend=with_heads(watched))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "scan_layers", loop_over_layers)
        unrolled(looped)(*arguments)
    frames, tokens = scores.shape[1:]
    middle = seen[-tiny.config.depth :][tiny.config.depth // 2]
    np.testing.assert_allclose(scores, middle[:, :, frames : frames + tokens], rtol=0, atol=2e-5)


def test_rows_beyond_the_conditions_equal_rows_with_both_masked(tiny: Golden, tiny_model: BlockDiT):
    x, t = tiny["in_x"][:2], tiny["in_t"][:1]
    one = encode_conditions(tiny_model, *(leaf[:1] for leaf in tiny.conditions()))
    two = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * 2, axis=0 if leaf.ndim == 2 else 1), one)
    masked = dataclasses.replace(
        two, text_mask=two.text_mask.at[1].set(False), speaker_mask=two.speaker_mask.at[1].set(False)
    )
    velocity = jax.jit(lambda model, x, t, conditions: model.velocity(x, model.modulate(t), conditions))
    actual, expected = velocity(tiny_model, x, t, one), velocity(tiny_model, x, t, masked)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)
    assert float(jnp.abs(actual[1] - velocity(tiny_model, x, t, two)[1]).max()) > 0.1
    tiled = build(tiny.config, tiny.params(), frame_tile=x.shape[1] + 3)  # as on a TPU: the padding is not heard
    np.testing.assert_allclose(velocity(tiled, x, t, one), expected, rtol=0, atol=2e-5)


def test_padding_of_either_condition_changes_nothing(tiny: Golden, tiny_model: BlockDiT):
    ids, text_mask, latent, speaker_mask = tiny.conditions()
    padded = (
        jnp.pad(ids, ((0, 0), (0, 9)), constant_values=77),
        jnp.pad(text_mask, ((0, 0), (0, 9))),
        jnp.pad(latent, ((0, 0), (0, 8), (0, 0)), constant_values=3.0),
        jnp.pad(speaker_mask, ((0, 0), (0, 8))),
    )
    actual = forward(tiny_model, tiny["in_x"], tiny["in_t"], *padded)
    assert_golden(actual, tiny["out_velocity"])


def test_scanned_layers_equal_unrolled_ones(tiny: Golden, tiny_model: BlockDiT, monkeypatch: pytest.MonkeyPatch):
    arguments = (tiny["in_x"], tiny["in_t"], *tiny.conditions())
    scanned = forward(tiny_model, *arguments)
    monkeypatch.setattr(layers, "scan_layers", loop_over_layers)
    actual = jax.jit(lambda model, *arguments: model(*arguments))(unrolled(tiny_model), *arguments)
    np.testing.assert_allclose(actual, scanned, rtol=0, atol=2e-5)


@functools.cache
def loss_and_gradient(remat: str) -> Any:
    """jit of (params, x, t, *conditions) -> (mean square of the velocity, its gradient)."""
    graphdef = structure(dataclasses.replace(Golden("tiny_forward").config, remat=remat))

    def loss(params: Any, *arguments: Any) -> Any:
        return jnp.mean(merge(graphdef, params)(*arguments) ** 2)

    return jax.jit(jax.value_and_grad(loss))


def test_remat_policies_give_equal_gradients(tiny: Golden):
    arguments = (tiny.params(), tiny["in_x"], tiny["in_t"], *tiny.conditions())
    expected = flatten(loss_and_gradient("none")(*arguments)[1])
    for remat in ("dots", "full"):
        for path, leaf in flatten(loss_and_gradient(remat)(*arguments)[1]).items():
            np.testing.assert_allclose(leaf, expected[path], rtol=1e-3, atol=1e-6, err_msg=f"{remat} {path}")


def test_a_row_with_both_conditions_masked_is_finite_forward_and_backward(tiny: Golden):
    ids, text_mask, latent, speaker_mask = tiny.conditions()
    masked = (ids, jnp.zeros_like(text_mask), latent, jnp.zeros_like(speaker_mask))
    for leaf in jax.tree.leaves(loss_and_gradient("none")(tiny.params(), tiny["in_x"], tiny["in_t"], *masked)):
        assert np.isfinite(leaf).all()


def test_bfloat16_compute_is_close_to_float32(tiny: Golden):
    model = build(dataclasses.replace(tiny.config, compute_dtype="bfloat16"), tiny.params())
    actual = forward(model, tiny["in_x"], tiny["in_t"], *tiny.conditions())
    assert actual.dtype == jnp.float32
    assert relative_rms(actual, tiny["out_velocity"]) < 0.03


def test_reference_frames_that_do_not_fill_a_patch_are_rejected(tiny: Golden, tiny_model: BlockDiT):
    ids, text_mask, latent, speaker_mask = tiny.conditions()
    with pytest.raises(ValueError, match="15 frames: pad it to a multiple of the patch size 4"):
        tiny_model(tiny["in_x"], tiny["in_t"], ids, text_mask, latent[:, :15], speaker_mask[:, :15])


def test_stacking_keeps_every_value_in_its_place(tiny: Golden):
    published = flatten(params_to_published(tiny.params()))
    kernel = tiny.params()["text_encoder"]["blocks"]["attention"]["wgate"]["kernel"]
    name = "text_encoder/TextTransformerBlock_2/attention/wgate/Dense_0/kernel"
    np.testing.assert_array_equal(published[name], kernel[2])


def test_kernels_cast_ahead_give_the_same_numbers(tiny: Golden):
    config = dataclasses.replace(tiny.config, compute_dtype="bfloat16")
    params = jax.tree.map(jnp.asarray, tiny.params())
    cast = computed_with(params, "bfloat16")
    assert cast["in_proj"]["kernel"].dtype == jnp.bfloat16 and cast["out_proj"]["kernel"].dtype == jnp.float32
    arguments = (tiny["in_x"], tiny["in_t"], *tiny.conditions())
    ahead, masters = (forward(build(config, some), *arguments) for some in (cast, params))
    np.testing.assert_array_equal(ahead, masters)
