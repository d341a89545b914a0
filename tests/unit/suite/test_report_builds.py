"""The report in processes of its own: whole beside damaged files, and the same bytes again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mora.config.source import ROOT
from mora.suite.report import pack
from mora.suite.report.report_data import Gathered


def build(folder: Path, root: Path = ROOT, hash_seed: str = "1") -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mora.suite.report", "--to", str(folder)],
        cwd=root,
        env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"open {folder}/index.html\n")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The report of a checkout with the runs of Table 3 alone, four of whose files are damaged, and these."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("mora", "configs", "experiments", "docs", "results/paper", "results/bench"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("runs", "documents", "spectra"):
        (root / "results" / name).mkdir()
        for path in (ROOT / "results" / name).glob("c4-*"):
            shutil.copy(path, root / "results" / name)
    files = {
        "result": _first(root, "runs/c4-fft-*.json"),
        "documents": _first(root, "documents/c4-mora-*"),
        "log": _first(root, "runs/c4-lora-*.log.jsonl"),
        "spectrum": _first(root, "spectra/c4-remora-*"),
    }
    for path in files.values():
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] + b"}\n]" + whole[len(whole) // 2 :])
    build(root / "report", root)
    return root / "report", {kind: path.name.partition(".")[0] for kind, path in files.items()}


def test_it_is_built_again_byte_for_byte(damaged: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    """Of Table 3's runs alone. Other tasks' pages are not built twice; their files in results/ are held to the byte."""
    site, _ = damaged
    (tmp_path / "again").mkdir()
    for name in ("report.css", "report.js", "index.html", "old.html"):
        (tmp_path / "again" / name).write_text("of a report before")
    build(tmp_path / "again", site.parent, hash_seed="2")
    assert contents(tmp_path / "again") == contents(site)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]  # nothing half made is left beside it


def _first(root: Path, pattern: str) -> Path:
    """Of a run that a cell shows."""
    cited = (ROOT / "results/tables/table3-lite.csv").read_text()
    return next(p for p in sorted((root / "results").glob(pattern)) if p.name.partition(".")[0] in cited)


def test_a_damaged_file_is_named_on_the_first_page(damaged: tuple[Path, dict[str, str]]) -> None:
    site, names = damaged
    alert = (site / "index.html").read_text().partition("Damaged files, left out")[2].partition("</section>")[0]
    for kind in ("result", "documents", "log", "spectrum"):
        assert names[kind] in alert


def test_a_damaged_result_leaves_the_others_of_its_cell(
    damaged: tuple[Path, dict[str, str]], gathered: Gathered
) -> None:
    """As one does whose documents' scores or spectrum, on which claims rest, is damaged."""
    site, names = damaged
    runs = pack.texts((site / "runs.js").read_text())
    left_out = {names[kind] for kind in ("result", "documents", "spectrum")}
    assert set(runs) == {name for name in gathered.runs if name.startswith("c4-")} - left_out
    table = (site / "tables.html").read_text().partition('id="t-table3-lite"')[2].partition("</table>")[0]
    assert table.count("(2 of 3)") == len(left_out)
    assert table.count("(3)") == 2


def test_a_damaged_log_costs_its_curves_alone(damaged: tuple[Path, dict[str, str]]) -> None:
    site, names = damaged
    assert "is damaged" in pack.texts((site / "runs.js").read_text())[names["log"]]
    pages = {name: (site / name).read_text() for name in ("figures.html", "runs.html")}
    figure = pages["figures.html"].partition('id="figure4-lite"')[2].partition("</figure>")[0]
    assert f"Not drawn: results/runs/{names['log']}.log.jsonl:" in figure
    assert "<svg" not in figure
    assert "<svg" in pages["figures.html"]
    assert f'id="run-{names["log"]}"' not in pages["runs.html"]
    assert "<svg" in pages["runs.html"]
