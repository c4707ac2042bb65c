"""How far a result is from what the machine can do: work counted from the graph, peaks measured by large products.

The roofline model: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", CACM 52(4), 2009.
A run that does F operations and moves at least B bytes takes at least max(F / peak, B / bandwidth).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from resnet_onnx.bench.clock import Watch
from resnet_onnx.results.bench import Utilization
from resnet_onnx.results.document import Peaks
from runtimes import files
from runtimes.base import Prepared
from runtimes.environment import describe_machine
from runtimes.errors import FileProblem, ToolkitError

FRESH_S, DISTURBED_FRESH_S = 7 * 24 * 3600.0, 600.0
"""A peak is measured anew after a week: a virtual machine may by then run on other hardware under the same name; one
that others disturbed, after ten minutes."""

_SIDE = 2048
"""Of the square matrices: 17 GFLOP a product, far beyond any cache, and some 50 ms on two cores."""

_SECONDS_EACH, _COPY_BYTES = 0.4, 2**27
_DISTURBED = 0.05
"""Share of the cores that others may use while a peak is measured; beyond it the peak counts as disturbed."""

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
        inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError):
        return known
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.WhichOneof("value") == "dim_value" for d in dims):
            known[value.name] = tuple(d.dim_value for d in dims)
    return known


# ---- the machine's peaks -----------------------------------------------------------------------------------------


def measure_peaks(threads: int) -> Peaks:
    """Measures the peaks in this process: the best of several large matrix products, and of several large copies.

    Floating point is measured with torch alone, whose products are oneDNN's or MKL's. For 8-bit integers no library is
    the fastest on every CPU, so that the best of torch, OpenVINO and ONNX Runtime counts.
    """
    import torch

    torch.set_num_threads(threads)
    watch = Watch()
    gflops: dict[str, float] = {}
    with torch.inference_mode():
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            left = torch.randn(_SIDE, _SIDE).to(dtype)
            right = torch.randn(_SIDE, _SIDE).to(dtype)
            out = torch.empty_like(left)
            gflops[precision] = 2 * _SIDE**3 / _best(lambda a=left, b=right, c=out: torch.mm(a, b, out=c)) / 1e9
        source = torch.zeros(_COPY_BYTES, dtype=torch.uint8)
        target = torch.empty_like(source)
        bandwidth = 2 * _COPY_BYTES / _best(lambda: target.copy_(source)) / 1e9
    measured_with = dict.fromkeys(gflops, "torch")
    int8 = _int8_gops(threads)
    if int8:
        measured_with["int8"] = max(int8, key=int8.__getitem__)
        gflops["int8"] = int8[measured_with["int8"]]
    return Peaks(
        gflops=gflops,
        bandwidth_gbs=bandwidth,
        threads=threads,
        measured_at=time.time(),
        undisturbed=watch.stop().others_share <= _DISTURBED,
        measured_with=measured_with,
    )


def _int8_gops(threads: int) -> dict[str, float]:
    """Returns billions of 8-bit operations per second by library, for those that can do such a product here."""
    import torch

    from runtimes.registry import conversion_runtimes, open_runtime, probe
    from runtimes.spec import ModelSource, RuntimeOptions

    found = {}
    operations = 2 * _SIDE**3
    left, right = (torch.randint(-127, 128, (_SIDE, _SIDE), dtype=torch.int8) for _ in range(2))
    try:
        with torch.inference_mode():
            found["torch"] = operations / _best(lambda: torch._int_mm(left, right)) / 1e9
    except (RuntimeError, NotImplementedError, AttributeError):
        pass  # a private function of torch's, and not on every CPU
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "product.onnx"
        files.write_bytes(path, _int8_product())
        feeds = {"x": np.resize(np.arange(256, dtype=np.uint8), (_SIDE, _SIDE))}
        for name in conversion_runtimes("int8"):
            if not probe(name).available:
                continue
            try:
                with (
                    open_runtime(name, ModelSource(path=path), options=RuntimeOptions(threads=threads)) as runtime,
                    runtime.prepare(feeds) as prepared,
                ):

                    def run(prepared: Prepared = prepared) -> None:
                        prepared.enqueue()
                        prepared.synchronize()

                    found[name] = operations / _best(run) / 1e9
            except ToolkitError:
                continue  # it has no such product on this CPU
    return found


def _int8_product() -> bytes:
    """Returns an ONNX model of one product of quantised matrices: unsigned inputs, signed weights, unsigned outputs."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.resize(np.arange(-127, 128, dtype=np.int8), (_SIDE, _SIDE))
    constants = {
        "one": np.float32(1), "wide": np.float32(2**20), "unsigned": np.uint8(0), "signed": np.int8(0), "w": weights,
    }  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "one", "unsigned"], ["x_real"]),
        helper.make_node("DequantizeLinear", ["w", "one", "signed"], ["w_real"]),
        helper.make_node("MatMul", ["x_real", "w_real"], ["y_real"]),
        helper.make_node("QuantizeLinear", ["y_real", "wide", "unsigned"], ["y"]),
    ]
    sides = [_SIDE, _SIDE]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, sides)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, sides)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def _best(function: Any) -> float:
    """Returns the shortest of the times that fit into ``_SECONDS_EACH``, three at least."""
    function()
    times: list[float] = []
    end = time.perf_counter() + _SECONDS_EACH
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


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
                _SIDE,
                2,
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
    return Utilization(
        fraction=achieved / peak,
        bound=least[1],
        limit_fraction=runs_per_s * least[0],
        achieved_gflops=achieved,
        peak_gflops=peak,
        operations_per_byte=2 * work.multiply_adds / (work.elements * ELEMENT_BYTES[precision]),
    )
