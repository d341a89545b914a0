"""Multiple choice by log-likelihood: what a document is, and how the options' log-likelihoods become a prediction."""

from __future__ import annotations

import math
from typing import Any

import datasets

from mora.errors import DataError, NonFiniteError

from .records import Record, field_error, text, texts

Doc = dict[str, Any]


class LogLikelihood(float):
    """The nats of a continuation, with its number of tokens, which lm-eval's plain float lacks."""

    n_tokens: int

    def __new__(cls, value: float, n_tokens: int) -> LogLikelihood:
        self = super().__new__(cls, value)
        self.n_tokens = n_tokens
        return self


def as_test_split(docs: list[Doc]) -> dict[str, datasets.Dataset]:
    """Return the documents in the form that lm-eval expects of `custom_dataset`. Raises DataError if there are none."""
    if not docs:
        raise DataError("the rows of this evaluation set make no documents")
    return {"test": datasets.Dataset.from_list(docs)}


def adaptllm_doc(record: Record) -> Doc:
    """Return a row of AdaptLLM's sets with options as a document. Its prompt includes the demonstrations.

    Raises DataError.
    """
    options, gold = texts(record, "options"), record.row["gold_index"]
    if not all(options):
        raise field_error(record, "options", "a list of texts, none of them empty")
    if type(gold) is not int or gold not in range(len(options)):
        raise field_error(record, "gold_index", f"the index of one of its {len(options)} options")
    return {"prompt": text(record, "input"), "options": options, "gold": gold}


def score(doc: Doc, results: list[tuple[float, bool]]) -> dict[str, Any]:
    """Score a multiple-choice document.

    With a plain HFLM, which gives no token counts, options are compared by the sum of their log-likelihoods.

    Returns:
        `score`: accuracy by the mean log-likelihood per token; `acc_sum`: by the sum; `gold_nll`: the nats per token of
            the gold option.

    Raises:
        NonFiniteError: A value is not finite. Our own Backend raises this before.
    """
    sums = [value for value, _ in results]
    if not all(map(math.isfinite, sums)):
        raise NonFiniteError(f"the log-likelihoods of the options are {sums} after {doc['prompt'][-60:]!r}")
    means = [value / getattr(value, "n_tokens", 1) for value in sums]
    gold = doc["gold"]
    return {
        "score": float(best(means) == gold),
        "acc_sum": float(best(sums) == gold),
        "gold_nll": -means[gold],
    }


def score_f1(doc: Doc, results: list[tuple[float, bool]]) -> dict[str, Any]:
    """Score as `score` does, but with (gold, predicted), the item of weighted F1, as `score`, and the accuracy as `acc`."""
    scored = score(doc, results)
    means = [value / getattr(value, "n_tokens", 1) for value, _ in results]
    pair = (doc["options"][doc["gold"]], doc["options"][best(means)])
    return {**scored, "score": pair, "acc": scored["score"]}


def score_group_f1(doc: Doc, results: list[tuple[float, bool]]) -> dict[str, Any]:
    """Score as `score_f1` does, with the document's group before the pair."""
    scored = score_f1(doc, results)
    return {**scored, "score": (str(doc["group"]), *scored["score"])}


def best(values: list[float]) -> int:
    """Return the index of the first largest value."""
    return max(range(len(values)), key=values.__getitem__)
