"""A search from the network to the answer: admission, race, confirmation, figures, bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from resnet_onnx.bench.clock import Stopwatch
from resnet_onnx.optimization import answer as words
from resnet_onnx.optimization.admission import Admission, Verdict, batches_of
from resnet_onnx.optimization.candidate import Form
from resnet_onnx.optimization.candidates import candidates
from resnet_onnx.optimization.concluding import Found, answered, document_of, kept_for_conclusion
from resnet_onnx.optimization.confirmation import (
    CONFIRMATION_SHARE,
    ConfirmationPlan,
    confirm,
    nearest,
)
from resnet_onnx.optimization.figures import COMPILING_S
from resnet_onnx.optimization.limits import Limits
from resnet_onnx.optimization.objective import Objective
from resnet_onnx.optimization.original import Original
from resnet_onnx.optimization.plan import OptimizePlan
from resnet_onnx.optimization.race import RacePlan, race
from resnet_onnx.optimization.search import Search, effort_of, prepared
from resnet_onnx.optimization.track import RealTrack
from resnet_onnx.results.optimize import (
    CandidateRow,
    Optimize,
    OptimizeDryRun,
    PlannedRow,
)
from resnet_onnx.workflow.measuring import fixed_batch
from resnet_onnx.workflow.request import Model
from runtimes import registry

Progress = Callable[[str], None]

_ADMISSION_SHARE = 0.6
"""Of the time before the conclusion, after which no further form is admitted where one was."""

_LEAST_RACE_SHARE = 1 / 3
"""Of what admission left, for race and confirmation, however long the conclusion is expected to take."""


def plan_search(model: Model, plan: OptimizePlan, *, progress: Progress = lambda _: None) -> OptimizeDryRun:
    """Returns the candidates in the order in which they would be tried, and the expected time; measures none of them.

    Raises:
        ToolkitError: As ``optimize_model``.
    """
    search = prepared(model, plan, Stopwatch(), progress, keep_journal=False)
    found = candidates(search.entries.forms, plan, search.batches, search.costs)
    opening_s = 4.0 * len({(each.form, each.streams, each.threads) for each in found}) + 6.0 * len(search.entries.forms)
    turns_s = sum(2.0 + 40 * search.costs.run_s(each) for each in found)
    return OptimizeDryRun(
        model=model.name,
        timed=search.timed,
        candidates=[
            PlannedRow(
                runtime=each.runtime, precision=each.precision, batch=each.batch, streams=each.streams,
                threads=each.threads or None, expected_images_per_second=1 / search.costs.image_s(each),
            )
            for each in found
        ],
        unavailable=[
            CandidateRow(
                runtime=each.runtime, precision=each.precision, batch=None, streams=None, threads=None,
                state="unavailable", reason=each.reason,
            )
            for each in search.entries.not_raced
        ],
        budget_s=plan.time_budget_s,
        expected_s=min(plan.time_budget_s, opening_s + turns_s) + search.figures_s,
        notes=search.notes,
    )  # fmt: skip


def optimize_model(model: Model, plan: OptimizePlan, *, progress: Progress = lambda _: None) -> Optimize:
    """Finds the fastest engine that computes the network and keeps the limits, with the evidence.

    Args:
        model: The network.
        plan: What is to be found.
        progress: Told what is being decided, and how long it will still take.

    Returns:
        The answer, or what comes nearest to it where no candidate keeps the limits or none can be shown to.

    Raises:
        UsageError: What was requested contradicts the model or the data.
        RuntimeUnavailable: A runtime that was named can't run here, or none is left.
        BadData: The pictures can't be used.
        FileProblem: Journal or bundle can't be written.
    """
    search = prepared(model, plan, Stopwatch(), progress, keep_journal=True)
    if search.journal.anew:
        search.notes.append(f"started anew: {search.journal.anew}")
    elif plan.resume:
        search.notes.append(f"{search.journal.resumed} finished steps were taken over from {search.journal.path}")
    with Original(model=model, outputs=None if search.pictures is None else search.pictures.outputs) as original:
        admission = Admission(
            original=original,
            plan=plan,
            pictures=search.pictures,
            batches=batches_of(search.batches) if fixed_batch(model) is None else search.batches,
            effort=effort_of(search),
            progress=search.say,
        )
        admitted = _admitted(search, admission)
        return _raced(search, admission, admitted)


def _admitted(search: Search, admission: Admission) -> list[Verdict]:
    """Admits the forms, those first that are expected to be the best."""
    order = candidates(search.entries.forms, search.plan, search.batches, search.costs)
    forms = list(dict.fromkeys(each.form for each in order))
    # Compiling takes tens of seconds, in which several others are admitted.
    forms.sort(key=lambda form: not registry.adapter(form.runtime).in_all)
    found: list[Verdict] = []
    for number, form in enumerate(forms, 1):
        until_s = _ADMISSION_SHARE * (search.plan.time_budget_s - kept_for_conclusion(search, found).total_s)
        late = search.journal.now() + _expected_s(search, form, found) > until_s
        if late and any(each.form.admitted for each in found):
            search.late = tuple(forms[number - 1 :])
            break
        search.say(f"admitting {form}, {number} of {len(forms)}")
        found.append(search.journal.once(f"admission of {form}", lambda form=form: admission.admit(form), Verdict))  # type: ignore[misc]
    return found


def _expected_s(search: Search, form: Form, before: Sequence[Verdict]) -> float:
    """Returns how long the admission of a form may take, by those before it; its conversion as the longest."""
    longest_s = max((each.proving_s for each in before), default=0.0)
    if not registry.adapter(form.runtime).in_all:
        return max(COMPILING_S, 2 * longest_s)
    converted = form.precision != search.model.precision
    if converted and form.precision not in {each.form.precision for each in before}:
        return 2 * longest_s + max(each.converting_s for each in before) if before else 0.0
    alike = [each.proving_s for each in before if (each.form.precision != search.model.precision) == converted]
    return alike[-1] if alike else 2 * longest_s


def _raced(search: Search, admission: Admission, admitted: Sequence[Verdict]) -> Optimize:
    forms = [Form(each.form.runtime, each.form.precision) for each in admitted if each.form.admitted]
    if not forms:
        return document_of(search, Found(admitted=admitted))
    plan = search.plan
    limits = Limits(
        p99_s=None if plan.p99_ms is None or plan.arrivals is not None else plan.p99_ms / 1e3,
        max_drop=plan.allowed_drop / 100 if search.judged else None,
        min_rate=plan.min_throughput if plan.arrivals is None else None,
        exact=words.unjudged_forms(admitted),
    )
    sqnr = {
        Form(each.form.runtime, each.form.precision): each.form.sqnr_db
        for each in admitted
        if each.form.proof != "parity"
    }
    now_s = search.journal.now()
    end_s = plan.time_budget_s - kept_for_conclusion(search, admitted).total_s
    end_s = max(end_s, now_s + _LEAST_RACE_SHARE * (plan.time_budget_s - now_s))
    with RealTrack(
        admission=admission, sqnr_db=sqnr, scope=search.scope, feed_factory=search.feed_factory, watch=search.watch
    ) as track:
        outcome = race(
            RacePlan(
                candidates=candidates(forms, plan, search.batches, search.costs),
                objective=Objective(goal=plan.goal, runtimes=_simplest_first()),
                limits=limits,
                until_s=now_s + (1 - CONFIRMATION_SHARE) * max(0.0, end_s - now_s),
                seed=plan.seed,
            ),
            track,
            search.journal,
            progress=search.progress,
        )
        confirmation = confirm(
            ConfirmationPlan(order=outcome.order, limits=limits, until_s=end_s),
            track,
            search.journal,
            progress=search.say,
        )
        found = Found(admitted=admitted, outcome=outcome, confirmation=confirmation)
        if confirmation.confirmed is None:
            near = nearest(confirmation.attempts, outcome.standings)
            judged = [] if near is None else [words.limit_record(each) for each in near.limits]
            return document_of(search, replace(found, limits=judged, near=near))
        return answered(search, track, found, confirmation.confirmed)


def _simplest_first() -> tuple[str, ...]:
    """Returns the runtimes, the one first that a user meets first."""
    return (registry.DEFAULT_RUNTIME, *(name for name in registry.runtime_names() if name != registry.DEFAULT_RUNTIME))
