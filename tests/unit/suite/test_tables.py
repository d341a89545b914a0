"""Tables from results made up for the test: what is complete and usable is shown, the rest is "not run"."""

import csv
import math
import re
from types import SimpleNamespace

import pytest
from made_up import write
from matplotlib.mathtext import MathTextParser

from mora.config import source
from mora.config.run_id import format_lr
from mora.config.source import ROOT
from mora.results import Metric, RunResult, typed
from mora.suite import experiments, latex, tables
from mora.suite.cell_specs import cell_specs
from mora.suite.cells import CellNumbers, resolve, resolve_all, steps_to
from mora.suite.tables import Entry

GIB = 2**30
STEPS = (300, 500, 700, 900)
SQUARES = (("lora", {}), ("mora", {}), ("mora", {"operator": "rotation"}))


def row_of(name, scale, **wanted):
    rows = cell_specs(experiments.load(name), scale)
    return next(row for row in rows if row[0].row.model_dump(exclude_defaults=True) == wanted)


@pytest.fixture
def row(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "ROOT", tmp_path)
    return row_of("table2", "lite", method="lora", r=1)


def write_uuid(run, value_nll, accuracy=0.5, **more):
    write(run, {"uuid_char_acc": accuracy, "value_nll": value_nll}, steps=STEPS, **more)


def test_the_rate_with_the_lowest_selection_metric_is_chosen_once_all_are_there(row):
    spec = row[0]
    search = spec.search_runs
    assert {c.last_step for c in search} == {300}
    for config, nll in zip(search[:2], (3.0, 1.0), strict=True):
        write_uuid(config, nll)
    assert resolve(spec).selected is None
    assert resolve(spec).final_runs == []
    for config in search[2:]:
        write_uuid(config, 0.5, status="diverged")
    assert resolve(spec).selected.lr == search[1].lr
    assert [(c.seed, c.lr, c.last_step) for c in resolve(spec).final_runs] == [
        (s, search[1].lr, 1000) for s in (0, 1, 2)
    ]


@pytest.mark.parametrize("broken", [{"status": "diverged"}, {"value_nll": "nan"}, {"value_nll": "inf"}])
def test_a_search_run_without_a_number_never_wins_and_is_taken_where_there_is_no_other(row, broken):
    spec = row[0]
    search = spec.search_runs
    for config in search:
        write_uuid(config, **{"value_nll": 2.0} | broken)
    assert {score for _, score in resolve(spec).choice.scores} == {"diverged"}
    assert [config.lr for config in resolve(spec).final_runs] == [search[0].lr] * 3
    write_uuid(search[2], 9.0)
    assert resolve(spec).selected.lr == search[2].lr


def test_a_search_of_changed_source_enters_no_table(row, tmp_path):
    spec = row[0]
    for i, config in enumerate(spec.search_runs):
        write_uuid(config, 1.0 + i, dirty=i == 1)
    assert resolve(spec).selected is None, "a run of changed source takes no part in the choice"
    write_uuid(spec.search_runs[1], 2.0)
    for config in resolve(spec).final_runs:
        write_uuid(config, 1.0)
    assert resolve(spec).numbers.values == (50.0,) * 3
    write_uuid(spec.search_runs[1], 0.1, dirty=True)
    assert resolve(spec).numbers.values is None
    text = tables.render("table2", spec.experiment, resolve_all([row]), "lite", tmp_path / "out").read_text()
    assert text.count("not run") == 4 + 1


def test_a_cell_takes_the_seeds_that_were_run_on_committed_source_and_says_how_many(row, tmp_path):
    spec = row[3]
    for i, config in enumerate(spec.search_runs):
        write_uuid(config, 1.0 if i == 1 else 3.0 + i)
    finals = resolve(spec).final_runs
    assert resolve(spec).numbers.values is None
    for config, accuracy in zip(finals[:2], (0.4, 0.5), strict=True):
        write_uuid(config, 1.0, accuracy)
    smoke = finals[2].model_dump(mode="json") | {"scale": {"name": "smoke"}}
    for unusable in ({"dirty": True}, {"dirty": None}, {"status": "failed"}, {"config": smoke}):
        write_uuid(finals[2], 1.0, 0.9, **unusable)
        assert resolve(spec).numbers.values == pytest.approx([40, 50])
    path = tables.render("table2", spec.experiment, resolve_all([row]), "lite", tmp_path / "out")
    assert "| LoRA r=1 (the paper's 8) | 1,234 | 9.9 \\| 45.0 +- 7.1 (2 of 3) |" in path.read_text()
    write_uuid(spec.search_runs[-1], 9.0, dirty=True)
    assert resolve(spec).numbers.values is None, "a search that is not whole chooses nothing"
    write_uuid(spec.search_runs[-1], 9.0)
    write_uuid(finals[2], 1.0, 0.6)
    assert resolve(spec).numbers.values == pytest.approx([40, 50, 60])
    path = tables.render("table2", spec.experiment, resolve_all([row]), "lite", tmp_path / "out")
    first, best, *_ = (format_lr(config.lr) for config in spec.search_runs)
    assert "| LoRA r=1 (the paper's 8) | 1,234 | 9.9 \\| 50.0 +- 10.0 (3) |" in path.read_text()
    assert f"{first}: 3, {best}: 1 (chosen), " in path.read_text()
    assert "nothing was run" not in path.read_text()
    shown = "LoRA r=1 (the paper's 8) & 1,234 & 9.9 $\\vert$ 50.0 $\\pm$ 10.0 (3) &"
    assert shown in path.with_suffix(".tex").read_text()
    line = path.with_suffix(".csv").read_text().splitlines()[1]
    reached = '"> 1000, > 1000, > 1000"'
    assert line.startswith(
        f"lora,1,,step_300,uuid,,{best},9.9,50.0000,10.0000,3,3,,,not tested,1234,,,,,{reached},40.0000 50.0000 60.0000,"
    )
    write_uuid(spec.search_runs[0], 0.5)
    path = tables.render("table2", spec.experiment, resolve_all([row]), "lite", tmp_path / "out")
    assert f"{first}: 0.5 (chosen, at the edge of the grid), {best}: 1, " in path.read_text()


def test_a_table_says_with_which_versions_its_cells_were_made(row, tmp_path):
    for i, config in enumerate(row[0].search_runs):
        write_uuid(config, float(i))
    for config, torch in zip(resolve(row[0]).final_runs, ("2.11.0", "2.13.0+my_build", "2.11.0"), strict=True):
        write_uuid(config, 1.0, packages={"torch": torch, "peft": "0.21.0", "numpy": "2.5.2"})
    path = tables.render("table2", row[0].experiment, resolve_all([row]), "lite", tmp_path / "out")
    made = [line for line in path.read_text().splitlines() if line.startswith("Made with")]
    assert made == ["Made with torch 2.11.0, peft 0.21.0.", "Made with torch 2.13.0+my_build, peft 0.21.0."]
    _, below = path.with_suffix(".tex").read_text().split("\\bottomrule\n")
    assert below.splitlines() == [
        "\\multicolumn{10}{l}{\\footnotesize Made with torch 2.11.0, peft 0.21.0.} \\\\",
        "\\multicolumn{10}{l}{\\footnotesize Made with torch 2.13.0+my\\_build, peft 0.21.0.} \\\\",
        "\\end{tabular}",
    ]


def test_a_row_that_was_not_run_says_so(row, tmp_path):
    text = tables.render("table2", row[0].experiment, resolve_all([row]), "lite", tmp_path / "out").read_text()
    assert text.count("| not run") == 4
    assert text.endswith("\nSearches not run: 1.\n")
    assert "| LoRA r=1 (the paper's 8) | 305,280 |" in text


def test_an_effect_is_over_lora_at_the_same_rank_beside_the_papers(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "ROOT", tmp_path)
    rows = [row_of("table2", "lite", method=method, r=1) for method in ("lora", "mora")]
    for row, accuracy in zip(rows, (0.3, 0.5), strict=True):
        for i, config in enumerate(row[0].search_runs):
            write_uuid(config, float(i))
        for config in resolve(row[0]).final_runs:
            write_uuid(config, 1.0, accuracy, speed={"step_s": 0.2}, hardware={"peak_memory_bytes": 3 * 2**30})
    path = tables.render("table2", rows[0][0].experiment, resolve_all(rows), "lite", tmp_path / "out")
    lora, mora = path.read_text().splitlines()[6:8]
    assert lora.startswith("| LoRA r=1 (the paper's 8) | 1,234 | 9.9 \\| 30.0 +- 0.0 (3) | 10.0 \\|")
    assert mora.startswith("| MoRA r=1 (the paper's 8) | 1,234 | 10.1 \\| 50.0 +- 0.0 (3) \\| +0.2; +20.0 | 15.7 \\|")
    assert mora.endswith(" | > 1000, > 1000, > 1000 | ~200 | ~3.0 |")
    assert "$\\vert$ +0.2; +20.0 &" in path.with_suffix(".tex").read_text()


def test_an_effect_is_over_the_seeds_that_both_have_whatever_else_the_rows_differ_in(tmp_path, monkeypatch):
    """LoRA has more seeds of one task than DoRA."""
    monkeypatch.setattr(source, "ROOT", tmp_path)
    rows = [row for row in cell_specs(experiments.load("table1"), "mid") if row[0].row.r == 4]
    (lora,), (dora,) = ([row for row in rows if row[0].row.method == method] for method in ("lora", "dora"))
    for spec, scores in ((lora[2], (0.5, 0.6, 0.7)), (dora[2], (0.52, 0.62))):
        for config in spec.search_runs:
            write(config, {"validation_loss": abs(config.lr - 1e-3)})
        for config in resolve(spec).choice.missing:
            write(config, {"validation_loss": 1.0})
        for config, score in zip(resolve(spec).final_runs, scores, strict=False):
            write(config, {"metamath_gsm8k.score": score})
    assert lora[2].row.more_seeds != dora[2].row.more_seeds
    assert tables.entry_of(resolve_all([lora, dora]), 1, 2).effect == pytest.approx(2.0)
    with_settings = lora[2].row.model_copy(update={"settings": ["method.adapter.freeze_a=true"]})
    assert not tables._is_baseline(with_settings, 4)


def test_time_and_memory_stand_in_the_order_of_the_tasks(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "ROOT", tmp_path)
    row = row_of("table1", "paper", method="fft")
    for i in (2, 4):  # mathematics and biomedicine, of four tasks
        write(
            resolve(row[i]).final_runs[0],
            {},
            speed={"step_s": 0.2},
            hardware={"train_peak_memory_bytes": 3 * GIB, "peak_memory_bytes": 3 * GIB},
        )
    assert tables.further_columns(row[0].experiment, [resolve(spec) for spec in row]) == [
        "-",
        "- / ~200 / ~200 / -",
        "- / 3.0 / 3.0 / -",
    ]
    assert tables.further_columns(row[0].experiment, [resolve(row[0])]) == ["-", "-", "-"]


def test_a_column_of_one_of_the_papers_ranks_names_ours():
    heads = {
        scale: tables.heading(e, resolve_all(cell_specs(e, scale)))[2:4]
        for e in [experiments.load("table4")]
        for scale in ("paper", "mid")
    }
    assert heads == {"paper": ["r8", "r256"], "mid": ["r8 (here 4)", "r256 (here 96)"]}


@pytest.mark.parametrize(
    ("in_training", "shown"),
    [((2, 2, 1), "2.0"), ((2, None, 1), "~3.0"), ((None, None, None), "~3.0")],
    ids=["all recorded", "one has not", "none"],
)
def test_the_memory_is_that_of_training_where_all_runs_have_it(in_training, shown):
    """Scoring takes as much with every method, and often more than training."""
    runs = [
        RunResult.model_construct(
            hardware={"peak_memory_bytes": 3 * GIB, "train_peak_memory_bytes": peak and peak * GIB}
        )
        for peak in in_training
    ]
    assert tables._gib(SimpleNamespace(results=[(None, run) for run in runs])) == shown
    assert tables._gib(SimpleNamespace(results=[(None, RunResult.model_construct(hardware={}))])) == ""


def test_a_cell_at_the_floor_is_set_apart(row, tmp_path):
    for i, config in enumerate(row[0].search_runs):
        write_uuid(config, float(i))
    for config in resolve(row[0]).final_runs:
        write(config, {"uuid_char_acc": 0.1, "uuid_char_acc_stderr": 0.01, "documents": 1000.0}, steps=STEPS)
    path = tables.render("table2", row[0].experiment, resolve_all([row]), "lite", tmp_path / "out")
    assert "| *9.9 \\| 10.0 +- 0.0 (3)* |" in path.read_text()
    assert "\\textcolor{gray}{9.9 $\\vert$ 10.0 $\\pm$ 0.0 (3)}" in path.with_suffix(".tex").read_text()


@pytest.mark.parametrize(
    ("known", "floor"),
    [
        ({"uuid_char_acc_stderr": 0.002, "documents": 1000.0}, ""),  # ten standard errors above 9.8%
        ({"uuid_char_acc_stderr": 0.02}, "at"),
        ({}, "not tested"),
    ],
)
def test_a_floor_is_told_by_the_score_s_own_error_of_whichever_run_has_one(row, tmp_path, known, floor):
    for i, config in enumerate(row[0].search_runs):
        write_uuid(config, float(i))
    finals = resolve(row[0]).final_runs
    for config, facts in zip(finals, ({}, {}, known), strict=True):
        write(config, {"uuid_char_acc": 0.12, **facts}, steps=STEPS)
    path = tables.render("table2", row[0].experiment, resolve_all([row]), "lite", tmp_path / "out")
    with open(path.with_suffix(".csv")) as file:
        assert {line["floor"] for line in csv.DictReader(file)} == {floor}


@pytest.mark.parametrize(
    ("accuracies", "step"), [({50: 0.5, 100: 0.9}, None), ({50: 0.5, 100: 0.9, 150: 1.0}, 145.0), ({50: 1.0}, 50.0)]
)
def test_the_step_of_a_level_lies_between_measurements(accuracies, step):
    metrics = {at: {"value_token_acc": Metric(value=value)} for at, value in accuracies.items()}
    assert steps_to(metrics, "value_token_acc", 0.99) == (step and pytest.approx(step))


def test_a_diverged_run_is_the_worst_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "ROOT", tmp_path)
    spec = row_of("table3", "paper", method="mora", r=128)[0]
    write(resolve(spec).final_runs[0], {}, status="diverged")
    assert resolve(spec).numbers.values == (float("inf"),)
    write(resolve(spec).final_runs[0], {"c4_perplexity.score": "inf", "c4_perplexity.score_stderr": "nan"})
    assert resolve(spec).numbers == CellNumbers(28.54, (float("inf"),))
    spec = row_of("table1", "paper", method="fft")[2]
    write(resolve(spec).final_runs[0], {}, status="diverged")
    assert resolve(spec).numbers.values == (0.0,)


def test_one_row_spans_tasks(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "ROOT", tmp_path)
    row = row_of("table1", "paper", method="fft")
    metrics = {"metamath_gsm8k.score": 0.60, "metamath_gsm8k.score_stderr": 0.01, "metamath_math.score": 0.2}
    write(resolve(row[2]).final_runs[0], metrics)
    text = tables.render("table1", row[0].experiment, resolve_all([row]), "paper", tmp_path / "out").read_text()
    assert "| 50.6 \\| not run | 51.3 \\| not run | 66.6 \\| 60.0 (1) | 20.1 \\| 20.0 (1) |" in text


def test_scores_stand_with_their_error_documents_floor_and_validation_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "ROOT", tmp_path)
    row = row_of("table1", "lite", method="none")
    write(resolve(row[0]).final_runs[0], scores("mmlu_tulu_0shot", 0.26, floor=0.255))
    write(resolve(row[2]).final_runs[0], scores("metamath_gsm8k", 0.04))
    text = tables.render("table1", row[0].experiment, resolve_all([row]), "lite", tmp_path / "out").read_text()
    assert "| untuned | 1,234 / 0 | *- \\| 26.0 (1)* |" in text
    assert "| mmlu_0shot | untuned | - | 0 | 2.5000 | 1,000 | 26.0 +- 1.0 | 25.5 = |" in text
    assert "| gsm8k | untuned | - | 0 | 2.5000 | 1,000 | 4.0 +- 1.0 | 0.0 |" in text


def column(metric):
    return experiments.Column(name="a column", task="a task", metric=metric)


@pytest.mark.parametrize(("score", "marked"), [(0.284, True), (0.286, False)])
def test_a_run_s_score_is_at_its_floor_up_to_three_standard_errors_above(score, marked):
    line = tables._score(
        column("mmlu_tulu_0shot.score"), typed(scores("mmlu_tulu_0shot", score, floor=0.255)), "percent"
    )
    assert line.endswith("| 25.5 =" if marked else "| 25.5")


def test_answered_texts_and_gold_answers_stand_beside_a_score():
    facts = scores("metamath_math500", 0.04, answered=0.5, score_if_answered=0.08)
    metrics = typed(facts)
    assert tables._score_notes("metamath_math500", metrics) == " (50.0% answered, 8.0% of these right)"
    metrics = typed(facts | scores("metamath_math_gold", 0.9))
    line = tables._score(column("metamath_math500.score"), metrics, "percent")
    assert line.endswith(
        "| 4.0 +- 1.0 (50.0% answered, 8.0% of these right; gold answers 0.900 +- 0.010 nats per token) | 0.0"
    )
    assert tables._score_notes("metamath_gsm8k", typed(scores("metamath_gsm8k", 0.0, answered=0.0))).startswith(
        " (0.0% answered"
    )


def test_a_row_of_mora_shows_the_side_of_m_and_the_inputs_that_it_ignores(tmp_path):
    rows = resolve_all([row_of("table2", "lite", method=m, r=1, **more) for m, more in SQUARES])
    path = tables.render("table2", rows[0][0].spec.experiment, rows, "lite", tmp_path)
    shown = [line.split(" | ")[6] for line in path.read_text().splitlines() if line.startswith(("| LoRA", "| MoRA"))]
    assert shown == ["-", "0.057, 0%", "0.056, 33%"]
    assert "& 0.056, 33\\% &" in path.with_suffix(".tex").read_text()
    with open(path.with_suffix(".csv")) as file:
        lines = [(line["r_hat_over_d"], line["inputs_ignored"]) for line in csv.DictReader(file)]
    assert lines[:: len(rows[0])] == [("", ""), ("0.0573", "0.0000"), ("0.0556", "0.3317")]


def test_a_perplexity_is_not_a_share():
    metrics = typed(scores("c4_perplexity", 55.268))
    line = tables._score(column("c4_perplexity.score"), metrics, "perplexity")
    assert line == "2.5000 | 1,000 | 55.27 +- 0.01 | -"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (None, "$-$"),
        (Entry(CellNumbers(None, None), None, None, False), "$-$ $\\vert$ not run"),
        (Entry(CellNumbers(100.0, (math.inf, 3.0)), None, None, False), "100 $\\vert$ diverged (2)"),
        (Entry(CellNumbers(None, (50.0,)), None, None, False), "$-$ $\\vert$ 50.0 (1)"),
        (Entry(CellNumbers(50.0, (49.0,)), 1.0, -1.0, False), "50.0 $\\vert$ 49.0 (1) $\\vert$ +1.0; $-$1.0"),
        (Entry(CellNumbers(50.0, (52.0,)), None, 2.0, False), "50.0 $\\vert$ 52.0 (1) $\\vert$ $-$; +2.0"),
        (Entry(CellNumbers(50.0, (52.0,)), None, None, True), "\\textcolor{gray}{50.0 $\\vert$ 52.0 (1)}"),
    ],
)
def test_a_cell_in_latex_says_what_it_says_in_markdown(shown, expected):
    assert tables._latex_cell(shown, 1) == expected


@pytest.mark.parametrize("path", sorted((ROOT / "results/tables").glob("*.md")), ids=lambda p: p.stem)
def test_every_table_is_there_as_latex_that_can_be_set(path):
    """Without LaTeX: the columns are as many as were declared, braces are balanced, and matplotlib reads the mathematics."""
    comments, table = path.with_suffix(".tex").read_text().split("\\begin{tabular}")
    assert all(line.startswith("% ") for line in comments.splitlines())
    table, below = table.removesuffix("\\end{tabular}\n").split("\\bottomrule\n")
    alignment, _, rows = table.partition("\n\\toprule\n")
    columns = len(alignment.strip("{}"))
    made = [latex.escape(line) for line in re.findall(r"(?m)^Made with .*", path.read_text())]
    assert below == "".join(f"\\multicolumn{{{columns}}}{{l}}{{\\footnotesize {line}}} \\\\\n" for line in made)
    head, *lines = rows.replace("\\midrule\n", "").splitlines()
    assert len(lines) == len(re.findall(r"(?m)^\|.*", path.read_text().split("|---|\n")[1].split("\n\n")[0]))
    for line in (head, *lines):
        assert line.endswith(" \\\\")
        plain = re.sub(r"\\textcolor\{gray\}\{([^{}]*)\}", r"\1", line)
        plain = re.sub(r"\\[_%&#${}]", "", plain.removesuffix("\\\\"))
        text, *mathematics = re.sub(r"\$([^$]*)\$", "", plain), *re.findall(r"\$[^$]*\$", plain)
        assert text.count("&") == columns - 1
        assert not set(text) & set("\\$%#_{}^~")
        for formula in {*mathematics}:
            MathTextParser("path").parse(formula)


def scores(task, score, **facts):
    values = {"score": score, "score_stderr": 0.01, "documents": 1000.0, **facts}
    return {"validation_loss": 2.5, **{f"{task}.{name}": value for name, value in values.items()}}
