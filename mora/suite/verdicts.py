"""The statistics of a claim: the estimate of a contrast, its p-value, its verdict, and the power of a design.

All functions here are pure. The sign of every difference is such that higher is better for the contrast's first row.
Distributions and exact intervals are scipy's. Seeds are paired. If they are few, the variance of their differences is pooled
over the contrasts of a table, as in an analysis of variance, and the degrees of freedom add up. If the scores of documents
are kept, the documents are a second source of error; the degrees of freedom stay those of the seeds, which errs on the safe
side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import special

from mora.evaluate.compare import holm

ALPHA = 0.05
ENOUGH = 0.8  # a power that is high enough
FEW = 5  # with fewer seeds, the variance is pooled
RARE = 10  # with fewer right or fewer wrong answers, a difference of shares is judged exactly
ROUNDING = 1e-10  # in any unit: differences that are closer to each other differ by the rounding of their terms
AT_FLOOR = 3.0  # standard errors above the floor, within which a score is at its floor

Test = Literal["order", "equal", "closes"]
Verdict = Literal["shown", "contradicted", "equal", "undecided", "floor", "not run"]


class Variance(NamedTuple):
    """The variance of a seed's paired difference, and its degrees of freedom."""

    value: float
    df: float


class Interval(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A difference, its standard error, and the degrees of freedom of that error. An error that is not known is inf."""

    effect: float
    se: float
    df: float

    @property
    def is_assumed(self) -> bool:
        """Whether the variation over seeds is the plan's: only that has no degrees of freedom to count."""
        return math.isinf(self.df)

    def interval(self, level: float = 1 - ALPHA) -> Interval:
        if math.isinf(self.se) or math.isinf(self.effect):
            return Interval(-math.inf, math.inf)
        at = 0.5 + level / 2
        half = self.se * float(special.ndtri(at) if math.isinf(self.df) else special.stdtrit(self.df, at))
        return Interval(self.effect - half, self.effect + half)

    def above(self, bound: float) -> float:
        """Return the p-value of the one-sided test whose null hypothesis is that the difference is at most `bound`."""
        return self._tail(bound - self.effect)

    def below(self, bound: float) -> float:
        """Return the p-value of the one-sided test whose null hypothesis is that the difference is at least `bound`."""
        return self._tail(self.effect - bound)

    def _tail(self, distance: float) -> float:
        if math.isinf(self.se) or math.isnan(distance):
            return 1.0
        z = distance / self.se
        return float(special.ndtr(z) if math.isinf(self.df) else special.stdtr(self.df, z))


def variance(differences: Sequence[float]) -> Variance | None:
    """Return the variance over seeds; None for one seed, or if a run diverged. It is 0 if they differ by rounding alone."""
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return None
    same = np.ptp(differences) < ROUNDING
    return Variance(0.0 if same else float(np.var(differences, ddof=1)), len(differences) - 1)


def pooled(variances: Sequence[Variance | None]) -> Variance | None:
    """Return the mean variance, weighted by degrees of freedom; None if there is none."""
    known = [v for v in variances if v is not None]
    df = sum(v.df for v in known)
    return Variance(sum(v.df * v.value for v in known) / df, df) if known else None


def estimate(
    differences: Sequence[float], of_table: Variance | None, document_se: float | None, seed_sd: float | None
) -> Estimate:
    """Return the mean over seeds with its error, which covers seeds and, with `document_se`, documents.

    Args:
        differences: One per seed.
        of_table: The variance pooled over the contrasts of the table. It is used if there are fewer than FEW seeds.
        document_se: The standard error over documents.
        seed_sd: The standard deviation that the plan assumed. It is used for one seed, or for seeds that do not differ
            at all. Without any error nothing is decided.
    """
    n, effect = len(differences), float(np.mean(differences))
    unpooled = variance(differences)
    chosen = of_table if unpooled is not None and n < FEW and of_table is not None else unpooled
    if seed_sd is not None and (n == 1 or (chosen is not None and chosen.value == 0)):
        chosen = Variance(seed_sd**2, math.inf)
    if chosen is None:
        return Estimate(effect, math.inf, 1.0)
    total = chosen.value / n + (document_se or 0.0) ** 2
    return Estimate(effect, math.sqrt(total) if total > 0 else math.inf, chosen.df)


class NearestVerdict(NamedTuple):
    """The verdict that a claim is nearest to, its p-value, and the largest corrected p-value at which it is given."""

    p: float
    verdict: Verdict
    level: float = ALPHA


def nearest_verdict(test: Test, estimate: Estimate, margin: float = 0.0, gap: Estimate | None = None) -> NearestVerdict:
    """Return the verdict of a claim before any correction. For the test `closes`, `gap` is the gap that is to be closed."""
    if test == "order":
        return NearestVerdict(
            2 * min(estimate.above(0), estimate.below(0)), "shown" if estimate.effect > 0 else "contradicted"
        )
    outside = NearestVerdict(2 * estimate.below(-margin), "contradicted")
    if test == "equal":
        equal = NearestVerdict(max(estimate.above(-margin), estimate.below(margin)), "equal")
        return min(equal, outside, NearestVerdict(2 * estimate.above(margin), "contradicted"), key=lambda j: j.p)
    p_gap = 1.0 if gap is None else min(1.0, 2 * gap.above(0))
    nearest = min(NearestVerdict(estimate.above(-margin), "shown"), outside, key=lambda j: j.p)
    return NearestVerdict(max(nearest.p, p_gap), nearest.verdict)


def corrected(table: Sequence[NearestVerdict]) -> list[float]:
    """Return the p-values of a table's claims after Holm's correction over all of them."""
    return list(holm([nearest.p for nearest in table]))


def decide(table: Sequence[NearestVerdict]) -> list[Verdict]:
    """Return the verdicts of a table's claims, by the corrected p-values."""
    return [
        nearest.verdict if p <= nearest.level else "undecided"
        for nearest, p in zip(table, corrected(table), strict=True)
    ]


def exact(first: int, n_first: int, second: int, n_second: int, level: float = 1 - ALPHA) -> tuple[Interval, float]:
    """Return the interval of a difference of two shares, and Fisher's two-sided p.

    The exact (Clopper-Pearson) limits of the two shares are combined by adding squares (Zou and Donner 2008), which is
    also right if a share is 0 or 1.
    """
    from scipy import stats  # takes a second to import, and is seldom needed

    shares = (first / n_first, second / n_second)
    limits = [stats.binomtest(k, n).proportion_ci(level, "exact") for k, n in ((first, n_first), (second, n_second))]
    (p1, p2), ((l1, u1), (l2, u2)) = shares, ((c.low, c.high) for c in limits)
    low = p1 - p2 - math.hypot(p1 - l1, u2 - p2)
    high = p1 - p2 + math.hypot(u1 - p1, p2 - l2)
    p = float(stats.fisher_exact([[first, n_first - first], [second, n_second - second]]).pvalue)
    return Interval(float(low), float(high)), p


def share_error(share: float, documents: int) -> float:
    """Return the standard error of a share; it is not zero if all or none are right (Agresti and Coull 1998)."""
    adjusted = (share * documents + 2) / (documents + 4)
    return math.sqrt(adjusted * (1 - adjusted) / (documents + 4))


class Design(NamedTuple):
    """A plan: the effect to detect, the errors, the number of seeds, the number of claims of the table, and the level."""

    effect: float
    seed_sd: float | None
    document_se: float
    seeds: int
    claims: int = 1
    level: float = ALPHA


def power(test: Test, design: Design, margin: float = 0.0) -> float:
    """Return the chance of the right verdict if the difference is `design.effect`; 0 if no error is known.

    It is computed at the level divided by the number of claims. With Holm's correction the power is at least this. For the
    test `closes` it is the chance that the first row is placed within the margin; the gap must be shown besides.
    """
    effect, sd, document_se, n, claims, level = design
    if sd is None:
        return 0.0
    se, alpha = math.sqrt(sd**2 / n + document_se**2), level / claims
    if se == 0:
        return 0.0
    df = math.inf if n == 1 else (n - 1) * (claims if n < FEW else 1)
    if test == "order":
        return _beyond(effect / se, alpha / 2, df)
    inside = _beyond((effect + margin) / se, alpha, df)
    if test == "closes":
        return inside
    return max(0.0, inside + _beyond((margin - effect) / se, alpha, df) - 1)


def _beyond(shift: float, alpha: float, df: float) -> float:
    """Return the chance that a t statistic shifted by `shift` standard errors exceeds its critical value."""
    if math.isinf(df):
        return float(special.ndtr(shift + special.ndtri(alpha)))
    critical = -float(special.stdtrit(df, alpha))
    chance = 1 - float(special.nctdtr(df, shift, critical))
    if math.isnan(chance):  # scipy's series ends at large shifts; the approximation is Abramowitz and Stegun's 26.7.10
        z = critical * (1 - 1 / (4 * df)) - shift
        chance = float(special.ndtr(-z / math.sqrt(1 + critical**2 / (2 * df))))
    return chance
