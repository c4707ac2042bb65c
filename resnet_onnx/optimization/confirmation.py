"""Confirmation: the first in the race's order that keeps all limits, on runs and pictures that no choice has seen.

The figure that made a candidate the winner is too high, since it was chosen for being high; so nothing that the race
saw is printed. The order is fixed before: confirmation goes through it and stops at the first that is met, and never
compares what it finds. Attempts share the error, half of what is left for each, and each has pictures of its own
(``candidate.PICTURE_SHARES``). A wrong "met", or an interval that misses, is printed only where that very attempt was
wrong, so that the sum of the attempts' errors bounds the probability of it, whatever the number of attempts
(Bonferroni). Within an attempt, limits need no division (``limits``).

An attempt measures once, as much as was fixed beforehand: who goes on measuring until a limit is met meets every limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from resnet_onnx.bench.statistics import median_interval, percentile, samples_needed
from resnet_onnx.optimization.candidate import Candidate, CandidateFailed, Form, Runs, Track
from resnet_onnx.optimization.journal import Journal
from resnet_onnx.optimization.limits import CONFIRMATION_ERROR, PERCENT, Judgement, Limits, Verdict, overall
from resnet_onnx.optimization.paddock import Paddock
from resnet_onnx.optimization.race import Decided, Look, Standing

ERROR_SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16)
"""Of ``CONFIRMATION_ERROR``, one for each attempt."""

CONFIRMATION_SHARE = 0.25
"""Share of a budget of time that the race leaves for the confirmation."""

_DEPENDENCE = 4
"""Runs for each independent one that a limit of the 99th percentile needs at least: slow runs come together."""

_TIME_SHARE, _LEAST_S = 0.5, 2.0
"""Of the time that is left, the most that the runs of an attempt may take; and what they get in any case."""

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ConfirmationPlan:
    """What is to be confirmed.

    Attributes:
        order: Of the race; it is kept.
        until_s: When no further attempt begins, on the journal's clock; the first one is made in any case.
    """

    order: tuple[Candidate, ...]
    limits: Limits
    until_s: float


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A candidate that was measured anew.

    Attributes:
        error: Probability with which each of its bounds misses, at most.
        limits: The judgements of all limits that came to be judged; what was broken first spares the rest.
        images_per_second: By the median time from one completed run to the next.
        images_per_second_ends: Its interval of 95 % or more, or None where there are too few runs for one.
        p50_s: Median time of a run.
        p99_s: 99th percentile, or None where there are too few runs for one.
        pace_s: Median pace of the processor meanwhile, or None where it was not taken.
        failed: Why it could not be measured, or "".
    """

    candidate: Candidate
    error: float
    limits: tuple[Judgement, ...] = ()
    images_per_second: float | None = None
    images_per_second_ends: tuple[float, float] | None = None
    p50_s: float | None = None
    p99_s: float | None = None
    pace_s: float | None = None
    failed: str = ""

    @property
    def verdict(self) -> Verdict:
        """On all limits."""
        return "broken" if self.failed else overall(self.limits)


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """What came of it.

    Attributes:
        confirmed: The answer; None where no candidate was shown to keep the limits.
        attempts: All, in their order.
        skipped: Candidates that were passed over, and why: their form had been judged in an attempt before.
    """

    confirmed: Attempt | None
    attempts: tuple[Attempt, ...]
    skipped: dict[Candidate, str]


def confirm(
    plan: ConfirmationPlan, track: Track, journal: Journal, *, progress: Progress = lambda _: None
) -> Confirmation:
    """Measures candidates in their order until one keeps all limits, in at most five attempts.

    Raises:
        FileProblem: The journal can't be written.
    """
    attempts: list[Attempt] = []
    skipped: dict[Candidate, str] = {}
    lost: dict[Form, str] = {}
    paddock = Paddock(track)
    try:
        for candidate in plan.order:
            judged = sum(not attempt.failed for attempt in attempts)
            if judged == len(ERROR_SHARES) or (attempts and journal.now() >= plan.until_s):
                break
            if candidate.form in lost:
                skipped[candidate] = lost[candidate.form]
                continue
            progress(f"confirming {candidate}, attempt {judged + 1} of at most {len(ERROR_SHARES)}")
            attempts.append(_attempt(candidate, judged, plan, paddock, track, journal))
            if not attempts[-1].failed and attempts[-1].verdict == "met":
                return Confirmation(confirmed=attempts[-1], attempts=tuple(attempts), skipped=skipped)
            for judgement in attempts[-1].limits:
                # Later parts have fewer pictures: what this one could not show, they can't either.
                if judgement.name == "top1_drop" and judgement.verdict != "met":
                    lost[candidate.form] = f"{candidate.form}: {judgement}"
    finally:
        paddock.close()
    return Confirmation(confirmed=None, attempts=tuple(attempts), skipped=skipped)


def _attempt(
    candidate: Candidate, number: int, plan: ConfirmationPlan, paddock: Paddock, track: Track, journal: Journal
) -> Attempt:
    error = CONFIRMATION_ERROR * ERROR_SHARES[number]
    seconds = max(_LEAST_S, _TIME_SHARE * (plan.until_s - journal.now()))

    def run() -> Look:
        try:
            opened_s = paddock.hold(candidate)[1]
            return Look(
                runs=track.run(candidate, runs=runs_wanted(plan.limits, error), seconds=seconds), opened_s=opened_s
            )
        except CandidateFailed as failed:
            return Look(failed=str(failed) or "it broke down")

    look = journal.once(f"attempt {number + 1}, runs of {candidate}", run, Look)
    if look.runs is None or not look.runs.latencies_s or not look.runs.between_s:
        return Attempt(candidate=candidate, error=error, failed=look.failed or "no run was completed in the time")
    judged = plan.limits.judge_runs(candidate, look.runs, error=error)
    if overall(judged) == "met":
        decided = Decided()
        if plan.limits.needs_pictures(candidate.form):

            def decide() -> Decided:
                paddock.close()
                try:
                    return Decided(decisions=track.accuracy(candidate.form, number + 1))
                except CandidateFailed as failed:
                    return Decided(failed=str(failed) or "it broke down")

            decided = journal.once(f"attempt {number + 1}, accuracy of {candidate}", decide, Decided)
        if decided.failed:
            return Attempt(candidate=candidate, error=error, failed=decided.failed)
        judged += plan.limits.judge_form(candidate.form, decided.decisions, error=error)
    return _with_figures(candidate, error, judged, look.runs)


def _with_figures(candidate: Candidate, error: float, judged: Sequence[Judgement], runs: Runs) -> Attempt:
    latencies = np.asarray(runs.latencies_s, np.float64)
    rate, ends = median_interval(np.asarray(runs.between_s, np.float64), error=2 * error).rate(candidate.batch)
    return Attempt(
        candidate=candidate,
        error=error,
        limits=tuple(judged),
        images_per_second=rate,
        images_per_second_ends=ends,
        p50_s=float(np.median(latencies)),
        p99_s=percentile(latencies, PERCENT),
        pace_s=float(np.median(runs.paces_s)) if runs.paces_s else None,
    )


def runs_wanted(limits: Limits, error: float) -> int:
    """Returns how many runs an attempt takes, at the error that it may make, where its time allows as many.

    As many as can show a 99th percentile, and more of them where it has a limit.
    """
    return samples_needed(PERCENT, error=error) * (_DEPENDENCE if limits.p99_s is not None else 1)


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The candidate that comes nearest to the limits where none was shown to keep them.

    Attributes:
        verdict: ``undecided`` where more measuring may show that it keeps them.
    """

    candidate: Candidate
    limits: tuple[Judgement, ...]
    verdict: Verdict


def nearest(attempts: Sequence[Attempt], standings: Sequence[Standing]) -> Nearest | None:
    """Returns who comes nearest to the limits: by what was confirmed, or else by what the race saw.

    Each counts by the limit that it is farthest beyond, as a share of the limit; one that may still keep them comes
    before those that certainly don't.
    """
    judged = [(one.candidate, one.limits) for one in attempts if one.limits]
    judged = judged or [(one.candidate, one.limits) for one in standings if one.limits]

    def distance(limits: tuple[Judgement, ...]) -> tuple[bool, float]:
        return overall(limits) == "broken", max(one.excess for one in limits)

    found = min(judged, key=lambda one: distance(one[1]), default=None)
    return None if found is None else Nearest(candidate=found[0], limits=found[1], verdict=overall(found[1]))
