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
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
from jax._src import distributed  # the coordinator's key-value store has no public name; all use of it is in here

import echotts
from echotts.config import Config, RunConfig, to_dict

LOGGER = logging.getLogger(__name__)

AUTO = "auto"
SHUTDOWN_S = 60  # how long a process that is done waits for the others
COMPARE_S = 300  # how long a process waits for what the others run
LIBRARIES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy")
OWN_KEYS = ("process_index",)  # of the run section: what may differ between processes
WORKER = re.compile(r"-w-(\d+)$")  # how Google Cloud ends the host names of a slice


class ProcessesError(RuntimeError):
    """The processes of a run did not find each other, or are not alike."""


def join(config: Config) -> None:
    """Joins the run's processes, where `run.coordinator` names one; before any use of a device.

    Logs who this is. ProcessesError where others do not come in time, or run other code, another configuration or
    other library versions.
    """
    run = config.run
    if not run.coordinator:
        return
    began = time.monotonic()
    try:
        _initialize(run)
    except (RuntimeError, ValueError) as error:
        waited_s = time.monotonic() - began
        raise ProcessesError(
            f"{_name(run)} on {socket.gethostname()} waited {waited_s:.0f} s for the others at {run.coordinator} "
            f"(join_timeout_s {run.join_timeout_s}); do all run, and reach that address? {str(error).splitlines()[0]}"
        ) from error
    state = distributed.global_state
    assert state.num_processes is not None
    mine = identity(config)
    check_alike(_exchanged(mine, state.process_id, state.num_processes))
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
    """The host of process 0, where there are several processes: the run's own metrics and samples are there."""
    client = distributed.global_state.client
    assert client is not None
    return json.loads(client.blocking_key_value_get("echotts/identity/0", COMPARE_S * 1000))["host"]


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
        os._exit(1)


def identity(config: Config) -> dict[str, str]:
    """What has to be the same in all processes, in words that can be shown."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"code": code_hash(), "configuration": config_hash(config)} | versions


def code_hash() -> str:
    """A hash of the package's modules: told apart are also copies without git, and with changes."""
    root = Path(echotts.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def config_hash(config: Config) -> str:
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
        raise ProcessesError(f"the processes are not alike: {'; '.join(different)}; install the same everywhere")


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


def _exchanged(mine: Mapping[str, str], process: int, count: int) -> list[dict[str, str]]:
    """What every process said of itself, by index."""
    client = distributed.global_state.client
    assert client is not None
    client.key_value_set(f"echotts/identity/{process}", json.dumps({**mine, "host": socket.gethostname()}))
    said = []
    for other in range(count):
        try:
            said.append(json.loads(client.blocking_key_value_get(f"echotts/identity/{other}", COMPARE_S * 1000)))
        except RuntimeError as error:
            raise ProcessesError(
                f"process {process} waited {COMPARE_S} s for process {other} to say what it runs: "
                f"{str(error).splitlines()[0]}"
            ) from error
    return said


def _name(run: RunConfig) -> str:
    return "a process" if run.coordinator == AUTO else f"process {run.process_index} of {run.processes}"
