"""Errors over documents that both rows scored, beside results made up for the test."""

from dataclasses import replace

import numpy as np
import pytest
from made_up import write

from mora.config.run_id import documents_path
from mora.evaluate import documents
from mora.evaluate.logged import LoggedSamples
from mora.suite import experiments, ledger, pairing
from mora.suite.cell_specs import cell_specs
from mora.suite.cells import resolve
from mora.suite.claims import Claim

pytestmark = pytest.mark.usefixtures("nothing_measured")

ITEMS = 2000


def run_all(name, method, r, column, task, items_of_seed, metrics, aggregation="mean", prompts="p"):
    """The row's search and finals, with the scores of each final run's documents."""
    rows = cell_specs(experiments.load(name), "lite")
    spec = next(row[column] for row in rows if (row[0].row.method, row[0].row.r) == (method, r))
    for i, config in enumerate(spec.search_runs):
        write(config, {"validation_loss": float(i != 1)})
    for config, items in zip(resolve(spec).final_runs, items_of_seed, strict=True):
        write(config, {"validation_loss": 1.0, **metrics(items)})
        header = {"task": task, "aggregation": aggregation, "headline": "score", "prompts": prompts}
        logged = LoggedSamples(header, [{"cluster": None, "score": item} for item in items])
        kept = documents.read(documents_path(config)) if documents_path(config).is_file() else {}
        documents.write(documents_path(config), {**kept, task: logged})
    return resolve(spec)


def answers(rng, share, seeds=3, like=None):
    """Right or wrong, four of five as in `like`."""
    by_seed = [(rng.random(ITEMS) < share).astype(float) for _ in range(seeds)]
    return (
        by_seed
        if like is None
        else [np.where(rng.random(ITEMS) < 0.8, a, b) for a, b in zip(like, by_seed, strict=True)]
    )


def share(items):
    return of_task("mmlu_tulu_0shot", items)


def of_task(name, items):
    return {
        f"{name}.score": float(np.mean(items)),
        f"{name}.score_stderr": 0.01,
        f"{name}.documents": float(len(items)),
    }


def test_the_error_is_that_of_the_paired_differences_and_enters_the_interval():
    rng = np.random.default_rng(0)
    lora = answers(rng, 0.5)
    mora = answers(rng, 0.5, like=lora)
    a = run_all("table1", "mora", 1, 0, "mmlu_tulu_0shot", mora, share)
    b = run_all("table1", "lora", 1, 0, "mmlu_tulu_0shot", lora, share)
    error = pairing.error([a], [b], [0, 1, 2], "points")
    differences = np.mean([x - y for x, y in zip(mora, lora, strict=True)], axis=0)
    assert error == pytest.approx(100 * differences.std(ddof=1) / np.sqrt(ITEMS))
    claim = Claim.model_validate(
        {
            "says": "equal", "where": "here", "experiment": "table1", "columns": ["mmlu_0shot"], "test": "equal",
            "first": {"method": "mora", "r": 8}, "second": {"method": "lora", "r": 8}, "margin": 3.0,
        }
    )  # fmt: skip
    (outcome,) = ledger.judge([claim], "lite")
    assert "paired over documents" in outcome.notes
    assert outcome.interval.high - outcome.interval.low > 2 * 1.6 * error


def test_perplexities_are_compared_in_nats_over_the_same_blocks():
    rng = np.random.default_rng(1)
    hard = rng.normal(4.0, 1.0, 200)
    blocks = {
        name: [[(-255 * x, 255) for x in hard + off + rng.normal(0, 0.01, 200)]] * 3
        for name, off in (("a", 0), ("b", 0.05))
    }
    name = "c4_perplexity_local"

    def metrics(items):
        return {f"{name}.score": float(np.exp(-sum(x for x, _ in items) / sum(n for _, n in items)))}

    a = run_all("table3", "mora", 128, 0, name, blocks["a"], metrics, "perplexity")
    b = run_all("table3", "lora", 128, 0, name, blocks["b"], metrics, "perplexity")
    error = pairing.error([a], [b], [0, 1, 2], "nats")
    assert error == pytest.approx(0.01 * np.sqrt(2 / 200), rel=0.2), "not the spread of the blocks, 1.0 nat"


def test_other_documents_an_earlier_step_and_scores_that_are_not_kept_are_not_paired():
    rng = np.random.default_rng(2)
    lora = answers(rng, 0.5)
    a = run_all("table1", "mora", 1, 0, "mmlu_tulu_0shot", lora, share)
    b = run_all("table1", "lora", 1, 0, "mmlu_tulu_0shot", lora, share, prompts="other")
    assert pairing.error([a], [b], [0, 1, 2], "points") is None
    assert pairing.error([a], [a], [0, 1, 2], "points") == 0.0
    config = a.results[1][0]
    logged = documents.read(documents_path(config))["mmlu_tulu_0shot"]
    documents.write(
        documents_path(config), {"mmlu_tulu_0shot": replace(logged, header=logged.header | {"prompts": "q"})}
    )
    assert pairing.error([a], [a], [0, 2], "points") == 0.0
    assert pairing.error([a], [a], [0, 1, 2], "points") is None, "seeds of different documents"
    a = run_all("table1", "mora", 1, 0, "mmlu_tulu_0shot", lora, share)
    documents_path(a.results[0][0]).unlink()
    assert pairing.error([a], [a], [0], "points") is None
    assert pairing.error([a], [a], [0, 1, 2], "points") == 0.0, "of the seeds that are kept"
    at_a_step = resolve(cell_specs(experiments.load("table2"), "lite")[1][0])
    assert pairing.error([at_a_step], [at_a_step], [0], "points") is None


def test_two_prompts_of_the_same_questions_are_added_question_by_question():
    rng = np.random.default_rng(0)
    lora, mora = answers(rng, 0.5), answers(rng, 0.5)
    named = {0: "mmlu_tulu_0shot", 1: "mmlu_tulu_5shot"}

    def rows(method, items):
        return [run_all("table1", method, 1, c, named[c], items, lambda i, c=c: of_task(named[c], i)) for c in named]

    first, second = rows("mora", mora), rows("lora", lora)
    one = pairing.error(first[:1], second[:1], [0, 1, 2], "points")
    assert pairing.error(first, second, [0, 1, 2], "points") == pytest.approx(one), (
        "the same answers twice tell no more"
    )
