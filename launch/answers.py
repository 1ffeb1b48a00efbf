"""Runs the worker scripts and parses their answers.

The whole script is sent with each call. Its answers are lines `@w3 fact KEY VALUE`, `@w3 error TEXT`, `@w3 exit CODE`
(worker/common.sh); other output is shown only if something fails.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.errors import LaunchError

SCRIPTS = Path(__file__).resolve().parent / "worker"
LINE = re.compile(r"@w(\d+) (fact|error|exit) ?(.*)")
HEAD = ". ./common.sh\n"
NOISE_LINES = 3
ASKED_TO_LEAVE = "75"  # exit code of a training that saved and ended early because of a signal


class WorkerError(LaunchError):
    """A script failed on some workers, or some did not answer: `silent`, out of `asked`."""

    def __init__(self, message: str, silent: Sequence[int] = (), asked: Sequence[int] = ()):
        super().__init__(message)
        self.silent = tuple(silent)
        self.asked = tuple(asked)


@dataclass
class Answer:
    """The answer of one worker. `code` is None if the script was interrupted or did not arrive."""

    worker: int
    facts: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    code: int | None = None


def script_text(name: str) -> str:
    """The script with this name, with common.sh included."""
    text = (SCRIPTS / f"{name}.sh").read_text(encoding="utf-8")
    common = (SCRIPTS / "common.sh").read_text(encoding="utf-8")
    if text.count(HEAD) != 1:
        raise ValueError(f"{name}.sh does not include common.sh")
    return text.replace(HEAD, common)


def remote_command(name: str, arguments: Iterable[str], *, short: bool = False) -> str:
    """The command line that runs a script; `short` shows the script's name instead of its text."""
    text = f"<worker/{name}.sh>" if short else shlex.quote(script_text(name))
    return " ".join(["bash", "-c", text, f"{name}.sh", *map(shlex.quote, arguments)])


def read_answers(name: str, output: str, expected: Sequence[int]) -> dict[int, Answer]:
    """The answers of the expected workers, if all succeeded.

    WorkerError names those that did not, with the reason if the output contains one.
    """
    answers: dict[int, Answer] = {}
    noise: list[str] = []
    for line in output.splitlines():
        found = LINE.search(line)
        if not found:
            if line.strip() and not line.startswith(("SSH: ", "SCP: ", "Using ssh batch", "##### Command")):
                noise.append(line.strip())
            continue
        answer = answers.setdefault(int(found[1]), Answer(int(found[1])))
        if found[2] == "fact":
            key, _, value = found[3].partition(" ")
            answer.facts[key] = value.strip()
        elif found[2] == "error":
            answer.errors.append(found[3])
        else:
            answer.code = int(found[3])
    missing = [worker for worker in expected if worker not in answers or answers[worker].code is None]
    failed = [answer for answer in answers.values() if answer.code]
    if missing or failed:
        raise WorkerError(_complaint(name, missing, failed, noise), missing, expected)
    return dict(sorted(answers.items()))


def _complaint(name: str, missing: list[int], failed: list[Answer], noise: list[str]) -> str:
    said = [f"worker {a.worker}: {'; '.join(a.errors) or f'exit code {a.code}'}" for a in failed]
    if missing:
        said.append(f"no answer from worker {', '.join(map(str, missing))}")
    silent = missing or any(not answer.errors for answer in failed)
    if silent and noise:
        said.append(f"last output: {' | '.join(noise[-NOISE_LINES:])}")
    return f"{name}: {'; '.join(said)}"
