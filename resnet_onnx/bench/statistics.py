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


def samples_needed(percentile: float) -> int:
    """Returns how many samples a percentile needs to be reported.

    As many as give it an upper 95 % confidence bound at all, which is the largest sample: 1 − pⁿ ≥ 0.95 (Wilks,
    Annals of Mathematical Statistics 12, 1941). 29 for p90, 59 for p95, 299 for p99, 2,995 for p99.9.
    """
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(percentile / 100))


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


def median_interval(values: Floats) -> Interval:
    """Returns the median of samples in their order, and its 95 % interval; raises ``ValueError`` for no samples."""
    if values.size == 0:
        raise ValueError("no samples")
    effective = values.size / autocorrelation_time(values)
    count = math.floor(effective)
    # The largest k for which fewer than k of `count` fair coins fall heads with at most 2.5 % probability.
    k = int(stats.binom.ppf((1 - CONFIDENCE) / 2, count, 0.5)) if count else 0
    median = float(np.median(values))
    if k < 1:
        return Interval(median=median, low=None, high=None, effective_samples=effective)
    rank = math.floor((k - 1) / count * values.size) if count < values.size else k - 1
    ordered = np.sort(values)
    return Interval(
        median=median, low=float(ordered[rank]), high=float(ordered[-1 - rank]), effective_samples=effective
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
