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


_BISECTIONS = 50


def paired_score_interval(lost: int, won: int, pictures: int, *, error: float) -> tuple[float, float]:
    """Returns the interval of (lost − won) / pictures that misses to each side with probability `error` / 2, about.

    Tango's score interval (Statistics in Medicine 17, 1998): those differences that a score test does not reject. It
    keeps its promise where few pictures or none are judged differently, and at any error; ``paired_interval`` is too
    narrow there (no picture of n lost: up to 2/n, and Tango's 3.8/n).
    """
    edge = NormalDist().inv_cdf(1 - error / 2)
    observed = (lost - won) / pictures

    def end(toward: float) -> float:
        near, far = observed, toward
        for _ in range(_BISECTIONS):
            middle = (near + far) / 2
            near, far = (middle, far) if abs(_score(lost, won, pictures, middle)) <= edge else (near, middle)
        return near

    return end(-1.0), end(1.0)


def _score(lost: int, won: int, pictures: int, difference: float) -> float:
    """Returns Tango's statistic for a difference of the two shares; equation (5) with the estimate of (4)."""
    surplus = lost - won - pictures * difference
    # The share of pictures that only the second has, at its most likely where the difference is the given one.
    b = -lost - won + (2 * pictures - lost + won) * difference
    c = -won * difference * (1 - difference)
    share = (math.sqrt(b * b - 8 * pictures * c) - b) / (4 * pictures)
    variance = pictures * (2 * share + difference * (1 - difference))
    return surplus / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, surplus) if surplus else 0.0
