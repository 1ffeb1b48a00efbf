"""Seconds from opening the dashboard to its first data, and the server's CPU time for an open page.

    python -m benchmarks.dashboard_page [--steps 100000] [--rounds 5]

A synthetic run with that many steps and a line every 10 is served by `monitor.py` and opened in Chromium (apt-get
install chromium), each time in a fresh context without cache. First data: the loss is drawn and its last value is
shown. All data: the first round of requests is complete. Then the page stays open while the run grows by a line per
second; the server's CPU time meanwhile is the cost of polling. Goals: 1 s, and 1 % of a core.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, sync_playwright

from tests.browser.conftest import Dashboard, launch
from tests.monitor.fake_run import make_run, train_line, write_lines

FIRST = '[data-panel="loss"] .legend b:not(:empty)'
LIVE = '#connection[data-state="live"]'
WATCHED_S = 30


def opened(browser: Browser, url: str) -> tuple[float, float]:
    """Seconds to the first data and to all of it."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    started = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.locator(FIRST).first.wait_for()
    first = time.perf_counter() - started
    page.locator(LIVE).wait_for()
    every = time.perf_counter() - started
    context.close()
    return first, every


def polled(browser: Browser, dashboard: Dashboard, run_dir: Path, steps: int) -> float:
    """The share of a core that the server uses while a page is open on a growing run."""
    page = browser.new_page()
    page.goto(dashboard.url)
    page.locator(LIVE).wait_for()
    rng = np.random.default_rng(0)
    before, started = cpu_s(dashboard), time.perf_counter()
    for second in range(WATCHED_S):
        write_lines(run_dir / "metrics" / "host-0.jsonl", iter([train_line(steps + 10 * second, time.time(), 0, rng)]))
        page.wait_for_timeout(1000)
    share = (cpu_s(dashboard) - before) / (time.perf_counter() - started)
    page.close()
    return share


def cpu_s(dashboard: Dashboard) -> float:
    """CPU seconds of the server so far, in user and system mode (proc(5))."""
    assert dashboard.process
    fields = Path(f"/proc/{dashboard.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        run_dir = make_run(Path(folder) / "run", steps=asked.steps, hosts=1)
        dashboard, browser = Dashboard(("--run_dir", str(run_dir))).start(), launch(playwright)
        try:
            opened(browser, dashboard.url)  # not measured: includes the browser's start
            seconds = sorted(opened(browser, dashboard.url) for _ in range(asked.rounds))
            share = polled(browser, dashboard, run_dir, asked.steps)
        finally:
            browser.close()
            dashboard.stop()
    first, every = (sorted(column)[len(seconds) // 2] for column in zip(*seconds, strict=True))
    print(
        json.dumps({"first_data_s": round(first, 2), "all_data_s": round(every, 2), "polling_share": round(share, 4)})
    )


if __name__ == "__main__":
    main()
