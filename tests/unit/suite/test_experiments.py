"""Every cell of every table and figure at every scale can be run, and some of them can be chosen."""

import csv
import functools
import hashlib
import sys

import pytest
import yaml
from all_cells import CELLS, NAMES, cells_of
from made_up import write

from mora.config import ConfigError, run_id
from mora.config.run_id import result_path
from mora.config.source import ROOT
from mora.errors import DamagedFileError
from mora.sizes import auto_operator
from mora.suite import __main__ as suite
from mora.suite import experiments, launch, tables
from mora.suite.cell_specs import cell_specs
from mora.suite.cells import resolve

SHA256 = "b3db7eb9edfaa38d0917c5b5fcff75b84eeae963ca1cc50276f86d699be97e06"


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


def test_the_experiments_are_the_tables_and_figures_of_the_paper_and_three_of_ours():
    expected = [*(f"figure{n}" for n in (2, 3, 4, 5)), "figure_restarts", "memory"]
    expected += [*(f"table{n}" for n in range(1, 8)), "table_merging", "table_restarts"]
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
    words = [run.overrides for run in resolve(stale).planned_search_runs]
    assert words, "what a queue is given for a search"
    assert not any("stale" in word for run in words for word in run)
    assert all("method.restart.stale_masters=true" in run.overrides for run in resolve(stale).planned_final_runs)


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


def test_the_untouched_model_is_scored_once_and_searches_score_nothing(nothing_measured):
    for spec in cells_of("table1", "lite"):
        if spec.row.method == "none":
            assert [config.seed for config in resolve(spec).needed] == [0]
        for config in spec.search_runs:
            assert (config.task.train.shorten_by, config.task.evaluation.tasks) == (3, [])


@pytest.mark.parametrize(
    ("name", "scale"), [("table1", "mid"), ("table2", "lite"), ("table3", "lite"), ("table2", "paper")]
)
def test_a_search_leaves_no_model_unless_its_runs_are_final_runs(name, scale, nothing_measured):
    searched = [spec for spec in cells_of(name, scale) if spec.exists and spec.search_runs]
    assert searched
    for spec in searched:
        final = spec.run(spec.search_space[0], spec.seeds[0])
        assert final.hardware.save_model
        for config in spec.search_runs:
            assert config.hardware.save_model == (scale == "paper")
        assert (run_id(final) == run_id(spec.search_runs[0])) == (scale == "paper")


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


def own_table(row=None, column=None, **at_scale):
    """Return the values of an experiment of one row and one column, with those fields."""
    column = {"name": "first", "task": "uuid", "metric": "uuid_char_acc"} | (column or {})
    at = {"seeds": [0], "rows": [{"method": "lora", "r": 8} | (row or {})]} | at_scale
    return {"title": "A table", "kind": "table", "columns": [column], "scales": {"smoke": at}}


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"row": {"settings": ["lr=0.25"]}}, "row of method lora: settings: lr=0.25: give it as the row's rates"),
        ({"row": {"settings": ["+seed=77"]}}, r"settings: \+seed=77: give it as the seeds of the scale"),
        ({"row": {"settings": ["method=mora"]}}, "settings: method=mora: give it as the row's method"),
        ({"row": {"settings": ["r=4"]}}, "settings: r=4: give it as the row's r"),
        (
            {"column": {"overrides": ["scale=lite"]}},
            "column first: overrides: scale=lite: give it as a scale of the exp",
        ),
        ({"search": ["task=c4"]}, "search: task=c4: give it as the column's task"),
        ({"seeds": []}, "seeds.* at least 1 item"),
        ({"rows": []}, "rows.* at least 1 item"),
        ({"seeds": [0, 0]}, "seed 0 is named twice"),
        ({"seeds": [0, 1], "row": {"more_seeds": {"uuid": [1]}}}, "seed 1 is named twice"),
    ],
)
def test_a_table_that_would_name_or_count_its_runs_wrongly_is_refused(values, complaint):
    with pytest.raises(ConfigError, match=complaint):
        experiments.checked("table9", own_table(**values))


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("method.adapter.dropout=0.1", "dropout=0.1"),
        ("method.adapter.dropout=1.0e-1", "dropout=1.0e-1"),
        ("method.restart=null", "restart=null"),
    ],
)
def test_a_rows_label_ends_with_its_settings(setting, shown):
    table = experiments.checked("table9", own_table(row={"settings": [setting]}))
    ((spec,),) = cell_specs(table, "smoke")
    assert spec.label == f"LoRA r=8, {shown}"


def test_rows_that_differ_in_their_settings_alone_differ_in_the_csv():
    path = ROOT / "results" / "tables" / "table_restarts-mid.csv"
    with path.open(newline="") as file:
        rows = [
            (row["method"], row["r"], row["operator"], row["setting"], row["column"]) for row in csv.DictReader(file)
        ]
    assert len(rows) == len(set(rows)) > 10


@pytest.mark.parametrize(("step", "measured"), [(50, True), (300, True), (7, False), (350, False)])
def test_a_column_of_a_step_at_which_nothing_is_measured_is_refused_before_a_run(step, measured):
    table = experiments.checked("table9", own_table(column={"step": step}))
    ((spec,),) = cell_specs(table, "smoke")
    if measured:
        assert spec.config.measures_at(step)
    else:
        with pytest.raises(
            ConfigError, match=f"column first, scale smoke: nothing is measured at step {step} of 300: "
        ):
            _ = spec.config


def test_a_selection_that_is_no_loss_is_refused():
    with pytest.raises(ConfigError, match="selection='value_nl': input should be 'validation_loss' or 'value_nll'"):
        experiments.checked("table9", own_table() | {"selection": "value_nl"})


@pytest.mark.parametrize(
    ("metric", "why"),
    [
        ("uuid_char_accuracy", r"tasks=\['uuid'\] do not measure it: expected one of .*; did you mean uuid_char_acc"),
        ("metamath_gsm8k.score", r"tasks=\['uuid'\] do not measure it: expected one of merged_validation_loss, "),
        ("value_nll", "of unit percent, which shows shares times 100, expected a metric that grows"),
    ],
)
def test_a_metric_that_is_not_measured_or_no_share_is_refused_before_a_run(metric, why):
    table = experiments.checked("table9", own_table(column={"metric": metric}))
    ((spec,),) = cell_specs(table, "smoke")
    with pytest.raises(ConfigError, match=f"column first, scale smoke: metric {metric}: .*{why}"):
        _ = spec.config


@pytest.mark.parametrize(
    ("metric", "kind", "settings"),
    [
        ("metamath_gsm8k.score", "table", ["task.evaluation.tasks=[]"]),
        ("arc_easy.acc", "table", ["task.evaluation.tasks=[]"]),
        ("arc_easy.acc", "table", ["task.evaluation.tasks=[arc_easy]"]),
        ("value_nll", "memory", []),
    ],
)
def test_a_metric_whose_task_is_left_out_on_purpose_or_that_is_not_shown_is_no_mistake(metric, kind, settings):
    table = experiments.checked("table9", own_table(column={"metric": metric, "overrides": settings}) | {"kind": kind})
    ((spec,),) = cell_specs(table, "smoke")
    assert spec.config.task.name == "uuid"


@pytest.mark.parametrize(
    ("name", "shown"),
    [("table2", "Table 2"), ("figure5", "Figure 5"), ("memory", "Memory"), ("table_merging", "Table: merging")],
)
def test_an_experiments_name_is_written_with_its_number_or_what_it_is_about(name, shown):
    assert experiments.number_of(name) == shown
