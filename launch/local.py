#!/usr/bin/env python3
"""Trains with several processes on this machine, as on a pod with several machines: same verbs and scripts."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launch.command import main
from launch.errors import UsageError
from launch.pods import Local
from launch.settings import Settings

PORT = 8482  # JAX's default for its coordinator


def make_pod(arguments: argparse.Namespace, settings: Settings) -> Local:
    """Directories below --root, one per process; they use this interpreter unless another is given."""
    if arguments.processes < 1:
        raise UsageError(f"processes {arguments.processes}: must be at least 1")
    root = Path(arguments.root).expanduser().absolute()
    python = settings.python if settings.python.startswith("/") else sys.executable
    return Local(
        replace(settings, name="local", python=python, min_free_gb=min(settings.min_free_gb, 1)),
        root,
        arguments.processes,
        arguments.port,
        dry_run=arguments.dry_run,
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags specific to this program."""
    parser.add_argument("--root", default="~/.echotts-local", help="directory of the workers (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, metavar="P", help="up: number of processes (default: 2)")
    parser.add_argument("--port", type=int, default=PORT, metavar="N", help="of the coordinator (default: %(default)s)")


if __name__ == "__main__":
    main("launch/local.py", "Train with several processes on this machine.", make_pod, add_flags)
