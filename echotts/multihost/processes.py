"""The processes of one run: how they find each other, and that they are alike before anything is computed.

Process index is not the worker number: on a TPU it comes from the slice and changes at a restart. Data and files go by
process index, logs by host name.
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
SHUTDOWN_S = 60  # how long a process that is done waits for the others
LAST_WORDS_S = 1.0  # in which the others say what went wrong, often the same
SHARED_S = 30  # how long a network file system may take to show a new file
SHARED_NAME = ".shared"
LIBRARIES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy")
OWN_KEYS = ("process_index",)  # of the run section: what may differ between processes
WORKER = re.compile(r"-w-(\d+)$")  # how Google Cloud ends the host names of a slice


@runtime_checkable
class HasRun(Protocol):
    """A configuration, of a model's or a codec's training, with the section that says who runs."""

    @property
    def run(self) -> RunConfig: ...


def join(config: HasRun) -> None:
    """Joins the run's processes, where `run.coordinator` names one; before any use of a device.

    Logs who this is. ProcessesError where others do not come in time, or run other code, another configuration or
    other library versions.
    """
    run = config.run
    if not run.coordinator:
        return
    began = time.monotonic()
    # JAX can end the process itself when the time is up, without an exception: then this line is what tells why
    warning = threading.Timer(run.join_timeout_s / 2, _say_waiting, [run])
    warning.daemon = True
    warning.start()
    try:
        _initialize(run)
    except (RuntimeError, ValueError) as error:
        waited_s = time.monotonic() - began
        raise ProcessesError(
            f"{_name(run)} on {socket.gethostname()} waited {waited_s:.0f} s for the others at {run.coordinator} "
            f"(join_timeout_s {run.join_timeout_s}); do all run, and reach that address? {str(error).splitlines()[0]}"
        ) from error
    finally:
        warning.cancel()
    mine = identity(config)
    check_alike(all_gather("identity", {**mine, "host": socket.gethostname()}))
    if jax.default_backend() == "cpu":
        # There process 0 alone finds again what was compiled before, and two that differ in that have been seen to wait
        # for each other in a collective of step 2 without end.
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
    """The host of process 0: the run's own metrics and samples are there. All processes call it together."""
    return agree_on("first host", socket.gethostname, "name its host")


@contextlib.contextmanager
def all_end_at_once() -> Iterator[None]:
    """What goes wrong in here ends this process at once, where it is one of several.

    An ordinary exit would wait for the others, and the others for this one in their next collective.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        LOGGER.error("process %d ends: %s", jax.process_index(), error, exc_info=True)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        if jax.process_index() == 0:  # which has the coordinator: without it the others end in mid-sentence
            time.sleep(LAST_WORDS_S)
        os._exit(1)


def check_shared(run_dir: RunPath) -> None:
    """ProcessesError where a process does not see what process 0 writes into the run directory.

    A checkpoint is written in parts by all; on a disk of each host's own it would never be whole.
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
        time.sleep(0.5)  # a network file system may show it later
    answers = all_gather("shared seen", [seen, socket.gethostname()])
    blind = [f"process {other} ({host})" for other, (sees, host) in enumerate(answers) if not sees]
    if blind:
        raise ProcessesError(
            f"{run_dir}: {', '.join(blind)} cannot see what process 0 writes there: "
            "give a --run_dir that all hosts share, a mounted file system or gs://bucket/run"
        )


def check_same(what: str, value: str) -> None:
    """ProcessesError where a value that each process read from its own disk (a digest, say) is not the same on all."""
    if process_place()[1] > 1:
        check_alike(all_gather("same", {what: value, "host": socket.gethostname()}))


def identity(config: HasRun) -> dict[str, str]:
    """What has to be the same in all processes, in words that can be shown."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"code": code_hash(), "configuration": config_hash(config)} | versions


def code_hash() -> str:
    """A hash of the package's modules: told apart are also copies without git, and with changes."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def config_hash(config: HasRun) -> str:
    """A hash of the configuration without what is a process's own."""
    values = to_dict(config)
    values["run"] = {key: value for key, value in values["run"].items() if key not in OWN_KEYS}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def check_alike(identities: Sequence[Mapping[str, str]]) -> None:
    """ProcessesError that names each difference from process 0."""
    lines = []
    for process, other in enumerate(identities):
        for key in sorted(identities[0].keys() | other.keys()):
            first, given = identities[0].get(key, "(absent)"), other.get(key, "(absent)")
            if first != given:
                lines.append(f"{key} {given} in process {process} ({other['host']}), {first} in process 0")
    different = [line for line in lines if not line.startswith("host ")]
    if different:
        raise ProcessesError(f"the processes are not alike: {'; '.join(different)}; give all of them the same")


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
    """A first sum over all devices, now that all processes are known to be here.

    Gloo, which connects CPUs, gives the others 30 s from the first collective on; later ones may come far apart, since
    each process compiles by itself.
    """
    multihost_utils.sync_global_devices("joined")


def _reads(path: RunPath, text: str) -> bool:
    try:
        return read_whole(path) == text
    except OSError:
        return False


def _say_waiting(run: RunConfig) -> None:
    LOGGER.warning(
        "%s on %s has waited %d s for the others at %s, and gives up after %d s (join_timeout_s): do all run?",
        _name(run),
        socket.gethostname(),
        run.join_timeout_s // 2,
        run.coordinator,
        run.join_timeout_s,
    )


def _name(run: RunConfig) -> str:
    return "a process" if run.coordinator == AUTO else f"process {run.process_index} of {run.processes}"
