"""What an ONNX graph computes in: which of its operators round, and to which format, however the file is written.

Only what depends on the inputs counts. Weights may be initialisers or Constant nodes, lie in the body of a local
function, or come out of Cast, DequantizeLinear, Transpose and their like: that is storage, done once and alike by all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtimes import onnx_gate, onnx_graph, onnx_plain
from runtimes.errors import UsageError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

Shape = tuple[int | None, ...]

PRECISIONS = ("fp64", "fp32", "fp16", "bf16")
"""Floating-point formats from the finest to the coarsest."""

_ELEMENTS = {11: "fp64", 1: "fp32", 10: "fp16", 16: "bf16"}
"""Formats by onnx.TensorProto.DataType, from onnx/onnx.in.proto."""

_SIGNIFICANT_BITS = {"fp64": 53, "fp32": 24, "fp16": 11, "bf16": 8}
_INTEGER_BITS = {2: 8, 3: 7, 4: 16, 5: 15, 6: 31, 7: 63, 9: 1, 12: 32, 13: 64, 21: 4, 22: 3, 25: 2, 26: 1}

_EXACT = """
    Relu LeakyRelu MaxPool GlobalMaxPool Reshape Flatten Transpose Identity Dropout Squeeze Unsqueeze Concat Split Slice
    Gather Pad Constant ConstantOfShape Shape Expand Tile Neg Abs Clip Max Min ReduceMax ReduceMin Where Equal Greater
    Less ArgMax ArgMin TopK Not And Or Size Range DepthToSpace SpaceToDepth If Loop Scan
"""
EXACT_OPERATORS = frozenset(_EXACT.split())
"""Operators that round nothing (LeakyRelu once, in one branch): they move, choose or compare values. The graphs in If,
Loop and Scan are looked at themselves. A Cast rounds where it narrows."""

_INTEGER_OPERATORS = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"})


_SMALL = 256
"""Elements of a constant whose values shapes, axes and paddings may depend on."""

_FOLDS = "Constant ConstantOfShape Identity Cast Concat Slice Gather Reshape Transpose Squeeze Unsqueeze Add Sub Mul"
_FOLDING = frozenset(_FOLDS.split())


@dataclass(frozen=True)
class Operator:
    """A node that depends on the inputs of its graph and rounds.

    Attributes:
        precision: The coarsest format among the data that it reads and writes.
        dynamic: The inputs, by place, that depend on the graph's inputs; the others are constants.
        inputs: Shapes, None where shape inference finds none; an open extent is None.
    """

    node: NodeProto
    precision: str
    dynamic: tuple[int, ...]
    inputs: tuple[Shape | None, ...]
    outputs: tuple[Shape | None, ...]


@dataclass(frozen=True)
class Computation:
    """What of a graph depends on its inputs.

    Attributes:
        operators: Those that round.
        makers: The node behind every value that depends on the inputs.
        integers: Whether activations are rounded to whole numbers.
        held: Formats of all floating-point values that depend on the inputs.
    """

    operators: tuple[Operator, ...]
    makers: Mapping[str, NodeProto]
    integers: bool
    held: frozenset[str]

    @property
    def precision(self) -> str:
        """``int8``, or the coarsest format that an operator computes in.

        A Cast alone computes nothing: a graph that takes or gives half precision and multiplies in float32 is a float32
        graph (its casts still count where they round, see ``operators``).
        """
        if self.integers:
            return "int8"
        computing = [operator.precision for operator in self.operators if operator.node.op_type != "Cast"]
        return coarsest(computing or self.held) or "fp32"


def coarsest(precisions: Iterable[str]) -> str | None:
    """Returns the format with the fewest significant bits, or None of none."""
    return max(precisions, key=PRECISIONS.index, default=None)


def graph_precision(path: Path) -> str:
    """Returns the precision that an ONNX file computes in, whatever its metadata and the types of its weights say.

    It is ``int8`` where activations are rounded to whole numbers, else ``fp32``, ``fp16``, ``bf16`` or ``fp64``.
    """
    checked = onnx_gate.check_onnx(path)
    return _graph_precision(checked.path, checked.sha256)


@functools.lru_cache(maxsize=64)
def _graph_precision(path: Path, sha256: str) -> str:
    return computation(path).precision


def require_true_metadata(checked: onnx_gate.CheckedModel) -> tuple[str, ...]:
    """Returns notes on what metadata says of the precision.

    A quantiser of somebody else keeps the metadata of the float file that it quantised: that is noted.

    Raises:
        UsageError: Metadata names one of our precisions and the graph computes in another one.
    """
    said = checked.metadata.get("precision")
    if said not in (*PRECISIONS, "int8"):  # not our words: somebody else's metadata
        return ()
    found = graph_precision(checked.path)
    if found == "int8" != said:
        return (f"quantised by another tool: its metadata still says {said}, and its graph computes in int8",)
    if said != found:
        raise UsageError(
            f"{checked.path}: its metadata says precision {said}, but its graph computes in {found}",
            fix="export or convert it again, or correct the entry 'precision' of its metadata_props",
        )
    return ()


def computation(path: Path, shapes: Mapping[str, Sequence[int]] | None = None) -> Computation:
    """Returns what of an ONNX file depends on its inputs.

    Args:
        path: The file.
        shapes: Of the inputs, by name, where the file leaves extents open.

    Raises:
        BadModel: The file does not pass the gate.
    """
    import onnx

    checked = onnx_gate.check_onnx(path)
    model = onnx.load(str(checked.path), load_external_data=False)
    onnx_graph.respell(model)
    model = _inlined(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in constants]
    return _Reader(_with_types(model, shapes or {}), inputs).read()


def _inlined(model: ModelProto) -> ModelProto:
    """Returns a model without local functions, as far as ONNX can inline them."""
    import onnx.inliner

    for convert in (False, True):  # functions of another operator set need conversion, which may fail
        if model.functions:
            try:
                model = onnx.inliner.inline_local_functions(model, convert)
            except Exception:  # the inliner's are bare ones; what is left is read as it stands
                break
    return model


def _with_types(model: ModelProto, shapes: Mapping[str, Sequence[int]]) -> ModelProto:
    """Returns a model without large weights, in which shape inference has found all that it can.

    Shapes written in the file are forgotten, and found again from those of the inputs.
    """
    import onnx

    bare = onnx.ModelProto(ir_version=max(model.ir_version, onnx_plain.INITIALISERS_ALONE))
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    graph = bare.graph
    graph.name = model.graph.name or "graph"
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    weights: list[tuple[str, int, Sequence[int]]] = [
        (s.values.name, s.values.data_type, s.dims) for s in model.graph.sparse_initializer
    ]
    for tensor in model.graph.initializer:
        if _is_small(tensor):
            graph.initializer.append(tensor)
        else:
            weights.append((tensor.name, tensor.data_type, tensor.dims))
    for node in model.graph.node:
        held = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if held is None or _is_small(held):
            graph.node.append(node)
        else:
            weights.append((node.output[0], held.data_type, held.dims))
    named = {name for name, _, _ in weights} | {tensor.name for tensor in graph.initializer}
    graph.input.extend(value for value in model.graph.input if value.name not in named)
    for value in graph.input:
        if value.name in shapes and value.type.HasField("tensor_type"):
            element = value.type.tensor_type.elem_type
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, element, list(shapes[value.name])))
    for value in (*graph.value_info, *graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    graph.input.extend(onnx.helper.make_tensor_value_info(name, kind, list(dims)) for name, kind, dims in weights)
    _fold(bare)
    return onnx_graph.propagated(bare)


def _fold(model: ModelProto) -> None:
    """Computes small constants beforehand: shapes and paddings come from them in more ways than inference follows."""
    import onnx
    from onnx import numpy_helper, reference

    graph = model.graph
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        given = [name for name in node.input if name]
        folds = node.op_type in _FOLDING and node.domain == "" and all(name in known for name in given)
        folds = folds and sum(known[name].size for name in given) <= _SMALL  # a few bytes can double without end
        if folds and node.op_type == "ConstantOfShape":
            folds = math.prod(known[given[0]].tolist()) <= _SMALL
        if not folds:
            kept.append(node)
            continue
        inputs = [onnx.helper.make_empty_tensor_value_info(name) for name in given]
        outputs = [onnx.helper.make_empty_tensor_value_info(node.output[0])]
        alone = onnx.helper.make_model(
            onnx.helper.make_graph([node], "constant", inputs, outputs),
            opset_imports=model.opset_import, ir_version=model.ir_version,
        )  # fmt: skip
        try:
            (value,) = reference.ReferenceEvaluator(alone).run(None, {name: known[name] for name in given})
            graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        except Exception:  # it stays as it is: shapes that depend on it are then not known
            kept.append(node)
            continue
        known[node.output[0]] = value
    del graph.node[:]
    graph.node.extend(kept)


def _is_small(tensor: TensorProto) -> bool:
    """Whether shape inference may have the values of a tensor, which it needs of shapes and axes."""
    return tensor.data_location != tensor.EXTERNAL and math.prod(tensor.dims) <= _SMALL


def _shapes(graph: GraphProto) -> dict[str, Shape]:
    found: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            found[value.name] = tuple(
                d.dim_value if d.WhichOneof("value") == "dim_value" else None for d in kind.shape.dim
            )
    return found


class _Reader:
    """Walks the nodes of a graph and those of the graphs inside."""

    def __init__(self, model: ModelProto, inputs: Iterable[str]) -> None:
        self._graph = model.graph
        self._types: dict[str, int] = {}
        self._shapes: dict[str, Shape] = {}
        self._dynamic = set(inputs)
        self._makers: dict[str, NodeProto] = {}
        self._operators: list[Operator] = []
        self._integers = False

    def read(self) -> Computation:
        self._read_types(self._graph)
        self._walk(self._graph)
        formats = (_ELEMENTS.get(self._types.get(name, 0)) for name in self._dynamic)
        held = frozenset(found for found in formats if found)
        return Computation(tuple(self._operators), self._makers, self._integers, held)

    def _read_types(self, graph: GraphProto) -> None:
        self._shapes.update(_shapes(graph))
        self._types.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
        for value in (*graph.input, *graph.value_info, *graph.output):
            kind = value.type.tensor_type
            if kind.elem_type:
                self._types[value.name] = kind.elem_type

    def _walk(self, graph: GraphProto) -> None:
        for node in graph.node:
            depends = self._depends(node)
            for inner in onnx_graph.subgraphs(node):
                self._read_types(inner)
                if depends:
                    self._dynamic.update(value.name for value in inner.input)
                self._walk(inner)
                depends |= any(value.name in self._dynamic for value in inner.output)
            if depends and node.op_type not in ("Shape", "Size"):  # shapes are known before a run
                self._add(node)

    def _depends(self, node: NodeProto) -> bool:
        return any(name in self._dynamic for name in node.input)

    def _add(self, node: NodeProto) -> None:
        for name in node.output:
            if name:
                self._dynamic.add(name)
                self._makers[name] = node
        if node.op_type in _INTEGER_OPERATORS or node.op_type.startswith("QLinear"):
            self._integers = True
        precision = self._precision(node)
        if precision is not None:
            self._operators.append(
                Operator(
                    node=node,
                    precision=precision,
                    dynamic=tuple(place for place, name in enumerate(node.input) if name in self._dynamic),
                    inputs=tuple(self._shapes.get(name) for name in node.input),
                    outputs=tuple(self._shapes.get(name) for name in node.output),
                )
            )

    def _precision(self, node: NodeProto) -> str | None:
        """Returns the format that a node rounds to, or None where it rounds nothing."""
        if node.op_type in EXACT_OPERATORS:
            return None
        if node.op_type == "Cast":
            before, after = (self._types.get(name, 0) for name in (node.input[0], node.output[0]))
            target = _ELEMENTS.get(after)
            if target is None:
                return None
            bits = _SIGNIFICANT_BITS.get(_ELEMENTS.get(before, ""), _INTEGER_BITS.get(before, 0))
            return target if bits > _SIGNIFICANT_BITS[target] else None
        written = [self._types.get(name, 0) for name in node.output if name]
        if written and all(kind in _INTEGER_BITS for kind in written):
            return None
        read = [self._types.get(name, 0) for name in node.input if name in self._dynamic]
        return coarsest(_ELEMENTS[kind] for kind in (*read, *written) if kind in _ELEMENTS) or "fp32"


def elements(shape: Shape | None) -> int | None:
    """Returns how many elements a shape has, or None where an extent is not known."""
    if shape is None or None in shape:
        return None
    return math.prod(extent for extent in shape if extent is not None)


def moved_from(name: str, makers: Mapping[str, NodeProto]) -> Iterator[NodeProto]:
    """Yields the nodes behind a value, back to the first that does more than move or rename numbers, that included."""
    while name in makers:
        node = makers[name]
        yield node
        if node.op_type not in _MOVING:
            return
        name = node.input[0]


_MOVING = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Dropout", "Cast"})
