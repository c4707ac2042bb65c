"""Which of two networks is better on the same pictures, and whether the difference is significant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.parity.proportions import paired_interval, share_interval

SIGNIFICANCE = 0.05
"""Of the test; the intervals are of 95 %."""

Outcome = Literal["worse", "better", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The deeper network against the shallower one, on the same pictures.

    Attributes:
        shallow_error: Share of the pictures that the shallower one gets wrong, 0 to 1.
        deep_error: Of the deeper one.
        ci95: Interval of ``deep_error − shallow_error``.
        p_value: Probability that chance alone splits the pictures on which they differ at least as unevenly.
        outcome: The deeper one is ``worse`` or ``better`` where ``p_value`` is at most 5 % and the interval leaves zero
            out, otherwise ``undecided``.
        pictures: How many.
    """

    shallow_error: float
    deep_error: float
    ci95: tuple[float, float]
    p_value: float
    outcome: Outcome
    pictures: int

    @property
    def difference(self) -> float:
        """How much more of the pictures the deeper one gets wrong."""
        return self.deep_error - self.shallow_error


def paired_difference(shallow: NDArray[np.bool_], deep: NDArray[np.bool_]) -> Difference:
    """Compares two networks on the same pictures by those on which exactly one of them is right.

    Of these n pictures, k are lost by the deeper one; were both equally good, each would fall to either side like a
    coin (McNemar, Psychometrika 12, 1947; exact binomial). The interval (``parity/proportions.py``) knows that n is
    chance too. Decided is what test and interval agree on.

    Args:
        shallow: bool [pictures], whether the shallower network's predictions are correct.
        deep: bool [pictures], the deeper one's, in the same order.

    Raises:
        ValueError: They are not about the same number of pictures, or about none.
    """
    from scipy import stats

    if shallow.shape != deep.shape or shallow.size == 0:
        raise ValueError(f"predictions of shapes {shallow.shape} and {deep.shape} can't be compared")
    lost, won = int((shallow & ~deep).sum()), int((~shallow & deep).sum())
    p_value = float(stats.binomtest(lost, lost + won, 0.5).pvalue) if lost + won else 1.0
    low, high = paired_interval(lost, won, shallow.size)
    outcome: Outcome = "undecided"
    if p_value <= SIGNIFICANCE and not low <= 0 <= high:
        outcome = "worse" if lost > won else "better"
    return Difference(
        shallow_error=float((~shallow).mean()),
        deep_error=float((~deep).mean()),
        ci95=(low, high),
        p_value=p_value,
        outcome=outcome,
        pictures=shallow.size,
    )


def error_interval(correct: NDArray[np.bool_]) -> tuple[float, float]:
    """Returns the 95 % interval of an error, 0 to 1: of pictures like these, for this network.

    Args:
        correct: bool [pictures], at least one.
    """
    return share_interval(int((~correct).sum()), correct.size)
