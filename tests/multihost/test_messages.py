"""Words between processes, here threads with a dictionary for a coordinator: all hear the same, no wait is endless."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from echotts.multihost import messages
from echotts.multihost.messages import ProcessesError

COUNT = 3


class Coordinator:
    """What JAX's client does for the processes that share it."""

    def __init__(self):
        self.words, self._changed = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self._changed:
            assert key not in self.words, "JAX takes a key once"
            assert len(value) <= 4e6, "gRPC takes no more"
            self.words[key] = value
            self._changed.notify_all()

    def blocking_key_value_get(self, key, timeout_ms):
        with self._changed:
            if not self._changed.wait_for(lambda: key in self.words, timeout_ms / 1000):
                raise RuntimeError(f"DEADLINE_EXCEEDED: GetKeyValue() timed out with key: {key}\nmore")
            return self.words[key]

    def key_value_delete(self, key):
        with self._changed:
            self.words = {name: word for name, word in self.words.items() if not f"{name}/".startswith(f"{key}/")}


@pytest.fixture
def coordinator(monkeypatch):
    """`all_call(function)` calls it in each process and gives the results, or the errors, in order."""
    mine, made = threading.local(), Coordinator()
    monkeypatch.setattr(messages, "process_place", lambda: (mine.index, COUNT))
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
        except (OSError, ValueError, ProcessesError) as error:
            return error

    def all_call(function):
        with ThreadPoolExecutor(COUNT) as pool:
            return list(pool.map(in_process, range(COUNT), [function] * COUNT))

    made.all_call = all_call
    return made


def test_all_hear_all_in_order_as_often_as_they_like_and_no_words_pile_up(coordinator) -> None:
    def talk(index):
        return [messages.all_gather("room", [turn, index]) for turn in range(20)]

    assert coordinator.all_call(talk) == [[[[turn, index] for index in range(COUNT)] for turn in range(20)]] * COUNT
    assert len(coordinator.words) == COUNT


def test_what_the_first_makes_is_made_once_and_heard_whole(coordinator, monkeypatch) -> None:
    monkeypatch.setattr(messages, "PART", 7)
    made, text = [], "a long list " * 10

    def make():
        made.append(1)
        return text

    assert coordinator.all_call(lambda index: messages.broadcast("list", make, "list", 1.0)) == [text] * COUNT
    assert len(made) == 1


def test_what_goes_wrong_with_the_first_is_told_to_all_in_its_words(coordinator) -> None:
    def fail():
        raise FileNotFoundError("org/speech has no revision v9")

    errors = coordinator.all_call(lambda index: messages.broadcast("list", fail, "list", 1.0))
    assert [str(error) for error in errors] == ["org/speech has no revision v9"] * COUNT
    assert [type(error) for error in errors] == [FileNotFoundError, ValueError, ValueError]


def test_who_waits_in_vain_says_for_whom_for_what_and_for_how_long(coordinator, monkeypatch) -> None:
    monkeypatch.setattr(messages, "HEAR_S", 0.1)
    in_vain, slow = threading.Barrier(COUNT - 1), threading.Event()

    def listing():
        assert slow.wait(10)
        return ""

    def ask(index):
        try:
            return messages.broadcast("list", listing, "list the shards of d", 0.1)
        finally:
            if index:
                in_vain.wait(10)
                slow.set()

    _, one, two = coordinator.all_call(ask)
    for index, error in ((1, one), (2, two)):
        assert isinstance(error, ProcessesError)
        words = f"process {index} waited 0.2 s for process 0 to list the shards of d: DEADLINE_EXCEEDED"
        assert str(error).startswith(words)
