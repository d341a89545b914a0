"""Two claims, results made up for them, and what the ledger says."""

from made_up import write

from mora.suite import experiments, ledger
from mora.suite.cell_specs import cell_specs
from mora.suite.cells import resolve
from mora.suite.claims import Claim

MORA, LORA = {"method": "mora", "r": 8}, {"method": "lora", "r": 8}
FASTER = {
    "says": "MoRA is faster",
    "where": "a test",
    "experiment": "table2",
    "columns": ["step_300", "step_500"],
    "first": MORA,
    "second": LORA,
    "plan": {"effect": 10, "seed_sd": 2},
}
BETTER = FASTER | {"experiment": "table1", "columns": ["mmlu_0shot"]}
STEPS = (300, 500, 700, 900)


def cell_of(name, scale, row, column=0):
    rows = cell_specs(experiments.load(name), scale)
    return next(r[column] for r in rows if (r[0].row.method, r[0].row.r, r[0].row.operator) == (*row, None))


def run_all(spec, metrics_of, chosen=1, **more):
    """The search, which chooses that rate, and a final run a seed with what `metrics_of` gives for it."""
    for i, config in enumerate(spec.search_runs):
        write(config, {spec.experiment.selection: abs(i - chosen)}, steps=STEPS)
    for config, measured in zip(resolve(spec).final_runs, metrics_of, strict=False):
        write(config, {spec.experiment.selection: 1.0, **measured}, steps=STEPS, **more)


def memorised(method, accuracies, **more):
    """Of Table 2's row at r=1, which stands for 8."""
    run_all(
        cell_of("table2", "lite", (method, 1)), [{"uuid_char_acc": a, "documents": 1000.0} for a in accuracies], **more
    )


def answered(method, shares, stderr=0.005, floor=0.25, r=1):
    name = "mmlu_tulu_0shot"
    values = [
        {f"{name}.score": s, f"{name}.score_stderr": stderr, f"{name}.documents": 14042.0, f"{name}.floor": floor}
        for s in shares
    ]
    run_all(cell_of("table1", "lite", (method, r)), values)


def said(claim, scale="lite", **changed):
    (outcome,) = ledger.judge([Claim.model_validate(claim | changed)], scale)
    return outcome
