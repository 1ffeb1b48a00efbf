"""Messages between the processes of a run, through the coordinator's key-value store: JSON or text under a topic.

Nothing here uses a device. Every wait has a timeout, and its error says who waited for whom, for what and how long.
All-to-all exchanges go through process 0, so that the coordinator serves a few requests per process, not one per pair.
"""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from jax._src import distributed  # the coordinator's key-value store has no public API; it is used only in this module
from jax.errors import JaxRuntimeError

RETRY_S = 0.5  # between failed requests
WAIT_S = 300.0  # maximum wait for a message from another process
PART = 1_000_000  # characters per request; gRPC's limit is 4 MB, and a character can take four bytes

_rounds: Counter[str] = Counter()  # number of `reduce` calls per topic; the same in all processes


class ProcessesError(RuntimeError):
    """The processes of a run did not connect, differ from each other, or one of them did not answer in time."""


def process_place() -> tuple[int, int]:
    """(index of this process, number of processes); (0, 1) if no processes were joined."""
    state = distributed.global_state
    return state.process_id or 0, state.num_processes or 1


def put(topic: str, value: str) -> None:
    """Stores a message for the other processes; a topic can be used once. A long message is stored in parts."""
    parts = [value[start : start + PART] for start in range(0, len(value), PART)] or [""]
    for number, part in enumerate(parts[1:], 1):
        _client().key_value_set(f"echotts/{topic}/part{number}", part)
    _client().key_value_set(f"echotts/{topic}", f"{len(parts)} {parts[0]}")  # written last, when all parts are stored


def wait_for(topic: str, whom: str, limit_s: float = WAIT_S) -> str:
    """Waits for the message under a topic and returns it. `whom` names the sender in the ProcessesError on timeout."""
    count, _, first = _blocking_get(topic, whom, limit_s).partition(" ")
    return first + "".join(_blocking_get(f"{topic}/part{number}", whom, limit_s) for number in range(1, int(count)))


def announce(topic: str, text: str) -> None:
    """Stores a short message for all processes, replacing the previous one. ProcessesError if that fails."""
    _retried(lambda: _client().key_value_set(f"echotts/{topic}", text, allow_overwrite=True), topic)


def announced(topic: str) -> str | None:
    """The message announced under a topic, or None. ProcessesError if the coordinator does not answer."""

    def read() -> str | None:
        try:
            return _client().key_value_try_get(f"echotts/{topic}")
        except JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    return _retried(read, topic)


def post(topic: str, text: str) -> None:
    """Like `announce`, for messages that matter only now: a failure is ignored."""
    with contextlib.suppress(JaxRuntimeError):
        _client().key_value_set(f"echotts/{topic}", text, allow_overwrite=True)


def get_below(topic: str) -> list[str]:
    """The messages posted under all topics below this one, without waiting; an empty list on failure."""
    try:
        return [text for _, text in _client().key_value_dir_get(f"echotts/{topic}/")]
    except JaxRuntimeError:
        return []


def gather(topic: str, value: Any) -> list[Any]:
    """The JSON-serialisable values of all processes, in order, on process 0; an empty list on the others.

    Collective: all processes call it. A topic may be reused only when process 0 is known to have read the last values.
    """
    index, count = process_place()
    if count == 1:
        return [value]
    if index:
        put(f"{topic}/{index}", json.dumps(value))
        return []
    others = [json.loads(wait_for(f"{topic}/{other}", f"process {other} ({topic})")) for other in range(1, count)]
    _client().key_value_delete(f"echotts/{topic}")  # they would accumulate over weeks
    return [value, *others]


def all_gather(topic: str, value: Any) -> list[Any]:
    """The JSON-serialisable values of all processes, in order, on all of them. Collective; may be called repeatedly."""
    return reduce(topic, value, lambda values: values)


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process. Collective."""
    return reduce("any", flag, any)


def agree_on(topic: str, decide: Callable[[], Any], what: str, limit_s: float = 0.0) -> Any:
    """The JSON-serialisable result of `decide` on process 0, on all processes. Collective; may be called repeatedly.

    For decisions that depend on a clock, a disk or a listing, which other hosts may see differently. The other
    processes wait `limit_s` plus WAIT_S for process 0 to do `what`. An OSError or ValueError is re-raised as it is on
    process 0, and as a ValueError with the same message on the others.
    """
    failed: list[OSError | ValueError] = []

    def answer(_: list[Any]) -> dict[str, Any]:
        try:
            return {"value": decide()}
        except (OSError, ValueError) as error:
            failed.append(error)
            return {"error": str(error)}

    agreed = reduce(topic, None, answer, f"process 0 to {what}", limit_s)
    if failed:
        raise failed[0]
    if "error" in agreed:
        raise ValueError(agreed["error"])
    return agreed["value"]


def reduce(
    topic: str, value: Any, combine: Callable[[list[Any]], Any], whom: str = "process 0", limit_s: float = 0.0
) -> Any:
    """Combines the JSON-serialisable values of all processes on process 0 and returns the result on all of them.

    Collective; may be called repeatedly. It takes two messages per process.
    """
    index, count = process_place()
    if count == 1:
        return combine([value])
    turn = _rounds[topic]
    _rounds[topic] += 1
    here = f"{topic}/{turn}"
    if index:
        put(f"{here}/{index}", json.dumps(value))
        return json.loads(wait_for(f"{here}/answer", f"{whom} ({topic})", limit_s + WAIT_S))
    others = [json.loads(wait_for(f"{here}/{other}", f"process {other} ({topic})")) for other in range(1, count)]
    if turn:  # every process in this turn has read the previous answer
        _client().key_value_delete(f"echotts/{topic}/{turn - 1}")
    answer = combine([value, *others])
    put(f"{here}/answer", json.dumps(answer))
    return answer


def _retried(request: Callable[[], Any], topic: str) -> Any:
    """The result of a request to the coordinator, retried for up to WAIT_S on network errors."""
    end = time.monotonic() + WAIT_S
    while True:
        try:
            return request()
        except JaxRuntimeError as error:
            if time.monotonic() > end:
                reason = str(error).splitlines()[0]
                raise ProcessesError(
                    f"process {process_place()[0]} waited {WAIT_S} s for the coordinator ({topic}): {reason}"
                ) from error
            time.sleep(RETRY_S)


def _blocking_get(topic: str, whom: str, limit_s: float) -> str:
    try:
        return _client().blocking_key_value_get(f"echotts/{topic}", round(limit_s * 1000))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ProcessesError(f"process {process_place()[0]} waited {limit_s:g} s for {whom}: {reason}") from error


def _client() -> Any:
    client = distributed.global_state.client
    assert client is not None, "the processes have not been joined"
    return client
