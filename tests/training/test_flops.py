"""Analytic FLOPs of the presets, against a table checked by hand."""

import pytest

from echotts.config import echo_1b3, echo_840m
from echotts.training.flops import CHIPS, forward_flops, peak_flops, training_flops

TFLOP = 1e12


@pytest.mark.parametrize(
    ("preset", "frames", "decoder", "conditions", "attention", "text", "speaker", "train"),
    [
        (echo_1b3, 375, 0.563, 0.135, 0.070, 0.238, 0.036, 3.13),
        (echo_1b3, 750, 1.126, 0.135, 0.182, 0.238, 0.036, 5.15),
        (echo_1b3, 768, 1.153, 0.135, 0.188, 0.238, 0.036, 5.25),
        (echo_840m, 375, 0.391, 0.085, 0.059, 0.109, 0.016, 1.98),
        (echo_840m, 750, 0.782, 0.085, 0.152, 0.109, 0.016, 3.43),
        (echo_840m, 768, 0.801, 0.085, 0.157, 0.109, 0.016, 3.50),
    ],
)
def test_the_presets_cost_as_in_the_table(preset, frames, decoder, conditions, attention, text, speaker, train):
    model = preset().model
    parts = forward_flops(model, frames, 768, 512)
    found = [parts.decoder, parts.conditions, parts.attention, parts.text_encoder, parts.speaker_encoder]
    expected = [decoder, conditions, attention, text, speaker]
    assert [part / TFLOP for part in found] == pytest.approx(expected, abs=0.0015)
    assert training_flops(model, frames, 768, 512) / TFLOP == pytest.approx(train, abs=0.006)


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
