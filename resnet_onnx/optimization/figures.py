"""What is measured of the answer beside its confirmation: gains over torch, the reference, capacity, the ceiling."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from resnet_onnx.bench import roofline
from resnet_onnx.bench.paired import ContenderFailed, PairedPlan, PairedRun, run_pair
from resnet_onnx.bench.plan import BenchPlan
from resnet_onnx.bench.row import Row
from resnet_onnx.bench.server import find_row_capacity
from resnet_onnx.deploy.reference import bundle_side, measure_against_reference, reference_side
from resnet_onnx.optimization.candidate import Candidate, CandidateFailed, Form
from resnet_onnx.optimization.plan import OptimizePlan
from resnet_onnx.optimization.track import RealTrack
from resnet_onnx.results.bundle import Figures, Limit
from resnet_onnx.results.document import Peaks
from resnet_onnx.results.optimize import Capacity, Gain
from resnet_onnx.workflow.feeds import sample_feeds
from resnet_onnx.workflow.measuring import MOST_PICTURES
from runtimes import registry
from runtimes.cores import usable_cores
from runtimes.errors import ToolkitError

Progress = Callable[[str], None]

_GAIN_S, _GAIN_BLOCKS, _LONGEST_GAIN_S = 6.0, 12, 20.0
_REFERENCE_S = 8.0
_CAPACITY_S = 30.0
COMPILING_S = 60.0

BESIDE = ("torch", "torch-compile")
"""What a user would run without this program."""

_OPENING_SHARE = 1 / 4
"""Of an admission's time, that opening its form takes about: it opens it for parity and for further pictures, and runs
both."""


@dataclass(frozen=True, kw_only=True)
class Reserve:
    """Seconds that are kept for what follows the confirmation.

    Attributes:
        bundle_s: Its proof is the parity of the admission once more.
    """

    gains_s: float
    reference_s: float
    capacity_s: float
    bundle_s: float

    @property
    def after_gains_s(self) -> float:
        """All but the gains."""
        return self.reference_s + self.capacity_s + self.bundle_s

    @property
    def total_s(self) -> float:
        """All."""
        return self.gains_s + self.after_gains_s


def reserve(plan: OptimizePlan, admitted: Mapping[Form, float]) -> Reserve:
    """Returns what is to be kept, by how long admission took in this run.

    Args:
        plan: Says what follows.
        admitted: The forms that were looked at, and the seconds that the proof of each took.
    """
    slowest_s = max((taken for form, taken in admitted.items() if registry.adapter(form.runtime).in_all), default=0.0)
    opening_s = _OPENING_SHARE * slowest_s
    beside = [admitted.get(Form(name, "fp32")) for name in BESIDE]
    gains_s = [2 * opening_s, *(_OPENING_SHARE * taken + opening_s for taken in beside[1:] if taken is not None)]
    return Reserve(
        gains_s=sum(each + _GAIN_S for each in gains_s),
        reference_s=2 * opening_s + 2 * _REFERENCE_S,
        capacity_s=0.0 if plan.arrivals is None else opening_s + _CAPACITY_S,
        bundle_s=0.0 if plan.out is None else slowest_s,
    )


@dataclass(frozen=True, kw_only=True)
class CapacityFound:
    """What random arrivals came to: a step of the journal."""

    capacity: Capacity
    limit: Limit


def compared_with(candidate: Candidate, forms: Mapping[Form, bool], *, left_s: float) -> list[Candidate | Gain]:
    """Returns how torch would run the same network at the same batch; where it can't, why.

    Args:
        candidate: The answer.
        forms: Those that were looked at, and whether they were admitted.
        left_s: Of the budget, for this; compiling takes tens of seconds.
    """
    found: list[Candidate | Gain] = []
    for name in BESIDE:
        here, known = registry.probe(name), forms.get(Form(name, "fp32"))
        problem = "" if here.available else here.reason or "not available here"
        if known is False:
            problem = "it was not admitted"
        elif not registry.adapter(name).in_all and left_s < (COMPILING_S if known is None else _GAIN_S):
            problem = "the time was over before it could be compiled"
        if problem:
            found.append(Gain(runtime=name, ratio=None, reason=problem))
            continue
        on_cpu = registry.adapter(name).resolve_device(None) == "cpu"
        found.append(
            Candidate(
                runtime=name,
                precision="fp32",
                batch=candidate.batch,
                threads=usable_cores() if on_cpu and candidate.threads else 0,
            )
        )
    return found


def gain(track: RealTrack, candidate: Candidate, other: Candidate, *, seed: int, left_s: float) -> Gain:
    """Measures a candidate against another one in turns; where that fails the gain says why."""
    if other == candidate:
        return Gain(runtime=other.runtime, ratio=1.0, ci95=(1.0, 1.0), reason="it is the answer itself")
    opened: list[Candidate] = []
    run = PairedRun()
    try:
        sides = []
        for each in (other, candidate):
            sides.append(track.open(each))
            opened.append(each)
        block_s = 2 * sum(side.warm_up.run_s for side in sides if side.warm_up is not None)
        run_pair(
            sides[0],
            sides[1],
            into=run,
            enough=lambda _: False,
            duration_s=min(max(_GAIN_S, _GAIN_BLOCKS * block_s), _LONGEST_GAIN_S, max(_GAIN_S, left_s)),
            coin=random.Random(f"{seed} {other}"),
        )
    except (CandidateFailed, ContenderFailed) as failed:
        return Gain(runtime=other.runtime, ratio=None, reason=str(failed.__cause__ or failed))
    finally:
        for each in opened:
            track.close(each)
    if run.found is None:
        return Gain(runtime=other.runtime, ratio=None, reason="no turn was completed")
    return Gain(runtime=other.runtime, ratio=run.found.ratio, ci95=run.found.ends)


def against_reference(track: RealTrack, candidate: Candidate, *, progress: Progress) -> Figures:
    """Measures a candidate against the bundle's fixed reference; empty where it has none, or one of the two failed."""
    admission = track.admission
    try:
        reference = reference_side(admission.model, candidate.runtime, device=admission.plan.device)
        side = bundle_side(
            admission.model_in(candidate.precision),
            candidate.runtime,
            batch=candidate.batch,
            options=track.options(candidate),
            device=admission.plan.device,
        )
        plan = PairedPlan(duration_s=_REFERENCE_S, seed=admission.plan.seed)
        return measure_against_reference(side, reference, plan, progress=progress)
    except ToolkitError:
        return Figures()


def capacity(track: RealTrack, candidate: Candidate, *, seconds: float, progress: Progress) -> CapacityFound:
    """Finds the largest rate of random arrivals that a candidate answers within the limit.

    Raises:
        ToolkitError: It failed.
    """
    admission = track.admission
    plan, model = admission.plan, admission.model
    assert plan.p99_ms is not None
    row = Row(
        target=admission.target(candidate.form, replace(track.options(candidate), streams=1)),
        batch=candidate.batch,
        streams=1,
        scope=track.scope,
        requested="server",
    )
    rules = BenchPlan(
        batches=(candidate.batch,),
        scenario="server",
        limit_s=plan.p99_ms / 1e3,
        duration_s=max(_CAPACITY_S, seconds),
        scope=track.scope,
        seed=plan.seed,
    )
    find_row_capacity(row, sample_feeds(model, min(candidate.batch, MOST_PICTURES), seed=plan.seed), rules, progress)
    found = row.capacity
    if found is None:
        raise ToolkitError(f"{candidate}: its capacity could not be measured")
    trial = found.confirmation
    value = None if trial is None else 1e3 * trial.percentile(0.99)
    return CapacityFound(
        capacity=Capacity(
            images_per_second=found.rate,
            max_batch=found.policy.max_batch,
            max_wait_ms=1e3 * found.policy.max_wait_s,
            low=found.low,
            high=found.high,
        ),
        limit=Limit(name="p99", limit=plan.p99_ms, value=value, verdict=found.verdict),
    )


def ceiling_share(multiply_adds: int | None, rate: float, peaks: Peaks | None, precision: str) -> float | None:
    """Returns which share of the machine's peak a rate is; None where either is unknown."""
    if multiply_adds is None or peaks is None or precision not in peaks.gflops:
        return None
    work = roofline.Work(multiply_adds=multiply_adds, elements=1)
    return roofline.utilization(work, rate, peaks, precision).fraction
