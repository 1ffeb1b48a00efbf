"""A local server of the parts of Google Cloud Storage's JSON API used by gcsfs, TensorStore and google-cloud-storage,
which can simulate failures.

    with FakeGcs("bucket") as gcs:
        for name, value in gcs.environment.items():
            monkeypatch.setenv(name, value)          # of this process, before the first use, and of its children

Objects appear atomically and have generations, like real ones. `trouble` answers matching requests with errors; all
requests are recorded in `requests`. It runs in threads of the test process.
"""

import base64
import json
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from urllib.parse import parse_qs, unquote, urlsplit

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
LIST = re.compile(r"/storage/v1/b/([^/]+)/o")
BUCKET = re.compile(r"/storage/v1/b/([^/]+)")
UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")
COPY = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)")
COMPOSE = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/compose")
RANGE = re.compile(r"bytes=(\d+)-(\d*)")
PAGE = 1000


@dataclass(frozen=True)
class Blob:
    """One generation of an object."""

    content: bytes
    generation: int
    updated: float


@dataclass(frozen=True)
class Trouble:
    """An error instead of an answer, for requests whose method and path match."""

    method: str
    path: str
    status: int
    message: str


@dataclass
class Upload:
    """A resumable upload in progress."""

    bucket: str
    name: str
    content: bytearray = field(default_factory=bytearray)


class FakeGcs:
    """Some buckets. `objects` maps "bucket/name" to contents."""

    def __init__(self, *buckets: str) -> None:
        self.buckets = set(buckets)
        self.objects: dict[str, Blob] = {}
        self.requests: list[tuple[str, str]] = []
        self.troubles: list[Trouble] = []
        self.delay_s = 0.0  # before each answer
        self._lost: list[tuple[str, str]] = []
        self.uploads: dict[str, Upload] = {}
        self.lock = threading.RLock()
        self._generations = count(1)
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that direct clients here, without credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",  # for TensorStore, which otherwise asks Google's machines for one
            "NO_GCE_CHECK": "true",
        }

    def put(self, key: str, content: bytes) -> Blob:
        with self.lock:
            self.objects[key] = Blob(content, next(self._generations), time.time())
            return self.objects[key]

    def names(self, prefix: str = "") -> list[str]:
        """The objects ("bucket/name") with this prefix."""
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def trouble(self, method: str, path: str, status: int, message: str = "trouble") -> None:
        """From now on such requests fail; both are regular expressions from the start on, the path with its query."""
        self.troubles.append(Trouble(method, path, status, message))

    def lose_answers(self, times: int, method: str, path: str) -> None:
        """This many matching requests are carried out but answered with 503."""
        self._lost += [(method, path)] * times

    def loses(self, method: str, path: str) -> bool:
        for lost in self._lost:
            if re.match(lost[0], method) and re.match(lost[1], path):
                self._lost.remove(lost)
                return True
        return False

    def __enter__(self) -> "FakeGcs":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """gcsfs asks two things at once and hangs up on the one that it no longer needs."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # pyright: ignore[reportArgumentType]


def _handler(gcs: FakeGcs) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer("GET")

        def do_POST(self) -> None:
            self._answer("POST")

        def do_PUT(self) -> None:
            self._answer("PUT")

        def do_DELETE(self) -> None:
            self._answer("DELETE")

        def _answer(self, method: str) -> None:
            split = urlsplit(self.path)
            self.query = {name: values[-1] for name, values in parse_qs(split.query).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            gcs.requests.append((method, split.path))
            self.is_lost = gcs.loses(method, unquote(split.path))
            time.sleep(gcs.delay_s)
            for trouble in gcs.troubles:
                if re.match(trouble.method, method) and re.match(trouble.path, unquote(self.path)):
                    return self._fail(trouble.status, trouble.message)
            with gcs.lock:
                if found := UPLOAD.fullmatch(split.path):
                    self._upload(found[1], body)
                elif found := COPY.fullmatch(split.path):
                    self._copy(*map(unquote, found.groups()))
                elif found := COMPOSE.fullmatch(split.path):
                    self._compose(found[1], unquote(found[2]), json.loads(body))
                elif found := OBJECT.fullmatch(split.path):
                    self._object(method, found[1], unquote(found[2]))
                elif found := LIST.fullmatch(split.path):
                    self._list(found[1])
                elif (found := BUCKET.fullmatch(split.path)) and found[1] in gcs.buckets:
                    self._json({"kind": "storage#bucket", "name": found[1], "id": found[1]})
                else:
                    self._fail(404, f"no such bucket or route: {split.path}")
            return None

        def _object(self, method: str, bucket: str, name: str) -> None:
            key = f"{bucket}/{name}"
            blob = gcs.objects.get(key)
            if blob is None:
                return self._fail(404, f"No such object: {key}")
            if not self._as_expected(blob):
                return self._fail(412, "At least one of the pre-conditions you specified did not hold.")
            if method == "DELETE":
                del gcs.objects[key]
                return self._send(204, b"")
            if self.query.get("ifGenerationNotMatch") == str(blob.generation):
                return self._send(304, b"")
            if self.query.get("alt") != "media":
                return self._json(_described(bucket, name, blob))
            return self._content(blob)

        def _as_expected(self, blob: Blob | None) -> bool:
            wanted = self.query.get("ifGenerationMatch")
            return wanted is None or int(wanted) == (blob.generation if blob else 0)

        def _content(self, blob: Blob) -> None:
            headers = {"X-Goog-Generation": str(blob.generation), "Content-Type": "application/octet-stream"}
            asked = RANGE.fullmatch(self.headers.get("Range") or "")
            if asked is None:
                return self._send(200, blob.content, headers)
            start, total = int(asked[1]), len(blob.content)
            end = min(int(asked[2]) + 1 if asked[2] else total, total)
            if start >= total:
                return self._fail(416, "The requested range is not satisfiable")
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{total}"
            return self._send(206, blob.content[start:end], headers)

        def _list(self, bucket: str) -> None:
            if bucket not in gcs.buckets:
                return self._fail(404, "The specified bucket does not exist.")
            prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
            items, prefixes = [], set()
            for key in gcs.names(f"{bucket}/{prefix}"):
                name = key.removeprefix(f"{bucket}/")
                if self.query.get("startOffset", "") > name or name <= self.query.get("pageToken", ""):
                    continue
                head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
                if found:
                    prefixes.add(f"{prefix}{head}{delimiter}")
                else:
                    items.append(_described(bucket, name, gcs.objects[key]))
            said = {"kind": "storage#objects", "prefixes": sorted(prefixes), "items": items}
            limit = min(int(self.query.get("maxResults", PAGE)), PAGE)
            if len(items) > limit:
                said |= {"items": items[:limit], "nextPageToken": items[limit - 1]["name"]}
            return self._json(said)

        def _upload(self, bucket: str, body: bytes) -> None:
            kind = self.query.get("uploadType")
            if bucket not in gcs.buckets:
                return self._fail(404, "The specified bucket does not exist.")
            if "upload_id" in self.query:
                return self._more(gcs.uploads[self.query["upload_id"]], body)
            name, content = self.query.get("name"), body
            if kind == "resumable":
                name = name or json.loads(body)["name"]
                token = str(len(gcs.uploads))
                gcs.uploads[token] = Upload(bucket, name)
                where = f"{gcs.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={token}"
                return self._send(200, b"", {"Location": where})
            if kind == "multipart":
                metadata, content = self._parts(body)
                name = name or metadata["name"]
            return self._store(bucket, str(name), content)

        def _parts(self, body: bytes) -> tuple[dict, bytes]:
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])
            assert boundary is not None
            _, metadata, content, _ = body.split(f"--{boundary[1]}".encode())
            first, second = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in (metadata, content))
            return json.loads(first), re.sub(rb"\r?\n\Z", b"", second)

        def _more(self, upload: Upload, body: bytes) -> None:
            upload.content += body
            total = (self.headers.get("Content-Range") or "/*").rpartition("/")[2]
            if total == "*" or int(total) > len(upload.content):
                return self._send(308, b"", {"Range": f"bytes=0-{len(upload.content) - 1}"})
            return self._store(upload.bucket, upload.name, bytes(upload.content))

        def _store(self, bucket: str, name: str, content: bytes) -> None:
            key = f"{bucket}/{name}"
            if not self._as_expected(gcs.objects.get(key)):
                return self._fail(412, "At least one of the pre-conditions you specified did not hold.")
            return self._json(_described(bucket, name, gcs.put(key, content)))

        def _copy(self, bucket: str, name: str, to_bucket: str, to_name: str) -> None:
            blob = gcs.objects.get(f"{bucket}/{name}")
            if blob is None:
                return self._fail(404, f"No such object: {bucket}/{name}")
            made = gcs.put(f"{to_bucket}/{to_name}", blob.content)
            return self._json({"done": True, "resource": _described(to_bucket, to_name, made)})

        def _compose(self, bucket: str, name: str, asked: dict) -> None:
            parts = [gcs.objects.get(f"{bucket}/{source['name']}") for source in asked["sourceObjects"]]
            if None in parts:
                return self._fail(404, f"No such object among {asked['sourceObjects']}")
            return self._store(bucket, name, b"".join(part.content for part in parts if part))

        def _json(self, said: dict) -> None:
            self._send(200, json.dumps(said).encode(), {"Content-Type": "application/json; charset=UTF-8"})

        def _fail(self, status: int, message: str) -> None:
            error = {"error": {"code": status, "message": message, "errors": [{"message": message}]}}
            self._send(status, json.dumps(error).encode(), {"Content-Type": "application/json; charset=UTF-8"})

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            if self.is_lost:
                status, body, headers = 503, b"{}", None
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if status not in (204, 304):
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if status not in (204, 304):
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    return Handler


def _described(bucket: str, name: str, blob: Blob) -> dict:
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(blob.updated)) + f".{int(blob.updated % 1 * 1000):03d}Z"
    return {
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{blob.generation}",
        "name": name,
        "bucket": bucket,
        "generation": str(blob.generation),
        "metageneration": "1",
        "size": str(len(blob.content)),
        "timeCreated": when,
        "updated": when,
        "contentType": "application/octet-stream",
        "etag": base64.b64encode(str(blob.generation).encode()).decode(),
    }
