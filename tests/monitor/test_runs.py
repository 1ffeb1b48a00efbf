"""Status, hosts, checkpoints and configuration of running and ended, complete and partial, local and bucket runs."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from echotts.monitor import runs as runs_module
from echotts.monitor.folders import LocalFolder, open_folder
from echotts.monitor.runs import Library, differences
from tests.monitor.fake_run import event_line, make_run, train_line, write_lines

END = 1_800_000_000.0


def only(run_dir, **options):
    [run] = Library([str(run_dir)], None, **options).runs()
    return run


def say(run_dir, *lines, host="host-0"):
    write_lines(run_dir / "metrics" / f"{host}.jsonl", iter(lines))


def test_a_live_run_runs_and_one_that_went_silent_is_stale(tmp_path):
    run = only(make_run(tmp_path / "run", end=END))
    status = run.status(END + 10)
    assert (status.name, status.step, status.steps, status.progress) == ("running", 2000, 5000, 0.4)
    assert status.left_s == 1500.0 and status.last_time == pytest.approx(END, abs=1)
    assert status.started_time == END - 1000
    assert run.status(END + 119).name == "running"
    stale = run.status(END + 7200 * 2)
    assert stale.name == "stale" and stale.why.startswith("no line for 4 h")


@pytest.mark.parametrize("ending", ["finished", "failed", "stopped"])
def test_an_ended_run_has_its_status_and_reason(tmp_path, ending):
    status = only(make_run(tmp_path / "run", end=END, ending=ending)).status(END + 10**6)
    assert status.name == ending
    assert status.why == ("OSError: disk quota exceeded" if ending == "failed" else "step 2000")
    assert status.left_s is None


def test_a_run_that_continues_after_an_ending_is_running(tmp_path):
    run_dir = make_run(tmp_path / "run", end=END, ending="stopped")
    say(run_dir, event_line(2000, END + 500, "resumed", "after step 2000"))
    assert only(run_dir).status(END + 510).name == "running"
    say(run_dir, train_line(2010, END + 600))
    status = only(run_dir).status(END + 610)
    assert (status.name, status.step) == ("running", 2010)
    older = make_run(tmp_path / "older", end=END, ending="stopped")  # of a trainer that writes only numbers
    say(older, train_line(2010, END + 600))
    assert only(older).status(END + 610).name == "running"


def test_after_a_step_back_the_step_is_the_one_the_run_is_at(tmp_path):
    run_dir = make_run(tmp_path / "run", end=END)
    say(run_dir, train_line(1500, END + 50), train_line(1510, END + 55))
    assert only(run_dir).status(END + 60).step == 1510


def test_a_last_step_without_events_is_an_end(tmp_path):
    run_dir = tmp_path / "run"
    say(run_dir, train_line(100, END))
    (run_dir / "config.json").write_text('{"optim": {"steps": 100}}')
    assert only(run_dir).status(END + 10**5).name == "finished"


def test_an_empty_directory_and_one_with_nothing_readable_are_empty(tmp_path):
    (tmp_path / "run").mkdir()
    assert only(tmp_path / "run").status(END).name == "empty"
    (tmp_path / "run" / "metrics").mkdir()
    (tmp_path / "run" / "metrics" / "host.jsonl").write_text('{"time": 17')
    (tmp_path / "run" / "config.json").write_text("{")
    run = only(tmp_path / "run")
    assert run.status(END).name == "empty" and run.status(END).why == "no metrics lines yet"
    assert run.config() == {} and run.hosts() == [] and run.checkpoints() == []
    assert any("no config.json" in text for text in run.missing([]))


def test_how_long_silence_may_last_follows_the_lines_or_the_flag(tmp_path):
    say(tmp_path, *(train_line(step, END + 100 * step) for step in range(1, 11)))
    last = END + 1000
    assert only(tmp_path).status(last + 450).name == "running"  # a line every 100 s
    assert only(tmp_path).status(last + 550).name == "stale"
    assert only(tmp_path, stale_s=5.0).status(last + 6).name == "stale"


def test_a_run_copied_from_elsewhere_reads_the_same(tmp_path):
    first = only(make_run(tmp_path / "run", end=END, ending="finished"))
    copied = only(shutil.copytree(tmp_path / "run", tmp_path / "other" / "copy"))
    assert copied.status(END) == first.status(END)
    assert copied.hosts() == first.hosts()
    assert copied.history().names() == first.history().names()


def test_a_host_without_process_0_says_where_the_metrics_are(tmp_path):
    said = "a new run; process 3 of 8, the first is on pod-w-5"
    say(tmp_path, event_line(0, END, "started", said, 3), train_line(10, END + 5, 3), host="pod-w-1")
    run = only(tmp_path)
    where = run.status(END + 6).metrics_where
    assert "process 3 on host pod-w-1" in where and "pod-w-5" in where
    assert run.history().points("loss/train").steps.tolist() == [10]  # what it has is shown
    assert only(make_run(tmp_path / "whole")).status(END).metrics_where is None


def test_hosts_have_their_lag_and_the_watchdog_metrics(tmp_path):
    rows = only(make_run(tmp_path / "run", end=END)).hosts()
    assert [(row["host"], row["process"], row["step"], row["lag_steps"]) for row in rows] == [
        ("host-0", 0, 2000, 0),
        ("host-1", 1, 1980, 20),
    ]
    assert rows[0]["numbers"]["host/memory_bytes"] == 3_002_000_000
    assert rows[1]["numbers"]["data/rejected_empty_text"] == 2
    assert rows[1]["numbers"]["host/disk_free_share"] == 0.5  # the trainer's is newer than the watchdog's 0.3


def test_hosts_at_the_same_line_have_their_own_reported_lag(tmp_path):
    say(tmp_path, train_line(10, END), host="a")
    say(tmp_path, train_line(10, END, 1) | {"host/lag_steps": 2}, host="b")
    say(tmp_path, train_line(9, END, 2) | {"host/lag_steps": 0}, host="c")  # it has written nothing about step 10
    assert [row["lag_steps"] for row in only(tmp_path).hosts()] == [0, 2, 1]


def test_checkpoints_are_complete_or_not(tmp_path):
    run_dir = make_run(tmp_path / "run")
    (run_dir / "checkpoints" / "step_00000500" / "meta" / "metadata").unlink()
    (run_dir / "checkpoints" / "step_00001000.broken").mkdir()
    (run_dir / "checkpoints" / "notes.txt").write_text("")
    found = only(run_dir).checkpoints()
    assert [(row["step"], row["complete"]) for row in found] == [
        (2001, False),
        (2000, True),
        (1500, True),
        (1000, True),
        (500, False),
    ]
    assert found[1]["bytes"] == 10_002


def test_runs_below_a_root_appear_by_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(runs_module, "FOLDERS_S", 0.0)
    make_run(tmp_path / "one")
    (tmp_path / "notes").mkdir()
    library = Library([], str(tmp_path))
    assert [run.name for run in library.runs()] == ["one"]
    make_run(tmp_path / "two")
    assert [run.name for run in library.runs()] == ["one", "two"]
    assert library.find(library.runs()[1].id) is library.runs()[1]
    assert library.find("../one") is None


def test_two_runs_with_the_same_name_are_distinguished(tmp_path):
    library = Library([str(make_run(tmp_path / name / "run")) for name in ("a", "b")], None)
    assert [run.name for run in library.runs()] == ["run", "b/run"]


def test_the_least_recently_used_histories_are_freed(tmp_path, monkeypatch):
    monkeypatch.setattr(runs_module, "HISTORIES_BYTES", 1)
    library = Library([str(make_run(tmp_path / name)) for name in ("a", "b")], None)
    first, second = library.runs()
    for run in (first, second):
        run.history()
    library.make_room()
    assert first.opened is None and second.opened is not None
    assert first.history().points("loss/train").steps[-1] == 2000  # read again


def test_a_large_run_shows_a_rough_history_until_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(runs_module, "LARGE_BYTES", 1000)
    monkeypatch.setattr("echotts.monitor.lines.SAMPLE_BYTES", 1000)
    run = only(make_run(tmp_path / "run"))
    rough = run.history()
    assert 0 < len(rough.points("loss/train").steps) < 200
    whole = run.history(whole=True)
    assert len(whole.points("loss/train").steps) == 200
    assert run.history() is whole and not run.is_rough
    assert whole.newer("loss/train", rough.cursor) is None  # the page requests everything again


def test_configurations_differ_by_key():
    one = {"optim": {"learning_rate": 0.1, "steps": 5}, "data": {"buckets": [{"frames": 1}]}}
    other = {"optim": {"learning_rate": 0.2, "steps": 5}, "data": {"buckets": [{"frames": 1}]}, "preset": "demo"}
    assert differences({"a": one, "b": other}) == [
        {"key": "optim.learning_rate", "values": {"a": 0.1, "b": 0.2}},
        {"key": "preset", "values": {"a": None, "b": "demo"}},
    ]
    assert differences({}) == []


def test_nothing_is_read_through_links_that_lead_out(tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "host.jsonl").write_text('{"time": 1, "step": 1, "x/secret": 1}\n')
    for name in ("a", "b"):
        (tmp_path / name / "metrics").mkdir(parents=True)
    (tmp_path / "a" / "metrics" / "host.jsonl").symlink_to(secret / "host.jsonl")
    (tmp_path / "b" / "metrics").rmdir()
    (tmp_path / "b" / "metrics").symlink_to(secret)
    os.mkfifo(tmp_path / "a" / "metrics" / "pipe.jsonl")
    for name in ("a", "b"):
        run = only(tmp_path / name)
        assert run.ends() == [] and run.history().names() == {}
    folder = LocalFolder(tmp_path / "a")
    assert folder.read("metrics/host.jsonl", 0, 10) == folder.read("../secret/host.jsonl", 0, 10) == b""
    assert folder.read("metrics/pipe.jsonl", 0, 10) == b"" and folder.stat("metrics/pipe.jsonl") is None


def test_a_run_in_a_bucket_reads_like_a_local_one(tmp_path):
    import fsspec

    local = make_run(tmp_path / "run", steps=600, end=END)
    bucket = fsspec.filesystem("memory")
    bucket.put(str(local), "/bucket/runs/run", recursive=True)
    run, other = only("memory://bucket/runs/run"), only(local)
    assert run.name == "run"
    assert run.status(END) == other.status(END) and run.config() == other.config()
    assert run.history().names() == other.history().names()
    assert [(row["step"], row["complete"]) for row in run.checkpoints() if row["complete"]] == [(500, True)]
    with bucket.open("/bucket/runs/run/metrics/host-0.jsonl", "ab") as file:
        file.write(json.dumps(train_line(610, END + 5)).encode() + b"\n")
    history = run.history()
    history.refresh()
    assert history.points("loss/train").steps[-1] == 610 and history.cuts == 0
    [found] = Library([], "memory://bucket/runs").runs()
    assert found.name == "run"


def test_a_bucket_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ModuleNotFoundError, match=r"gs://bucket/run: .*pip install 'echotts\[gcs\]'"):
        open_folder("gs://bucket/run")
    with pytest.raises(ValueError, match="nothing://x: "):
        open_folder("nothing://x")
    with pytest.raises(FileNotFoundError, match="no such directory"):
        open_folder("/nowhere/at/all")


def test_the_dashboard_never_imports_jax():
    code = (
        "import sys, echotts.cli.monitor, echotts.monitor.serve, echotts.monitor.samples, soundfile\n"
        "print([name for name in ('jax', 'flax', 'scipy', 'torch', 'orbax') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
