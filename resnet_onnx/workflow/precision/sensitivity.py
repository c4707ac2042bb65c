"""Where int8 costs most: by layer, by weights, and by range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_onnx.workflow.precision.work import Work

if TYPE_CHECKING:
    from converters.calibration import Observed
    from converters.int8 import Plan


def weight_noise(prepared: Any, plan: Plan, *, per_channel: bool) -> list[dict[str, Any]]:
    """Returns rows of ``layer`` and ``sqnr_db``: what rounding does to the weights of each quantised layer."""
    from converters import int8
    from converters.graph import Graph, name_of

    graph = Graph(prepared)
    rows = []
    for node in int8.products(graph):
        weight = graph.array(node.input[1])
        if name_of(node) in plan.layers and weight is not None:
            noise = int8.weight_sqnr_db(node, weight, per_channel=per_channel)
            rows.append({"layer": name_of(node), "sqnr_db": noise})
    return rows


def range_noise_db(observed: Observed, name: str, threshold: float) -> float:
    """Returns the signal-to-noise ratio, decibels, of a value's magnitudes clipped at `threshold` and rounded."""
    histogram = observed.histograms[name]
    signal = float(np.sum(histogram.counts * histogram.centres**2) / max(1, histogram.counts.sum()))
    noise = histogram.noise(threshold)
    return math.inf if noise == 0 or signal == 0 else 10 * math.log10(signal / noise)


def sensitivity(work: Work, plan: Plan, ranges: Mapping[str, float], *, images: int = 16) -> list[dict[str, Any]]:
    """Measures what each layer costs by itself: the outputs' signal-to-noise ratio with that layer alone in int8.

    Returns:
        Rows of ``layer`` and ``sqnr_db``, the most sensitive layer first.
    """
    from converters import int8

    rows = []
    for number, layer in enumerate(plan.layers):
        work.progress(f"measuring layers alone: {number + 1} of {len(plan.layers)}")
        alone = int8.plan(plan.model, keep_fp32=set(plan.layers) - {layer})
        made = int8.quantise(alone, ranges, per_channel=work.wishes.per_channel)
        path = work.draft(made, work.judge)
        found = work.compare({layer: (work.judge, path)}, work.data.choosing(), most=images)[layer]
        path.unlink()
        rows.append({"layer": layer, "sqnr_db": found.sqnr_db})
    return sorted(rows, key=lambda row: float(row["sqnr_db"]))
