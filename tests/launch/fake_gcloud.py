"""A replacement of gcloud: plays the states of a queued resource from a file, and runs commands on fake workers.

FAKE_GCLOUD names a folder: `world.json` has the current state, `calls.jsonl` the arguments of every call, `w0`, `w1`
... are the home folders of the workers, in which `ssh` runs its command and to which `scp` copies.
Flags and errors are spelled as in gcloud 528. The parser is strict: an unknown flag is an error.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

HOME = Path(os.environ["FAKE_GCLOUD"])
WORLD = HOME / "world.json"
USABLE = "ACTIVE"


def main() -> int:
    with (HOME / "calls.jsonl").open("a") as file:
        file.write(json.dumps(sys.argv[1:]) + "\n")
    group, kind, verb, *rest = sys.argv[2:]
    assert (sys.argv[1], group) == ("compute", "tpus")
    arguments = parser(kind, verb).parse_args(rest)
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        world = json.loads(WORLD.read_text())
        said = world.get("broken")
        if said:
            print(said, file=sys.stderr)
            return 1
        if kind == "queued-resources":
            code = {"create": create, "describe": describe_queued, "delete": delete}[verb](world, arguments)
        elif verb == "describe":
            code = describe_node(world, arguments)
        else:
            code = None
        WORLD.write_text(json.dumps(world))
    return code if code is not None else {"ssh": ssh, "scp": scp}[verb](world, arguments)


def parser(kind: str, verb: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=f"gcloud {kind} {verb}", allow_abbrev=False)
    made.add_argument("names", nargs="+")
    for flag in ("--project", "--zone"):
        made.add_argument(flag)
    if verb == "create":
        for flag in ("--node-id", "--accelerator-type", "--runtime-version"):
            made.add_argument(flag, required=True)
        made.add_argument("--spot", action="store_true")
        made.add_argument("--service-account")
    if verb == "delete":
        made.add_argument("--force", action="store_true")
        made.add_argument("--quiet", action="store_true")
    if verb == "describe":
        made.add_argument("--format")
    if verb in ("ssh", "scp"):
        made.add_argument("--worker", default="0")
        made.add_argument("--internal-ip", action="store_true")
    if verb == "ssh":
        made.add_argument("--command", required=True)
    return made


def create(world: dict, arguments: argparse.Namespace) -> int:
    if world["states"]:
        return error("queued-resources.create", f"ALREADY_EXISTS: Resource '{arguments.names[0]}' already exists")
    if world.get("refusals"):
        world["refusals"] -= 1
        return error("queued-resources.create", "RESOURCE_EXHAUSTED: Quota exceeded")
    world["states"] = world["creations"].pop(0) if world["creations"] else [USABLE]
    for worker in range(world["workers"]):
        make_worker(worker, world)
    return 0


def describe_queued(world: dict, arguments: argparse.Namespace) -> int:
    if not world["states"]:
        return error("queued-resources.describe", "NOT_FOUND: Resource was not found.")
    state = world["states"].pop(0) if len(world["states"]) > 1 else world["states"][0]
    if state in ("SUSPENDED", "FAILED"):
        take_away()
    world["now"] = state
    why = {"failedData": {"error": {"code": 8, "message": "Quota limit 'TPUV4' has been exceeded."}}}
    print(json.dumps({"name": arguments.names[0], "state": {"state": state, **(why if state == "FAILED" else {})}}))
    return 0


def delete(world: dict, arguments: argparse.Namespace) -> int:
    if not (arguments.force and arguments.quiet):
        return error("queued-resources.delete", "asks on the terminal without --quiet")
    if not world["states"]:
        return error("queued-resources.delete", "NOT_FOUND: Resource was not found.")
    world["states"] = []
    take_away()
    return 0


def describe_node(world: dict, arguments: argparse.Namespace) -> int:
    if not world["states"] or world["states"][0] != USABLE:
        return error("tpu-vm.describe", "NOT_FOUND: Resource was not found.")
    if world.get("unlisted"):  # granted, and not listed yet
        world["unlisted"] -= 1
        return error("tpu-vm.describe", "NOT_FOUND: Resource was not found.")
    ends = [{"ipAddress": f"10.0.0.{worker}"} for worker in range(world["workers"])]
    print(json.dumps({"state": world.get("node", "READY"), "health": "HEALTHY", "networkEndpoints": ends}))
    return 0


def ssh(world: dict, arguments: argparse.Namespace) -> int:
    workers = chosen(world, arguments)
    print(f"Using ssh batch size of 1. Attempting to SSH into 1 nodes with a total of {len(workers)} workers.")
    # as gcloud and ssh do: split at spaces, joined by spaces, read by the login shell of the worker
    command = " ".join(arguments.command.split(" "))
    sys.stdout.flush()  # the workers write to it themselves
    shells = [start_on(worker, command) for worker in workers]
    codes = [255 if shell is None else end_of(shell) for shell in shells]
    for worker, code in zip(workers, codes, strict=True):
        if code and len(workers) > 1:
            print(f"##### Command execution on worker {worker} failed with exit status {code}. Continuing.")
    return next((code for code in codes if code), 0)


def start_on(worker: int, command: str) -> subprocess.Popen | None:
    """The shell of a worker; None if it is unreachable."""
    home = HOME / f"w{worker}"
    if not home.exists() or (home / "unreachable").exists():
        print("ssh: connect to host port 22: Connection timed out", file=sys.stderr)
        return None
    if (home / "hangs").exists():
        command = "sleep 10"
    environment = {
        "HOME": str(home),
        "PATH": f"{home}/bin:{HOME}/bin:/usr/bin:/bin",
        "ECHOTTS_DEVICES": str(home / "dev"),
        "ECHOTTS_NETWORK": str(home / "net"),
        "ECHOTTS_TPU_LOCK": str(home / "libtpu_lockfile"),
    }
    # a process group of its own, ended when the connection ends: only what is detached stays
    return subprocess.Popen(["bash", "-c", command], cwd=home, env=environment, start_new_session=True)


def end_of(shell: subprocess.Popen) -> int:
    code = shell.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(shell.pid, signal.SIGHUP)
    return code


def scp(world: dict, arguments: argparse.Namespace) -> int:
    source, target = arguments.names
    _, _, path = target.partition(":")
    for worker in chosen(world, arguments):
        into = HOME / f"w{worker}" / path
        if not into.parent.is_dir():
            return error("tpu-vm.scp", f"scp: {path}: No such file or directory")
        shutil.copy(source, into)
        if (HOME / f"w{worker}" / "noise").exists() and into.name.endswith(".tar.gz"):
            into.write_bytes(into.read_bytes()[:-7] + b"garbled")
    return 0


def chosen(world: dict, arguments: argparse.Namespace) -> list[int]:
    if not world["states"] or world["states"][0] != USABLE:
        error("tpu-vm", "NOT_FOUND: Resource was not found.")
        sys.exit(1)
    if arguments.worker == "all":
        return list(range(world["workers"]))
    return [int(worker) for worker in arguments.worker.split(",")]


def make_worker(worker: int, world: dict) -> None:
    home = HOME / f"w{worker}"
    for folder in ("bin", "dev", "net"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    for chip in range(world["chips"]):
        (home / "dev" / f"accel{chip}").touch()
    for table in ("tcp", "tcp6"):
        (home / "net" / table).touch()
    hostname = home / "bin" / "hostname"
    hostname.write_text(f"#!/bin/sh\necho t1v-n-fake-w-{worker}\n")
    hostname.chmod(0o755)


def take_away() -> None:
    """Preempts the machines: kills all processes and deletes all files."""
    for home in HOME.glob("w[0-9]*"):
        for pidfile in home.glob("**/job/*pid"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(pidfile.read_text().split()[0]), signal.SIGKILL)
        shutil.rmtree(home)


def error(command: str, text: str) -> int:
    print(f"ERROR: (gcloud.compute.tpus.{command}) {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
