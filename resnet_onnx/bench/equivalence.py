"""The verdict on a ratio: same, faster, slower or inconclusive, by equivalence.

"Same" only where the whole interval lies within the tolerance, "slower" and "faster" only where all of it lies beyond
(Schuirmann, J. Pharmacokinetics and Biopharmaceutics 15, 1987). What straddles an edge is inconclusive: not being able
to show a difference does not show that there is none.
"""

from __future__ import annotations

import math
from typing import Literal

from resnet_onnx.bench.always_valid import RatioInterval
from runtimes.errors import UsageError

Verdict = Literal["same", "faster", "slower", "inconclusive"]

TOLERANCE = 0.02
"""``bench`` measures until a median is known to ±1 %, so that the ratio of two is known to ±√2 %: 2 % is the least
round number that two runs of the same work can be shown to lie within. A slowdown of 5 % (ratio 0.952) still ends
1.4 % beyond the tolerance, so that it is found, and chance alone must be wrong by 3.4 % to look like a change."""

_HOPELESS = 100.0
"""Times what was spent, beyond which more time is not a remedy: the ratio lies on the edge of the tolerance."""


def check_tolerance(tolerance: float) -> None:
    """Raises ``UsageError`` where a tolerance, a relative change that does not matter, is not in (0, 1)."""
    if not 0 < tolerance < 1:
        raise UsageError(f"tolerance must lie between 0 and 100 %, not {100 * tolerance:g} %")


def verdict(interval: tuple[float, float] | None, tolerance: float) -> Verdict:
    """Returns the verdict on the interval of a ratio of speeds, new over base; None is no interval."""
    if interval is None:
        return "inconclusive"
    least, most = 1 - tolerance, 1 / (1 - tolerance)
    if interval[1] < least:
        return "slower"
    if interval[0] > most:
        return "faster"
    return "same" if least <= interval[0] and interval[1] <= most else "inconclusive"


def deciding_factor(found: RatioInterval, tolerance: float) -> float | None:
    """Returns how many times the blocks so far would decide, if the estimate stays where it is.

    An interval is as narrow as the root of the number of blocks, nearly. None: no time that anybody would wait.
    """
    if found.ends is None:
        return None
    edge = -math.log1p(-tolerance)
    below, above = found.estimate - found.low, found.high - found.estimate
    if abs(found.estimate) >= edge:
        reach, room = (above if found.estimate < 0 else below), abs(found.estimate) - edge
        factor = reach / room if room > 0 else math.inf
    else:
        factor = max(below / (found.estimate + edge), above / (edge - found.estimate))
    return factor**2 if factor**2 <= _HOPELESS else None
