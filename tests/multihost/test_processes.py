"""Several processes of one run: alike or refused, the same losses as alone, and out at the same step."""

import dataclasses
import json
import re
import signal
import time

import pytest

from echotts.multihost import processes
from echotts.multihost.processes import ProcessesError, check_alike, config_hash
from echotts.training.loop import train
from echotts.training.report import Reporter
from tests.data.fake_hub import REPOSITORY, FakeHub
from tests.multihost.group import MACHINE, Group, losses, metric_lines, record, saved_steps
from tests.tiny_training import TINY, with_sections
from tests.training.test_command import SMALL
from tests.training.test_loop import StopAfter

SAME = {"code": "abc", "jax": "0.10.2", "host": "a"}
LIKE_TINY = (
    "--optim.learning_rate=0.003 --optim.warmup_share=0.2 --optim.ema_decay=0.9 --optim.init=published "
    "--model.remat=none --run.seed=3 --steps=4000"
)
STEPS = 4000  # more than any test does: a schedule over other steps would be another program to compile


def test_processes_that_are_alike_may_start_on_different_hosts() -> None:
    check_alike([SAME, SAME | {"host": "b"}])


def test_each_difference_is_named_with_its_process() -> None:
    others = [SAME, SAME | {"host": "b", "jax": "0.10.1"}, {"code": "abd", "host": "c"}]
    with pytest.raises(ProcessesError) as caught:
        check_alike(others)
    for words in (
        "jax 0.10.1 in process 1 (b), 0.10.2 in process 0",
        "code abd in process 2 (c), abc in process 0",
        "jax (absent) in process 2 (c)",
    ):
        assert words in str(caught.value)


def test_the_configuration_is_alike_whatever_a_processes_index_is() -> None:
    one = with_sections(TINY, run={"coordinator": "a:1", "processes": 2, "process_index": 0})
    assert config_hash(one) == config_hash(with_sections(one, run={"process_index": 1}))
    assert config_hash(one) != config_hash(with_sections(one, run={"seed": 1}))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"processes": 2}, "processes 2 need --run.coordinator"),
        (
            {"processes": 2, "coordinator": "a:1", "process_index": 2},
            "process_index 2 must be at least 0 and below processes 2",
        ),
        ({"coordinator": "here"}, "coordinator 'here': give HOST:PORT of process 0, or auto"),
        ({"heartbeat_s": 0}, "heartbeat_s 0 must be above 0"),
    ],
)
def test_wrong_process_settings_are_refused(keys, said) -> None:
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(TINY.run, **keys)


def test_a_single_process_does_not_join_and_raises_errors_unchanged() -> None:
    processes.join(TINY)
    with pytest.raises(KeyError), processes.all_end_at_once():
        raise KeyError("x")


def run_flags(compiled, monkeypatch, *every):
    """(run directory, more flags) -> the flags of a run of the tiny model, with `every` in all of them."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(compiled))
    return lambda run_dir, *more: [*SMALL.split(), *LIKE_TINY.split(), f"--run_dir={run_dir}", *every, *more]


@pytest.fixture
def flags(compile_once, monkeypatch):
    return run_flags(compile_once, monkeypatch)


@pytest.fixture
def hub(shards, monkeypatch):
    """The shards on a server; the run of one process reads those on the disk."""
    with FakeHub(token="hf_secret") as server:
        server.commit({f"train/{path.name}": path.read_bytes() for path in shards.iterdir()})
        yield server


def environment(hub, **more):
    return {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0"} | more


def alone(folder, shards, steps, monkeypatch):
    """(batches, losses) of a run of one process with one device, in this one, which nobody interrupts."""
    folder.mkdir()
    monkeypatch.setattr(Reporter, "launched", record(folder / "trained.jsonl", Reporter.launched))
    config = with_sections(
        TINY,
        data={"data": str(shards)},
        optim={"steps": STEPS},
        run={"run_dir": str(folder), "seed": 3, "save_every_steps": 0},
    )
    train(config, stop=StopAfter(steps))
    lines = map(json.loads, (folder / "trained.jsonl").read_text().splitlines())
    return {step: list(rows.values()) for step, rows, _ in lines}, losses(folder)


def stopped_at(run_dir, event="stopped"):
    """The step after which each process last reported to have stopped."""
    return {line["process"]: line["step"] for line in metric_lines(run_dir) if line.get("event") == event}


@pytest.mark.multiprocess
@pytest.mark.network_fake
@pytest.mark.timeout(600)
def test_two_processes_train_as_one_whatever_ends_them(tmp_path, flags, shards, hub, monkeypatch) -> None:
    """Stopped, then one process killed, then stopped again: batches and losses equal those of an uninterrupted run."""
    run_dir = tmp_path / "run"
    data = [f"--data=hf://datasets/{REPOSITORY}/train", f"--data.cache_dir={tmp_path}/cache", "--data.cache_gb=0.1"]

    def pair(name, *more, **options):
        return Group(tmp_path / name, 2, 2, *flags(run_dir, *data, *more), environment=environment(hub), **options)

    with pair("first") as first:
        first.until_step(3)
        assert "process 1 of 2 on " in first.logs[1].read_text()
        assert ": 2 of 4 devices (cpu)" in first.logs[0].read_text()
        (run_dir / "profile").touch()
        first.until("profiler trace of steps")
        told = time.monotonic()
        first.send(1, signal.SIGTERM)  # only one is told
        assert first.codes() == [75, 75], first.said()
        assert time.monotonic() - told < 10 * MACHINE
    lags = {line["process"]: line["host/lag_steps"] for line in metric_lines(run_dir) if "loss/train" in line}
    assert lags.keys() == {0, 1} and all(0 <= lag <= 2 for lag in lags.values())
    (traced,) = (run_dir / "profiles").iterdir()  # the same steps in both
    assert [path.name[:4] for path in sorted(traced.iterdir())] == ["000_", "001_"]
    (stop,) = saved_steps(run_dir)
    assert stopped_at(run_dir) == {0: stop, 1: stop}
    assert len([request for request in hub.requests if "/tree/" in request.path]) == 1  # one process listed

    with pair("second", "--run.save_every_steps=2", "--run.heartbeat_s=10") as second:
        second.until_step(stop + 5)
        killed = time.monotonic()
        second.send(1, signal.SIGKILL)
        assert 0 not in second.codes()
        assert time.monotonic() - killed < (10 + 10) * MACHINE
    assert second.said().count(f"resuming after step {stop}, ") == 2
    whole = saved_steps(run_dir)[-1]
    assert whole > stop

    speech = ["--run.sentences=ab", "--run.sample_references=heldout", "--run.sample_every=1"]
    measured = [f"--heldout={shards}", "--run.eval_every=1", "--run.eval_batches=1"]
    by_the_clock = ["--run.save_every_minutes=0.002", "--run.save_every_steps=0"]
    with pair("third", *speech, *measured, *by_the_clock, spoken=True) as third:
        third.until_step(whole + 8)
        third.send(0, signal.SIGTERM)
        assert third.codes() == [75, 75], third.said()
    assert third.said().count(f"resuming after step {whole}, ") == 2
    last = saved_steps(run_dir)[-1]
    saves = [(line["process"], line["step"]) for line in metric_lines(run_dir) if "checkpoint/save_s" in line]
    one, other = ([step for process, step in saves if process == index and step > whole] for index in (0, 1))
    assert one == other and len(one) > 1 and one[-1] == last  # process 0's clock decides
    spoken = run_dir / "samples" / f"step_{last - 1:08d}"  # after the last step they save and leave at once
    assert (spoken / "00_ab.wav").read_text() == (spoken / "reference_00.wav").read_text() == "said"
    assert f"step {last - 1}: held-out loss" in third.logs[1].read_text()

    batches, expected = alone(tmp_path / "alone", shards, last, monkeypatch)
    parts = [group.batches() for group in (first, second, third)]
    assert [(min(part), max(part)) for part in (parts[0], parts[2])] == [(1, stop), (whole + 1, last)]
    assert min(parts[1]) == stop + 1
    for part in parts:
        assert part == {step: batches[step] for step in part}
    assert losses(run_dir) == pytest.approx(expected, rel=1e-4)


@pytest.mark.multiprocess
@pytest.mark.timeout(600)
def test_processes_with_different_settings_refuse_to_start(tmp_path, flags, shards) -> None:
    odd = {1: ["--optim.learning_rate=0.5"]}
    with Group(tmp_path, 2, 1, *flags(tmp_path / "run", f"--data={shards}"), each=odd) as pair:
        assert 0 not in pair.codes()
    said = r"the processes differ: configuration \w+ in process 1 \(.*\), \w+ in process 0"
    assert re.search(said, pair.said()), pair.said()
    assert not (tmp_path / "run").exists()


@pytest.mark.multiprocess
@pytest.mark.network_fake
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("revision", "token", "gigabytes", "said"),
    [
        ("@v9", "hf_secret", 0.1, "org/speech has no revision v9"),
        ("", "hf_other", 0.1, "or your token may not read it"),
        ("", "hf_secret", 1e-5, r"1e-05 GB \(--data\.cache_gb\) is too small"),
    ],
)
def test_unavailable_data_end_all_processes_with_one_line(
    tmp_path, flags, hub, revision, token, gigabytes, said
) -> None:
    where = [f"--data=hf://datasets/{REPOSITORY}{revision}/train", f"--data.cache_dir={tmp_path}/cache"]
    asked = flags(tmp_path / "run", *where, f"--data.cache_gb={gigabytes}")
    with Group(tmp_path / "pair", 2, 1, *asked, environment=environment(hub, HF_TOKEN=token)) as pair:
        assert 0 not in pair.codes(), pair.said()
    for index, log in enumerate(pair.logs):
        lines = [line for line in log.read_text().splitlines() if line.startswith(f"process {index} exits: ")]
        assert len(lines) == 1 and re.search(said, lines[0]), log.read_text()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(600)
def test_a_run_directory_visible_to_only_one_host_is_rejected(tmp_path, flags, shards) -> None:
    with Group(tmp_path, 2, 1, *flags("~/run", f"--data={shards}"), homes=True) as pair:
        assert 0 not in pair.codes()
    assert re.search(r"process 1 \(.*\) cannot see what process 0 writes there", pair.said()), pair.said()


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(600)
def test_a_process_whose_partner_never_joins_reports_it_and_exits(tmp_path, flags, shards) -> None:
    late = flags(tmp_path / "run", f"--data={shards}", "--run.join_timeout_s=20")
    with Group(tmp_path, 2, 1, *late) as pair:
        pair.processes[0].kill()
        assert 0 not in pair.codes()
    assert re.search(r"process 1 of 2 on .* waited \d+ s for the others at localhost", pair.logs[1].read_text())
