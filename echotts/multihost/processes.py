"""The processes of one run: connecting them, and checking that they are identical before anything is computed.

The process index is not gcloud's worker number: on a TPU it comes from the slice and may change at a restart. Data and
files are identified by process index, logs by host name.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
from jax.experimental import multihost_utils

from echotts.config import RunConfig, to_dict
from echotts.multihost.messages import ProcessesError, agree_on, all_gather, process_place
from echotts.rundir.location import RunPath, read_whole, write_whole

LOGGER = logging.getLogger(__name__)

AUTO = "auto"
SHUTDOWN_S = 60  # how long a finished process waits for the others
LAST_WORDS_S = 1.0  # for the other processes to log their errors before the coordinator goes away
SHARED_S = 30  # how long a network file system may take to show a new file
SHARED_NAME = ".shared"
LIBRARIES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy")
OWN_KEYS = ("process_index",)  # keys of the run section that may differ between processes
WORKER = re.compile(r"-w-(\d+)$")  # suffix of Google Cloud's host names in a slice


@runtime_checkable
class HasRun(Protocol):
    """A configuration (of a TTS or codec training) with a section `run` that describes the processes."""

    @property
    def run(self) -> RunConfig: ...


def join(config: HasRun) -> None:
    """Connects this process to the others if `run.coordinator` is set; must precede any use of a device.

    Logs this process's identity. Raises ProcessesError if others do not connect in time, or run different code, another
    configuration or other library versions.
    """
    run = config.run
    if not run.coordinator:
        return
    began = time.monotonic()
    # On a timeout JAX can end the process without an exception; then this warning is the only explanation in the log.
    warning = threading.Timer(run.join_timeout_s / 2, _say_waiting, [run])
    warning.daemon = True
    warning.start()
    try:
        _initialize(run)
    except (RuntimeError, ValueError) as error:
        waited_s = time.monotonic() - began
        raise ProcessesError(
            f"{_name(run)} on {socket.gethostname()} waited {waited_s:.0f} s for the others at {run.coordinator} "
            f"(join_timeout_s {run.join_timeout_s}): are all running and able to reach it? {str(error).splitlines()[0]}"
        ) from error
    finally:
        warning.cancel()
    mine = identity(config)
    check_alike(all_gather("identity", {**mine, "host": socket.gethostname()}))
    if jax.default_backend() == "cpu":
        # Only process 0 would use the cache, and processes of which one compiles and another does not have been seen to
        # wait for each other forever in a collective of step 2.
        jax.config.update("jax_enable_compilation_cache", False)
    _meet()
    worker = WORKER.search(socket.gethostname())
    LOGGER.info(
        "process %d of %d on %s%s: %d of %d devices (%s); %s",
        jax.process_index(),
        jax.process_count(),
        socket.gethostname(),
        f" (worker {worker[1]})" if worker else "",
        jax.local_device_count(),
        jax.device_count(),
        jax.devices()[0].device_kind,
        ", ".join(f"{key} {value}" for key, value in mine.items()),
    )


def first_host() -> str:
    """The host name of process 0, where the run's metrics and samples are written. Collective."""
    return agree_on("first host", socket.gethostname, "name its host")


@contextlib.contextmanager
def all_end_at_once() -> Iterator[None]:
    """Exits this process immediately on an error inside, if it is one of several.

    A regular exit would wait for the other processes, which in turn wait for this one in their next collective.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        LOGGER.error("process %d exits: %s", jax.process_index(), error, exc_info=True)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        if jax.process_index() == 0:  # it runs the coordinator, whose loss kills the others before they can log
            time.sleep(LAST_WORDS_S)
        os._exit(1)


def check_shared(run_dir: RunPath) -> None:
    """Raises ProcessesError if a process cannot see what process 0 writes to the run directory.

    All processes write parts of a checkpoint; on disks that are not shared it would never be complete.
    """
    if process_place()[1] == 1:
        return
    path = run_dir / SHARED_NAME

    def write() -> str:
        nonce = secrets.token_hex(8)
        write_whole(path, nonce)
        return nonce

    nonce = agree_on("shared", write, "write into the run directory")
    end = time.monotonic() + SHARED_S
    while not (seen := _reads(path, nonce)) and time.monotonic() < end:
        time.sleep(0.5)  # a network file system may show it with a delay
    answers = all_gather("shared seen", [seen, socket.gethostname()])
    blind = [f"process {other} ({host})" for other, (sees, host) in enumerate(answers) if not sees]
    if blind:
        raise ProcessesError(
            f"{run_dir}: {', '.join(blind)} cannot see what process 0 writes there: "
            "give a --run_dir that all hosts share, a mounted file system or gs://bucket/run"
        )


def check_same(what: str, value: str) -> None:
    """Raises ProcessesError if a value that each process read from its own disk (such as a digest) differs."""
    if process_place()[1] > 1:
        check_alike(all_gather("same", {what: value, "host": socket.gethostname()}))


def identity(config: HasRun) -> dict[str, str]:
    """Name and value of everything that must be identical in all processes."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"code": code_hash(), "configuration": config_hash(config)} | versions


def code_hash() -> str:
    """A hash of the package's modules, which also distinguishes copies without git and uncommitted changes."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def config_hash(config: HasRun) -> str:
    """A hash of the configuration without the keys that may differ between processes."""
    values = to_dict(config)
    values["run"] = {key: value for key, value in values["run"].items() if key not in OWN_KEYS}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def check_alike(identities: Sequence[Mapping[str, str]]) -> None:
    """Raises ProcessesError naming each difference from process 0."""
    lines = []
    for process, other in enumerate(identities):
        for key in sorted(identities[0].keys() | other.keys()):
            first, given = identities[0].get(key, "(absent)"), other.get(key, "(absent)")
            if first != given:
                lines.append(f"{key} {given} in process {process} ({other['host']}), {first} in process 0")
    different = [line for line in lines if not line.startswith("host ")]
    if different:
        raise ProcessesError(f"the processes differ: {'; '.join(different)}; make them identical")


def _initialize(run: RunConfig) -> None:
    initialize = functools.partial(
        jax.distributed.initialize,
        initialization_timeout=run.join_timeout_s,
        heartbeat_timeout_seconds=run.heartbeat_s,
        shutdown_timeout_seconds=SHUTDOWN_S,
    )
    if run.coordinator == AUTO:
        initialize()
    else:
        initialize(run.coordinator, run.processes, run.process_index, cluster_detection_method="deactivate")


def _meet() -> None:
    """A first all-reduce over all devices, once all processes are known to have connected.

    Gloo, which connects CPUs, has a timeout of 30 s for the first collective only; later ones may be further apart,
    since each process compiles on its own.
    """
    multihost_utils.sync_global_devices("joined")


def _reads(path: RunPath, text: str) -> bool:
    try:
        return read_whole(path) == text
    except OSError:
        return False


def _say_waiting(run: RunConfig) -> None:
    LOGGER.warning(
        "%s on %s has waited %d s for the others at %s and gives up after %d s (join_timeout_s): are all running?",
        _name(run),
        socket.gethostname(),
        run.join_timeout_s // 2,
        run.coordinator,
        run.join_timeout_s,
    )


def _name(run: RunConfig) -> str:
    return "a process" if run.coordinator == AUTO else f"process {run.process_index} of {run.processes}"
