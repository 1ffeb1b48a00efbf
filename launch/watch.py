"""Keeps a run alive for weeks: replaces lost machines, and resumes the run from its last checkpoint."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from launch import verbs
from launch.answers import ASKED_TO_LEAVE, Answer, WorkerError
from launch.errors import LaunchError, UsageError
from launch.pack import Package, pack
from launch.pods import FAILED, LOST, MISSING, READY, UNLISTED, WAITING, Pod, complain, say
from launch.preflight import listed
from launch.settings import Settings

DAY_S = 86_400
LONGEST_PAUSE_S = 1800
STEADY_S = 1800  # after which a run counts as stable
ALL_SILENT = 6  # times lost_s if no worker answers at all: the local network may be the cause
PATIENCE = 6  # checks of a run ended by a signal before it is restarted: the machines may be preempted too


class GaveUp(LaunchError):
    """Watching is pointless: the day's retries are used up, or the request was rejected."""


class Budget:
    """Limits retries and computes the pauses between them. Times are seconds of one clock."""

    def __init__(self, settings: Settings):
        self._pause_s = settings.backoff_s
        self._most = settings.max_per_day
        self._tries: list[float] = []
        self._in_a_row = 0

    def spend(self, now_s: float, why: str) -> float:
        """The pause before the next retry, 0 before the first; GaveUp if the day's retries are used up."""
        self._tries = [then for then in self._tries if now_s - then < DAY_S] + [now_s]
        if len(self._tries) > self._most:
            raise GaveUp(f"{why}; retried {self._most} times within 24 hours (max_per_day): watch gives up, see logs")
        pause_s = 0.0 if self._in_a_row == 0 else min(self._pause_s * 2 ** (self._in_a_row - 1), LONGEST_PAUSE_S)
        self._in_a_row += 1
        return pause_s

    def steady(self) -> None:
        """The run has been stable: the next pause is short again."""
        self._in_a_row = 0


class Watch:
    """One watched pod. `run` returns when the run has finished or was stopped, or the machines were released."""

    def __init__(self, pod: Pod, package: Package, sleep: Callable[[float], None] = time.sleep):
        self._pod = pod
        self._package = package  # a resumed run uses the code of the first start, even if local files change
        self._sleep = sleep
        self._budget = Budget(pod.settings)
        self._said = {"machines": "", "run": ""}
        self._had_machines = False
        self._ever_had_machines = False
        self._unheard = 0  # consecutive failed checks of gcloud
        self._silence = verbs.Lasting()  # of a worker
        self._unlisted = verbs.Lasting()
        self._leaving = 0  # checks of a run that was ended by a signal
        self._since_s: float | None = None  # when the run was first seen running

    def run(self) -> None:
        """Checks, acts and sleeps until there is nothing left to do."""
        while True:
            try:
                state, words, answers = self._look()
            except LaunchError as error:  # a network failure: the run may be fine
                self._silence.seconds(False)
                pause_s = min(self._pod.settings.poll_s * 2**self._unheard, LONGEST_PAUSE_S)
                self._unheard += 1
                complain(f"launch: {_now()} {error}; retrying in {pause_s:.0f} s")
                self._sleep(pause_s)
                continue
            self._unheard = 0
            self._say("machines", words)
            try:
                if self._act(state, words, answers):
                    return
            except (GaveUp, UsageError):
                raise
            except LaunchError as error:
                self._try_again(str(error))
            self._sleep(self._pod.settings.poll_s)

    def _look(self) -> tuple[str, str, dict[int, Answer]]:
        """State of the machines, its description, the workers' answers; for a silent worker WAITING, then LOST."""
        state, words = self._pod.state()
        try:
            answers = self._pod.run("status", timeout_s=verbs.QUICK_S) if state == READY else {}
        except WorkerError as error:
            if not error.silent:
                raise
            limit_s = self._pod.settings.lost_s * (ALL_SILENT if len(error.silent) == len(error.asked) else 1)
            if self._silence.seconds(True) > limit_s:
                return LOST, f"no answer from worker {listed(error.silent)} for {limit_s:.0f} s", {}
            return WAITING, f"{error}; counts as lost after {limit_s:.0f} s", {}
        self._silence.seconds(False)
        return state, words, answers

    def _act(self, state: str, words: str, answers: dict[int, Answer]) -> bool:
        """Does what this state requires; True if there is nothing left to watch."""
        if self._unlisted.seconds(state == UNLISTED) > self._pod.settings.lost_s:
            state = LOST
        if state == MISSING and self._had_machines:  # preempted machines leave a suspended resource behind
            say("the machines were released manually: nothing left to watch")
            return True
        if state == MISSING:
            self._pod.create()
        elif state == FAILED and not self._ever_had_machines:
            raise GaveUp(str(verbs.refused(self._pod, words)))
        elif state in (LOST, FAILED):
            self._since_s, self._had_machines = None, False
            self._silence.seconds(False)
            self._unlisted.seconds(False)
            self._try_again(f"the machines are gone ({words})")
            self._pod.delete()  # uses quota and cannot be reused
            self._pod.create()
        elif state == READY:
            self._had_machines = self._ever_had_machines = True
            return self._act_on_run(answers)
        return False

    def _act_on_run(self, answers: dict[int, Answer]) -> bool:
        states = {answer.facts["state"] for answer in answers.values()}
        if any("stopped" in answer.facts for answer in answers.values()):
            say("stopped manually: nothing left to watch")
            return True
        if states == {"running"}:
            self._lives(len(answers))
            return False
        well = ("0", ASKED_TO_LEAVE)
        failed = [a for a in answers.values() if a.facts["state"] == "died" or a.facts.get("code", "0") not in well]
        if not failed and states == {"ended"} and not _asked_to_leave(answers):
            say("finished on all workers")
            return True
        if not failed and "none" not in states and self._leaving < PATIENCE:
            self._leaving += 1  # some have ended and the others are about to, or all were ended by a signal
            return False
        if states != {"none"}:  # new machines are not a failure
            self._say_what_failed(failed, [a.worker for a in answers.values() if a.facts["state"] == "none"])
            verbs.stop(self._pod, by_hand=False)
        verbs.sync(self._pod, self._package)
        verbs.start(self._pod)
        return False

    def _lives(self, workers: int) -> None:
        self._leaving = 0
        self._since_s = self._since_s or time.monotonic()
        if time.monotonic() - self._since_s > STEADY_S:
            self._budget.steady()
        self._say("run", f"running on {workers} workers")

    def _say_what_failed(self, failed: list[Answer], without: list[int]) -> None:
        self._leaving, self._since_s = 0, None
        for answer in failed:
            complain(verbs.describe(answer))
        if failed:
            self._try_again(f"the run ended early on worker {listed([answer.worker for answer in failed])}")
        else:
            self._try_again(f"no run on worker {listed(without)}" if without else "the run was ended by a signal")

    def _try_again(self, why: str) -> None:
        self._said["run"] = ""
        pause_s = self._budget.spend(time.monotonic(), why)
        complain(f"launch: {_now()} {why}; retrying" + (f" in {pause_s:.0f} s" if pause_s else ""))
        self._sleep(pause_s)

    def _say(self, of: str, words: str) -> None:
        if words != self._said[of]:
            say(f"{_now()} {self._pod.settings.name}: {words}")
            self._said[of] = words


def watch(pod: Pod) -> None:
    """Creates, syncs and starts, and repeats that whenever the machines or the run are lost."""
    if pod.dry_run:
        verbs.up(pod)
        verbs.sync(pod)
        verbs.start(pod)
        say(f"+ repeat whenever it is lost, at most {pod.settings.max_per_day} times a day")
        return
    verbs.check_command(pod)
    with tempfile.TemporaryDirectory() as folder:
        package = pack(Path(pod.settings.source), dirty=pod.settings.dirty, folder=Path(folder))
        Watch(pod, package).run()


def _asked_to_leave(answers: dict[int, Answer]) -> bool:
    """Whether the run ended because of a signal, such as the notice before machines are preempted."""
    return any(answer.facts.get("code") == ASKED_TO_LEAVE for answer in answers.values())


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
