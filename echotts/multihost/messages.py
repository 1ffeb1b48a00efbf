"""Messages between the processes of a run through the coordinator's key-value store: JSON or text, under a topic.

Nothing here touches a device. Every wait has a limit, and its error says who waited for whom, for what, for how long.
What all tell all goes through process 0, so the coordinator answers a few requests a process, not one for each pair.
"""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from jax._src import distributed  # the coordinator's key-value store has no public name; all use of it is in here
from jax.errors import JaxRuntimeError

RETRY_S = 0.5  # between two requests that fail
WAIT_S = 300.0  # how long a process waits for a message of another
PART = 1_000_000  # characters of one request; gRPC takes 4 MB, and a character may be four bytes

_rounds: Counter[str] = Counter()  # how often `all_gather` was called with each topic; the same in all processes


class ProcessesError(RuntimeError):
    """The processes of a run did not find each other, differ, or waited in vain for one of them."""


def process_place() -> tuple[int, int]:
    """(index of this process, number of processes); (0, 1) where no others were joined."""
    state = distributed.global_state
    return state.process_id or 0, state.num_processes or 1


def put(topic: str, value: str) -> None:
    """Stores a message for the other processes, once for each topic; a long one in parts."""
    parts = [value[start : start + PART] for start in range(0, len(value), PART)] or [""]
    for number, part in enumerate(parts[1:], 1):
        _client().key_value_set(f"echotts/{topic}/part{number}", part)
    _client().key_value_set(f"echotts/{topic}", f"{len(parts)} {parts[0]}")  # last: then all parts are there


def wait_for(topic: str, whom: str, limit_s: float = WAIT_S) -> str:
    """The message under a topic. ProcessesError where there is none within the limit: waited for `whom` ..."""
    count, _, first = _blocking_get(topic, whom, limit_s).partition(" ")
    return first + "".join(_blocking_get(f"{topic}/part{number}", whom, limit_s) for number in range(1, int(count)))


def announce(topic: str, text: str) -> None:
    """Stores a short message for all processes, replacing the one before. ProcessesError where that fails."""
    _retried(lambda: _client().key_value_set(f"echotts/{topic}", text, allow_overwrite=True), topic)


def announced(topic: str) -> str | None:
    """What was announced under a topic, None while nothing was. ProcessesError without an answer."""

    def read() -> str | None:
        try:
            return _client().key_value_try_get(f"echotts/{topic}")
        except JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    return _retried(read, topic)


def post(topic: str, text: str) -> None:
    """As `announce`, for what is of use only now: nothing happens where it fails."""
    with contextlib.suppress(JaxRuntimeError):
        _client().key_value_set(f"echotts/{topic}", text, allow_overwrite=True)


def get_below(topic: str) -> list[str]:
    """What was posted under all topics below this one; nothing where it is unavailable. Waits for nobody."""
    try:
        return [text for _, text in _client().key_value_dir_get(f"echotts/{topic}/")]
    except JaxRuntimeError:
        return []


def gather(topic: str, value: Any) -> list[Any]:
    """The values of all processes, JSON-ready, in order, on process 0; on the others nothing.

    All call it together; a topic is used again only when process 0 is known to have gone on.
    """
    index, count = process_place()
    if count == 1:
        return [value]
    if index:
        put(f"{topic}/{index}", json.dumps(value))
        return []
    others = [json.loads(wait_for(f"{topic}/{other}", f"process {other} ({topic})")) for other in range(1, count)]
    _client().key_value_delete(f"echotts/{topic}")  # weeks of them would pile up
    return [value, *others]


def all_gather(topic: str, value: Any) -> list[Any]:
    """The values of all processes, JSON-ready, in order, on all of them. All call it together, any number of times."""
    return reduce(topic, value, lambda values: values)


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process. All call it together."""
    return reduce("any", flag, any)


def agree_on(topic: str, decide: Callable[[], Any], what: str, limit_s: float = 0.0) -> Any:
    """What `decide` returns on process 0, JSON-ready, on all processes. All call it together, any number of times.

    For what depends on a clock, a disk or a listing, which other hosts may see differently. The others wait for process
    0 to do `what` for `limit_s` and WAIT_S more. An OSError or ValueError there is raised there as it is, and on the
    others as a ValueError with the same message.
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
    """What `combine` makes of the values of all processes, JSON-ready, on process 0, on all of them.

    All call it together, any number of times; it takes two messages a process.
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
    if turn:  # whoever takes part in this turn has had the answer of the one before
        _client().key_value_delete(f"echotts/{topic}/{turn - 1}")
    answer = combine([value, *others])
    put(f"{here}/answer", json.dumps(answer))
    return answer


def _retried(request: Callable[[], Any], topic: str) -> Any:
    """The result of a request to the coordinator, which is repeated for WAIT_S where the network fails."""
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
