"""Every claim judged again by other estimates of the variance, on differences made up for the test."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from mora.suite import ledger, ledger_text, pairing, sensitivity
from mora.suite.claims import Claim, load
from mora.suite.contrasts import ResolvedTables
from mora.suite.ledger import pooled_estimator

CLAIM = Claim.model_validate({"says": "a is better", "where": "a test", "experiment": "table1", "plan": {"effect": 1}})
LOOSE, TIGHT = [1.0, 4.0, 2.5], [0.9, 1.1, 1.0, 1.05, 0.95, 1.0, 1.0]


def measured(differences, document_se=None):
    seeds = list(range(len(differences)))
    return SimpleNamespace(differences=differences, seeds=seeds, document_se=document_se, unit="points", doubts={})


def p_value(estimate):
    return 2 * min(estimate.above(0), estimate.below(0))


def test_own_seeds_are_a_paired_t_test():
    estimate = sensitivity._own(CLAIM, measured(LOOSE))
    assert p_value(estimate) == pytest.approx(stats.ttest_1samp(LOOSE, 0).pvalue)


def test_a_contrast_with_many_seeds_is_in_the_rules_pool_and_not_in_that_of_few():
    every = [measured(LOOSE), measured(TIGHT)]
    ways = sensitivity._ways([CLAIM, CLAIM], every)
    rule, few, own = list(ways.values())[:3]
    assert rule(CLAIM, every[0]) == pooled_estimator([CLAIM, CLAIM], every)(CLAIM, every[0])
    assert rule(CLAIM, every[0]).df == 2 + 6
    assert rule(CLAIM, every[0]).se < few(CLAIM, every[0]).se
    assert few(CLAIM, every[0]) == own(CLAIM, every[0])
    assert few(CLAIM, every[1]) == own(CLAIM, every[1]) == rule(CLAIM, every[1])


def test_where_every_contrast_has_many_seeds_none_is_pooled():
    every = [measured(TIGHT), measured(TIGHT)]
    estimates = [estimator(CLAIM, every[0]) for estimator in sensitivity._ways([CLAIM, CLAIM], every).values()]
    assert estimates[0] == estimates[1] == estimates[2]


def test_documents_add_degrees_of_freedom_to_those_of_the_seeds():
    alone, both = sensitivity._satterthwaite(CLAIM, measured(LOOSE)), measured(LOOSE, document_se=0.5)
    assert alone.df == pytest.approx(2)
    seeds, documents = np.var(LOOSE, ddof=1) / 3, 0.5**2
    estimate = sensitivity._satterthwaite(CLAIM, both)
    assert estimate.df == pytest.approx((seeds + documents) ** 2 / (seeds**2 / 2))
    assert (estimate.effect, estimate.se) == (sensitivity._own(CLAIM, both).effect, sensitivity._own(CLAIM, both).se)


def test_one_seed_and_equal_seeds_keep_the_planned_error():
    planned = CLAIM.model_copy(update={"plan": CLAIM.plan.model_copy(update={"seed_sd": 2.0})})
    for differences in ([1.0], [1.0, 1.0, 1.0]):
        estimate = sensitivity._satterthwaite(planned, measured(differences))
        assert estimate.se == pytest.approx(2 / len(differences) ** 0.5)
        assert estimate.df == float("inf")


def test_the_page_marks_what_would_decide(monkeypatch):
    ways = {"the rule": 0.02, "own seeds": 0.4}
    lines = [sensitivity.Again(CLAIM, "mid", "shown", 0.05, ways), sensitivity.Again(CLAIM, "mid", "shown", 0.01, ways)]
    monkeypatch.setattr(ledger_text, "again", lambda resolved: lines)
    text = "\n".join(ledger_text._sensitivity(ResolvedTables()))
    assert "| claim | scale | verdict | the rule | own seeds |" in text
    assert "| a is better | mid | shown | **0.020** | 0.400 |" in text
    assert "| a is better (level 0.01) | mid | shown | 0.020 | 0.400 |" in text


def test_judging_again_asks_no_documents_again(monkeypatch):
    """The error over documents, which takes seconds, is that of the contrast that was measured for the verdict."""
    of_table2 = load().model_copy(update={"claims": [claim for claim in load().claims if claim.experiment == "table2"]})
    for module in (ledger, sensitivity):
        monkeypatch.setattr(module, "load", lambda: of_table2)
        monkeypatch.setattr(module, "COMPARED", ("lite",))
    asked = []
    monkeypatch.setattr(pairing, "error", lambda *contrast: asked.append(contrast))
    again = sensitivity.again(ResolvedTables())
    assert len(again) == len(of_table2.claims) == len(asked)
