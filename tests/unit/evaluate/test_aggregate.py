"""Scores against scikit-learn and closed forms; bootstrap, McNemar and Holm against known values."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from mora.errors import DataError
from mora.evaluate.aggregate import aggregate, bootstrap, majority_baseline, standard_error
from mora.evaluate.compare import compare, holm, mcnemar, two_sided_p
from mora.evaluate.harness import average
from mora.evaluate.logged import LoggedSamples

RNG = np.random.default_rng(0)
GOLD = RNG.choice(["a", "b", "c"], 200, p=[0.6, 0.3, 0.1])
SAID = np.where(RNG.random(200) < 0.6, GOLD, RNG.choice(["a", "b", "d"], 200))


def test_weighted_f1_is_scikit_learns():
    expected = f1_score(GOLD, SAID, average="weighted", zero_division=0)
    assert aggregate("weighted_f1", list(zip(GOLD, SAID, strict=True))) == pytest.approx(expected)


def test_group_weighted_f1_is_the_mean_over_groups():
    groups = ["x"] * 50 + ["y"] * 150
    expected = np.mean([f1_score(GOLD[s], SAID[s], average="weighted", zero_division=0) for s in np.s_[:50, 50:]])
    assert aggregate("group_weighted_f1", list(zip(groups, GOLD, SAID, strict=True))) == pytest.approx(expected)


def test_a_constant_answer_scores_what_the_label_counts_predict():
    share = np.mean(GOLD == "a")
    items = [(gold, "a") for gold in GOLD]
    assert aggregate("weighted_f1", items) == pytest.approx(share * 2 * share / (1 + share))


def test_perplexity_weights_by_tokens():
    assert aggregate("perplexity", [(-10.0, 10), (-4.0, 1)]) == pytest.approx(np.exp(14 / 11))


def test_bootstrap_of_a_mean_has_the_closed_forms_spread():
    items = (GOLD == SAID).astype(float).tolist()
    assert np.std(bootstrap("mean", items, draws=4000)) == pytest.approx(standard_error("mean", items), rel=0.06)


def test_copies_in_a_cluster_add_no_evidence():
    items = (GOLD == SAID).astype(float).tolist()
    clusters = list(range(200)) * 4
    assert standard_error("mean", items * 4, clusters) == pytest.approx(standard_error("mean", items), rel=0.08)


def test_one_document_or_cluster_has_no_error():
    assert np.isnan(standard_error("mean", [1.0]))
    assert np.isnan(standard_error("mean", [1.0, 0.0, 1.0], ["a"] * 3))


def test_mcnemar_is_the_exact_binomial():
    a, b = [1.0] * 8 + [0.0] * 2 + [1.0] * 5, [0.0] * 8 + [1.0] * 2 + [1.0] * 5
    assert mcnemar(a, b) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert mcnemar(a, a) == 1.0
    assert mcnemar([1.0] * 3000, [0.0] * 1400 + [1.0] * 1600) < 1e-300, "counts whose binomials no float holds"


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def logged(scores, prompts="p"):
    header = {"task": "t", "aggregation": "mean", "prompts": prompts}
    return LoggedSamples(header, [{"score": s, "cluster": None} for s in scores])


def test_a_paired_difference():
    a = (RNG.random(400) < 0.5).astype(float)
    better = np.where(np.arange(400) % 10 == 0, 1.0, a)
    result = compare(logged(a.tolist()), logged(better.tolist()), draws=2000)
    assert result.low > 0
    assert result.p < 0.01
    assert result.difference == pytest.approx(better.mean() - a.mean())
    same = compare(logged(a.tolist()), logged(a.tolist()), draws=200)
    assert (same.p, same.mcnemar_p, same.low, same.high) == (1.0, 1.0, 0.0, 0.0)


def test_the_interval_is_of_95_percent_and_clusters_stay_whole():
    a, b = (RNG.random(400) < 0.5).astype(float), (RNG.random(400) < 0.6).astype(float)
    single = compare(logged(a.tolist()), logged(b.tolist()))
    assert single.high - single.low == pytest.approx(2 * 1.96 * np.std(b - a) / 20, rel=0.06)
    four = [
        LoggedSamples(k.header, [{**row, "cluster": i % 400} for i, row in enumerate(k.rows * 4)])
        for k in (logged(a), logged(b))
    ]
    together = compare(*four)
    assert together.high - together.low == pytest.approx(single.high - single.low, rel=0.06)
    assert together.mcnemar_p is None


def test_p_counts_both_tails_and_the_draws_differ():
    assert two_sided_p(np.array([-1.0] + [1.0] * 18)) == pytest.approx(2 * 2 / 20)
    drawn = bootstrap("mean", RNG.random(50).tolist(), draws=500)
    assert len(np.unique(drawn)) == 500


def test_a_groups_score_is_the_plain_mean_and_its_error_that_of_independent_tasks():
    members = [{"score": 0.4, "score_stderr": 0.03}, {"score": 0.6, "score_stderr": 0.04}]
    assert average(members) == pytest.approx({"score": 0.5, "score_stderr": 0.025})
    assert average([*members, {"acc": 1.0}]) == {}


def test_runs_over_other_documents_are_not_compared():
    with pytest.raises(DataError, match="prompts"):
        compare(logged([1.0]), logged([1.0], prompts="q"))


def test_documents_of_one_cluster_are_not_compared():
    one = [
        LoggedSamples(k.header, [{**row, "cluster": "a"} for row in k.rows])
        for k in (logged([0.0] * 5), logged([1.0] * 5))
    ]
    with pytest.raises(DataError, match="all 5 documents are one cluster"):
        compare(*one)


def test_the_floor_is_the_best_constant_answer():
    assert majority_baseline("mean", [0, 1, 1, 2], [0.0, 1.0, 0.0, 1.0]) == 0.5
    pairs = [("yes", "no"), ("yes", "yes"), ("no", "no")]
    assert majority_baseline("weighted_f1", [0, 0, 1], pairs) == pytest.approx(2 / 3 * 0.8)  # always "yes"
    groups = [(group, gold, "?") for group in "ab" for gold in ("yes", "yes", "no")]
    assert majority_baseline("group_weighted_f1", [0] * 6, groups) == pytest.approx(2 / 3 * 0.8)
