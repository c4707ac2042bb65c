"""Where the time of a run goes: each layer's time by the runtime's own profiler, beside what it needs at least.

A layer's ideal is the roofline's, as for the whole network: the longer of its operations over the machine's peak and
its bytes over the bandwidth. A layer that the graph does not have (a batch norm that an exporter folds away, a
reordering that a runtime puts in) needs nothing, so that all its time counts as lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from resnet_onnx.bench.roofline import ELEMENT_BYTES, NodeWork, Peaks, Work, node_work
from resnet_onnx.results.bench import LayerRecord
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
        work = graph[node].work if node is not None else None
        ideal_s, bound = _ideal(work, peaks, precision)
        # Every product is the graph's, also where its node has no name to be found by.
        if node is None and graph and peaks is not None and not _PRODUCT.search(time.operator):
            ideal_s = 0.0
        ms, ideal_ms = 1e3 * time.seconds, None if ideal_s is None else 1e3 * ideal_s
        found.append(
            LayerRecord(
                name=time.name,
                operator=time.operator,
                node=node,
                ms=ms,
                ideal_ms=ideal_ms,
                bound=bound,
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


def _ideal(
    work: Work | None, peaks: Peaks | None, precision: str
) -> tuple[float | None, Literal["compute", "memory"] | None]:
    if work is None or peaks is None or precision not in peaks.gflops:
        return None, None
    compute_s = 2 * work.multiply_adds / (peaks.gflops[precision] * 1e9)
    memory_s = work.elements * ELEMENT_BYTES[precision] / (peaks.bandwidth_gbs * 1e9)
    return (compute_s, "compute") if compute_s >= memory_s else (memory_s, "memory")


def worst(layers: Sequence[LayerRecord], count: int = 10) -> list[LayerRecord]:
    """Returns the layers that lose most time, the worst first; those whose loss is not known come last, by their time.

    Layers that lose nothing are left out.
    """
    known = sorted((layer for layer in layers if layer.lost_ms), key=lambda layer: -(layer.lost_ms or 0.0))
    unknown = [layer for layer in layers if layer.lost_ms is None]
    return (known + sorted(unknown, key=lambda layer: -layer.ms))[:count]
