"""The ledger's verdicts on results made up for the test."""

import json
import math
from types import SimpleNamespace

import pytest
from judged import BETTER, FASTER, LORA, answered, cell_of, memorised, run_all, said
from made_up import write

from mora.suite import contrasts, figures, ledger
from mora.suite.cells import resolve
from mora.suite.claims import Claim, load
from mora.suite.contrasts import ResolvedTables, measure, untuned

pytestmark = pytest.mark.usefixtures("nothing_measured")


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
    memorised("mora", (0.90, 0.93))
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


def test_a_gap_is_judged_once_all_its_seeds_are_done():
    closes = BETTER | {"test": "closes", "margin": 2.0, "gap": LORA, "second": {"method": "fft"}}
    closes |= {"first": {"method": "lora", "r": 256}}
    for row in (("fft", None), ("lora", 32)):
        run_all(cell_of("table1", "lite", row), mmlu((0.60, 0.601, 0.602)))
    run_all(cell_of("table1", "lite", ("lora", 1)), mmlu((0.40,)))
    outcome = said(closes)
    assert (outcome.verdict, outcome.is_complete) == ("undecided", False)
    assert "of the gap 1 of 3 seeds" in outcome.notes
    answered("lora", (0.40, 0.402, 0.401))
    assert (said(closes).verdict, said(closes).is_complete) == ("shown", True)


def test_a_doubt_about_the_gap_is_said_beside_the_claim():
    gap = SimpleNamespace(complete=True, doubts={"LoRA, uuid, seed 0": ["merging raised its loss"]})
    outcome = ledger.with_gap(ledger.Outcome("shown", "LoRA", "FFT", "small", notes=["said"]), gap)
    assert outcome.notes == ["said", "in doubt: LoRA, uuid, seed 0 (merging raised its loss)"]


def test_an_error_that_the_plan_assumed_is_said_to_be_assumed():
    memorised("mora", (0.7,))
    memorised("lora", (0.5,))
    assert said(FASTER).notes == ["1 of 3 seeds, not judged until all are done", "one seed: its sd of 2 is assumed"]
    for method, share in (("mora", 0.7), ("lora", 0.5)):
        memorised(method, (share,) * 3)
    assert said(FASTER).notes == ["the seeds do not differ: their sd of 2 is assumed"]


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


def test_the_other_reading_of_a_ratio_stands_beside_it_unjudged(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "BENCH", tmp_path)
    (claim,) = (c for c in load().claims if c.ratio is not None)
    (other,) = claim.ratio.also
    names = [claim.ratio.slow, claim.ratio.fast, other.fast]
    assert names == ["mora rotation r=8", "lora r=8", "mora sharing r=8"]
    assert [o.verdict for o in ledger.secondary_outcomes(claim, "paper", ResolvedTables())] == ["not run"]
    cases = [{"name": name, "ms": [ms] * 10} for name, ms in zip(names, (98.0, 100.0, 90.0), strict=True)]
    bench = {"source": {"dirty": False}, "scenarios": [{"shape": claim.ratio.shape, "cases": cases}]}
    (tmp_path / "step-test.json").write_text(json.dumps(bench))
    (judged,), (beside,) = ledger.judge([claim], "paper"), ledger.secondary_outcomes(claim, "paper", ResolvedTables())
    assert (judged.verdict, judged.effect) == ("shown", pytest.approx(0.98))
    assert (beside.verdict, beside.effect, beside.second) == ("undecided", pytest.approx(98 / 90), other.fast)


def test_a_rate_at_the_edge_of_its_grid_is_told_beside_the_verdict():
    memorised("mora", (0.90, 0.91, 0.93))
    memorised("lora", (0.50, 0.51, 0.52), chosen=0)
    assert said(FASTER).notes == ["at the edge of its grid: LoRA r=1 (the paper's 8)"]


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
