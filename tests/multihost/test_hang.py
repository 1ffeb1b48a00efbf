"""The hang watch, in processes that really hang or are only slow."""

import importlib.util
import inspect
import subprocess
import sys
import threading
import time

import pytest

from echotts.multihost import hang
from echotts.multihost.hang import HangWatch, waiting_for

RUN = """
import logging, sys, threading, time
from echotts.multihost.hang import HangWatch
logging.basicConfig(format="%(message)s")

def stuck():
    threading.Event().wait()

def tell(step, message):
    print("told", step, message, flush=True)
    TELL

def send():
    print("sent", flush=True)
    SEND

watch = HangWatch(floor_s=0.5, factor=4, start=10, patience_s=2.0)
with watch.telling(tell, send):
    threading.Thread(target=stuck, name="other", daemon=True).start()
    for step in range(11, 18):
        watch.launching(step, "bucket")
        time.sleep(0.02)
        watch.finished(step, 0.02)
    BODY
print("done", flush=True)
"""


def run(body: str, tell: str = "pass", send: str = "pass") -> subprocess.CompletedProcess:
    """A run of seven fast steps, followed by `body`."""
    code = RUN.replace("BODY", body).replace("TELL", tell).replace("SEND", send)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)


def test_a_hanging_process_dumps_all_stacks_writes_metrics_and_exits() -> None:
    began = time.monotonic()
    done = run("stuck()")
    assert time.monotonic() - began < 60
    assert done.returncode == 1
    assert "done" not in done.stdout
    assert done.stdout.startswith("told 17 no step finished for ")
    assert done.stdout.endswith("\nsent\n")
    assert "(limit 0.5 s, a step takes 0.02 s); the last one was step 17; waiting for something unknown" in done.stdout
    assert done.stderr.count(" in stuck") == 2  # both threads
    assert "hang: no step finished for " in done.stderr


@pytest.mark.parametrize("last_words", ["tell", "send"])
def test_a_process_whose_last_words_hang_too_still_ends(last_words) -> None:
    code = "import echotts.multihost.hang as hang; hang.LAST_WORDS_S = 1.0\n    stuck()"
    assert run(code, **{last_words: "stuck()"}).returncode == 1


def test_a_failed_local_write_does_not_prevent_the_upload() -> None:
    done = run("stuck()", tell='raise OSError("no room")')
    assert (done.returncode, done.stdout.endswith("\nsent\n")) == (1, True)


def test_a_slow_process_continues() -> None:
    done = run(
        """
    watch.launching(18, "another bucket")
    time.sleep(1.0)  # compiles
    watch.finished(18, 0.02)
    with watch.pause(limit_s=3600.0):
        time.sleep(2.5)
    time.sleep(1.0)  # others are in the pause yet
    watch.finished(19, 0.02)
    for step in range(20, 50):
        time.sleep(0.05)
        watch.finished(step, 0.5)
    time.sleep(1.0)  # twice the usual
    """
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_without_a_floor_nothing_is_watched() -> None:
    before = threading.active_count()
    with HangWatch(floor_s=0.0, factor=1.0).telling(print, print):
        assert threading.active_count() == before
    with HangWatch(floor_s=9.0, factor=1.0).telling(print, print):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_slow_operations_have_a_longer_limit() -> None:
    watch = HangWatch(floor_s=60.0, factor=10.0, start=100)
    assert watch.limit_s() == hang.LONGEST_S  # the first step
    watch.launching(101, "short")
    watch.finished(101, 2.0)
    assert watch.limit_s() == 60.0
    for step in range(102, 110):
        watch.launching(step, "short")
        watch.finished(step, 20.0)
    assert watch.limit_s() == 200.0
    watch.launching(110, "long")
    watch.finished(109, 20.0)  # the one before
    assert watch.limit_s() == hang.LONGEST_S
    watch.finished(110, 20.0)
    assert watch.limit_s() == 200.0
    with watch.pause(limit_s=9e9):
        assert watch.limit_s() == 9e9
    assert watch.limit_s() == hang.LONGEST_S
    watch.finished(111, 20.0)
    assert watch.limit_s() == 200.0


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("echotts.data.stream.stream", "the next batch"),
        ("echotts.training.feed", "the next batch"),
        ("echotts.codec.training.crops", "the next batch"),
        ("echotts.codec.training.loop", "a compilation or the devices"),
        ("echotts.training.report", "the devices"),
        ("echotts.checkpoint.checkpoints", "a checkpoint"),
        ("echotts.checkpoint.contents", "a checkpoint"),
        ("echotts.cli.train", "something else"),
    ],
)
def test_the_reason_for_waiting_is_derived_from_the_stack(module, words) -> None:
    assert importlib.util.find_spec(module) is not None
    names = {"__name__": module, "inspect": inspect}
    exec("def here():\n    return inspect.currentframe()", names)
    assert waiting_for(names["here"]()) == f"waiting for {words}, in here of {module}, line 2"
