"""Alerts and the webhook."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from echotts.monitor import alerts as module
from echotts.monitor.alerts import Webhook, alerts
from echotts.monitor.runs import Library
from tests.monitor.fake_run import event_line, make_run, train_line, write_lines

END = 1_800_000_000.0


def kinds(run_dir, now):
    return [(alert.kind, alert.host) for alert in alerts(Library([str(run_dir)], None), now)]


def say(run_dir, *lines, host="host-0"):
    write_lines(run_dir / "metrics" / f"{host}.jsonl", iter(lines))


@pytest.fixture
def run_dir(tmp_path):
    return make_run(tmp_path / "run", end=END)


def test_a_run_that_is_well_or_over_or_long_gone_raises_none(tmp_path, run_dir):
    assert kinds(run_dir, END + 10) == []
    assert kinds(make_run(tmp_path / "done", end=END, ending="finished"), END + 3600) == []
    assert kinds(run_dir, END + 90_000) == []  # runs of last month raise no alerts


def test_silence_and_failure(tmp_path, run_dir):
    [alert] = alerts(Library([str(run_dir)], None), END + 3600)
    assert (alert.kind, alert.host) == ("stale", None)
    assert alert.message.startswith("no line for 60 min")
    assert alert.message.endswith("; host-1 is furthest behind, at step 1980")
    alone = make_run(tmp_path / "alone", end=END, hosts=1)
    assert kinds(alone, END + 3600) == [("stale", "host-0")]
    failed = make_run(tmp_path / "failed", end=END, ending="failed")
    [alert] = alerts(Library([str(failed)], None), END + 3600)
    assert (alert.kind, alert.message) == ("failed", "OSError: disk quota exceeded")
    assert alert.host == "host-0"
    assert alert.since == pytest.approx(END, abs=1)


def test_a_host_that_falls_silent_while_others_continue_is_named(run_dir):
    say(run_dir, *(train_line(2000 + step, END + step) for step in range(10, 400, 10)))
    [alert] = alerts(Library([str(run_dir)], None), END + 400)
    assert (alert.kind, alert.host, alert.since) == ("stale", "host-1", pytest.approx(END, abs=1))
    assert alert.message == "no line for 7 min, the last of step 1980; other hosts continue"
    say(run_dir, event_line(2390, END + 395, "resumed", "after step 2390"))  # without that machine
    assert kinds(run_dir, END + 400) == []


def test_the_host_that_failed_first_is_named(run_dir):
    say(run_dir, event_line(2001, END + 2, "failed", "the others are gone"))
    say(run_dir, event_line(2000, END + 1, "failed", "no memory", 1), host="host-1")
    assert kinds(run_dir, END + 10) == [("failed", "host-1")]


def test_a_number_that_is_not_finite_until_the_run_resumes(run_dir):
    say(run_dir, train_line(2010, END + 5) | {"loss/train": None})
    assert kinds(run_dir, END + 10) == [("nan", None)]
    say(run_dir, event_line(2010, END + 6, "nan", "step 2010: loss nan"))
    [alert] = alerts(Library([str(run_dir)], None), END + 10)
    assert alert.message == "step 2010: loss nan"
    say(run_dir, event_line(1500, END + 60, "resumed", ""), train_line(1510, END + 70))
    assert kinds(run_dir, END + 75) == []


def test_a_step_skipped_by_the_trainer_raises_no_alert_once_it_continues(run_dir):
    say(run_dir, event_line(2010, END + 5, "nan", "step 2010: loss nan"))
    say(run_dir, event_line(2010, END + 5, "skipped", "1 in 500 steps"), train_line(2020, END + 6))
    assert kinds(run_dir, END + 10) == []
    say(run_dir, event_line(2030, END + 7, "nan", "step 2030: loss nan"))
    assert kinds(run_dir, END + 10) == [("nan", None)]


def test_waiting_for_data_over_several_lines(run_dir):
    say(run_dir, train_line(2010, END + 5) | {"time/data_wait_share": 0.9})
    assert kinds(run_dir, END + 10) == []  # a single line is not enough
    say(
        run_dir,
        *(train_line(2010 + step, END + 5 + step) | {"time/data_wait_share": 0.5} for step in range(10, 60, 10)),
    )
    assert kinds(run_dir, END + 60) == [("data_wait", "host-0")]


def test_a_disk_that_fills_by_its_host(run_dir):
    say(run_dir, train_line(1990, END + 5, 1) | {"host/disk_free_share": 0.03}, host="host-1")
    assert kinds(run_dir, END + 10) == [("disk", "host-1")]
    full = event_line(7, END + 6, "disk_full", "97 % full, nothing more to remove", -1)
    say(run_dir, full, host="host-0.watchdog")
    found = {alert.host: alert.message for alert in alerts(Library([str(run_dir)], None), END + 10)}
    assert found == {"host-0": "97 % full, nothing more to remove", "host-1": "3.0% of the disk is free"}


class Listener:
    """A webhook on a free port; `codes` are its responses, the last one repeated."""

    def __init__(self, *codes: int):
        self.bodies: list[dict] = []
        heard, left = self.bodies, list(codes)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(left.pop(0) if len(left) > 1 else left[0])
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.mark.network_fake
def test_the_webhook_is_notified_once_when_an_alert_begins_and_once_when_it_ends(run_dir):
    listener = Listener(200)
    now = [END + 10]
    hook = Webhook(Library([str(run_dir)], None), listener.url, clock=lambda: now[0])
    assert not hook.look() and listener.bodies == []
    now[0] = END + 3600
    assert hook.look() and not hook.look()
    [body] = listener.bodies
    assert body["text"].startswith("run stale: no line for 60 min")
    assert [alert["kind"] for alert in body["began"]] == ["stale"] and body["ended"] == []
    now[0] = END + 10
    assert hook.look()
    assert listener.bodies[1]["text"] == "run stale: over"
    listener.server.shutdown()


@pytest.mark.network_fake
def test_failed_webhook_deliveries_are_retried(run_dir, monkeypatch, caplog):
    monkeypatch.setattr(module, "WEBHOOK_TRIES", 1)
    listener = Listener(500, 200)
    hook = Webhook(Library([str(run_dir)], None), listener.url, clock=lambda: END + 3600)
    assert not hook.look()
    assert "1 alerts could not be sent: HTTP Error 500" in caplog.text
    assert hook.look() and len(listener.bodies) == 2
    listener.server.shutdown()
    listener.server.server_close()
    monkeypatch.setattr(hook, "_standing", {})
    assert not hook.look()  # nobody listens: a line in the log, no exception
