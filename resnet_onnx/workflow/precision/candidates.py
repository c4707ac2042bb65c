"""Candidates for a precision: half, and int8 with its calibration, its method and its corrected biases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.workflow.precision.conversion import Conversion
from resnet_onnx.workflow.precision.sensitivity import range_noise_db, weight_noise
from runtimes.spec import Feeds

if TYPE_CHECKING:
    from converters.calibration import Method, Observed
    from converters.int8 import Plan

_CORRECTING = 128
"""Pictures over which the mean of each layer is taken, and on which the correction must show its worth."""
_BATCH = 32
_CALIBRATION_BYTES = 2**28
"""Of all values of a batch that calibration looks at together."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model in another precision, before the gate.

    Attributes:
        model: The ``ModelProto``.
        record: How it was made, as the file carries it.
        shown: The same for the document of ``convert``.
        validation_sqnr_db: Signal-to-noise ratio of the outputs on validation pictures; infinite where not measured.
    """

    model: Any
    record: dict[str, Any]
    shown: dict[str, Any]
    validation_sqnr_db: float = math.inf

    @property
    def kept_fp32(self) -> list[str]:
        """Names of the layers that stay in float32."""
        return [str(row["node"]) for row in self.shown["kept_fp32"]]


def half_candidate(conversion: Conversion) -> Candidate:
    """Returns the model in fp16 or bf16."""
    from converters import graph, half

    to: Any = conversion.config.to
    conversion.progress(f"looking for layers that {to} does not hold")
    made = half.convert(
        graph.load(conversion.source),
        to,
        conversion.data.calibration(8),
        folder=conversion.folder,
        source=conversion.original,
        keep=conversion.config.keep_fp32,
        half_io=conversion.config.half_io,
        progress=conversion.progress,
    )
    kept = [{"node": row.node, "operator": row.operator, "reason": row.reason} for row in made.kept]
    shown = {"kept_fp32": kept, "converted_nodes": made.converted, "casts": made.casts}
    record = {"kept_fp32": kept, "calibration": conversion.data.described()}
    return Candidate(model=made.model, record=record, shown=shown)


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A model whose ranges are known; which layers become int8 is still open.

    Attributes:
        prepared: The float32 ``ModelProto``, ready to be quantised.
        plan: With all layers but those that the user keeps.
        kept: Names of those, and of those that can't be int8, each with the reason.
        method: How ranges come out of it.
        tried: What ``auto`` measured, a row per method.
        ranges: Clipping threshold by value.
        shifts: How far int8 moves the mean of each layer by itself, float64 [channels].
    """

    prepared: Any
    plan: Plan
    kept: Mapping[str, str]
    observed: Observed
    method: Method
    tried: list[dict[str, Any]]
    ranges: Mapping[str, float]
    shifts: Mapping[str, NDArray[np.float64]]


def calibrated(conversion: Conversion) -> Calibrated:
    """Runs the calibration pictures and chooses the method.

    Raises:
        CheckFailed: The float32 model computes NaN or Inf on the calibration pictures.
        UnsupportedModel: It can't be quantised.
        UsageError: A pattern of ``keep_fp32`` fits no layer, or nothing is left to quantise.
    """
    from converters import calibration, graph, half, int8

    conversion.progress("preparing the graph")
    prepared = int8.prepared(graph.load(conversion.source), what=conversion.model.name)
    patterns = conversion.config.keep_fp32
    kept = int8.kept_anyway(prepared)
    if patterns:
        asked = set[str]().union(*half.check_patterns(graph.Graph(prepared), patterns, int8.PRODUCTS))
        kept |= dict.fromkeys(sorted(asked), "asked for")
    plan = int8.plan(prepared, keep_fp32=kept)
    observed = calibration.observe(
        prepared,
        plan.observed,
        conversion.data.calibration(_calibration_batch(prepared, plan)),
        folder=conversion.folder,
        source=conversion.original,
        progress=lambda done: conversion.progress(f"calibrating: {done} pictures"),
    )
    method, tried = _choose(conversion, plan, observed)
    ranges = observed.ranges(method)
    shifts = _shifts(conversion, plan, ranges)
    return Calibrated(
        prepared=prepared,
        plan=plan,
        kept=kept,
        observed=observed,
        method=method,
        tried=tried,
        ranges=ranges,
        shifts=shifts,
    )


def int8_candidate(
    conversion: Conversion, found: Calibrated, further_fp32: Mapping[str, str] | None = None
) -> Candidate:
    """Returns the portable int8 model; `further_fp32` are layers that stay in float32 too, each with the reason."""
    from converters import int8

    further_fp32 = further_fp32 or {}
    reasons = {**found.kept, **further_fp32}
    plan = int8.plan(found.prepared, keep_fp32=set(reasons)) if further_fp32 else found.plan
    ranges, per_channel = found.ranges, conversion.config.per_channel
    final, corrected, sqnr_db = _corrected(conversion, plan, found)
    model = int8.quantise(final, ranges, per_channel=per_channel)
    record = {
        "method": found.method,
        "calibration": conversion.data.described(),
        "kept_fp32": sorted(reasons),
        "ranges": {name: float(ranges[name]) for name in plan.observed},
        "per_channel": per_channel,
        "bias_corrected": corrected,
    }
    shown = {
        **{name: record[name] for name in ("method", "calibration", "ranges", "bias_corrected")},
        "tried": found.tried,
        "kept_fp32": [{"node": name, "operator": "", "reason": why} for name, why in sorted(reasons.items())],
        "layers": len(plan.layers),
        "weights": weight_noise(found.prepared, plan, per_channel=per_channel),
        "activations": [
            {"tensor": name, "sqnr_db": range_noise_db(found.observed, name, ranges[name])} for name in plan.observed
        ],
    }
    return Candidate(model=model, record=record, shown=shown, validation_sqnr_db=sqnr_db)


def _shifts(conversion: Conversion, plan: Plan, ranges: Mapping[str, float]) -> dict[str, NDArray[np.float64]]:
    """Returns how far int8 moves the mean of each layer by itself, float64 [channels]."""
    from converters import calibration, int8

    conversion.progress("looking how far int8 moves the layers")
    model, names = int8.with_shifts(plan, ranges, per_channel=conversion.config.per_channel)
    feeds = _correcting_feeds(conversion, max(1, _calibration_batch(plan.model, plan) // 2))
    means = calibration.mean_values(
        model, list(names.values()), feeds, folder=conversion.folder, source=conversion.original
    )
    return {layer: means[name] for layer, name in names.items()}


def _corrected(conversion: Conversion, plan: Plan, found: Calibrated) -> tuple[Plan, str, float]:
    """Returns the plan with the biases that leave the least noise at the outputs, what was corrected, and dB.

    Corrections are of each layer by itself ("layers"), and after that of what is left at the outputs ("layers and
    outputs"); where neither helps on pictures that did not calibrate, the biases stay ("").
    """
    from converters import int8

    def drafted(chosen: Plan) -> Path:
        return conversion.draft(
            int8.quantise(chosen, found.ranges, per_channel=conversion.config.per_channel), conversion.runtime
        )

    conversion.progress("correcting biases")
    layers = int8.corrected(plan, {layer: found.shifts[layer] for layer in plan.layers if layer in found.shifts})
    plans = {"": plan, "layers": layers}
    forms = {name: drafted(one) for name, one in plans.items()}
    last = _last_layer(plan, conversion.deciding)
    if last is not None:
        feeds = _correcting_feeds(conversion, _calibration_batch(plan.model, plan))
        shift = conversion.mean_difference(forms["layers"], feeds)
        plans["layers and outputs"] = int8.corrected(layers, {last: shift})
        forms["layers and outputs"] = drafted(plans["layers and outputs"])
    compared = conversion.compare(forms, "validation", most=_CORRECTING)
    for path in forms.values():
        path.unlink()
    best = max(plans, key=lambda name: compared[name].sqnr_db)
    return plans[best], best, compared[best].sqnr_db


def _last_layer(plan: Plan, output: str) -> str | None:
    """Returns the product that makes an output, where there is one and the output is [sample, channel]."""
    from converters import int8
    from converters.graph import Graph, name_of, shapes

    graph = Graph(plan.model)
    rank = len(shapes(plan.model).get(output, ()))
    return next((name_of(n) for n in int8.products(graph) if n.output[0] == output and rank == 2), None)


def _correcting_feeds(conversion: Conversion, batch: int) -> Iterator[Feeds]:
    """Returns feeds of the calibration pictures over which means are taken."""
    return itertools.islice(conversion.data.calibration(batch), max(1, _CORRECTING // batch))


def _calibration_batch(prepared: Any, plan: Plan) -> int:
    """Returns how many pictures fit into the memory that calibration may use at once."""
    from converters.graph import shapes

    known = shapes(prepared)
    values = sum(math.prod(e for e in known.get(name, ())[1:] if isinstance(e, int)) for name in plan.observed)
    return max(1, min(_BATCH, _CALIBRATION_BYTES // max(1, 4 * values)))


def _choose(conversion: Conversion, plan: Plan, observed: Observed) -> tuple[Method, list[dict[str, Any]]]:
    """Returns the method to use; ``auto`` measures each on pictures that calibration did not see."""
    from converters import int8
    from converters.calibration import METHODS

    if conversion.config.method != "auto":
        chosen: Any = conversion.config.method
        return chosen, []
    conversion.progress("choosing the method")
    forms: dict[str, Path] = {}
    for method in METHODS:
        made = int8.quantise(plan, observed.ranges(method), per_channel=conversion.config.per_channel)
        forms[method] = conversion.draft(made, conversion.runtime)
    compared = conversion.compare(forms, "validation")
    for path in forms.values():
        path.unlink()
    rows = [{"method": name, "agreement": c.agreement, "sqnr_db": c.sqnr_db} for name, c in compared.items()]
    highest = max(found.agreement for found in compared.values())
    images = max(1, next(iter(compared.values())).images)
    # Differences within the sampling error of so many pictures say nothing; there the outputs' noise decides, which
    # every picture contributes to.
    error = math.sqrt(max(highest * (1 - highest), 1 / images) / images)
    alike = [name for name in METHODS if compared[name].agreement >= highest - 2 * error]
    return max(alike, key=lambda name: compared[name].sqnr_db), rows
