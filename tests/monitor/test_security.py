"""The dashboard against untrusted clients: access and robustness. Real requests to a real server."""

import contextlib
import http.client
import json
import socket
import time
import urllib.parse

import pytest

from echotts.monitor import security
from echotts.monitor.runs import Library
from echotts.monitor.security import called, host_name, needs_token, read_token
from echotts.monitor.serve import listen
from tests.monitor.conftest import TOKEN, ask, get, served, the_run
from tests.monitor.fake_run import event_line, make_run, train_line, write_lines

pytestmark = pytest.mark.network_fake

EVIL = "<script>alert(1)</script>"


def raw(port, request: bytes, timeout_s: float = 20) -> bytes:
    """The server's response to these bytes, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        connection.sendall(request)
        said = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                said += part
    return said


def test_only_reading_and_no_foreign_origin(open_port):
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        status, headers, _ = get(open_port, "/api/runs", method, Origin="https://evil.example")
        assert status == 405 and headers["Access-Control-Allow-Origin"] is None
        assert get(open_port, "/nowhere", method)[0] == 405
    status, headers, body = get(open_port, "/api/runs", "HEAD")
    assert (status, body) == (200, b"")
    _, headers, _ = get(open_port, "/api/runs", Origin="https://evil.example")
    assert headers["Access-Control-Allow-Origin"] is None


@pytest.mark.parametrize("path", ["/", "/api/runs", "/nowhere", "/static/uPlot.min.css"])
def test_every_answer_has_its_headers(open_port, path):
    headers = get(open_port, path)[1]
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy and "http" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
    assert headers["Server"] is None


@pytest.mark.parametrize(
    ("host", "good"),
    [
        ("127.0.0.1:{port}", True),
        ("localhost:{port}", True),
        ("[::1]:{port}", True),
        ("LOCALHOST", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example:{port}", False),
        ("localhost.evil.example", False),
        ("quick-tunnel.trycloudflare.com", False),
        ("this-machine", False),
        ("", False),
        ("localhost:80:80", False),
        ("[::1", False),
    ],
)
def test_a_foreign_host_header_is_refused(open_port, host, good):
    """A DNS rebinding attack: a page of evil.example whose name now resolves to 127.0.0.1."""
    assert (get(open_port, "/api/runs", Host=host.format(port=open_port))[0] == 200) is good


def test_the_tunnel_and_given_names_are_accepted():
    access = called("127.0.0.1", ["Dash.Example."], True, "machine", TOKEN, 1)
    for name in ("quick.trycloudflare.com", "dash.example", "machine:1"):
        assert access.knows_host(name)
    for name in ("trycloudflare.com.evil.example", "eviltrycloudflare.com", "other.example"):
        assert not access.knows_host(name)
    assert host_name("A.b:80") == "a.b" and host_name("[::1]:80") == "::1" and host_name("a:b") is None


def test_nothing_is_seen_without_the_token(locked_port):
    for path in ("/api/runs", "/static/uPlot.min.css", "/api/alerts", "/nowhere", "/api/runs?token="):
        status, headers, body = get(locked_port, path)
        assert status == 401 and headers["Set-Cookie"] is None
        assert json.loads(body)["error"]
    status, headers, body = get(locked_port, "/")
    assert status == 401 and headers["Content-Type"].startswith("text/html")
    assert b'<form method="get" action="/login">' in body and b"uPlot" not in body


@pytest.mark.parametrize("wrong", ["x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "%00", "ü", urllib.parse.quote(EVIL)])
def test_a_wrong_token_is_refused_and_not_repeated(locked_port, wrong):
    status, headers, body = get(locked_port, f"/?token={urllib.parse.quote(wrong)}")
    assert status == 401 and headers["Set-Cookie"] is None
    assert b"That token is wrong" in body and b"<script" not in body
    for cookie in (wrong, TOKEN):  # the cookie does not hold the token itself
        safe = urllib.parse.quote(cookie)
        assert get(locked_port, "/api/runs", Cookie=f"echotts_{locked_port}={safe}")[0] == 401


def test_the_token_is_exchanged_for_a_cookie(locked_port):
    status, headers, _ = get(locked_port, f"/api/runs?a=1&token={TOKEN}&b=%20x")
    assert status == 303 and headers["Location"] == "/api/runs?a=1&b=+x"
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and TOKEN not in cookie and "Secure" not in cookie
    value = cookie.partition(";")[0]
    assert get(locked_port, "/api/runs", Cookie=f"other=1; {value}")[0] == 200
    status, headers, _ = get(locked_port, f"/login?token={TOKEN}", X_Forwarded_Proto="https")
    assert (status, headers["Location"]) == (303, "/") and "Secure" in headers["Set-Cookie"]
    status, headers, _ = get(locked_port, f"//evil.example/?token={TOKEN}")
    assert headers["Location"].startswith("/evil.example")  # never to another host
    assert get(locked_port, "/api/runs?token=wrong", Cookie=value)[0] == 401
    assert get(locked_port, "/api/runs", Cookie=value, Host="evil.example")[0] == 421


def test_when_a_token_is_needed():
    assert not needs_token("127.0.0.1", False) and not needs_token("localhost", False) and not needs_token("::1", False)
    assert needs_token("127.0.0.1", True)
    for host in ("0.0.0.0", "::", "192.168.1.5", "pod-w-0"):
        assert needs_token(host, False)


def test_the_token_file_is_made_for_its_owner_alone(tmp_path):
    path = tmp_path / "token"
    token = read_token(path)
    assert len(token) > 40 and read_token(path) == token and path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(ValueError, match="others can read the token: chmod 600"):
        read_token(path)
    path.chmod(0o600)
    path.write_text("short\n")
    with pytest.raises(ValueError, match="at least 16 printable ASCII characters"):
        read_token(path)


def test_a_script_in_a_name_a_text_or_a_configuration_stays_text(tmp_path):
    run_dir = make_run(tmp_path / "run", steps=500)
    lines = [train_line(510, time.time()) | {EVIL: 1.0}, event_line(510, time.time(), "nan", EVIL) | {"event": EVIL}]
    write_lines(run_dir / "metrics" / f"{EVIL.replace('/', '_')}.jsonl", iter(lines))
    (run_dir / "config.json").write_text(json.dumps({EVIL: EVIL}))
    (run_dir / "samples" / "step_00000500" / "sentences.json").write_text(json.dumps({"01_zero-zero-four.wav": EVIL}))
    with served(Library([str(run_dir)], None)) as port:
        run = the_run(port)
        for path in (
            "names",
            "hosts",
            "events",
            "config",
            "samples",
            f"series?names={urllib.parse.quote(EVIL)}",
            "export.csv",
        ):
            status, headers, body = get(port, f"/api/runs/{run}/{path}")
            assert status == 200 and b"script" in body
            assert headers["Content-Type"].split(";")[0] in ("application/json", "text/csv")
            assert headers["X-Content-Type-Options"] == "nosniff"
        status, headers, body = get(port, f"/{urllib.parse.quote(EVIL)}", Accept="text/html")
        assert status == 404 and b"<script" not in body


def test_huge_requests_are_refused(open_port):
    start = time.monotonic()
    assert raw(open_port, b"GET /" + b"a" * 20_000).startswith(b"HTTP/1.1 400")
    assert raw(open_port, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000).startswith(b"HTTP/1.1 400")
    head = b"GET /api/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000000\r\n\r\n"
    assert raw(open_port, head + b"x" * 1000).startswith(b"HTTP/1.1 413")
    chunked = b"GET /api/runs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert raw(open_port, chunked).startswith(b"HTTP/1.1 413")
    assert get(open_port, "/api/runs?" + "a" * 9000)[0] == 414
    assert raw(open_port, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert time.monotonic() - start < 20
    assert get(open_port, "/api/runs")[0] == 200


def test_two_hundred_slow_clients_do_not_keep_a_reader_waiting(open_port):
    slow = []
    try:
        for number in range(200):
            client = socket.create_connection(("127.0.0.1", open_port), timeout=10)
            client.sendall(b"GET /api/runs HTTP/1.1\r\nHost: localhost\r\n"[: 5 + number % 40])
            slow.append(client)
        took = []
        for _ in range(5):
            began = time.monotonic()
            assert get(open_port, "/api/runs")[0] == 200
            took.append(time.monotonic() - began)
            for client in slow[:20]:
                with contextlib.suppress(OSError):  # its time may be over
                    client.sendall(b"x")
        assert sorted(took)[2] < 1.0
    finally:
        for client in slow:
            client.close()


def test_beyond_the_limit_the_longest_waiting_goes(finished_run, monkeypatch):
    monkeypatch.setattr(security, "CONNECTIONS", 20)
    with served(Library([str(finished_run)], None)) as port:
        slow = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(30)]
        try:
            assert get(port, "/api/runs")[0] == 200
            for client in slow[:8]:
                assert closed(client)
            slow[-1].settimeout(0.2)
            with pytest.raises(TimeoutError):
                slow[-1].recv(1)
        finally:
            for client in slow:
                client.close()


def test_an_incomplete_request_times_out(finished_run, monkeypatch):
    monkeypatch.setattr(security, "REQUEST_S", 0.5)
    with served(Library([str(finished_run)], None)) as port:
        client = socket.create_connection(("127.0.0.1", port), timeout=10)
        client.sendall(b"GET / HTTP/1.1\r\n")
        silent = socket.create_connection(("127.0.0.1", port), timeout=10)
        assert closed(client) and closed(silent)
        again = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        again.request("GET", "/api/alerts")
        again.getresponse().read()
        time.sleep(0.8)  # an open connection may be idle
        again.request("GET", "/api/alerts")
        assert again.getresponse().status == 200
        again.close()


def test_a_response_that_is_not_received_is_aborted(tmp_path, monkeypatch):
    monkeypatch.setattr(security, "ANSWER_STALL_S", 0.5)
    run_dir = make_run(tmp_path / "run", steps=500)
    (run_dir / "samples" / "step_00000500" / "02_long.wav").write_bytes(b"RIFF" + b"0" * (30 << 20))
    with served(Library([str(run_dir)], None)) as port:
        run = the_run(port)
        item = ask(port, f"/api/runs/{run}/samples")["samples"][0]["items"][2]["id"]
        client = socket.create_connection(("127.0.0.1", port), timeout=10)
        client.sendall(f"GET /api/runs/{run}/audio/{item} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        time.sleep(1.5)
        assert swallowed(client) < 30 << 20
        client.close()


def swallowed(client: socket.socket) -> int:
    """How many bytes come before the connection ends, one way or another."""
    got = 0
    try:
        while part := client.recv(1 << 20):
            got += len(part)
    except ConnectionResetError:
        pass
    return got


def closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_an_address_in_use_is_an_error_with_the_remedy(open_port):
    with pytest.raises(OSError, match=rf"127.0.0.1:{open_port}: address already in use: choose another --port"):
        listen("127.0.0.1", open_port)
