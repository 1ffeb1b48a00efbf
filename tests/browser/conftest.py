"""A dashboard that really runs, runs for it to show, and a browser that fails the test on any console error."""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Playwright, sync_playwright

from tests.conftest import CHROMIUM
from tests.monitor.fake_run import event_line, make_run, make_samples, train_line, write_lines

ROOT = Path(__file__).parent.parent.parent
STARTED_S = 20.0
PATIENCE_MS = 15_000  # two slow cores, shared
DESK, PHONE = (1280, 900), (375, 812)


@dataclass
class Dashboard:
    """`monitor.py` in a subprocess."""

    arguments: tuple[str, ...]
    url: str = ""
    process: subprocess.Popen[str] | None = None

    def start(self, port: int = 0) -> "Dashboard":
        command = [sys.executable, "monitor.py", "--port", str(port), *self.arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout
        said = self.process.stdout.readline()
        found = re.search(r"http://\S+", said)
        assert found, f"monitor.py said {said!r} {self.process.stdout.read() if self.process.poll() else ''}"
        self.url = found[0]
        return self

    @property
    def port(self) -> int:
        return int(re.findall(r":(\d+)/", self.url)[0])

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(STARTED_S)
            self.process = None


@pytest.fixture(scope="session")
def dashboards() -> Iterator[Callable[..., Dashboard]]:
    """Starts dashboards; all end with the session."""
    started: list[Dashboard] = []

    def start(*arguments: str) -> Dashboard:
        started.append(Dashboard(arguments).start())
        return started[-1]

    yield start
    for dashboard in started:
        dashboard.stop()


@pytest.fixture(scope="session")
def runs_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Static runs: one running, one finished, one failed, one empty."""
    root = tmp_path_factory.mktemp("runs")
    make_run(root / "going", steps=2000)
    make_run(root / "finished", steps=1000, end=time.time() - 7200, ending="finished", learning_rate=3e-4, seed=5)
    make_run(root / "failed", steps=600, hosts=1, end=time.time() - 90_000, ending="failed", seed=9)
    (root / "nothing" / "metrics").mkdir(parents=True)
    return root


@pytest.fixture(scope="session")
def still(dashboards: Callable[..., Dashboard], runs_root: Path) -> Dashboard:
    """The dashboard of those runs, which takes the one without an ending for a running one."""
    return dashboards("--runs_root", str(runs_root), "--stale_s", "3600")


@dataclass
class Writer:
    """A trainer that writes a line now and then, until it is stopped."""

    run_dir: Path
    step: int = 500
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self, every_s: float = 0.25) -> "Writer":
        make_run(self.run_dir, steps=self.step, hosts=1)
        self._thread = threading.Thread(target=self._write, args=(every_s,))
        self._thread.start()
        return self

    def _write(self, every_s: float) -> None:
        rng = np.random.default_rng(3)
        while not self._stop.wait(every_s):
            self.step += 10
            line = train_line(self.step, time.time(), 0, rng)
            write_lines(self.run_dir / "metrics" / "host-0.jsonl", iter([line]))

    def stop(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    """Writes into a new run directory once it is started."""
    writer = Writer(tmp_path / "live")
    yield writer
    writer.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


def launch(playwright: Playwright) -> Browser:
    """The system's Chromium, without its sandbox, which root cannot have."""
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    assert path, "Chromium is missing: apt-get install chromium"
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


@dataclass
class Faults:
    """Console messages of the browser. `expected` are parts of messages that a test provokes."""

    said: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()

    def console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.said.append(f"{message.type}: {message.text} ({message.location.get('url')})")

    @property
    def unexpected(self) -> list[str]:
        return [said for said in self.said if not any(part in said for part in self.expected)]


@pytest.fixture
def faults() -> Faults:
    return Faults()


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, faults: Faults) -> Iterator[Open]:
    """Opens a page in a separate context; unexpected console messages fail the test at its end."""
    contexts: list[BrowserContext] = []

    def open_one(url: str, *, size: tuple[int, int] = DESK, scheme: str = "light", ready: bool = True) -> Page:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if scheme == "dark" else "light",
            reduced_motion="reduce",
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", faults.console)
        page.on("pageerror", lambda error: faults.said.append(f"exception: {error}"))
        page.goto(url)
        if ready:
            page.locator('#connection[data-state="live"]').wait_for()  # the first round is over, and all is drawn
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not faults.unexpected


@pytest.fixture
def hostile_run(tmp_path: Path) -> Path:
    """A run whose every text is an attempt to run a script in the page."""
    script = "\"'><img src=x onerror=window.broken=1><script>window.broken=1</script>"
    run_dir = make_run(tmp_path / "<b>hostile", steps=200, hosts=1)
    line = train_line(210, time.time()) | {f"loss/{script}": 1.0}
    event = event_line(210, time.time(), "retry", script)
    write_lines(run_dir / "metrics" / f"host{script.replace('/', '')}.jsonl", iter([line, event]))
    (run_dir / "config.json").write_text(json.dumps({f"a{script}": script, "run": {"sentences": [script]}}))
    folder = make_samples(run_dir, 500)
    (folder / "sentences.json").write_text(json.dumps({next(folder.glob("0*.wav")).name: script}))
    return run_dir
