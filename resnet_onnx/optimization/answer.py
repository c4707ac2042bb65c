"""What comes out of a search, in words: the sentence, the rows of all candidates, the ties, what to try next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from resnet_onnx.bench.statistics import rounded, significant
from resnet_onnx.optimization.admission import Verdict as Admitted
from resnet_onnx.optimization.candidate import Candidate, Form
from resnet_onnx.optimization.candidates import NotRaced
from resnet_onnx.optimization.confirmation import Confirmation, Nearest
from resnet_onnx.optimization.limits import Judgement
from resnet_onnx.optimization.plan import OptimizePlan
from resnet_onnx.optimization.race import RaceOutcome, Standing
from resnet_onnx.report.words import counted
from resnet_onnx.results.bundle import Limit
from resnet_onnx.results.optimize import Answer, CandidateRow, Gain, State, Step, Timed

LIMIT_NAMES: Mapping[str, str] = {"p99": "p99", "top1_drop": "top1_drop", "images_per_second": "throughput"}
_FACTORS: Mapping[str, float] = {"p99": 1e3, "top1_drop": 100.0, "images_per_second": 1.0}

_TIMED: Mapping[Timed, str] = {
    "pictures": "from picture files",
    "device": "device-resident",
    "end-to-end": "arrays in and out",
}

_STATES: Mapping[str, State] = {
    "best": "eliminated",  # where it was not confirmed
    "tied": "tied",
    "undecided": "eliminated",
    "eliminated": "eliminated",
    "failed": "failed",
}


def limit_record(found: Judgement) -> Limit:
    """Returns a judgement as the document has it, in the units of the options."""
    factor = _FACTORS[found.name]
    low, high = found.ends
    ends = None if low is None or high is None else (low * factor, high * factor)
    return Limit(
        name=LIMIT_NAMES[found.name],
        limit=found.limit * factor,
        value=None if found.value is None else found.value * factor,
        ci95=ends,
        verdict=found.verdict,
    )


def candidate_rows(
    outcome: RaceOutcome | None,
    confirmation: Confirmation | None,
    admitted: Sequence[Admitted],
    not_raced: Sequence[NotRaced],
    late: Sequence[Form],
) -> list[CandidateRow]:
    """Returns a row for each candidate: the answer first, then by what the race found, then what did not race."""
    rows = [] if outcome is None else [_row(each, confirmation) for each in outcome.standings]
    by_state = sorted(rows, key=lambda row: row.state != "confirmed")
    refused = [
        CandidateRow(
            runtime=each.form.runtime, precision=each.form.precision, batch=None, streams=None, threads=None,
            state="refused", reason=each.form.reason, seconds=each.form.seconds,
        )
        for each in admitted
        if not each.form.admitted
    ]  # fmt: skip
    unavailable = [
        CandidateRow(
            runtime=each.runtime, precision=each.precision, batch=None, streams=None, threads=None,
            state="unavailable", reason=each.reason,
        )
        for each in not_raced
    ]  # fmt: skip
    unreached = [
        CandidateRow(
            runtime=each.runtime, precision=each.precision, batch=None, streams=None, threads=None,
            state="eliminated", reason="the time was over before it could be admitted",
        )
        for each in late
    ]  # fmt: skip
    return [*by_state, *unreached, *refused, *unavailable]


def _row(standing: Standing, confirmation: Confirmation | None) -> CandidateRow:
    candidate = standing.candidate
    state, reason = _STATES[standing.state], standing.reason
    attempts = {} if confirmation is None else {each.candidate: each for each in confirmation.attempts}
    confirmed = confirmation.confirmed.candidate if confirmation is not None and confirmation.confirmed else None
    if candidate == confirmed:
        state, reason = (
            "confirmed",
            "keeps every limit on fresh samples" if attempts[candidate].limits else "the fastest",
        )
    elif candidate in attempts:
        attempt = attempts[candidate]
        state = "failed" if attempt.failed else "eliminated"
        missed = [str(each) for each in attempt.limits if each.verdict != "met"]
        reason = attempt.failed or f"not confirmed: {'; '.join(missed)}"
    elif confirmation is not None and candidate in confirmation.skipped:
        state, reason = "eliminated", confirmation.skipped[candidate]
    elif confirmed is None and state == "tied":
        reason = f"{reason}; not confirmed"
    return CandidateRow(
        runtime=candidate.runtime,
        precision=candidate.precision,
        batch=candidate.batch,
        streams=candidate.streams,
        threads=candidate.threads or None,
        state=state,
        reason=reason,
        over_answer=standing.ratio,
        over_answer_ci95=standing.ends,
        seconds=standing.seconds,
    )


def with_speeds(rows: Sequence[CandidateRow], answer: Answer) -> list[CandidateRow]:
    """Returns the rows with about what speed each has: the answer's confirmed one times the ratio to it.

    The ratios of a race are to the first in its order; where another one was confirmed they are divided by its own.
    """
    ground = next((row.over_answer for row in rows if row.state == "confirmed"), None)
    found = []
    for row in rows:
        if row.state == "confirmed":
            row = replace(row, over_answer=1.0, over_answer_ci95=None)
        elif row.over_answer is not None and ground:
            row = replace(
                row,
                over_answer=row.over_answer / ground,
                over_answer_ci95=row.over_answer_ci95 if ground == 1.0 else None,
            )
        else:
            found.append(replace(row, over_answer=None, over_answer_ci95=None))
            continue
        speed = answer.images_per_second * (row.over_answer or 1.0)
        at_once = (row.batch or 1) * (row.streams or 1)
        found.append(
            replace(
                row,
                images_per_second=speed,
                over_reference=None
                if answer.over_reference is None
                else answer.over_reference * (row.over_answer or 1),
                latency_ms=answer.latency_ms.p50 if row.state == "confirmed" else 1e3 * at_once / speed,
            )
        )
    return found


def steps(outcome: RaceOutcome) -> list[Step]:
    """Returns the path of a race."""
    found = []
    for each in outcome.path:
        changed = each.best_after is not None and each.best_after != each.best
        outcome_ = "becomes the best" if changed else "the best stays"
        found.append(
            Step(
                challenger=str(each.challenger), best=str(each.best), ratio=each.ratio, ci95=each.ends,
                blocks=each.blocks, outcome=outcome_, at_s=each.at_s,
            )
        )  # fmt: skip
    return found


def arrangement(candidate: Candidate) -> str:
    """Says what a candidate is: runtime, precision, batch, streams, threads."""
    parts = [str(candidate.form), f"batch {candidate.batch}", counted(candidate.streams, "stream")]
    if candidate.threads:
        parts.append(counted(candidate.threads, "thread"))
    return ", ".join(parts)


def sentence(answer: Answer, candidate: Candidate, plan: OptimizePlan, timed: Timed) -> str:
    """Returns the answer in one sentence, with its intervals."""
    parts = [f"{rate_text(answer)} {_TIMED[timed]}"]
    if answer.capacity is not None:
        parts.append(
            f"answers {rounded(answer.capacity.images_per_second, 3)} random arrivals a second within p99 ≤ "
            f"{plan.p99_ms:g} ms"
        )
    elif answer.latency_ms.p99 is not None:
        parts.append(f"p99 {rounded(answer.latency_ms.p99, 3)} ms a run (queueing not included)")
    else:
        parts.append(f"median run {rounded(answer.latency_ms.p50, 3)} ms")
    parts.append(drop_text(answer))
    if answer.cost_per_million is not None:
        parts.append(f"{rounded(answer.cost_per_million, 3)} a million pictures")
    return f"{arrangement(candidate)}: {', '.join(parts)}.{_gains(answer)}"


def rate_text(answer: Answer) -> str:
    """Returns the confirmed rate with its interval."""
    ends = answer.images_per_second_ci95
    half = None if ends is None else (ends[1] - ends[0]) / 2
    value, _ = significant(answer.images_per_second, half)
    if ends is None:
        return f"{value} img/s"
    low, high = (significant(end, half)[0] for end in ends)
    return f"{value} img/s ({low}–{high})"


def drop_text(answer: Answer) -> str:
    """Says what is known of the accuracy."""
    if answer.top1_drop is None:
        agreed = "" if answer.agreement is None else f" (decides {100 * answer.agreement:.1f} % alike)"
        return f"accuracy not judged{agreed}"
    if answer.top1_drop_ci95 in (None, (0.0, 0.0)):
        return "no drop of top-1: it passes parity"
    return f"top-1 drop {answer.top1_drop:+.2f} (at most {answer.top1_drop_ci95[1]:+.2f}) points"


def _gains(answer: Answer) -> str:
    told = [f"{rounded(gain.ratio, 2)}× {gain.runtime}" for gain in answer.gains if gain.ratio is not None]
    if answer.ceiling_fraction is not None:
        told.append(f"{100 * answer.ceiling_fraction:.0f} % of this machine's {answer.precision} peak")
    return f" {', '.join(told)}." if told else ""


def tie_lines(rows: Sequence[CandidateRow], answer: Answer) -> list[str]:
    """Says what is as good as the answer, and what it would give."""
    lines = []
    for row in rows:
        if row.state != "tied":
            continue
        given = "" if row.latency_ms is None else f", a run of about {rounded(row.latency_ms, 2)} ms"
        lost = []
        if row.precision != answer.precision:
            lost.append("a narrower precision")
        if (row.streams or 1) > answer.streams:
            lost.append("more streams")
        if row.runtime != answer.runtime:
            lost.append("another runtime")
        lines.append(f"{row.name}: as fast{given}; {' and '.join(lost) or 'another arrangement'} for nothing gained")
    return lines


def next_lines(
    plan: OptimizePlan, model: str, answer: Answer | None, nearest: Nearest | None, rows: Sequence[CandidateRow],
    *, decided: bool,
) -> list[str]:  # fmt: skip
    """Returns what to try next."""
    lines = []
    minutes = plan.time_budget_s / 60
    if nearest is not None:
        lines += [f"{nearest.candidate}: {each.decides()}" for each in nearest.limits if each.decides() is not None]
        if nearest.verdict == "undecided":
            lines.append(f"more time decides it: --time-budget {2 * minutes:g} --resume")
        else:
            lines.append("a looser limit, other runtimes or precisions, or a smaller network")
    elif not decided and answer is not None:
        lines.append(f"the time ended the race: --time-budget {2 * minutes:g} --resume goes on with it")
    if plan.data is None and answer is not None:
        lines.append(f"judge accuracy too: resnet-onnx optimize {model} --data D --max-drop 1")
    gone = [row for row in rows if row.state == "refused" and row.precision == "int8" and "real pictures" in row.reason]
    if gone and plan.data is None:
        lines.append("int8 takes its ranges from real pictures: --data D")
    return lines


def nearest_text(found: Nearest | None) -> str | None:
    """Says which candidate comes nearest, and what it misses."""
    if found is None:
        return None
    missed = [str(each) for each in found.limits if each.verdict != "met"] or [str(each) for each in found.limits]
    return f"{arrangement(found.candidate)}: {'; '.join(missed)} ({found.verdict})"


def gain_text(gain: Gain) -> str:
    """Says how an answer compares with another way to run the network."""
    if gain.ratio is None:
        return f"{gain.runtime}: {gain.reason}"
    ends = "" if gain.ci95 is None else f" ({gain.ci95[0]:.2f}–{gain.ci95[1]:.2f})"
    return f"{gain.ratio:.2f}×{ends} {gain.runtime}"


def unjudged_forms(admitted: Sequence[Admitted]) -> frozenset[Form]:
    """Returns the forms in the network's own precision that passed parity, whose drop is 0 by definition."""
    return frozenset(
        Form(each.form.runtime, each.form.precision)
        for each in admitted
        if each.form.admitted and each.form.proof == "parity"
    )
