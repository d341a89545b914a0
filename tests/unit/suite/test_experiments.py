"""Every cell of every table and figure at every scale can be run, and stands beside the number that the paper prints."""

import csv
import fcntl
import functools
import hashlib
import json
import re
import sys
import threading
import time

import pytest
import yaml
from made_up import write

from mora.config import ConfigError, run_id, source
from mora.config.run_id import result_path
from mora.config.source import ROOT
from mora.errors import DamagedFileError
from mora.io import IN_USE
from mora.sizes import auto_operator
from mora.suite import __main__ as suite
from mora.suite import experiment as experiments
from mora.suite import figures, launch, memory_study, runner, settings, tables
from mora.suite.cells import resolve, resolve_all
from mora.suite.experiment import CellSpec
from mora.suite.gpus import GpuSlots
from mora.suite.report import rate_figure

NAMES = experiments.names()
TABLES = [f"table{n}" for n in (1, 2, 3, 4, 6, 7)]
CELLS = [(name, scale) for name in NAMES for scale in experiments.load(name).scales]
PRINTED = {"table1": 76, "table2": 20, "table3": 8, "table4": 8, "table6": 25, "table7": 30}
SHA256 = "8979c3d2770202514c34107a3f0ba5b7495cc358970097b8228f29662b4c181e"


def cells_of(name, scale) -> list[CellSpec]:
    return [spec for row in experiments.cell_specs(experiments.load(name), scale) for spec in row]


def scored(tasks) -> set[str]:
    """The tasks and, of a group, its members."""
    return {*tasks, *(member for task in tasks for member in groups().get(task, []))}


@functools.cache
def groups() -> dict[str, list[str]]:
    files = [yaml.load(p.read_text(), Loader) for p in (ROOT / "mora" / "evaluate" / "tasks").rglob("*.yaml")]
    return {file["group"]: file["task"] for file in files if "group" in file}


class Loader(yaml.SafeLoader):
    """Leaves lm-eval's !function tags alone."""


Loader.add_constructor("!function", lambda loader, node: node.value)


@pytest.fixture
def nothing_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "ROOT", tmp_path)


def test_the_experiments_are_the_tables_and_figures_of_the_paper_and_three_of_ours():
    expected = [*(f"figure{n}" for n in (2, 3, 4, 5)), "figure_restarts", "memory"]
    expected += [*(f"table{n}" for n in range(1, 8)), "table_restarts"]
    assert expected == NAMES


@pytest.mark.parametrize("name", ["table9", "claims", "../experiments/table2"])
def test_a_name_that_is_no_experiment_is_refused(name):
    with pytest.raises(
        FileNotFoundError,
        match=r"there is no experiment .*; there are figure2, .*, table_restarts(; did you mean \w+\?)?$",
    ):
        experiments.load(name)


@pytest.mark.parametrize("flag", ["--jobs", "--seeds"])
@pytest.mark.parametrize("value", ["0", "-2", "two"])
def test_counts_below_one_are_refused(flag, value, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mora.suite", "table2", "--plan", flag, value])
    with pytest.raises(SystemExit):
        suite.main()
    assert f"argument {flag}: '{value}': expected a whole number above 0" in capsys.readouterr().err


def test_a_damaged_result_is_named(nothing_measured, tmp_path):
    config = resolve(cells_of("figure2", "smoke")[0]).final_runs[0]
    path = result_path(config)
    path.parent.mkdir(parents=True)
    path.write_text('{"run_id"')
    with pytest.raises(DamagedFileError, match=rf"^{path} is damaged \(.*\): remove it"):
        launch.result_of(config)


def test_the_transcript_of_the_paper_is_as_it_was_checked():
    assert hashlib.sha256(experiments.PAPER.read_bytes()).hexdigest() == SHA256


@pytest.mark.parametrize(("name", "scale"), CELLS)
def test_every_cell_composes_and_reads_what_its_runs_measure(name, scale, nothing_measured):
    for spec in cells_of(name, scale):
        if not spec.exists:
            continue
        runs = resolve(spec).needed
        assert runs, spec.label
        assert len({run_id(config) for config in runs}) == len(runs)
        for config in runs:
            assert config.scale.name == scale
        whole, evaluation = spec.config, spec.config.task.evaluation
        assert not whole.knows_steps or spec.column.step is None or spec.column.step <= whole.total_steps
        if spec.experiment.kind == "table" and spec.column.task != "uuid":
            assert spec.column.metric.removesuffix(".score") in scored(evaluation.tasks)
        assert spec.column.step is None or spec.column.step in evaluation.at_steps
        assert spec.experiment.selection == ("value_nll" if spec.column.task == "uuid" else "validation_loss")


def test_a_row_without_a_search_of_its_own_takes_the_rate_of_the_row_without_its_settings(nothing_measured):
    cells = [spec for spec in cells_of("table_restarts", "mid") if spec.column.task == "metamath"]
    clean, stale, official = (spec for spec in cells if spec.row.method == "relora")
    assert [run_id(run) for run in stale.search_runs] == [run_id(run) for run in clean.search_runs]
    for run, loss in zip(clean.search_runs, (0.6, 0.5, 0.55, 0.7), strict=True):
        write(run, {"validation_loss": loss})
    for run, loss in zip(resolve(clean).choice.missing, (0.50, 0.60), strict=True):
        assert run.seed == 1
        write(run, {"validation_loss": loss})
    chosen = {run.lr for spec in (clean, stale, official) for run in resolve(spec).final_runs}
    assert chosen == {clean.search_space[1].lr}
    assert [run.method.restart.stale_masters for run in resolve(stale).final_runs] == [True, True]
    assert [run.method.restart.schedule for run in resolve(official).final_runs] == ["official_hf", "official_hf"]
    lines = tables._search_lines(clean.experiment, [[resolve(spec)] for spec in (clean, stale, official)])
    assert [line.partition(",")[0] for line in lines if line.startswith("- ")] == ["- ReLoRA r=96 (the paper's 256)"]
    words = [run.overrides for run in resolve(stale).search_cell_runs]
    assert words, "what a queue is given for a search"
    assert not any("stale" in word for run in words for word in run)
    assert all("method.restart.stale_masters=true" in run.overrides for run in resolve(stale).final_cell_runs)


@pytest.mark.parametrize("name", TABLES)
def test_every_printed_number_stands_beside_our_cell_or_not_run(name, tmp_path, nothing_measured):
    experiment = experiments.load(name)
    rows = experiments.cell_specs(experiment, "paper")
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


def test_table_1_takes_the_grids_of_the_paper(nothing_measured):
    specs = [spec for spec in cells_of("table1", "paper") if spec.exists]
    trained = {(spec.column.task, spec.row.method, spec.row.r) for spec in specs}
    assert len(trained) == 51
    assert len({run_id(config) for spec in specs for config in resolve(spec).needed}) == 128


@pytest.mark.parametrize(
    ("other", "scale"), [(n, s) for n in ("table4", "table6", "table7") for s in ("paper", "mid", "lite")]
)
def test_tables_share_their_runs(other, scale, nothing_measured):
    main = {run_id(config) for spec in cells_of("table1", scale) for config in resolve(spec).needed}
    for spec in cells_of(other, scale):
        alone = other == "table4" and spec.row.operator != spec.column.auto
        assert {run_id(config) for config in resolve(spec).needed}.isdisjoint(main) == alone, spec.label


@pytest.mark.parametrize(("scale", "width"), [("paper", 4096), ("mid", 1536), ("lite", 576), ("smoke", 128)])
def test_what_table_4_takes_auto_for_is_what_it_becomes(scale, width):
    for spec in cells_of("table4", scale):
        assert auto_operator(width, spec.config.r) == spec.column.auto


def test_only_some_cells_run(nothing_measured):
    cells = cells_of("table1", "lite")
    chosen = experiments.filter_cells(cells, ["task=metamath,biomed", "method=lora,mora", "r=1"])
    assert {(g.column.task, g.row.method, g.row.r) for g in chosen} == {
        (task, method, 1) for task in ("metamath", "biomed") for method in ("lora", "mora")
    }
    assert experiments.filter_cells(cells, []) == cells


@pytest.mark.parametrize(("scale", "r"), [("paper", 8), ("lite", 1)])
def test_some_operators_of_table_4_run_at_the_rank_of_its_column(scale, r, nothing_measured):
    chosen = experiments.filter_cells(cells_of("table4", scale), ["operator=sharing,truncation", f"r={r}"])
    assert [(g.row.operator, g.column.name, g.config.r) for g in chosen] == [
        ("truncation", "r8", r), ("sharing", "r8", r)
    ]  # fmt: skip


def test_rows_that_name_no_operator_are_chosen_by_the_one_that_they_use(nothing_measured):
    chosen = experiments.filter_cells(cells_of("table2", "mid"), ["operator=sharing"])
    assert {(g.row.method, g.row.operator, g.config.r) for g in chosen} == {("mora", None, 4), ("mora", None, 96)}


def test_an_operator_that_the_task_leaves_to_auto_is_the_one_that_it_becomes(nothing_measured):
    cells = cells_of("table1", "lite")
    for operator, rank in (("rotation", 1), ("sharing", 32)):
        chosen = experiments.filter_cells(cells, [f"operator={operator}"])
        assert {(g.row.method, g.config.r) for g in chosen if g.row.method == "mora"} == {("mora", rank)}


@pytest.mark.parametrize(
    ("filters", "complaint"),
    [
        (["seed=0"], "expected task=VALUE,..., method=VALUE,..., r=VALUE,..., operator=VALUE,..."),
        (["task=metamath,uuid"], "no cell has task=uuid; there are tulu2, metamath, biomed, finance"),
        (["r=8"], "no cell has r=8; there are 1, 32"),
        (["r=None"], "no cell has r=None; there are 1, 32"),
    ],
)
def test_a_filter_that_no_cell_can_pass_is_refused(filters, complaint, nothing_measured):
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        experiments.filter_cells(cells_of("table1", "lite"), filters)


def test_the_untouched_model_is_scored_once_and_searches_score_nothing(nothing_measured):
    for spec in cells_of("table1", "lite"):
        if spec.row.method == "none":
            assert [config.seed for config in resolve(spec).needed] == [0]
        for config in spec.search_runs:
            assert (config.task.train.shorten_by, config.task.evaluation.tasks) == (3, [])


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


def test_a_run_of_another_process_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MORA_OUTPUT_DIR", str(tmp_path))
    spec = cells_of("table2", "smoke")[0]
    config = resolve(spec).final_runs[0]
    assert not runner.held(config)
    folder = launch.run_folder(config)
    folder.mkdir(parents=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert runner.held(config)
        monkeypatch.setattr(runner, "launch", lambda *a, **k: pytest.fail("started a run that another process holds"))
        assert runner._run(config, GpuSlots(1, [])) == 0
    assert not runner.held(config)


def test_rendered_results_are_what_the_measured_ones_give(tmp_path):
    """results/tables and results/figures hold nothing but what `make render` writes, byte for byte, and all of it."""
    at_scale = {}
    for name, scale in CELLS:
        experiment, kind = experiments.load(name), "tables" if name.startswith("table") else "figures"
        if scale != "smoke":
            draw = tables.render if kind == "tables" else memory_study.render if name == "memory" else figures.render
            rows = resolve_all(experiments.cell_specs(experiment, scale))
            draw(name, experiment, rows, scale, tmp_path / kind)
            at_scale.setdefault(scale, []).append(rows)
    for scale, resolved in at_scale.items():
        rate_figure.render(scale, resolved, tmp_path / "figures")
    settings.render("table5", experiments.load("table5"), tmp_path / "tables")
    rendered = {p.relative_to(tmp_path): p.read_bytes() for p in sorted(tmp_path.rglob("*.*"))}
    results = ROOT / "results"
    committed = [p for kind in ("tables", "figures") for p in sorted((results / kind).glob("*"))]
    assert {p.relative_to(results): p.read_bytes() for p in committed} == rendered


@pytest.mark.parametrize(("name", "scale"), [(n, s) for n, s in CELLS if n in TABLES and s != "paper"])
def test_only_what_asks_the_papers_question_stands_beside_its_number(name, scale):
    """The same metric as at scale paper, of the rank that stands for the paper's; at scale smoke nothing."""
    asked = {spec.column.name: spec.column.metric for spec in cells_of(name, "paper")}
    for spec in cells_of(name, scale):
        if spec.paper_value is not None:
            assert scale in ("lite", "mid")
            assert asked[spec.column.name] == spec.column.metric
            assert not spec.column.metric.split(".")[0].endswith(("_local", "500"))


def test_a_figure_has_a_caption_that_names_its_runs_and_their_commits(tmp_path, nothing_measured):
    experiment = experiments.load("figure4")
    rows = experiments.cell_specs(experiment, "smoke")
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
    rows = experiments.cell_specs(experiment, "smoke")
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


def test_spectra_are_measured_once_and_of_finished_runs_alone(tmp_path, monkeypatch, nothing_measured):
    monkeypatch.setenv("MORA_OUTPUT_DIR", str(tmp_path / "outputs"))
    specs = cells_of("figure5", "smoke")
    configs = [resolve(spec).final_runs[0] for spec in specs]
    for config, status in zip(configs, ("done", "done", "diverged"), strict=False):  # the last was not run
        write(config, {}, status=status)
    for config in configs:
        launch.run_folder(config).mkdir(parents=True)
        (launch.run_folder(config) / "config.yaml").touch()
    figures.spectrum_path(configs[0]).parent.mkdir()
    figures.spectrum_path(configs[0]).touch()
    asked = []
    monkeypatch.setattr(runner.subprocess, "run", lambda command, **_: asked.append(command[4]))
    runner.measure_spectra(specs)
    assert asked == [str(launch.run_folder(configs[1]))]


def test_two_suites_on_one_folder_share_the_runs(tmp_path, monkeypatch):
    """One run is held by another process, which ends it later: this suite does the others, waits, and starts it never."""
    monkeypatch.setenv("MORA_OUTPUT_DIR", str(tmp_path / "outputs"))
    monkeypatch.setattr(source, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "POLL_S", 0.05)
    monkeypatch.setattr(runner, "interrupt_on_sigterm", lambda: None)
    specs = [row[0] for row in experiments.cell_specs(experiments.load("table2"), "smoke")]
    elsewhere, *ours = (resolve(spec).final_runs[0] for spec in specs)
    started = []

    def fake(config, output, env):
        started.append(run_id(config))
        write(config, {})
        return 0

    monkeypatch.setattr(runner, "launch", fake)
    folder = launch.run_folder(elsewhere)
    folder.mkdir(parents=True)
    lock = open(folder / ".lock", "w")  # noqa: SIM115, the thread below closes it
    fcntl.flock(lock, fcntl.LOCK_EX)

    def end_elsewhere():
        while len(started) < len(ours):
            time.sleep(0.01)
        write(elsewhere, {})
        lock.close()

    other = threading.Thread(target=end_elsewhere)
    other.start()
    assert runner.complete(specs, jobs=2) == []
    other.join()
    assert sorted(started) == sorted(run_id(config) for config in ours)


def test_final_runs_do_not_wait_for_the_searches_of_other_cells(tmp_path, monkeypatch):
    """The last search of the second cell lasts until a final run of the first is done."""
    monkeypatch.setenv("MORA_OUTPUT_DIR", str(tmp_path / "outputs"))
    monkeypatch.setattr(source, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "interrupt_on_sigterm", lambda: None)
    specs = [row[0] for row in experiments.cell_specs(experiments.load("table2"), "lite") if row[0].search_runs][:2]
    slow, first_final = run_id(specs[1].search_runs[-1]), threading.Event()
    searches = {run_id(c) for spec in specs for c in spec.search_runs}
    done = []

    def fake(config, output, env):
        if run_id(config) == slow:
            assert first_final.wait(20)
        write(config, {specs[0].experiment.selection: 1.0})
        done.append(run_id(config))
        if run_id(config) not in searches:
            first_final.set()
        return 0

    monkeypatch.setattr(runner, "launch", fake)
    assert runner.complete(specs, jobs=2) == []
    assert sorted(done) == sorted({run_id(c) for spec in specs for c in (*spec.search_runs, *resolve(spec).final_runs)})
    assert done.index(slow) > min(done.index(run_id(c)) for c in resolve(specs[0]).final_runs)


def test_a_run_that_lost_a_race_for_its_folder_has_not_failed(tmp_path, monkeypatch):
    monkeypatch.setenv("MORA_OUTPUT_DIR", str(tmp_path / "outputs"))
    monkeypatch.setattr(source, "ROOT", tmp_path)
    config = resolve(cells_of("table2", "smoke")[0]).final_runs[0]

    def lost(config, output, env):
        output.write(f"mora.train: {launch.run_folder(config)} {IN_USE} (pid 1): wait for it\n")
        return 2

    monkeypatch.setattr(runner, "launch", lost)
    assert runner._run(config, GpuSlots(1, [])) == 0
    monkeypatch.setattr(runner, "launch", lambda config, output, env: 1)
    (launch.run_folder(config) / "output.txt").unlink()
    assert runner._run(config, GpuSlots(1, [])) == 1


def test_pretraining_at_lite_scale_is_run_once_and_judged_after_a_restart():
    def runs(name):
        return {run_id(config) for spec in cells_of(name, "lite") for config in spec.search_runs}

    searches = [config for spec in cells_of("table3", "lite") for config in spec.search_runs]
    assert runs("figure4") == runs("table3")
    assert runs("figure5") < runs("table3")
    restarting = [config for config in searches if config.method.restart]
    assert restarting
    for config in restarting:
        assert config.method.restart.every_steps + config.method.restart.warmup_steps < config.last_step


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("rates", {"first": [1e-3], "frist": [1e-3]}, "rates: there is no column 'frist'; there are first, second"),
        ("columns", ["third"], "columns: there is no column 'third'; there are first, second"),
        ("without", ["uiud"], "without: there is no task 'uiud'; there are uuid"),
        ("more_seeds", {"c4": [3]}, "more_seeds: there is no task 'c4'; there are uuid"),
    ],
)
def test_a_row_that_names_what_is_not_in_the_table_is_refused(field, value, complaint):
    columns = [{"name": name, "task": "uuid", "metric": "uuid_char_acc"} for name in ("first", "second")]
    scales = {"smoke": {"seeds": [0], "rows": [{"method": "lora", "r": 8, field: value}]}}
    values = {"title": "A table", "kind": "table", "columns": columns, "scales": scales}
    with pytest.raises(ConfigError, match=f"a row of method lora: {complaint}"):
        experiments.checked("table9", values)
