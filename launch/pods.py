"""Two kinds of pod: TPU machines controlled with gcloud, and local directories that act as workers."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from launch.answers import Answer, WorkerError, read_answers, remote_command
from launch.errors import LaunchError, UsageError
from launch.settings import Settings, slice_of

ASK_S = 120  # timeout of queries to Google Cloud
COPY_S = 1800
MISSING, WAITING, READY, LOST = "missing", "waiting", "ready", "lost"  # states of `Pod.state`
FAILED = "failed"  # the request was rejected; the description of the state says why
UNLISTED = "unlisted"  # granted, but without machines: not listed yet, or preempted
WAITING_NODES = {"CREATING", "STARTING", "RESTARTING", "REPAIRING", "REIMAGING", "HIDING", "UNHIDING"}


class Pod(Protocol):
    """A set of machines. With `dry_run` nothing is changed, and commands are printed instead."""

    dry_run: bool
    settings: Settings
    ports: str  # ports that must be free before a start; empty if no TPU is expected

    def workers(self) -> list[int]:
        """Their numbers; LaunchError if there are none."""
        ...

    def state(self) -> tuple[str, str]:
        """(MISSING, WAITING, READY, LOST, FAILED or UNLISTED, description by the provider)."""
        ...

    def create(self) -> None:
        """Requests the machines."""
        ...

    def delete(self) -> None:
        """Releases the machines and everything on them."""
        ...

    def run(self, script: str, *arguments: str, timeout_s: float, workers: Sequence[int] = ()) -> dict[int, Answer]:
        """Runs a worker script on all or some workers in parallel; returns their answers, none in a dry run."""
        ...

    def copy(self, path: Path, name: str) -> None:
        """Copies a file to BASE/incoming/name on every worker, with the mode of the source."""
        ...

    def follow(self, worker: int, script: str, *arguments: str) -> subprocess.Popen[str]:
        """Starts a worker script whose output is read as it comes."""
        ...

    def process_flags(self) -> str:
        """The training program's flags for multi-process runs, as shell words in which $worker may be used."""
        ...


class Gcloud:
    """A slice of TPU machines, held by a queued resource and accessed with ssh."""

    ports = "8476 8482"  # libtpu within a slice; JAX's coordinator

    def __init__(self, settings: Settings, *, dry_run: bool):
        self.settings = settings
        self.dry_run = dry_run
        self._workers: list[int] = []
        self._where = [f"--{key}={value}" for key in ("project", "zone") if (value := getattr(settings, key))]

    def workers(self) -> list[int]:
        if not self._workers:
            node = self._describe("tpu-vm")
            if node is None:
                raise LaunchError(f"TPU {self.settings.name}: does not exist; run up first")
            self._workers = list(range(len(node.get("networkEndpoints", ()))))
        return self._workers

    def state(self) -> tuple[str, str]:
        queued = self._describe("queued-resources")
        if queued is None:
            return MISSING, "no queued resource"
        name = str(queued.get("state", {}).get("state", "STATE_UNSPECIFIED"))
        if name == "FAILED":
            return FAILED, f"FAILED: {_failure(queued)}"
        if name == "SUSPENDED":
            return LOST, name
        if name != "ACTIVE":  # also SUSPENDING and DELETING, which become SUSPENDED or missing
            return WAITING, name
        node = self._describe("tpu-vm")
        if node is None:
            return UNLISTED, "ACTIVE, but its TPU is not listed"
        node_state, health = str(node.get("state", "UNKNOWN")), str(node.get("health", ""))
        words = f"ACTIVE, TPU {node_state}" + (f", {health}" if health not in ("", "HEALTHY") else "")
        if node_state == "READY":
            return READY, words
        return (WAITING if node_state in WAITING_NODES else LOST), words

    def create(self) -> None:
        wanted = self.settings
        if not wanted.accelerator_type:
            raise UsageError("accelerator_type is missing: set it, such as --accelerator_type v4-64")
        size = slice_of(wanted.accelerator_type)
        self._change(
            "queued-resources",
            "create",
            wanted.name,
            f"--node-id={wanted.name}",
            f"--accelerator-type={wanted.accelerator_type}",
            f"--runtime-version={wanted.runtime_version or size.runtime}",
            *(["--spot"] if wanted.spot else []),
            *shlex.split(wanted.create_flags),
            *self._where,
        )

    def delete(self) -> None:
        self._workers = []
        self._change("queued-resources", "delete", self.settings.name, "--force", "--quiet", *self._where)

    def run(self, script: str, *arguments: str, timeout_s: float, workers: Sequence[int] = ()) -> dict[int, Answer]:
        which = ",".join(map(str, workers)) or "all"
        if self._printed("tpu-vm", "ssh", *self._ssh(which), _command(script, [self.settings.base, *arguments], True)):
            return {}
        expected = list(workers) or self.workers()
        words = [*self._ssh(which), _command(script, [self.settings.base, *arguments], False)]
        done = _run(["gcloud", "compute", "tpus", "tpu-vm", "ssh", *words], timeout_s, f"{script} on {which}", cut=True)
        try:
            return read_answers(script, f"{done.stdout}\n{done.stderr}", expected)
        except WorkerError as error:
            raise WorkerError(f"{error}{_remedy(done.stderr)}", error.silent, error.asked) from None

    def copy(self, path: Path, name: str) -> None:
        target = f"{self.settings.name}:{self.settings.base}/incoming/{name}"
        self._change("tpu-vm", "scp", str(path), target, *self._ssh("all")[1:], timeout_s=COPY_S)

    def follow(self, worker: int, script: str, *arguments: str) -> subprocess.Popen[str]:
        words = [*self._ssh(str(worker)), _command(script, [self.settings.base, *arguments], False)]
        return _reader(["gcloud", "compute", "tpus", "tpu-vm", "ssh", *words])

    def process_flags(self) -> str:
        return "--run.coordinator auto"  # JAX uses the machines' metadata

    def _ssh(self, workers: str) -> list[str]:
        return [self.settings.name, f"--worker={workers}", *shlex.split(self.settings.ssh_flags), *self._where]

    def _describe(self, kind: str) -> dict[str, Any] | None:
        command = ["gcloud", "compute", "tpus", kind, "describe", self.settings.name, "--format=json", *self._where]
        done = _run(command, ASK_S, f"asking for {kind} {self.settings.name}")
        if done.returncode == 0:
            return json.loads(done.stdout)
        if "NOT_FOUND" in done.stderr or "was not found" in done.stderr:
            return None
        raise LaunchError(f"gcloud {kind} describe {self.settings.name}: {_last_error(done.stderr)}")

    def _change(self, *words: str, timeout_s: float = COPY_S) -> None:
        if self._printed(*words):
            return
        done = _run(["gcloud", "compute", "tpus", *words], timeout_s, f"gcloud {words[0]} {words[1]}")
        if done.returncode:
            said = f"{done.stdout}\n{done.stderr}"
            raise LaunchError(f"gcloud {words[0]} {words[1]}: {_last_error(said)}{_remedy(said)}")

    def _printed(self, *words: str) -> bool:
        if self.dry_run:
            print("+", " ".join(map(shlex.quote, ["gcloud", "compute", "tpus", *words])))
        return self.dry_run


class Local:
    """Local directories that act as workers, with processes that communicate over loopback."""

    ports = ""

    def __init__(self, settings: Settings, root: Path, processes: int, port: int, *, dry_run: bool):
        self.settings = settings
        self.dry_run = dry_run
        self.root = root
        self._processes = processes
        self._port = port

    def workers(self) -> list[int]:
        found = sorted(int(path.name[1:]) for path in self.root.glob("w[0-9]*"))
        if not found:
            raise LaunchError(f"{self.root}: no workers here; run up first")
        return found

    def state(self) -> tuple[str, str]:
        if not any(self.root.glob("w[0-9]*")):
            return MISSING, "no directory"
        return READY, f"{len(self.workers())} processes"

    def create(self) -> None:
        for worker in range(self._processes):
            if not self._printed("mkdir", str(self.root / f"w{worker}")):
                (self.root / f"w{worker}").mkdir(parents=True)

    def delete(self) -> None:
        for worker in self.workers():
            if not self._printed("rm", "-r", str(self.root / f"w{worker}")):
                shutil.rmtree(self.root / f"w{worker}")

    def run(self, script: str, *arguments: str, timeout_s: float, workers: Sequence[int] = ()) -> dict[int, Answer]:
        if self._printed(_command(script, ["DIRECTORY", *arguments], True)):
            return {}
        chosen = list(workers) or self.workers()
        running = [self.follow(worker, script, *arguments) for worker in chosen]
        output = []
        for worker, process in zip(chosen, running):
            try:
                output.append(process.communicate(timeout=timeout_s)[0])
            except subprocess.TimeoutExpired:
                process.kill()
                raise WorkerError(f"{script}: worker {worker} did not answer within {timeout_s:.0f} s") from None
        try:
            return read_answers(script, "".join(output), chosen)
        except WorkerError as error:
            raise WorkerError(str(error)) from None  # local directories cannot be lost, so none counts as silent

    def copy(self, path: Path, name: str) -> None:
        for worker in [] if self.dry_run else self.workers():
            shutil.copy(path, self.root / f"w{worker}" / "incoming" / name)
        self._printed("cp", str(path), f"{self.root}/w*/incoming/{name}")

    def follow(self, worker: int, script: str, *arguments: str) -> subprocess.Popen[str]:
        home = str(self.root / f"w{worker}")
        words = shlex.split(remote_command(script, [home, *arguments]))
        return _reader(words, {"ECHOTTS_WORKER": str(worker)})

    def process_flags(self) -> str:
        count = len(self.workers())
        return f'--run.coordinator localhost:{self._port} --run.processes {count} --run.process_index "$worker"'

    def _printed(self, *words: str) -> bool:
        if self.dry_run:
            print("+", " ".join(words))
        return self.dry_run


def _command(script: str, arguments: Sequence[str], short: bool) -> str:
    return f"--command={remote_command(script, arguments, short=short)}"


def _run(command: list[str], timeout_s: float, what: str, *, cut: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs gcloud; after `timeout_s` LaunchError, or with `cut` the output so far and exit code 124."""
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except FileNotFoundError:
        raise LaunchError(f"{command[0]} is not installed: see https://cloud.google.com/sdk/docs/install") from None
    except subprocess.TimeoutExpired as late:
        if not cut:
            raise LaunchError(f"{what}: no answer from gcloud within {timeout_s:.0f} s") from None
        printed = [
            text.decode(errors="replace") if isinstance(text, bytes) else text for text in (late.stdout, late.stderr)
        ]
        limit = f"cut off after {timeout_s:.0f} s"
        return subprocess.CompletedProcess(command, 124, printed[0] or "", f"{printed[1] or ''}\n{limit}")


def _reader(command: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **(environment or {})},
    )


def _failure(queued: dict[str, Any]) -> str:
    """The reason of a failed queued resource, as given by Google Cloud."""
    error = queued["state"].get("failedData", {}).get("error", {})
    code = f" (code {error['code']})" if "code" in error else ""
    return f"{error.get('message') or 'no reason given'}{code}"


def _last_error(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no reason given"])[-1]


def _remedy(said: str) -> str:
    """The remedy for the two most common failures of ssh."""
    if "ssh-add" in said or "SSHKeyNotInAgent" in said:
        return " (several workers need the key in the agent: ssh-add ~/.ssh/google_compute_engine)"
    if "Could not fetch resource" in said or "Permission" in said:
        return " (is the account right? gcloud auth list; gcloud config get-value project)"
    return ""


def say(line: str) -> None:
    """Prints a line for the user, unbuffered."""
    print(line, flush=True)


def complain(line: str) -> None:
    """Prints a line to standard error."""
    print(line, file=sys.stderr, flush=True)
