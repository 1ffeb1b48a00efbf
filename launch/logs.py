"""Prints the logs of one or all workers, each line prefixed with its worker."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Sequence

from launch.answers import remote_command
from launch.errors import LaunchError, UsageError
from launch.pods import Pod, say


def logs(pod: Pod, *, workers: str, lines: int, follow: bool) -> None:
    """Prints the last lines; with `follow` continues until the connections end or Ctrl-C."""
    if pod.dry_run:
        say(f"+ on worker {workers}: {remote_command('logs', _arguments(pod, lines, follow), short=True)}")
        return
    chosen = _chosen(workers, pod.workers())
    readers = [pod.follow(worker, "logs", *_arguments(pod, lines, follow)[1:]) for worker in chosen]
    lock = threading.Lock()
    threads = [
        threading.Thread(target=_relay, args=(reader, f"w{worker} | ", lock), daemon=True)
        for worker, reader in zip(chosen, readers)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for reader in readers:
            if reader.poll() is None:
                reader.terminate()
    failed = [str(worker) for worker, reader in zip(chosen, readers) if reader.wait(timeout=10)]
    if failed:
        raise LaunchError(f"logs: connection to worker {', '.join(failed)} failed or was lost")


def _arguments(pod: Pod, lines: int, follow: bool) -> list[str]:
    return [pod.settings.base, str(lines), "yes" if follow else "no"]


def _chosen(workers: str, there: Sequence[int]) -> list[int]:
    if workers == "all":
        return list(there)
    if not workers.isdigit() or int(workers) not in there:
        raise UsageError(f"worker {workers!r}: give all, or a number from 0 to {max(there)}")
    return [int(workers)]


def _relay(reader: subprocess.Popen[str], prefix: str, lock: threading.Lock) -> None:
    assert reader.stdout is not None
    for line in reader.stdout:
        for part in line.rstrip("\n").split("\r"):
            with lock:
                say(prefix + part)
