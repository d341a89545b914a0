"""The ratio of two times that were measured in turn, round after round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy import special

from .verdicts import ALPHA, Interval


class RatioOfTimes(NamedTuple):
    """The median over the rounds of one time over another of the same round. `interval`: 95%, of that median."""

    median: float
    interval: Interval

    def exceeds(self, bar: float) -> bool:
        return round(self.median, 3) > bar

    def decides(self, bar: float) -> bool:
        """Whether the whole interval lies on one side of the bar."""
        return not self.interval.low <= bar < self.interval.high


def ratio_of_times(times: Sequence[float], others: Sequence[float]) -> RatioOfTimes:
    """Return the ratio of paired times: what disturbs a round disturbs both of its times.

    A case that failed after some rounds is compared over those. The interval is the sign test's, between two of the ordered
    ratios, so it assumes no distribution. Fewer than six rounds do not give 95%; then it reaches from the smallest ratio to
    the largest.
    """
    ratios = sorted(time / other for time, other in zip(times, others, strict=False))
    n = len(ratios)
    beyond = sum(special.bdtr(k, n, 0.5) <= ALPHA / 2 for k in range(1, n))  # ratios beyond each end of the interval
    return RatioOfTimes(statistics.median(ratios), Interval(ratios[beyond], ratios[n - 1 - beyond]))
