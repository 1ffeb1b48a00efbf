"""What the dashboard sends: JSON with an ETag, files of the page, ranges of bytes, and what went wrong."""

import gzip
import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from echotts.monitor.history import History

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
MAX_DIGITS = 18  # of a byte position
GZIP_BYTES, GZIP_LEVEL = 4096, 2  # a chart's points shrink to a third; beyond that costs time only


@dataclass(frozen=True)
class Asset:
    """A file of the page, read when the server starts."""

    body: bytes
    media_type: str
    tag: str


def assets() -> dict[str, Asset]:
    """The page's files by name: the only ones there are to ask for."""
    found = {}
    for file in resources.files("echotts.monitor").joinpath("static").iterdir():
        kind = file.name.rpartition(".")[2]
        if kind in TYPES:
            body = file.read_bytes()
            found[file.name] = Asset(body, TYPES[kind], f'"{hashlib.sha256(body).hexdigest()[:16]}"')
    return found


def answer(request: Request, body: dict[str, Any], tag: str | None = None) -> Response:
    """JSON with an ETag, or 304 where the asker has the same. Numbers that are not finite are null."""
    written = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    tag = tag or f'W/"{hashlib.sha256(written).hexdigest()[:16]}"'
    if is_known(request, tag):
        return Response(status_code=304, headers=caching(tag))
    headers = caching(tag)
    if len(written) > GZIP_BYTES and "gzip" in request.headers.get("accept-encoding", ""):
        written = gzip.compress(written, GZIP_LEVEL)
        headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    return Response(written, media_type="application/json", headers=headers)


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """(first, last) of one byte range; first > last where it lies outside; None where all is to be sent."""
    unit, _, asked = header.partition("=")
    first, dash, last = asked.strip().partition("-")
    if (
        unit.strip() != "bytes"
        or not dash
        or not all(part.isascii() and part.isdigit() and len(part) <= MAX_DIGITS for part in (first, last) if part)
    ):
        return None  # no range, several, or nonsense: RFC 9110 lets a server send the whole
    if first:
        return int(first), min(int(last), size - 1) if last else size - 1
    return (max(size - int(last), 0), size - 1) if last else None


def tag_of(history: History, query: str) -> str:
    """Changes when the answer to the query may."""
    return f'W/"{hashlib.sha256(f"{history.cursor} {query}".encode()).hexdigest()[:16]}"'


def is_known(request: Request, tag: str) -> bool:
    """Whether the asker has what the tag stands for."""
    return tag in (known.strip() for known in request.headers.get("if-none-match", "").split(","))


def caching(tag: str) -> dict[str, str]:
    """The headers of what may be kept, and is asked for again each time."""
    return {"ETag": tag, "Cache-Control": "private, no-cache"}


async def failed(request: Request, error: Exception) -> Response:
    """A question that cannot be answered, with the reason."""
    assert isinstance(error, HTTPException)
    return Response(orjson.dumps({"error": error.detail}), error.status_code, media_type="application/json")


async def unreadable(request: Request, error: Exception) -> Response:
    """A folder or bucket that does not answer: 503, ask again."""
    return Response(orjson.dumps({"error": f"cannot be read just now: {error}"}), 503, media_type="application/json")
