"""One training at a time in a run directory."""

import json
import logging
import multiprocessing
import os
import socket
import time

import pytest

from echotts.rundir import claim
from echotts.rundir.claim import RunInUseError, claimed
from echotts.rundir.layout import TRAINER


def try_it(run_dir, answers) -> None:
    try:
        with claimed(run_dir):
            answers.put("claimed")
    except RunInUseError as error:
        answers.put(str(error))


def in_another_process(run_dir) -> str:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=try_it, args=(run_dir, answers))
    process.start()
    answer = answers.get(timeout=200)
    process.join()
    return answer


def test_a_second_training_is_rejected_naming_the_first_and_later_succeeds(tmp_path):
    with claimed(tmp_path):
        answer = in_another_process(tmp_path)
        who = f"{tmp_path}: in use by another training: host {socket.gethostname()}, process {os.getpid()}, since 20"
        assert answer.startswith(who) and "\n" not in answer
    assert in_another_process(tmp_path) == "claimed"


def left_by(tmp_path, host: str) -> None:
    (tmp_path / TRAINER).write_text(json.dumps({"host": host, "pid": 7, "since": "yesterday"}))


def test_a_claim_of_a_killed_training_on_this_host_is_replaced_immediately(tmp_path):
    left_by(tmp_path, socket.gethostname())
    with claimed(tmp_path):
        assert json.loads((tmp_path / TRAINER).read_text())["pid"] == os.getpid()
    assert (tmp_path / TRAINER).read_text() == ""


def test_a_claim_of_another_host_holds_while_its_file_is_touched(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(claim, "LOOK_S", 0.4)
    monkeypatch.setattr(claim, "HEARTBEAT_S", 0.4)
    left_by(tmp_path, "elsewhere")
    with caplog.at_level(logging.WARNING, logger="echotts"), claimed(tmp_path):
        assert "was in use on host elsewhere; waiting" in caplog.text
    left_by(tmp_path, "elsewhere")
    begun = time.time()
    monkeypatch.setattr(claim.time, "sleep", lambda seconds: os.utime(tmp_path / TRAINER, (begun + 1, begun + 1)))
    with pytest.raises(RunInUseError, match="host elsewhere, process 7, since yesterday"), claimed(tmp_path):
        pytest.fail("claimed")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": null}', "\x00" * 100])
def test_a_damaged_claim_without_a_holder_is_replaced(tmp_path, content):
    (tmp_path / TRAINER).write_text(content)
    with claimed(tmp_path):
        assert json.loads((tmp_path / TRAINER).read_text())["pid"] == os.getpid()
