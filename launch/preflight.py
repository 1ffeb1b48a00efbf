"""Checks that all workers are ready to start a run, by comparing the results of preflight.sh."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

from launch.answers import Answer
from launch.errors import LaunchError
from launch.pods import Pod, say
from launch.settings import Settings, slice_of

PREFLIGHT_S = 300


class PreflightError(LaunchError):
    """The workers are not ready to start; the message lists the reasons, each with its remedy."""


def preflight(pod: Pod) -> dict[int, Answer]:
    """The facts of each worker; PreflightError with all reasons against a start."""
    asked = time.time()
    answers = pod.run("preflight", pod.ports, timeout_s=PREFLIGHT_S)
    if pod.dry_run:
        return {}
    reasons = problems(answers, pod.settings, ports=pod.ports, elapsed_s=time.time() - asked)
    removed = [answer.worker for answer in answers.values() if answer.facts.get("lock") == "removed"]
    if removed:
        say(f"removed /tmp/libtpu_lockfile on worker {listed(removed)}: it was stale")
    if reasons:
        raise PreflightError("; ".join(reasons))
    return answers


def problems(answers: dict[int, Answer], settings: Settings, *, ports: str, elapsed_s: float) -> list[str]:
    """All reasons against a start, one line each. `elapsed_s` is how long the workers took to answer."""
    reasons = []
    keys = {key for answer in answers.values() for key in answer.facts}
    for key in sorted(key for key in keys if key.startswith("version_")):
        reasons += _unlike(answers, key, f"{key[8:]} differs", "run sync again")
    reasons += _unlike(answers, "release", "releases differ", "run sync again")
    reasons += _unlike(answers, "token", "Hugging Face tokens differ", "run sync with --hf_token_file")
    reasons += _those(
        answers,
        lambda facts: int(facts["free_gb"]) < settings.min_free_gb,
        f"less than {settings.min_free_gb} GB are free (min_free_gb)",
        "find what fills the disk: docs/pods.md",
    )
    reasons += _skew(answers, settings.max_skew_s, elapsed_s)
    for port in ports.split():
        taken = _those(answers, lambda facts, key=f"port_{port}": facts[key] == "used", f"port {port} is taken", "stop")
        reasons += taken
    if ports:
        reasons += _devices(answers, settings)
    return reasons


def _devices(answers: dict[int, Answer], settings: Settings) -> list[str]:
    reasons = _unlike(answers, "chips", "numbers of TPU chips differ", "the machine is broken: down and up")
    reasons += _those(answers, lambda facts: facts["chips"] == "0", "no TPU chip", "is this the right runtime_version?")
    if settings.accelerator_type and not reasons:
        wanted = slice_of(settings.accelerator_type)
        chips = sum(int(answer.facts["chips"]) for answer in answers.values())
        if (chips, len(answers)) != (wanted.chips, wanted.hosts):
            reasons.append(
                f"{settings.accelerator_type} has {wanted.chips} chips on {wanted.hosts} hosts, but {chips} chips on "
                f"{len(answers)} were found: is {settings.name} another TPU?"
            )
    for answer in answers.values():
        if answer.facts["holders"] != "none":
            reasons.append(
                f"process {answer.facts['holders'].strip()} on worker {answer.worker} holds the TPU: stop, or kill it"
            )
    reasons += _those(
        answers,
        lambda facts: facts["lock"] == "kept" and facts["holders"] == "none",
        "/tmp/libtpu_lockfile may belong to a live process",
        "check with sudo lsof and remove it manually",
    )
    return reasons


def _unlike(answers: dict[int, Answer], key: str, what: str, remedy: str) -> list[str]:
    """One line if the workers' values differ: the deviating ones against the most frequent."""
    values = {worker: answer.facts.get(key, "none") for worker, answer in answers.items()}
    usual = Counter(values.values()).most_common(1)[0][0]
    odd = [f"{value} on worker {worker}" for worker, value in values.items() if value != usual]
    return [f"{what}: {', '.join(odd)}, {usual} on the others: {remedy}"] if odd else []


def _those(answers: dict[int, Answer], wrong: Callable[[dict[str, str]], bool], what: str, remedy: str) -> list[str]:
    found = [answer.worker for answer in answers.values() if wrong(answer.facts)]
    return [f"{what} on worker {listed(found)}: {remedy}"] if found else []


def _skew(answers: dict[int, Answer], limit_s: int, elapsed_s: float) -> list[str]:
    """The workers' clocks were read within `elapsed_s` of each other; larger differences are skew."""
    times = {worker: int(answer.facts["time"]) for worker, answer in answers.items()}
    middle = sorted(times.values())[len(times) // 2]
    odd = [worker for worker, clock in times.items() if abs(clock - middle) > limit_s + elapsed_s]
    if not odd:
        return []
    apart = max(abs(times[worker] - middle) for worker in odd)
    return [f"the clock of worker {listed(odd)} is {apart} s from the others': sudo chronyc makestep, or down and up"]


def listed(workers: Sequence[int]) -> str:
    """Worker numbers for messages: 0, 3, 5."""
    return ", ".join(map(str, workers))
