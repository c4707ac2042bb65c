"""The largest rate of single pictures that an engine answers within a limit: searched, confirmed on fresh arrivals.

The policy of the server (largest batch, longest wait) is chosen in simulated time, from the measured times of batches;
real arrivals then bracket the rate. The rate that is reported was served once more, by arrivals that no choice has
seen, and its 99th percentile is judged by the interval of the share of pictures beyond the limit, on the effective
number of samples: waiting pictures wait together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from scipy import stats

from resnet_onnx.bench.serving import BatchPolicy, Seconds, SimulatedEngine, poisson_arrivals, serve
from resnet_onnx.bench.statistics import CONFIDENCE, autocorrelation_time

PERCENTILE = 0.99

Verdict = Literal["met", "broken", "undecided"]

_WAITS = (0.0, 0.05, 0.15, 0.3, 0.5)
"""Longest waits that are tried, as shares of the limit."""

_SIMULATED = 6_000
_HALVINGS = 8
_STEP = 1.1
_TRIALS = 6
_TRIAL_SHARE = 0.5
"""Share of the time that bracketing may take; the rest confirms."""
_CONFIRMING = (0.5, 0.3, 0.2)
"""Shares of what is left for each attempt to confirm; the error is divided among them."""
_BACK = 0.9


class Served(Protocol):
    """What is searched: an engine behind the server's loop, real or simulated."""

    def serve(self, arrivals_s: Sequence[float], policy: BatchPolicy) -> Seconds:
        """Returns the latency of each picture, seconds."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One rate that was served.

    Attributes:
        rate: Pictures a second.
        latencies_s: Of each picture.
        confirms: Whether it was served to confirm.
    """

    rate: float
    latencies_s: Seconds
    confirms: bool = False

    def percentile(self, share: float) -> float:
        """Returns a percentile of the latencies, seconds."""
        return float(np.quantile(self.latencies_s, share))

    def verdict(self, limit_s: float) -> Verdict:
        """Returns whether the 99th percentile lies within a limit, by its interval."""
        late = self.latencies_s > limit_s
        effective = len(late) / autocorrelation_time(self.latencies_s, threshold=limit_s)
        low, high = share_bounds(float(late.mean()) * effective, effective, error=(1 - CONFIDENCE) / len(_CONFIRMING))
        return "met" if high <= 1 - PERCENTILE else "broken" if low > 1 - PERCENTILE else "undecided"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found.

    Attributes:
        rate: The largest one that was confirmed, or the last that was tried; 0 where even single pictures are late.
        verdict: On the limit at that rate.
        low: A rate that is met for certain, or 0.
        high: A rate that is broken for certain, or that at which the engine is always busy.
    """

    rate: float
    policy: BatchPolicy
    verdict: Verdict
    low: float
    high: float
    trials: list[Trial] = field(default_factory=list)

    @property
    def confirmation(self) -> Trial | None:
        """The trial that confirmed the rate, or tried to."""
        return next((trial for trial in reversed(self.trials) if trial.confirms), None)


def share_bounds(events: float, samples: float, *, error: float) -> tuple[float, float]:
    """Returns one-sided bounds of a share, below and above (Clopper and Pearson, Biometrika 26, 1934)."""
    low = 0.0 if events <= 0 else float(stats.beta.ppf(error, events, samples - events + 1))
    high = 1.0 if events >= samples else float(stats.beta.ppf(1 - error, events + 1, samples - events))
    return low, high


def simulated(times_s: Mapping[int, Seconds], rate: float, policy: BatchPolicy, count: int, seed: int = 0) -> Seconds:
    """Returns the latencies of Poisson arrivals at a simulated engine, seconds [picture]."""
    random = np.random.default_rng(seed)
    engine = SimulatedEngine(times_s, random)
    return serve(poisson_arrivals(rate, count, random), engine.execute, engine, policy)


def best_policy(times_s: Mapping[int, Seconds], limit_s: float) -> tuple[BatchPolicy, float]:
    """Returns the policy that serves the largest rate within a limit in simulated time, and that rate; 0 for none."""
    best, most = BatchPolicy(max_batch=1), 0.0
    for size in times_s:
        within = {smaller: times for smaller, times in times_s.items() if smaller <= size}
        for share in _WAITS if size > 1 else (0.0,):
            policy = BatchPolicy(max_batch=size, max_wait_s=share * limit_s)
            rate = _simulated_rate(within, policy, limit_s, at_least=most)
            if rate > most:
                best, most = policy, rate
    return best, most


def saturation(times_s: Mapping[int, Seconds]) -> float:
    """Returns the pictures a second of an engine that is always busy."""
    return max(size / float(np.mean(times)) for size, times in times_s.items())


def _simulated_rate(times_s: Mapping[int, Seconds], policy: BatchPolicy, limit_s: float, *, at_least: float) -> float:
    def meets(rate: float) -> bool:
        return float(np.quantile(simulated(times_s, rate, policy, _SIMULATED), PERCENTILE)) <= limit_s

    high = saturation(times_s)
    if at_least >= high or (at_least and not meets(at_least)):
        return 0.0
    low = at_least
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low


def find_capacity(
    engine: Served,
    times_s: Mapping[int, Seconds],
    *,
    limit_s: float,
    duration_s: float,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Found:
    """Finds the largest rate of single pictures whose 99th percentile stays within a limit.

    Args:
        engine: What serves them.
        times_s: Measured times of its batches, by size.
        limit_s: Of the 99th percentile, from arrival to answer.
        duration_s: Of all trials together, about.
        seed: Of the arrivals.
        progress: Told what is tried.
    """
    random = np.random.default_rng(seed)
    policy, rate = best_policy(times_s, limit_s)
    found: list[Trial] = []
    busy = saturation(times_s)
    if rate <= 0:
        return Found(rate=0.0, policy=policy, verdict="broken", low=0.0, high=0.0)

    def tried(at: float, seconds: float, *, confirms: bool = False) -> Trial:
        progress(
            f"{'confirming' if confirms else 'trying'} {at:.3g} pictures a second, batches up to {policy.max_batch}"
        )
        arrivals = poisson_arrivals(at, max(1, round(at * seconds)), random)
        found.append(Trial(rate=at, latencies_s=engine.serve(arrivals, policy), confirms=confirms))
        return found[-1]

    low, high = 0.0, 0.0
    for _ in range(_TRIALS):
        trial = tried(rate, duration_s * _TRIAL_SHARE / _TRIALS)
        meets = trial.percentile(PERCENTILE) <= limit_s
        low, high = (max(low, rate), high) if meets else (low, rate)
        if low and high and high / low <= 1.03:
            break
        rate = (low + high) / 2 if low and high else rate * _STEP if meets else rate / _STEP
    rate, left = low or rate, 1 - _TRIAL_SHARE
    verdict: Verdict = "undecided"
    for share in _CONFIRMING:
        verdict = tried(rate, duration_s * left * share, confirms=True).verdict(limit_s)
        if verdict != "broken":
            break
        rate *= _BACK
    certain = {name: [each.rate for each in found if each.verdict(limit_s) == name] for name in ("met", "broken")}
    return Found(
        rate=found[-1].rate,
        policy=policy,
        verdict=verdict,
        low=max((each for each in certain["met"] if each <= found[-1].rate), default=0.0),
        high=min((each for each in certain["broken"] if each >= found[-1].rate), default=max(busy, found[-1].rate)),
        trials=found,
    )
