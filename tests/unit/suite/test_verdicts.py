"""The verdicts on made-up models: how often they are wrong where two models are equal, and right where they are not."""

import math

import numpy as np
import pytest
from scipy import stats

from mora.evaluate.compare import holm
from mora.suite import verdicts
from mora.suite.verdicts import (
    Design,
    Estimate,
    NearestVerdict,
    Variance,
    decide,
    estimate,
    exact,
    nearest_verdict,
    pooled,
    variance,
)

DRAWS = 2000


def table_of(rng, effects, seeds, seed_sd, document_se=0.0, test="order", margin=0.0):
    """The verdicts of a table of claims, one an effect, as the ledger reaches them. `seed_sd`: of all, or one an effect."""
    sds = np.broadcast_to(seed_sd, len(effects))
    differences = [
        effect + document_se * rng.normal() + sd * rng.normal(size=seeds)
        for effect, sd in zip(effects, sds, strict=True)
    ]
    of_table = pooled([variance(d) for d in differences])
    judged = [
        nearest_verdict(test, estimate(d, of_table, document_se, float(sd)), margin)
        for d, sd in zip(differences, sds, strict=True)
    ]
    return decide(judged)


def rate(rng, right, effects, *args, **kwargs):
    """How often all (any, for a wrong verdict) of a table's claims get a verdict that `right` takes."""
    return np.mean([right(table_of(rng, effects, *args, **kwargs)) for _ in range(DRAWS)])


def wrong(of_equal):
    return lambda verdicts: any(v in of_equal for v in verdicts)


@pytest.mark.parametrize(("seeds", "document_se"), [(3, 0.0), (3, 1.0), (1, 0.5), (8, 0.0)])
def test_equal_models_get_a_wrong_verdict_in_at_most_5_percent_of_tables(seeds, document_se):
    rng = np.random.default_rng(0)
    assert rate(rng, wrong({"shown", "contradicted"}), [0.0] * 4, seeds, 1.0, document_se) <= 0.05


def test_where_one_contrast_varies_more_than_the_pool_a_wrong_verdict_is_more_frequent():
    """What docs/claims.md warns of: pooling assumes that contrasts vary alike. With five seeds nothing is pooled."""
    rng, sds = np.random.default_rng(7), [2.9, *[1.2] * 7]
    assert 0.08 < rate(rng, wrong({"shown", "contradicted"}), [0.0] * 8, 3, sds, 0.5) < 0.12
    assert rate(rng, wrong({"shown", "contradicted"}), [0.0] * 8, 5, sds, 0.5) <= 0.05


@pytest.mark.parametrize("seeds", [1, 3])
def test_equal_models_are_never_called_different_by_an_equality_claim(seeds):
    rng = np.random.default_rng(1)
    assert rate(rng, wrong({"contradicted"}), [0.0] * 4, seeds, 1.0, 0.5, "equal", 3.0) <= 0.005


@pytest.mark.parametrize("edge", [3.0, -3.0])
def test_models_that_differ_by_the_margin_are_called_equal_in_at_most_5_percent_of_tables(edge):
    rng = np.random.default_rng(2)
    assert rate(rng, wrong({"equal"}), [edge] * 2, 3, 1.0, 0.5, "equal", 3.0) <= 0.05


@pytest.mark.parametrize(
    ("test", "effect", "margin", "seeds", "document_se"),
    [
        ("order", 2.0, 0.0, 3, 0.0),
        ("order", 3.0, 0.0, 3, 0.5),
        ("order", 4.0, 0.0, 1, 0.5),
        ("equal", 0.0, 3.0, 3, 0.5),
        ("equal", 0.0, 4.0, 1, 0.5),
        ("equal", 0.0, 2.5, 3, 0.0),
        ("closes", 0.0, 3.0, 3, 0.5),
    ],
)
def test_the_planned_effect_is_found_as_often_as_the_plan_says(test, effect, margin, seeds, document_se):
    design = Design(effect, 1.0, document_se, seeds, claims=4)
    stated = verdicts.power(test, design, margin)
    assert stated > 0.5
    rng, decided = np.random.default_rng(3), []
    gap = Estimate(9.0, 1.0, math.inf)
    for _ in range(DRAWS):
        tables = [effect + document_se * rng.normal() + rng.normal(size=seeds) for _ in range(4)]
        of_table = pooled([variance(d) for d in tables])
        judged = [nearest_verdict(test, estimate(d, of_table, document_se, 1.0), margin, gap) for d in tables]
        decided += [verdict == ("equal" if test == "equal" else "shown") for verdict in decide(judged)]
    assert np.mean(decided) >= stated - 0.01


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng, inside = np.random.default_rng(4), []
    for _ in range(DRAWS):
        tables = [rng.normal(size=3) for _ in range(4)]
        of_table = pooled([variance(d) for d in tables])
        low, high = estimate(tables[0], of_table, None, None).interval()
        inside.append(low < 0 < high)
    assert 0.935 < np.mean(inside) < 0.965


def test_the_variance_of_few_seeds_is_that_of_the_table():
    mine, other = [1.0, 2.0, 3.0], [0.0, 4.0, 8.0]
    of_table = pooled([variance(mine), variance(other), None])
    assert of_table == Variance((1 + 16) / 2, 4)
    assert estimate(mine, of_table, None, None) == Estimate(2.0, math.sqrt(8.5 / 3), 4)
    assert estimate([1.0] * 5 + [2.0], of_table, None, None).df == 5


def test_a_table_of_one_claim_is_a_paired_t_test():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, 4))
    estimated = estimate(list(a - b), pooled([variance(list(a - b))]), None, None)
    expected = stats.ttest_rel(a, b)
    assert nearest_verdict("order", estimated).p == pytest.approx(expected.pvalue)
    assert estimated.interval() == pytest.approx(tuple(expected.confidence_interval()))


def test_one_seed_is_judged_with_the_planned_error_and_without_one_not_at_all():
    assert estimate([2.0], None, 0.4, 0.3) == Estimate(2.0, pytest.approx(0.5), math.inf)
    assert nearest_verdict("order", estimate([2.0], None, 0.4, None)) == NearestVerdict(2.0, "shown")
    assert decide([nearest_verdict("order", estimate([2.0], None, 0.4, None))]) == ["undecided"]


def test_no_interval_has_width_zero():
    estimated = estimate([0.0, 0.0, 0.0], Variance(0.0, 2), None, None)
    assert estimated.interval() == (-math.inf, math.inf)
    assert decide([nearest_verdict("equal", estimated, 1.0)]) == ["undecided"]
    assert estimate([0.0, 0.0, 0.0], Variance(0.0, 2), None, 0.3).se == pytest.approx(0.3 / math.sqrt(3))
    for rounded in ([100 * a - 100 * (a - 0.4) for a in (0.9, 0.913, 0.937)], [0.0, 1e-14, -1e-14]):
        assert len(set(rounded)) > 1, "by rounding"
        assert estimate(rounded, variance(rounded), None, 0.3).se == pytest.approx(0.3 / math.sqrt(3))


def test_a_diverged_run_decides_nothing_by_itself():
    assert variance([1.0, math.inf]) is None


def test_a_gap_is_closed_only_where_it_is_shown():
    level = Estimate(0.0, 0.5, math.inf)
    assert decide([nearest_verdict("closes", level, 2.0, Estimate(3.0, 0.5, math.inf))]) == ["shown"]
    assert decide([nearest_verdict("closes", level, 2.0, Estimate(0.3, 0.5, math.inf))]) == ["undecided"]
    assert decide([nearest_verdict("closes", level, 2.0, None)]) == ["undecided"]
    below = Estimate(-4.0, 0.5, math.inf)
    assert decide([nearest_verdict("closes", below, 2.0, Estimate(3.0, 0.5, math.inf))]) == ["contradicted"]
    assert decide([nearest_verdict("closes", below, 2.0, Estimate(0.3, 0.5, math.inf))]) == ["undecided"]


def test_holm_holds_the_verdicts_of_a_table_together():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert decide([NearestVerdict(0.04, "shown"), NearestVerdict(0.01, "equal"), NearestVerdict(0.03, "shown")]) == [
        "undecided",
        "equal",
        "undecided",
    ]
    assert holm([]) == []


def test_a_claim_may_have_a_level_of_its_own():
    assert decide([NearestVerdict(0.02, "equal"), NearestVerdict(0.02, "equal", level=0.01)]) == ["equal", "undecided"]


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 5), (1, 7), (500, 499)])
def test_rare_answers_have_an_exact_interval(first, second):
    (low, high), p = exact(first, 500, second, 500)
    assert low < (first - second) / 500 < high
    assert (p < 0.05) == (not low <= 0 <= high) or abs(first - second) <= 7
    assert 0 < p <= 1


def test_exact_intervals_of_rare_answers_hold_the_truth():
    rng, truth = np.random.default_rng(6), (0.01, 0.004)
    counts = rng.binomial(500, truth, size=(400, 2))
    cache = {tuple(pair): exact(pair[0], 500, pair[1], 500)[0] for pair in np.unique(counts, axis=0)}
    assert np.mean([cache[tuple(pair)][0] < 0.006 < cache[tuple(pair)][1] for pair in counts]) >= 0.95


def test_shares_of_all_and_of_none_have_an_error():
    assert verdicts.share_error(1.0, 500) == pytest.approx(verdicts.share_error(0.0, 500))
    assert verdicts.share_error(0.0, 500) > 0


def test_power_without_a_known_error_is_none():
    assert verdicts.power("order", Design(1.0, None, 0.0, 3)) == 0.0
    assert verdicts.power("order", Design(1.0, 0.0, 0.0, 3)) == 0.0


@pytest.mark.parametrize("test", ["order", "equal", "closes"])
@pytest.mark.parametrize("seeds", [3, 10, 100])
def test_a_plan_with_more_than_enough_seeds_has_a_power_of_1(test, seeds):
    """Where scipy's noncentral t is NaN, at large shifts."""
    for errors in range(5, 200):
        effect, margin = (float(errors), 0.0) if test == "order" else (0.0, float(errors))
        power = verdicts.power(test, Design(effect, seeds**0.5 / 5, 0.0, seeds, claims=6), margin)
        assert power == pytest.approx(1.0, abs=1e-6)


def test_a_hopeless_plan_has_no_power():
    """At large shifts the other way."""
    assert verdicts.power("order", Design(-200.0, 1.0, 0.0, 100)) == pytest.approx(0.0)
    assert verdicts.power("equal", Design(100.0, 1.0, 0.0, 100), 50.0) == pytest.approx(0.0)
