"""The page of reports in a real browser: sorted, filtered, by keyboard, wide and narrow."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.small_ingest import facts_of
from tests.unit.test_reports_look import HOSTILE, change, page, write_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.integration


@pytest.fixture
def html(tmp_path: Path) -> Path:
    """A page of 14 studies: one contradicts twice, one is hostile, one has no report."""
    written = write_run(tmp_path)
    change(written, 4, laterality="right", volume_band="over_70_ml", findings="", impression="", flagged=True)
    change(written, 5, findings=HOSTILE)
    change(written, 8, report=None, flagged=True, reason="no valid report in 2 attempts")
    page(written)
    return written / "reports.html"


def opened(html: Path, browser: "Browser", width: int = 1280) -> "Page":
    tab = browser.new_page(viewport={"width": width, "height": 900})
    tab.goto(html.as_uri())
    return tab


def shown(tab: "Page") -> list[int]:
    return [int(title.removeprefix("Study ")) for title in tab.locator("h2:visible").all_inner_texts()]


def test_sorting_orders_the_studies_and_puts_the_unknown_last(html: Path, browser: "Browser") -> None:
    tab = opened(html, browser)
    assert shown(tab)[:2] == [9, 5]
    tab.select_option("#order", "volume down")
    volumes = {number + 1: facts_of(number).volume_ml for number in range(14)}
    known = sorted((n for n, ml in volumes.items() if ml is not None), key=lambda n: -(volumes[n] or 0))
    assert shown(tab) == [*known, 11]
    tab.select_option("#order", "score up")
    assert shown(tab)[0] == 5 and set(shown(tab)[-2:]) == {9, 11}
    tab.select_option("#order", "wrong down")
    assert shown(tab)[0] == 5
    tab.select_option("#order", "number up")
    assert shown(tab) == list(range(1, 15))


def test_filters_narrow_the_studies_and_say_how_many_are_left(html: Path, browser: "Browser") -> None:
    tab = opened(html, browser)
    tab.check("#flagged")
    assert shown(tab) == [9, 5]
    assert tab.inner_text("#count") == "2 of 14 studies"
    tab.fill("#words", "NO valid")
    assert shown(tab) == [9]
    tab.uncheck("#flagged")
    tab.fill("#words", "owned")
    assert shown(tab) == [6]
    tab.fill("#words", "")
    assert len(shown(tab)) == 14


def test_the_page_can_be_sorted_and_filtered_by_keyboard_alone(html: Path, browser: "Browser") -> None:
    tab = opened(html, browser)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "order"
    tab.keyboard.press("End")
    assert shown(tab) == list(range(1, 15))
    tab.keyboard.press("Tab")
    tab.keyboard.press("Space")
    assert shown(tab) == [5, 9]


def test_a_hostile_report_is_read_and_not_run(html: Path, browser: "Browser") -> None:
    tab = browser.new_page()
    said: list[str] = []
    tab.on("dialog", lambda dialog: said.append(dialog.message))
    tab.on("console", lambda message: said.append(message.text))
    tab.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    tab.goto(html.as_uri())
    assert "<script>alert('owned')</script>" in tab.inner_text("#studies")
    assert tab.locator("#studies script").count() == 0
    assert said == []


def test_a_contradiction_is_marked_in_words_beside_stated_and_measured(
    html: Path, browser: "Browser"
) -> None:
    card = opened(html, browser).locator("article", has_text="Study 5")
    assert "2 contradictions" in card.inner_text()
    line = card.locator("tr", has=card.page.locator("th", has_text="laterality"))
    assert line.locator("th, td").all_inner_texts() == ["laterality", "right", "left", "contradiction"]


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_screen(html: Path, browser: "Browser", width: int) -> None:
    tab = opened(html, browser, width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
