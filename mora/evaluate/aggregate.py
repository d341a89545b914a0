"""Scores from one item per document, and their standard errors.

An aggregation turns its items into features, one row per document, and a function of the sums of these features. A
bootstrap draw is then a weighting of clusters, and all draws together are one matrix product.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

DRAWS = 1000  # bootstrap draws for a standard error; comparisons take more
DRAWS_AT_ONCE = 250

Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]
Tokens = Annotated[float, Field(gt=0, le=1e9)]
Some = Field(min_length=1)
ITEMS: dict[str, TypeAdapter[Any]] = {  # by aggregation, the type of an item in a file
    "mean": TypeAdapter(Annotated[list[Number], Some]),
    "perplexity": TypeAdapter(Annotated[list[tuple[Number, Tokens]], Some]),
    "weighted_f1": TypeAdapter(Annotated[list[tuple[str, str]], Some]),
    "group_weighted_f1": TypeAdapter(Annotated[list[tuple[str, str, str]], Some]),
}

Features = np.ndarray  # (documents, features), float64
Value = Callable[[np.ndarray], np.ndarray]  # sums of features, (draws, features) -> scores, (draws,)


def mean_parts(items: Sequence[float]) -> tuple[Features, Value]:
    values = np.asarray(items, dtype=np.float64)
    return np.stack([values, np.ones_like(values)], axis=1), lambda sums: sums[:, 0] / sums[:, 1]


def perplexity_parts(items: Sequence[tuple[float, int]]) -> tuple[Features, Value]:
    """Return the parts of perplexity. An item is a block's (log-likelihood in nats, number of tokens).

    Perplexity is exp of the mean negative log-likelihood over all tokens.
    """
    return np.asarray(items, dtype=np.float64), lambda sums: np.exp(-sums[:, 0] / sums[:, 1])


def weighted_f1_parts(items: Sequence[tuple[str, str]]) -> tuple[Features, Value]:
    """Return the parts of weighted F1. An item is (gold, predicted).

    Weighted F1 is the mean of the gold labels' F1, weighted by the number of documents of each.
    """
    return group_weighted_f1_parts([("", gold, predicted) for gold, predicted in items])


def group_weighted_f1_parts(items: Sequence[tuple[str, str, str]]) -> tuple[Features, Value]:
    """Return the parts of grouped weighted F1. An item is (group, gold, predicted).

    It is the plain mean over groups of the weighted F1 within each group.
    """
    groups = {g: i for i, g in enumerate(sorted({group for group, _, _ in items}))}
    labels = {label: i for i, label in enumerate(sorted({x for _, *pair in items for x in pair}))}
    shape = (len(groups), len(labels), len(labels))
    cells = [np.ravel_multi_index((groups[g], labels[gold], labels[predicted]), shape) for g, gold, predicted in items]
    features = np.zeros((len(items), int(np.prod(shape))))
    features[np.arange(len(items)), cells] = 1.0

    def value(sums: np.ndarray) -> np.ndarray:
        confusion = sums.reshape(-1, *shape)  # draws, groups, gold, predicted
        gold, predicted = confusion.sum(-1), confusion.sum(-2)
        hits = np.diagonal(confusion, axis1=-2, axis2=-1)
        f1 = 2 * hits / np.maximum(gold + predicted, 1e-12)
        size = gold.sum(-1)
        by_group = (gold * f1).sum(-1) / np.maximum(size, 1e-12)
        return np.nansum(np.where(size > 0, by_group, 0.0), -1) / np.maximum((size > 0).sum(-1), 1)

    return features, value


PARTS: dict[str, Callable[[Any], tuple[Features, Value]]] = {
    "mean": mean_parts,
    "perplexity": perplexity_parts,
    "weighted_f1": weighted_f1_parts,
    "group_weighted_f1": group_weighted_f1_parts,
}


def items_of(name: str, items: Any) -> list[Any]:
    """Validate the items that a file holds for the aggregation `name`. Raises ValueError with the first wrong one."""
    if name not in ITEMS:
        raise ValueError(f"aggregation={name!r}: expected {', '.join(ITEMS)}")
    try:
        return ITEMS[name].validate_python(items)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("items", *first["loc"]))
        raise ValueError(f"{where}={str(first['input'])[:80]!r}: {first['msg']}") from error


def aggregate(name: str, items: Sequence[Any]) -> float:
    """Return the score of all items under the aggregation `name` (a key of PARTS)."""
    features, value = PARTS[name](items)
    return float(value(features.sum(0, keepdims=True))[0])


def perplexity(items: Sequence[tuple[float, int]]) -> float:
    return aggregate("perplexity", items)


def weighted_f1(items: Sequence[tuple[str, str]]) -> float:
    return aggregate("weighted_f1", items)


def group_weighted_f1(items: Sequence[tuple[str, str, str]]) -> float:
    return aggregate("group_weighted_f1", items)


@lru_cache(maxsize=4)
def resample(counts: int, draws: int, seed: int = 0) -> np.ndarray:
    """Return how often each of `counts` clusters is drawn with replacement, as int64 (draws, counts); rows sum to `counts`.

    The array is read-only, since all models that scored as many clusters share it.
    """
    rng = np.random.default_rng([seed, counts])
    drawn = rng.multinomial(counts, np.full(counts, 1 / counts), size=draws)
    drawn.flags.writeable = False
    return drawn


def bootstrap(
    name: str, items: Sequence[Any], clusters: Sequence[Hashable] | None = None, draws: int = DRAWS
) -> np.ndarray:
    """Return the scores of `draws` resamples of whole clusters, float64 (draws,). With None, each document is a cluster.

    The same clusters in the same order give the same resamples, so the draws of two models are paired.
    """
    features, value = PARTS[name](items)
    if clusters is not None:
        number = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
        summed = np.zeros((len(number), features.shape[1]))
        np.add.at(summed, [number[c] for c in clusters], features)
        features = summed
    scores = []
    for start in range(0, draws, DRAWS_AT_ONCE):
        weights = resample(len(features), min(DRAWS_AT_ONCE, draws - start), seed=start)
        scores.append(value(weights.astype(np.float64) @ features))
    return np.concatenate(scores)


def majority_baseline(name: str, gold: Sequence[Any], items: Sequence[Any]) -> float:
    """Return the score of the best constant answer to multiple-choice documents, which takes no knowledge of the texts.

    Args:
        name: The aggregation.
        gold: The indices of the right options, which the aggregation `mean` needs.
        items: The items, which other aggregations need. The right label is the last element but one of each.
    """
    if name == "mean":
        return max(Counter(gold).values()) / len(gold)
    labels = {item[-2] for item in items}
    return max(aggregate(name, [(*item[:-1], label) for item in items]) for label in labels)


def standard_error(name: str, items: Sequence[Any], clusters: Sequence[Hashable] | None = None) -> float:
    """Return the standard error: in closed form for a mean over independent documents, else from the spread of `bootstrap`.

    It is NaN if there is only one item or one cluster.
    """
    if len(items if clusters is None else set(clusters)) < 2:
        return float("nan")
    if name == "mean" and clusters is None:
        return float(np.std(np.asarray(items, dtype=np.float64), ddof=1) / np.sqrt(len(items)))
    return float(np.std(bootstrap(name, items, clusters), ddof=1))
