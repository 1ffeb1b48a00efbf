"""The operations on a pod of either kind. Each is idempotent: repeated, it does what is left to do."""

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
TRAINING = (["train_pretrain.py"], ["-m", "echotts", "train"])  # beginnings of commands that get process flags


class Lasting:
    """Measures for how long a condition has been true at every check."""

    def __init__(self) -> None:
        self._since_s: float | None = None

    def seconds(self, true: bool) -> float:
        """Seconds since the first of consecutive checks at which it was `true`; 0 if it is not."""
        if not true:
            self._since_s = None
            return 0.0
        self._since_s = self._since_s or time.monotonic()
        return time.monotonic() - self._since_s


def up(pod: Pod) -> None:
    """Ensures that there are machines, and waits for them. LaunchError if the request failed, or on timeout."""
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
        if state == LOST:  # never comes back, but uses quota until it is deleted
            pod.delete()
            unlisted = Lasting()
        if state in (LOST, MISSING):
            pod.create()
        if pod.dry_run or not pod.settings.wait_minutes:
            return
        time.sleep(pod.settings.poll_s)


def refused(pod: Pod, words: str) -> LaunchError:
    """The error for a request that Google Cloud rejected, with its reason. Retrying would be useless."""
    return LaunchError(
        f"{pod.settings.name} is {words}: fix the cause, remove the request with down, then run up again"
    )


def sync(pod: Pod, package: Package | None = None) -> str:
    """Installs the code and its requirements as the current release on all workers; returns the release's name.

    No worker switches before all have the complete release.
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
            private = Path(folder) / "token"  # mode 600, regardless of the original's
            _write_private(private, token.read_text(encoding="utf-8").strip() + "\n")
            pod.copy(private, "token")
        pod.run("install", package.release, package.sha256, settings.python, timeout_s=INSTALL_S)
        pod.run("switch", package.release, str(KEEP_RELEASES), timeout_s=QUICK_S)
    say(f"release {package.release} is current on {_how_many(pod)}")
    return package.release


def start(pod: Pod, *, dashboard: bool = False) -> str | None:
    """Starts the command on all workers, after all checks; returns the run's id, None in a dry run."""
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
        complain("launch: no Hugging Face token on the workers: no private data, and low rate limits (hf_token_file)")
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
    """Sends SIGTERM to all workers at once, so that the run saves and ends; SIGKILL after `grace_s`.

    `by_hand` tells any watch, wherever it runs, not to restart the run.
    """
    grace_s = pod.settings.grace_s
    answers = pod.run("stop", str(grace_s), "yes" if by_hand else "no", timeout_s=grace_s + QUICK_S)
    for outcome, words in (("stopped", "stopped"), ("killed", f"did not end within {grace_s} s, killed"), ("none", "")):
        workers = [answer.worker for answer in answers.values() if answer.facts.get("job") == outcome]
        if workers:
            say(f"worker {listed(workers)}: {words or 'nothing was running'}")


def down(pod: Pod) -> None:
    """Stops the run and releases the machines, including everything on their disks."""
    state, words = pod.state()
    if state == MISSING:
        say(f"{pod.settings.name}: {words}, nothing to release")
        return
    if state == READY:
        try:
            stop(pod)
        except LaunchError as error:
            complain(f"launch: could not stop the run before releasing the machines ({error})")
    pod.delete()
    say(f"{pod.settings.name}: released")


def status(pod: Pod) -> dict[int, Answer]:
    """Prints the state of the machines and of the processes on each; returns the workers' answers."""
    state, words = pod.state()
    say(f"{pod.settings.name}: {words}")
    if state != READY or pod.dry_run:
        return {}
    answers = pod.run("status", timeout_s=QUICK_S)
    for answer in answers.values():
        say(describe(answer))
    return answers


def describe(answer: Answer) -> str:
    """The state of one worker in one line."""
    facts = answer.facts
    state = facts["state"] + (f" with exit code {facts['code']}" if "code" in facts else "")
    state += " (ended by a signal)" if facts.get("code") == ASKED_TO_LEAVE else ""
    run = f"run {facts['run']}, " if "run" in facts else ""
    extra = "".join(f", {role}" for role in ("watchdog", "dashboard") if facts.get(role) == "running")
    last = f"; {facts['log_age_s']} s ago: {facts.get('last', '')}" if "log_age_s" in facts else ""
    free = f", {facts['free_gb']} GB free" if "free_gb" in facts else ""
    return f"worker {answer.worker} {facts['host']}: {run}{state}{extra}, release {facts['release']}{free}{last}"


def check_command(pod: Pod) -> None:
    """UsageError if there is no command to run."""
    if not pod.settings.command.strip():
        raise UsageError("command is missing: set it, such as --command 'train_pretrain.py --preset 1.3b ...'")


def _start_role(pod: Pod, run: str, release: str, role: str, command: str, workers: Sequence[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{role}.sh"
        _write_private(path, job_file(command, pod.settings.env))
        pod.copy(path, f"{role}.sh")
    answers = pod.run("start", run, release, role, timeout_s=QUICK_S, workers=workers)
    others = {answer.facts["already"] for answer in answers.values() if "already" in answer.facts} - {run}
    if role == "job" and others:
        raise LaunchError(f"run {sorted(others)[0]} was started in the meantime: stop, then start again")


def job_file(command: str, env: Sequence[tuple[str, str]]) -> str:
    """The file that start.sh sources on a worker: variables and the command's words. It may use $worker."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in env]
    return "\n".join([*lines, f"command=({command})"]) + "\n"


def _training_command(pod: Pod) -> str:
    """The command as quoted shell words; a training gets the flags for multi-process runs."""
    words = python_words(pod.settings.command)
    told = any(word.startswith("--run.coordinator") for word in words)
    training = any(words[: len(head)] == head for head in TRAINING)
    if not training or told or pod.dry_run or len(pod.workers()) == 1:
        return quoted(pod.settings.command)
    return f"{quoted(pod.settings.command)} {pod.process_flags()}"


def _dashboard_command(settings: Settings) -> str:
    """The command of the dashboard, with the run directory."""
    words = python_words(settings.dashboard_command)
    if not words:
        raise UsageError("dashboard_command is empty: set it, such as 'monitor.py --port 8080'")
    run_dir = _run_dir(words) or _run_dir(shlex.split(settings.command))
    if not run_dir:
        raise UsageError("--dashboard: the command has no --run_dir; set one in dashboard_command")
    return quoted(settings.dashboard_command) if _run_dir(words) else shlex.join([*words, "--run_dir", run_dir])


def _watchdog_command(settings: Settings) -> str:
    """The command of the watchdog, with the run directory unless that is in a bucket."""
    words = python_words(settings.watchdog)
    run_dir = _run_dir(shlex.split(settings.command))
    if _run_dir(words) or not run_dir or "://" in run_dir:
        return quoted(settings.watchdog)
    return shlex.join([*words, "--run_dir", run_dir])


def _run_dir(words: list[str]) -> str:
    """The value of --run_dir in a command; empty if it has none."""
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag.replace("-", "_") == "__run_dir":
            return value if equals else "".join(words[place + 1 : place + 2])
    return ""


def python_words(command: str) -> list[str]:
    """Python's arguments for this command: `echotts train` becomes `-m echotts train`."""
    words = shlex.split(command)
    return ["-m", *words] if words[:1] == ["echotts"] else words


def quoted(command: str) -> str:
    """Python's arguments, quoted for a shell."""
    return shlex.join(python_words(command))


def _running(pod: Pod) -> str | None:
    """The run that is alive on every worker, None if none is alive on any. LaunchError if it is alive on some."""
    answers = pod.run("status", timeout_s=QUICK_S)
    alive = {worker: a.facts["run"] for worker, a in answers.items() if a.facts["state"] == "running"}
    if not alive:
        return None
    if len(alive) < len(answers) or len(set(alive.values())) > 1:
        held = ", ".join(f"{run} on worker {worker}" for worker, run in alive.items())
        raise LaunchError(f"a run is alive on some workers only ({held}, of {len(answers)}): stop, then start again")
    return next(iter(alive.values()))


def _release(pod: Pod, facts: dict[int, Answer]) -> str:
    """The release of all workers. Warns if the local files have changed since."""
    answers = facts or pod.run("status", timeout_s=QUICK_S)
    release = next(iter(answers.values())).facts["release"]
    try:
        here = identify(Path(pod.settings.source), dirty=pod.settings.dirty)[0]
    except LaunchError:
        return release  # running on a machine without the code
    if here != release:
        complain(f"launch: the workers have release {release}, but the local files are {here}: run sync to send them")
    return release


def _settle(pod: Pod, run: str) -> None:
    """LaunchError, after stopping the others, if a worker's process ended within the first seconds."""
    time.sleep(pod.settings.settle_s)
    answers = pod.run("status", timeout_s=QUICK_S)
    ended = [a for a in answers.values() if a.facts["state"] != "running" and a.facts.get("code") != "0"]
    if not ended:
        return
    for answer in ended:
        complain(describe(answer))
    stop(pod, by_hand=False)
    raise LaunchError(f"run {run} ended immediately on worker {listed([a.worker for a in ended])}: see logs")


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
