"""Processes of one run on this machine: the real training program, over CPU collectives, with its batches recorded.

They are forked by a server that has imported everything already (multiprocessing's forkserver), so that tests which
start many processes do not import for minutes. JAX's runtime is not initialised before the fork.
"""

import atexit
import hashlib
import json
import multiprocessing
import os
import re
import runpy
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MACHINE = 3  # how much slower than a quiet machine this one may be, where a test holds a limit of seconds
QUICK = {
    "jax_persistent_cache_min_compile_time_secs": 0.2,
    "jax_disable_most_optimizations": True,
}
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["echotts.cli.train", "echotts.training.loop"])


class Group:
    """`count` processes of one run with `devices` each, ended with the context.

    `folder` gets a log and a list of batches (`trained`) of each. `each` has further flags of individual processes,
    `homes` their home folders, `poisons` factors for `poisoned`. `order` permutes the devices of the mesh, as on a TPU
    slice, and adds each step's loss by row to the list (`row_losses`).
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        devices: int,
        *flags: str,
        each: Mapping[int, list[str]] | None = None,
        homes: bool = False,
        environment: Mapping[str, str] | None = None,
        spoken: bool = False,
        poisons: Mapping[int, dict[int, float]] | None = None,
        order: Sequence[int] | None = None,
    ):
        folder.mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        self.logs = [folder / f"log{index}" for index in range(count)]
        self._lists = [folder / f"trained{index}.jsonl" for index in range(count)]
        cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
        self.processes = []
        for index in range(count):
            own = [f"--run.process_index={index}", *(each or {}).get(index, [])]
            joined = [f"--run.coordinator={address}", f"--run.processes={count}", *own] if count > 1 else []
            process = FORKED.Process(
                target=_run,
                args=(self.logs[index], self._lists[index], [*flags, *joined]),
                kwargs={
                    "options": QUICK | {"jax_num_cpu_devices": devices, "jax_compilation_cache_dir": cache},
                    "environment": dict(environment or {}) | ({"HOME": str(folder / f"home{index}")} if homes else {}),
                    "spoken": spoken,
                    "factors": (poisons or {}).get(index, {}),
                    "order": order,
                },
            )
            process.start()
            self.processes.append(process)

    def codes(self, timeout_s: float = 400) -> list[int]:
        """The exit codes, after all have ended."""
        end = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0))
            assert process.exitcode is not None, f"still running after {timeout_s} s\n{self.said()}"
        return [process.exitcode for process in self.processes]

    def send(self, index: int, number: signal.Signals) -> None:
        os.kill(self.processes[index].pid, number)

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def said(self) -> str:
        return "\n".join(path.read_text() for path in self.logs if path.exists())

    def until(self, words: str, timeout_s: float = 400) -> None:
        """Waits until every log has these words."""
        self._wait(lambda: all(path.exists() and words in path.read_text() for path in self.logs), timeout_s)

    def until_step(self, step: int, timeout_s: float = 400) -> None:
        """Waits until each process has launched this step."""
        self._wait(lambda: all(max(steps, default=0) >= step for steps in self.trained()), timeout_s)

    def trained(self) -> list[dict[int, list[str]]]:
        """Of each process, the hashes of the rows it gave to each step."""
        return [{step: list(rows.values()) for step, rows, _ in lines} for lines in self._listed()]

    def batches(self) -> dict[int, list[str]]:
        """The rows of the global batch of each step that all processes launched."""
        each = [{step: rows for step, rows, _ in lines} for lines in self._listed()]
        together = {}
        for step in sorted(set.intersection(*map(set, each))):
            rows = {row: name for mine in each for row, name in mine[step].items()}
            together[step] = [rows[row] for row in sorted(rows, key=int)]
        return together

    def row_losses(self) -> dict[int, list[float]]:
        """The loss of each row of the global batch at each step, as process 0 has it."""
        return {step: row_loss for step, _, row_loss in self._listed()[0]}

    def _listed(self) -> list[list[tuple[int, dict[str, str], list[float]]]]:
        texts = [path.read_text() if path.exists() else "" for path in self._lists]
        return [[json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()] for text in texts]

    def _wait(self, condition: Any, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, self.said()
            assert all(process.is_alive() for process in self.processes), self.said()
            time.sleep(0.02)


def losses(run_dir: Path) -> dict[int, float]:
    """The loss of each step; all processes of this machine write to the same file, and must agree.

    A step that was done twice, before and after a kill, must have the same loss.
    """
    found: dict[int, float] = {}
    for line in metric_lines(run_dir):
        if "loss/train" in line:
            assert found.setdefault(line["step"], line["loss/train"]) == line["loss/train"], line["step"]
    return found


def metric_lines(run_dir: Path) -> list[dict[str, Any]]:
    """All metrics lines; an incomplete one after a kill is skipped."""
    (path,) = (run_dir / "metrics").glob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def saved_steps(run_dir: Path) -> list[int]:
    """The committed checkpoints, oldest first."""
    names = [path.name for path in (run_dir / "checkpoints").glob("step_*")]
    return sorted(int(name[5:]) for name in names if re.fullmatch(r"step_\d+", name))


def record(path: Path, launched: Any, losses_too: bool = False) -> Any:
    """Reporter.launched, which also writes the step, a hash of each of this process's rows, and the losses of all."""

    def and_write(reporter: Any, step: int, samples_seen: int, fed: Any, numbers: Any) -> None:
        rows = dict(zip(fed.rows, hashes(fed.batch), strict=True))
        row_loss = numbers["row_loss"].addressable_data(0).tolist() if losses_too else []
        with path.open("a") as file:
            file.write(json.dumps([step, rows, row_loss]) + "\n")
        launched(reporter, step, samples_seen, fed, numbers)

    return and_write


def hashes(batch: Any) -> list[str]:
    """One for each row that this process has, over all arrays."""
    import jax
    import numpy as np

    digests: list[Any] = []
    for leaf in jax.tree.leaves(batch):
        parts = sorted(leaf.addressable_shards, key=lambda part: part.index[0].start or 0)
        rows = np.concatenate([np.asarray(part.data) for part in parts])
        digests = digests or [hashlib.sha256() for _ in rows]
        for digest, row in zip(digests, rows, strict=True):
            digest.update(row.tobytes())
    return [digest.hexdigest()[:16] for digest in digests]


def poisoned(next_batch: Any, factors: Mapping[int, float]) -> Any:
    """Stream.next, which multiplies the latents of one row of these steps' batches, however often they are read."""

    def and_poison(stream: Any) -> Any:
        batch, keys, bucket = next_batch(stream)
        if stream.state()["step"] in factors:
            batch.latent[2] *= factors[stream.state()["step"]]
        return batch, keys, bucket

    return and_poison


def permuted(make_mesh: Any, order: Sequence[int]) -> Any:
    """make_mesh, whose mesh has its devices in this order."""

    def and_permute(**ways: Any) -> Any:
        from jax.sharding import Mesh

        mesh = make_mesh(**ways)
        devices = mesh.devices.reshape(-1)[list(order)].reshape(mesh.devices.shape)
        return Mesh(devices, mesh.axis_names, axis_types=mesh.axis_types)

    return and_permute


class _Said:
    def save(self, path: Path) -> None:
        path.write_text("said")


def _speak(weights: Any, sentence: str, seed: int, voice: Any) -> Any:
    import jax
    import numpy as np

    from tests.tiny_training import Spoken

    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(weights.params))
    return Spoken(_Said(), None if voice is None else _Said())


def _run(
    log: Path,
    trained: Path,
    flags: list[str],
    options: dict[str, Any],
    environment: dict[str, str],
    spoken: bool,
    factors: dict[int, float],
    order: Sequence[int] | None,
) -> None:
    """The main function of a process: runs the program with these flags. It does not outlive the tests."""
    tests = multiprocessing.parent_process()
    assert tests is not None
    threading.Thread(target=lambda: (tests.join(), os._exit(3)), daemon=True).start()
    for target, number in ((log, 2), (Path(os.devnull), 1)):
        os.dup2(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.chdir(ROOT)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    os.environ.update(environment)
    import jax

    from echotts.data.stream.stream import Stream
    from echotts.evaluation import samples
    from echotts.training import mesh as meshes
    from echotts.training.report import Reporter

    for name, value in options.items():
        jax.config.update(name, value)
    if spoken:
        samples.make_speaker = lambda config: _speak
    Stream.next = poisoned(Stream.next, factors)
    Reporter.launched = record(trained, Reporter.launched, losses_too=order is not None)
    if order is not None:
        meshes.make_mesh = permuted(meshes.make_mesh, order)
    sys.argv = ["train_pretrain.py", *flags]
    try:
        runpy.run_path("train_pretrain.py", run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing skips these handlers, in which JAX leaves the other processes
