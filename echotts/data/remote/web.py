"""One GET over HTTP: a body from a byte onwards, redirects, and what a refusal means.

The only module of this room that speaks HTTP itself. Nothing is tried twice here (fetch.py does that).
"""

import email.utils
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from types import TracebackType
from typing import Protocol, runtime_checkable
from urllib.parse import quote, urlsplit

from echotts import __version__

TRANSPORT_ERRORS = (OSError, http.client.HTTPException)  # a connection that failed, in whatever words
GONE = (404, 410)
SAFE = "%/:=&?~#+!$,;'@()*[]"  # in paths and queries, which may be percent-encoded already
MAX_DIGITS = 18


class Unavailable(OSError):
    """A file is unavailable. `gone` where a retry is pointless; `wait_s` is what the server asks for."""

    def __init__(self, reason: str, gone: bool = False, wait_s: float = 0.0, status: int | None = None) -> None:
        super().__init__(reason)
        self.gone = gone
        self.wait_s = wait_s
        self.status = status


@runtime_checkable
class Body(Protocol):
    """An answer that is being read: where in the file it starts, and how long the whole file is, in bytes."""

    start: int
    total: int | None
    version: str | None  # changes when the file does (a strong ETag)

    def read(self, limit_bytes: int) -> bytes: ...

    def close(self) -> None: ...


class WebBody:
    """The answer to `GET url` from byte `start` on, as far as the server went along with that.

    With `version` a file that changed since then is sent from its beginning. `end` asks for bytes before it only.
    Raises Unavailable for a refusal, one of TRANSPORT_ERRORS where there is no answer.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        timeout_s: float,
        start: int = 0,
        end: int | None = None,
        version: str | None = None,
    ) -> None:
        request = urllib.request.Request(ascii_url(url), headers={"Accept-Encoding": "identity", **headers})
        request.add_header("User-Agent", f"echotts/{__version__}")
        if start or end is not None:
            request.add_header("Range", f"bytes={start}-" + ("" if end is None else str(end - 1)))
            if version:
                request.add_header("If-Range", version)
        try:
            self._response = _OPENER.open(request, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(url, error) from None
        answer = self._response
        self.start = 0
        length = answer.headers.get("Content-Length", "")
        self.total = _size(length)
        if answer.status == 206:
            place = re.match(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
            if place is None:
                self.close()
                raise Unavailable(f"{url}: 206 without a Content-Range")
            self.start = _size(place[1]) or 0
            self.total = _size(place[2])
        tag = answer.headers.get("ETag", "")
        self.version = tag if tag and not tag.startswith("W/") else None

    def read(self, limit_bytes: int) -> bytes:
        return self._response.read1(limit_bytes)  # what is there: a pause must not cost what came before it

    def close(self) -> None:
        self._response.close()

    def __enter__(self) -> "WebBody":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def ascii_url(url: str) -> str:
    """The address as HTTP takes it: blanks and letters beyond ASCII are percent-encoded, hosts written in IDNA.

    Raises Unavailable, for good, where it is none: control characters, no host.
    """
    parts, host = None, ""
    try:
        parts = urlsplit(url)
        host = parts.netloc.encode("idna").decode("ascii")
    except (ValueError, UnicodeError):
        pass
    if parts is None or not host or any(ord(letter) < 32 or ord(letter) == 127 for letter in url):
        raise Unavailable(f"{url!r}: is not an address that can be asked for", gone=True)
    return parts._replace(netloc=host, path=quote(parts.path, SAFE), query=quote(parts.query, SAFE)).geturl()


def _size(digits: str) -> int | None:
    """A number of bytes in a header; None where it is none that a file could have."""
    return int(digits) if digits.isdigit() and len(digits) <= MAX_DIGITS else None


def asked_wait_s(headers: Message, now: float | None = None) -> float:
    """The seconds that a server asks to wait: Retry-After (seconds or a date), `RateLimit: ...;r=0;t=55`, 0 without."""
    after = headers.get("Retry-After", "").strip()
    if after.isdigit():
        return float(after)
    if after:
        try:
            moment = email.utils.parsedate_to_datetime(after).timestamp()
        except (TypeError, ValueError):
            moment = 0.0
        return max(0.0, moment - (time.time() if now is None else now))
    limit = headers.get("RateLimit", "")
    if re.search(r"\br=0\b", limit) and (reset := re.search(r"\bt=(\d+)", limit)):
        return float(reset[1])
    return 0.0


def _refusal(url: str, error: urllib.error.HTTPError) -> Unavailable:
    said = error.headers.get("X-Error-Message") or error.reason
    return Unavailable(
        f"{url.split('?')[0]}: {error.code} {said}",
        gone=error.code in GONE,
        wait_s=asked_wait_s(error.headers),
        status=error.code,
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Credentials go to the host they are for: a redirect to a store of files elsewhere carries its own."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and urlsplit(new.full_url)[:2] != urlsplit(req.full_url)[:2]:
            new.remove_header("Authorization")
        return new


def _opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS, proxies of the environment, redirects: no files and no FTP, wherever a redirect may point."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        _Redirects,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


_OPENER = _opener()
