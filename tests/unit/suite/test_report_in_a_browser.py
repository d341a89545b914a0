"""The report in Debian's Chromium, opened from files: without errors, in reach of the keyboard and of a screen reader, on a
phone as on a desk, in the light and in the dark. Skipped where there is no Chromium."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mora.suite.report.report_data import Gathered
from mora.suite.report.site import PAGES

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip(
    "playwright.sync_api", reason="no page is opened in a browser: playwright is not installed"
)
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: no page is opened in a browser")
WIDTHS = (320, 768, 1280, 1920)
ALL = (*PAGES, "run.html")
DESK = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as made:
        browser = made.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def a_run(gathered: Gathered) -> str:
    """With a held-out loss, and in a table."""
    return next(name for name, run in sorted(gathered.runs.items()) if run.held_out and not run.searching)


class Tab:
    """A page of the site, and what it complains of."""

    def __init__(self, browser: Browser, site: Path, a_run: str, scheme: str = "light") -> None:
        self.site, self.a_run = site, a_run
        self.page: Page = browser.new_page(viewport=DESK, color_scheme=scheme)  # type: ignore[arg-type]
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("requestfailed", lambda request: self.said.append(request.url))

    def open(self, name: str) -> Page:
        self.page.goto(f"file://{self.site}/{name}" + (f"?{self.a_run}" if name == "run.html" else ""))
        if name == "run.html":
            self.page.locator("h1.id").wait_for()
        return self.page


@pytest.fixture
def tab(browser: Browser, site: Path, a_run: str) -> Iterator[Tab]:
    tab = Tab(browser, site, a_run)
    yield tab
    tab.page.close()


@pytest.mark.parametrize("name", ALL)
def test_a_page_says_no_error_and_fits_every_width(tab: Tab, name: str) -> None:
    page = tab.open(name)
    assert tab.said == []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, width


FEW = """document.querySelectorAll("details").forEach((one) => { one.open = true; });
document.querySelectorAll("fieldset label:nth-of-type(n + 7)").forEach((one) => one.remove());
const kind = (one) => [one, ...one.querySelectorAll("*")].map((e) => e.tagName + "." + e.getAttribute("class")).join();
const seen = new Set();
document.querySelectorAll("tbody tr, details p, details li").forEach((one) => {
  if (seen.has(kind(one))) one.remove();
  seen.add(kind(one));
});"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, site: Path, a_run: str, scheme: str) -> None:
    """Contrast, labels, landmarks, headings: every rule of axe-core, and in the dark, where nothing else differs, contrast.

    All is open that can be opened. Of rows and paragraphs with the same elements and classes the first is looked at.
    """
    # A page that was opened from a file may not read its own style, for which axe would ask before all else.
    options = {"preload": False, "resultTypes": ["violations"]}
    options |= {"runOnly": ["color-contrast"]} if scheme == "dark" else {}
    tab, violations = Tab(browser, site, a_run, scheme), {}
    for name in ALL:
        page = tab.open(name)
        page.evaluate(FEW)
        for violation in axe.Axe().run(page, options=options).response["violations"]:
            violations[f"{name}: {violation['id']}"] = [node["html"][:200] for node in violation["nodes"]][:3]
    tab.page.close()
    assert violations == {}


def test_the_dark_page_is_dark_and_its_pictures_too(browser: Browser, site: Path, a_run: str) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        tab = Tab(browser, site, a_run, scheme)
        page = tab.open("figures.html")
        colour = "getComputedStyle(document.querySelector({})).{}"
        seen[scheme] = [
            page.evaluate(colour.format(*given)) for given in (("'body'", "backgroundColor"), ("'svg text'", "fill"))
        ]
        tab.page.close()
    assert seen["light"] == ["rgb(255, 255, 255)", "rgb(28, 32, 36)"]
    assert seen["dark"] == ["rgb(20, 23, 26)", "rgb(230, 233, 236)"]


def test_a_table_sorts_both_ways_filters_and_says_so(tab: Tab) -> None:
    page = tab.open("tables.html")
    table = page.locator("#t-table2-lite")
    head = table.get_by_role("columnheader", name="step 900")
    of_step = json.loads(head.evaluate("(cell) => JSON.stringify(cell.cellIndex)"))
    values = f"(t) => [...t.tBodies[0].rows].filter((r) => !r.hidden).map((r) => r.cells[{of_step}].dataset.order)"

    def numbers() -> list[float]:
        return [float(value) for value in table.evaluate(values) if value]

    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert numbers() == sorted(numbers())
    everything = len(numbers())
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert numbers() == sorted(numbers(), reverse=True)
    page.locator("#table2-lite").get_by_label("Rows with").fill("mora r=")
    labels = [text for text in table.locator("tbody tr:visible th").all_inner_texts()]
    assert 3 < len(labels) < everything + 3
    assert all(label.startswith("MoRA r=") for label in labels)
    page.locator("#table2-lite").get_by_label("Rows with").fill("no such row")
    assert page.locator("#table2-lite [role=status]").inner_text() == "No row has all of these words."


def test_a_number_tells_its_seeds_and_leads_to_their_runs_by_keyboard(tab: Tab) -> None:
    page = tab.open("tables.html")
    number = page.locator("#t-table2-lite td button").first
    assert "95% interval" in (number.get_attribute("title") or "")
    number.focus()
    page.keyboard.press("Enter")
    told = page.locator("[popover]:popover-open")
    assert "95% interval of the mean" in told.inner_text()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("h1.id").wait_for()
    assert page.locator("h1.id").inner_text() in page.title()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert tab.said == []


def test_all_that_can_be_pressed_can_be_reached(tab: Tab) -> None:
    page = tab.open("index.html")
    wanted = page.locator("a[href]:visible, button:visible, input:visible, [tabindex='0']:visible").count()
    page.evaluate("document.addEventListener('focusin', (event) => event.target.setAttribute('data-reached', ''))")
    for _ in range(wanted):
        page.keyboard.press("Tab")
    assert page.locator("[data-reached]").count() >= wanted


def test_chosen_runs_have_their_curves(tab: Tab, a_run: str) -> None:
    page = tab.open("runs.html")
    figure = page.locator(".curves", has=page.locator(f"[id='run-{a_run}']"))
    both = [page.locator(f"[id='run-{a_run}{end}']") for end in ("", "-held-out")]
    assert [curve.is_visible() for curve in both] == [True, True]
    hidden = figure.locator("input[data-run]:not(:checked)").count()
    assert 0 < hidden < figure.locator("input[data-run]").count()
    figure.locator("summary").click()
    figure.get_by_role("button", name="none", exact=True).click()
    assert [curve.is_visible() for curve in both] == [False, False]
    figure.locator(f"input[data-run='{a_run}']").check()
    assert [curve.is_visible() for curve in both] == [True, True]


def test_a_run_that_the_report_does_not_have_is_said_to_be_missing(tab: Tab) -> None:
    tab.page.goto(f"file://{tab.site}/run.html?uuid-<b>")
    tab.page.get_by_text("This report has no run uuid-<b>").wait_for()
    assert tab.said == []
