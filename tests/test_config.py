"""Presets have the published sizes, and an invalid configuration raises on construction."""

import dataclasses
import json
import math
from typing import Any

import pytest

from echotts import config
from echotts.config import Bucket, DataConfig, preset


@pytest.mark.parametrize("name", ["demo", "small", "840m", "1.3b"])
def test_every_preset_is_plain_json_and_names_itself(name: str) -> None:
    made = preset(name)
    assert made.preset == name
    stored = json.loads(json.dumps(config.to_dict(made)))
    assert stored["model"]["text"]["width"] == made.model.text.width
    assert set(stored) == {"preset", "model", "flow", "data", "optim", "tune", "run"}


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown preset '2b': choose one of demo, small, 840m"):
        preset("2b")


def test_reference_frames_fill_whole_patches_in_every_preset() -> None:
    for name in config.PRESETS:
        made = preset(name)
        assert made.data.reference_frames % made.model.patch == 0


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"heads": 7}, "decoder width 1536 is not a multiple of heads 7"),
        ({"heads": 3}, "heads 3 is odd"),
        ({"width": 12, "heads": 4}, "head width 3 is odd"),
        ({"timestep_width": 31}, "timestep_width 31 is odd"),
        ({"heads": 0}, "decoder heads 0 must be from 1 to"),
        ({"depth": -1}, "decoder depth -1 must be from 1 to"),
        ({"width": 1 << 40}, "decoder width .* must be from 1 to"),
        ({"norm_eps": 0.0}, "norm_eps 0.0 must be"),
        ({"rope_theta": float("inf")}, "rope_theta inf"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(changes: dict[str, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(preset("1.3b").model, **changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"norm_eps": "x"}, "norm_eps: Expected float, got str"),
        ({"width": 1.5}, "width: Expected int, got float"),
        ({"depth": True}, "depth: Expected int, got bool"),
        ({"text": 5}, "text: Expected object, got int"),
        ({"text": {"width": 128, "depth": 1, "heads": 0, "mlp_width": 1}}, "text: encoder heads 0 must be"),
        ({"attention": "gpu"}, "attention: Invalid enum value"),
        ({"layers": 3}, "unknown field 'layers'"),
    ],
)
def test_a_stored_model_config_of_other_types_is_refused_by_field(changes: dict[str, Any], complaint: str) -> None:
    stored = json.loads(json.dumps(config.to_dict(preset("demo").model)))
    assert config.read_model_config(stored, "run/config.json") == preset("demo").model
    with pytest.raises(ValueError, match=rf"^run/config\.json: {complaint}"):
        config.read_model_config(stored | changes, "run/config.json")


def test_buckets_are_given_shortest_first() -> None:
    short, long = Bucket(frames=32, tokens=24), Bucket(frames=64, tokens=48)
    assert DataConfig(buckets=(short, long)).buckets == (short, long)
    with pytest.raises(ValueError, match="shortest first"):
        DataConfig(buckets=(long, short))
    with pytest.raises(ValueError, match="shortest first"):
        DataConfig(buckets=())


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_numbers_that_are_not_valid_json_are_rejected(value: float) -> None:
    for section, key in (("run", "hang_s"), ("optim", "eps"), ("data", "fetch_deadline_s")):
        changed = dataclasses.replace(getattr(preset("demo"), section), **{key: value})
        with pytest.raises(ValueError, match=f"{key} {value}: give a finite number"):
            dataclasses.replace(preset("demo"), **{section: changed})


def test_a_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("demo").model.width = 1  # pyright: ignore[reportAttributeAccessIssue]
