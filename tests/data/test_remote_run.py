"""What a run does with data from elsewhere: the list it stores, and what it opens when it resumes."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import pytest

from echotts.config import Bucket, Config, DataConfig, RunConfig, demo
from echotts.rundir.layout import DATA_PINS
from echotts.training.inputs import open_inputs, store_pins
from tests.data.corpus import CHANNELS, write_shards
from tests.data.fake_hub import REPOSITORY, FakeHub

pytestmark = pytest.mark.network_fake

SPEC = f"hf://datasets/{REPOSITORY}/train"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = write_shards(tmp_path / "shards", shards=4, samples=12)
    with FakeHub() as server:
        server.commit({f"train/{path.name}": path.read_bytes() for path in files})
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


def config(tmp_path: Path, spec: str = SPEC, **data: float | str | None) -> Config:
    preset = demo()
    settings: dict = {"heldout": SPEC, "cache_gb": 1.0} | data
    return dataclasses.replace(
        preset,
        model=dataclasses.replace(preset.model, latent_channels=CHANNELS),
        data=DataConfig(
            data=spec,
            batch_size=4,
            streams=2,
            buckets=(Bucket(frames=24, tokens=64),),
            reference_frames=8,
            shuffle_samples=32,
            cache_dir=str(tmp_path / "cache"),
            **settings,
        ),
        run=RunConfig(run_dir=str(tmp_path / "run"), eval_batches=2),
    )


def test_a_run_stores_its_list_and_a_resumed_one_goes_on_with_it(
    hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(tmp_path)
    first = open_inputs(settings)
    with first.stream as stream:
        assert not (tmp_path / "run" / DATA_PINS).exists()  # not before it is known that the run goes on
        store_pins(settings, first)
        assert first.heldout is not None
        assert [len(batch.latent) for batch in first.heldout()] == [4, 4]
        stream.next()
        state = stream.state()
        names = [stream.next()[1] for _ in range(6)]
    commit = hub.main
    stored = json.loads((tmp_path / "run" / DATA_PINS).read_text())
    assert {one["listing"]["revision"] for pin in stored.values() for one in pin["sources"]} == {commit}
    hub.commit({"train/other.tar": b""})
    before = len(hub.requests)
    with caplog.at_level(logging.WARNING):
        second = open_inputs(settings)
    assert f"the run stays at {commit[:12]}" in caplog.text
    assert not [request for request in hub.requests[before:] if "/tree/" in request.path]
    with second.stream as stream:
        stream.restore(state)
        assert [stream.next()[1] for _ in range(6)] == names
    assert second.pins == first.pins


def test_a_resumed_run_keeps_to_its_local_shards_and_says_what_is_new(
    hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(tmp_path, str(tmp_path / "shards"), heldout=None)
    first = open_inputs(settings)
    store_pins(settings, first)
    written = (tmp_path / "run" / DATA_PINS).stat().st_ino
    assert open_inputs(settings).pins == first.pins
    store_pins(settings, open_inputs(settings))
    assert (tmp_path / "run" / DATA_PINS).stat().st_ino == written  # not written again
    assert "it keeps to" not in caplog.text
    shutil.copy(tmp_path / "shards" / "s-000.tar", tmp_path / "shards" / "s-009.tar")
    again = open_inputs(settings)
    assert "1 shards are new and 0 gone since the run began: it keeps to the 4" in caplog.text
    assert len(again.stream.shards.files) == 4


def test_other_data_are_listed_anew_and_the_list_changes_only_when_the_run_goes_on(
    hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(tmp_path, heldout=None)
    first = open_inputs(settings)
    first.stream.close()
    store_pins(settings, first)
    stored = (tmp_path / "run" / DATA_PINS).read_text()
    other = config(tmp_path, f"{SPEC}/s-{{000..001}}.tar", heldout=None)
    second = open_inputs(other)
    second.stream.close()
    assert "listing the shards of" in caplog.text
    assert (tmp_path / "run" / DATA_PINS).read_text() == stored
    store_pins(other, second)
    assert len(json.loads((tmp_path / "run" / DATA_PINS).read_text())["data"]["sources"][0]["listing"]["shards"]) == 2
    (tmp_path / "run" / DATA_PINS).write_text("{")
    with pytest.raises(ValueError, match=r"data\.json: damaged: delete it"):
        open_inputs(other)


def test_a_cache_that_cannot_hold_a_shard_is_refused_before_the_run_starts(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the shard cache of 1e-05 GB \(--data\.cache_gb\) is too small"):
        open_inputs(config(tmp_path, cache_gb=1e-5))
    assert not (tmp_path / "cache").exists()
