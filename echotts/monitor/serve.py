"""Runs the dashboard server until it is interrupted."""

import logging
import socket

import uvicorn

from echotts.monitor.alerts import Webhook
from echotts.monitor.routes import make_app
from echotts.monitor.runs import Library
from echotts.monitor.security import HEAD_BYTES, Access, PatientProtocol

KEEP_ALIVE_S = 15
BACKLOG = 512


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, so the port is known before the URL is printed. OSError names address and remedy."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise OSError(
            f"{host}:{port}: {(error.strerror or str(error)).lower()}: choose another --port or --host"
        ) from error
    return sock


def make_server(library: Library, access: Access) -> uvicorn.Server:
    """A server to run on a socket from `listen`."""
    config = uvicorn.Config(
        make_app(library, access),
        http=PatientProtocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=HEAD_BYTES,
        backlog=BACKLOG,
    )
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # do not log malformed requests
    return uvicorn.Server(config)


def serve(library: Library, access: Access, sock: socket.socket, webhook: str | None) -> None:
    """Serves requests until SIGINT or SIGTERM, and posts alerts to the webhook, if given."""
    watcher = Webhook(library, webhook) if webhook else None
    if watcher:
        watcher.start()
    try:
        make_server(library, access).run(sockets=[sock])
    finally:
        if watcher:
            watcher.close()
