"""What can be done to a pod, of whichever kind. Every verb may be called again: it does what is left to do."""

from __future__ import annotations

import datetime
import os
import shlex
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from launch.answers import ASKED_TO_LEAVE, Answer
from launch.errors import LaunchError, UsageError
from launch.pack import Package, identify, pack
from launch.pods import FAILED, LOST, MISSING, READY, UNLISTED, Pod, complain, say
from launch.preflight import listed, preflight
from launch.settings import Settings

QUICK_S, INSTALL_S = 300, 3600
KEEP_RELEASES = 3
TRAINING = (["train_pretrain.py"], ["-m", "echotts", "train"])  # how a command begins that the processes are added to


class Lasting:
    """For how long something has been true at every look."""

    def __init__(self) -> None:
        self._since_s: float | None = None

    def seconds(self, true: bool) -> float:
        """Seconds since the first of the looks in a row at which it was `true`; 0 when it is not."""
        if not true:
            self._since_s = None
            return 0.0
        self._since_s = self._since_s or time.monotonic()
        return time.monotonic() - self._since_s


def up(pod: Pod) -> None:
    """Makes sure that there are machines, and waits for them. LaunchError where the request failed, or time is up."""
    end = time.monotonic() + 60 * pod.settings.wait_minutes
    said = ""
    unlisted = Lasting()
    while True:
        state, words = pod.state()
        if words != said:
            say(f"{pod.settings.name}: {words}")
            said = words
        if state == READY:
            return
        if state == FAILED:
            raise refused(pod, words)
        if pod.settings.wait_minutes and time.monotonic() > end:
            raise LaunchError(
                f"{pod.settings.name} is {words} after {pod.settings.wait_minutes:g} minutes: the request stays in the "
                "queue; run up again later, or watch"
            )
        if unlisted.seconds(state == UNLISTED) > pod.settings.lost_s:
            state = LOST
        if state == LOST:  # it holds quota until it is deleted, and never comes back
            pod.delete()
            unlisted = Lasting()
        if state in (LOST, MISSING):
            pod.create()
        if pod.dry_run or not pod.settings.wait_minutes:
            return
        time.sleep(pod.settings.poll_s)


def refused(pod: Pod, words: str) -> LaunchError:
    """A request that Google Cloud refused, with its reason; asking again would only repeat it."""
    return LaunchError(
        f"{pod.settings.name} is {words}: fix the cause, remove the request with down, then run up again"
    )


def sync(pod: Pod, package: Package | None = None) -> str:
    """Makes the code, and what it needs, the current release on all workers; returns its name.

    All have it whole before the first one switches.
    """
    settings, token = pod.settings, pod.settings.token
    with tempfile.TemporaryDirectory() as folder:
        if package is None:
            package = pack(Path(settings.source), dirty=settings.dirty, folder=Path(folder))
        _say_what_is_sent(package)
        prepared = pod.run("prepare", package.release, timeout_s=QUICK_S)
        whole = bool(prepared) and all(answer.facts["complete"] == "yes" for answer in prepared.values())
        if whole:
            say(f"release {package.release} is already there")
        else:
            pod.copy(package.path, package.path.name)
        if token:
            private = Path(folder) / "token"  # of mode 600, whatever the mode of the original
            _write_private(private, token.read_text(encoding="utf-8").strip() + "\n")
            pod.copy(private, "token")
        pod.run("install", package.release, package.sha256, settings.python, timeout_s=INSTALL_S)
        pod.run("switch", package.release, str(KEEP_RELEASES), timeout_s=QUICK_S)
    say(f"release {package.release} is current on {_how_many(pod)}")
    return package.release


def start(pod: Pod, *, dashboard: bool = False) -> str | None:
    """Starts the command on all workers, after every check; returns the id of the run, None in a dry run."""
    check_command(pod)
    settings = pod.settings
    jobs = [("job", _training_command(pod), [])]
    jobs += [("watchdog", _watchdog_command(settings), [])] if settings.watchdog.strip() else []
    jobs += [("dashboard", _dashboard_command(settings), [0])] if dashboard else []

    running = _running(pod)
    if running is not None:
        say(f"run {running} is already running on all workers")
    facts = {} if running else preflight(pod)
    if "hf://" in settings.command and any(answer.facts["token"] == "none" for answer in facts.values()):
        complain("launch: no Hugging Face token on the workers: no private data, and few requests (hf_token_file)")
    release = "RELEASE" if pod.dry_run else _release(pod, facts)
    run = running or f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%d-%H%M%S}-{release[:7]}"
    for role, command, workers in jobs:
        if running is None or role != "job":
            _start_role(pod, run, release, role, command, workers)
    if pod.dry_run:
        return None
    if running is None:
        _settle(pod, run)
        say(f"run {run}, release {release}, started on {_how_many(pod)}")
    return run


def stop(pod: Pod, *, by_hand: bool = True) -> None:
    """SIGTERM everywhere at once, so that the run saves and ends; SIGKILL after `grace_s`.

    `by_hand` tells a watch, wherever it runs, to let the run rest.
    """
    grace_s = pod.settings.grace_s
    answers = pod.run("stop", str(grace_s), "yes" if by_hand else "no", timeout_s=grace_s + QUICK_S)
    for outcome, words in (("stopped", "stopped"), ("killed", f"did not end within {grace_s} s, killed"), ("none", "")):
        workers = [answer.worker for answer in answers.values() if answer.facts.get("job") == outcome]
        if workers:
            say(f"worker {listed(workers)}: {words or 'nothing was running'}")


def down(pod: Pod) -> None:
    """Stops what runs and gives the machines back. What is only on their disks is gone."""
    state, words = pod.state()
    if state == MISSING:
        say(f"{pod.settings.name}: {words}, nothing to give back")
        return
    if state == READY:
        try:
            stop(pod)
        except LaunchError as error:
            complain(f"launch: not stopped before they go ({error})")
    pod.delete()
    say(f"{pod.settings.name}: given back")


def status(pod: Pod) -> dict[int, Answer]:
    """Prints the state of the machines and of what runs on each; returns the workers' answers."""
    state, words = pod.state()
    say(f"{pod.settings.name}: {words}")
    if state != READY or pod.dry_run:
        return {}
    answers = pod.run("status", timeout_s=QUICK_S)
    for answer in answers.values():
        say(describe(answer))
    return answers


def describe(answer: Answer) -> str:
    """One worker in one line."""
    facts = answer.facts
    state = facts["state"] + (f" with exit code {facts['code']}" if "code" in facts else "")
    state += " (asked to leave)" if facts.get("code") == ASKED_TO_LEAVE else ""
    run = f"run {facts['run']}, " if "run" in facts else ""
    extra = "".join(f", {role}" for role in ("watchdog", "dashboard") if facts.get(role) == "running")
    last = f"; {facts['log_age_s']} s ago: {facts.get('last', '')}" if "log_age_s" in facts else ""
    free = f", {facts['free_gb']} GB free" if "free_gb" in facts else ""
    return f"worker {answer.worker} {facts['host']}: {run}{state}{extra}, release {facts['release']}{free}{last}"


def check_command(pod: Pod) -> None:
    """UsageError without a command to run."""
    if not pod.settings.command.strip():
        raise UsageError(
            "command is missing: name what to run, such as --command 'train_pretrain.py --preset 1.3b ...'"
        )


def _start_role(pod: Pod, run: str, release: str, role: str, command: str, workers: Sequence[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{role}.sh"
        _write_private(path, job_file(command, pod.settings.env))
        pod.copy(path, f"{role}.sh")
    answers = pod.run("start", run, release, role, timeout_s=QUICK_S, workers=workers)
    others = {answer.facts["already"] for answer in answers.values() if "already" in answer.facts} - {run}
    if role == "job" and others:
        raise LaunchError(f"run {sorted(others)[0]} was started meanwhile: stop, then start again")


def job_file(command: str, env: Sequence[tuple[str, str]]) -> str:
    """What start.sh reads on a worker: variables and the words of the command. It may name $worker."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in env]
    return "\n".join([*lines, f"command=({command})"]) + "\n"


def _training_command(pod: Pod) -> str:
    """The command as quoted words of a shell; a training gets the flags by which its processes find each other."""
    words = python_words(pod.settings.command)
    told = any(word.startswith("--run.coordinator") for word in words)
    training = any(words[: len(head)] == head for head in TRAINING)
    if not training or told or pod.dry_run or len(pod.workers()) == 1:
        return quoted(pod.settings.command)
    return f"{quoted(pod.settings.command)} {pod.process_flags()}"


def _dashboard_command(settings: Settings) -> str:
    """The command of the dashboard, with the run's directory."""
    words = python_words(settings.dashboard_command)
    if not words:
        raise UsageError("dashboard_command is empty: say what --dashboard starts, such as 'monitor.py --port 8080'")
    run_dir = _run_dir(words) or _run_dir(shlex.split(settings.command))
    if not run_dir:
        raise UsageError("--dashboard: the command names no --run_dir; name one in dashboard_command")
    return quoted(settings.dashboard_command) if _run_dir(words) else shlex.join([*words, "--run_dir", run_dir])


def _watchdog_command(settings: Settings) -> str:
    """The command of the watchdog, with the run's directory unless that is in a bucket."""
    words = python_words(settings.watchdog)
    run_dir = _run_dir(shlex.split(settings.command))
    if _run_dir(words) or not run_dir or "://" in run_dir:
        return quoted(settings.watchdog)
    return shlex.join([*words, "--run_dir", run_dir])


def _run_dir(words: list[str]) -> str:
    """The value of --run_dir in a command; empty where it names none."""
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag.replace("-", "_") == "__run_dir":
            return value if equals else "".join(words[place + 1 : place + 2])
    return ""


def python_words(command: str) -> list[str]:
    """What Python is called with for this command: `echotts train` is `-m echotts train` there."""
    words = shlex.split(command)
    return ["-m", *words] if words[:1] == ["echotts"] else words


def quoted(command: str) -> str:
    """The words for Python, each quoted, so that a shell takes them as they stand."""
    return shlex.join(python_words(command))


def _running(pod: Pod) -> str | None:
    """The run that is alive on every worker, None if none is alive on any. LaunchError for anything between."""
    answers = pod.run("status", timeout_s=QUICK_S)
    alive = {worker: a.facts["run"] for worker, a in answers.items() if a.facts["state"] == "running"}
    if not alive:
        return None
    if len(alive) < len(answers) or len(set(alive.values())) > 1:
        held = ", ".join(f"{run} on worker {worker}" for worker, run in alive.items())
        raise LaunchError(f"a run is alive on some workers only ({held}, of {len(answers)}): stop, then start again")
    return next(iter(alive.values()))


def _release(pod: Pod, facts: dict[int, Answer]) -> str:
    """The release that all workers have. Complains when the files here have changed since."""
    answers = facts or pod.run("status", timeout_s=QUICK_S)
    release = next(iter(answers.values())).facts["release"]
    try:
        here = identify(Path(pod.settings.source), dirty=pod.settings.dirty)[0]
    except LaunchError:
        return release  # started from a machine without the code
    if here != release:
        complain(f"launch: the workers have release {release}, the files here are {here}: sync sends them")
    return release


def _settle(pod: Pod, run: str) -> None:
    """LaunchError, after stopping the rest, where a worker's process ended within the first seconds."""
    time.sleep(pod.settings.settle_s)
    answers = pod.run("status", timeout_s=QUICK_S)
    ended = [a for a in answers.values() if a.facts["state"] != "running" and a.facts.get("code") != "0"]
    if not ended:
        return
    for answer in ended:
        complain(describe(answer))
    stop(pod, by_hand=False)
    raise LaunchError(f"run {run} ended at once on worker {listed([a.worker for a in ended])}: see logs")


def _say_what_is_sent(package: Package) -> None:
    say(f"release {package.release}: {package.size / 1e6:.1f} MB, sha256 {package.sha256[:16]}...")
    for files, words in (
        (package.sent, "UNCOMMITTED, and sent"),
        (package.left, "uncommitted, and NOT sent (--dirty)"),
    ):
        if files:
            more = f" and {len(files) - 10} more" if len(files) > 10 else ""
            complain(f"launch: {words}: {', '.join(files[:10])}{more}")


def _write_private(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def _how_many(pod: Pod) -> str:
    if pod.dry_run:
        return "all workers"
    count = len(pod.workers())
    return f"{count} worker{'s' if count > 1 else ''}"
