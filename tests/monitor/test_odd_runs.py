"""Runs with odd names, depths and contents: they are shown as far as they can be, and the rest keeps being served."""

import json
import os
import subprocess
import time

import pytest

from echotts.monitor.runs import Library
from tests.monitor.conftest import ask, get, served
from tests.monitor.fake_run import make_run, make_samples

DEEP = "[" * 400 + "]" * 400


@pytest.fixture
def shelf(tmp_path):
    """A folder with one good run."""
    make_run(tmp_path / "good", ending="finished")
    return tmp_path


def answers(shelf) -> dict[str, list[int]]:
    """The status of each route of each run; all of them within a second each."""
    found: dict[str, list[int]] = {}
    with served(Library([], str(shelf))) as port:
        for run in ask(port, "/api/runs")["runs"]:
            for what in ("names", "hosts", "events", "checkpoints", "samples", "config", "series?names=loss/train"):
                began = time.monotonic()
                found.setdefault(run["name"], []).append(get(port, f"/api/runs/{run['id']}/{what}")[0])
                assert time.monotonic() - began < 20, what  # 1 s on a machine that has nothing else to do
        ids = ",".join(run["id"] for run in ask(port, "/api/runs")["runs"])
        assert get(port, f"/api/compare?runs={ids}")[0] == 200
        assert get(port, "/api/alerts")[0] == 200
    return found


def test_names_that_are_not_utf8_are_shown_with_replacement_characters(shelf):
    odd = os.fsdecode(os.fsencode(shelf) + b"/b\xffd")
    samples = make_samples(make_run(shelf / "bad", ending="finished"), 7)
    (samples / os.fsdecode(b"s\xfe.wav")).write_bytes((samples / "reference.wav").read_bytes())
    metrics = next((shelf / "good" / "metrics").iterdir())
    (metrics.parent / os.fsdecode(b"h\xfest.jsonl")).write_bytes(metrics.read_bytes())
    os.rename(shelf / "bad", odd)
    assert answers(shelf) == {"good": [200] * 7, "b\N{REPLACEMENT CHARACTER}d": [200] * 7}


def test_folders_1100_deep_in_a_checkpoint_cost_one_run_nothing_but_its_size(shelf):
    here = os.open((shelf / "good" / "checkpoints"), os.O_RDONLY)
    for name in ("step_00009999", *["d"] * 1100):
        os.mkdir(name, dir_fd=here)
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    try:
        make_run(shelf / "other", ending="finished")
        assert answers(shelf) == {"good": [200] * 7, "other": [200] * 7}
    finally:  # pytest's own cleanup would reach the recursion limit
        subprocess.run(["rm", "-rf", shelf / "good" / "checkpoints"], check=True)


@pytest.mark.parametrize("content", [f'{{"a": {DEEP}}}', DEEP, '{"optim": 3}', '{"run": {"x": 1e999}}', "\x00"])
def test_a_configuration_of_any_content_leaves_the_run_open(shelf, content):
    (shelf / "good" / "config.json").write_text(content)
    assert answers(shelf) == {"good": [200] * 7}


@pytest.mark.parametrize(
    "content", ['{"a.wav": {"reference": ["b"], "text": {}, "heard": 3}}', '["a"]', f'{{"a.wav": {DEEP}}}', "3", "\xff"]
)
def test_wrong_sentences_leave_the_samples_without_texts(shelf, content):
    folder = make_samples(shelf / "good", 9)
    (folder / "a.wav").write_bytes((folder / "reference.wav").read_bytes())
    (folder / "sentences.json").write_text(content, encoding="latin-1")
    assert answers(shelf) == {"good": [200] * 7}


def test_metrics_lines_400_deep_are_counted_as_bad(shelf):
    metrics = next((shelf / "good" / "metrics").iterdir())
    with metrics.open("a") as file:
        file.write(json.dumps({"time": 1.0, "step": 1, "event": "nan", "message": "x"})[:-1] + f', "deep": {DEEP}}}\n')
    assert answers(shelf) == {"good": [200] * 7}


def test_ranges_with_thousands_of_digits_do_not_affect_the_next_request(finished_run):
    digits = "9" * 5000
    with served(Library([str(finished_run)], None)) as port:
        run = ask(port, "/api/runs")["runs"][0]["id"]
        item = ask(port, f"/api/runs/{run}/samples")["samples"][0]["items"][0]["id"]
        for asked in (f"bytes={digits}-", f"bytes=0-{digits}", f"bytes=-{digits}"):
            assert get(port, f"/api/runs/{run}/audio/{item}", Range=asked)[0] in (206, 400, 416)
        assert get(port, f"/api/runs/{run}/audio/{item}", Range="bytes=10-19")[0] == 206


def test_below_a_proxy_path_everything_works_whether_or_not_the_proxy_strips_it(finished_run):
    with served(Library([str(finished_run)], None), root_path="/proxy/8080") as port:
        for path in ("/proxy/8080/", "/", "/proxy/8080/api/runs", "/api/runs", "/proxy/8080/static/page.js"):
            assert get(port, path)[0] == 200, path
        assert get(port, "/proxy/80801/api/runs")[0] == 404
        page = get(port, "/proxy/8080/")[2].decode()
        assert 'src="static/page.js"' in page and '="/' not in page


def test_the_token_leads_back_below_the_proxys_path(finished_run):
    token = "a-token-of-the-tests-0123456789"
    with served(Library([str(finished_run)], None), token=token, tunnel=True, root_path="/proxy/8080") as port:
        status, headers, _ = get(port, f"/proxy/8080/?token={token}")
        assert (status, headers["Location"]) == (303, "/proxy/8080/")
        assert "Path=/proxy/8080" in headers["Set-Cookie"]
        login = get(port, "/proxy/8080/", Accept="text/html")[2].decode()
        assert 'action="/proxy/8080/login"' in login and 'href="/proxy/8080/static/page.css"' in login


def test_the_list_of_runs_has_the_columns_of_its_table(finished_run):
    with served(Library([str(finished_run)], None)) as port:
        (run,) = ask(port, "/api/runs")["runs"]
        lines = [json.loads(line) for path in (finished_run / "metrics").iterdir() for line in path.open()]
        losses = [(line["time"], line["loss/train"]) for line in lines if line.get("loss/train") is not None]
        assert run["loss"] == pytest.approx(max(losses)[1], rel=1e-6)
        assert run["heldout_loss"] > 0 and run["samples_per_s"] > 0
