"""The end of a search: what is measured of the answer, the document, the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from resnet_onnx.deploy.bundle import BundleContents, write_bundle
from resnet_onnx.optimization import answer as words
from resnet_onnx.optimization.admission import Verdict
from resnet_onnx.optimization.candidate import Candidate, Form
from resnet_onnx.optimization.confirmation import (
    Attempt,
    Confirmation,
    Nearest,
)
from resnet_onnx.optimization.figures import (
    CapacityFound,
    Reserve,
    against_reference,
    capacity,
    ceiling_share,
    compared_with,
    gain,
    reserve,
)
from resnet_onnx.optimization.race import RaceOutcome
from resnet_onnx.optimization.search import Search
from resnet_onnx.optimization.track import RealTrack
from resnet_onnx.results.bundle import Figures, Latency, Limit, LimitVerdict
from resnet_onnx.results.optimize import (
    Answer,
    Gain,
    Optimize,
)
from runtimes import onnx_gate
from runtimes.errors import RuntimeUnavailable, UsageError


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found.

    Attributes:
        admitted: How every form was admitted or refused.
        outcome: None where nothing was admitted.
        limits: Of the answer, or of the nearest candidate.
        near: The candidate that comes nearest, where there is no answer; `near_text` in words.
    """

    admitted: Sequence[Verdict]
    outcome: RaceOutcome | None = None
    confirmation: Confirmation | None = None
    answer: Answer | None = None
    limits: Sequence[Limit] = ()
    near: Nearest | None = None
    near_text: str | None = None


def answered(search: Search, track: RealTrack, found: Found, attempt: Attempt) -> Optimize:
    """Measures what else is to be said of the confirmed candidate, and returns the document; writes the bundle."""
    plan, candidate, journal = search.plan, attempt.candidate, search.journal
    limits = [words.limit_record(each) for each in attempt.limits]
    kept = kept_for_conclusion(search, found.admitted)
    gains = _gains(search, track, candidate, found.admitted, kept)
    search.say(f"measuring {candidate} against the reference")
    figures = journal.once("reference", lambda: against_reference(track, candidate, progress=search.say), Figures)
    served: CapacityFound | None = None
    if plan.arrivals is not None:
        served = journal.once(
            "capacity",
            lambda: capacity(track, candidate, seconds=search.left_s() - kept.bundle_s, progress=search.say),
            CapacityFound,
        )
        limits.append(served.limit)
        if plan.min_throughput is not None:
            limits.append(_rate_limit(served, plan.min_throughput))
    if plan.max_memory is not None:
        held = track.memory.get(candidate)
        limits.append(Limit(name="memory", limit=plan.max_memory, value=held, verdict="met"))
    if not search.judged:
        limits.append(_agreement_limit(candidate.form, found.admitted))
    if served is not None and any(limit.verdict != "met" for limit in limits):
        missed = _missed(candidate, limits)
        document = document_of(search, replace(found, limits=limits, near_text=missed))
        rows = [
            replace(row, state="eliminated", reason=f"not confirmed: {missed}") if row.state == "confirmed" else row
            for row in document.candidates
        ]
        return replace(document, candidates=rows)
    made = _answer(search, attempt, figures, gains, found.admitted, served)
    document = document_of(search, replace(found, limits=limits, answer=made))
    return document if plan.out is None else _bundled(search, track, found.admitted, document, figures)


def kept_for_conclusion(search: Search, admitted: Sequence[Verdict]) -> Reserve:
    """Returns the time that is kept for what follows the confirmation."""
    return reserve(search.plan, {Form(each.form.runtime, each.form.precision): each.proving_s for each in admitted})


def _gains(
    search: Search, track: RealTrack, candidate: Candidate, admitted: Sequence[Verdict], kept: Reserve
) -> list[Gain]:
    forms = {Form(each.form.runtime, each.form.precision): each.form.admitted for each in admitted}
    gains: list[Gain] = []

    def left_s() -> float:
        return search.left_s() - kept.after_gains_s

    for other in compared_with(candidate, forms, left_s=left_s()):
        if isinstance(other, Gain):
            gains.append(other)
            continue
        search.say(f"measuring {candidate} against {other.runtime}")
        gains.append(
            search.journal.once(
                f"gain over {other}",
                lambda other=other: gain(track, candidate, other, seed=search.plan.seed, left_s=left_s() / 2),  # type: ignore[misc]
                Gain,
            )
        )
    return gains


def _rate_limit(served: CapacityFound, least: float) -> Limit:
    low, high = served.capacity.low, served.capacity.high
    verdict: LimitVerdict = "met" if low >= least else "broken" if high < least else "undecided"
    return Limit(
        name="throughput",
        limit=least,
        value=served.capacity.images_per_second,
        ci95=(low, max(low, high)),
        verdict=verdict,
    )


def _agreement_limit(form: Form, admitted: Sequence[Verdict]) -> Limit:
    """Returns what the gate of the conversion saw, in place of a drop that can't be judged."""
    found = next(each.form for each in admitted if (each.form.runtime, each.form.precision) == form)
    return Limit(name="agreement", limit=0.0, value=found.agreement, verdict="met")


def _missed(candidate: Candidate, limits: Sequence[Limit]) -> str:
    missed = [
        f"{each.name} {'not measured' if each.value is None else f'{each.value:.4g}'}, the limit is {each.limit:g} "
        f"({each.verdict})"
        for each in limits
        if each.verdict != "met"
    ]
    return f"{words.arrangement(candidate)}: {'; '.join(missed)}"


def _answer(
    search: Search,
    attempt: Attempt,
    figures: Figures,
    gains: Sequence[Gain],
    admitted: Sequence[Verdict],
    served: CapacityFound | None,
) -> Answer:
    candidate, plan = attempt.candidate, search.plan
    rate = attempt.images_per_second
    if rate is None or attempt.p50_s is None:
        raise RuntimeError("a confirmed candidate has a rate")
    form = next(each.form for each in admitted if (each.form.runtime, each.form.precision) == candidate.form)
    drop = next((each for each in attempt.limits if each.name == "top1_drop"), None)
    low, high = drop.ends if drop is not None else (None, None)
    made = Answer(
        sentence="",
        runtime=candidate.runtime,
        precision=candidate.precision,
        batch=candidate.batch,
        streams=candidate.streams,
        threads=candidate.threads or None,
        images_per_second=rate,
        images_per_second_ci95=attempt.images_per_second_ends,
        over_reference=figures.over_reference,
        over_reference_ci95=figures.over_reference_ci95,
        latency_ms=Latency(p50=1e3 * attempt.p50_s, p99=None if attempt.p99_s is None else 1e3 * attempt.p99_s),
        top1_drop=None if drop is None or drop.value is None else 100 * drop.value,
        top1_drop_ci95=None if low is None or high is None else (100 * low, 100 * high),
        agreement=form.agreement,
        pace_us=None if attempt.pace_s is None else 1e6 * attempt.pace_s,
        gains=list(gains),
        ceiling_fraction=ceiling_share(search.costs.multiply_adds, rate, search.peaks, candidate.precision),
        cost_per_million=None if plan.price is None else plan.price / 3600 / rate * 1e6,
        capacity=None if served is None else served.capacity,
    )
    return replace(made, sentence=words.sentence(made, candidate, plan, search.timed))


def document_of(search: Search, found: Found) -> Optimize:
    """Returns the document of a search."""
    outcome, answer = found.outcome, found.answer
    rows = words.candidate_rows(outcome, found.confirmation, found.admitted, search.entries.not_raced, search.late)
    if answer is not None:
        rows = words.with_speeds(rows, answer)
    return Optimize(
        model=search.model.name,
        precision=search.model.precision,
        sha256=onnx_gate.check_onnx(search.path).sha256,
        goal=search.plan.goal,
        timed=search.timed,
        data=search.plan.data,
        answer=answer,
        nearest=found.near_text or words.nearest_text(found.near),
        limits=found.limits,
        candidates=rows,
        forms=[each.form for each in found.admitted],
        path=[] if outcome is None else words.steps(outcome),
        ties=[] if answer is None else words.tie_lines(rows, answer),
        next_steps=words.next_lines(
            search.plan, search.model.name, answer, found.near, rows, decided=outcome is None or outcome.decided
        ),
        journal=None if search.journal.path is None else str(search.journal.path),
        budget_s=search.plan.time_budget_s,
        spent_s=search.journal.now(),
        notes=search.notes,
    )


def _bundled(
    search: Search, track: RealTrack, admitted: Sequence[Verdict], made: Optimize, figures: Figures
) -> Optimize:
    """Writes the bundle, and returns the document that says where it is; a note says why there is none."""
    from resnet_onnx.report.assemble import write_report
    from resnet_onnx.workflow.results import saved_result

    answer, plan, out = made.answer, search.plan, search.plan.out
    assert answer is not None
    assert out is not None
    search.say(f"writing {out}")
    with_bundle = replace(made, bundle=str(out))
    form = Form(answer.runtime, answer.precision)
    verdict = next(each for each in admitted if (each.form.runtime, each.form.precision) == form)
    saved = saved_result(search.model, with_bundle)

    def page(path: Path) -> None:
        write_report(path, [saved])

    contents = BundleContents(
        model=track.admission.model_in(answer.precision),
        original=search.model,
        runtime=answer.runtime,
        batch=answer.batch,
        options=replace(plan.options, streams=answer.streams, threads=answer.threads),
        device=plan.device,
        figures=figures,
        parity=verdict.parity,
        conversion=track.admission.conversions.get(answer.precision),
        limits=tuple(made.limits),
        results={"optimize.json": with_bundle},
        report=page,
        notes=tuple(made.notes),
    )
    try:
        write_bundle(contents, out, progress=search.say)
    except (UsageError, RuntimeUnavailable) as error:
        return replace(made, notes=[*made.notes, f"no bundle was written: {error}"])
    return replace(with_bundle, spent_s=search.journal.now())
