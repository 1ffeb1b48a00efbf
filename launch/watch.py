"""Keeps a run alive for weeks: replaces machines that are taken away, and the run resumes from its last checkpoint."""

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
STEADY_S = 1800  # after which a run is trusted
ALL_SILENT = 6  # times lost_s when no worker answers at all: the fault may be here
PATIENCE = 6  # looks at a run that was asked to leave, before it is started again: the machines may be going too


class GaveUp(LaunchError):
    """There is no point in watching on: the day's retries are used up, or the request was refused."""


class Budget:
    """How often to retry, and after which pause. Times are seconds of one clock."""

    def __init__(self, settings: Settings):
        self._pause_s = settings.backoff_s
        self._most = settings.max_per_day
        self._tries: list[float] = []
        self._in_a_row = 0

    def spend(self, now_s: float, why: str) -> float:
        """The pause before the next retry, 0 before the first; GaveUp when the day's retries are used up."""
        self._tries = [then for then in self._tries if now_s - then < DAY_S] + [now_s]
        if len(self._tries) > self._most:
            raise GaveUp(f"{why}; retried {self._most} times within 24 hours (max_per_day): watch gives up, see logs")
        pause_s = 0.0 if self._in_a_row == 0 else min(self._pause_s * 2 ** (self._in_a_row - 1), LONGEST_PAUSE_S)
        self._in_a_row += 1
        return pause_s

    def steady(self) -> None:
        """The run has been up long enough: the next pause is short again."""
        self._in_a_row = 0


class Watch:
    """One watched pod. `run` returns when the run has finished, or was stopped or given back by hand."""

    def __init__(self, pod: Pod, package: Package, sleep: Callable[[float], None] = time.sleep):
        self._pod = pod
        self._package = package  # a resumed run is the code that the first start sent, whatever happens here meanwhile
        self._sleep = sleep
        self._budget = Budget(pod.settings)
        self._said = {"machines": "", "run": ""}
        self._had_machines = False
        self._ever_had_machines = False
        self._unheard = 0  # looks in a row without an answer of gcloud
        self._silence = verbs.Lasting()  # of a worker
        self._unlisted = verbs.Lasting()
        self._leaving = 0  # looks at a run that was asked to leave
        self._since_s: float | None = None  # when the run was first seen running

    def run(self) -> None:
        """Looks, acts, sleeps, until there is nothing left to do."""
        while True:
            try:
                state, words, answers = self._look()
            except LaunchError as error:  # the network here, or theirs: no reason to touch a run that may be well
                self._silence.seconds(False)
                pause_s = min(self._pod.settings.poll_s * 2**self._unheard, LONGEST_PAUSE_S)
                self._unheard += 1
                complain(f"launch: {_now()} {error}; asking again in {pause_s:.0f} s")
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
        """State of the machines, its words, the workers' answers; WAITING, then LOST, while a worker is silent."""
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
        """Does what this state requires; True when there is nothing left to watch."""
        if self._unlisted.seconds(state == UNLISTED) > self._pod.settings.lost_s:
            state = LOST
        if state == MISSING and self._had_machines:  # machines that are taken away leave a suspended resource behind
            say("the machines were given back by hand: nothing left to watch")
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
            self._pod.delete()  # it holds quota and cannot be used again
            self._pod.create()
        elif state == READY:
            self._had_machines = self._ever_had_machines = True
            return self._act_on_run(answers)
        return False

    def _act_on_run(self, answers: dict[int, Answer]) -> bool:
        states = {answer.facts["state"] for answer in answers.values()}
        if any("stopped" in answer.facts for answer in answers.values()):
            say("stopped by hand: nothing left to watch")
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
            self._leaving += 1  # some have ended well and the others are about to, or all were asked to leave
            return False
        if states != {"none"}:  # machines that are new are no failure
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
            self._try_again(f"no run on worker {listed(without)}" if without else "the run was asked to leave")

    def _try_again(self, why: str) -> None:
        self._said["run"] = ""
        pause_s = self._budget.spend(time.monotonic(), why)
        complain(f"launch: {_now()} {why}; trying again" + (f" in {pause_s:.0f} s" if pause_s else ""))
        self._sleep(pause_s)

    def _say(self, of: str, words: str) -> None:
        if words != self._said[of]:
            say(f"{_now()} {self._pod.settings.name}: {words}")
            self._said[of] = words


def watch(pod: Pod) -> None:
    """Creates, syncs, starts, and does so again whenever the machines or the run are lost."""
    if pod.dry_run:
        verbs.up(pod)
        verbs.sync(pod)
        verbs.start(pod)
        say(f"+ and again whenever it is lost, at most {pod.settings.max_per_day} times a day")
        return
    verbs.check_command(pod)
    with tempfile.TemporaryDirectory() as folder:
        package = pack(Path(pod.settings.source), dirty=pod.settings.dirty, folder=Path(folder))
        Watch(pod, package).run()


def _asked_to_leave(answers: dict[int, Answer]) -> bool:
    """Whether the run ended because it was asked to: the notice that comes before machines are taken away."""
    return any(answer.facts.get("code") == ASKED_TO_LEAVE for answer in answers.values())


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
