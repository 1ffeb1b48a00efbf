"""The page while things change: a run grows, a trainer dies, a server goes away, a tab is hidden, a stranger comes."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.browser.conftest import Dashboard, Faults, Open, Writer

pytestmark = pytest.mark.browser
expect.set_options(timeout=15_000)

STALE_S = 3


def test_a_live_run_is_updated_and_an_alert_appears_when_its_writer_stops(
    writer: Writer, dashboards: Callable[..., Dashboard], open_page: Open
) -> None:
    writer.start()
    page = open_page(dashboards("--run_dir", str(writer.run_dir), "--stale_s", str(STALE_S)).url)
    steps, loss = page.locator("#run-steps"), page.locator('[data-panel="loss"] .legend b')
    place = page.locator('[data-panel="loss"] .chart-place')
    before = steps.inner_text(), loss.inner_text(), place.inner_text()
    expect(steps).not_to_have_text(before[0])
    expect(loss).not_to_have_text(before[1])
    expect(place).not_to_have_text(before[2])
    expect(page.locator("#run-status")).to_have_text("Running")
    expect(page.locator("#alerts")).to_be_hidden()
    writer.stop()
    expect(page.locator("#alerts")).to_be_visible()
    expect(page.locator("#alerts")).to_contain_text("Silent")
    expect(page.locator("#alerts .alert-host")).to_have_text("on host-0")
    expect(page.locator("#run-status")).to_have_text("Stale")
    expect(page).to_have_title(re.compile(r"^1 alert · 0\.\d{3} · live · echotts monitor$"))
    expect(steps).to_contain_text(f"step {writer.step:,}")


def test_new_points_are_requested_by_cursor_and_appended_to_the_curve(
    writer: Writer, dashboards: Callable[..., Dashboard], open_page: Open
) -> None:
    writer.start()
    page = open_page(dashboards("--run_dir", str(writer.run_dir)).url + "#smooth=0")
    loss = page.locator('[data-panel="loss"] .legend b')
    before = loss.inner_text()
    with page.expect_response(lambda answer: "since=" in answer.url and "loss%2Ftrain" in answer.url) as answered:
        pass
    found = answered.value.json()["series"]["loss/train"]
    assert not answered.value.json()["reset"]
    assert 0 < len(found["x"]) < 40
    expect(loss).not_to_have_text(before)


def test_what_did_not_change_is_not_sent_again(still: Dashboard, open_page: Open) -> None:
    page = open_page(still.url)
    for what in ("/series?", "/events?", "/hosts"):
        with page.expect_response(lambda answer, what=what: what in answer.url and answer.status == 304):
            pass


def test_the_page_does_not_poll_while_hidden(still: Dashboard, open_page: Open) -> None:
    page = open_page(still.url)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    hide = """hidden => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(hide, True)
    expect(page.locator("#connection")).to_have_text("Paused while hidden")
    asked.clear()
    page.wait_for_timeout(3000)  # longer than the pause between two rounds
    assert asked == []
    with page.expect_request("**/api/runs"):
        page.evaluate(hide, False)
    expect(page.locator("#connection")).to_have_text("Live")


def test_an_unreachable_server_is_shown_and_reconnected(runs_root: Path, open_page: Open, faults: Faults) -> None:
    faults.expected = ("net::ERR_",)
    dashboard = Dashboard(("--run_dir", str(runs_root / "finished"))).start()
    try:
        page = open_page(dashboard.url)
        port = dashboard.port
        dashboard.stop()
        expect(page.locator("#trouble-text")).to_contain_text("the server does not respond")
        expect(page.locator("#connection")).to_have_text("Server unreachable")
        expect(page.locator('[data-panel="loss"] .uplot')).to_be_visible()
        dashboard.start(port)
        expect(page.locator("#connection")).to_have_text("Live")
        expect(page.locator("#trouble")).to_be_hidden()
    finally:
        dashboard.stop()


def test_the_token_opens_the_page_and_nothing_else_does(
    runs_root: Path, tmp_path: Path, dashboards: Callable[..., Dashboard], open_page: Open, faults: Faults
) -> None:
    faults.expected = ("401 (Unauthorized)",)
    token_file = tmp_path / "token"
    dashboard = dashboards("--run_dir", str(runs_root / "finished"), "--token_file", str(token_file))
    address = dashboard.url.partition("?")[0]
    page = open_page(address, ready=False)
    expect(page.get_by_role("heading")).to_have_text("This dashboard requires a token")
    refused = {page.request.get(f"{address}{path}").status for path in ("api/runs", "api/alerts", "static/page.js")}
    assert refused == {401}
    assert not Axe().run(page).response["violations"]
    page.get_by_label("Token").fill("not the token at all")
    page.get_by_role("button").click()
    expect(page.locator("body")).to_contain_text("That token is wrong.")
    page.get_by_label("Token").fill(token_file.read_text().strip())
    page.get_by_role("button").click()
    expect(page.locator("#run-name")).to_have_text("finished")
    assert page.url.partition("#")[0] == address  # the token is no longer in the address
    [cookie] = page.context.cookies()
    assert cookie["httpOnly"] and cookie["sameSite"] in ("Lax", "Strict")
    page.context.clear_cookies()
    expect(page.locator("#trouble-text")).to_contain_text("no longer signed in")


def test_texts_of_a_run_are_shown_as_text(
    hostile_run: Path, dashboards: Callable[..., Dashboard], open_page: Open
) -> None:
    page = open_page(dashboards("--run_dir", str(hostile_run)).url)
    script = "<img src=x onerror=window.broken=1>"
    for place in ("#event-list", "#metric-table", "#config-table", "#sample-list"):
        expect(page.locator(place)).to_contain_text(script)
    expect(page.locator("#run-name")).to_have_text("<b>hostile")
    expect(page.locator("#host-table")).to_contain_text("onerror")
    page.locator("#metric-table tr").filter(has_text="onerror").get_by_role("checkbox").check()
    expect(page.locator('[data-section="more"] h3')).to_contain_text(script)
    assert page.locator("img[src='x'], main script").count() == 0
    assert page.evaluate("window.broken") is None


def test_no_script_or_style_of_the_page_is_inline(still: Dashboard, open_page: Open, faults: Faults) -> None:
    faults.expected = ("Content Security Policy",)
    page = open_page(still.url)
    assert page.locator("script:not([src]), style, [onclick], [onload]").count() == 0
    refused = page.evaluate("""() => new Promise((resolve) => {
        addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
        const script = document.createElement("script");
        script.textContent = "window.broken = 1";
        document.body.append(script);
    })""")
    assert refused == "script-src-elem"
