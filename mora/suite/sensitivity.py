"""How the ledger's verdicts depend on the rule for the variance of a seed's difference. This decides no verdict."""

from __future__ import annotations

import math
from typing import NamedTuple

from mora.config.hardware_schema import ScaleName

from . import verdicts
from .claims import COMPARED, Claim, load
from .contrasts import Measured, ResolvedTables
from .ledger import Estimator, all_done, all_outcomes, gaps_to_close, nearest_verdicts, pooled_estimator
from .verdicts import FEW, Estimate, Verdict

RULE = "the rule"


class Again(NamedTuple):
    """A judged claim, and by each way its p-value after Holm's correction. A p-value of at most `level` decides."""

    claim: Claim
    scale: ScaleName
    verdict: Verdict
    level: float
    ways: dict[str, float]


def again(resolved: ResolvedTables) -> list[Again]:
    """Judge again every claim that is complete and above its floor, once for each way to estimate the variance."""
    found = {(claim.says, scale): outcome for claim, scale, outcome in all_outcomes(resolved)}
    claims, lines = load().claims, []
    for scale in COMPARED:
        for name in dict.fromkeys(claim.experiment for claim in claims if claim.experiment):
            table = [claim for claim in claims if claim.experiment == name]
            standing = [found[key].verdict if (key := (c.says, scale)) in found else "not run" for c in table]
            lines += _judge_again(table, scale, standing, resolved)
    return lines


def _judge_again(table: list[Claim], scale: ScaleName, verdict: list[Verdict], resolved: ResolvedTables) -> list[Again]:
    every = [resolved.measured(claim, claim.primary, scale) for claim in table]
    to_close = gaps_to_close(table, scale, resolved)
    standing: list[Verdict] = [v if v in ("not run", "floor") else "undecided" for v in verdict]
    ways: dict[str, list[float]] = {}
    for way, estimator in _ways(table, every).items():
        judged = nearest_verdicts(table, every, standing, estimator, to_close)
        ways[way] = verdicts.corrected(judged)
    return [
        Again(claim, scale, verdict[i], claim.level(every[i].planned), {way: p[i] for way, p in ways.items()})
        for i, claim in enumerate(table)
        if standing[i] == "undecided" and all_done(every[i], to_close[i])
    ]


def _ways(table: list[Claim], every: list[Measured]) -> dict[str, Estimator]:
    few = [(claim, measured) for claim, measured in zip(table, every, strict=True) if len(measured.seeds) < FEW]
    return {
        RULE: pooled_estimator(table, every),
        f"pool of contrasts with fewer than {FEW} seeds": pooled_estimator([c for c, _ in few], [m for _, m in few]),
        "own seeds": _own,
        "own seeds, Satterthwaite": _satterthwaite,
    }


def _own(claim: Claim, measured: Measured) -> Estimate | None:
    if not measured.seeds:
        return None
    return verdicts.estimate(measured.differences, None, measured.document_se, claim.plan.seed_sd)


def _satterthwaite(claim: Claim, measured: Measured) -> Estimate | None:
    """Estimate with Satterthwaite's degrees of freedom for the sum of both errors; that over documents counts as known.

    Satterthwaite 1946, "An approximate distribution of estimates of variance components", Biometrics Bulletin 2.
    """
    own, n = _own(claim, measured), len(measured.seeds)
    unpooled = verdicts.variance(measured.differences)
    if own is None or unpooled is None or unpooled.value == 0 or math.isinf(own.se):
        return own
    return Estimate(own.effect, own.se, unpooled.df * (own.se**2 / (unpooled.value / n)) ** 2)
