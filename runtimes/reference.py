"""The ONNX reference evaluator, in float64 where the graph allows: slow, plain, and nobody's optimisation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtimes import onnx_gate, onnx_plain
from runtimes.base import Runtime
from runtimes.environment import load_library, package_version
from runtimes.errors import BadModel, OutOfMemory, RunFailed, UnsupportedModel, reason
from runtimes.spec import NodePlacement, TensorSpec

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

_FIRST_SOUND_OPSET = 15
"""The evaluator's BatchNormalization before opset 14 is wrong for inference, and 14 still has other mean and variance
types; from 15 on it is right (checked against the outputs shipped with the onnx wheel's densenet121)."""

_FIRST_QUANTISING_OPSET = 19
"""The evaluator knows QuantizeLinear and DequantizeLinear only from here on."""

_NARROW_FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16")


class ReferenceRuntime(Runtime):
    """Evaluates the graph node by node in NumPy.

    Floating outputs are float64 where every operator accepts doubles (``recorded["precision"]`` says which it was), so
    that it can serve as gold; inputs keep the model's own types.
    """

    name = "reference"
    title = "ONNX reference evaluator in float64"
    uses = frozenset()
    precisions = frozenset({"fp32", "fp16", "bf16", "int8"})
    in_all = False  # too slow to be measured, and itself a gold
    not_bundled_because = "computes gold, node by node in NumPy, and is too slow to be deployed"

    @classmethod
    def _installed_version(cls) -> str | None:
        return package_version("onnx")

    @classmethod
    def _probe(cls, device: str) -> tuple[str, tuple[str, ...]]:
        onnx = load_library("onnx", runtime=cls.name, package="resnet-onnx")
        return str(onnx.__version__), (device,)

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], Mapping[str, Any]]:
        if self.source.path is None:
            raise BadModel(f"runtime '{self.name}' opens ONNX files, but {self.source.name} has none")
        checked = onnx_gate.check_onnx(self.source.path)
        onnx = load_library("onnx", runtime=self.name, package="resnet-onnx")
        reference = load_library("onnx.reference", runtime=self.name, package="resnet-onnx")
        model = onnx_plain.plain(onnx.load(str(checked.path)))
        if checked.odd_outputs:
            keep_outputs(model.graph, [spec.name for spec in checked.outputs])
        if unknown := unknown_operators(model):
            raise UnsupportedModel(
                f"{self.name} does not know {', '.join(unknown[:3])}, which {self.source.name} uses",
                fix="choose a runtime that does",
            )
        quantises = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node)
        opset = _FIRST_QUANTISING_OPSET if quantises else _FIRST_SOUND_OPSET
        if checked.opset < opset:
            try:
                model = onnx.version_converter.convert_version(model, opset)
            except Exception as error:
                raise UnsupportedModel(
                    f"{self.name}: {self.source.name} has opset {checked.opset} and can't be converted to "
                    f"{opset}: {reason(error)}",
                    fix="export it with a newer opset",
                ) from error
        widen(model)
        try:
            self._evaluator = reference.ReferenceEvaluator(model)
        except Exception as error:
            raise UnsupportedModel(f"{self.name} can't open {self.source.name}: {reason(error)}") from error
        self._to_double = {s.name for s in checked.inputs if s.dtype.kind in "fV"}  # V is bfloat16
        outputs = tuple(
            TensorSpec(s.name, np.dtype(np.float64), s.shape) if s.dtype.kind in "fV" else s for s in checked.outputs
        )
        return checked.inputs, outputs, {"precision": "float64", "opset": max(checked.opset, opset)}

    def _placement(self) -> tuple[NodePlacement, ...]:
        return (NodePlacement("*", "", "onnx.reference (NumPy)", "cpu"),)

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        wide = {n: a.astype(np.float64) if n in self._to_double else a for n, a in feeds.items()}
        try:
            with np.errstate(all="ignore"):
                arrays = self._evaluator.run([spec.name for spec in self.outputs], wide)
        except MemoryError as error:
            raise OutOfMemory(f"{self.name}: {self.source.name} does not fit into memory") from error
        except Exception as error:
            raise RunFailed(f"{self.name}: evaluating {self.source.name} failed: {reason(error)}") from error
        return {s.name: np.asarray(a).astype(s.dtype) for s, a in zip(self.outputs, arrays, strict=True)}

    def _close(self) -> None:
        del self._evaluator


def unknown_operators(model: ModelProto) -> list[str]:
    """Returns the operators of a graph that are neither ONNX's nor local functions, as ``domain:operator``."""
    import onnx

    own = {(function.domain, function.name) for function in model.functions}
    found = (
        f"{node.domain}:{node.op_type}"
        for node in model.graph.node
        if node.domain not in ("", "ai.onnx")
        and (node.domain, node.op_type) not in own
        and not onnx.defs.has(node.op_type, node.domain)
    )
    return list(dict.fromkeys(found))


def keep_outputs(graph: GraphProto, names: Collection[str]) -> None:
    """Leaves a graph, in place, with some of its outputs and the nodes that these need."""
    needed = set(names)
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(_read_by(node))
    kept = [value for value in graph.output if value.name in names]
    del graph.node[:], graph.output[:]
    graph.node.extend(reversed(nodes))
    graph.output.extend(kept)


def _read_by(node: NodeProto) -> Iterator[str]:
    """Yields the names that a node reads, those in its subgraphs among them."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from _read_by(inner)


def widen(model: ModelProto, element: str = "DOUBLE") -> None:
    """Turns every narrower float of a ``ModelProto`` (opset ≥ 15) into float64, or another type, in place.

    Initialisers, tensors in attributes, types of inputs, outputs and intermediate values, and the targets of Cast.
    Rounding that is part of the function, as in a cast to float16 and back, is lost: the graph is evaluated as if it
    were exact. `element` is ``DOUBLE``, or ``FLOAT`` for a float32 twin of a half-precision model.
    """
    import onnx
    from onnx import numpy_helper

    double = getattr(onnx.TensorProto, element)
    wide = onnx.helper.tensor_dtype_to_np_dtype(double)
    narrow = {getattr(onnx.TensorProto, name) for name in _NARROW_FLOATS} - {double}

    def widen_tensor(tensor: TensorProto) -> None:
        if tensor.data_type in narrow:
            array = numpy_helper.to_array(tensor).astype(wide)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    def widen_value(value: ValueInfoProto) -> None:
        if value.type.tensor_type.elem_type in narrow:
            value.type.tensor_type.elem_type = double

    def widen_graph(graph: GraphProto) -> None:
        for tensor in graph.initializer:
            widen_tensor(tensor)
        for value in (*graph.input, *graph.output, *graph.value_info):
            widen_value(value)
        widen_nodes(graph.node)

    def widen_nodes(nodes: Iterable[NodeProto]) -> None:
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    widen_tensor(attribute.t)
                if attribute.HasField("g"):
                    widen_graph(attribute.g)
                for graph in attribute.graphs:
                    widen_graph(graph)
                if attribute.name in ("to", "dtype", "output_dtype") and attribute.i in narrow:
                    attribute.i = double
                if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                    values = [attribute.f] if attribute.name == "value_float" else list(attribute.floats)
                    array = np.array(values if attribute.name == "value_floats" else values[0], wide)
                    attribute.Clear()
                    attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
                    attribute.t.CopyFrom(numpy_helper.from_array(array))

    widen_graph(model.graph)
    for function in model.functions:
        widen_nodes(function.node)
