"""Access and resource limits for untrusted clients: token, cookie, Host, headers, limits, timeouts.

A tunnel connects the whole internet to the loopback interface, so binding to 127.0.0.1 does not protect there.
"""

import asyncio
import hashlib
import hmac
import html
import ipaddress
import os
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

TUNNEL_HOSTS = (".trycloudflare.com",)  # suffix of quick tunnels; others are given with --allow_host
TOKEN_LENGTH = 16  # minimum characters
QUERY_BYTES = 8192
HEAD_BYTES = 16_384  # request line and headers
REQUEST_S = 10.0  # within which a request must have arrived
ANSWER_STALL_S, ANSWER_TAKEN = 30.0, 1 << 14  # seconds within which a client must receive this many bytes
CONNECTIONS = 256  # beyond that, the longest idle connection is closed
COOKIE_S = 30 * 86_400
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
OPEN = {"/static/page.css", "/static/icon.svg"}  # for the login page; they reveal nothing about a run
LOGIN = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>echotts: token</title>
<link rel="icon" href="{root}/static/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="{root}/static/page.css">
<main class="login"><img src="{root}/static/icon.svg" alt="" width="36" height="36">
<h1>This dashboard requires a token</h1>
<p>{said}</p>
<form method="get" action="{root}/login"><label>Token <input name="token" type="password" autocomplete="off" required
autofocus></label> <button>Open</button></form></main>
"""


@dataclass(frozen=True)
class Access:
    """Who may access the server. `hosts` are the names, besides addresses, by which it may be reached."""

    token: str | None
    hosts: frozenset[str]
    host_ends: tuple[str, ...] = ()
    port: int = 8080
    root_path: str = ""
    """The prefix a proxy adds to every path, such as /proxy/8080, whether or not it strips it again."""

    @property
    def cookie_name(self) -> str:
        """One per port: cookies are shared by all ports of a host."""
        return f"echotts_{self.port}"

    @property
    def cookie_value(self) -> str:
        """Stored in the browser instead of the token itself."""
        return hmac.digest((self.token or "").encode(), b"echotts dashboard cookie", hashlib.sha256).hex()

    def knows_host(self, header: str) -> bool:
        """Whether a Host header names this server. Other names are rejected, which prevents DNS rebinding.

        Starlette's TrustedHostMiddleware cannot accept arbitrary addresses, which a server on 0.0.0.0 needs.
        """
        name = host_name(header)
        if name is None:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.hosts or name.endswith(self.host_ends)
        return True  # addresses are not subject to DNS rebinding

    def is_token(self, given: str) -> bool:
        """Compares in constant time."""
        return hmac.compare_digest((self.token or "").encode(), given.encode("utf-8", "replace"))

    def is_cookie(self, given: str) -> bool:
        """Compares in constant time."""
        return hmac.compare_digest(self.cookie_value.encode(), given.encode("utf-8", "replace"))


def host_name(header: str) -> str | None:
    """The lower-case name or address of a Host header, without its port; None if it is invalid."""
    name, port = header.strip().lower(), ""
    if name.startswith("["):
        name, bracket, port = name[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            return None
        port = port[1:]
    elif ":" in name:
        name, _, port = name.partition(":")
    if port and not (port.isascii() and port.isdigit()):
        return None
    return name.rstrip(".") or None


def needs_token(host: str, tunnel: bool) -> bool:
    """Whether a server bound to `host` can be reached from other machines."""
    try:
        return tunnel or not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return tunnel or host != "localhost"


def read_token(path: Path) -> str:
    """The token in a file, which is created, readable only by its owner, if it is missing.

    ValueError if others can read it, or if it is too short to be secure.
    """
    path = path.expanduser()
    if not path.exists():
        token = secrets.token_urlsafe(32)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(token + "\n")
        return token
    if os.stat(path).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ValueError(f"{path}: others can read the token: chmod 600 {path}")
    token = path.read_text(encoding="utf-8").strip()
    if len(token) < TOKEN_LENGTH or not token.isascii() or not token.isprintable():
        raise ValueError(
            f"{path}: a token needs at least {TOKEN_LENGTH} printable ASCII characters; delete the file for a new one"
        )
    return token


class Guard:
    """Middleware that rejects unauthorised or malformed requests, and sets security headers on every response."""

    def __init__(self, app: ASGIApp, access: Access):
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = self._below_root(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-cache" if "ETag" in headers else "no-store")
            await send(message)

        await (self._refusal(scope) or self._app)(scope, receive, send_with_headers)

    def _below_root(self, scope: Scope) -> Scope:
        """The scope without the proxy's prefix."""
        root = self._access.root_path
        if not root or not f"{scope['path']}/".startswith(f"{root}/"):
            return scope
        raw_path = scope["raw_path"].removeprefix(root.encode())
        return {**scope, "path": scope["path"].removeprefix(root) or "/", "raw_path": raw_path or b"/"}

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if not self._access.knows_host(headers.get("host", "")):
            return refused(421, "unknown host name: see --allow_host")
        if scope["method"] not in ("GET", "HEAD"):
            return refused(405, "this server is read-only", {"Allow": "GET, HEAD"})
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            return refused(413, "requests must have no body")
        if len(scope["query_string"]) > QUERY_BYTES or len(scope["raw_path"]) > QUERY_BYTES:
            return refused(414, "the URL is too long")
        if "\0" in scope["path"]:
            return refused(404, "there is no such file")
        return self._stranger(scope, headers) if self._access.token else None

    def _stranger(self, scope: Scope, headers: Headers) -> Response | None:
        """None for authorised clients; a valid token in the URL is exchanged for a cookie."""
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == "token"]
        if given and self._access.is_token(given[-1]):
            rest = urlencode([pair for pair in query if pair[0] != "token"])
            path = "/" if scope["path"] == "/login" else "/" + scope["raw_path"].decode("ascii").lstrip("/")
            answer = RedirectResponse(self._access.root_path + path + (f"?{rest}" if rest else ""), status_code=303)
            # Lax, not Strict: links from a chat must work, and the server is read-only
            answer.set_cookie(
                self._access.cookie_name,
                self._access.cookie_value,
                max_age=COOKIE_S,
                path=self._access.root_path or "/",
                httponly=True,
                samesite="lax",
                secure=headers.get("x-forwarded-proto") == "https",
            )
            return answer
        cookie = cookie_parser(headers.get("cookie", "")).get(self._access.cookie_name, "")
        if not given and (self._access.is_cookie(cookie) or scope["path"] in OPEN):
            return None
        said = "That token is wrong." if given else "The dashboard printed it when it was started."
        if "text/html" in headers.get("accept", "") or scope["path"] in ("/", "/login"):
            return HTMLResponse(LOGIN.format(said=html.escape(said), root=html.escape(self._access.root_path)), 401)
        return refused(401, "the token is missing or wrong")


def refused(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as JSON; closes the connection."""
    return JSONResponse({"error": message}, status, {"Connection": "close"} | (headers or {}))


class PatientProtocol(H11Protocol):
    """HTTP with timeouts that uvicorn lacks: for a request to arrive, and for its response to be received."""

    waiting_since: float | None = None  # for a request; None while one is being answered
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.waiting_since = self.loop.time()
        self._abort_after(REQUEST_S)
        waiting = [each for each in self.connections if isinstance(each, PatientProtocol) and each.waiting_since]
        if len(self.connections) > CONNECTIONS and waiting:
            longest = min(waiting, key=lambda each: each.waiting_since or 0.0)
            longest.waiting_since = None  # so that a simultaneous connection picks another
            longest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.waiting_since is not None and self._deadline is None:  # the next request on an open connection
            self._abort_after(REQUEST_S)
        super().data_received(data)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self.waiting_since = None
            self._in_time()

    def on_response_complete(self) -> None:
        self.waiting_since = self.loop.time()
        super().on_response_complete()  # from here on uvicorn's keep-alive timer runs

    def pause_writing(self) -> None:
        super().pause_writing()
        self._in_time()
        self._watch_answer(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._in_time()
        super().resume_writing()

    def _watch_answer(self, left: int) -> None:
        """Aborts if too little of the response was received in time; else keeps checking."""

        def look() -> None:
            if self.transport.get_write_buffer_size() > left - ANSWER_TAKEN:
                self.transport.abort()
            else:
                self._watch_answer(self.transport.get_write_buffer_size())

        self._deadline = self.loop.call_later(ANSWER_STALL_S, look)

    def _abort_after(self, seconds: float) -> None:
        self._in_time()
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _in_time(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def called(
    host: str, names: Iterable[str], tunnel: bool, machine: str, token: str | None, port: int, root_path: str = ""
) -> Access:
    """The access rules of a server bound to `host`, also known as `names`, below a proxy's `root_path`."""
    known = {"localhost", *(name.lower().rstrip(".") for name in names)}
    if needs_token(host, tunnel):
        known |= {machine.lower(), host.lower()}
    return Access(token, frozenset(known), TUNNEL_HOSTS if tunnel else (), port, root_path)
