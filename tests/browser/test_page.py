"""The page in a real browser: contents, interaction, and messages about missing data."""

import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.conftest import DESK, PHONE, Dashboard, Open
from tests.monitor.fake_run import event_line, train_line, write_lines

pytestmark = pytest.mark.browser
expect.set_options(timeout=15_000)

SHOWN_CHARTS = {
    "loss",
    "heldout",
    "buckets",
    "norm",
    "clip",
    "rate",
    "throughput",
    "step",
    "mfu",
    "useful",
    "wait",
    "memory",
}


def picture(page: Page, panel: str) -> str:
    """The pixels of a chart's canvas."""
    return page.locator(f'[data-panel="{panel}"] canvas').evaluate("canvas => canvas.toDataURL()")


def reading(page: Page, panel: str) -> str:
    """The values in a chart's legend."""
    return page.locator(f'[data-panel="{panel}"] .chart-place').inner_text()


def test_a_run_has_a_summary(still: Dashboard, open_page: Open) -> None:
    page = open_page(still.url)
    expect(page.locator("#run-name")).to_have_text("going")
    expect(page.locator("#run-status")).to_have_text("Running")
    expect(page.locator("#run-steps")).to_have_text("step 2,000 of 5,000 · 40.0 %")
    expect(page.locator("#run-left")).to_contain_text("25 min left")
    expect(page.locator("#tiles")).to_contain_text("p95 0.600 s")
    expect(page.locator("#connection")).to_have_text("Live")
    drawn = page.locator("figure:has(.uplot)").evaluate_all("all => all.map(one => one.dataset.panel)")
    assert set(drawn) == SHOWN_CHARTS
    expect(page.locator("#host-table tbody tr")).to_have_count(2)
    expect(page.locator("#host-table tbody tr").first).to_contain_text("empty text 2, non finite 1")
    expect(page.locator("#checkpoint-table tbody tr").first).to_contain_text("not complete")
    expect(page.locator("#event-list")).to_contain_text("after step 1000, 32000 samples")
    expect(page.locator("#config-table")).to_contain_text("optim.learning_rate")


def test_failed_and_empty_runs_say_what_happened_and_what_is_missing(still: Dashboard, open_page: Open) -> None:
    page = open_page(still.url)
    page.get_by_role("button", name="failed").click()
    expect(page.locator("#run-status")).to_have_text("Failed")
    expect(page.locator("#run-why")).to_have_text("OSError: disk quota exceeded")
    page.get_by_role("button", name="nothing").click()
    expect(page.locator("#run-status")).to_have_text("Empty")
    expect(page.locator('[data-panel="heldout"] .blank')).to_contain_text("run.eval_every")
    expect(page.locator("#notes-list")).to_contain_text("no config.json")
    expect(page.locator("#sample-list")).to_contain_text("run.sample_every")
    expect(page.locator(".uplot")).to_have_count(0)
    expect(page.locator("table:not(#run-table *)")).to_have_count(0)


def test_the_front_page_is_a_live_run_with_its_last_loss_and_no_empty_cards_and_runs_are_sorted(
    dashboards: Callable[..., Dashboard], open_page: Open, tmp_path: Path
) -> None:
    now, missing_on_cpu = time.time(), ("throughput/mfu_share", "device/memory_bytes")
    lines = [train_line(step, now - 50 + step) for step in range(1, 41)]
    live = [{name: value for name, value in line.items() if name not in missing_on_cpu} for line in lines]
    write_lines(tmp_path / "live" / "metrics" / "host-0.jsonl", iter(live))
    failed = event_line(0, now, "failed", "ValueError: no data")
    write_lines(tmp_path / "broken" / "metrics" / "host-0.jsonl", iter([failed]))
    page = open_page(dashboards("--runs_root", str(tmp_path)).url)
    expect(page.locator("#run-name")).to_have_text("live")
    expect(page.locator("#tiles")).to_contain_text(f"{live[-1]['loss/train']:.3f}"[:4])
    for panel in ("mfu", "memory"):
        expect(page.locator(f'[data-panel="{panel}"]')).to_be_hidden()
    page.locator("#all-runs summary").click()
    names = page.locator("#run-table tbody th")
    for first in ("live", "broken"):  # a second press reverses the order
        page.locator('#run-table thead button[data-key="step"]').click()
        expect(names.first).to_have_text(first)


def test_the_log_scale_redraws_the_loss_and_leaves_the_speed_alone(still: Dashboard, open_page: Open) -> None:
    page = open_page(still.url)
    loss, speed = picture(page, "loss"), picture(page, "throughput")
    assert picture(page, "loss") == loss
    page.get_by_role("radio", name="Log").check()
    page.wait_for_timeout(300)
    assert picture(page, "loss") != loss
    assert picture(page, "throughput") == speed
    assert "scale=log" in page.url


def test_on_the_log_scale_equal_factors_have_equal_distances(still: Dashboard, open_page: Open) -> None:
    page = open_page(still.url)
    page.get_by_role("radio", name="Log").check()
    page.locator('[data-panel="loss"]').scroll_into_view_if_needed()
    box = page.locator('[data-panel="loss"] .u-over').bounding_box()
    assert box

    def point(share: float) -> tuple[float, float]:
        """The value that the loss chart reads so far to the right, and how far down its curve is there."""
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 50)
        dot = page.locator('[data-panel="loss"] .u-cursor-pt').last.bounding_box()
        assert dot
        return float(page.locator('[data-panel="loss"] .legend b').inner_text()), dot["y"] + dot["height"] / 2

    (high, top), (middle, between), (low, bottom) = (point(share) for share in (0.02, 0.4, 0.98))
    assert high > 1.5 * low
    assert (between - top) / (bottom - top) == pytest.approx(math.log(high / middle) / math.log(high / low), abs=0.02)


def test_the_x_axis_can_be_samples_hours_of_audio_or_time(still: Dashboard, open_page: Open) -> None:
    page = open_page(still.url)
    place = page.locator('[data-panel="loss"] .chart-place')
    for axis, said in (("Samples", "64k samples"), ("Hours of audio", "28.44 h of audio")):
        page.get_by_role("radio", name=axis).check()
        expect(place).to_have_text(f"last: {said}")
    page.get_by_role("radio", name="Time").check()
    expect(place).to_have_text(re.compile(r"^last: (\d+ \w+, )?\d\d:\d\d:\d\d$"))


def test_smoothing_changes_the_curve_and_can_be_off(still: Dashboard, open_page: Open) -> None:
    page = open_page(still.url)
    smoothed = page.locator('[data-panel="loss"] .legend b').inner_text()
    page.locator("#smooth").press("Home")
    expect(page.locator("#smooth-value")).to_have_text("off")
    expect(page.locator('[data-panel="loss"] .legend b')).not_to_have_text(smoothed)


def test_a_second_run_is_drawn_over_the_first_and_compared(still: Dashboard, open_page: Open) -> None:
    page = open_page(still.url)
    page.get_by_label("Draw finished over the open run").check()
    entries = page.locator('[data-panel="loss"] .legend li')
    expect(entries).to_have_count(2)
    expect(entries.nth(1)).to_contain_text("finished")
    expect(page.locator("#config-table thead").first).to_contain_text("finished")
    expect(page.locator("#config-table tbody").first).to_contain_text("0.0003")
    page.reload()  # the choice is in the address
    expect(entries).to_have_count(2)
    page.get_by_label("Draw finished over the open run").uncheck()
    expect(entries).to_have_count(1)
    page.get_by_label("Draw finished over the open run").check()
    expect(entries).to_have_count(2)
    for name in ("finished", "going"):  # once opened, it is no longer drawn over others
        page.get_by_role("button", name=name).click()
        expect(page.locator("#run-name")).to_have_text(name)
    expect(page.get_by_label("Draw finished over the open run")).not_to_be_checked()
    expect(entries).to_have_count(1)


def test_a_sample_plays_and_two_steps_stand_side_by_side(still: Dashboard, open_page: Open) -> None:
    page = open_page(still.url)
    sentence = page.locator(".sentence").first
    expect(sentence.locator("h3")).to_have_text("seven three one nine")
    titles = sentence.locator(".voice-title")
    assert titles.all_inner_texts() == ["Reference", "A · step 2,000", "B · step 1,500"]
    page.get_by_label("B: step").select_option("500")
    expect(titles.nth(2)).to_have_text("B · step 500")
    sentence.scroll_into_view_if_needed()
    images = sentence.locator("img")
    expect(images).to_have_count(3)
    for place in range(3):
        expect(images.nth(place)).to_have_js_property("naturalWidth", 512)
    clip = sentence.locator(".clip").nth(1)
    with page.expect_response(lambda answer: "/audio/" in answer.url) as answered:
        clip.get_by_role("button").click()
    assert answered.value.status in (200, 206)
    expect(clip.get_by_role("button")).to_have_attribute("aria-label", "Stop “seven three one nine” at step 2,000")
    moved = "head => parseFloat(head.style.getPropertyValue('--at')) > 0"
    page.wait_for_timeout(400)
    assert clip.locator(".playhead").evaluate(moved)
    expect(clip.get_by_role("button")).to_have_attribute("aria-pressed", "false")  # it is a second long


def test_charts_are_read_and_zoomed_with_the_keyboard(still: Dashboard, open_page: Open) -> None:
    page = open_page(still.url)
    page.locator('[data-panel="loss"] .plot').focus()
    for _ in range(3):
        page.keyboard.press("Shift+ArrowLeft")
    here = page.locator('[data-panel="loss"] .chart-place')
    expect(here).to_have_text("step 1,700")
    assert reading(page, "norm") == "step 1,700"  # all charts show the values of the same place
    page.keyboard.press("+")
    expect(page.locator("#zoom-reset")).to_be_enabled()
    page.keyboard.press("Escape")
    expect(page.locator("#zoom-reset")).to_be_disabled()
    expect(here).to_have_text("last: step 2,000")


def test_dragging_over_a_chart_zooms_all_of_them(still: Dashboard, open_page: Open) -> None:
    page = open_page(still.url)
    page.locator('[data-panel="loss"]').scroll_into_view_if_needed()
    box = page.locator('[data-panel="loss"] .u-over').bounding_box()
    assert box
    left, top, width = box["x"], box["y"] + 50, box["width"]

    def first_shown() -> str:
        """The legend of the gradient norm chart near its left edge."""
        page.mouse.move(left + 60, top)
        page.mouse.move(left + 30, top)  # the axis may need a little more or less room
        return reading(page, "norm")

    def drag() -> None:
        page.mouse.move(left + 0.25 * width, top)
        page.mouse.down()
        page.mouse.move(left + 0.5 * width, top, steps=4)
        page.mouse.up()
        expect(page.locator("#zoom-reset")).to_be_enabled()

    whole = int(first_shown().removeprefix("step "))
    assert whole < 100
    drag()
    assert 500 <= int(first_shown().removeprefix("step ")) < 540
    page.locator("#zoom-reset").click()
    assert first_shown() == f"step {whole}"
    drag()
    page.mouse.dblclick(left + 100, top)
    expect(page.locator("#zoom-reset")).to_be_disabled()
    assert first_shown() == f"step {whole}"


def test_any_metric_can_be_charted_and_all_exported(still: Dashboard, open_page: Open, tmp_path: Path) -> None:
    page = open_page(still.url)
    page.get_by_label("Chart param/norm").check()
    expect(page.locator('[data-panel="more:param/norm"] .uplot')).to_be_visible()
    expect(page.get_by_label("Chart param/norm")).to_be_focused()
    page.get_by_label("Chart param/norm").uncheck()
    expect(page.locator('[data-panel="more:param/norm"]')).to_have_count(0)
    for kind, head in (("CSV", "name,step,time,value\n"), ("JSON", '{"series":{')):
        with page.expect_download() as begun:
            page.get_by_role("link", name=kind, exact=True).click()
        begun.value.save_as(tmp_path / kind)
        assert (tmp_path / kind).read_text().startswith(head)


def test_events_and_settings_are_found(still: Dashboard, open_page: Open) -> None:
    page = open_page(still.url)
    names = page.locator("#event-list .tag")
    assert {"started", "resumed", "disk cleaned"} <= set(names.all_inner_texts())
    page.get_by_label("Show").select_option("disk")
    assert set(names.all_inner_texts()) == {"disk cleaned"}
    page.get_by_label("Show").select_option("trouble")
    expect(page.locator("#event-blank")).to_have_text("No event of this kind.")
    page.get_by_role("searchbox", name="Find").fill("learning")
    expect(page.locator("#config-table tbody tr")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_no_barrier(still: Dashboard, open_page: Open, scheme: str, size: tuple[int, int]) -> None:
    page = open_page(f"{still.url}", size=size, scheme=scheme)
    page.locator("#notes").evaluate("notes => { notes.open = true }")
    if size == PHONE:
        page.locator("#rail summary").click()
    page.get_by_label("Draw finished over the open run").check()
    expect(page.locator('[data-panel="loss"] .legend li')).to_have_count(2)
    found = Axe().run(page)
    assert not found.response["violations"], found.generate_report()


def test_a_phone_needs_no_sideways_scrolling(still: Dashboard, open_page: Open) -> None:
    page = open_page(still.url, size=PHONE)
    page.locator("#rail summary").click()
    page.get_by_label("Draw finished over the open run").check()
    expect(page.locator('[data-panel="loss"] .legend li')).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
    beyond = """all => all
        .filter(one => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest('.sections, .uplot, thead'))
        .map(one => one.outerHTML.slice(0, 80))"""
    assert page.locator("main *").evaluate_all(beyond) == []
    assert page.locator(".table").evaluate_all("all => all.filter(one => one.scrollWidth > one.clientWidth)") == []
