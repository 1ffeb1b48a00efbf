"""`echotts monitor`: a dashboard of one or many runs."""

import re
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from echotts.cli.app import UsageError, parse

PROG = "echotts monitor"
MANY = tyro.conf.UseAppendAction


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Serve a web page with the live state of training runs: charts, hosts, checkpoints, events, speech, alerts.

    Read-only; works on any machine that sees the run directory, also for finished runs. Ctrl-C stops it.
    """

    run_dir: Annotated[tuple[str, ...], MANY] = ()
    """Run directory, local or gs://bucket/run. May be given several times."""
    runs_root: str | None = None
    """Directory whose subdirectories are runs; new ones appear automatically."""
    port: int = 8080
    """TCP port; 0: any free one."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 listens on all interfaces and needs a token."""
    tunnel: bool = False
    """The server is reached through a tunnel (cloudflared, ngrok), which makes it public, so a token is needed."""
    allow_host: Annotated[tuple[str, ...], MANY] = ()
    """Host name by which browsers reach this server, besides localhost and addresses. May be given several times."""
    root_path: str = ""
    """Path prefix under which a proxy serves this server, such as /proxy/8080."""
    token_file: Path | None = None
    """File with the token, created if missing. Without it, a token is generated on each start if one is needed."""
    webhook: str | None = None
    """https URL that is called with JSON when an alert starts or ends."""
    stale_s: float | None = None
    """Seconds without a metrics line after which a run counts as stale. None: five times the usual, at least 120."""

    def __post_init__(self) -> None:
        if not self.run_dir and not self.runs_root:
            raise ValueError("nothing to show: give --run_dir, or a parent directory with --runs_root")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port {self.port} must be from 0 to 65535")
        if self.root_path and not re.fullmatch(r"(/[\w.~-]+)+", self.root_path):
            raise ValueError(f"root_path {self.root_path!r}: give a path such as /proxy/8080, without a trailing slash")
        if self.webhook and not self.webhook.startswith(("https://", "http://")):
            raise ValueError(f"webhook {self.webhook!r} is not an http or https URL")
        if self.stale_s is not None and not self.stale_s > 0:
            raise ValueError(f"stale_s {self.stale_s} must be above 0")


def main(argv: list[str]) -> int:
    """Parses and checks the arguments, then serves until interrupted; returns the exit code."""
    arguments = parse(Arguments, argv, prog=PROG)
    from echotts.monitor.runs import Library
    from echotts.monitor.security import called, needs_token, read_token
    from echotts.monitor.serve import listen, serve

    token = read_token(arguments.token_file) if arguments.token_file else None
    if token is None and needs_token(arguments.host, arguments.tunnel):
        token = secrets.token_urlsafe(32)
    library = Library(arguments.run_dir, arguments.runs_root, arguments.stale_s)
    if not library.runs() and not arguments.runs_root:
        raise UsageError("no run found")
    with listen(arguments.host, arguments.port) as sock:
        port = sock.getsockname()[1]
        machine = socket.gethostname()
        access = called(
            arguments.host, arguments.allow_host, arguments.tunnel, machine, token, port, arguments.root_path
        )
        anywhere = arguments.host in ("0.0.0.0", "::")
        name = machine if anywhere else f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        runs = len(library.runs())
        print(
            f"{runs} {'run' if runs == 1 else 'runs'} at http://{name}:{port}/{f'?token={token}' if token else ''}",
            flush=True,
        )
        if arguments.tunnel:
            print(f"through the tunnel: its URL followed by /?token={token}", flush=True)
        serve(library, access, sock, arguments.webhook)
    return 0
