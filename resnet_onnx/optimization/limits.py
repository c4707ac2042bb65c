"""Limits that an answer has to keep, judged by intervals: met, broken or undecided.

``ERROR`` is what the whole answer may be wrong by. Half of it is the race's: that the best candidate is thrown out. The
other half is the confirmation's: that a limit is called met which is broken, or that a printed interval misses.

Several limits need no division of the error where all have to be met: a candidate that breaks one of them is accepted
only where that very one is called met, so that the probability of it is that one's error (intersection-union test:
Berger, Technometrics 24, 1982). Where one broken limit is enough to throw a candidate out, it is divided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from resnet_onnx.bench.statistics import median_interval, percentile_bounds, rounded, samples_needed
from resnet_onnx.optimization.candidate import Candidate, Form, PairedDecisions, Runs
from resnet_onnx.parity.proportions import paired_score_interval
from runtimes.errors import UsageError

ERROR = 0.05
"""Probability that anything in the answer is wrong by chance, at most."""

RACE_ERROR = ERROR / 2
CONFIRMATION_ERROR = ERROR / 2

Verdict = Literal["met", "broken", "undecided"]
LimitName = Literal["p99", "top1_drop", "images_per_second"]

PERCENT = 99.0

_HOPELESS = 100.0
"""Times what was measured, beyond which more of it is not a remedy: the value lies on the limit."""

_UNITS: dict[LimitName, tuple[float, str]] = {
    "p99": (1e3, "ms"),
    "top1_drop": (100.0, "points"),
    "images_per_second": (1.0, "img/s"),
}
_MEASURED: dict[LimitName, str] = {
    "p99": "independent runs",
    "top1_drop": "pictures",
    "images_per_second": "independent runs",
}


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What is known of one limit.

    Attributes:
        limit: A time in seconds, a share from 0 to 1, or pictures a second.
        value: What was measured, likewise; None where nothing could be.
        ends: Bounds of the value at the error of the judgement, each None where there is none yet.
        measured: Independent runs, or pictures, that it rests on.
        more: About how many more would decide; None where it is decided, or none would do.
    """

    name: LimitName
    limit: float
    value: float | None
    ends: tuple[float | None, float | None] = (None, None)
    measured: float = 0.0
    more: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether the limit is kept, by where the whole interval lies."""
        low, high = self.ends
        if self.name == "images_per_second":
            met, broken = low is not None and low >= self.limit, high is not None and high < self.limit
        else:
            met, broken = high is not None and high <= self.limit, low is not None and low > self.limit
        return "met" if met else "broken" if broken else "undecided"

    @property
    def excess(self) -> float:
        """By how much the value is on the wrong side, as a share of the limit; below 0 on the right side."""
        if self.value is None:
            return math.inf
        beyond = self.limit - self.value if self.name == "images_per_second" else self.value - self.limit
        return beyond / self.limit if self.limit > 0 else math.copysign(math.inf, beyond) if beyond else 0.0

    def decides(self) -> str | None:
        """Says what would decide it; None where it is decided."""
        if self.verdict != "undecided":
            return None
        if self.more is None:
            return "the value is so near the limit that no measurement of a reasonable length decides it"
        return f"about {rounded(max(1.0, self.more), 1 if self.more < 10 else 2)} more {_MEASURED[self.name]} decide it"

    def __str__(self) -> str:
        """Says value, interval and limit in the words of a user."""
        factor, unit = _UNITS[self.name]
        what = {"p99": "p99", "top1_drop": "drop", "images_per_second": "rate"}[self.name]
        limit = f"{self.limit * factor:g} {unit}"
        if self.value is None:
            return f"{what} is not known, the limit is {limit}"
        low, high = ("?" if end is None else rounded(end * factor, 3) for end in self.ends)
        return f"{what} {rounded(self.value * factor, 3)} {unit} ({low} – {high}), the limit is {limit}"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an answer has to keep; None where there is no such limit.

    Attributes:
        p99_s: Of the time of one run of the batch, seconds.
        max_drop: Of top-1 accuracy against the original network, a share from 0 to 1.
        min_rate: Pictures a second.
        exact: Forms that classify as the original by definition: those in its own precision, which passed parity.
    """

    p99_s: float | None = None
    max_drop: float | None = None
    min_rate: float | None = None
    exact: frozenset[Form] = frozenset()

    def __post_init__(self) -> None:
        if self.p99_s is not None and not 0 < self.p99_s < math.inf:
            raise UsageError(f"the limit of p99 must be a time above 0, not {1e3 * self.p99_s:g} ms")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise UsageError(f"the largest drop must lie between 0 and 100 points, not {100 * self.max_drop:g}")
        if self.min_rate is not None and not 0 < self.min_rate < math.inf:
            raise UsageError(f"the least throughput must be above 0, not {self.min_rate:g}")

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(limit is not None for limit in (self.p99_s, self.max_drop, self.min_rate))

    @property
    def of_speed(self) -> bool:
        """Whether any is about time."""
        return self.p99_s is not None or self.min_rate is not None

    def needs_pictures(self, form: Form) -> bool:
        """Whether a form's drop has to be measured."""
        return self.max_drop is not None and form not in self.exact

    def runs_needed(self, error: float) -> int:
        """Returns how many independent runs a verdict takes at least, or 0 where no limit is about time."""
        return 0 if not self.of_speed else samples_needed(PERCENT if self.p99_s is not None else 50.0, error=error)

    def judge_runs(self, candidate: Candidate, runs: Runs, *, error: float) -> list[Judgement]:
        """Judges the limits of time, each bound at an error of its own of `error`."""
        found = []
        if self.p99_s is not None:
            found.append(judge_p99(runs.latencies_s, self.p99_s, error=error))
        if self.min_rate is not None:
            found.append(judge_rate(runs.between_s, candidate.batch, self.min_rate, error=error))
        return found

    def judge_form(self, form: Form, decisions: PairedDecisions | None, *, error: float) -> list[Judgement]:
        """Judges the limit of the drop; `decisions` are None where the form is exact."""
        if self.max_drop is None:
            return []
        if form in self.exact:
            return [Judgement(name="top1_drop", limit=self.max_drop, value=0.0, ends=(0.0, 0.0))]
        if decisions is None:
            return [Judgement(name="top1_drop", limit=self.max_drop, value=None)]
        return [judge_drop(decisions, self.max_drop, error=error)]


def judge_p99(latencies_s: Sequence[float], limit_s: float, *, error: float) -> Judgement:
    """Judges the 99th percentile of the time of a run by order statistics on the effective number of samples."""
    times = np.asarray(latencies_s, np.float64)
    if not times.size:
        return Judgement(name="p99", limit=limit_s, value=None)
    found = percentile_bounds(times, PERCENT, error=error, threshold=limit_s)
    count, late = found.effective_samples, float((times > limit_s).mean())
    # Too few for an upper bound: as many as it needs. Otherwise as many as tell the share of late runs from 1 %.
    lacking = samples_needed(PERCENT, error=error) - count if not late else 0.0
    return Judgement(
        name="p99",
        limit=limit_s,
        value=found.value,
        ends=(found.low, found.high),
        measured=count,
        more=lacking if lacking > 0 else _more_for_share(late, count, error),
    )


def _more_for_share(late: float, count: float, error: float) -> float | None:
    """Returns how many more runs tell a share of late ones from 1 %, by the normal approximation."""
    share = 1 - PERCENT / 100
    needed = (
        NormalDist().inv_cdf(1 - error) ** 2 * max(late, share) / (late - share) ** 2 if late != share else math.inf
    )
    return _within_reason(needed, count)


def judge_drop(decisions: PairedDecisions, limit: float, *, error: float) -> Judgement:
    """Judges the drop of top-1 accuracy by the paired interval, each of whose ends misses by `error` at most."""
    if not decisions.pictures:
        return Judgement(name="top1_drop", limit=limit, value=None)
    low, high = paired_score_interval(decisions.lost, decisions.won, decisions.pictures, error=2 * error)
    value = (decisions.lost - decisions.won) / decisions.pictures
    reach = high - value if value <= limit else value - low
    needed = decisions.pictures * (reach / abs(limit - value)) ** 2 if value != limit else math.inf
    return Judgement(
        name="top1_drop",
        limit=limit,
        value=value,
        ends=(low, high),
        measured=decisions.pictures,
        more=_within_reason(needed, decisions.pictures),
    )


def judge_rate(between_s: Sequence[float], batch: int, limit: float, *, error: float) -> Judgement:
    """Judges the pictures a second by the interval of the median time from one run to the next."""
    times = np.asarray(between_s, np.float64)
    if not times.size:
        return Judgement(name="images_per_second", limit=limit, value=None)
    interval = median_interval(times, error=2 * error)
    value, ends = interval.rate(batch)
    count = interval.effective_samples
    if ends is None:
        return Judgement(
            name="images_per_second",
            limit=limit,
            value=value,
            measured=count,
            more=max(1.0, samples_needed(50.0, error=error) - count),
        )
    reach = value - ends[0] if value >= limit else ends[1] - value
    needed = count * (reach / abs(limit - value)) ** 2 if value != limit else math.inf
    return Judgement(
        name="images_per_second",
        limit=limit,
        value=value,
        ends=ends,
        measured=count,
        more=_within_reason(needed, count),
    )


def overall(judgements: Sequence[Judgement]) -> Verdict:
    """Returns the verdict on all: met where each is, broken where any is."""
    verdicts = {judgement.verdict for judgement in judgements}
    return "broken" if "broken" in verdicts else "undecided" if "undecided" in verdicts else "met"


def _within_reason(needed: float, measured: float) -> float | None:
    """Returns what is lacking, or None where it is more than anybody would measure."""
    return max(1.0, needed - measured) if needed <= _HOPELESS * max(measured, 1.0) else None
