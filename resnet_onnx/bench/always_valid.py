"""An interval for a ratio that holds at every moment of a measurement, so that stopping early costs no error.

The numbers are log ratios, one a block of paired runs whose order a coin chose. A neighbour's bursts span many blocks,
so that blocks are not independent and have no common distribution. What is known is the coin: where the ratio is θ and
both sides slow alike, a block's log ratio x minus θ is as likely positive as negative *given its magnitude and
everything before it*. A bettor who knows |x − θ| and the past can't win on the sign:

    wealth(θ) = mean over λ of Π [1 + tanh(λ · u)],   u = clip((x − θ) / scale, ±``CLIP``)

is a martingale that starts at 1, whatever the noise, since tanh and the clip are odd and the scale comes from earlier
blocks alone. By Ville's inequality (Ville 1939; Howard et al., Statistical Science 2021, arXiv:1808.03204) it ever
reaches 2/α with probability at most α/2. Those θ at which neither it nor its mirror image has reached that are a
confidence sequence. 1 + tanh(λu) is exp(λu) / cosh(λu), which is de la Peña's bound for symmetric variables (Annals of
Probability 27, 1999) made exact; with the sign alone in place of u it is the sequential quantile of Howard and Ramdas
(Bernoulli 2022, arXiv:1906.09712). The magnitude is worth having: at 5 % more work it decides after two thirds of the
blocks where noise is normal. The clip is Huber's (Annals of Mathematical Statistics 35, 1964): one burst counts no more
than ``CLIP`` ordinary deviations.

Wealth falls as θ grows, so that the interval's ends are found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ERROR = 0.05
"""Probability that the interval misses the ratio at any moment of a measurement, at most."""

CLIP = 1.5
"""Deviations beyond which a block counts no more."""

BETS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""λ in the bets, in deviations: the best one is about the distance to be seen over the deviation of a block, 0.1 to 0.3
where blocks deviate by 8 to 13 % and 2 to 3 % decide. The largest settles what is plain within some ten blocks."""

_MOST_WON = math.log1p(math.tanh(max(BETS) * CLIP))
"""Growth of the logarithm of the wealth by one block, at most."""

_HALF_LIFE = 20
_FIRST_SCALE, _ITS_WEIGHT = 0.1, 0.5
_DEVIATION_OF_DIFFERENCES = math.sqrt(math.pi) / 2
"""Standard deviation over the mean absolute difference of two independent normal numbers."""
_LARGEST_STEP = 3.0
_STEPS = 30
"""Of a bisection: to a billionth."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RatioInterval:
    """What is known of a ratio, on the logarithmic scale.

    Attributes:
        estimate: The middle: where clipped deviations to both sides are equal.
        low: Lower end; −∞ where there is none yet.
        high: Upper end; ∞ where there is none yet.
    """

    estimate: float
    low: float
    high: float

    @property
    def ratio(self) -> float:
        """The estimate as a ratio."""
        return math.exp(self.estimate)

    @property
    def ends(self) -> tuple[float, float] | None:
        """The interval of the ratio; None where an end is missing."""
        if math.isinf(self.low) or math.isinf(self.high):
            return None
        return math.exp(self.low), math.exp(self.high)


class RatioSequence:
    """Log ratios of blocks in their order, and the interval that they support so far."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._values: list[float] = []
        self._scales: list[float] = []
        self._weighted, self._weight = _FIRST_SCALE * _ITS_WEIGHT, _ITS_WEIGHT
        self._found: dict[float, RatioInterval] = {}
        self._estimate: float | None = None
        for value in values:
            self.add(value)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def scales(self) -> Floats:
        """What a deviation was before each block, by the blocks before it [block]."""
        return np.asarray(self._scales)

    def add(self, value: float) -> None:
        """Takes the log ratio of the next block."""
        scale = self._weighted / self._weight
        if self._values:
            # Differences know nothing of the ratio. Recent ones count most: what a quiet moment says weighs more.
            keep = 0.5 ** (1 / _HALF_LIFE)
            seen = abs(value - self._values[-1]) * _DEVIATION_OF_DIFFERENCES
            first = _FIRST_SCALE * _ITS_WEIGHT  # never forgotten, so that equal values leave a scale above 0
            self._weighted = first + keep * (self._weighted - first) + min(seen, _LARGEST_STEP * scale)
            self._weight = _ITS_WEIGHT + keep * (self._weight - _ITS_WEIGHT) + 1
        self._values.append(value)
        self._scales.append(scale)
        self._found.clear()
        self._estimate = None

    def is_above(self, theta: float, *, error: float) -> bool:
        """Returns whether the log ratio is above θ for certain; wrong at any moment with probability `error` at most.

        One-sided: the interval of twice the error ends above θ. It costs one step of its bisection.
        """
        return self._ruled_out(1.0, theta, error)

    def is_below(self, theta: float, *, error: float) -> bool:
        """Returns whether the log ratio is below θ for certain, as ``is_above``."""
        return self._ruled_out(-1.0, -theta, error)

    def _ruled_out(self, sign: float, theta: float, error: float) -> bool:
        needed = -math.log(error)
        if len(self._values) * _MOST_WON < needed:
            return False
        return _wealth(sign * np.asarray(self._values), self.scales, theta) >= needed

    @property
    def estimate(self) -> float:
        """The middle, as ``RatioInterval.estimate``; NaN before the first block."""
        if not self._values:
            return math.nan
        if self._estimate is None:
            values, scales = np.asarray(self._values), self.scales
            self._estimate = _falling_root(
                lambda theta: float(_deviations(values, scales, theta).sum()), values, scales
            )
        return self._estimate

    def interval(self, *, error: float = ERROR) -> RatioInterval:
        """Returns estimate and interval; raises ``ValueError`` before the first block."""
        if not self._values:
            raise ValueError("no blocks")
        if error not in self._found:
            values, scales = np.asarray(self._values), self.scales
            needed = math.log(2 / error)
            self._found[error] = RatioInterval(
                estimate=self.estimate,
                low=_end(values, scales, needed),
                high=-_end(-values, scales, needed),
            )
        return self._found[error]


def log_wealth(values: Floats, scales: Floats, theta: float) -> Floats:
    """Returns the logarithm of what betting on "above θ" has made of 1 after each block.

    Args:
        values: Log ratios [block].
        scales: What a deviation was before each block [block] (``RatioSequence.scales``).
        theta: The logarithm of a ratio.
    """
    deviations = _deviations(values, scales, theta)
    won = np.cumsum(np.log1p(np.tanh(np.multiply.outer(BETS, deviations))), axis=1)
    most = won.max(axis=0)
    found: Floats = most + np.log(np.exp(won - most).mean(axis=0))
    return found


def _wealth(values: Floats, scales: Floats, theta: float) -> float:
    """Returns what ``log_wealth`` has after the last block."""
    won = np.log1p(np.tanh(np.multiply.outer(BETS, _deviations(values, scales, theta)))).sum(axis=1)
    most = won.max()
    return float(most + np.log(np.exp(won - most).mean()))


def _deviations(values: Floats, scales: Floats, theta: float) -> Floats:
    return np.clip((values - theta) / scales, -CLIP, CLIP)


def _end(values: Floats, scales: Floats, needed: float) -> float:
    """Returns the largest θ that the bets on "above θ" have ruled out, or −∞."""
    return _falling_root(lambda theta: _wealth(values, scales, theta) - needed, values, scales)


def _falling_root(function: Callable[[float], float], values: Floats, scales: Floats) -> float:
    """Returns where a falling function of θ passes 0; −∞ where it is nowhere above."""
    reach = CLIP * float(scales.max())
    low, high = float(values.min()) - reach, float(values.max()) + reach
    if function(low) < 0:
        return -math.inf
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) >= 0 else (low, middle)
    return low
