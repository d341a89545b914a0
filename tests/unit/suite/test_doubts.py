"""Results that are shown and doubted."""

from types import SimpleNamespace

import pytest
import yaml
from made_up import write

from mora.config import ConfigError, source
from mora.config.run_id import run_id
from mora.suite import experiments, ledger, tables
from mora.suite.cell_specs import cell_specs
from mora.suite.cells import resolve, resolve_all
from mora.suite.claims import load
from mora.suite.contrasts import ResolvedTables
from mora.suite.doubts import FILE, doubted

ROOT = source.ROOT
pytestmark = pytest.mark.usefixtures("nothing_measured")


def final_runs(method, name="table2", column=0, **more):
    """Those of the row at r=1, with the metrics that are given for the one of seed 1."""
    rows = cell_specs(experiments.load(name), "lite")
    row = next(row for row in rows if (row[0].row.method, row[0].row.r, row[0].row.operator) == (method, 1, None))
    for i, config in enumerate(row[column].search_runs):
        write(config, {row[column].experiment.selection: float(i)}, steps=(300,))
    finals = resolve(row[column]).final_runs
    for config in finals:
        measured = {"uuid_char_acc": 0.5, "value_nll": 2.0} | (more if config.seed == 1 else {})
        write(config, measured, steps=(300, 500, 700, 900), run_id=run_id(config), log_sha256=f"of {config.seed}")
    return finals


def doubt(folder, run, log="of 1"):
    (folder / FILE).write_text(yaml.safe_dump({run_id(run): {"log_sha256": log, "why": "its machine was damaged"}}))


def cells(name="table2"):
    return resolve_all(cell_specs(experiments.load(name), "lite"))


@pytest.mark.parametrize("named", [True, False])
def test_tables_and_claims_name_a_doubted_run(tmp_path, named):
    runs = final_runs("lora", **({} if named else {"merged_value_nll": 9.0}))
    final_runs("mora")
    if named:
        doubt(tmp_path, runs[1])
    page = tables.render("table2", experiments.load("table2"), cells(), "lite", tmp_path / "tables")
    table = page.read_text()
    why = "its machine was damaged" if named else "merging raised value_nll from 2 to 9 at step 1000"
    assert f"In doubt: LoRA r=1 (the paper's 8), uuid, seed 1: {why}." in table
    assert table.count("In doubt") == 1
    assert "In doubt: LoRA" in page.with_suffix(".tex").read_text()
    outcome = next(o for claim, _, o in ledger.all_outcomes(ResolvedTables()) if claim.says == load().claims[0].says)
    assert f"in doubt: LoRA r=1 (the paper's 8), uuid, seed 1 ({why})" in outcome.notes


def test_a_doubt_is_of_one_column_and_of_one_log(tmp_path):
    tulu, metamath = (final_runs("lora", "table1", column) for column in (0, 3))
    assert tulu[0].task.name != metamath[0].task.name
    for run in (tulu[1], metamath[1]):
        doubt(tmp_path, run)
        (found,) = doubted(cell for row in cells("table1") for cell in row)
        assert found == f"LoRA r=1 (the paper's 8), {run.task.name}, seed 1"
    doubt(tmp_path, tulu[1], log="of the run that was made again")
    assert not doubted(cell for row in cells("table1") for cell in row)


@pytest.mark.parametrize(
    "text", ["uuid-lora: {why: x}", "uuid-lora: 3", "- uuid-lora", "uuid-lora: {log_sha256: a, why: ''}", "{"]
)
def test_a_wrong_file_is_named(tmp_path, text):
    final_runs("lora")
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigError, match=r"^results/doubts\.yaml: expected a run id with log_sha256 and why"):
        doubted(cell for row in cells() for cell in row)


def test_a_contrast_in_doubt_keeps_its_variance_to_itself():
    claim = SimpleNamespace(unit="points", plan=SimpleNamespace(seed_sd=None))
    calm, wild = (
        SimpleNamespace(seeds=[0, 1, 2], differences=differences, document_se=None, doubts={})
        for differences in ([1.0, 1.1, 0.9], [0.0, 40.0, 2.0])
    )

    def errors():
        estimate = ledger.pooled_estimator([claim, claim], [calm, wild])
        return [estimate(claim, measured).se for measured in (calm, wild)]

    assert errors()[0] == errors()[1]
    wild.doubts = {"a run": ["merging raised its loss"]}
    assert errors() == pytest.approx([0.1 / 3**0.5, 22.54 / 3**0.5], rel=1e-3)


def test_a_file_without_doubts_may_have_a_comment(tmp_path):
    final_runs("lora")
    (tmp_path / FILE).write_text("# none today\n")
    assert not doubted(cell for row in cells() for cell in row)


def test_the_committed_doubts_are_of_results_that_there_are():
    for name, named in (yaml.safe_load((ROOT / FILE).read_text()) or {}).items():
        assert named["log_sha256"] in (ROOT / "results" / "runs" / f"{name}.json").read_text()
