"""Where int8 costs most: by layer, by weights, and by range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_onnx.workflow.precision.comparison import Comparison
from resnet_onnx.workflow.precision.conversion import Conversion
from runtimes.errors import BadData
from runtimes.registry import open_runtime
from runtimes.spec import Feeds, RuntimeOptions

if TYPE_CHECKING:
    from converters.calibration import Observed
    from converters.int8 import Plan

_FEWEST, _VALUES = 4, 4 * 3 * 224 * 224
"""Pictures on which layers are measured alone: four of ImageNet's size, as many values of smaller ones."""


def weight_noise(prepared: Any, plan: Plan, *, per_channel: bool) -> list[dict[str, Any]]:
    """Returns rows of ``layer`` and ``sqnr_db``: what rounding does to the weights of each quantised layer."""
    from converters import int8
    from converters.graph import Graph, name_of

    graph = Graph(prepared)
    return [
        {"layer": name_of(node), "sqnr_db": int8.weight_sqnr_db(node, weight, per_channel=per_channel)}
        for node in int8.products(graph)
        if name_of(node) in plan.layers and (weight := graph.array(node.input[1])) is not None
    ]


def range_noise_db(observed: Observed, name: str, threshold: float) -> float:
    """Returns the signal-to-noise ratio, decibels, of a value's magnitudes clipped at `threshold` and rounded."""
    histogram = observed.histograms[name]
    signal = float(np.sum(histogram.counts * histogram.centres**2) / max(1, histogram.counts.sum()))
    noise = histogram.noise(threshold)
    return math.inf if noise == 0 or signal == 0 else 10 * math.log10(signal / noise)


def sensitivity(conversion: Conversion, plan: Plan, ranges: Mapping[str, float]) -> list[dict[str, Any]]:
    """Measures what each layer costs by itself: the outputs' signal-to-noise ratio with that layer alone in int8.

    One session runs all of them, on a few pictures that did not calibrate: noise is a mean over outputs, pixels and
    channels, so that few tell it well.

    Returns:
        Rows of ``layer``, ``sqnr_db`` (infinite where nothing changes) and ``multiply_adds`` of one sample (None where
        its shapes are unknown), the most sensitive layer first.
    """
    from converters import graph, switches

    model, switch_of = switches.switched(plan, ranges, per_channel=conversion.config.per_channel)
    path = conversion.folder / "switched.onnx"
    graph.draft(path, model)
    del model
    feeds, count = _few(conversion)
    off = {name: np.asarray(False) for name in switch_of.values()}
    adds = _multiply_adds(conversion, feeds)
    source = conversion.original.rewritten(path, label=f"{conversion.model.name} (layers alone)")
    rows = []
    with open_runtime("ort-cpu", source, options=RuntimeOptions(spin=False)) as runtime:
        output = conversion.deciding
        expected = runtime.run({**feeds, **off})[output][:count]
        for number, (layer, switch) in enumerate(switch_of.items(), 1):
            conversion.progress(f"measuring layers alone: {number} of {len(switch_of)}")
            found = Comparison()
            found.add([expected], [runtime.run({**feeds, **off, switch: np.asarray(True)})[output][:count]], None)
            rows.append({"layer": layer, "sqnr_db": found.sqnr_db, "multiply_adds": adds.get(layer)})
    path.unlink()
    return sorted(rows, key=lambda row: float(row["sqnr_db"]))


def _few(conversion: Conversion) -> tuple[Feeds, int]:
    """Returns feeds of some pictures, fewer where they are large, and how many of them count."""
    feeds, counted, _ = next(iter(conversion.data.validation()), (None, None, None))
    if feeds is None:
        raise BadData("none of the held-out pictures could be read", fix="name other pictures: --calibration D")
    size = max((len(array) for array in feeds.values() if array.ndim), default=1)
    count = size if counted is None else counted
    if conversion.model.form.batch is None:
        values = max(int(np.prod(array.shape[1:])) for array in feeds.values())
        count = min(count, max(_FEWEST, _VALUES // max(1, values)))
        feeds = {name: array[:count] for name, array in feeds.items()}
    return feeds, count


def _multiply_adds(conversion: Conversion, feeds: Feeds) -> dict[str, int]:
    from resnet_onnx.bench.roofline import node_work

    found = node_work(conversion.source.path, {name: (1, *array.shape[1:]) for name, array in feeds.items()})
    return {name: node.work.multiply_adds for name, node in found.items() if node.is_product and node.work}
