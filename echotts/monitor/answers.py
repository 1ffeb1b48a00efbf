"""What the dashboard sends: JSON with an ETag, and what went wrong."""

import hashlib
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from echotts.monitor.history import History


def answer(request: Request, body: dict[str, Any], tag: str | None = None) -> Response:
    """JSON with an ETag, or 304 where the client has the same. Numbers that are not finite are null."""
    written = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    tag = tag or f'W/"{hashlib.sha256(written).hexdigest()[:16]}"'
    if is_known(request, tag):
        return Response(status_code=304, headers=caching(tag))
    return Response(written, media_type="application/json", headers=caching(tag))


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
