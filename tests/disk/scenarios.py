"""Random scenarios on a small real disk: a trainer, a reader and the watchdog, each killed at random times.

    python -m tests.disk.scenarios --first 0 --count 40 --work FOLDER

The disk is a tmpfs of 8 MB below FOLDER (a faked statvfs if none can be mounted; the result says which). The actors of
a scenario are forks of this process, which never imports jax. The trainer writes checkpoints, shards and logs, frees
space before it saves, reads back its files under leases, waits when asked to, and creates traps: symlinks with names
that may be deleted, a folder that becomes a symlink during a pass. Files that must be kept are recorded in a ledger on
another disk, and checked at the end.

Prints one JSON object: scenarios, violations, and how often the events required for the proof occurred.
"""

import argparse
import contextlib
import errno
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from echotts.disk import watchdog
from echotts.disk.candidates import candidates, open_target
from echotts.disk.scan import open_files
from echotts.disk.settings import Limits, Root, Settings
from echotts.disk.watchdog import Goal, Watchdog
from echotts.rundir import pause
from echotts.rundir.free_space import Space, measure
from echotts.rundir.layout import note_verified, writing
from echotts.rundir.leases import LeaseError, is_leased, lease
from tests.disk.layout import ROOMY, aged, checkpoint, run_dir, steps, write

DISK_BYTES = 8 * 2**20
KEEP_LAST, KEEP_EVERY = 2, 5
LONGEST_S = 20.0


class Ledger:
    """A log of events, one JSON line each, on a disk that is not under test."""

    def __init__(self, path: Path):
        self.path = path
        path.write_text("")

    def note(self, kind: str, value: object = None) -> None:
        with self.path.open("a") as file:
            file.write("\n" + json.dumps([kind, value]) + "\n")

    def of(self, kind: str) -> list:
        return [value for known, value in self.lines() if known == kind]

    def lines(self) -> Iterator[tuple[str, Any]]:
        """All notes; one that is being written, or that its writer was killed over, is passed over."""
        for line in self.path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                kind, value = json.loads(line)
                yield kind, value


class Scene:
    """One scenario's files, settings and actors."""

    def __init__(self, disk: Path, work: Path, number: int):
        self.number, self.random = number, random.Random(number)
        self.disk, self.run = disk, disk / "runs" / "run"
        self.ledger = Ledger(work / f"ledger-{number}")
        self.precious = disk / "precious"  # in no root
        start = self.random.choice([0.6, 0.75, 0.85])
        stop = start - self.random.choice([0.05, 0.1, 0.2])
        limits = Limits(
            start=start,
            stop=stop,
            max_files_per_pass=self.random.choice([3, 10, 1000]),
            max_gib_per_pass=self.random.choice([0.5, 4.0, 100.0]) / 1024,
            **ROOMY,
        )
        roots = (
            Root(kind="runs", path=disk / "runs", min_age_hours=0.0, keep_last=KEEP_LAST),
            Root(kind="shards", path=disk / "shards"),
            Root(kind="logs", path=disk / "logs"),
            Root(kind="partial", path=disk / "staging"),
        )
        self.settings = Settings(limits=limits, roots=roots)

    def build(self) -> None:
        """A run, some rubbish, some needed files, and traps."""
        draw = self.random
        run_dir(self.run, keep_last=KEEP_LAST + draw.randrange(3), keep_every=KEEP_EVERY)
        for folder in ("shards", "logs/sub", "staging", "precious"):
            (self.disk / folder).mkdir(parents=True)
        for name in ("0.log", "1.log", "s.tar", "x.partial"):
            self.needed(write(self.precious / name, 20_000, age_h=1000))
        checkpoint(self.precious, 1, 20_000, age_h=1000)
        for number in range(draw.randrange(12)):
            write(self.disk / "logs" / "sub" / f"{number}.log", draw.randrange(200_000), age_h=draw.uniform(1, 99))
            write(self.disk / "shards" / f"{number}.tar", draw.randrange(200_000), age_h=draw.uniform(1.5, 9))
            write(self.disk / "staging" / f"{number}.partial", draw.randrange(100_000), age_h=draw.uniform(0.5, 9))
        self.needed(write(self.disk / "logs" / "young.log", 10_000))
        self.needed(write(self.disk / "logs" / "wtmp", 10_000, age_h=1000))
        self.needed(write(self.disk / "shards" / "young.tar", 10_000))
        self.needed(write(self.disk / "staging" / f".mine.{os.getpid()}.partial", 10_000, age_h=1000))
        self.needed(write(self.run / "metrics" / "host.jsonl", 10_000, age_h=1000))
        self.needed(write(self.run / "samples" / "step_00000001" / "a.wav", 10_000, age_h=1000))
        for name in ("logs/link.log", "shards/link.tar", "staging/link.partial", "runs/link", "logs/folder"):
            target = self.precious / ("0.log" if name.endswith(".log") else "")
            aged_link(self.disk / name, target)
        aged_link(self.run / "checkpoints" / "step_00000001", self.precious / "checkpoints" / "step_00000001")
        if draw.random() < 0.5:  # what is needed leaves little room
            ballast = measure(self.disk).free_bytes - draw.randrange(200_000, 2_000_000)
            self.needed(write(self.precious / "ballast", max(ballast, 0)))

    def undo_swap(self) -> None:
        """Removes leftovers of a trainer that was killed inside `swap`."""
        folder, aside = self.disk / "logs" / "sub", self.disk / "logs" / "aside"
        if folder.is_symlink():
            folder.unlink()
        if aside.is_dir():
            aside.rename(folder)

    def needed(self, path: Path) -> None:
        """Notes that this file must be here, with these bytes, until the end."""
        self.ledger.note("needed", [str(path), digest(path)])


def aged_link(path: Path, target: Path) -> None:
    path.symlink_to(target)
    aged(path, 1000)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(folder: Path) -> str:
    """One digest of all files below a folder; FileNotFoundError if any disappears meanwhile."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and ".leases" not in path.parts)
    return hashlib.sha256(" ".join(f"{path.name} {digest(path)}" for path in files).encode()).hexdigest()


class Trainer:
    """Saves, logs, fetches and reads; `round` is part of the seed at each start."""

    def __init__(self, scene: Scene, round_: int):
        self.scene, self.ledger, self.draw = scene, scene.ledger, random.Random(f"{scene.number} {round_}")

    def play(self) -> None:
        with writing(self.scene.run):
            self.scene.undo_swap()
            self.resume()
            actions = [self.save, self.save, self.save, self.log, self.fetch, self.swap, self.wait_if_asked]
            while True:
                self.draw.choice(actions)()
                self.ledger.note("act")

    def resume(self) -> None:
        """Checks that the newest complete checkpoint is unchanged; it counts as verified from now on."""
        for path in (self.scene.run / "checkpoints").glob("*.orbax-checkpoint-tmp"):
            shutil.rmtree(path, ignore_errors=True)
        committed = dict(self.ledger.of("saved"))
        if not committed:
            return
        newest = max(steps(self.scene.run), default=0)
        if newest < max(committed):
            self.ledger.note("broken", f"resumed from {newest}, though {max(committed)} was saved")
            return
        folder = self.scene.run / "checkpoints" / f"step_{newest:08d}"
        with lease(folder):
            if newest in committed and contents(folder) != committed[newest]:
                self.ledger.note("broken", f"{folder.name} is not what was saved")
            with contextlib.suppress(OSError):
                note_verified(self.scene.run, newest)

    def save(self) -> None:
        size = self.draw.randrange(50_000, 900_000)
        self.make_room(size + 100_000)
        step = max(steps(self.scene.run), default=1) + 1
        unfinished = self.scene.run / "checkpoints" / f"step_{step:08d}.orbax-checkpoint-tmp"
        try:
            folder = checkpoint(self.scene.run, step, size, age_h=self.draw.uniform(0, 5))
        except OSError:  # no room: removes the rest of it, as the trainer does
            self.ledger.note("no room")
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            self.ledger.note("saved", [step, contents(folder)])

    def make_room(self, size: int) -> None:
        """As echotts.disk.watchdog.make_room does, which reads its settings from a file."""
        while gone := Watchdog(self.scene.settings).run_pass(needed_bytes=size, on=self.scene.run):
            self.ledger.note("deleted before a save", len(gone))

    def log(self) -> None:
        name = self.scene.disk / "logs" / f"{time.monotonic_ns()}.log"
        with contextlib.suppress(OSError):
            write(name, self.draw.randrange(150_000), age_h=self.draw.uniform(0, 60))

    def fetch(self) -> None:
        """A shard is fetched, read under a lease, and is then consumed."""
        path = self.scene.disk / "shards" / f"{time.monotonic_ns()}.tar"
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            write(partial, self.draw.randrange(300_000))
            partial.rename(path)
        except OSError:
            partial.unlink(missing_ok=True)
            return
        aged(path, 5)
        with contextlib.suppress(FileNotFoundError, LeaseError), lease(path):
            self.read_twice(path, digest)

    def read_twice(self, path: Path, read: Callable[[Path], str]) -> None:
        try:
            first = read(path)
            time.sleep(self.draw.uniform(0, 0.01))
            if read(path) != first:
                self.ledger.note("broken", f"{path}: changed under a lease")
        except OSError as error:
            self.ledger.note("broken", f"{path}: went under a lease: {error}")
        self.ledger.note("leased read")

    def swap(self) -> None:
        """A folder in a root becomes a symlink to protected files, and a folder again."""
        folder, aside = self.scene.disk / "logs" / "sub", self.scene.disk / "logs" / "aside"
        for _ in range(self.draw.randrange(1, 30)):
            folder.rename(aside)
            folder.symlink_to(self.scene.precious)
            time.sleep(self.draw.uniform(0, 0.001))
            folder.unlink()
            aside.rename(folder)

    def wait_if_asked(self) -> None:
        if pause.full(self.scene.run) is not None:
            self.ledger.note("asked")
            deadline = time.monotonic() + 0.05
            while pause.full(self.scene.run) is not None and time.monotonic() < deadline:
                time.sleep(0.01)


def read_forever(scene: Scene, round_: int) -> None:
    """Inference: any checkpoint, old ones too, read under a lease."""
    trainer = Trainer(scene, -round_ - 1)
    while True:
        for step in trainer.draw.sample(found := steps(scene.run), len(found)):
            folder = scene.run / "checkpoints" / f"step_{step:08d}"
            with contextlib.suppress(FileNotFoundError, LeaseError), lease(folder):
                trainer.read_twice(folder, contents)
        time.sleep(0.01)


def watch(scene: Scene, round_: int) -> None:
    """The watchdog of the host."""
    dog = Watchdog(scene.settings)
    while True:
        if gone := dog.run_pass():
            scene.ledger.note("deleted", len(gone))
        time.sleep(0.01)


@contextmanager
def forked(scene: Scene, play: Callable[[], None]) -> Iterator[int]:
    """A process that acts until it is killed; an exception in it is a violation."""
    pid = os.fork()
    if pid == 0:
        try:
            play()
        except BaseException:
            scene.ledger.note("broken", traceback.format_exc())
        os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def play(scene: Scene) -> None:
    """Three actors, which are killed and restarted in turn until enough has been done."""
    actors = [
        lambda round_: Trainer(scene, round_).play(),
        lambda round_: watch(scene, round_),
        lambda round_: read_forever(scene, round_),
    ]
    rounds = scene.random.randrange(1, 5)
    deadline = time.monotonic() + LONGEST_S
    with contextlib.ExitStack() as stack:
        living = [stack.enter_context(contextlib.ExitStack()) for _ in actors]
        for one, actor in zip(living, actors, strict=True):
            one.enter_context(forked(scene, lambda actor=actor: actor(0)))
        for round_ in range(rounds):
            target = len(scene.ledger.of("act")) + scene.random.randrange(5, 20)
            while len(scene.ledger.of("act")) < target and time.monotonic() < deadline:
                time.sleep(0.003)
            victim = scene.random.randrange(len(actors))
            living[victim].close()
            scene.ledger.note("killed")
            actor = actors[victim]
            living[victim].enter_context(forked(scene, lambda actor=actor, round_=round_: actor(round_ + 1)))


def settle(scene: Scene) -> None:
    """After the scenario, in a subprocess: runs passes until nothing changes, then checks everything."""
    scene.undo_swap()
    dog = Watchdog(scene.settings)
    for _ in range(500):
        if not dog.run_pass():
            break
    check_room(scene)
    check_kept(scene)
    with writing(scene.run):
        check_request(scene, dog)


def check_room(scene: Scene) -> None:
    """The disk is full only if nothing more can be deleted."""
    space = measure(scene.disk)
    if not Goal(scene.settings.limits).too_full(space):
        return
    with contextlib.ExitStack() as stack:
        targets = [target for root in scene.settings.roots if (target := open_target(root, stack))]
        left = [str(candidate.path) for candidate in candidates(targets, open_files(), 10_000)]
    if left:
        scene.ledger.note("broken", f"{space}, and yet there are {left[:5]}")
    scene.ledger.note("could not be helped")


def check_kept(scene: Scene) -> None:
    for path, wanted in scene.ledger.of("needed"):
        if not Path(path).is_file() or digest(Path(path)) != wanted:
            scene.ledger.note("broken", f"{path} is gone or changed")
    committed = dict(scene.ledger.of("saved"))
    there = steps(scene.run)
    newest = sorted({*committed, *there})[-KEEP_LAST:]
    verified = scene.run / "verified.json"
    if verified.exists() and verified.stat().st_size:
        newest.append(json.loads(verified.read_text())["step"])
    for step in {*newest, *(step for step in committed if step % KEEP_EVERY == 0)}:
        folder = scene.run / "checkpoints" / f"step_{step:08d}"
        if step not in there or (step in committed and contents(folder) != committed[step]):
            scene.ledger.note("broken", f"{folder.name} is gone or changed; there are {there}")
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(scene.run, os.O_RDONLY)
        if is_leased(descriptor, "writer.lock"):
            scene.ledger.note("broken", "a killed trainer still holds its run")
        os.close(descriptor)


def check_request(scene: Scene, dog: Watchdog) -> None:
    """Trainers are asked to wait exactly when the disk is nearly full."""
    pause.withdraw(scene.run)
    filler = scene.disk / "filler"
    space = measure(scene.disk)
    wanted = int(0.975 * (space.used_bytes + space.free_bytes)) - space.used_bytes
    if wanted > 0:
        filler.write_bytes(b"x" * wanted)
    dog.run_pass()
    full = measure(scene.disk).used_share >= scene.settings.limits.pause
    if full != (pause.asked(scene.run) is not None):
        scene.ledger.note("broken", f"{measure(scene.disk)}, asked: {pause.asked(scene.run)}")
    scene.ledger.note("nearly full" if full else "room in the end")
    filler.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[str]:
    """Mounts a tmpfs of DISK_BYTES or, if that fails, uses a folder in its place; says which."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if shutil.which("mount") and subprocess.run(command, capture_output=True, check=False).returncode == 0:
        try:
            yield "tmpfs"
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
    else:
        pretend(folder)
        yield "faked statvfs"


def pretend(folder: Path) -> None:
    """From here on `folder` measures as a disk of DISK_BYTES, and writing more than that to it fails."""

    def faked(place: object) -> Space:
        used = 0
        for here, _, files in os.walk(folder):
            for name in files:
                with contextlib.suppress(OSError):
                    used += os.stat(f"{here}/{name}", follow_symlinks=False).st_blocks * 512
        return Space(used, max(DISK_BYTES - used, 0), 0, 2**40)

    def write_bytes(path: Path, content: bytes) -> int:
        if faked(path).free_bytes < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        with path.open("wb") as file:
            return file.write(content)

    for module in (pause, watchdog, sys.modules[__name__]):
        module.measure = faked  # type: ignore[attr-defined]
    Path.write_bytes = write_bytes  # type: ignore[assignment, method-assign]


def run_one(disk: Path, work: Path, number: int) -> Ledger:
    for left in disk.iterdir():
        shutil.rmtree(left)
    scene = Scene(disk, work, number)
    scene.build()
    play(scene)
    with forked(scene, lambda: (settle(scene), scene.ledger.note("settled"))) as pid:
        deadline = time.monotonic() + LONGEST_S
        ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while os.waitid(os.P_PID, pid, ended) is None and time.monotonic() < deadline:
            time.sleep(0.003)
    return scene.ledger


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    logging.disable()  # a hundred warnings of a full disk
    began = time.monotonic()
    counts: Counter[str] = Counter()
    broken: list[str] = []
    disk = arguments.work / "disk"
    with small_disk(disk) as kind:
        for number in range(arguments.first, arguments.first + arguments.count):
            ledger = run_one(disk, arguments.work, number)
            broken += [f"scenario {number}: {text}" for text in ledger.of("broken")]
            if not ledger.of("settled"):
                broken.append(f"scenario {number}: did not come to its end")
            counts.update(kind for kind, _ in ledger.lines())
    assert "jax" not in sys.modules
    seconds = round(time.monotonic() - began, 1)
    result = {"disk": kind, "scenarios": arguments.count, "broken": broken, "counts": counts, "seconds": seconds}
    print(json.dumps(result))
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
