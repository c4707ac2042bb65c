"""Where the time of a run goes: each layer's time by the runtime's own profiler, beside what it needs at least.

A layer's ideal is the roofline's, as for the whole network: the longer of its operations over the machine's peak and
its bytes over the bandwidth. A layer that the graph does not have (a batch norm that an exporter folds away, a
reordering that a runtime puts in) needs nothing, so that all its time counts as lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from resnet_onnx.bench.roofline import NodeWork, least_seconds, node_work
from resnet_onnx.results.bench import LayerRecord
from resnet_onnx.results.document import Peaks
from runtimes.spec import LayerTime

_SUFFIXES = re.compile(r"(_nchwc|_nhwc|_fused|/WithoutBiases|/fq_\w+|_quant|_QuantizeLinear\w*)+$")
"""What ONNX Runtime and OpenVINO put behind a node's name when they rewrite it."""

_PRODUCT = re.compile(r"conv(?!ert)|gemm|matmul|(?<!quantize)linear|fullyconnected", re.IGNORECASE)
_STEPS_BACK = 6


def beside_ideal(
    times: Sequence[LayerTime],
    path: Path | None,
    shapes: Mapping[str, tuple[int, ...]],
    peaks: Peaks | None,
    precision: str,
) -> list[LayerRecord]:
    """Sets the times of layers beside their ideals: one record a time, in the same order; `shapes` are the inputs'."""
    graph = node_work(path, shapes) if path is not None else {}
    names = {output: name for name, node in graph.items() for output in node.outputs}
    claimed: set[str] = set()
    found = []
    for time in times:
        node = _node(time, graph, names, claimed)
        if node is not None:
            claimed.add(node)
        least = least_seconds(graph[node].work if node is not None else None, peaks, precision)
        ms, ideal_ms = 1e3 * time.seconds, None if least is None else 1e3 * least[0]
        # Every product is the graph's, also where its node has no name to be found by.
        if node is None and graph and peaks is not None and not _PRODUCT.search(time.operator):
            ideal_ms = 0.0
        found.append(
            LayerRecord(
                name=time.name,
                operator=time.operator,
                node=node,
                ms=ms,
                ideal_ms=ideal_ms,
                bound=None if least is None else least[1],
                lost_ms=None if ideal_ms is None else max(0.0, ms - ideal_ms),
            )
        )
    return found


def _node(time: LayerTime, graph: Mapping[str, NodeWork], names: Mapping[str, str], claimed: set[str]) -> str | None:
    """Returns the node whose work a layer does.

    A layer that fuses several nodes has the name of the first or of the last of them. Where its operator is a product
    and its name is that of an activation or an addition, the product is found upstream.
    """
    bare = _SUFFIXES.sub("", time.name)
    name = next((n for n in (time.name, bare, names.get(time.name), names.get(bare)) if n in graph), None)
    if name is None:
        return next((n for n in graph if bare.endswith(f".{n}")), None)  # a module inside a wrapper
    if not _PRODUCT.search(time.operator) or graph[name].is_product:
        return name
    around = [name]
    for _ in range(_STEPS_BACK):
        around = [names[tensor] for node in around for tensor in graph[node].inputs if tensor in names]
        products = [node for node in around if graph[node].is_product and node not in claimed]
        if products:
            return products[0]
    return name


def worst(layers: Sequence[LayerRecord], count: int = 10) -> list[LayerRecord]:
    """Returns the layers that lose most time, the worst first; those whose loss is not known come last, by their time.

    Layers that lose nothing are left out.
    """
    known = sorted((layer for layer in layers if layer.lost_ms), key=lambda layer: -(layer.lost_ms or 0.0))
    unknown = [layer for layer in layers if layer.lost_ms is None]
    return (known + sorted(unknown, key=lambda layer: -layer.ms))[:count]
