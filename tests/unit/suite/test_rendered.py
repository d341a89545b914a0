"""Every cell stands beside the number that the paper prints, every figure above its runs; results/ holds nothing else."""

import csv
import json
import re

import pytest
from all_cells import CELLS, NAMES, TABLES, cells_of
from made_up import write

from mora.config import run_id
from mora.config.source import ROOT
from mora.suite import experiments, figures, memory_study, settings, tables
from mora.suite.cell_specs import cell_specs
from mora.suite.cells import resolve, resolve_all
from mora.suite.report import rate_figure

PRINTED = {"table1": 76, "table2": 20, "table3": 8, "table4": 8, "table6": 25, "table7": 30}


@pytest.mark.parametrize("name", TABLES)
def test_every_printed_number_stands_beside_our_cell_or_not_run(name, tmp_path, nothing_measured):
    experiment = experiments.load(name)
    rows = cell_specs(experiment, "paper")
    path = tables.render(name, experiment, resolve_all(rows), "paper", tmp_path / "out")
    printed = [row["values"] for row in experiments.paper_tables()[name]["rows"]]
    assert sum(value is not None for values in printed for value in values) == PRINTED[name]
    shown = [[spec.paper_value for spec in row] for row in rows]
    assert shown == printed
    with open(path.with_suffix(".csv")) as file:
        assert sum(line["paper"] != "" for line in csv.DictReader(file)) == PRINTED[name]
    body = path.read_text().split("Searches,")[0]
    assert len(re.findall(r"\| [\d.]+ \\\| not run", body)) == PRINTED[name]


def test_the_paper_prints_167_numbers():
    assert sum(PRINTED.values()) == 167


@pytest.mark.parametrize(("name", "scale"), [(n, s) for n, s in CELLS if n in TABLES and s != "paper"])
def test_only_what_asks_the_papers_question_stands_beside_its_number(name, scale):
    """The same metric as at scale paper, of the rank that stands for the paper's; at scale smoke nothing."""
    asked = {spec.column.name: spec.column.metric for spec in cells_of(name, "paper")}
    for spec in cells_of(name, scale):
        if spec.paper_value is not None:
            assert scale in ("lite", "mid")
            assert asked[spec.column.name] == spec.column.metric
            assert not spec.column.metric.split(".")[0].endswith(("_local", "500"))


def test_table_5_is_what_the_configs_say():
    lines = settings.lines(experiments.load("table5"))
    assert len(lines) == 4 * 4 + 4 * (1 + 2 * 6 + 2) + 2  # settings, then rates and operators, then alpha
    assert [line for line in lines if line.paper != line.ours] == []


def test_table_5_is_markdown_latex_and_csv_and_marks_what_differs(tmp_path, monkeypatch):
    lines = [settings.Line("tulu2: warmup_steps", 500, 300), settings.Line("tulu2: lr fft", [2e-5, 1e-4], [2e-5, 1e-4])]
    monkeypatch.setattr(settings, "lines", lambda experiment: lines)
    path = settings.render("table5", experiments.load("table5"), tmp_path)
    assert "| tulu2: warmup_steps | 500 | 300 | differs |\n" in path.read_text()
    assert "tulu2: warmup\\_steps & 500 & 300 & differs \\\\\n" in path.with_suffix(".tex").read_text()
    assert list(csv.reader(path.with_suffix(".csv").open())) == [
        ["setting", "paper", "configs", "differs"],
        ["tulu2: warmup_steps", "500", "300", "differs"],
        ["tulu2: lr fft", "2e-05, 0.0001", "2e-05, 0.0001", ""],
    ]


def test_every_inconsistency_of_the_paper_is_shown_somewhere():
    shown = [note for name in NAMES for note in tables.notes(experiments.load(name))]
    known = experiments.paper_tables()["inconsistencies"]
    assert set(shown) == {f"Inconsistency within the paper: {text}" for text in known}


def test_a_figure_has_a_caption_that_names_its_runs_and_their_commits(tmp_path, nothing_measured):
    experiment = experiments.load("figure4")
    rows = cell_specs(experiment, "smoke")
    assert figures.render("figure4", experiment, resolve_all(rows), "smoke", tmp_path) is None
    assert list(tmp_path.glob("figure4*")) == [], "no caption of nothing"
    done = resolve(rows[0][0]).final_runs[0]
    made = {"commit": "0123456789abcdef", "fingerprint": "", "dirty": True}
    write(done, {}, log_rows=[{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}], source=made)
    path = figures.render("figure4", experiment, resolve_all(rows), "smoke", tmp_path)
    title = "Figure 4: training loss of pretraining from random weights; the runs of Table 3"
    assert title in re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", path.read_text()))
    caption = path.with_suffix(".md").read_text()
    assert caption.startswith(f"# {title}\n\n![{title}](figure4-smoke.svg)\n\nScale smoke, tiny. Each curve: ")
    assert (
        "\n\nInconsistency within the paper: Figure 4's caption says 1B, the text and Table 3 say 1.3B.\n\n" in caption
    )
    assert f"\n| tiny | FFT | {run_id(done)} | 0123456789, changed |\n| tiny | LoRA r=8 | not run | |\n" in caption


def test_a_caption_says_where_a_spectrum_has_no_source(tmp_path, nothing_measured):
    experiment = experiments.load("figure5")
    rows = cell_specs(experiment, "smoke")
    kinds = {kind: {"above_0.1": 1.0} for kind in figures.MODULES}
    made = {"commit": "fedcba9876543210", "fingerprint": "", "dirty": False}
    old, new = (resolve(row[0]).final_runs[0] for row in rows[:2])
    for config, spectrum in ((old, {"kinds": kinds}), (new, {"kinds": kinds, "source": made})):
        write(config, {})
        figures.spectrum_path(config).parent.mkdir(exist_ok=True)
        figures.spectrum_path(config).write_text(json.dumps(spectrum))
    caption = figures.render("figure5", experiment, resolve_all(rows), "smoke", tmp_path).with_suffix(".md").read_text()
    assert f"| {run_id(old)} | unknown | source not recorded |\n" in caption
    assert f"| {run_id(new)} | unknown | fedcba9876 |\n" in caption
    assert "| tiny | ReLoRA r=8 | not run | | |\n" in caption


def test_rendered_results_are_what_the_measured_ones_give(tmp_path):
    """results/tables and results/figures hold nothing but what `make render` writes, byte for byte, and all of it."""
    at_scale = {}
    for name, scale in CELLS:
        experiment, kind = experiments.load(name), "tables" if name.startswith("table") else "figures"
        if scale != "smoke":
            draw = tables.render if kind == "tables" else memory_study.render if name == "memory" else figures.render
            rows = resolve_all(cell_specs(experiment, scale))
            draw(name, experiment, rows, scale, tmp_path / kind)
            at_scale.setdefault(scale, []).append(rows)
    for scale, resolved in at_scale.items():
        rate_figure.render(scale, resolved, tmp_path / "figures")
    settings.render("table5", experiments.load("table5"), tmp_path / "tables")
    rendered = {p.relative_to(tmp_path): p.read_bytes() for p in sorted(tmp_path.rglob("*.*"))}
    results = ROOT / "results"
    committed = [p for kind in ("tables", "figures") for p in sorted((results / kind).glob("*"))]
    assert {p.relative_to(results): p.read_bytes() for p in committed} == rendered
