"""Runs in a bucket, on a local server of Google Cloud Storage's API: same as local runs, and the differences."""

import json
import logging
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock
from urllib.parse import quote

import pytest

from echotts import gcs as buckets
from echotts.checkpoint.checkpoints import Checkpoints
from echotts.checkpoint.contents import CheckpointError, step_folders
from echotts.checkpoint.export import export
from echotts.checkpoint.export_file import load_export
from echotts.checkpoint.weights import load_run, load_weights
from echotts.config import to_dict
from echotts.data.stream.stream import Stream
from echotts.disk.runs import run_folders
from echotts.model.parameters import flatten
from echotts.monitor.runs import Library
from echotts.multihost import hang
from echotts.rundir import claim, pause, spool
from echotts.rundir.layout import CHECKPOINTS, TRAINER
from echotts.rundir.location import check_run_dir, open_run_dir, run_path
from echotts.rundir.metrics import MetricsWriter
from echotts.training.loop import train
from tests.checkpoint.test_checkpoints import abstract, arrays, meta, save_and_wait
from tests.fake_gcs import FakeGcs
from tests.multihost.group import Group
from tests.multihost.test_processes import flags
from tests.tiny_training import TINY, Spoken, with_sections
from tests.training.test_loop import Sound, StopAfter, assert_same_weights

__all__ = ["flags"]  # a fixture
pytestmark = [pytest.mark.network_fake, pytest.mark.timeout(300)]
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def server():
    """One server for all tests, since the clients keep their connections; each test has its own run."""
    with FakeGcs("bucket") as gcs, pytest.MonkeyPatch.context() as patch:
        for name, value in gcs.environment.items():
            patch.setenv(name, value)
        yield gcs


@pytest.fixture
def gcs(server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server.troubles.clear()
    yield server
    server.troubles.clear()


@pytest.fixture
def url(request) -> str:
    return "gs://bucket/runs/" + re.sub(r"\W+", "-", request.node.name)


def objects(gcs, url) -> dict[str, bytes]:
    """The contents below, by name."""
    folder = url.removeprefix("gs://") + "/"
    return {name.removeprefix(folder): gcs.objects[name].content for name in gcs.names(folder)}


def lines(gcs, url) -> list[dict]:
    [content] = [content for name, content in objects(gcs, url).items() if name.endswith(".jsonl")]
    return [json.loads(line) for line in content.splitlines()]


def spools(tmp_path) -> list[Path]:
    return list((tmp_path / "cache" / "echotts" / "runs").glob("*"))


def save_steps(url, *steps, **run):
    with Checkpoints(run_path(url), with_sections(TINY, run=run).run) as checkpoints:
        for step in steps:
            checkpoints.save(arrays(step), meta(step))
        checkpoints.wait()


def restore(url):
    with Checkpoints(run_path(url), TINY.run) as checkpoints:
        found = checkpoints.restore(abstract(arrays(0)), to_dict(TINY))
    return None if found is None else found[1].step


def names(url) -> list[str]:
    return [folder.name for folder in step_folders(run_path(url) / CHECKPOINTS)]


def test_a_resumed_run_in_a_bucket_equals_a_local_one_that_never_stopped_bit_by_bit(
    gcs, url, shards, uninterrupted, tmp_path
):
    config = with_sections(TINY, data={"data": str(shards)}, run={"sentences": ("ab",), "sample_every": 6})
    remote = with_sections(config, run={"run_dir": url})
    assert not train(remote, stop=StopAfter(3)).finished
    assert train(remote, speak=lambda weights, sentence, seed, voice: Spoken(Sound(sentence))).finished
    for weights in ("raw", "ema"):
        assert_same_weights(load_run(uninterrupted, weights), load_weights(url, weights))

    found = objects(gcs, url)
    said = lines(gcs, url)
    assert [line["step"] for line in said if "loss/train" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["event"] for line in said if "event" in line] == ["started", "stopped", "resumed", "finished"]
    assert json.loads(found["config.json"])["optim"]["steps"] == 6
    assert found["data.json"] == (uninterrupted / "data.json").read_bytes()
    assert found["samples/step_00000006/00_ab.wav"] == b"('ab',)"
    assert [name for name in found if "probe" in name or ".new" in name or name.startswith(".")] == []
    assert spools(tmp_path) == []

    [run] = Library([url], None).runs()
    status = run.status(time.time())
    assert (status.name, status.step, status.steps) == ("finished", 6, 6)
    assert list(run.history().points("loss/train").steps) == [1, 2, 3, 4, 5, 6]
    assert [(row["step"], row["complete"]) for row in run.checkpoints()] == [(6, True), (4, True), (3, True)]
    assert run.checkpoints()[0]["written"] > time.time() - 300

    export(url, tmp_path / "model.safetensors")
    exported, whole = load_export(tmp_path / "model.safetensors")[0], load_run(uninterrupted).params
    assert all((flatten(exported)[path] == leaf).all() for path, leaf in flatten(whole).items())
    assert_same_weights(
        load_weights(f"{url}/checkpoints/step_00000004"), load_run(run_path(url) / "checkpoints/step_00000004")
    )


def claim_elsewhere(url: str, then: str) -> str:
    """The output of another process on this machine that claims the run."""
    code = (
        "import os; from echotts.rundir.claim import claimed; from echotts.rundir.location import run_path\n"
        f"with claimed(run_path({url!r})): print('claimed', flush=True); {then}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    return done.stdout + done.stderr


def test_a_second_training_in_a_bucket_is_rejected_naming_the_first_and_later_succeeds(gcs, url, monkeypatch):
    monkeypatch.setattr(claim, "HEARTBEAT_S", 0.2)
    who = f"{url}: in use by another training: host {socket.gethostname()}, process {os.getpid()}, since 20"
    with claim.claimed(run_path(url)):
        assert who in claim_elsewhere(url, "pass").splitlines()[-1]
        monkeypatch.setattr(claim, "this_machine", lambda: {"host": "elsewhere"})  # only its beats are seen there
        with pytest.raises(claim.RunInUseError, match=who), claim.claimed(run_path(url)):
            pytest.fail("claimed twice")
    assert objects(gcs, url) == {}
    assert claim_elsewhere(url, "pass") == "claimed\n"


def test_a_claim_of_a_killed_training_in_a_bucket_is_replaced_immediately_on_its_machine(gcs, url):
    assert claim_elsewhere(url, "os._exit(9)") == "claimed\n"
    assert list(objects(gcs, url)) == [TRAINER]
    began = time.monotonic()
    with claim.claimed(run_path(url)):
        assert json.loads(objects(gcs, url)[TRAINER])["pid"] == os.getpid()
    assert time.monotonic() - began < 5


def test_a_claim_in_a_bucket_without_heartbeat_is_replaced_by_another_machine(gcs, url, monkeypatch, caplog):
    monkeypatch.setattr(claim, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(claim, "LOOK_S", 0.4)
    key = f"{url.removeprefix('gs://')}/{TRAINER}"
    for content in (b"{", b"", b'{"host": "elsewhere", "pid": 7, "since": "yesterday"}'):
        gcs.put(key, content)
        with caplog.at_level(logging.WARNING, logger="echotts"), claim.claimed(run_path(url)):
            assert json.loads(objects(gcs, url)[TRAINER])["pid"] == os.getpid()
    assert caplog.text.count("was in use on host elsewhere; waiting") == 1


def test_of_two_simultaneous_trainings_in_a_bucket_one_succeeds(gcs, url, monkeypatch):
    key = f"{url.removeprefix('gs://')}/{TRAINER}"
    look = claim._object

    def late(*asked):  # after its check, another process is faster
        found = look(*asked)
        gcs.put(key, b'{"host": "elsewhere", "pid": 7, "since": "now"}')
        return found

    monkeypatch.setattr(claim, "_object", late)
    for there in (False, True):
        if there:
            gcs.put(key, b"")
        with pytest.raises(claim.RunInUseError, match="host elsewhere, process 7"), claim.claimed(run_path(url)):
            pytest.fail("claimed twice")
        del gcs.objects[key]


def test_a_training_in_a_bucket_claims_its_run(gcs, url, shards):
    with claim.claimed(run_path(url)), pytest.raises(claim.RunInUseError, match=f"{url}: in use by another training"):
        train(with_sections(TINY, data={"data": str(shards)}, run={"run_dir": url}))


@pytest.fixture(scope="module")
def kept(server):
    """A bucket run with three saved steps, which tests copy: writing them takes hundreds of requests."""
    save_steps("gs://bucket/kept", 2, 3, 5, keep_last=1, keep_every=2)
    return objects(server, "gs://bucket/kept")


@pytest.fixture
def saved(gcs, url, kept):
    """A separate run with the checkpoints of steps 2 and 5."""
    for name, content in kept.items():
        gcs.put(f"{url.removeprefix('gs://')}/{name}", content)
    return url


def test_retention_in_a_bucket_follows_the_same_rule(gcs, saved, kept):
    assert names(saved) == ["step_00000005", "step_00000002"]
    assert not [name for name in kept if "step_00000003" in name]
    assert restore(saved) == 5


def test_an_incomplete_write_is_not_a_checkpoint_and_is_removed(gcs, saved):
    del gcs.objects[f"{saved.removeprefix('gs://')}/checkpoints/step_00000005/commit_success.txt"]
    assert names(saved) == ["step_00000002"]
    assert restore(saved) == 2
    assert not [name for name in objects(gcs, saved) if "step_00000005" in name]


def test_a_damaged_checkpoint_is_set_aside_and_its_step_saved_again(gcs, saved, caplog):
    for name in gcs.names(f"{saved.removeprefix('gs://')}/checkpoints/step_00000005/params/d/"):
        del gcs.objects[name]
    assert restore(saved) == 2
    assert "step_00000005: cannot be read, trying the previous one" in caplog.text
    found = {name.split("/")[1] for name in objects(gcs, saved)}
    assert found == {"step_00000002", "step_00000005.broken"}
    save_steps(saved, 5)
    assert names(saved) == ["step_00000005", "step_00000002"]


@pytest.mark.parametrize("route", [r"/storage/v1/b/bucket/o\?", ".*0005/meta/", ".*0005/params/"])
def test_a_bucket_that_does_not_let_us_read_is_no_new_run_and_no_damage(gcs, saved, route):
    before = objects(gcs, saved)
    with Checkpoints(run_path(saved), TINY.run) as checkpoints:
        checkpoints.wait()
        gcs.trouble("GET", route, 403, "the account may not")
        with pytest.raises(OSError, match=r"permission denied|PERMISSION_DENIED"):
            checkpoints.restore(abstract(arrays(0)), to_dict(TINY))
        gcs.troubles.clear()
    assert objects(gcs, saved) == before


# Orbax gives up at the first part that fails; those that fail after it find its event loop closed
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_failed_write_is_reported_and_the_previous_checkpoint_restores(gcs, saved):
    with Checkpoints(run_path(saved), TINY.run) as checkpoints:
        checkpoints.wait()
        gcs.trouble("POST", ".*uploadType=media", 403, "the account may not")  # as TensorStore writes
        with pytest.raises(
            CheckpointError, match=r"could not be written .*; the last complete one is step_00000005; repeat"
        ):
            save_and_wait(checkpoints, arrays(6), meta(6))
        gcs.troubles.clear()
    assert restore(saved) == 5


def test_lines_are_appended_to_those_of_another_machine(gcs, url):
    for step in (1, 2):
        with open_run_dir(url) as run_dir, MetricsWriter(run_dir.local) as writer:
            writer.write(step, {"loss/train": 0.5})
            assert run_dir.spool is not None and run_dir.spool.flush()
            writer.write(step + 10, {"loss/train": 0.5})
    assert [line["step"] for line in lines(gcs, url)] == [1, 11, 2, 12]


def write_and_fail(writer):
    writer.write(1, {"loss/train": 0.5})
    raise KeyError("why")


def test_lines_before_a_failure_are_uploaded_first(gcs, url):
    with open_run_dir(url) as run_dir:
        with pytest.raises(KeyError), run_dir.sent_if_it_fails(), MetricsWriter(run_dir.local) as writer:
            write_and_fail(writer)
        assert [line["step"] for line in lines(gcs, url)] == [1]


def test_two_processes_of_a_host_write_one_file_and_lose_nothing(gcs, url):
    with open_run_dir(url) as one, open_run_dir(url) as two:
        assert one.local != two.local
        writers = [MetricsWriter(run_dir.local, process=index) for index, run_dir in enumerate((one, two))]
        for step in range(3):
            for writer, run_dir in zip(writers, (one, two), strict=True):
                writer.write(step, {"loss/train": 0.5})
                assert run_dir.spool.flush()
        for writer in writers:
            writer.close()
    assert sorted((line["process"], line["step"]) for line in lines(gcs, url)) == [
        (p, s) for p in (0, 1) for s in range(3)
    ]


@pytest.mark.parametrize("there", [b"", b"0\n"])
def test_two_that_append_at_the_same_moment_both_arrive(gcs, url, monkeypatch, there):
    if there:
        gcs.put(f"{url.removeprefix('gs://')}/metrics/host.jsonl", there)
    join = spool.Sender._join
    with open_run_dir(url) as one, open_run_dir(url) as two:
        for run_dir, line in ((one, "1\n"), (two, "2\n")):
            (run_dir.local / "metrics").mkdir()
            (run_dir.local / "metrics" / "host.jsonl").write_text(line)

        def late(sender, target, generation, new):  # after its check, the other process appends as much
            monkeypatch.setattr(spool.Sender, "_join", join)
            assert two.spool.flush()
            join(sender, target, generation, new)

        monkeypatch.setattr(spool.Sender, "_join", late)
        assert one.spool.flush()
    assert objects(gcs, url) == {"metrics/host.jsonl": there + b"2\n1\n"}


def test_only_complete_lines_are_sent_and_each_once(gcs, url):
    with open_run_dir(url) as run_dir:
        path = run_dir.local / "metrics" / "host.jsonl"
        path.parent.mkdir()
        path.write_text('{"step": 1}\n{"ste')
        run_dir.spool.flush()
        assert lines(gcs, url) == [{"step": 1}]
        path.write_text('{"step": 1}\n{"step": 2}\n')
        run_dir.spool.flush()
        before = len(gcs.requests)
        run_dir.spool.flush()
        assert len(gcs.requests) == before
    assert lines(gcs, url) == [{"step": 1}, {"step": 2}]


def test_growing_files_are_appended_and_not_sent_again(gcs, url):
    with open_run_dir(url) as run_dir:
        path = run_dir.local / "tensorboard" / "events.1"
        path.parent.mkdir()
        for part in (b"abc", b"abcdef"):
            path.write_bytes(part)
            assert run_dir.spool.flush()
            assert objects(gcs, url) == {"tensorboard/events.1": part}
    key = f"{url.removeprefix('gs://bucket/')}/tensorboard/events.1"
    assert ("POST", f"/storage/v1/b/bucket/o/{quote(key, safe='')}/compose") in gcs.requests


def test_an_answer_that_is_lost_does_not_write_a_line_twice(gcs, url, monkeypatch):
    with open_run_dir(url) as run_dir, MetricsWriter(run_dir.local) as writer:
        writer.write(1, {"loss/train": 0.5})
        assert run_dir.spool.flush()
        writer.write(2, {"loss/train": 0.5})
        gcs.lose_answers(1, "POST", ".*/compose")
        assert run_dir.spool.flush()
    assert [line["step"] for line in lines(gcs, url)] == [1, 2]


def test_an_answer_to_the_first_line_that_is_lost_does_not_write_it_twice(gcs, url):
    with open_run_dir(url) as run_dir, MetricsWriter(run_dir.local) as writer:
        writer.write(1, {"loss/train": 0.5})
        gcs.lose_answers(1, "POST", "/upload/")
        assert run_dir.spool.flush()
    assert [line["step"] for line in lines(gcs, url)] == [1]


def test_a_bucket_that_fails_does_not_hold_training_up_and_the_next_start_sends_the_rest(
    gcs, url, monkeypatch, caplog, tmp_path
):
    monkeypatch.setattr(spool, "EVERY_S", 0.05)
    with caplog.at_level(logging.WARNING), open_run_dir(url) as run_dir, MetricsWriter(run_dir.local) as writer:
        writer.write(1, {"loss/train": 0.5})
        gcs.trouble("POST", ".*", 403, "the account may not")
        began = time.monotonic()
        for step in range(2, 50):
            writer.write(step, {"loss/train": 0.5})
            time.sleep(0.005)
        assert time.monotonic() - began < 5
    assert caplog.text.count("cannot be written, retrying: permission denied (the account may not)") == 1
    [left] = spools(tmp_path)
    assert f"not all metrics and samples were uploaded; they are in {left}" in caplog.text
    gcs.troubles.clear()
    with open_run_dir(url) as run_dir, MetricsWriter(run_dir.local) as writer:
        writer.write(50, {"loss/train": 0.5})
    assert [line["step"] for line in lines(gcs, url)] == list(range(1, 51))
    assert spools(tmp_path) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the watch's SystemExit
def test_a_run_that_hangs_sends_its_last_lines_before_it_ends(gcs, url, shards, monkeypatch):
    arrived, ended = [], threading.Event()

    def end(code):
        arrived.extend(lines(gcs, url))
        ended.set()
        raise SystemExit(code)  # of the watching thread only

    monkeypatch.setattr(hang, "os", SimpleNamespace(_exit=end))
    monkeypatch.setattr(hang, "faulthandler", Mock())
    monkeypatch.setattr(hang, "logging", Mock())
    next_batch = Stream.next

    def stuck(stream):
        if stream.state()["step"] == 2:
            assert ended.wait(20)
            raise RuntimeError("as if it had not been ended")
        return next_batch(stream)

    monkeypatch.setattr(Stream, "next", stuck)
    run = {"run_dir": url, "save_every_steps": 0, "hang_s": 0.2}
    with pytest.raises(RuntimeError, match="as if it had not been ended"):
        train(with_sections(TINY, data={"data": str(shards)}, run=run))
    assert [line["step"] for line in arrived if "loss/train" in line] == [1]
    assert [line["event"] for line in arrived if "event" in line] == ["started", "hang", "failed"]


def test_local_files_are_not_uploaded(gcs, url, tmp_path):
    with open_run_dir(url) as run_dir:
        pause.ask(run_dir.local, pause.Request(place="/"))
        (run_dir.local / "samples" / ".step_00000001.partial").mkdir(parents=True)
        (run_dir.local / "samples" / ".step_00000001.partial" / "a.wav").write_text("")
        (run_dir.local / "writer.lock").touch()
        (run_dir.local / "profile").touch()
        (run_dir.local / "samples" / "a.wav").write_text("x")
        assert run_dir.spool.flush()
        assert list(objects(gcs, url)) == ["samples/a.wav"]
        (run_dir.local / "samples" / "a.wav").write_text("xy")
    assert objects(gcs, url) == {"samples/a.wav": b"xy"}


def test_the_disk_watchdog_finds_the_spool_as_a_run(gcs, url, tmp_path):
    with open_run_dir(url) as run_dir:
        root = os.open(run_dir.local.parent, os.O_RDONLY)
        assert run_folders(root) == [(run_dir.local.name,)]
        os.close(root)


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (
            ("GET", r"/storage/v1/b/bucket(\?|$)", 403, "no buckets.get"),
            r"permission denied \(no buckets.get\): the account needs roles",
        ),
        (("POST", "/upload", 403, "no objects.create"), r"permission denied \(no objects.create\)"),
        (("DELETE", ".*", 403, "no objects.delete"), r"permission denied \(no objects.delete\)"),
        (("GET", ".*", 401, "Anonymous caller"), r"no valid credentials \(Anonymous caller, 401\): gcloud auth"),
    ],
)
def test_an_unusable_bucket_is_reported_first(gcs, url, trouble, said):
    gcs.trouble(*trouble)
    with pytest.raises(OSError, match=rf"^{url}: {said}") as raised:
        train(with_sections(TINY, data={"data": "no such data"}, run={"run_dir": url}))
    assert "\n" not in str(raised.value)


def test_a_missing_bucket_is_reported(gcs):
    with pytest.raises(
        FileNotFoundError, match="gs://other/run: there is no bucket other: create it, or correct the name"
    ):
        check_run_dir("gs://other/run")


def test_a_bucket_that_does_not_answer_is_not_waited_for_long(gcs, url, monkeypatch):
    monkeypatch.setattr(buckets, "CHECK_S", 0.2)
    gcs.delay_s = 1.0
    began = time.monotonic()
    with pytest.raises(OSError, match="no answer within 0 s"):
        check_run_dir(url)
    assert time.monotonic() - began < 0.9
    gcs.delay_s = 0.0


def test_an_unsupported_location_is_rejected(gcs, url):
    with pytest.raises(ValueError, match="s3://bucket/run: a run directory must be a local directory or gs://"):
        check_run_dir("s3://bucket/run")
    with pytest.raises(ValueError, match="copy the file to a local disk first"):
        load_weights("gs://bucket/model.safetensors")
    with pytest.raises(FileNotFoundError, match=f"{url}: no checkpoint found"):
        load_weights(url)


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    buckets._filesystem.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"gs://bucket/run: .*pip install 'echotts\[gcs\]'"):
        check_run_dir("gs://bucket/run")


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(600)
def test_two_processes_write_one_run_in_a_bucket_one_resumes_it_and_if_both_fail_both_log_why(
    gcs, url, flags, shards, tmp_path
):
    environment = gcs.environment | {"XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]}

    def group(count: int, steps: int, **more) -> Group:
        asked = flags(url, f"--data={shards}", f"--steps={steps}", "--run.log_every=1", "--run.skips=0")
        return Group(tmp_path / f"to {steps}", count, 2 // count, *asked, environment=environment, **more)

    with group(2, 4) as pair:
        assert pair.codes() == [0, 0], pair.said()
    with group(1, 6) as alone:
        assert alone.codes() == [0], alone.said()
    assert "resuming after step 4, " in alone.said()
    losses = [(line["step"], line["process"]) for line in lines(gcs, url) if "loss/train" in line]
    assert sorted(losses) == sorted([(step, process) for step in range(1, 5) for process in (0, 1)] + [(5, 0), (6, 0)])
    assert names(url)[0] == "step_00000006"
    assert spools(tmp_path) == []

    with group(2, 8, poisons={1: {7: math.nan}}) as pair:
        assert pair.codes() == [1, 1], pair.said()
    failed = [line for line in lines(gcs, url) if line.get("event") == "failed"]
    assert sorted((line["step"], line["process"]) for line in failed) == [(7, 0), (7, 1)]
    assert names(url)[0] == "step_00000006"
    assert ("POST", "/storage/v1/b") not in gcs.requests  # buckets are never created
