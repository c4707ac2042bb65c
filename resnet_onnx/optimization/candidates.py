"""Which candidates there are, and in which order they are tried: what a machine can do, and a model of what it costs.

The order decides who races first and nothing else: a model of cost that is wrong costs time, never the answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from resnet_onnx.optimization.candidate import Candidate, Form
from resnet_onnx.optimization.plan import PRECISIONS, OptimizePlan
from resnet_onnx.results.document import Peaks
from runtimes import registry
from runtimes.cores import usable_cores
from runtimes.environment import cpu_flags
from runtimes.errors import RuntimeUnavailable, UsageError

_HALF_FLAGS: Mapping[str, tuple[str, ...]] = {
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "asimdhp", "fphp"),
}
"""Instruction sets that compute in half precision, as /proc/cpuinfo names them. Elsewhere libraries cast to float32 and
back, which is float32's work and more."""

_LONGEST_RUN_S = 0.5
"""Expected time of a run beyond which no larger batch is tried by default: a comparison takes some forty runs."""

_BATCH_STEPS = (1, 8, 64)
_LATENCY_BATCHES = (1,)

_LAYER_S, _BARRIER_S = 3e-6, 6e-6
"""What a layer costs by itself, and what it costs threads to wait for each other after it."""

_UNKNOWN_GFLOPS: Mapping[str, float] = {"fp32": 100.0, "bf16": 200.0, "fp16": 100.0, "int8": 400.0}
"""Per second, where the machine's peak is not known."""


@dataclass(frozen=True, kw_only=True)
class NotRaced:
    """A form that can't race here, and why; `precision` is "" where that holds for all of them."""

    runtime: str
    precision: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Entries:
    """The forms that may race, and those that can't."""

    forms: tuple[Form, ...]
    not_raced: tuple[NotRaced, ...]


def runtimes_named(plan: OptimizePlan) -> tuple[str, ...]:
    """Returns the runtimes of a plan: those that it names, or all whose speed is worth measuring.

    Raises:
        UsageError: A name is unknown.
        RuntimeUnavailable: One that the plan names can't run here.
    """
    if plan.runtimes:
        for name in plan.runtimes:
            registry.adapter(name)
        registry.require_all(plan.runtimes, device=plan.device)
        return plan.runtimes
    return registry.runtimes_that(lambda found: found.in_all or bool(found.left_out_because))


def entries_of(plan: OptimizePlan, *, precision: str) -> Entries:
    """Returns the forms of a model of some precision that may race; raises as ``runtimes_named``."""
    names = runtimes_named(plan)
    wanted = plan.precisions or PRECISIONS
    if precision != "fp32":
        others = [each for each in plan.precisions or () if each != precision]
        if others:
            raise UsageError(
                f"the model is {precision} already, and --precisions {', '.join(others)} was given",
                fix="start from the float32 model that it was made from",
            )
        wanted = (precision,)
    forms: list[Form] = []
    left: list[NotRaced] = []
    for name in names:
        try:
            adapter = registry.adapter(name)
            device = adapter.resolve_device(plan.device) if adapter.has_device(plan.device) else None
        except RuntimeUnavailable as broken:
            left.append(NotRaced(runtime=name, precision="", reason=broken.message))
            continue
        found = registry.probe(name, device=device)
        if device is None or not found.available:
            reason = found.reason or f"has no device {plan.device}"
            left.append(NotRaced(runtime=name, precision="", reason=reason))
            continue
        for each in wanted:
            if each not in adapter.precisions and each != precision:
                continue
            lacking = plan.precisions is None and each != precision and device == "cpu" and _lacks(each)
            if lacking:
                reason = f"this processor has no {each} arithmetic (--precisions {each} tries it all the same)"
                left.append(NotRaced(runtime=name, precision=each, reason=reason))
            else:
                forms.append(Form(name, each))
    if not forms:
        reasons = "; ".join(dict.fromkeys(each.reason for each in left)) or "no runtime has that precision"
        raise RuntimeUnavailable(f"nothing is left that could race: {reasons}", fix="resnet-onnx doctor")
    return Entries(forms=tuple(forms), not_raced=tuple(left))


def _lacks(precision: str) -> bool:
    needed = _HALF_FLAGS.get(precision)
    return needed is not None and not cpu_flags().intersection(needed)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """A model of what a run costs: the roofline, the layers, and decoding.

    Attributes:
        multiply_adds: Of one picture; None where they are unknown.
        layers: Of the graph.
        decode_s: Seconds of one core to read, decode and prepare a picture; 0 where that is not timed.
        peaks: Of all cores; None where they are unknown.
    """

    multiply_adds: int | None
    layers: int
    decode_s: float = 0.0
    peaks: Peaks | None = None
    cores: int = field(default_factory=usable_cores)

    def run_s(self, candidate: Candidate) -> float:
        """Returns the expected seconds of one run of a candidate."""
        adapter = registry.adapter(candidate.runtime)
        threads = max(1, (candidate.threads or self.cores) // candidate.streams)
        rates = self.peaks.gflops if self.peaks is not None else {}
        peak = 1e9 * (rates.get(candidate.precision) or rates.get("fp32") or _UNKNOWN_GFLOPS[candidate.precision])
        share = min(1.0, threads / self.cores) if candidate.threads else 1.0
        compute_s = 2 * (self.multiply_adds or 0) * candidate.batch / (peak * share * adapter.efficiency)
        layers_s = self.layers * (_LAYER_S + (_BARRIER_S if threads > 1 else 0.0))
        at_once = min(candidate.batch, max(1, self.cores // candidate.streams))
        return compute_s + layers_s + self.decode_s * candidate.batch / at_once

    def image_s(self, candidate: Candidate) -> float:
        """Returns the expected seconds from one picture to the next, all streams together."""
        return self.run_s(candidate) / candidate.at_once


def batch_choices(plan: OptimizePlan, costs: Costs, fixed: int | None) -> tuple[int, ...]:
    """Returns the batch sizes to try: those requested, the model's own, or steps that suit the network.

    Raises:
        UsageError: Others than the fixed one were requested.
    """
    if fixed is not None:
        if plan.batches not in (None, (fixed,)):
            given = ",".join(map(str, plan.batches or ()))
            raise UsageError(
                f"the model has a fixed batch of {fixed}, and --batch {given} was given",
                fix=f"--batch {fixed}, or export it with --batch dynamic",
            )
        return (fixed,)
    if plan.batches is not None:
        return plan.batches
    if plan.goal == "latency":
        return _LATENCY_BATCHES
    one = Candidate(runtime=registry.DEFAULT_RUNTIME, precision="fp32", batch=1, threads=costs.cores)
    image_s = costs.run_s(one)
    largest = 2 ** max(0, math.floor(math.log2(max(1.0, _LONGEST_RUN_S / image_s))))
    if largest >= _BATCH_STEPS[-1]:
        return _BATCH_STEPS
    return tuple(dict.fromkeys((1, max(1, round(math.sqrt(largest))), largest)))


def candidates(
    forms: Sequence[Form], plan: OptimizePlan, batches: Sequence[int], costs: Costs
) -> tuple[Candidate, ...]:
    """Returns all candidates, those first that are expected to be the best.

    Those that share a process stay together, ordered by the best of them: opening one costs more than looking at it.
    """
    groups: dict[tuple[Form, int, int], list[Candidate]] = {}
    for form in forms:
        for streams, threads, sizes in _arrangements(form, plan, batches, costs.cores):
            groups[form, streams, threads] = [
                Candidate(runtime=form.runtime, precision=form.precision, batch=batch, streams=streams, threads=threads)
                for batch in sizes
            ]

    def expected(candidate: Candidate) -> float:
        return costs.run_s(candidate) if plan.goal == "latency" else costs.image_s(candidate)

    ordered = sorted(groups.values(), key=lambda group: min(map(expected, group)))
    return tuple(each for group in ordered for each in sorted(group, key=expected))


def _arrangements(
    form: Form, plan: OptimizePlan, batches: Sequence[int], cores: int
) -> list[tuple[int, int, Sequence[int]]]:
    """Returns streams, threads and batch sizes of a form's candidates; 0 threads where it computes with none."""
    adapter = registry.adapter(form.runtime)
    on_cpu = adapter.resolve_device(plan.device) == "cpu"
    several = "streams" in adapter.uses
    if plan.streams is not None:
        streams: tuple[int, ...] = plan.streams if several else (1,)
    elif plan.goal == "latency" or not several or not adapter.in_all or (cores == 1 and on_cpu):
        streams = (1,)
    else:
        streams = (1, cores) if on_cpu else (1, 2)
    if not on_cpu:
        return [(each, 0, batches) for each in streams]
    if plan.threads is not None:
        return [(each, count, batches) for each in streams for count in plan.threads if count >= each]
    found: list[tuple[int, int, Sequence[int]]] = [(each, max(cores, each), batches) for each in streams]
    if 1 in streams and cores > 1 and adapter.in_all:
        # Threads that wait for each other cost most where a run is short.
        found.append((1, max(1, cores // 2), batches[:1]))
    return found
