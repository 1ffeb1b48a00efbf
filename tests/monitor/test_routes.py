"""The dashboard as its page meets it: real requests to a real server on 127.0.0.1."""

import gzip
import json
import threading
import time

import pytest

from echotts.monitor.runs import Library
from tests.monitor.conftest import ask, get, served, the_run
from tests.monitor.fake_run import make_run, train_line, write_lines

pytestmark = pytest.mark.network_fake


def test_every_answer_of_the_contract(open_port):
    runs = ask(open_port, "/api/runs")
    assert runs["version"] and abs(runs["now"] - time.time()) < 60
    [run] = runs["runs"]
    assert (run["name"], run["status"], run["step"], run["steps"], run["progress"]) == (
        "run",
        "finished",
        2000,
        5000,
        0.4,
    )
    assert (run["bad_lines"], run["truncated"], run["metrics_where"], run["missing"]) == (0, 0, None, [])
    base = f"/api/runs/{run['id']}"
    names = {row["name"]: row for row in ask(open_port, f"{base}/names")["names"]}
    assert names["time/step_s"]["unit"] == "s" and names["time/step_s"]["description"].startswith("mean seconds")
    assert (names["heldout/loss"]["count"], names["compile/count"]["last"]) == (4, 1.0)
    series = ask(open_port, f"{base}/series?names=loss/train,heldout/loss,x&points=20&smooth=0.9")
    assert series["reset"] is False and series["series"]["x"] == {"x": [], "y": [], "smooth": []}
    line = series["series"]["loss/train"]
    assert (
        10 < len(line["x"]) <= 20 and line["x"][-1] == 2000 and len(line["smooth"]) == len(line["y"]) == len(line["x"])
    )
    new = ask(open_port, f"{base}/series?names=loss/train&since={series['cursor']}")
    assert new["series"]["loss/train"]["x"] == [] and new["cursor"] == series["cursor"]
    assert [host["host"] for host in ask(open_port, f"{base}/hosts")["hosts"]] == ["host-0", "host-1"]
    events = ask(open_port, f"{base}/events")
    assert [row["event"] for row in events["events"]].count("resumed") == 2  # of different steps
    assert [row["host"] for row in events["events"] if row["event"] == "disk_cleaned"] == ["host-0 and 1 more"]
    assert ask(open_port, f"{base}/events?since={events['cursor']}")["events"] == []
    assert ask(open_port, f"{base}/checkpoints")["checkpoints"][1]["complete"] is True
    assert ask(open_port, f"{base}/config")["config"]["preset"] == "demo"
    assert ask(open_port, f"/api/compare?runs={run['id']},nobody")["differences"] == []
    assert ask(open_port, "/api/alerts") == {"alerts": []}
    item = ask(open_port, f"{base}/samples")["samples"][0]["items"][0]
    assert (item["text"], item["heard"], item["seconds"]) == ("seven three one nine", "", 1.0)
    assert get(open_port, f"/{item['picture']}")[2].startswith(b"\x89PNG")
    assert get(open_port, f"{base}/audio/{item['reference_id']}")[2].startswith(b"RIFF")


def test_the_page_and_its_static_files_are_served(open_port):
    status, headers, body = get(open_port, "/")
    assert status == 200 and headers["Content-Type"].startswith("text/html") and b"<title>" in body
    assert get(open_port, "/", If_None_Match=headers["ETag"])[0] == 304
    status, headers, _ = get(open_port, "/static/uPlot.iife.min.js")
    assert status == 200 and headers["Content-Type"].startswith("text/javascript")


def test_what_has_not_changed_is_not_sent_again(open_port):
    run = the_run(open_port)
    for path in ("/api/alerts", f"/api/runs/{run}/series?names=loss/train", f"/api/runs/{run}/names"):
        _, headers, _ = get(open_port, path)
        assert get(open_port, path, If_None_Match=headers["ETag"])[0] == 304
    first = get(open_port, f"/api/runs/{run}/series?names=loss/train")[1]["ETag"]
    assert get(open_port, f"/api/runs/{run}/series?names=grad/norm")[1]["ETag"] != first


def test_large_answers_are_compressed_for_those_who_can_read_them(open_port):
    path = f"/api/runs/{the_run(open_port)}/series?names=loss/train,grad/norm,param/norm&smooth=0.9"
    _, headers, packed = get(open_port, path, Accept_Encoding="gzip")
    assert headers["Content-Encoding"] == "gzip"
    _, headers, plain = get(open_port, path)
    assert headers["Content-Encoding"] is None and gzip.decompress(packed) == plain


@pytest.mark.parametrize(
    ("asked", "status", "got"),
    [
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=30000-", 206, slice(30000, None)),
        ("bytes=-10", 206, slice(-10, None)),
        ("bytes=100-99999999", 206, slice(100, None)),
        ("bytes=99999999-", 416, None),
        ("bytes=nonsense", 400, None),
    ],
)
def test_audio_in_ranges(open_port, asked, status, got):
    run = the_run(open_port)
    item = ask(open_port, f"/api/runs/{run}/samples")["samples"][0]["items"][0]["id"]
    whole = get(open_port, f"/api/runs/{run}/audio/{item}")[2]
    code, headers, body = get(open_port, f"/api/runs/{run}/audio/{item}", Range=asked)
    assert code == status
    if got is not None:
        assert body == whole[got]
    if status == 206:
        first, _, rest = headers["Content-Range"].removeprefix("bytes ").partition("-")
        assert whole[int(first) :].startswith(body) and rest == f"{int(first) + len(body) - 1}/{len(whole)}"


def test_export_as_csv_and_json(open_port):
    run = the_run(open_port)
    status, headers, body = get(open_port, f"/api/runs/{run}/export.csv?names=heldout/loss,loss/train")
    lines = body.decode().splitlines()
    assert status == 200 and headers["Content-Disposition"] == 'attachment; filename="run.csv"'
    assert lines[0] == "name,step,time,value" and len(lines) == 1 + 4 + 200
    name, step, _, value = lines[1].split(",")
    assert (name, step, value) == ("heldout/loss", "500", "1.116531")
    exported = json.loads(get(open_port, f"/api/runs/{run}/export.json")[2])["series"]
    assert exported["loss/train"]["step"] == list(range(10, 2001, 10))
    assert len(exported) == len(ask(open_port, f"/api/runs/{run}/names")["names"])


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/..%2fserver.py",
        "/static/%2e%2e/%2e%2e/security.py",
        "/static//etc/passwd",
        "/static/page.html%00.js",
        "/etc/passwd",
        "//etc/passwd",
        "/api/runs/..%2f..%2fetc/config",
        "/api/runs/{run}/audio/..%2f..%2fconfig.json",
        "/api/runs/{run}/audio/%2fetc%2fpasswd",
        "/api/runs/{run}/audio/../../../../config.json",
        "/api/runs/{run}/picture/samples%2fstep_00000500%2freference.wav",
        "/api/runs/{run}/audio/samples/step_00000500/reference.wav",
    ],
)
def test_no_path_leads_to_a_file(open_port, path):
    status, _, body = get(open_port, path.format(run=the_run(open_port)))
    assert status == 404, body
    assert b"root:" not in body and b"import" not in body


@pytest.mark.parametrize(
    "query",
    [
        "",
        "names=",
        "names=a&x=depth",
        "names=a&points=0",
        "names=a&points=1e9",
        "names=a&points=nan",
        "names=a&smooth=1",
        "names=a&smooth=x",
        "names=a&since=../..",
        "names=" + ",".join(map(str, range(101))),
    ],
)
def test_invalid_requests_get_an_explanation(open_port, query):
    status, _, body = get(open_port, f"/api/runs/{the_run(open_port)}/series?{query}")
    assert status == 400 and json.loads(body)["error"]


def test_a_page_sees_the_run_grow(tmp_path, monkeypatch):
    monkeypatch.setattr("echotts.monitor.folders.LocalFolder.refresh_s", 0.0)
    run_dir = make_run(tmp_path / "run", steps=500)
    with served(Library([str(run_dir)], None)) as port:
        path = f"/api/runs/{the_run(port)}/series?names=loss/train"
        first = ask(port, path)
        write_lines(run_dir / "metrics" / "host-0.jsonl", iter([train_line(510, time.time())]))
        new = ask(port, f"{path}&since={first['cursor']}")
        assert new["series"]["loss/train"]["x"] == [510] and not new["reset"]
        (run_dir / "metrics" / "host-0.jsonl").write_text(json.dumps(train_line(10, time.time())) + "\nbad\n")
        again = ask(port, f"{path}&since={new['cursor']}")
        assert again["series"]["loss/train"]["x"] == [10] and again["reset"]
        [run] = ask(port, "/api/runs")["runs"]
        assert (run["bad_lines"], run["truncated"]) == (1, 1)


def test_requests_are_served_concurrently(open_port):
    """Many pages at once: each gets a complete response."""
    answers = []
    path = f"/api/runs/{the_run(open_port)}/series?names=loss/train,grad/norm&smooth=0.9"
    threads = [threading.Thread(target=lambda: answers.append(get(open_port, path)[::2])) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(answers) == 16 and all(answer == (200, answers[0][1]) for answer in answers)
