"""Presets are the published sizes, and a wrong configuration says so when it is made."""

import dataclasses
import json

import pytest

from echotts import config
from echotts.config import Bucket, DataConfig, preset


@pytest.mark.parametrize("name", ["demo", "840m", "1.3b"])
def test_every_preset_is_plain_json_and_names_itself(name: str) -> None:
    made = preset(name)
    assert made.preset == name
    stored = json.loads(json.dumps(config.to_dict(made)))
    assert stored["model"]["text"]["width"] == made.model.text.width
    assert set(stored) == {"preset", "model", "flow", "data", "optim", "run"}


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown preset '2b': choose one of demo, 840m"):
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
    ],
)
def test_a_model_that_cannot_be_built_is_refused(changes: dict[str, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(preset("1.3b").model, **changes)


def test_buckets_are_given_shortest_first() -> None:
    short, long = Bucket(frames=32, tokens=24), Bucket(frames=64, tokens=48)
    assert DataConfig(buckets=(short, long)).buckets == (short, long)
    with pytest.raises(ValueError, match="shortest first"):
        DataConfig(buckets=(long, short))
    with pytest.raises(ValueError, match="shortest first"):
        DataConfig(buckets=())


def test_a_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("demo").model.width = 1  # pyright: ignore[reportAttributeAccessIssue]
