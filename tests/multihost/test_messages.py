"""Messages between processes, here threads that share a dictionary: all get the same, and no wait is endless."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from jax.errors import JaxRuntimeError

from echotts.multihost import messages, runtime
from echotts.multihost.messages import ProcessesError
from echotts.multihost.runtime import Announcements

COUNT = 3


class Coordinator:
    """A fake of JAX's client, shared by several processes."""

    def __init__(self):
        self.words, self._changed, self.requests, self.failures = {}, threading.Condition(), Counter(), 0

    def key_value_set(self, key, value, allow_overwrite=False):
        with self._changed:
            assert allow_overwrite or key not in self.words, "JAX takes a key once"
            assert len(value.encode()) < 4 << 20, "gRPC takes no more"
            self.words[key] = value
            self._changed.notify_all()

    def blocking_key_value_get(self, key, timeout_ms):
        with self._changed:
            self.requests[key.split("/")[1]] += 1
            if not self._changed.wait_for(lambda: key in self.words, timeout_ms / 1000):
                raise RuntimeError(f"DEADLINE_EXCEEDED: GetKeyValue() timed out with key: {key}\nmore")
            return self.words[key]

    def key_value_try_get(self, key):
        with self._changed:
            if self.failures:
                self.failures -= 1
                raise JaxRuntimeError("UNAVAILABLE: failed to connect to all addresses")
            if key not in self.words:
                raise JaxRuntimeError(f"NOT_FOUND: GetKeyValue() failed with key: {key}")
            return self.words[key]

    def key_value_delete(self, key):
        with self._changed:
            self.words = {name: word for name, word in self.words.items() if not f"{name}/".startswith(f"{key}/")}


@pytest.fixture
def coordinator(monkeypatch):
    """`all_call(function)` calls it in each process and gives the results, or the errors, in order."""
    mine, made = threading.local(), Coordinator()
    for module in (messages, runtime):
        monkeypatch.setattr(module, "process_place", lambda: (mine.index, COUNT))
    monkeypatch.setattr(messages, "_client", lambda: made)
    rounds = [Counter() for _ in range(COUNT)]

    class Rounds:
        def __getitem__(self, topic):
            return rounds[mine.index][topic]

        def __setitem__(self, topic, turn):
            rounds[mine.index][topic] = turn

    monkeypatch.setattr(messages, "_rounds", Rounds())

    def in_process(index, function):
        mine.index = index
        try:
            return function(index)
        except Exception as error:
            return error  # and the others do not wait for it

    def all_call(function):
        with ThreadPoolExecutor(COUNT) as pool:
            return list(pool.map(in_process, range(COUNT), [function] * COUNT))

    made.all_call = all_call
    return made


def test_all_get_the_values_of_all_in_order_as_often_as_they_like_and_nothing_piles_up(coordinator) -> None:
    def talk(index):
        return [messages.all_gather("room", [turn, index]) for turn in range(20)]

    assert coordinator.all_call(talk) == [[[[turn, index] for index in range(COUNT)] for turn in range(20)]] * COUNT
    assert len(coordinator.words) == COUNT


def test_all_gather_takes_one_request_per_process_and_direction(coordinator) -> None:
    assert coordinator.all_call(lambda index: messages.any_process(index == 1)) == [True] * COUNT
    assert coordinator.requests["any"] == 2 * (COUNT - 1)
    assert coordinator.all_call(lambda index: messages.any_process(False)) == [False] * COUNT


def test_a_message_above_the_size_limit_arrives_complete(coordinator) -> None:
    long = "ä🎵" * 300_000

    def talk(index):
        states = messages.gather("state", {"process": index, "text": long})
        return len(states), messages.all_gather("room", long)[index] == long

    assert coordinator.all_call(talk) == [(COUNT, True), (0, True), (0, True)]


def test_decisions_of_process_0_are_made_once_and_shared(coordinator) -> None:
    decided = []

    def decide():
        decided.append(len(decided))
        return {"listed": decided[-1]}

    def ask(index):
        return [messages.agree_on("list", decide, "list") for _ in range(3)]

    assert coordinator.all_call(ask) == [[{"listed": 0}, {"listed": 1}, {"listed": 2}]] * COUNT
    assert len(coordinator.words) == COUNT


def test_an_error_of_process_0_is_raised_in_all_processes(coordinator) -> None:
    def fail():
        raise FileNotFoundError("org/speech has no revision v9")

    errors = coordinator.all_call(lambda index: messages.agree_on("list", fail, "list"))
    assert [str(error) for error in errors] == ["org/speech has no revision v9"] * COUNT
    assert [type(error) for error in errors] == [FileNotFoundError, ValueError, ValueError]


def test_a_timeout_says_who_waited_for_whom_for_what_and_how_long(coordinator, monkeypatch) -> None:
    monkeypatch.setattr(messages, "WAIT_S", 0.1)
    in_vain, slow = threading.Barrier(COUNT - 1), threading.Event()

    def listing():
        assert slow.wait(10)
        return ""

    def ask(index):
        try:
            return messages.agree_on("list", listing, "list the shards of d", 0.1)
        finally:
            if index:
                in_vain.wait(10)
                slow.set()

    _, one, two = coordinator.all_call(ask)
    for index, error in ((1, one), (2, two)):
        assert isinstance(error, ProcessesError)
        words = f"process {index} waited 0.2 s for process 0 to list the shards of d (list): DEADLINE_EXCEEDED"
        assert str(error).startswith(words)


@pytest.mark.parametrize("every", [1, 3])
def test_timed_decisions_happen_in_all_processes_at_the_announced_step(coordinator, every) -> None:
    launched = threading.Barrier(COUNT)

    def run(index):
        announcements, done = Announcements("save", every), []
        for step in range(1, 31):
            launched.wait(20)  # its numbers need all processes
            if announcements.due(step, lambda: index > 0 or step in (6, 7, 8, 18)):  # noqa: B023 - the others' clocks run wild
                done.append(step)
        return done

    assert coordinator.all_call(run) == [[6 + 2 * every, 18 + 2 * every]] * COUNT


def test_a_temporarily_unresponsive_coordinator_is_retried(coordinator, monkeypatch) -> None:
    monkeypatch.setattr(messages, "RETRY_S", 0.01)
    messages.announce("save", "7")
    coordinator.failures = 3
    assert messages.announced("save") == "7"
    assert messages.announced("nothing") is None
