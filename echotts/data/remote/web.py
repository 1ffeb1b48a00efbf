"""A GET request over HTTP: a body from a byte offset on, redirects, and the meaning of error responses.

The only module of this package that uses HTTP itself. It does not retry (fetch.py does).
"""

import email.utils
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from typing import Protocol, runtime_checkable
from urllib.parse import quote, urlsplit

from echotts import __version__
from echotts.files import Closing

TRANSPORT_ERRORS = (OSError, http.client.HTTPException)  # raised by failed connections
GONE = (404, 410)
SAFE = "%/:=&?~#+!$,;'@()*[]"  # kept in paths and queries, which may already be percent-encoded
MAX_DIGITS = 18


class Unavailable(OSError):
    """A file is unavailable. `gone` if a retry is pointless; `wait_s` is the wait requested by the server."""

    def __init__(self, reason: str, gone: bool = False, wait_s: float = 0.0, status: int | None = None) -> None:
        super().__init__(reason)
        self.gone = gone
        self.wait_s = wait_s
        self.status = status


@runtime_checkable
class Body(Protocol):
    """A response being read: the offset where it starts, and the size of the whole file, in bytes."""

    start: int
    total: int | None
    version: str | None  # changes when the file does (a strong ETag)

    def read(self, limit_bytes: int) -> bytes: ...

    def close(self) -> None: ...


class WebBody(Closing):
    """The response to `GET url` from byte `start` on, as far as the server supports that.

    With `version`, a file that has changed since then is sent from its beginning. `end` requests only the bytes before
    it. Raises Unavailable for an error response, one of TRANSPORT_ERRORS if there is no response.
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
        return self._response.read1(limit_bytes)  # returns what has arrived, so that a stall does not lose it

    def close(self) -> None:
        self._response.close()


def ascii_url(url: str) -> str:
    """The URL in ASCII: spaces and non-ASCII characters are percent-encoded, host names use IDNA.

    Raises Unavailable (permanent) for an invalid URL: control characters, no host.
    """
    parts, host = None, ""
    try:
        parts = urlsplit(url)
        host = parts.netloc.encode("idna").decode("ascii")
    except (ValueError, UnicodeError):
        pass
    if parts is None or not host or any(ord(letter) < 32 or ord(letter) == 127 for letter in url):
        raise Unavailable(f"{url!r}: is not a valid URL", gone=True)
    return parts._replace(netloc=host, path=quote(parts.path, SAFE), query=quote(parts.query, SAFE)).geturl()


def _size(digits: str) -> int | None:
    """A number of bytes in a header; None if it is not a plausible size."""
    return int(digits) if digits.isdigit() and len(digits) <= MAX_DIGITS else None


def asked_wait_s(headers: Message, now: float | None = None) -> float:
    """The wait in seconds requested by Retry-After (seconds or a date) or `RateLimit: ...;r=0;t=55`; 0 without."""
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
    """Drops credentials when a redirect leads to another host; redirects to file stores carry their own."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and urlsplit(new.full_url)[:2] != urlsplit(req.full_url)[:2]:
            new.remove_header("Authorization")
        return new


def _opener() -> urllib.request.OpenerDirector:
    """Supports HTTP, HTTPS, proxies from the environment and redirects, but no file: or ftp: URLs."""
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
