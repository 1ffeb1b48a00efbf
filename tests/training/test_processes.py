"""Several processes of one run: alike or refused, the same losses as alone, and out at the same step."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from echotts.training import processes
from echotts.training.processes import ProcessesError, check_alike, config_hash
from tests.training.conftest import TINY, with_sections
from tests.training.test_command import SMALL

ROOT = Path(__file__).parents[2]
SAME = {"code": "abc", "jax": "0.10.2", "host": "a"}

# Each of two processes has one device; together they have the mesh that one process with two has.
START = """
import jax, numpy, runpy, sys
import echotts.cli.train as command
class Said:
    def save(self, path):
        path.write_text("said")
def speak(weights, sentence, seed, voice):
    from echotts.training.samples import Spoken
    assert all(numpy.isfinite(numpy.asarray(leaf)).all() for leaf in jax.tree.leaves(weights.params))
    return Spoken(Said(), None if voice is None else Said())
command.make_speaker = lambda config: speak if config.run.sentences else None
jax.config.update("jax_num_cpu_devices", int(sys.argv.pop(1)))
sys.argv[0] = "train_pretrain.py"
runpy.run_path("train_pretrain.py", run_name="__main__")
"""


QUICK = {
    "OMP_NUM_THREADS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}


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
        ({"processes": 2, "coordinator": "a:1", "process_index": 2}, "process_index 2 of 2 processes: count from 0"),
        ({"coordinator": "here"}, "coordinator 'here': give HOST:PORT of process 0, or auto"),
        ({"heartbeat_s": 0}, "heartbeat_s 0 must be above 0"),
    ],
)
def test_wrong_process_settings_are_refused(keys, said) -> None:
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(TINY.run, **keys)


def test_alone_nothing_is_joined_and_errors_come_out_as_they_are() -> None:
    processes.join(TINY)
    with pytest.raises(KeyError), processes.all_end_at_once():
        raise KeyError("x")


class Group:
    """Processes of one run on this machine, each with its log; none outlives the `with`."""

    def __init__(
        self,
        folder: Path,
        count: int,
        devices: int,
        *flags: str,
        each: dict[int, list[str]] | None = None,
        homes: bool = False,  # a home folder of its own for each
    ):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        self.logs = [folder / f"log{index}" for index in range(count)]
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        self.processes = []
        for index in range(count):
            own = [f"--run.process_index={index}", *(each or {}).get(index, [])]
            joined = [f"--run.coordinator={address}", f"--run.processes={count}", *own] if count > 1 else []
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", START, str(devices), *SMALL.split(), *flags, *joined],
                    cwd=ROOT,
                    env=environment | QUICK | ({"HOME": str(folder / f"home{index}")} if homes else {}),
                    stderr=self.logs[index].open("w"),
                    stdout=subprocess.DEVNULL,
                )
            )

    def codes(self, timeout_s: float = 400) -> list[int]:
        """The exit codes, after all have ended."""
        return [process.wait(timeout=timeout_s) for process in self.processes]

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def said(self) -> str:
        return "\n".join(path.read_text() for path in self.logs)

    def until(self, words: str, timeout_s: float = 400) -> None:
        """Waits until every log has these words."""
        end = time.monotonic() + timeout_s
        while not all(words in path.read_text() for path in self.logs):
            assert time.monotonic() < end, self.said()
            assert all(process.poll() is None for process in self.processes), self.said()
            time.sleep(0.1)


def losses(run_dir: Path) -> dict[int, float]:
    """The loss of each step; every process of this machine writes to the same file, and all must say the same."""
    (path,) = (run_dir / "metrics").glob("*.jsonl")
    found: dict[int, float] = {}
    for line in map(json.loads, path.read_text().splitlines()):
        if "loss/train" in line:
            assert found.setdefault(line["step"], line["loss/train"]) == line["loss/train"]
    return found


@pytest.fixture
def flags(shards, compile_once, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(compile_once))
    return lambda run_dir, steps: [f"--data={shards}", f"--run_dir={run_dir}", f"--steps={steps}", "--run.seed=3"]


@pytest.mark.multiprocess
@pytest.mark.timeout(1200)
def test_two_processes_train_as_one_stop_together_on_sigterm_and_resume(tmp_path, flags, shards) -> None:
    with Group(tmp_path, 1, 2, *flags(tmp_path / "alone", 4000)) as alone:
        alone.until("step 3/4000: loss")
        alone.processes[0].terminate()
        assert alone.codes() == [0], alone.said()

    with Group(tmp_path, 2, 1, *flags(tmp_path / "pair", 4000)) as pair:
        pair.until("step 3/4000: loss")
        assert "process 1 of 2 on " in pair.logs[1].read_text()
        assert ": 1 of 2 devices (cpu)" in pair.logs[0].read_text()
        (tmp_path / "pair" / "profile").touch()
        pair.until("profiler trace of steps")
        pair.processes[1].send_signal(signal.SIGTERM)  # one alone is told
        assert pair.codes() == [0, 0], pair.said()
    (metrics,) = (tmp_path / "pair" / "metrics").iterdir()
    lags = {line["process"]: line["host/lag_steps"] for line in map(json.loads, metrics.open()) if "loss/train" in line}
    assert lags.keys() == {0, 1} and all(0 <= lag <= 2 for lag in lags.values())
    (traced,) = (tmp_path / "pair" / "profiles").iterdir()  # the same steps in both
    assert [path.name[:4] for path in sorted(traced.iterdir())] == ["000_", "001_"]
    (saved,) = [path.name for path in (tmp_path / "pair" / "checkpoints").iterdir()]
    step = int(saved.split("_")[1])
    assert step < 4000

    more = [
        "--run.sentences=ab",
        "--run.sample_references=heldout",
        "--run.sample_every=1",
        f"--heldout={shards}",
        "--run.eval_every=1",
    ]
    steps = flags(tmp_path / "pair", step + 2)
    with Group(tmp_path, 2, 1, *steps, *more, "--run.eval_batches=1") as again:
        assert again.codes() == [0, 0], again.said()
    assert again.said().count(f"resuming after step {step}, ") == 2
    assert (tmp_path / "pair" / "samples" / f"step_{step + 2:08d}" / "00_ab.wav").read_text() == "said"
    assert (tmp_path / "pair" / "samples" / f"step_{step + 2:08d}" / "reference_00.wav").read_text() == "said"
    assert f"step {step + 2}: held-out loss" in again.logs[1].read_text()
    one, two = losses(tmp_path / "alone"), losses(tmp_path / "pair")
    assert max(two) == step + 2
    for number in range(1, 4):
        assert two[number] == pytest.approx(one[number], rel=1e-5)


@pytest.mark.multiprocess
@pytest.mark.timeout(600)
def test_processes_with_different_settings_refuse_to_start(tmp_path, flags) -> None:
    odd = {1: ["--optim.learning_rate=0.5"]}
    with Group(tmp_path, 2, 1, *flags(tmp_path / "run", 6), each=odd) as pair:
        assert 0 not in pair.codes()
    said = r"the processes are not alike: configuration \w+ in process 1 \(.*\), \w+ in process 0"
    assert re.search(said, pair.said()), pair.said()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(600)
def test_a_run_directory_that_only_one_host_sees_is_refused(tmp_path, flags) -> None:
    with Group(tmp_path, 2, 1, *flags("~/run", 6), homes=True) as pair:
        assert 0 not in pair.codes()
    assert re.search(r"process 1 \(.*\) cannot see what process 0 writes there", pair.said()), pair.said()


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(600)
def test_a_process_whose_partner_never_comes_says_so_and_ends(tmp_path, flags) -> None:
    with Group(tmp_path, 2, 1, *flags(tmp_path / "run", 6), "--run.join_timeout_s=20") as pair:
        pair.processes[0].kill()
        assert pair.processes[1].wait(timeout=400) != 0
    assert re.search(r"process 1 of 2 on .* waited \d+ s for the others at localhost", pair.logs[1].read_text())
