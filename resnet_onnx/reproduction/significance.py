"""Which of two networks is better on the same pictures, and whether the difference is significant."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.parity.proportions import paired_interval, share_interval
from resnet_onnx.results.reproduce import DepthComparison

SIGNIFICANCE = 0.05
"""Of the test; the intervals are of 95 %."""


def paired_difference(
    shallow: NDArray[np.bool_], deep: NDArray[np.bool_], *, kind: str, pictures_of: str, depths: tuple[int, int]
) -> DepthComparison:
    """Compares two networks on the same pictures by those on which exactly one of them is right.

    Of these n pictures, k are lost by the deeper one; were both equally good, each would fall to either side like a
    coin (McNemar, Psychometrika 12, 1947; exact binomial). The interval (``parity/proportions.py``) knows that n is
    chance too. Decided is what test and interval agree on.

    Args:
        shallow: bool [pictures], whether the shallower network's predictions are correct.
        deep: bool [pictures], the deeper one's, in the same order.
        kind: Of both networks.
        pictures_of: ``training`` or ``test``.
        depths: Of the shallower and of the deeper one.

    Returns:
        An `outcome` of ``worse`` or ``better`` where the `p_value`, the probability that chance alone splits the n
        pictures at least as unevenly, is at most 5 % and the interval leaves zero out; otherwise ``undecided``.

    Raises:
        ValueError: They are not about the same number of pictures, or about none.
    """
    from scipy import stats

    if shallow.shape != deep.shape or shallow.size == 0:
        raise ValueError(f"predictions of shapes {shallow.shape} and {deep.shape} can't be compared")
    lost, won = int((shallow & ~deep).sum()), int((~shallow & deep).sum())
    p_value = float(stats.binomtest(lost, lost + won, 0.5).pvalue) if lost + won else 1.0
    low, high = paired_interval(lost, won, shallow.size)
    outcome = "undecided"
    if p_value <= SIGNIFICANCE and not low <= 0 <= high:
        outcome = "worse" if lost > won else "better"
    shallow_error, deep_error = float((~shallow).mean()), float((~deep).mean())
    return DepthComparison(
        kind=kind,
        pictures_of=pictures_of,
        shallow=depths[0],
        deep=depths[1],
        shallow_error=shallow_error,
        deep_error=deep_error,
        difference=deep_error - shallow_error,
        ci95=(low, high),
        p_value=p_value,
        outcome=outcome,
        pictures=shallow.size,
    )


def error_interval(correct: NDArray[np.bool_]) -> tuple[float, float]:
    """Returns the 95 % interval of an error, 0 to 1, of pictures like these, from bool [pictures], at least one."""
    return share_interval(int((~correct).sum()), correct.size)
