"""Responses of the dashboard: JSON with an ETag, and errors."""

import hashlib
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from echotts.monitor.history import History


def answer(request: Request, body: dict[str, Any], tag: str | None = None) -> Response:
    """JSON with an ETag, or 304 if the client has the same. Non-finite numbers are null."""
    written = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    tag = tag or f'W/"{hashlib.sha256(written).hexdigest()[:16]}"'
    if is_known(request, tag):
        return Response(status_code=304, headers=caching(tag))
    return Response(written, media_type="application/json", headers=caching(tag))


def tag_of(history: History, query: str) -> str:
    """An ETag that changes when the response to the query may change."""
    return f'W/"{hashlib.sha256(f"{history.cursor} {query}".encode()).hexdigest()[:16]}"'


def is_known(request: Request, tag: str) -> bool:
    """Whether the client's copy has this ETag."""
    return tag in (known.strip() for known in request.headers.get("if-none-match", "").split(","))


def caching(tag: str) -> dict[str, str]:
    """Headers of responses that may be cached but are revalidated every time."""
    return {"ETag": tag, "Cache-Control": "private, no-cache"}


async def failed(request: Request, error: Exception) -> Response:
    """An HTTP error as JSON, with the reason."""
    assert isinstance(error, HTTPException)
    return Response(orjson.dumps({"error": error.detail}), error.status_code, media_type="application/json")


async def unreadable(request: Request, error: Exception) -> Response:
    """503 for a folder or bucket that does not respond: retry."""
    return Response(orjson.dumps({"error": f"temporarily unreadable: {error}"}), 503, media_type="application/json")
