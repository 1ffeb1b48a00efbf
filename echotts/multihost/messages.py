"""Words that the processes of a run leave each other at the coordinator, JSON or text, under a topic.

Nothing here touches a device. Every wait has a limit, and its error says who waited for whom, for what, for how long.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from jax._src import distributed  # the coordinator's key-value store has no public name; all use of it is in here
from jax.errors import JaxRuntimeError

WAIT_S = 300  # how long a process waits for a word of another
PART = 1_000_000  # characters of one word; gRPC takes four times that

_rounds: Counter[str] = Counter()  # how often `from_all` was called with each topic; the same in all processes


class ProcessesError(RuntimeError):
    """The processes of a run did not find each other, are not alike, or wait for one in vain."""


def process_place() -> tuple[int, int]:
    """(index of this process, number of processes); (0, 1) where no others were joined."""
    state = distributed.global_state
    return state.process_id or 0, state.num_processes or 1


def put(topic: str, value: str) -> None:
    """Leaves a word for the other processes; once for each topic."""
    _client().key_value_set(f"echotts/{topic}", value)


def wait_for(topic: str, whom: str, limit_s: float = WAIT_S) -> str:
    """The word left under a topic. ProcessesError when it is not there within the limit: waited for `whom` ..."""
    try:
        return _client().blocking_key_value_get(f"echotts/{topic}", round(limit_s * 1000))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ProcessesError(f"process {process_place()[0]} waited {limit_s:g} s for {whom}: {reason}") from error


def post(topic: str, words: str) -> None:
    """Leaves words for all processes under a topic, in the place of what was there; not heard where that fails."""
    with contextlib.suppress(JaxRuntimeError):
        _client().key_value_set(f"echotts/{topic}", words, allow_overwrite=True)


def get(topic: str) -> str | None:
    """The words under a topic; None while there are none. Waits for nobody."""
    try:
        return _client().key_value_try_get(f"echotts/{topic}")
    except JaxRuntimeError:
        return None


def get_below(topic: str) -> list[str]:
    """The words under all topics below this one; none where they cannot be had. Waits for nobody."""
    try:
        return [words for _, words in _client().key_value_dir_get(f"echotts/{topic}/")]
    except JaxRuntimeError:
        return []


def gather(topic: str, value: Any) -> list[Any]:
    """What each process says, JSON-ready, in order, on process 0; on the others nothing.

    All call it together; a topic is used again only when process 0 is known to have gone on.
    """
    index, count = process_place()
    if count == 1:
        return [value]
    put(f"{topic}/{index}", json.dumps(value))
    if index:
        return []
    said = [json.loads(wait_for(f"{topic}/{other}", f"process {other} ({topic})")) for other in range(count)]
    _client().key_value_delete(f"echotts/{topic}")  # weeks of them would pile up
    return said


def all_gather(topic: str, value: Any) -> list[Any]:
    """What each process says, JSON-ready, in order, on all of them. All call it together, as often as they like."""
    index, count = process_place()
    if count == 1:
        return [value]
    turn = _rounds[topic]
    _rounds[topic] += 1
    put(f"{topic}/{turn}/{index}", json.dumps(value))
    said = [json.loads(wait_for(f"{topic}/{turn}/{other}", f"process {other} ({topic})")) for other in range(count)]
    if turn:  # who has spoken in this turn has heard all of the one before
        _client().key_value_delete(f"echotts/{topic}/{turn - 1}/{index}")
    return said


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process. All call it together."""
    return any(all_gather("any", flag))


def broadcast(topic: str, make: Callable[[], str], what: str, limit_s: float) -> str:
    """What `make` gives on process 0, on all of them; the others wait for it `limit_s` and WAIT_S more.

    An OSError or ValueError there is raised as it is there, and as a ValueError of the same words on the others.
    """
    index, count = process_place()
    if count == 1:
        return make()
    if index == 0:
        try:
            text = make()
        except (OSError, ValueError) as error:
            put(topic, json.dumps({"error": str(error)}))
            raise
        parts = [text[start : start + PART] for start in range(0, len(text), PART)]
        put(topic, json.dumps({"parts": len(parts)}))
        for number, part in enumerate(parts):
            put(f"{topic}/{number}", part)
        return text
    waited_for = f"process 0 to {what}"
    said = json.loads(wait_for(topic, waited_for, limit_s + WAIT_S))
    if "error" in said:
        raise ValueError(said["error"])
    return "".join(wait_for(f"{topic}/{number}", waited_for) for number in range(said["parts"]))


def _client() -> Any:
    client = distributed.global_state.client
    assert client is not None, "the processes have not been joined"
    return client
