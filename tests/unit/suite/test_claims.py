"""The ledger's verdicts on results made up for the test, and that every claim names rows and columns that there are."""

import json
import math

import pytest
from made_up import write

from mora.config import source
from mora.suite import claims, figures
from mora.suite import experiment as experiments
from mora.suite.cells import Cell, resolve, resolve_all
from mora.suite.claims import PAGE, Claim, Interval, difference, judge

FASTER = {
    "says": "MoRA is faster",
    "where": "a test",
    "experiment": "table2",
    "columns": ["step_500"],
    "order": [[{"method": "mora", "r": 8}, {"method": "lora", "r": 8}]],
}


@pytest.fixture(autouse=True)
def nothing_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "ROOT", tmp_path)


def measure(scale, row, accuracies, at_300=None, chosen=0):
    """Every run of the row: the search, which chooses that rate, and one final run a seed with the accuracy of that seed."""
    rows = experiments.grids(experiments.load("table2"), scale)
    grid = next(g for r in rows for g in r if (g.row.method, g.row.r, g.row.operator) == (*row, None))
    for i, config in enumerate(grid.search):
        write(config, {"value_nll": abs(i - chosen)}, steps=(300, 500, 700, 900))
    for config, accuracy in zip(resolve(grid).final, accuracies, strict=True):
        path = write(config, {"value_nll": config.lr, "uuid_char_acc": accuracy}, steps=(300, 500, 700, 900))
        if at_300 is not None:
            result = json.loads(path.read_text())
            result["metrics"]["300"]["uuid_char_acc"] = at_300
            path.write_text(json.dumps(result))


@pytest.mark.parametrize(
    ("mora", "lora", "expected"),
    [
        ((0.90, 0.91, 0.92), (0.50, 0.51, 0.52), "shown"),
        ((0.50, 0.51, 0.52), (0.90, 0.91, 0.92), "contradicted"),
        ((0.50, 0.90, 0.70), (0.60, 0.65, 0.70), "undecided"),
    ],
)
def test_an_order_is_judged_over_seeds(mora, lora, expected):
    claim = Claim.model_validate(FASTER)
    assert claims.verdict(claim, "lite") == "not run"
    measure("lite", ("mora", 1), mora)
    assert claims.verdict(claim, "lite") == "not run"
    measure("lite", ("lora", 1), lora)
    assert claims.verdict(claim, "lite") == expected
    assert claims.verdict(claim, "paper") == "not run"


def test_the_interval_is_that_of_a_t_test_at_the_smaller_sample():
    a, b = Cell(None, (52.0, 53.0, 54.0)), Cell(None, (50.0, 50.0, 50.0))
    half = 4.303 * math.sqrt(1 / 3)
    assert difference(a, b) == pytest.approx((3 - half, 3 + half))
    assert difference(a, b, higher_is_better=False) == pytest.approx((-3 - half, -3 + half))


def test_the_fewer_seeds_of_the_two_decide():
    half = 12.706 * math.sqrt(1 / 3 + 0.5 / 2)
    assert difference(Cell(None, (52.0, 53.0, 54.0)), Cell(None, (50.0, 51.0))) == pytest.approx(
        (2.5 - half, 2.5 + half)
    )


@pytest.mark.parametrize(
    ("kind", "mora", "lora", "expected"),
    [
        ("equal", (0.50, 0.51, 0.52), (0.51, 0.52, 0.53), "shown"),
        ("equal", (0.90, 0.91, 0.92), (0.51, 0.52, 0.53), "contradicted"),
        ("not_worse", (0.50, 0.51, 0.52), (0.51, 0.52, 0.53), "shown"),
        ("not_worse", (0.90, 0.91, 0.92), (0.51, 0.52, 0.53), "shown"),
        ("not_worse", (0.50, 0.51, 0.52), (0.90, 0.91, 0.92), "contradicted"),
    ],
)
def test_a_margin_is_allowed_to_both_sides_or_below_alone(kind, mora, lora, expected):
    claim = {key: value for key, value in FASTER.items() if key != "order"} | {kind: FASTER["order"], "margin": 5.0}
    measure("lite", ("mora", 1), mora)
    measure("lite", ("lora", 1), lora)
    assert claims.verdict(Claim.model_validate(claim), "lite") == expected


@pytest.mark.parametrize(
    ("mora", "lora", "counting", "all_columns"),
    [
        ((0.99, 0.995, 1.0), (0.99, 0.995, 1.0), "shown", "undecided"),  # both know everything at step 500
        ((0.98, 0.98, 0.98), (1.0, 1.0, 1.0), "contradicted", "contradicted"),
        ((0.98, 0.99, 1.0), (0.98, 0.97, 0.98), "undecided", "undecided"),
    ],
)
def test_a_column_where_both_are_saturated_does_not_count(mora, lora, counting, all_columns):
    claim = Claim.model_validate(FASTER | {"columns": ["step_300", "step_500"]})
    measure("lite", ("mora", 1), mora, at_300=0.9)
    assert claims.verdict(claim.model_copy(update={"saturated": 99}), "lite") == "not run"
    measure("lite", ("lora", 1), lora, at_300=0.5)
    assert claims.verdict(claim.model_copy(update={"saturated": 99}), "lite") == counting
    assert claims.verdict(claim, "lite") == all_columns
    nothing_left = claim.model_copy(update={"saturated": 50})
    assert claims.verdict(nothing_left, "lite") == "undecided"
    of_another_scale = claim.model_copy(update={"columns": ["step_1"]})
    assert claims.verdict(of_another_scale, "lite") == "not run"


def test_a_spectrum_is_the_mean_over_the_kinds_of_modules():
    grid = experiments.grids(experiments.load("figure5"), "lite")[0][0]
    for config in (*grid.search, *resolve(grid).final):
        write(config, {"validation_loss": config.lr})
    for config in resolve(grid).final:
        write(config, {"validation_loss": config.lr})
        assert claims._measured(resolve(grid)) is None
        path = figures.spectrum_path(config)
        path.parent.mkdir()
        kinds = {kind: {"above_0.1": float(i)} for i, kind in enumerate(figures.MODULES)}
        path.write_text(json.dumps({"kinds": kinds, "modules": {}}))
    assert claims._measured(resolve(grid)) == Cell(None, (3.0,))


def test_one_contradiction_is_enough_though_a_cell_is_missing():
    assert claims._together(["shown", "not run", "contradicted"]) == "contradicted"
    assert claims._together(["shown", "not run", "undecided"]) == "not run"
    assert claims._together(["shown", "undecided"]) == "undecided"


def test_one_seed_is_judged_by_its_errors_and_undecided_without():
    a, b = Cell(None, (52.0,), (0.3,)), Cell(None, (50.0,), (0.4,))
    assert difference(a, b) == pytest.approx((2 - 1.96 * 0.5, 2 + 1.96 * 0.5))
    assert judge(difference(Cell(None, (52.0,)), b), 0.0, math.inf) == "undecided"
    assert difference(Cell(None, None), b) is None


def test_a_diverged_run_is_worse_than_one_that_did_not():
    diverged, done = Cell(None, (math.inf,)), Cell(None, (30.0,))
    assert judge(difference(done, diverged, higher_is_better=False), 0.0, math.inf) == "shown"
    assert judge(difference(diverged, done, higher_is_better=False), 0.0, math.inf) == "contradicted"
    assert judge(difference(diverged, diverged, higher_is_better=False), 0.0, math.inf) == "undecided"


def test_on_par_needs_the_whole_interval_within_the_margin():
    assert judge(Interval(-0.5, 0.5), -1, 1) == "shown"
    assert judge(Interval(-0.5, 1.5), -1, 1) == "undecided"
    assert judge(Interval(1.5, 2.5), -1, 1) == "contradicted"
    assert judge(None, -1, 1) == "not run"
    assert judge(Interval(0, 0), 0, math.inf) == "undecided", "equal is not better"


@pytest.mark.parametrize("scale", claims.SCALES)
@pytest.mark.parametrize("claim", [c for c in claims.load() if c.ratio is None], ids=lambda c: c.says[:40])
def test_every_claim_names_cells_that_there_are(claim, scale):
    rows = resolve_all(experiments.grids(experiments.load(claim.experiment), scale))
    columns = [runs.spec.column.name for runs in rows[0] if runs.spec.column.name in claim.columns]
    assert columns
    for chain in claim.order + claim.equal + claim.not_worse:
        assert len(chain) > 1
        for row in chain:
            assert all(claims.find(rows, row, column) is not None for column in columns), row
    every = {c.name for at in experiments.load(claim.experiment).scales.values() for c in at.columns or []}
    assert set(claim.columns) <= every | {c.name for c in experiments.load(claim.experiment).columns}


ROUNDS = [([100.0, 101.0], "shown"), ([105.0, 109.0], "contradicted"), ([99.0, 109.0], "undecided")]


@pytest.mark.parametrize(("times", "expected"), ROUNDS)
def test_a_ratio_of_times_is_judged_by_the_range_of_the_rounds(tmp_path, monkeypatch, times, expected):
    monkeypatch.setattr(claims, "BENCH", tmp_path)
    (claim,) = (c for c in claims.load() if c.ratio is not None)
    assert claims.verdict(claim, "paper") == "not run"
    cases = [{"name": claim.ratio.slow, "ms": times}, {"name": claim.ratio.fast, "ms": [99.0, 100.0, 101.0]}]
    for dirty in (True, False):
        bench = {"source": {"dirty": dirty}, "scenarios": [{"shape": claim.ratio.shape, "cases": cases}]}
        (tmp_path / "step-test.json").write_text(json.dumps(bench))
        assert claims.verdict(claim, "paper") == ("not run" if dirty else expected)


def test_a_rate_at_the_edge_of_its_grid_is_told_beside_the_verdict(monkeypatch):
    claim = Claim.model_validate(FASTER)
    monkeypatch.setattr(claims, "load", lambda: [claim])
    measure("lite", ("mora", 1), (0.90, 0.91, 0.92), chosen=1)
    assert claims.edges(claim, "lite") == []
    measure("lite", ("lora", 1), (0.50, 0.51, 0.52), chosen=0)
    assert claims.edges(claim, "lite") == ["LoRA r=1 (as 8)"]
    assert "| shown; at the edge of its grid: LoRA r=1 (as 8) | not run |" in claims.table()


def test_the_ledger_is_written_between_its_markers(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{claims.BEGIN}\nold\n{claims.END}\nafter\n")
    claims.render(page)
    assert page.read_text() == f"before\n{claims.BEGIN}\n{claims.table()}\n{claims.END}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="once each"):
        claims.render(page)


def test_the_readme_shows_what_the_results_give(monkeypatch):
    monkeypatch.undo()
    assert f"{claims.BEGIN}\n{claims.table()}\n{claims.END}" in PAGE.read_text()
