"""The report of the committed results: complete, by itself, and named for a screen reader."""

from __future__ import annotations

import csv
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from mora.config import ConfigError
from mora.config.source import ROOT
from mora.errors import DamagedFileError
from mora.results import ResultStore
from mora.suite.doubts import doubts
from mora.suite.report import decisions, findings, headline, pack, pictures, svg
from mora.suite.report.report_data import Gathered, Point
from mora.suite.report.site import ASSETS, PAGES, Site
from mora.suite.report.style import COLUMN

VOID = {"meta", "link", "br", "input", "hr", "img"}


class Page(HTMLParser):
    """What a page loads and links to, its names, and its pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.names: list[str] = []
        self.unnamed: list[str] = []
        self._open: list[str] = []
        self.feed(text)

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
def runs(site: Path) -> dict[str, str]:
    return pack.texts((site / "runs.js").read_text())


@pytest.fixture(scope="module")
def pages(site: Path, runs: dict[str, str]) -> dict[str, Page]:
    of_site = {path.name: Page(path.read_text()) for path in sorted(site.glob("*.html"))}
    return of_site | {f"run.html?{name}": Page(text) for name, text in runs.items()}


def test_every_page_and_every_run_is_there(site: Path, runs: dict[str, str], gathered: Gathered) -> None:
    assert {path.name for path in site.glob("*.html")} == {*PAGES, "run.html"}
    assert set(runs) == set(gathered.runs)


def test_the_site_stays_small_at_four_hundred_runs(site: Path, gathered: Gathered) -> None:
    """As if pages and pictures grew with the runs in proportion. Tables' files have lines for what was not run too."""
    sizes = {path: path.stat().st_size for path in site.rglob("*") if path.is_file()}
    assert sum(sizes.values()) < 5e6
    as_they_are = {*ASSETS, "decisions.html"}
    fixed = sum(n for path, n in sizes.items() if path.name in as_they_are or path.suffix in (".md", ".csv", ".tex"))
    growing = sum(sizes.values()) - fixed
    assert fixed + growing * max(400 / len(gathered.runs), 1) < 5e6


def test_every_run_that_a_table_cites_has_a_page(runs: dict[str, str]) -> None:
    cited = {name for path in (ROOT / "results/tables").glob("*.csv") for name in _run_ids(path.read_text())}
    assert cited
    assert cited <= set(runs)


def test_a_doubted_run_says_why(runs: dict[str, str], gathered: Gathered) -> None:
    expected = {name: "; ".join(why) for name, run in gathered.runs.items() if (why := doubts(run.result))}
    assert expected
    assert {name for name, text in runs.items() if "<dt>in doubt</dt>" in text} == set(expected)
    for name, why in expected.items():
        assert f"<dt>in doubt</dt><dd>{html.escape(why)}" in runs[name]


def _run_ids(text: str) -> list[str]:
    return re.findall(r"\b(?:uuid|tulu2|metamath|biomed|finance|c4)-[\w.-]+-s\d+-[0-9a-f]{10}\b", text)


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        for url in page.loads:
            assert (site / url).resolve().parent == site, (name, url)
            assert (site / url).is_file(), (name, url)
    for path in (site / name for name in ASSETS):
        assert not re.search(r"https?:|@import|url\(|fetch\(|import\(", path.read_text()), path


def test_every_link_into_the_site_leads_somewhere(site: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        assert len(page.names) == len(set(page.names)), name
        for link in page.links:
            if link.startswith("https://"):
                continue
            there, _, anchor = unquote(link).partition("#")
            if there.startswith("files/"):
                assert (site / there).is_file(), (name, link)
                continue
            assert not there or there in pages, (name, link)
            assert not anchor or anchor in pages[there or name].names, (name, link)


def test_every_picture_and_field_has_a_name(pages: dict[str, Page]) -> None:
    assert {name: page.unnamed for name, page in pages.items() if page.unnamed} == {}


def test_every_claim_is_on_the_first_page_with_its_verdict(site: Path, gathered: Gathered) -> None:
    text = (site / "index.html").read_text()
    for finding in findings.of_claims(gathered.resolved):
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
    headline.render(gathered.resolved, tmp_path / "claims.md")
    for end in (".svg", ".pdf"):
        assert (tmp_path / f"claims{end}").read_bytes() == (ROOT / f"results/claims{end}").read_bytes(), "make render"
    pdf = (tmp_path / "claims.pdf").read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert "](results/claims.svg)" in (ROOT / "README.md").read_text()


def test_paths_are_the_same_in_fewer_letters() -> None:
    made = svg.shortened('<path d="M 1.004 2 \nL 3.5 1.75 \nL 4 1.75 \nz\nM 0.5 0.25 \nQ 1 1 2 0.25 \n"/>')
    assert made == '<path d="m1 2l2.5-.25 .5 0zm-.5-1.75q.5 .75 1.5 0"/>'
    assert svg.shortened('<use transform="translate(83.796875 0)"/>') == '<use x="83.8"/>'


def test_what_is_packed_comes_out() -> None:
    given = {"a": '<p>\u00b1 "1"</p>', "b": ""}
    assert pack.texts(pack.script(given)) == given


def test_figures_for_print_are_a_column_wide_with_fonts_that_a_printer_can_take(site: Path) -> None:
    pdfs = {path.stem: path.read_bytes() for path in (site / "files").glob("*.pdf") if path.stem != "claims"}
    assert {"figure2-lite", "figure3-lite", "figure4-lite", "figure5-lite", "memory-lite"} <= set(pdfs)
    for name, pdf in pdfs.items():
        width = float(re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", pdf)[1])  # type: ignore[index]
        assert width == pytest.approx(72 * COLUMN), name
        assert b"/FontFile2" in pdf, name
        assert b"/Type3" not in pdf, name
        assert f'width="{72 * COLUMN:g}pt"' in (site / f"files/{name}.svg").read_text()


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


@pytest.mark.parametrize("name", ["mine.html", "report.css"])
def test_a_folder_of_other_files_and_a_file_are_left_alone(name: str, gathered: Gathered, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    for place in (tmp_path, tmp_path / name):
        with pytest.raises(ConfigError, match="not a report's folder"):
            Site(place, gathered).build()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


def test_curves_are_smoothed_without_bending_a_line_and_thinned_to_their_ends() -> None:
    line = [Point(step, 2.0 * step) for step in range(1, 501)]
    inner = pictures.smoothed(line)[4:-4]
    assert all(abs(p.value - 2.0 * p.step) < 1e-9 for p in inner)
    thin = pictures.thinned(line, 50)
    assert len(thin) == 50
    assert (thin[0], thin[-1]) == (line[0], line[-1])
    assert pictures.smoothed([]) == []


def test_what_was_decided_after_results_is_there_dated_beside_deviations_the_log_and_what_was_not_run(
    site: Path,
) -> None:
    text = (site / "decisions.html").read_text()
    decided = text.partition(decisions.DECIDED)[2].partition("</section>")[0]
    assert re.search(r"<li>20\d\d-\d\d-\d\d", decided)
    assert text.count("<details><summary>20") == len(re.findall(r"^## 20", (ROOT / "docs/LOG.md").read_text(), re.M))
    assert "<summary>Sources differ</summary>" in text
    assert "<code>make table1 SCALE=paper</code>" in text


def test_links_into_the_repository_become_words() -> None:
    made = decisions.html("see [the page](../results/claims.md) and [arXiv](https://arxiv.org)", "a title")
    assert "the page and" in made
    assert made.count("<a ") == 1
