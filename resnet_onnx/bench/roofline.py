"""How far a result is from what the machine can do: work counted from the graph, beside measured peaks.

The roofline model: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", CACM 52(4), 2009.
A run that does F operations and moves at least B bytes takes at least max(F / peak, B / bandwidth).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from resnet_onnx.results.bench import Utilization
from resnet_onnx.results.document import Peaks, known
from runtimes import files, onnx_graph
from runtimes.environment import describe_machine
from runtimes.errors import FileProblem, ToolkitError

FRESH_S, DISTURBED_FRESH_S = 7 * 24 * 3600.0, 600.0
"""A peak is measured anew after a week: a virtual machine may by then run on other hardware under the same name; one
that others disturbed, after ten minutes."""

_SMALL = 1024
_PRODUCTS = frozenset(
    {
        "Conv", "ConvInteger", "QLinearConv", "ConvTranspose",
        "Gemm", "MatMul", "MatMulInteger", "QLinearMatMul",
    }
)  # fmt: skip
_UNCOUNTED = frozenset({"Attention", "DeformConv", "Einsum", "GRU", "If", "LSTM", "Loop", "RNN", "Scan", "SequenceMap"})
ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
"""Bytes of an element by precision."""


# ---- the work of a graph -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one run of a graph has to do.

    Attributes:
        multiply_adds: Of convolutions and matrix products; one multiply-add is two operations.
        elements: Elements that those layers read (weights, inputs) and write, each once: what has to be moved at
            least where layers follow each other through memory.
    """

    multiply_adds: int
    elements: int


def count_work(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Work | None:
    """Counts the work of one run of a checked ONNX model whose inputs have the given shapes.

    Returns:
        The work, or None where it is unknown: a shape is unknown even so, the graph has no convolution or matrix
        product, or an operator that is not counted here.
    """
    model = _load(path)
    if any(node.op_type in _UNCOUNTED or node.domain not in ("", "ai.onnx") for node in model.graph.node):
        return None
    known = _shapes(model, shapes)
    total = elements = 0
    for node in model.graph.node:
        if node.op_type in _PRODUCTS:
            work = _work(node, known)
            if work is None:
                return None
            total, elements = total + work.multiply_adds, elements + work.elements
    return Work(multiply_adds=total, elements=elements) if total else None


def _work(node: Any, known: Mapping[str, tuple[int, ...]]) -> Work | None:
    product = node.op_type in _PRODUCTS
    names = _operands(node) if product else (*filter(None, node.input), *node.output)
    if any(name not in known for name in names):
        return None
    multiply_adds = _multiply_adds(node, known) if product else 0
    if multiply_adds is None:
        return None
    return Work(multiply_adds=multiply_adds, elements=sum(int(np.prod(known[name])) for name in names))


@dataclass(frozen=True, kw_only=True)
class NodeWork:
    """What one node of a graph has to do in a run.

    Attributes:
        work: Its multiply-adds (0 for what is not a product), and the elements that it reads and writes; None where a
            shape is unknown.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    is_product: bool
    work: Work | None


def node_work(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NodeWork]:
    """Returns the work of each node of a checked ONNX model in a run, by its name; nodes without one are left out."""
    model = _load(path)
    known = _shapes(model, shapes)
    return {
        node.name: NodeWork(
            inputs=tuple(node.input),
            outputs=tuple(node.output),
            is_product=node.op_type in _PRODUCTS,
            work=_work(node, known),
        )
        for node in model.graph.node
        if node.name
    }


def _load(path: Path) -> Any:
    import onnx
    from onnx.inliner import inline_local_functions

    model = onnx.load(str(path), load_external_data=False)
    return inline_local_functions(model) if model.functions else model


def _operands(node: Any) -> tuple[str, str, str]:
    """Returns the names of data, weights and output of a product."""
    second = 3 if node.op_type in ("QLinearConv", "QLinearMatMul") else 1
    return node.input[0], node.input[second], node.output[0]


def _multiply_adds(node: Any, known: Mapping[str, tuple[int, ...]]) -> int | None:
    data, weights, output = (known[name] for name in _operands(node))
    if node.op_type == "ConvTranspose":
        # Every input element meets every weight of its group's filters: [C_in, C_out / groups, kernel…].
        return int(np.prod(data)) * int(np.prod(weights[1:]))
    if "Conv" in node.op_type:
        return int(np.prod(output)) * int(np.prod(weights[1:]))
    if node.op_type == "Gemm":
        transposed = next((a.i for a in node.attribute if a.name == "transA"), 0)
        return int(np.prod(output)) * data[0 if transposed else 1]
    return int(np.prod(output)) * data[-1] if data else None


def _shapes(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Returns every shape that can be inferred when the inputs have the given ones."""
    import onnx

    known: dict[str, tuple[int, ...]] = {}
    bare = onnx.ModelProto()
    bare.ir_version = max(model.ir_version, 4)
    bare.opset_import.extend(model.opset_import)
    bare.graph.name = model.graph.name
    bare.graph.node.extend(model.graph.node)
    bare.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        known[tensor.name] = tuple(tensor.dims)
        # Inference copies the whole model: large weights go in as inputs of their shape, small ones may be shapes.
        if len(tensor.raw_data) <= _SMALL and tensor.data_location != tensor.EXTERNAL:
            bare.graph.initializer.append(tensor)
        else:
            bare.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    for value in model.graph.input:
        if value.name not in known:
            given = shapes.get(value.name)
            element = value.type.tensor_type.elem_type
            bare.graph.input.append(onnx.helper.make_tensor_value_info(value.name, element, given and list(given)))
    try:
        inferred = onnx_graph.propagated(bare)
    except (onnx.shape_inference.InferenceError, ValueError):
        return known
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.WhichOneof("value") == "dim_value" for d in dims):
            known[value.name] = tuple(d.dim_value for d in dims)
    return known


# ---- the machine's peaks -----------------------------------------------------------------------------------------


def peaks(threads: int) -> Peaks | None:
    """Returns the machine's peaks, measured in a process or found in the cache; None where they can't be measured."""
    from resnet_onnx.bench.worker_process import WorkerProcess

    machine = describe_machine()
    key = hashlib.sha256(
        json.dumps(
            [
                {**machine["cpu"], "clock_mhz": None},  # that of this moment
                *(machine["libraries"].get(name) for name in ("torch", "openvino", "onnxruntime-gpu", "onnxruntime")),
                threads,
                3,  # the kernels
            ],
            sort_keys=True,
        ).encode()
    ).hexdigest()[:32]
    note: Path | None = None
    kept = None
    with contextlib.suppress(FileProblem):  # a cache that can't be written costs the time of measuring again
        note = files.cache_dir("peaks") / f"{key}.json"
        kept = _recall(note)
    age = time.time() - kept.measured_at if kept is not None and kept.measured_at is not None else float("inf")
    if kept is not None and 0 <= age < (FRESH_S if kept.undisturbed else DISTURBED_FRESH_S):
        return kept
    try:
        with WorkerProcess("the peak measurement") as worker:
            found: Peaks = worker.call("peaks", threads=threads)
    except (ToolkitError, RuntimeError):  # a fault in the worker, too, must not cost the rows that are measured
        return kept
    if kept is not None and not found.undisturbed and 0 <= age < FRESH_S:
        # A disturbed measurement can only have been too low.
        found = _higher(kept, found)
    if note is not None:
        with contextlib.suppress(FileProblem):
            files.write_sealed(note, msgspec.json.encode(found))
    return found


def _higher(a: Peaks, b: Peaks) -> Peaks:
    higher = {name: a if a.gflops.get(name, 0.0) > b.gflops.get(name, 0.0) else b for name in {**a.gflops, **b.gflops}}
    return Peaks(
        gflops={name: one.gflops[name] for name, one in higher.items()},
        bandwidth_gbs=max(a.bandwidth_gbs or 0.0, b.bandwidth_gbs or 0.0),
        threads=b.threads,
        measured_at=b.measured_at,
        undisturbed=False,
        measured_with={name: (one.measured_with or {}).get(name, "") for name, one in higher.items()},
        arithmetic_gflops=b.arithmetic_gflops,
    )


def raised(measured: Peaks | None, precision: str, achieved_gflops: float, by: str) -> Peaks | None:
    """Returns peaks of which that of a precision is at least what something achieved, which proves it to be possible.

    `by` says what achieved it. A ceiling that a row breaks through is not a ceiling.
    """
    if measured is None or precision not in measured.gflops or achieved_gflops <= measured.gflops[precision]:
        return measured
    return replace(
        measured,
        gflops={**measured.gflops, precision: achieved_gflops},
        measured_with={**(known(measured.measured_with) or {}), precision: by},
    )


def _recall(note: Path) -> Peaks | None:
    kept = files.read_sealed(note)
    if kept is None:
        return None
    try:
        return msgspec.json.decode(kept, type=Peaks)
    except ValueError:  # of another version of this program
        return None


# ---- utilization --------------------------------------------------------------------------------------------------


def least_seconds(
    work: Work | None, measured: Peaks | None, precision: str
) -> tuple[float, Literal["compute", "memory"]] | None:
    """Returns what some work needs at least, and which limit sets that; None where the work or a peak is unknown."""
    if work is None or measured is None or precision not in measured.gflops or measured.bandwidth_gbs is None:
        return None
    compute_s = 2 * work.multiply_adds / (measured.gflops[precision] * 1e9)
    memory_s = work.elements * ELEMENT_BYTES[precision] / (measured.bandwidth_gbs * 1e9)
    return (compute_s, "compute") if compute_s >= memory_s else (memory_s, "memory")


def utilization(work: Work | None, runs_per_s: float | None, measured: Peaks | None, precision: str) -> Utilization:
    """Sets a speed beside the machine's limit; `precision` is that of the arithmetic."""
    peak = measured.gflops.get(precision) if measured is not None else None
    achieved = 2 * work.multiply_adds * runs_per_s / 1e9 if work is not None and runs_per_s is not None else None
    least = least_seconds(work, measured, precision)
    if work is None or runs_per_s is None or achieved is None or peak is None or least is None:
        return Utilization(fraction=None, limit_fraction=None, achieved_gflops=achieved, peak_gflops=peak)
    limit_s, bound = least
    if runs_per_s * limit_s > 1 and bound == "memory":
        # What moves faster than memory comes from a cache, and memory is not its limit.
        limit_s, bound = achieved / peak / runs_per_s, "compute"
    return Utilization(
        fraction=achieved / peak,
        bound=bound,
        limit_fraction=runs_per_s * limit_s,
        achieved_gflops=achieved,
        peak_gflops=peak,
        operations_per_byte=2 * work.multiply_adds / (work.elements * ELEMENT_BYTES[precision]),
    )
