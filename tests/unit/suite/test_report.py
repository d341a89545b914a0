"""The report of the committed results: complete, by itself, and named for a screen reader."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from mora.config import ConfigError
from mora.config.source import ROOT
from mora.errors import DamagedFileError
from mora.results import ResultStore
from mora.suite.report import decisions, findings, headline, pictures
from mora.suite.report.gather import Gathered, Point
from mora.suite.report.site import PAGES, Site

VOID = {"meta", "link", "br", "input", "hr", "img"}
CHROMIUM = "chromium"


class Page(HTMLParser):
    """What a page loads and links to, its names, and its pictures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.names: list[str] = []
        self.unnamed: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if name := given.get("id"):
            self.names.append(name)
        for key in ("src", "data", "poster", "srcset"):
            self.loads += [given[key] or ""] if key in given else []
        if tag == "link":
            self.loads.append(given["href"] or "")
        if tag == "a":
            self.links.append(given.get("href") or "")
        outermost = tag == "svg" and "svg" not in self._open
        if outermost and not (given.get("aria-label") or given.get("aria-hidden")):
            self.unnamed.append(str(attrs))
        if tag == "input" and "label" not in self._open:
            self.unnamed.append(str(attrs))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass


@pytest.fixture(scope="module")
def gathered() -> Gathered:
    return Gathered()


@pytest.fixture(scope="module")
def site(gathered: Gathered, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    Site(folder, gathered).build()
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_every_page_is_there_and_all_of_it_is_small(site: Path, gathered: Gathered) -> None:
    assert {path.name for path in site.glob("*.html")} == set(PAGES)
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 5e6
    assert {path.stem for path in (site / "runs").glob("*.html")} == set(gathered.runs)


def test_every_run_that_a_table_cites_has_a_page(site: Path) -> None:
    cited = {name for path in (ROOT / "results/tables").glob("*.csv") for name in _run_ids(path.read_text())}
    assert cited
    assert {f"{name}.html" for name in cited} <= {path.name for path in (site / "runs").iterdir()}


def _run_ids(text: str) -> list[str]:
    return re.findall(r"\b(?:uuid|tulu2|metamath|biomed|finance|c4)-[\w.-]+-s\d+-[0-9a-f]{10}\b", text)


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for url in page.loads:
            assert (path.parent / url).resolve().is_relative_to(site), (path, url)
            assert (path.parent / url).is_file(), (path, url)
    for path in (*site.glob("*.css"), *site.glob("*.js")):
        assert not re.search(r"https?:|@import|url\(|fetch\(|import\(", path.read_text()), path


def test_every_link_into_the_site_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert len(page.names) == len(set(page.names)), path
        for link in page.links:
            if link.startswith("https://"):
                continue
            file, _, name = unquote(link).partition("#")
            there = (path.parent / file).resolve() if file else path
            assert there.is_file(), (path, link)
            assert not name or name in pages[there].names, (path, link)


def test_every_picture_and_field_has_a_name(pages: dict[Path, Page]) -> None:
    assert {path.name: page.unnamed for path, page in pages.items() if page.unnamed} == {}


def test_every_claim_is_on_the_first_page_with_its_verdict(site: Path, gathered: Gathered) -> None:
    text = (site / "index.html").read_text()
    for finding in findings.of_claims(gathered.found):
        assert f'href="#{finding.anchor}"' in text
        assert f'id="{finding.anchor}"' in text
        assert finding.outcome.effect is None or finding.effect in text


def test_the_numbers_of_a_table_are_those_of_its_csv(site: Path) -> None:
    text = (site / "tables.html").read_text()
    lines = list(csv.DictReader((site / "files/table2-lite.csv").read_text().splitlines()))
    measured = [line for line in lines if line["mean"]]
    assert measured
    for line in measured:
        assert f"{float(line['mean']):.1f} ± {float(line['sd']):.1f} ({line['n']})" in text


def test_the_first_page_of_the_project_has_the_picture_that_the_results_give(
    gathered: Gathered, tmp_path: Path
) -> None:
    """Byte for byte, with fonts that a printer can take."""
    headline.render(gathered.found, tmp_path / "claims.md")
    for end in (".svg", ".pdf"):
        assert (tmp_path / f"claims{end}").read_bytes() == (ROOT / f"results/claims{end}").read_bytes(), "make render"
    pdf = (tmp_path / "claims.pdf").read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert "](results/claims.svg)" in (ROOT / "README.md").read_text()


def test_a_damaged_result_is_named_and_stops_nothing(tmp_path: Path) -> None:
    whole = next((ROOT / "results/runs").glob("c4-*.json"))
    (tmp_path / "whole.json").write_text(whole.read_text())
    values = json.loads(whole.read_text())
    values.pop("status")
    (tmp_path / "damaged.json").write_text(json.dumps(values))
    store = ResultStore()
    with pytest.raises(DamagedFileError, match="no field status"):
        list(store.all(tmp_path))
    assert store.leave_out_damaged(tmp_path)["damaged.json"].startswith("damaged.json is damaged (no field status)")
    assert [result.run_id for result in store.all(tmp_path)] == [values["run_id"]]


def test_a_folder_of_other_files_is_left_alone(gathered: Gathered, tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(ConfigError, match="other files than a report"):
        Site(tmp_path, gathered).build()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.html"]


def test_curves_are_smoothed_without_bending_a_line_and_thinned_to_their_ends() -> None:
    line = [Point(step, 2.0 * step) for step in range(1, 501)]
    inner = pictures.smoothed(line)[4:-4]
    assert all(abs(p.value - 2.0 * p.step) < 1e-9 for p in inner)
    thin = pictures.thinned(line, 50)
    assert len(thin) == 50
    assert (thin[0], thin[-1]) == (line[0], line[-1])
    assert pictures.smoothed([]) == []


def test_links_into_the_repository_become_words() -> None:
    made = decisions.html("see [the page](../results/claims.md) and [arXiv](https://arxiv.org)")
    assert "the page and" in made
    assert made.count("<a ") == 1


in_a_browser = pytest.mark.skipif(shutil.which(CHROMIUM) is None, reason="there is no chromium: no page is opened")
PRESS = """<script>addEventListener("load", () => {
  const table = document.getElementById("t-table2-lite"), field = document.querySelector("[data-table=t-table2-lite]");
  const head = [...table.tHead.rows[0].cells].find((cell) => cell.innerText.startsWith("step 900"));
  head.firstChild.click(); head.firstChild.click();
  field.value = "mora r="; field.dispatchEvent(new Event("input"));
  const rows = [...table.tBodies[0].rows].filter((row) => !row.hidden && row.cells[5].dataset.order);
  document.title = JSON.stringify(rows.map((row) => [row.cells[0].innerText, +row.cells[5].dataset.order]));
});</script>"""


def _opened(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The page as the browser has it, and the errors that it says."""
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={profile}",
        "--enable-logging=stderr",
    ]
    command = [CHROMIUM, *options, "--virtual-time-budget=5000", "--dump-dom", f"file://{page}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@in_a_browser
def test_the_curves_of_searches_are_hidden_until_they_are_chosen(site: Path, tmp_path: Path) -> None:
    text, errors = _opened(site / "runs.html", tmp_path)
    assert not errors
    assert 0 < text.count("display: none") < text.count("data-run=")


@in_a_browser
def test_a_table_sorts_downwards_and_filters(site: Path, tmp_path: Path) -> None:
    page = tmp_path / "tables.html"
    page.write_text((site / "tables.html").read_text().replace("</body>", f"{PRESS}</body>"))
    for name in ("report.js", "report.css"):
        shutil.copy(site / name, tmp_path)
    text, errors = _opened(page, tmp_path / "profile")
    assert not errors
    rows = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", text)[1]))  # type: ignore[index]
    assert len(rows) > 3
    assert all(label.startswith("MoRA r=") for label, _ in rows)
    assert [value for _, value in rows] == sorted((value for _, value in rows), reverse=True)
