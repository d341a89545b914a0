"""The ratio of two times that were measured in turn, round after round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy import special

from .verdicts import ALPHA, Interval


class RatioOfTimes(NamedTuple):
    """The median over the rounds of one time over another of the same round, and an interval of that median.

    A bar is compared with three digits, as tables print them.
    """

    median: float
    interval: Interval

    def exceeds(self, bar: float) -> bool:
        return round(self.median, 3) > bar

    def decides(self, bar: float) -> bool:
        """Whether the whole interval lies on one side of the bar."""
        return not round(self.interval.low, 3) <= bar < round(self.interval.high, 3)


def ratio_of_times(times: Sequence[float], over: Sequence[float]) -> RatioOfTimes:
    """Return the ratio of paired times: what disturbs a round disturbs both of its times.

    A case that failed after some rounds is compared over those. The interval is the sign test's, between two of the ordered
    ratios: it assumes no distribution, only that rounds are independent, and holds the median with at least 95% from six
    rounds on. With fewer it is the range of the ratios.
    """
    ratios = sorted(time / other for time, other in zip(times, over, strict=False))
    n = len(ratios)
    beyond = sum(special.bdtr(k, n, 0.5) <= ALPHA / 2 for k in range(1, n))  # ratios beyond each end of the interval
    return RatioOfTimes(statistics.median(ratios), Interval(ratios[beyond], ratios[n - 1 - beyond]))
