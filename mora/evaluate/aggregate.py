"""Scores from one item per document, and their errors.

An aggregation turns its items into features, one row per document, and a function of the features' sums. A bootstrap
draw is then a weighting of clusters, and all draws are one matrix product.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

DRAWS = 1000  # for a standard error; comparisons take more
DRAWS_AT_ONCE = 250

Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]
Tokens = Annotated[float, Field(gt=0, le=1e9)]
Some = Field(min_length=1)
ITEMS: dict[str, TypeAdapter[Any]] = {  # of each aggregation, as a file holds them
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
    """Return the parts of perplexity; items are (log-likelihood in nats, tokens) of a block.

    Perplexity is exp of the mean negative log-likelihood over all tokens.
    """
    return np.asarray(items, dtype=np.float64), lambda sums: np.exp(-sums[:, 0] / sums[:, 1])


def weighted_f1_parts(items: Sequence[tuple[str, str]]) -> tuple[Features, Value]:
    """Return the parts of weighted F1; items are (gold, predicted).

    It is the F1 of each gold label, weighted by the number of its documents.
    """
    return group_weighted_f1_parts([("", gold, predicted) for gold, predicted in items])


def group_weighted_f1_parts(items: Sequence[tuple[str, str, str]]) -> tuple[Features, Value]:
    """Return the parts of grouped weighted F1; items are (group, gold, predicted).

    It is the weighted F1 within each group, then the plain mean over groups.
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
    """Return how often each of `counts` clusters is drawn with replacement: int64 (draws, counts), rows sum to `counts`.

    The array is read only: it is shared by every model that scored as many clusters.
    """
    rng = np.random.default_rng([seed, counts])
    drawn = rng.multinomial(counts, np.full(counts, 1 / counts), size=draws)
    drawn.flags.writeable = False
    return drawn


def bootstrap(
    name: str, items: Sequence[Any], clusters: Sequence[Hashable] | None = None, draws: int = DRAWS
) -> np.ndarray:
    """Return the scores of `draws` resamplings of whole clusters, float64 (draws,); None: each document is its own cluster.

    The same clusters in the same order give the same resamples, so two models' draws are paired.
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
    """Return the score of the best constant answer to multiple-choice documents, which needs no reading.

    Args:
        name: The aggregation.
        gold: The indices of the right options, for a mean.
        items: For other aggregations, each holds the right label before its last element.
    """
    if name == "mean":
        return max(Counter(gold).values()) / len(gold)
    labels = {item[-2] for item in items}
    return max(aggregate(name, [(*item[:-1], label) for item in items]) for label in labels)


def standard_error(name: str, items: Sequence[Any], clusters: Sequence[Hashable] | None = None) -> float:
    """Return the closed form for a mean over independent documents, else the spread of `bootstrap`.

    NaN for one item or one cluster.
    """
    if len(items if clusters is None else set(clusters)) < 2:
        return float("nan")
    if name == "mean" and clusters is None:
        return float(np.std(np.asarray(items, dtype=np.float64), ddof=1) / np.sqrt(len(items)))
    return float(np.std(bootstrap(name, items, clusters), ddof=1))
