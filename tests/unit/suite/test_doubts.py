"""Results that are shown and doubted."""

import pytest
import yaml
from made_up import write

from mora.config import source
from mora.config.run_id import run_id
from mora.suite import experiment as experiments
from mora.suite import ledger, tables
from mora.suite.cells import resolve, resolve_all
from mora.suite.claims import load
from mora.suite.contrasts import ResolvedTables
from mora.suite.doubts import FILE

ROOT = source.ROOT


@pytest.fixture(autouse=True)
def nothing_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "ROOT", tmp_path)


def final_runs(method, **more):
    """Those of Table 2's row at r=1, with the accuracies that are given for the one of seed 1."""
    rows = experiments.cell_specs(experiments.load("table2"), "lite")
    spec = next(row[0] for row in rows if (row[0].row.method, row[0].row.r, row[0].row.operator) == (method, 1, None))
    for i, config in enumerate(spec.search_runs):
        write(config, {"value_nll": float(i)}, steps=(300,))
    finals = resolve(spec).final_runs
    for config in finals:
        measured = {"uuid_char_acc": 0.5, "value_nll": 2.0} | (more if config.seed == 1 else {})
        write(config, measured, steps=(300, 500, 700, 900), run_id=run_id(config))
    return finals


@pytest.mark.parametrize("listed", [True, False])
def test_tables_and_claims_name_a_doubted_run(tmp_path, listed):
    runs = final_runs("lora", **({} if listed else {"merged_value_nll": 9.0}))
    final_runs("mora")
    if listed:
        (tmp_path / FILE).write_text(yaml.safe_dump({run_id(runs[1]): "its machine was damaged"}))
    rows = resolve_all(experiments.cell_specs(experiments.load("table2"), "lite"))
    page = tables.render("table2", experiments.load("table2"), rows, "lite", tmp_path / "tables")
    table = page.read_text()
    why = "its machine was damaged" if listed else "merging raised value_nll from 2 to 9 at step 1000"
    assert f"In doubt: LoRA r=1 (the paper's 8), seed 1: {why}." in table
    assert "In doubt: LoRA" in page.with_suffix(".tex").read_text()
    assert table.count("In doubt") == 1
    outcome = next(o for claim, _, o in ledger.rows_of(ResolvedTables()) if claim.says == load().claims[0].says)
    assert "in doubt: LoRA r=1 (the paper's 8), seed 1" in outcome.notes


def test_the_committed_doubts_are_of_runs_that_there_are():
    for name, why in yaml.safe_load((ROOT / FILE).read_text()).items():
        assert (ROOT / "results" / "runs" / f"{name}.json").is_file()
        assert why
