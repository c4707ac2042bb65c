"""What a list of times supports: median with interval, percentiles, and how independent the samples were.

The interval of the median is the order-statistic interval (Conover, Practical Nonparametric Statistics, 3rd ed.,
section 3.2): it assumes no distribution and holds for few samples. A percentile bootstrap of a median picks the same
order statistics in the limit, but promises too much below some twenty samples, and a benchmark of a large batch has
no more than that.

Runs that follow each other are not independent: a neighbour or a clock change slows many in a row. The interval is
therefore that of the *effective* number of samples n/τ, where τ is the integrated autocorrelation time of the
indicator "slower than the median", which is what decides the variance of a median (Sen, J. Multivariate Analysis 2,
1972), summed by Geyer's initial positive sequence (Statistical Science 7, 1992, section 3.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)

_LEAST_FOR_AUTOCORRELATION = 20
"""Below this an estimate of the autocorrelation is noise; samples then count as independent."""

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A median and its 95 % interval.

    Attributes:
        median: Of all samples.
        low: Lower end, or None where there are too few independent samples for a 95 % interval.
        high: Upper end, likewise.
        effective_samples: Samples over the integrated autocorrelation time.
    """

    median: float
    low: float | None
    high: float | None
    effective_samples: float

    @property
    def relative_half_width(self) -> float:
        """Half the width over the median; infinite where there is no interval."""
        if self.low is None or self.high is None or self.median == 0:
            return math.inf
        return (self.high - self.low) / 2 / self.median

    def rate(self, count: float) -> tuple[float, tuple[float, float] | None]:
        """Returns how many come in a unit of time, and the 95 % interval, where `count` come in each of these times."""
        ends = None if self.low is None or self.high is None else (count / self.high, count / self.low)
        return count / self.median, ends


def samples_needed(percentile: float, *, error: float = 1 - CONFIDENCE) -> int:
    """Returns how many samples a percentile needs to be reported.

    As many as give it an upper confidence bound at all, which is the largest sample: 1 − pⁿ ≥ 1 − error (Wilks, Annals
    of Mathematical Statistics 12, 1941). At 95 %: 29 for p90, 59 for p95, 299 for p99, 2,995 for p99.9.
    """
    return math.ceil(math.log(error) / math.log(percentile / 100))


def percentile(values: Floats, percent: float) -> float | None:
    """Returns a percentile, or None where there are too few samples for it (see ``samples_needed``).

    The median alone is always given; how far it can be trusted is its interval's matter.
    """
    if values.size == 0 or (percent != 50 and values.size < samples_needed(percent)):
        return None
    return float(np.percentile(values, percent))


def autocorrelation_time(values: Floats, *, threshold: float | None = None) -> float:
    """Returns the integrated autocorrelation time τ ≥ 1 of "slower than the median", or a threshold, in samples."""
    if values.size < _LEAST_FOR_AUTOCORRELATION:
        return 1.0
    above = (values > (np.median(values) if threshold is None else threshold)).astype(np.float64)
    above -= above.mean()
    size = 1 << (2 * above.size - 1).bit_length()
    spectrum = np.fft.rfft(above, size)
    covariance = np.fft.irfft(spectrum * spectrum.conj(), size)[: above.size]
    if covariance[0] <= 0:
        return 1.0
    correlation = covariance / covariance[0]
    pairs = correlation[: correlation.size // 2 * 2].reshape(-1, 2).sum(axis=1)
    negative = np.flatnonzero(pairs <= 0)
    total = pairs[: negative[0] if negative.size else pairs.size].sum()
    return float(min(max(1.0, 2 * total - 1), above.size))


def median_interval(values: Floats, *, error: float = 1 - CONFIDENCE) -> Interval:
    """Returns the median of samples in their order, and its 95 % interval, or another one that misses by `error`.

    Raises:
        ValueError: There are no samples.
    """
    if values.size == 0:
        raise ValueError("no samples")
    effective = values.size / autocorrelation_time(values)
    count = math.floor(effective)
    # The largest k for which fewer than k of `count` fair coins fall heads with at most 2.5 % probability.
    k = int(stats.binom.ppf(error / 2, count, 0.5)) if count else 0
    median = float(np.median(values))
    if k < 1:
        return Interval(median=median, low=None, high=None, effective_samples=effective)
    rank = math.floor((k - 1) / count * values.size) if count < values.size else k - 1
    ordered = np.sort(values)
    return Interval(
        median=median, low=float(ordered[rank]), high=float(ordered[-1 - rank]), effective_samples=effective
    )


@dataclass(frozen=True, kw_only=True)
class PercentileBounds:
    """A percentile between two order statistics.

    Attributes:
        value: Of all samples.
        low: One-sided lower bound, or None where there are too few independent samples for one.
        high: One-sided upper bound, likewise.
        effective_samples: Samples over the integrated autocorrelation time.
    """

    value: float
    low: float | None
    high: float | None
    effective_samples: float


_NEAR_MISS = 1.4
"""A virtual machine's neighbour has been seen to slow everything by up to 40 % for seconds: what is nearer to a limit
than that is late when one comes."""

_SLOWEST = 90.0
"""Percentile beyond which runs show how slow ones follow each other, where most of them are near misses."""


def percentile_bounds(values: Floats, percent: float, *, error: float, threshold: float) -> PercentileBounds:
    """Returns order statistics below and above a percentile, each of which misses with probability `error` at most.

    Conover (Practical Nonparametric Statistics, 3rd ed., section 3.2), on the effective number of samples. What decides
    the variance of the share beyond a threshold is the autocorrelation of "beyond it". Where none or few samples are,
    that can't be estimated: near misses then tell whether slow ones come in clusters, the slowest tenth at most.

    Args:
        values: Times in their order, at least one.
        percent: Such as 99.
        error: Of each bound.
        threshold: Where the percentile is wanted on one side of it: the limit that it is held against.
    """
    thresholds = (threshold, max(threshold / _NEAR_MISS, float(np.percentile(values, _SLOWEST))))
    effective = values.size / max(autocorrelation_time(values, threshold=each) for each in thresholds)
    count, ordered = math.floor(effective), np.sort(values)
    # The rth is below the percentile where at least r samples are, and the sth above it where fewer than s are.
    r, s = (int(stats.binom.ppf(share, count, percent / 100)) for share in (error, 1 - error))
    s += 1
    return PercentileBounds(
        value=float(np.percentile(values, percent)),
        low=float(ordered[math.floor((r - 1) / count * values.size)]) if r >= 1 else None,
        high=float(ordered[-1 - math.floor((count - s) / count * values.size)]) if s <= count else None,
        effective_samples=effective,
    )


def coefficient_of_variation(values: Floats) -> float | None:
    """Returns standard deviation over mean, or None for fewer than two samples."""
    if values.size < 2 or values.mean() == 0:
        return None
    return float(values.std(ddof=1) / values.mean())


def significant(value: float, uncertainty: float | None) -> tuple[str, str]:
    """Writes a value and its uncertainty to the place of the uncertainty's first digit (second, after a leading 1).

    The uncertainty is half the width of the interval; where it is unknown the value has three digits.
    """
    if not math.isfinite(value):
        return "–", "–"
    if uncertainty is None or not math.isfinite(uncertainty):
        return rounded(value, 3), "–"
    if uncertainty <= 0:
        return rounded(value, 4), "0"
    exponent = math.floor(math.log10(uncertainty))
    if uncertainty / 10**exponent < 1.95:
        exponent -= 1
    places = max(0, -exponent)
    return f"{value:,.{places}f}", f"{uncertainty:,.{places}f}"


def rounded(value: float, digits: int) -> str:
    """Writes a number with that many significant digits, never in exponent form."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, places):,.{max(0, places)}f}"
