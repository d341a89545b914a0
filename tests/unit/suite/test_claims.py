"""The ledger's verdicts on results made up for the test, and that every claim names rows and columns that there are."""

import json
import math
import sys
from dataclasses import replace

import pytest
from made_up import write

from mora.config import source
from mora.evaluate import metrics
from mora.suite import __main__ as suite
from mora.suite import claims, contrasts, figures, ledger, ledger_text
from mora.suite import experiment as experiments
from mora.suite.cells import resolve, resolve_all
from mora.suite.claims import Claim, load
from mora.suite.contrasts import ResolvedTables, find, measure, untuned

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


@pytest.fixture(autouse=True)
def nothing_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "ROOT", tmp_path)


def cell_of(name, scale, row, column=0):
    rows = experiments.cell_specs(experiments.load(name), scale)
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


@pytest.mark.parametrize(
    ("mora", "lora", "expected"),
    [
        ((0.90, 0.91, 0.92), (0.50, 0.51, 0.52), "shown"),
        ((0.50, 0.51, 0.52), (0.90, 0.91, 0.92), "contradicted"),
        ((0.50, 0.90, 0.70), (0.60, 0.65, 0.70), "undecided"),
    ],
)
def test_an_order_is_judged_over_paired_seeds(mora, lora, expected):
    assert said(FASTER).verdict == "not run"
    memorised("mora", mora)
    assert said(FASTER).verdict == "not run"
    memorised("lora", lora)
    outcome = said(FASTER)
    assert outcome.verdict == expected
    assert outcome.effect == pytest.approx(100 * sum(a - b for a, b in zip(mora, lora, strict=True)) / 3)
    assert outcome.interval.low < outcome.effect < outcome.interval.high
    assert (outcome.seeds, outcome.planned, outcome.model) == (3, 3, "smollm2_135m")
    assert said(FASTER, "paper").verdict == "not run"


def test_an_effect_is_the_mean_over_the_columns_beside_the_papers():
    memorised("mora", (0.90, 0.91, 0.92))
    memorised("lora", (0.50, 0.51, 0.52))
    every = FASTER | {"columns": ["step_300", "step_500", "step_700", "step_900"]}
    assert said(every).paper == pytest.approx((10.1 + 15.7 + 87.4 + 100 - 9.9 - 10.0 - 10.7 - 54.2) / 4)
    assert said(every).effect == pytest.approx(40.0)
    assert (said(every).first, said(every).second) == ("MoRA r=1 (the paper's 8)", "LoRA r=1 (the paper's 8)")


def test_a_claim_waits_for_every_planned_seed():
    memorised("mora", (0.90, 0.91))
    memorised("lora", (0.50, 0.51, 0.52))
    outcome = said(FASTER)
    assert outcome.verdict == "undecided"
    assert outcome.notes == ["2 of 3 seeds, not judged until all are done"]


@pytest.mark.parametrize(("spread", "expected"), [(1.0, "undecided"), (0.5, "equal")])  # p = 0.021, 0.001
def test_a_second_look_waits_for_its_seeds_and_is_judged_at_its_own_level(spread, expected):
    claim = BETTER | {
        "test": "equal",
        "margin": 2.0,
        "second_look": {"seeds": 7, "level": 0.01, "plan": {"effect": 0.0}},
    }
    name, differences = "mmlu_tulu_0shot", [spread * d for d in (-0.03, 0.03, -0.014, 0.014, -0.014, 0.014, 0.0)]

    def looked(n):
        for method, shares in (("lora", [0.5] * n), ("mora", [0.5 + d for d in differences[:n]])):
            values = [{f"{name}.score": s, f"{name}.documents": 14042.0, f"{name}.floor": 0.25} for s in shares]
            run_all(cell_of("table1", "mid", (method, 4)), values)
        return said(claim, "mid")

    assert looked(3).notes[0] == "3 of 7 seeds, not judged until all are done"
    outcome = looked(7)
    assert (outcome.verdict, outcome.seeds) == (expected, 7)
    assert outcome.notes == (["p = 0.0011 at level 0.01"] if expected == "equal" else [])
    half = outcome.interval.high - outcome.effect
    assert half == pytest.approx(3.143 * 2.08 * spread / math.sqrt(7), rel=0.01)  # t at 99% of 6 degrees of freedom


def test_the_seeds_of_a_second_look_are_those_of_its_cells():
    looks = [claim for claim in load().claims if claim.second_look]
    assert looks
    for claim in looks:
        rows = ResolvedTables().rows(claim.experiment, "mid")
        assert measure(claim, claim.primary, rows).planned == claim.second_look.seeds
        (first, *_) = (c for row in rows for c in row if c.spec.seeds == list(range(7)))
        assert first.spec.column.task == "tulu2"
    fewer = experiments.cell_specs(experiments.load("table1"), "mid", [0])
    assert all(len(spec.seeds) == 1 for row in fewer for spec in row)


def test_a_diverged_seed_decides_nothing_and_is_said():
    memorised("lora", (0.50, 0.51, 0.52))
    run_all(cell_of("table3", "lite", ("mora", 128)), [{"c4_perplexity_local.score": "inf"}] * 3)
    run_all(cell_of("table3", "lite", ("lora", 128)), [{"c4_perplexity_local.score": 60.0}] * 3)
    claim = FASTER | {"experiment": "table3", "columns": ["llama_60m_local"], "unit": "nats"}
    outcome = said(claim, first={"method": "mora", "r": 128}, second={"method": "lora", "r": 128})
    assert outcome.verdict == "undecided"
    assert "a run diverged" in outcome.notes


def test_perplexities_are_compared_in_nats_and_lower_is_better():
    for method, scores in (("mora", (60.0, 60.1, 59.9)), ("lora", (66.0, 66.1, 65.9))):
        run_all(cell_of("table3", "lite", (method, 128)), [{"c4_perplexity_local.score": s} for s in scores])
    claim = FASTER | {"experiment": "table3", "columns": ["llama_250m", "llama_60m_local"], "unit": "nats"}
    outcome = said(claim, first={"method": "mora", "r": 128}, second={"method": "lora", "r": 128})
    assert outcome.verdict == "shown"
    assert outcome.effect == pytest.approx(math.log(60 / 66), abs=1e-3)
    assert outcome.paper == pytest.approx(math.log(28.54 / 33.40))


@pytest.mark.parametrize(
    ("mora", "lora", "expected"),
    [
        ((0.500, 0.502, 0.504), (0.501, 0.503, 0.505), "equal"),
        ((0.600, 0.602, 0.604), (0.501, 0.503, 0.505), "contradicted"),
        ((0.500, 0.520, 0.540), (0.520, 0.500, 0.530), "undecided"),
    ],
)
def test_an_equality_needs_both_one_sided_tests(mora, lora, expected):
    answered("mora", mora)
    answered("lora", lora)
    assert said(BETTER, test="equal", margin=2.0).verdict == expected


def test_a_gap_is_closed_only_where_there_was_one():
    closes = BETTER | {"test": "closes", "margin": 2.0, "gap": LORA, "second": {"method": "fft"}}
    closes |= {"first": {"method": "lora", "r": 256}}
    run_all(cell_of("table1", "lite", ("fft", None)), mmlu((0.60, 0.601, 0.602)))
    run_all(cell_of("table1", "lite", ("lora", 32)), mmlu((0.60, 0.601, 0.602)))
    answered("lora", (0.60, 0.601, 0.602))
    assert said(closes).verdict == "undecided", "nothing was to be closed"
    answered("lora", (0.40, 0.402, 0.401))
    assert said(closes).verdict == "shown"


def mmlu(shares):
    return [{"mmlu_tulu_0shot.score": share} for share in shares]


def test_at_the_floor_there_is_no_verdict():
    answered("mora", (0.25, 0.252, 0.254))
    answered("lora", (0.251, 0.253, 0.255))
    assert said(BETTER, test="equal", margin=2.0).verdict == "floor", "two models that know nothing are not equal"
    answered("mora", (0.45, 0.452, 0.454))
    assert said(BETTER).verdict == "shown"
    (nothing,) = resolve(untuned(cell_of("table1", "lite", ("mora", 1)))).final_runs
    name = "mmlu_tulu_0shot"
    facts = {"score": 0.255, "score_stderr": 0.004, "documents": 14042.0, "floor": 0.25}
    write(nothing, {f"{name}.{key}": value for key, value in facts.items()})
    assert said(BETTER).verdict == "floor", "the untuned model knows nothing"


GSM8K = "metamath_gsm8k"


def solved(cell, shares, answers=0.98):
    facts = {"answered": answers, "answered_stderr": 0.004, "documents": 1319.0, "floor": 0.0}
    shown = [{"score": s, "score_stderr": math.sqrt(s * (1 - s) / 1319), **facts} for s in shares]
    run_all(cell, [{f"{GSM8K}.{key}": value for key, value in values.items()} for values in shown])


def test_an_untuned_model_that_does_not_know_the_form_of_the_answers_says_nothing():
    claim = {"columns": ["gsm8k"], "test": "equal", "margin": 3.5}
    for method in ("mora", "lora"):
        solved(cell_of("table1", "lite", (method, 1), column=2), (0.560, 0.562, 0.561))
    assert said(BETTER, **claim).verdict == "equal"
    before = untuned(cell_of("table1", "lite", ("mora", 1), column=2))
    solved(before, [0.0], answers=0.002)
    assert said(BETTER, **claim).verdict == "equal"
    solved(before, [0.0], answers=0.5)
    assert said(BETTER, **claim).verdict == "floor"


def test_where_a_difference_has_no_room_above_the_floor_there_is_no_verdict():
    for method in ("mora", "lora"):
        solved(cell_of("table1", "lite", (method, 1), column=2), (0.030, 0.031, 0.032))
    assert said(BETTER, columns=["gsm8k"], test="equal", margin=3.5).verdict == "floor"
    assert said(BETTER, columns=["gsm8k"], test="equal", margin=2.0).verdict == "equal"


def test_an_undecided_order_says_whether_the_papers_effect_is_excluded():
    memorised("mora", (0.500, 0.502, 0.501))
    memorised("lora", (0.500, 0.501, 0.502))
    outcome = said(FASTER)
    assert outcome.verdict == "undecided"
    assert "the paper's effect is outside the interval" in outcome.notes
    memorised("mora", (0.50, 0.90, 0.70))
    assert said(FASTER).notes == []


def test_rare_answers_are_judged_exactly_too():
    name = "metamath_gsm8k"
    table = {"mora": 12, "lora": 1}
    for method, right in table.items():
        scored = {f"{name}.score": right / 1319, f"{name}.score_stderr": 0.001, f"{name}.documents": 1319.0}
        run_all(cell_of("table1", "lite", (method, 1), column=2), [scored] * 3)
    claim = Claim.model_validate(FASTER | {"experiment": "table1", "columns": ["gsm8k"]})
    measured = measure(claim, claim.primary, ResolvedTables().rows("table1", "lite"))
    assert contrasts.rare_counts(claim, measured) == (36, 3957, 3, 3957)
    assert contrasts.rare_counts(claim.model_copy(update={"unit": "nats"}), measured) is None


def test_the_claims_of_a_table_hold_together():
    memorised("mora", (0.500, 0.51, 0.52))
    memorised("lora", (0.48, 0.505, 0.51))
    alone, *_ = ledger.judge([Claim.model_validate(FASTER)], "lite")
    many = ledger.judge([Claim.model_validate(FASTER | {"says": str(i)}) for i in range(20)], "lite")
    assert alone.interval.low < alone.effect
    assert {outcome.verdict for outcome in many} == {"undecided"}
    note = "shown before Holm's correction (p = 0.0116), undecided after it (p = 0.232)"
    assert all(note in outcome.notes for outcome in many)


def test_claims_that_are_not_run_yet_count_in_the_correction():
    """Otherwise a verdict would depend on when it is read."""
    memorised("mora", (0.60, 0.63, 0.66))
    memorised("lora", (0.50, 0.51, 0.52))
    not_run = FASTER | {"first": {"method": "mora", "r": 64}}
    alone, among = (
        ledger.judge([Claim.model_validate(c) for c in (FASTER, *[not_run] * n)], "lite")[0] for n in (0, 9)
    )
    assert (alone.verdict, among.verdict) == ("shown", "undecided")
    assert any(note.startswith("shown before Holm's correction (p = 0.00") for note in among.notes)


def test_a_spectrum_is_the_mean_over_the_kinds_of_modules_and_one_of_them_decides_nothing():
    for method, count in (("mora", 300.0), ("lora", 100.0)):
        spec = cell_of("figure5", "lite", (method, 128))
        run_all(spec, [{}])
        path = figures.spectrum_path(resolve(spec).final_runs[0])
        path.parent.mkdir(exist_ok=True)
        kinds = {kind: {"above_0.1": count + i} for i, kind in enumerate(figures.MODULES)}
        path.write_text(json.dumps({"kinds": kinds, "modules": {}}))
    (claim,) = (c for c in load().claims if c.experiment == "figure5")
    (outcome,) = ledger.judge([claim], "lite")
    assert (outcome.effect, outcome.verdict) == (200.0, "undecided")


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


ROUNDS = [  # the other case takes 99, 100 and 150 ms in the same rounds
    ([100.0, 101.0, 151.0], "shown"), ([105.0, 109.0, 160.0], "contradicted"), ([99.0, 109.0, 150.0], "undecided"),
]  # fmt: skip


@pytest.mark.parametrize(("times", "expected"), ROUNDS)
def test_a_ratio_of_times_is_judged_round_by_round(tmp_path, monkeypatch, times, expected):
    monkeypatch.setattr(ledger, "BENCH", tmp_path)
    (claim,) = (c for c in load().claims if c.ratio is not None)
    assert ledger.judge([claim], "paper")[0].verdict == "not run"
    cases = [{"name": claim.ratio.slow, "ms": times}, {"name": claim.ratio.fast, "ms": [99.0, 100.0, 150.0]}]
    for dirty in (True, False):
        bench = {"source": {"dirty": dirty}, "scenarios": [{"shape": claim.ratio.shape, "cases": cases}]}
        (tmp_path / "step-test.json").write_text(json.dumps(bench))
        assert ledger.judge([claim], "paper")[0].verdict == ("not run" if dirty else expected)


def test_a_rate_at_the_edge_of_its_grid_is_told_beside_the_verdict():
    memorised("mora", (0.90, 0.91, 0.92))
    memorised("lora", (0.50, 0.51, 0.52), chosen=0)
    assert said(FASTER).notes == ["at the edge of its grid: LoRA r=1 (the paper's 8)"]


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


def test_the_ledger_is_written_between_its_markers_and_in_full(tmp_path):
    page, full = tmp_path / "README.md", tmp_path / "claims.md"
    page.write_text(f"before\n{ledger_text.BEGIN}\nold\n{ledger_text.END}\nafter\n")
    ledger_text.render(page, full)
    assert (
        page.read_text()
        == f"before\n{ledger_text.BEGIN}\n{ledger_text.summary()}\n\n{ledger_text.table()}\n{ledger_text.END}\nafter\n"
    )
    assert full.read_text() == ledger_text.page()
    page.write_text("no markers")
    with pytest.raises(ValueError, match="once each"):
        ledger_text.render(page, full)


def test_the_ledger_never_says_the_papers_rank_without_ours():
    memorised("mora", (0.90, 0.91, 0.92))
    memorised("lora", (0.50, 0.51, 0.52))
    assert "lite: MoRA r=1 (the paper's 8) - LoRA r=1 (the paper's 8) | **shown**" in ledger_text.table()
    assert "(as " not in ledger_text.page()


def test_the_readme_shows_what_the_results_give(monkeypatch):
    monkeypatch.undo()
    resolved = ResolvedTables()
    shown = f"{ledger_text.summary(resolved)}\n\n{ledger_text.table(resolved)}"
    assert f"{ledger_text.BEGIN}\n{shown}\n{ledger_text.END}" in ledger_text.PAGE.read_text()
    assert ledger_text.FULL.read_text() == ledger_text.page(resolved)


def test_an_equality_names_its_margin():
    answered("mora", (0.500, 0.502, 0.504))
    answered("lora", (0.501, 0.503, 0.505))
    claim = Claim.model_validate(BETTER | {"test": "equal", "margin": 2.5})
    outcome = said(BETTER, test="equal", margin=2.5)
    assert ledger_text.verdict_text(claim, outcome).startswith("**equal** within 2.5 points")
    undecided = replace(outcome, verdict="undecided")
    assert ledger_text.verdict_text(claim, undecided).startswith("**undecided** at a margin of 2.5 points")
    assert ledger_text.within(claim, replace(outcome, verdict="floor")) == ""


def test_a_mean_says_which_of_its_columns_are_at_their_floor():
    for method, guessed in (("mora", 0.251), ("lora", 0.250)):
        scores = [{"mmlu_tulu_0shot": 0.5 + d, "mmlu_tulu_5shot": guessed} for d in (0.0, 0.001, 0.002)]
        facts = {"score_stderr": 0.004, "documents": 14042.0, "floor": 0.25}
        run_all(
            cell_of("table1", "lite", (method, 1)),
            [{f"{n}.{k}": v for n, s in both.items() for k, v in {"score": s, **facts}.items()} for both in scores],
        )
    of_mean = said(BETTER, columns=["mmlu_0shot", "mmlu_5shot"])
    assert "mmlu_5shot, half of this mean, is at its floor" in of_mean.notes
    assert not any("floor" in note for note in said(BETTER).notes)


def test_a_contrast_of_other_columns_names_them():
    page = ledger_text.FULL.read_text()  # what the results give, says the test of README
    assert "| mid, qwen25_coder_1b5; r256 (here 96) | MoRA, sharing | MoRA, truncation |" in page
    assert "| mid, qwen25_coder_1b5; biomed_local | LoRA r=96 (the paper's 256) | ReLoRA r=96" in page
    assert "| benchmark, shape of llama2_7b | mora rotation r=8 | lora r=8 |" in page


def test_rows_are_found_by_the_papers_rank():
    rows = resolve_all(experiments.cell_specs(experiments.load("table2"), "lite"))
    assert find(rows, Claim.model_validate(FASTER).first, "step_300").spec.row.r == 1
    assert find(rows, experiments.Row(method="mora", r=999), "step_300") is None


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


def test_a_scale_whose_seeds_are_not_all_done_does_not_stand_for_a_claim_that_was_judged(monkeypatch):
    claim = Claim(**FASTER)
    done = ledger.Outcome("contradicted", "MoRA", "LoRA", "small", seeds=3, planned=3)
    begun = replace(done, verdict="undecided", seeds=1)
    for rows, verdict in (([done, begun], "contradicted"), ([begun, done], "contradicted"), ([begun], "undecided")):
        monkeypatch.setattr(ledger_text, "rows_of", lambda _, rows=rows: [(claim, "lite", outcome) for outcome in rows])
        assert f": 1 {verdict}. " in ledger_text.summary()
        assert ledger_text.table().count("MoRA is faster") == ledger_text.table().count(f"**{verdict}**") == 1
