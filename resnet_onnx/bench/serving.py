"""A server of single pictures with dynamic batching: its loop, which takes a clock, and its engine in simulated time.

Pictures arrive by a Poisson process, whether or not earlier ones are done. The server takes those that wait, in their
order, as soon as ``max_batch`` of them do or the first has waited for ``max_wait_s``. It computes one batch at a time.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtimes.errors import UsageError

Seconds = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class BatchPolicy:
    """When the server begins a batch.

    Attributes:
        max_batch: Pictures in a batch at most.
        max_wait_s: How long the first of them waits for others at most.
    """

    max_batch: int
    max_wait_s: float = 0.0

    def __post_init__(self) -> None:
        if self.max_batch < 1 or self.max_wait_s < 0:
            raise UsageError(
                f"a server takes batches of at least 1 and waits for at least 0 s, not {self.max_batch} and "
                f"{self.max_wait_s:g} s"
            )


class ServerClock(Protocol):
    """The time that a server lives in."""

    def now(self) -> float:
        """Seconds since some moment."""

    def wait_until(self, moment: float) -> None:
        """Returns at a moment, or at once where it is over."""


def serve(
    arrivals_s: Sequence[float], execute: Callable[[int], None], clock: ServerClock, policy: BatchPolicy
) -> Seconds:
    """Serves pictures that arrive at given moments, ascending and counted from now.

    Args:
        arrivals_s: When each arrives.
        execute: Computes a batch of so many pictures, and returns when it is done.
        clock: Real or simulated.
        policy: When a batch begins.

    Returns:
        The time from each picture's arrival to the end of its batch, seconds [picture].
    """
    begin, count, first = clock.now(), len(arrivals_s), 0
    latencies = np.empty(count)
    moments = [begin + arrival for arrival in arrivals_s]
    while first < count:
        # What happens is what a server without knowledge of the future does: it begins when the batch is full.
        full = first + policy.max_batch - 1
        start = moments[first] + policy.max_wait_s
        if full < count:
            start = min(start, moments[full])
        clock.wait_until(max(start, moments[first]))
        last = min(bisect.bisect_right(moments, clock.now(), first), first + policy.max_batch)
        execute(last - first)
        done = clock.now()
        for index in range(first, last):
            latencies[index] = done - moments[index]
        first = last
    return latencies


def poisson_arrivals(rate: float, count: int, random: np.random.Generator) -> list[float]:
    """Returns the moments of a Poisson process of so many a second, from 0 on."""
    moments: list[float] = np.cumsum(random.exponential(1 / rate, count)).tolist()
    return moments


def batch_sizes(largest: int) -> tuple[int, ...]:
    """Returns the sizes that an engine is prepared for: powers of two, and the largest."""
    return tuple(sorted({2**power for power in range(largest.bit_length()) if 2**power < largest} | {largest}))


class SimulatedEngine:
    """An engine in simulated time: a batch takes one of the times that were measured of its size.

    A batch between two sizes computes the larger one, as the real engine does.
    """

    def __init__(self, times_s: Mapping[int, Seconds], random: np.random.Generator) -> None:
        self._now = 0.0
        self._sizes = sorted(times_s)
        self._times = {size: random.choice(times_s[size], 4096).tolist() for size in self._sizes}
        self._drawn = 0

    def now(self) -> float:
        """Simulated seconds."""
        return self._now

    def wait_until(self, moment: float) -> None:
        """Lets time pass."""
        self._now = max(self._now, moment)

    def execute(self, count: int) -> None:
        """Takes the time of a batch."""
        times = self._times[self._sizes[bisect.bisect_left(self._sizes, count)]]
        self._drawn = (self._drawn + 1) % len(times)
        self._now += times[self._drawn]
