"""The claims as they are written down: rows and columns that there are, seeds, directions and power."""

import sys

import pytest
from judged import FASTER

from mora.evaluate import metrics
from mora.suite import __main__ as suite
from mora.suite import claims, contrasts, experiments
from mora.suite.cell_specs import cell_specs
from mora.suite.cells import resolve_all
from mora.suite.claims import Claim, load
from mora.suite.contrasts import ResolvedTables, find, measure

pytestmark = pytest.mark.usefixtures("nothing_measured")


def test_the_seeds_of_a_second_look_are_those_of_its_cells():
    looks = [claim for claim in load().claims if claim.second_look]
    assert looks
    for claim in looks:
        rows = ResolvedTables().rows(claim.experiment, "mid")
        assert measure(claim, claim.primary, rows).planned == claim.second_look.seeds
        (first, *_) = (c for row in rows for c in row if c.spec.seeds == list(range(7)))
        assert first.spec.column.task == "tulu2"
    fewer = cell_specs(experiments.load("table1"), "mid", [0])
    assert all(len(spec.seeds) == 1 for row in fewer for spec in row)


@pytest.mark.parametrize("scale", claims.COMPARED)
def test_every_claim_names_cells_that_there_are(scale):
    resolved = ResolvedTables()
    for claim in (c for c in load().claims if c.ratio is None):
        rows = resolved.rows(claim.experiment, scale)
        for contrast in [claim.primary, *claim.also] if rows else []:
            wanted = [contrast.first, contrast.second, *([claim.gap] if claim.gap else [])]
            columns = [runs.spec.column.name for runs in rows[0]]
            for column in (c for c in contrast.columns or claim.columns if c in columns):
                assert all(find(rows, row, column) for row in wanted), (claim.says, column)
        every = {c.name for at in experiments.load(claim.experiment).scales.values() for c in at.columns or []}
        assert set(claim.columns) <= every | {c.name for c in experiments.load(claim.experiment).columns}


def test_the_metric_of_every_claim_has_a_direction():
    resolved = ResolvedTables()
    for claim in (c for c in load().claims if c.ratio is None and c.unit != "values"):
        columns = {runs.spec.column.metric for runs in resolved.rows(claim.experiment, "paper")[0]}
        assert all(metrics.facts(metric).higher_is_better is not None for metric in columns)


def test_power_is_said_with_the_plan_and_before_any_run(monkeypatch, capsys):
    lines = claims.plan_lines("table3", "lite")
    assert len(lines) == 3
    assert sum("UNDER 0.8" in line for line in lines) == 2
    assert "power 1.00 at 3 seeds, a difference of 0.05 nats: In pretraining ReLoRA" in lines[2]
    assert claims.plan_lines("table3", "smoke") == claims.plan_lines("table5", "lite") == []
    assert claims.plan_lines("table3", "lite", seeds=[0]) != lines
    second_look = {scale: claims.plan_lines("table1", scale)[0].split(",")[0] for scale in ("mid", "paper")}
    assert second_look["mid"].endswith("at 7 seeds")
    assert second_look["paper"].endswith("at 1 seed")
    monkeypatch.setattr(sys, "argv", ["mora.suite", "table3", "--scale", "lite", "--plan"])
    assert suite.main() == 0
    assert "\n".join(lines) in capsys.readouterr().out
    monkeypatch.setattr(suite.runner, "complete", lambda specs, jobs, patient: [])
    monkeypatch.setattr(suite, "_render", lambda *_: "")
    monkeypatch.setattr(sys, "argv", ["mora.suite", "table3", "--scale", "lite"])
    assert suite.main() == 0
    assert capsys.readouterr().err.count("UNDER 0.8") == 2


def test_with_some_cells_the_power_is_that_of_their_claims(monkeypatch, capsys):
    for only, said in (("method=none", []), ("task=metamath", ["mathematical", "GSM8K", "Merging"])):
        monkeypatch.setattr(sys, "argv", ["mora.suite", "table1", "--scale", "lite", "--plan", "--only", only])
        assert suite.main() == 0
        powers = [line for line in capsys.readouterr().out.splitlines() if line.startswith("power ")]
        assert bool(powers) == bool(said)
        assert all(any(word in line for word in said) for line in powers)


def test_the_power_to_close_a_gap_includes_that_the_gap_is_shown():
    table = [claim for claim in load().claims if claim.experiment == "table1"]
    (closes,) = (claim for claim in table if claim.test == "closes")
    (gap,) = (c for c in table if c.test == "order" and (c.first, c.second) == (closes.second, closes.gap))
    within, shown = (c.model_copy(update={"test": c.test.replace("closes", "equal")}) for c in (closes, gap))
    both = claims.power_of(closes, table, 3)
    assert 0.9 > both > claims.power_of(within, table, 3) + claims.power_of(shown, table, 3) - 1 > 0.8
    assert claims.power_of(closes, [c for c in table if c is not gap], 3) == 0.0, "no claim plans the gap"


def test_rows_are_found_by_the_papers_rank():
    rows = resolve_all(cell_specs(experiments.load("table2"), "lite"))
    assert find(rows, Claim.model_validate(FASTER).first, "step_300").spec.row.r == 1
    assert find(rows, experiments.Row(method="mora", r=999), "step_300") is None


def test_a_contrast_is_of_the_row_without_settings_wherever_it_stands():
    rows = resolve_all(cell_specs(experiments.load("table_restarts"), "mid"))
    wanted = experiments.Row(method="relora", r=256)
    assert {find(order, wanted, "gsm8k").spec.row.settings == [] for order in (rows, rows[::-1])} == {True}


def test_the_papers_effect_is_over_the_columns_that_ours_stand_for(monkeypatch):
    monkeypatch.undo()
    resolved = ResolvedTables()
    claim = next(claim for claim in load().claims if claim.says.startswith("Merging during training"))
    effects = {}
    for scale in ("lite", "mid"):
        columns = [runs.spec.column for runs in resolved.rows("table1", scale)[0]]
        compared = [column for column in columns if column.name in claim.columns]
        effects[scale] = contrasts.paper_effect(claim, claim.primary, compared, resolved)
    gsm8k, math = 67.9 - 64.0, 19.9 - 18.1  # LoRA and ReLoRA at r=256 in Table 1
    assert effects == pytest.approx({"lite": (gsm8k + math) / 2, "mid": gsm8k})
