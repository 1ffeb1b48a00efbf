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
from typing import Any

import jax
from jax._src import distributed  # the coordinator's key-value store has no public name; all use of it is in here

from echotts.config import Config, RunConfig, to_dict

LOGGER = logging.getLogger(__name__)

AUTO = "auto"
SHUTDOWN_S = 60  # how long a process that is done waits for the others
COMPARE_S = 300  # how long a process waits for a word of another
SHARED_S = 30  # how long a network file system may take to show a new file
SHARED_NAME = ".shared"
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
    return json.loads(_client().blocking_key_value_get("echotts/identity/0", COMPARE_S * 1000))["host"]


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


def check_shared(run_dir: Path) -> None:
    """ProcessesError where a process does not see what process 0 writes into the run directory.

    A checkpoint is written in parts by all; on a disk of each host's own it would never be whole.
    """
    state = distributed.global_state
    if state.num_processes in (None, 1):
        return
    path = run_dir / SHARED_NAME
    if state.process_id == 0:
        nonce = secrets.token_hex(8)
        path.write_text(nonce, encoding="utf-8")
        _tell("shared", nonce)
    nonce = _hear("shared", "process 0 to write into the run directory")
    end = time.monotonic() + SHARED_S
    while not (seen := _reads(path, nonce)) and time.monotonic() < end:
        time.sleep(0.5)  # a network file system may show it later
    _tell(f"shared/{state.process_id}", f"{'yes' if seen else 'no'} {socket.gethostname()}")
    said = [_hear(f"shared/{other}", f"process {other}") for other in range(state.num_processes)]
    blind = [f"process {other} ({words[3:]})" for other, words in enumerate(said) if words.startswith("no")]
    if blind:
        raise ProcessesError(
            f"{run_dir}: {', '.join(blind)} cannot see what process 0 writes there: "
            "give a --run_dir that all hosts share, a mounted file system"
        )


def collected(topic: str, value: Any) -> list[Any]:
    """What each process says, JSON-ready, in order, on process 0; on the others nothing.

    All call it together; a topic is used again only when process 0 is known to have gone on.
    """
    state = distributed.global_state
    if state.num_processes in (None, 1):
        return [value]
    _tell(f"{topic}/{state.process_id}", json.dumps(value))
    if state.process_id:
        return []
    said = [json.loads(_hear(f"{topic}/{other}", f"process {other}")) for other in range(state.num_processes)]
    _client().key_value_delete(f"echotts/{topic}")  # weeks of them would pile up
    return said


def announce(topic: str, words: str) -> None:
    """Leaves words for all processes under a topic, in the place of what was there; not heard where that fails."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().key_value_set(f"echotts/{topic}", words, allow_overwrite=True)


def heard(topic: str) -> str | None:
    """The words under a topic; None while there are none. Waits for nobody."""
    try:
        return _client().key_value_try_get(f"echotts/{topic}")
    except jax.errors.JaxRuntimeError:
        return None


def heard_below(topic: str) -> list[str]:
    """The words under all topics below this one; none where they cannot be had. Waits for nobody."""
    try:
        return [words for _, words in _client().key_value_dir_get(f"echotts/{topic}/")]
    except jax.errors.JaxRuntimeError:
        return []


def identity(config: Config) -> dict[str, str]:
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
    _tell(f"identity/{process}", json.dumps({**mine, "host": socket.gethostname()}))
    return [json.loads(_hear(f"identity/{other}", f"process {other} to say what it runs")) for other in range(count)]


def _client() -> Any:
    client = distributed.global_state.client
    assert client is not None
    return client


def _tell(key: str, value: str) -> None:
    """Leaves a word for the other processes at the coordinator."""
    _client().key_value_set(f"echotts/{key}", value)


def _hear(key: str, whom: str) -> str:
    """The word that a process leaves; ProcessesError when it does not within COMPARE_S."""
    try:
        return _client().blocking_key_value_get(f"echotts/{key}", COMPARE_S * 1000)
    except RuntimeError as error:
        me, reason = distributed.global_state.process_id, str(error).splitlines()[0]
        raise ProcessesError(f"process {me} waited {COMPARE_S} s for {whom}: {reason}") from error


def _reads(path: Path, text: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == text
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
