"""Two hosts, as far as one machine can: network namespaces with their own host names and folders, and a switch between.

The run directory is the one folder that both see. Needs root and iproute2.
"""

import contextlib
import heapq
import itertools
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.multihost.group import MACHINE, ROOT, saved_steps
from tests.multihost.test_processes import run_flags

HEARTBEAT_S = 20
NAMES = ("alder", "birch")
OFFLOAD_OFF = """
import array, fcntl, socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    for setting in (0x1F, 0x24, 0x17, 0x19):  # ETHTOOL_STSO, SGSO, STXCSUM, SSG
        value = array.array("B", struct.pack("II", setting, 0))
        fcntl.ioctl(any_socket, 0x8946, struct.pack("16sP16x", b"eth0", value.buffer_info()[0]))  # SIOCETHTOOL
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.multiprocess,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"),
]


def do(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"


class Network:
    """A switch, and of each host a namespace that is plugged into it."""

    def __init__(self, mark: str):
        self.switch = f"sw{mark}"
        self.hosts = [f"{name}{mark}" for name in NAMES]
        self.addresses = [f"10.213.77.{number}" for number in (1, 2)]

    def make(self) -> None:
        do("ip", "link", "add", self.switch, "type", "bridge")
        do("ip", "link", "set", self.switch, "up")
        known = "127.0.0.1 localhost\n" + "".join(f"{a} {h}\n" for a, h in zip(self.addresses, self.hosts, strict=True))
        for host, address in zip(self.hosts, self.addresses, strict=True):
            do("ip", "netns", "add", host)
            folder = Path("/etc/netns") / host  # which `ip netns exec` lays over /etc
            folder.mkdir(parents=True)
            (folder / "hosts").write_text(known)
            do("ip", "link", "add", f"p{host}", "type", "veth", "peer", "name", "eth0", "netns", host)
            do("ip", "link", "set", f"p{host}", "up")
            self.plug(host)
            for words in (["addr", "add", f"{address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
                do("ip", "-n", host, *words)
            do("ip", "-n", host, "link", "set", "lo", "up")

    def plug(self, host: str) -> None:
        do("ip", "link", "set", f"p{host}", "master", self.switch)

    def unplug(self, host: str) -> None:
        """From now on the host's packets are dropped silently in both directions."""
        do("ip", "link", "set", f"p{host}", "nomaster")

    def remove(self) -> None:
        for host in self.hosts:
            subprocess.run(["ip", "netns", "del", host], capture_output=True)
            subprocess.run(["ip", "link", "del", f"p{host}"], capture_output=True)
            shutil.rmtree(Path("/etc/netns") / host, ignore_errors=True)
        subprocess.run(["ip", "link", "del", self.switch], capture_output=True)


class BadLine:
    """A line between two hosts instead of the switch, which delays and loses frames, within `with`.

    It does what netem does, which not every kernel has.
    """

    ALL_PROTOCOLS, OUTGOING = 0x0003, 4

    def __init__(self, network: Network, delay_s: float, jitter_s: float, loss: float):
        self.network, self.delay_s, self.jitter_s, self.loss = network, delay_s, jitter_s, loss
        self.passed = self.lost = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "BadLine":
        self._ends = []
        for host in self.network.hosts:
            self.network.unplug(host)
            # the sender's kernel leaves segments and checksums to the card: frames must be whole before they get here
            do("ip", "netns", "exec", host, sys.executable, "-c", OFFLOAD_OFF)
            end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(self.ALL_PROTOCOLS))
            end.bind((f"p{host}", 0))
            self._ends.append(end)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        for end, host in zip(self._ends, self.network.hosts, strict=True):
            end.close()
            self.network.plug(host)

    def _run(self) -> None:
        chance, numbers = random.Random(1), itertools.count()
        waiting: list[tuple[float, int, socket.socket, bytes]] = []
        while not self._stopping.is_set():
            wait_s = max(waiting[0][0] - time.monotonic(), 0) if waiting else 0.1
            for end in select.select(self._ends, [], [], min(wait_s, 0.1))[0]:
                frame, address = end.recvfrom(1 << 16)
                if address[2] == self.OUTGOING:
                    continue
                if chance.random() < self.loss:
                    self.lost += 1
                    continue
                other = self._ends[1 - self._ends.index(end)]
                late_s = self.delay_s + chance.uniform(-self.jitter_s, self.jitter_s)
                heapq.heappush(waiting, (time.monotonic() + late_s, next(numbers), other, frame))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, other, frame = heapq.heappop(waiting)
                other.send(frame)
                self.passed += 1


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network(f"{os.getpid() % 100000}")
    try:
        made.make()
        yield made
    finally:
        made.remove()


@pytest.fixture
def flags(shards, compile_once, monkeypatch):
    often = ["--run.save_every_steps=5", f"--run.heartbeat_s={HEARTBEAT_S}", "--run.join_timeout_s=300"]
    return run_flags(compile_once, monkeypatch, f"--data={shards}", *often)


class Run:
    """One process on each host; none outlives the `with`."""

    def __init__(self, folder: Path, network: Network, flags: list[str]):
        folder.mkdir()
        self.logs = [folder / host for host in network.hosts]
        with socket.socket() as free:
            free.bind(("", 0))
            coordinator = f"{network.addresses[0]}:{free.getsockname()[1]}"
        self.processes = []
        for index, (host, log) in enumerate(zip(network.hosts, self.logs, strict=True)):
            joined = [f"--run.coordinator={coordinator}", "--run.processes=2", f"--run.process_index={index}"]
            command = [sys.executable, "train_pretrain.py", *flags, *joined]
            inside = ["ip", "netns", "exec", host, "unshare", "--uts"]
            named = ["sh", "-c", 'hostname "$0" && exec "$@"', host, *command]
            home = folder / f"home of {host}"
            home.mkdir()
            environment = os.environ | {"HOME": str(home), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen([*inside, *named], cwd=ROOT, env=environment, stdout=file, stderr=file)
                )

    def said(self) -> str:
        return "\n".join(log.read_text() for log in self.logs)

    def codes(self, timeout_s: float) -> list[int]:
        end = time.monotonic() + timeout_s
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(end - time.monotonic(), 0))
            assert process.returncode is not None, f"still running after {timeout_s} s\n{self.said()}"
        return [process.returncode for process in self.processes]

    def until_step(self, run_dir: Path, step: int) -> None:
        end = time.monotonic() + 600
        while min(last_steps(run_dir)) < step:
            assert time.monotonic() < end, self.said()
            assert all(process.poll() is None for process in self.processes), self.said()
            time.sleep(0.1)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def last_steps(run_dir: Path) -> list[int]:
    """The last step that each host wrote a line of."""
    found = []
    for name in NAMES:
        texts = [path.read_text() for path in (run_dir / "metrics").glob(f"{name}*.jsonl")]
        lines = [json.loads(line) for text in texts for line in text.splitlines() if line.endswith("}")]
        found.append(max((line["step"] for line in lines if "loss/train" in line), default=0))
    return found


def finish(folder: Path, network: Network, flags, run_dir: Path) -> None:
    """Resumes after the newest checkpoint, runs a few steps, and is stopped."""
    whole = saved_steps(run_dir)[-1]
    with Run(folder, network, flags(run_dir)) as run:
        run.until_step(run_dir, max(whole, *last_steps(run_dir)) + 3)
        run.processes[1].send_signal(signal.SIGTERM)
        assert run.codes(60 * MACHINE) == [75, 75], run.said()
    assert run.said().count(f"resuming after step {whole}, ") == 2


def test_a_silence_is_survived_and_a_host_that_vanishes_ends_the_other_in_time(
    tmp_path, network, flags, capsys
) -> None:
    run_dir = tmp_path / "run"
    with Run(tmp_path / "first", network, flags(run_dir)) as run:
        run.until_step(run_dir, 8)
        network.unplug(network.hosts[1])
        time.sleep(5)
        still = last_steps(run_dir)
        network.plug(network.hosts[1])
        run.until_step(run_dir, max(still) + 10)
        network.unplug(network.hosts[1])
        began = time.monotonic()
        assert 0 not in run.codes((HEARTBEAT_S + 10) * MACHINE), run.said()
        took_s = time.monotonic() - began
    with capsys.disabled():
        print(f"\nboth ended {took_s:.1f} s after one vanished (heartbeat {HEARTBEAT_S} s)")
    assert all(len(list((run_dir / "metrics").glob(f"{host}.jsonl"))) == 1 for host in network.hosts)
    network.plug(network.hosts[1])
    finish(tmp_path / "second", network, flags, run_dir)


def test_delays_and_lost_packets_slow_a_run_down_and_do_not_end_it(tmp_path, network, flags, capsys) -> None:
    run_dir = tmp_path / "run"
    bad = BadLine(network, delay_s=0.005, jitter_s=0.003, loss=0.01)  # a step sends about a hundred messages
    with bad, Run(tmp_path / "first", network, flags(run_dir)) as run:
        run.until_step(run_dir, 4)
        run.processes[0].send_signal(signal.SIGTERM)
        assert run.codes(120 * MACHINE) == [75, 75], run.said()
    with capsys.disabled():
        print(f"\n{bad.passed} frames came late, {bad.lost} not at all")
    assert bad.lost > 0
    finish(tmp_path / "second", network, flags, run_dir)
