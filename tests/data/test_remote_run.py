"""Runs with remote data: the stored shard list, and resuming."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import pytest

from echotts.config import Bucket, Config, DataConfig, RunConfig, demo
from echotts.data.format.info import DatasetInfo, ShardInfo
from echotts.files import sha256_file
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


def test_a_run_stores_its_shard_list_and_a_resumed_one_uses_it(
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


def test_a_resumed_run_keeps_its_local_shards_and_reports_new_ones(
    hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(tmp_path, str(tmp_path / "shards"), heldout=None)
    first = open_inputs(settings)
    store_pins(settings, first)
    written = (tmp_path / "run" / DATA_PINS).stat().st_ino
    assert open_inputs(settings).pins == first.pins
    store_pins(settings, open_inputs(settings))
    assert (tmp_path / "run" / DATA_PINS).stat().st_ino == written  # not written again
    assert "it keeps using" not in caplog.text
    shutil.copy(tmp_path / "shards" / "s-000.tar", tmp_path / "shards" / "s-009.tar")
    again = open_inputs(settings)
    assert "1 shards are new and 0 gone since the run started: it keeps using the 4" in caplog.text
    assert len(again.stream.shards.files) == 4


def test_other_data_are_listed_again_and_the_list_changes_only_when_the_run_continues(
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


def run_on_two_shards(tmp_path: Path, **run: bool) -> Config:
    settings = config(tmp_path, str(tmp_path / "own"), heldout=None)
    return dataclasses.replace(settings, run=dataclasses.replace(settings.run, **run))


@pytest.mark.parametrize("hashed", [False, True])
def test_shards_that_were_rewritten_under_their_names_are_refused_unless_accepted(
    tmp_path: Path, hashed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "own").mkdir()
    files = write_shards(tmp_path / "own", shards=2, samples=12)
    if hashed:
        shards = tuple(
            ShardInfo(name=file.name, samples=12, bytes=file.stat().st_size, sha256=sha256_file(file)) for file in files
        )
        DatasetInfo(channels=CHANNELS, shards=shards).save(tmp_path / "own/dataset.json")
    first = open_inputs(run_on_two_shards(tmp_path))
    with first.stream as stream:
        store_pins(run_on_two_shards(tmp_path), first)
        stream.next()
        state = stream.state()
    held = files[1].read_bytes()
    files[1].write_bytes(held)  # like a copy: the same bytes with another time
    if hashed:
        open_inputs(run_on_two_shards(tmp_path)).stream.close()
    (tmp_path / "new").mkdir()
    (other, _) = write_shards(tmp_path / "new", shards=2, samples=12, seed=5)
    same_size = other.read_bytes().ljust(len(held), b"\0")[: len(held)]
    changes = (same_size, held + bytes(10240), write_shards(tmp_path / "new", 1, 2)[0].read_bytes())
    for number, change in enumerate(changes):
        files[1].write_bytes(change)
        with pytest.raises(ValueError, match=r"1 of 2 shards have changed .*s-001\.tar .*--run\.accept_changed_data"):
            open_inputs(run_on_two_shards(tmp_path))
        accepting = run_on_two_shards(tmp_path, accept_changed_data=True)
        accepted = open_inputs(accepting)
        with accepted.stream as stream:
            stream.restore(state, accept_changed=True)
            assert len([stream.next() for _ in range(4)]) == 4
        assert "accepted, the samples come in another order" in caplog.text
        if number == len(changes) - 1:
            store_pins(accepting, accepted)
            open_inputs(run_on_two_shards(tmp_path)).stream.close()  # pinned as they are now


def test_lists_that_older_programs_stored_are_still_read(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    write_shards(tmp_path / "own", shards=2, samples=12)
    settings = run_on_two_shards(tmp_path)
    first = open_inputs(settings)
    first.stream.close()
    for source in first.pins["data"]["sources"]:
        source["listing"]["shards"] = [[url, None, None] for url, *_ in source["listing"]["shards"]]
    store_pins(settings, first)
    open_inputs(settings).stream.close()
