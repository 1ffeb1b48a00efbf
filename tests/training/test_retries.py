"""Repeated requests as events: the first at once, few however many there are. Refused samples by their cause."""

import json
import threading
import time

import pytest

from echotts.data.remote.retry import Retries, RetryPolicy, retry
from echotts.data.remote.web import Unavailable
from echotts.rundir.metrics import MetricsWriter, metrics_path
from echotts.rundir.tensorboard import TensorBoard
from echotts.training import inputs
from echotts.training.loop import train
from echotts.training.report import RetryEvents
from tests.data.fake_hub import REPOSITORY, FakeHub, Status
from tests.tiny_training import TINY, with_sections


def test_the_first_retry_is_reported_at_once_then_one_per_minute_with_the_number_of_others():
    told, now = [], [0.0]
    events = RetryEvents(told.append, clock=lambda: now[0])
    for second in range(125):
        now[0] = float(second)
        events(f"x: 503 at {second}")
    assert told == [
        "x: 503 at 0",
        "x: 503 at 60; 59 more since the last such line",
        "x: 503 at 120; 59 more since the last such line",
    ]


def test_a_retry_is_logged_with_request_reason_and_delay():
    retries = Retries(RetryPolicy(deadline_s=9.0, first_wait_s=0.01))
    heard = []
    retries.listener = heard.append
    answers = iter([Unavailable("http://h/s-000.tar: HTTP 503", status=503), None])

    def ask():
        if error := next(answers):
            raise error
        return b"tar"

    assert retry(ask, "http://h/s-000.tar", retries) == b"tar"
    [words] = heard
    assert words.startswith("http://h/s-000.tar: http://h/s-000.tar: HTTP 503; retrying in 0.0 s, for up to 9 s")


def test_a_full_disk_does_not_end_the_download():
    def full(words):
        raise OSError("no space left on device")

    RetryEvents(full)("x")


def test_lines_of_several_threads_are_written_one_after_the_other(tmp_path):
    class Beside(TensorBoard):
        """In whose file two at once would mix their bytes."""

        def __init__(self):
            self.writing, self.met = 0, False

        def write(self, step, values, words=None):
            self.writing += 1
            time.sleep(0.002)
            self.met |= self.writing > 1
            self.writing -= 1

        def close(self):
            pass

    beside = Beside()
    with MetricsWriter(tmp_path, beside=beside) as writer:

        def write():
            for step in range(20):
                writer.event(step, "retry", "x" * 3000, {"host/retries": step})

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len([json.loads(line) for line in metrics_path(tmp_path).read_text().splitlines()]) == 80
    assert not beside.met


@pytest.mark.network_fake
def test_a_run_logs_waiting_and_counts_rejections_by_cause(tmp_path, shards, monkeypatch):
    impatient = {"first_wait_s": 0.05, "longest_wait_s": 0.1}
    monkeypatch.setattr(inputs, "RetryPolicy", lambda deadline_s: RetryPolicy(deadline_s=deadline_s, **impatient))
    run_dir = tmp_path / "run"
    files = {f"train/{path.name}": path.read_bytes() for path in shards.iterdir()}
    files["train/s-001.tar"] = files["train/s-001.tar"][:20_000]

    def heal():
        path = metrics_path(run_dir)
        while not (path.exists() and '"retry"' in path.read_text()):
            time.sleep(0.05)
        time.sleep(2.5)  # longer than the first wait: another request is repeated
        hub.heal("train/s-000.tar")

    with FakeHub() as hub:
        hub.commit(files)
        open_stream = inputs.open_stream

        def listed(*given, **named):  # from here on shards are fetched
            hub.trouble("train/s-000.tar", forever=Status(503))
            return open_stream(*given, **named)

        monkeypatch.setattr(inputs, "open_stream", listed)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        healer = threading.Thread(target=heal, daemon=True)
        healer.start()
        data = {"data": f"hf://datasets/{REPOSITORY}/train", "cache_dir": str(tmp_path / "cache")}
        data |= {"max_rejected_share": 1.0}
        assert train(with_sections(TINY, data=data, run={"run_dir": str(run_dir)})).finished
        healer.join()
    lines = [json.loads(line) for line in metrics_path(run_dir).read_text().splitlines()]
    [event] = [line for line in lines if line.get("event") == "retry"]  # of many
    assert "s-000.tar" in event["message"] and "503" in event["message"]
    last = [line for line in lines if "loss/train" in line][-1]
    assert last["host/retries"] > event["host/retries"] >= 1
    assert last["data/rejected_truncated_shard"] >= 1
    assert last["data/rejected_samples"] == sum(n for name, n in last.items() if name.startswith("data/rejected_")) / 2
