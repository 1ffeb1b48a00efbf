"""A synthetic run, a real server for it on a free port of 127.0.0.1, and requests to it."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from echotts.monitor.runs import Library
from echotts.monitor.security import called
from echotts.monitor.serve import listen, make_server
from tests.monitor.fake_run import make_run

TOKEN = "a-token-of-the-tests-0123456789"


@pytest.fixture
def run_dir(tmp_path) -> Path:
    return make_run(tmp_path / "run")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """A run that nobody writes to; for tests that only read."""
    return make_run(tmp_path_factory.mktemp("finished") / "run", ending="finished")


@contextmanager
def served(library: Library, *, token: str | None = None, tunnel: bool = False, root_path: str = "") -> Iterator[int]:
    """The port of a server that answers until the block is left."""
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        server = make_server(library, called("127.0.0.1", (), tunnel, "this-machine", token, port, root_path))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline and thread.is_alive()
            time.sleep(0.01)
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.fixture(scope="module")
def open_port(finished_run):
    with served(Library([str(finished_run)], None)) as port:
        yield port


@pytest.fixture(scope="module")
def locked_port(finished_run):
    with served(Library([str(finished_run)], None), token=TOKEN, tunnel=True) as port:
        yield port


def get(port, path="/", method="GET", body=None, **headers):
    """(status, headers, body)"""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    got = answer.status, answer.headers, answer.read()
    connection.close()
    return got


def ask(port, path, **headers):
    status, _, body = get(port, path, **headers)
    assert status == 200, body
    return json.loads(body)


def the_run(port, **headers):
    return ask(port, "/api/runs", **headers)["runs"][0]["id"]
