"""The race: which candidate is the best, by comparisons in turns of a challenger with the present best.

**Evidence.** Two candidates are open at a time and take turns (``bench.paired``). All that is known of a pair is the
sequence of log ratios of its blocks, whose bounds hold at every moment (``bench.always_valid``), so that a comparison
may be broken off and gone on with as often as one likes. Nothing else joins two candidates: no absolute time of one is
ever set beside that of another, and what was measured before an interruption counts as ratios alone.

**Who leaves.** A candidate leaves when it is worse for certain than one that has not been disqualified, or breaks a
limit for certain. Where the tie rule would prefer it to the other one, it leaves only when it is worse by more than the
tolerance: it might win as its equal. What beat others and is disqualified later gives them back.

**The error.** What must not happen is that the best candidate leaves. Whoever else leaves was not the best, whatever
the reason. So the error needs no division by the number of candidates or of all comparisons: only the comparisons in
which the best one itself takes part can throw it out. A candidate's j-th opponent is allowed an error of
α / (j (j + 1)), which sums to α over any number of opponents, and opponents may be chosen by what has been seen, since
each bound is a supermartingale from the first block of its pair on (Ville's inequality, conditionally on the past). The
union over all comparisons (Maron and Moore, NIPS 1993) would ask 16 candidates for a third more blocks and 128 for
two thirds more, since a bettor wins no more than a factor of two a block.
Half of α is for the limits, divided among them.

**Who races next.** Every candidate meets the present best once, in the order that is expected to be the best first, for
an equal share of half the time. Then the one that is most likely to be better still, by its estimate plus one standard
error, meets the present best for as long as it has raced before (or takes to open), so that opening again never takes
more than half of the time. This is LUCB (Kalyanakrishnan et al., ICML 2012) with the standard error in place of a
bound: it chooses where time goes, and nobody leaves by an estimate. Estimates are those of all pairs together, by least
squares. The order of the candidates, and what their cost was thought to be, change who comes first and nothing else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from resnet_onnx.bench.equivalence import TOLERANCE, check_tolerance
from resnet_onnx.bench.paired import Block, ContenderFailed, PairedRun, run_pair
from resnet_onnx.optimization.candidate import RACE_PART, Candidate, CandidateFailed, Form, PairedDecisions, Runs, Track
from resnet_onnx.optimization.journal import Journal
from resnet_onnx.optimization.limits import RACE_ERROR, Judgement, Limits, overall
from resnet_onnx.optimization.objective import Objective
from resnet_onnx.optimization.paddock import Entrant, Paddock
from resnet_onnx.optimization.pairs import Estimate, Pair, estimates
from runtimes.errors import UsageError

SPEED_ERROR = RACE_ERROR / 2
LIMITS_ERROR = RACE_ERROR / 2

_DOUBT_ERROR = 0.05
"""A limit that is broken at 95 %, and not yet at the error at which it throws out, is in doubt: its candidate stays,
behind the others."""

_FIRST_ROUND = 0.5
"""Share of the race's time for the first meeting of all candidates."""

_LEAST_SHARE = 1 / 3
"""Of a candidate's share of the first round that is for its turns, however long it took to open."""

_LONGEST_LEG_S = 60.0
"""A step of the journal: what a kill can lose."""

_LOOK_RUNS, _LOOK_S = 40, 2.0
"""Runs that find out what breaks a limit of time plainly, before it takes its first turn."""

Progress = Callable[[str], None]

State = Literal["best", "tied", "undecided", "eliminated", "failed"]


@dataclass(frozen=True, kw_only=True)
class RacePlan:
    """How a race is run.

    Attributes:
        candidates: All that passed admission, those first that are expected to be the best.
        tolerance: Relative difference that does not matter.
        until_s: When it ends, on the journal's clock.
        seed: Of the coins; None is a fresh one.
    """

    candidates: tuple[Candidate, ...]
    objective: Objective
    limits: Limits
    until_s: float
    tolerance: float = TOLERANCE
    seed: int | None = None

    def __post_init__(self) -> None:
        check_tolerance(self.tolerance)
        if not self.candidates:
            raise UsageError("a race needs a candidate")
        if len(set(self.candidates)) < len(self.candidates):
            raise UsageError("a candidate can't race twice")


@dataclass(frozen=True, kw_only=True)
class Leg:
    """A stretch of a comparison, a step of the journal.

    Attributes:
        opened_s: What opening took, by the text of the candidate.
        failed: Who broke down and why, by its text.
    """

    blocks: tuple[Block, ...] = ()
    opened_s: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Look:
    """A candidate that was opened, and a few runs of it where they were needed; a step of the journal.

    Attributes:
        failed: Why it could not be opened or run, or "".
    """

    runs: Runs | None = None
    opened_s: float = 0.0
    failed: str = ""


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What the race saw of a form's decisions, a step of the journal; `failed` says why there are none, or is ""."""

    decisions: PairedDecisions | None = None
    failed: str = ""


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """A leg as the report tells it.

    Attributes:
        at_s: When it ended.
        ratio: Speed of the challenger over that of the best, in pictures a second, over all legs of the pair.
        ends: Its 95 % interval, or None where there is none yet.
        blocks: Of all legs of the pair.
        seconds: That this leg took, opening included.
        best_after: Who was the best after it.
    """

    at_s: float
    challenger: Candidate
    best: Candidate
    ratio: float
    ends: tuple[float, float] | None
    blocks: int
    seconds: float
    best_after: Candidate | None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What the race found of a candidate.

    Attributes:
        reason: Why it is in this state; "" for the best.
        ratio: Its speed over that of the first in the order, in pictures a second, by all pairs; None where no chain of
            comparisons joins them.
        ends: The 95 % interval of that, where the two have met.
        blocks: Of all its comparisons.
        seconds: That it took, opened for and raced as a challenger.
        limits: What the race saw of the limits.
    """

    candidate: Candidate
    state: State
    reason: str
    ratio: float | None
    ends: tuple[float, float] | None
    blocks: int
    seconds: float
    limits: tuple[Judgement, ...]


@dataclass(frozen=True, kw_only=True)
class RaceOutcome:
    """What came of a race.

    Attributes:
        order: Who is to be confirmed, the first first. Those that left as slower are in it, behind: they are what is
            left where the others don't keep the limits.
        ties: The candidates that are the first one's equals, itself included.
        standings: Of all candidates, in the order, then those that are out.
        path: Of all legs.
        decided: Whether nothing was left to find out; otherwise the time ended it.
    """

    order: tuple[Candidate, ...]
    ties: tuple[Candidate, ...]
    standings: tuple[Standing, ...]
    path: tuple[Meeting, ...]
    decided: bool


def race(plan: RacePlan, track: Track, journal: Journal, *, progress: Progress = lambda _: None) -> RaceOutcome:
    """Races all candidates until nothing is left to find out or the time is over.

    Raises:
        FileProblem: The journal can't be written.
    """
    with_all = _Race(plan, track, journal, progress)
    try:
        decided = with_all.first_round() and with_all.finals()
    finally:
        with_all.paddock.close()
    return with_all.outcome(decided=decided)


class _Race:
    def __init__(self, plan: RacePlan, track: Track, journal: Journal, progress: Progress) -> None:
        self._plan, self._track, self._journal, self._progress = plan, track, journal, progress
        self.paddock = Paddock(track)
        self._pairs: dict[frozenset[Candidate], Pair] = {}
        self._opponents: dict[Candidate, dict[Candidate, int]] = {one: {} for one in plan.candidates}
        self._entered: list[Candidate] = []
        self._failed: dict[Candidate, str] = {}
        self._broken: dict[Candidate, str] = {}
        self._doubtful: set[Candidate] = set()
        self._beaten_by: dict[Candidate, Candidate] = {}
        self._judged: dict[Candidate, list[Judgement]] = {one: [] for one in plan.candidates}
        self._opened_s = dict.fromkeys(plan.candidates, 0.0)
        self._seconds = dict.fromkeys(plan.candidates, 0.0)
        self._path: list[Meeting] = []
        self._best: Candidate | None = None

    # ---- its course ----

    def first_round(self) -> bool:
        """Lets every candidate meet the best once; returns whether all had their turn."""
        count = len(self._plan.candidates)
        for number, candidate in enumerate(self._plan.candidates):
            if self._left_s() <= 0 and self._best is not None:
                return False
            self._progress(f"{candidate} enters, {number + 1} of {count}{self._time_left()}")
            if not self._enters(candidate):
                continue
            if self._best is None:
                self._best = candidate
            else:
                opening_s = self._opened_s[candidate]
                share = max(0.0, _FIRST_ROUND * (self._left_s() + opening_s) / (count - number))
                self._meet(candidate, max(share - opening_s, _LEAST_SHARE * share), least=_LEAST_SHARE)
        return True

    def finals(self) -> bool:
        """Lets the most promising ones meet the best until nothing is left to find out; returns whether it is so."""
        while (challenger := self._most_promising()) is not None:
            raced_s = sum(pair.run.spent_s for pair in self._pairs_of(challenger))
            blocks = sum(len(pair.run.blocks) for pair in self._pairs_of(challenger))
            opening_s = self._opened_s[challenger]
            if self._left_s() < opening_s + (raced_s / blocks if blocks else 0.0):
                return False
            wanted_s = min(opening_s + max(raced_s, opening_s), _LONGEST_LEG_S)
            self._meet(challenger, min(wanted_s, self._left_s()))
        return True

    def _enters(self, candidate: Candidate) -> bool:
        """Opens a candidate and looks at the limits before its first turn; returns whether the candidate may race."""
        limits, decided = self._plan.limits, Decided()
        if limits.needs_pictures(candidate.form):
            decided = self._journal.once(f"accuracy of {candidate.form}", lambda: self._decide(candidate.form), Decided)
        if failed := decided.failed:
            self._failed[candidate] = failed
            return False
        if self._breaks(candidate, lambda error: limits.judge_form(candidate.form, decided.decisions, error=error)):
            return False
        look = self._journal.once(f"opening {candidate}", lambda: self._look(candidate), Look)
        self._took(candidate, look.opened_s)
        if failed := look.failed:
            self._failed[candidate] = failed
            return False
        if (runs := look.runs) is not None and self._breaks(
            candidate, lambda error: limits.judge_runs(candidate, runs, error=error)
        ):
            return False
        self._entered.append(candidate)
        return True

    def _breaks(self, candidate: Candidate, judge: Callable[[float], Sequence[Judgement]]) -> bool:
        """Keeps what is known of some limits, judged at an error; returns whether one is broken for certain."""
        strict = judge(LIMITS_ERROR / max(1, self._plan.limits.count))
        self._judged[candidate] += strict
        if overall(strict) == "broken":
            self._broken[candidate] = str(next(one for one in strict if one.verdict == "broken"))
            return True
        if overall(judge(_DOUBT_ERROR)) == "broken":
            self._doubtful.add(candidate)
        return False

    def _decide(self, form: Form) -> Decided:
        self.paddock.close(keep=[self._best] if self._best is not None else [])
        try:
            return Decided(decisions=self._track.accuracy(form, RACE_PART))
        except CandidateFailed as error:
            return Decided(failed=str(error) or "it broke down")

    def _look(self, candidate: Candidate) -> Look:
        opened_s = 0.0
        try:
            opened_s = self.paddock.hold(candidate, *([self._best] if self._best is not None else []))[1]
            of_speed = self._plan.limits.of_speed
            runs = self._track.run(candidate, runs=_LOOK_RUNS, seconds=_LOOK_S) if of_speed else None
            return Look(runs=runs, opened_s=opened_s)
        except CandidateFailed as error:
            return Look(opened_s=opened_s, failed=str(error) or "it broke down")

    def _meet(self, challenger: Candidate, seconds: float, *, least: float = 0.0) -> None:
        """Lets a challenger meet the best for so many seconds, opening included, and says who is the best then.

        At least the share `least` of the seconds is for turns, however long opening takes.
        """
        best = self._best
        assert best is not None
        pair = self._pair(best, challenger)
        key = f"leg {pair.legs + 1} of {pair.base} and {pair.new}"
        leg = self._journal.once(key, lambda: self._run_leg(pair, challenger, seconds, least, key), Leg)
        pair.take(leg.blocks)
        for candidate in (best, challenger):
            if (opened_s := leg.opened_s.get(str(candidate))) is not None:
                self._took(candidate, opened_s)
            if (failed := leg.failed.get(str(candidate))) is not None:
                self._failed[candidate] = failed
        turns_s = sum(block.spent_s for block in leg.blocks)
        self._seconds[challenger] += turns_s
        if pair.run.blocks:
            pair.settled(pair.run.sequence, self._errors(pair))
        self._find_beaten()
        self._best = self._better(best, challenger)
        if pair.run.blocks:
            self._path.append(
                Meeting(
                    at_s=self._journal.now(),
                    challenger=challenger,
                    best=best,
                    ratio=pair.ratio(challenger),
                    ends=pair.ends(challenger),
                    blocks=len(pair.run.blocks),
                    seconds=sum(leg.opened_s.values()) + turns_s,
                    best_after=self._best,
                )
            )

    def _run_leg(self, pair: Pair, challenger: Candidate, seconds: float, least: float, key: str) -> Leg:
        opened_s: dict[str, float] = {}
        entrants: dict[Candidate, Entrant] = {}
        both = pair.base, pair.new
        for candidate in both:
            try:
                entrants[candidate], took_s = self.paddock.hold(candidate, *both)
            except CandidateFailed as error:
                return Leg(opened_s=opened_s, failed={str(candidate): str(error) or "it broke down"})
            if took_s > 0:
                opened_s[str(candidate)] = took_s
        run = PairedRun(blocks=list(pair.run.blocks))
        before, errors = len(run.blocks), self._errors(pair)
        failed: dict[str, str] = {}
        racing, left = sum(self._in_race(one) for one in self._entered), self._time_left()
        said = f"{challenger} against {pair.other(challenger)} · {racing} in the race{left}"
        try:
            run_pair(
                entrants[pair.base],
                entrants[pair.new],
                into=run,
                enough=lambda sequence: pair.settled(sequence, errors),
                duration_s=run.spent_s + max(seconds - sum(opened_s.values()), least * seconds),
                coin=random.Random(None if self._plan.seed is None else f"{self._plan.seed} {key}"),
                progress=lambda run: self._progress(f"{said} · {len(run.blocks)} blocks"),
            )
        except ContenderFailed:
            failed = {str(one): entrant.failed for one, entrant in entrants.items() if entrant.failed}
        return Leg(blocks=tuple(run.blocks[before:]), opened_s=opened_s, failed=failed)

    # ---- who is where ----

    def _in_race(self, candidate: Candidate) -> bool:
        return not (candidate in self._beaten_by or self._is_disqualified(candidate))

    def _is_disqualified(self, candidate: Candidate) -> bool:
        return candidate in self._failed or candidate in self._broken

    def _find_beaten(self) -> None:
        """Finds who was thrown out by whom; one whose limits are in doubt throws out none but others in doubt."""
        self._beaten_by = {}
        for pair in self._pairs.values():
            if (worse := pair.worse) is not None:
                other = pair.other(worse)
                ranks = other not in self._doubtful or worse in self._doubtful
                if ranks and not self._is_disqualified(other):
                    self._beaten_by.setdefault(worse, other)

    def _better(self, best: Candidate, challenger: Candidate) -> Candidate | None:
        """Returns the better one of two by what is known of all, or the best of all where neither is in the race."""
        here = [one for one in (best, challenger) if self._in_race(one)]
        found = self._estimates(best)
        return min(here or filter(self._in_race, self._entered), key=lambda one: self._place(one, found), default=None)

    def _place(self, candidate: Candidate, found: Mapping[Candidate, Estimate]) -> tuple[bool, float]:
        return candidate in self._doubtful, -found[candidate].better

    def _most_promising(self) -> Candidate | None:
        """Returns who is most likely to be better than the best, of those of whom it is not certain.

        Who is in doubt can't become the best while others are in the race, so that more of it would tell nothing.
        """
        best = self._best
        if best is None:
            return None
        found = self._estimates(best)
        left = [
            one
            for one in self._entered
            if one != best
            and self._in_race(one)
            and (best in self._doubtful or one not in self._doubtful)
            and not ((pair := self._pairs.get(frozenset((best, one)))) is not None and pair.tied)
        ]
        return max(left, key=lambda one: found[one].better + found[one].error, default=None)

    def _estimates(self, ground: Candidate) -> dict[Candidate, Estimate]:
        return estimates(self._entered, self._pairs.values(), ground)

    def _pair(self, best: Candidate, challenger: Candidate) -> Pair:
        key = frozenset((best, challenger))
        if key not in self._pairs:
            self._pairs[key] = Pair(best, challenger, self._plan.objective, self._plan.tolerance)
            for one, other in ((best, challenger), (challenger, best)):
                self._opponents[one][other] = len(self._opponents[one]) + 1
        return self._pairs[key]

    def _pairs_of(self, candidate: Candidate) -> Iterator[Pair]:
        return (self._pairs[frozenset((candidate, other))] for other in self._opponents[candidate])

    def _errors(self, pair: Pair) -> dict[Candidate, float]:
        """Returns the probability with which each of a pair may be thrown out wrongly by the other."""

        def of(candidate: Candidate) -> float:
            number = self._opponents[candidate][pair.other(candidate)]
            return SPEED_ERROR / (number * (number + 1))

        return {pair.base: of(pair.base), pair.new: of(pair.new)}

    def _took(self, candidate: Candidate, opened_s: float) -> None:
        self._opened_s[candidate] = max(self._opened_s[candidate], opened_s)
        self._seconds[candidate] += opened_s

    def _left_s(self) -> float:
        return self._plan.until_s - self._journal.now()

    def _time_left(self) -> str:
        return f" · at most {max(0, math.ceil(self._left_s()))} s left"

    # ---- its end ----

    def outcome(self, *, decided: bool) -> RaceOutcome:
        """Returns who is to be confirmed in which order, and what became of all."""
        ranked: list[Candidate] = []
        found: Mapping[Candidate, Estimate] = {}
        ties: list[Candidate] = []
        able = [one for one in self._entered if not self._is_disqualified(one)]
        if able:
            found = self._estimates(self._best or able[0])
            ranked = sorted(able, key=lambda one: self._place(one, found))
            first = next((one for one in ranked if self._in_race(one)), ranked[0])
            ties = sorted(
                self._equals(first), key=lambda one: (self._plan.objective.preference(one), ranked.index(one))
            )
            ranked = [*ties, *(one for one in ranked if one not in ties)]
        out = [one for one in self._plan.candidates if one not in ranked]
        return RaceOutcome(
            order=tuple(ranked),
            ties=tuple(ties),
            standings=tuple(self._standing(one, ranked, ties, found) for one in [*ranked, *out]),
            path=tuple(self._path),
            decided=decided,
        )

    def _equals(self, first: Candidate) -> list[Candidate]:
        """Returns a candidate and those that were shown to be equally good."""
        tied = (
            other
            for other in self._opponents[first]
            if self._pairs[frozenset((first, other))].tied
            and not self._is_disqualified(other)
            and (other in self._doubtful) == (first in self._doubtful)
        )
        return [first, *tied]

    def _standing(
        self,
        candidate: Candidate,
        ranked: Sequence[Candidate],
        ties: Sequence[Candidate],
        found: Mapping[Candidate, Estimate],
    ) -> Standing:
        first = ranked[0] if ranked else None
        ratio = ends = None
        if first is not None and candidate in found and found[candidate].is_known and found[first].is_known:
            handicap = self._plan.objective.handicap
            better = found[candidate].better + handicap(candidate) - found[first].better - handicap(first)
            ratio = math.exp(better)
        if first is not None and (pair := self._pairs.get(frozenset((first, candidate)))) is not None:
            ends = pair.ends(candidate)
        state, reason = self._state(candidate, first, ties)
        return Standing(
            candidate=candidate,
            state=state,
            reason=reason,
            ratio=ratio,
            ends=ends,
            blocks=sum(len(pair.run.blocks) for pair in self._pairs_of(candidate)),
            seconds=self._seconds[candidate],
            limits=tuple(self._judged[candidate]),
        )

    def _state(self, candidate: Candidate, first: Candidate | None, ties: Sequence[Candidate]) -> tuple[State, str]:
        if candidate in self._failed:
            return "failed", self._failed[candidate]
        if candidate in self._broken:
            return "eliminated", self._broken[candidate]
        if candidate == first:
            return "best", ""
        if candidate in ties:
            return "tied", f"within {100 * self._plan.tolerance:g} % of {first}"
        if (winner := self._beaten_by.get(candidate)) is not None:
            pair = self._pairs[frozenset((candidate, winner))]
            ends = pair.ends(candidate)
            said = f" ({ends[0]:.3f} – {ends[1]:.3f})" if ends is not None else ""
            return "eliminated", f"{pair.ratio(candidate):.3f}{said} of the speed of {winner}"
        if candidate not in self._entered:
            return "undecided", "the time was over before its turn"
        return "undecided", f"the time was over before it was told apart from {first}"
