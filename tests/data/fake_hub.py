"""A local server with the Hub's routes used by huggingface_hub and the fetcher, which can simulate failures.

    with FakeHub() as hub:
        hub.commit({"train/s-000.tar": payload})          # moves main
        hub.trouble("train/s-000.tar", Cut(1000), Status(503))   # the next two GETs of it; `forever` for all

Files are at /datasets/ORG/NAME/resolve/REVISION/PATH (and, without listing or hashes, at /plain/PATH); all requests are
recorded in `hub.requests`. It runs in threads of the test process.
"""

import hashlib
import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REPOSITORY = "org/speech"


@dataclass(frozen=True)
class Status:
    """An answer without the file."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cut:
    """The connection ends after so many bytes of the body."""

    bytes: int


@dataclass(frozen=True)
class Stall:
    """After so many bytes nothing comes for so long."""

    bytes: int
    seconds: float


@dataclass(frozen=True)
class Html:
    """A page instead of the file, with status 200."""


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str
    authorised: bool
    status: int


Trouble = Status | Cut | Stall | Html


class FakeHub:
    """One data set, org/speech, with its commits; `token` makes it private."""

    def __init__(self, token: str | None = None) -> None:
        self.token = token
        self.commits: dict[str, dict[str, bytes]] = {}
        self.main = ""
        self.requests: list[Request] = []
        self.elsewhere = False  # files are behind a redirect to another host name
        self._troubles: dict[str, list[Trouble]] = defaultdict(list)
        self._always: dict[str, Trouble] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def other_url(self) -> str:
        return f"http://localhost:{self._server.server_port}"

    def commit(self, files: Mapping[str, bytes]) -> str:
        """A new commit of these files, which main names from now on."""
        self.main = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[self.main] = dict(files)
        return self.main

    def trouble(self, path: str, *troubles: Trouble, forever: Trouble | None = None) -> None:
        """Sets the results of the next GETs of a file (or of an API route), in order; then `forever`."""
        self._troubles[path] += troubles
        if forever is not None:
            self._always[path] = forever

    def heal(self, path: str) -> None:
        """Nothing happens to the GETs of a file any more."""
        self._troubles.pop(path, None)
        self._always.pop(path, None)

    def next_trouble(self, path: str) -> Trouble | None:
        return self._troubles[path].pop(0) if self._troubles[path] else self._always.get(path)

    def gets(self, path: str) -> list[Request]:
        """The GETs whose path ends like this."""
        return [request for request in self.requests if request.method == "GET" and request.path.endswith(path)]

    def __enter__(self) -> "FakeHub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if path.startswith("/api/"):
                self._api(path)
            elif found := re.fullmatch(rf"/datasets/{REPOSITORY}/resolve/([^/]+)/(.+)", path):
                if hub.elsewhere:
                    self._send(302, b"", {"Location": f"{hub.other_url}/plain/{found[2]}"})
                elif self._may_read():
                    self._file(found[1], found[2])
            elif path.startswith("/plain/"):
                self._file("main", path.removeprefix("/plain/"))
            else:
                self._send(404, b"no such route")

        def _api(self, path: str) -> None:
            trouble = hub.next_trouble(path)
            if isinstance(trouble, Status):
                self._send(trouble.code, b"{}", trouble.headers)
                return
            found = re.fullmatch(rf"/api/datasets/{REPOSITORY}(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", path)
            if found is None:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                return
            if not self._may_read():
                return
            commit = hub.main if found[2] in (None, "main") else found[2]
            if commit not in hub.commits:
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif found[1] == "tree":
                self._json(list(self._tree(hub.commits[commit], found[3] or "")))
            else:
                names = [{"rfilename": name} for name in hub.commits[commit]]
                self._json({"id": REPOSITORY, "sha": commit, "private": False, "tags": [], "siblings": names})

        def _tree(self, files: Mapping[str, bytes], folder: str) -> Iterable[dict]:
            deep = "recursive=true" in self.path.lower()
            prefix = f"{folder}/" if folder else ""
            for name, payload in files.items():
                if not name.startswith(prefix) or ("/" in name.removeprefix(prefix) and not deep):
                    continue
                blob = hashlib.sha1(f"blob {len(payload)}\0".encode() + payload).hexdigest()
                entry = {"type": "file", "path": name, "oid": blob, "size": len(payload)}
                if name.endswith(".tar"):
                    sha256 = hashlib.sha256(payload).hexdigest()
                    entry["lfs"] = {"oid": sha256, "size": len(payload), "pointerSize": 130}
                yield entry

        def _may_read(self) -> bool:
            if hub.token is None or self.headers.get("Authorization") == f"Bearer {hub.token}":
                return True
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Invalid credentials"})
            return False

        def _file(self, revision: str, path: str) -> None:
            files = hub.commits.get(hub.main if revision == "main" else revision)
            trouble = hub.next_trouble(path) if self.command == "GET" else None
            if files is None or path not in files:
                self._send(404, b"not here", {"X-Error-Code": "EntryNotFound" if files else "RevisionNotFound"})
            elif isinstance(trouble, Status):
                self._send(trouble.code, b"not now", trouble.headers)
            elif isinstance(trouble, Html):
                self._send(200, b"<html>please log in</html>" * 100, {"Content-Type": "text/html"})
            else:
                self._bytes(files[path], trouble)

        def _bytes(self, payload: bytes, trouble: Cut | Stall | None) -> None:
            headers = {"ETag": f'"{hashlib.sha256(payload).hexdigest()}"', "Accept-Ranges": "bytes"}
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            status, body = 200, payload
            if wanted and self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]:
                start, end = int(wanted[1]), int(wanted[2]) + 1 if wanted[2] else len(payload)
                if start >= len(payload):
                    self._send(416, b"", {"Content-Range": f"bytes */{len(payload)}"})
                    return
                status, body = 206, payload[start:end]
                headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{len(payload)}"
            self._send(status, body, headers, trouble)

        def _json(self, content: object) -> None:
            self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _send(
            self, status: int, body: bytes, headers: Mapping[str, str] | None = None, trouble: Trouble | None = None
        ) -> None:
            authorised = "Authorization" in self.headers
            hub.requests.append(
                Request(self.command, unquote(self.path), self.headers.get("Range", ""), authorised, status)
            )
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            try:
                if isinstance(trouble, Cut | Stall):
                    self.wfile.write(body[: trouble.bytes])
                    self.wfile.flush()
                    if isinstance(trouble, Cut):
                        self.close_connection = True
                        return
                    time.sleep(trouble.seconds)
                    body = body[trouble.bytes :]
                self.wfile.write(body)
            except OSError:  # the client would not wait
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    return Handler
