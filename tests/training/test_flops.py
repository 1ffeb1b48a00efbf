"""Analytic FLOPs of the presets, against a table checked by hand."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from echotts.config import Bucket, TuneConfig, echo_1b3, echo_840m, preset
from echotts.training import mesh as meshes
from echotts.training.flops import CHIPS, forward_flops, peak_flops, training_flops
from echotts.training.plan import abstract_batch
from echotts.training.state import abstract_state
from echotts.training.step import make_train_step
from echotts.training.tuning import abstract_frozen

TFLOP = 1e12


@pytest.mark.parametrize(
    ("create", "frames", "decoder", "conditions", "attention", "text", "speaker", "train"),
    [
        (echo_1b3, 375, 0.563, 0.135, 0.070, 0.238, 0.036, 3.13),
        (echo_1b3, 750, 1.126, 0.135, 0.182, 0.238, 0.036, 5.15),
        (echo_1b3, 768, 1.153, 0.135, 0.188, 0.238, 0.036, 5.25),
        (echo_840m, 375, 0.391, 0.085, 0.059, 0.109, 0.016, 1.98),
        (echo_840m, 750, 0.782, 0.085, 0.152, 0.109, 0.016, 3.43),
        (echo_840m, 768, 0.801, 0.085, 0.157, 0.109, 0.016, 3.50),
    ],
)
def test_the_presets_cost_as_in_the_table(create, frames, decoder, conditions, attention, text, speaker, train):
    model = create().model
    parts = forward_flops(model, frames, 768, 512)
    found = [parts.decoder, parts.conditions, parts.attention, parts.text_encoder, parts.speaker_encoder]
    expected = [decoder, conditions, attention, text, speaker]
    assert [part / TFLOP for part in found] == pytest.approx(expected, abs=0.0015)
    assert training_flops(model, frames, 768, 512) / TFLOP == pytest.approx(train, abs=0.006)


def product_flops(jaxpr):
    """Operations of the matrix products of a traced program, those of loops as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
        inner = sum(product_flops(inside) for inside in jaxprs_in_params(equation.params))
        total += inner * equation.params.get("length", 1)
    return total


@pytest.mark.parametrize("method", ["none", "lora", "inversion", "duration", "distil"])
def test_the_formula_counts_what_a_step_computes(method):
    rows, bucket = 8, Bucket(frames=96, tokens=64)
    config = preset("small")
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, remat="none"),
        data=dataclasses.replace(config.data, batch_size=rows),
        flow=dataclasses.replace(config.flow, alignment=0.0),
        tune=TuneConfig(method=method, rank=4),
        run=dataclasses.replace(config.run, init_from="" if method == "none" else "base"),
    )
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    state, frozen = abstract_state(config, mesh), abstract_frozen(config, mesh)
    limit = jax.ShapeDtypeStruct((), jnp.float32)
    traced = make_train_step(config, mesh).jitted.trace(state, abstract_batch(config, bucket), limit, frozen)
    counted = product_flops(traced.jaxpr.jaxpr)
    formula = rows * training_flops(config.model, bucket.frames, bucket.tokens, config.data.reference_frames, method)
    assert formula == pytest.approx(counted, rel=0.04)


def test_a_device_is_recognised_by_its_jax_name():
    assert peak_flops("TPU v4") == CHIPS["v4"].peak_tflops * TFLOP
    assert peak_flops("TPU v5 lite") == CHIPS["v5e"].peak_tflops * TFLOP
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989 * TFLOP
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312 * TFLOP
    assert peak_flops("cpu") is None


def test_devices_with_similar_names_are_distinguished():
    kinds = ["NVIDIA L4", "NVIDIA L40", "NVIDIA L40S", "NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H200"]
    assert [peak_flops(kind) for kind in kinds] == [n * TFLOP for n in (121, 181, 362, 756, 835, 989)]
    assert peak_flops("NVIDIA L400") is None
