"""Shares of pictures, and how far chance in the pictures may have moved them."""

from __future__ import annotations

import math
from statistics import NormalDist

_Z95 = NormalDist().inv_cdf(0.975)


def share_interval(count: int, pictures: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share, 0 to 1 (Wilson, J. American Statistical Association 22, 1927)."""
    from scipy import stats

    found = stats.binomtest(count, pictures).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def paired_interval(lost: int, won: int, pictures: int) -> tuple[float, float]:
    """Returns the 95 % interval of the difference of two matched shares, (lost − won) / pictures.

    Wald's, with half a picture added to each of the four counts: Agresti and Min, Statistics in Medicine 24(5), 2005.
    Only the first has those `lost`, only the second those `won`; `pictures` are all, with those that both or none have.
    """
    total, surplus = pictures + 2, lost - won
    deviation = math.sqrt(lost + won + 1 - surplus**2 / total) / total
    return surplus / total - _Z95 * deviation, surplus / total + _Z95 * deviation
