"""The ratio of two times that were measured alternately, in rounds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy import special

from .verdicts import ALPHA, Interval


class RatioOfTimes(NamedTuple):
    """The median over rounds of the ratio of two times of the same round, and an interval of that median.

    For a comparison with a bar, numbers are rounded to three decimals, as in the tables.
    """

    median: float
    interval: Interval

    def exceeds(self, bar: float) -> bool:
        return round(self.median, 3) > bar

    def decides(self, bar: float) -> bool:
        """Return whether the whole interval lies on one side of the bar."""
        return not round(self.interval.low, 3) <= bar < round(self.interval.high, 3)


def ratio_of_times(times: Sequence[float], over: Sequence[float]) -> RatioOfTimes:
    """Return the ratio of paired times. They are paired since what disturbs a round disturbs both of its times.

    If a case failed after some rounds, only those count. The interval is that of the sign test, between two of the ordered
    ratios. It assumes no distribution, only that rounds are independent. With six rounds or more it contains the median
    with a probability of at least 95%; with fewer it is the range of the ratios.
    """
    ratios = sorted(time / other for time, other in zip(times, over, strict=False))
    n = len(ratios)
    beyond = sum(special.bdtr(k, n, 0.5) <= ALPHA / 2 for k in range(1, n))  # the number of ratios beyond each end
    return RatioOfTimes(statistics.median(ratios), Interval(ratios[beyond], ratios[n - 1 - beyond]))
