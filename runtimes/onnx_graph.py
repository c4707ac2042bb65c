"""What a graph tells beyond ONNX's checker: other exporters' spellings, training mode, and whether it has a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto

DEFAULT_DOMAINS = ("", "ai.onnx")
"""Both are names of ONNX's own operator set."""


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """Returns the graphs in a node's attributes."""
    return [graph for item in node.attribute for graph in (*([item.g] if item.HasField("g") else []), *item.graphs)]


def all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yields nodes and the nodes of their subgraphs."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(inner for graph in subgraphs(node) for inner in graph.node)


def fed(model: ModelProto) -> list[ValueInfoProto]:
    """Returns the inputs of a ``ModelProto`` that are no initialisers."""
    graph = model.graph
    initialised = {t.name for t in graph.initializer} | {s.values.name for s in graph.sparse_initializer}
    return [value for value in graph.input if value.name not in initialised]


# ---- spellings -----------------------------------------------------------------------------------------------------


def is_dialect(model: ModelProto) -> bool:
    """Whether weights are sparse or nodes write out ONNX's own domain."""
    nodes = all_nodes([*model.graph.node, *(node for function in model.functions for node in function.node)])
    return bool(model.graph.sparse_initializer) or any(node.domain == "ai.onnx" for node in nodes)


def respell(model: ModelProto) -> None:
    """Writes in ONNX's own way, in place, what other exporters write in theirs and runtimes read alike.

    A graph without a name; ``ai.onnx`` written out as the domain; -1 for an open dimension; ``spatial=0`` of a
    BatchNormalization (opset 8 and older) whose statistics are those of channels all the same.
    """
    graph = model.graph
    graph.name = graph.name or "graph"
    _name_domain_once(model)
    for function in model.functions:
        _name_domain_once(function)
    for node in all_nodes([*graph.node, *(node for function in model.functions for node in function.node)]):
        if node.domain == "ai.onnx":
            node.domain = ""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for extent in value.type.tensor_type.shape.dim:
            if extent.WhichOneof("value") == "dim_value" and extent.dim_value == -1:
                extent.Clear()
    vectors = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 1}
    for node in graph.node:
        if node.op_type == "BatchNormalization" and vectors.issuperset(node.input[1:]):
            kept = [item for item in node.attribute if item.name != "spatial"]
            if len(kept) < len(node.attribute):
                del node.attribute[:]
                node.attribute.extend(kept)


def _name_domain_once(holder: ModelProto | FunctionProto) -> None:
    imported = holder.opset_import
    versions = [entry.version for entry in imported if entry.domain in DEFAULT_DOMAINS]
    others = [entry for entry in imported if entry.domain not in DEFAULT_DOMAINS]
    if len(imported) - len(others) == 1 or len(set(versions)) == 1:  # two versions of one set: the checker says so
        del imported[:]
        imported.add(domain="", version=versions[0])
        imported.extend(others)


def fill_in(model: ModelProto) -> None:
    """Turns sparse initialisers into dense ones, in place: few libraries know them."""
    graph = model.graph
    graph.initializer.extend(dense(sparse) for sparse in graph.sparse_initializer)
    del graph.sparse_initializer[:]


def dense(sparse: SparseTensorProto) -> TensorProto:
    """Returns a sparse tensor with its zeros; its indices are [values] or [values, axes] (onnx.proto)."""
    from onnx import numpy_helper

    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    whole = np.zeros(tuple(sparse.dims), values.dtype)
    whole[tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, whole.shape)] = values
    return numpy_helper.from_array(whole, sparse.values.name)


# ---- shapes --------------------------------------------------------------------------------------------------------

_SMALL = 1024

_MOST_PROPAGATED = 2**18
"""Elements of vectors that data propagation may write out: each takes some 70 bytes."""

_MAKES_VECTORS = frozenset(
    ("Concat", "ConstantOfShape", "Expand", "Loop", "OneHot", "Pad", "Range", "Resize", "Scan", "Tile", "Upsample")
)
"""Operators whose output may be longer than all of their inputs, by values that shape inference may know."""


def without_weights(model: ModelProto) -> ModelProto:
    """Returns a copy of a ``ModelProto`` in which large weights are inputs, so that shape inference copies none."""
    import onnx

    copy = onnx.ModelProto()
    copy.ir_version = model.ir_version
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    graph = copy.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    named = {i.name for i in graph.input}
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) <= _SMALL and tensor.data_location != tensor.EXTERNAL:
            graph.initializer.append(tensor)
        elif tensor.name not in named:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    for sparse in model.graph.sparse_initializer:
        if sparse.values.name not in named:
            graph.input.append(
                onnx.helper.make_tensor_value_info(sparse.values.name, sparse.values.data_type, list(sparse.dims))
            )
    return copy


def inferred(model: ModelProto, *, strict: bool = False) -> ModelProto:
    """Returns a ``ModelProto`` without large weights with the types and shapes that shape inference finds.

    Its cost is bounded by the size of the file: values are not propagated. ONNX writes out every element of a vector
    that a shape may be made of, so that 81 bytes with a vector of 20 million would take 1.4 GiB (seen in 1.23).

    Raises:
        onnx.shape_inference.InferenceError: Types or shapes contradict each other; without `strict` only some.
    """
    import onnx

    return onnx.shape_inference.infer_shapes(model, check_type=strict, strict_mode=strict, data_prop=False)


def propagated(model: ModelProto) -> ModelProto:
    """Returns what ``inferred`` does, and what follows from shapes computed in the graph where that is cheap.

    Raises:
        onnx.shape_inference.InferenceError: As ``inferred``.
    """
    import onnx

    found = inferred(model)
    if not _is_cheap(found):
        return found
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _is_cheap(found: ModelProto) -> bool:
    """Returns whether no long vector is among the values, nor may come to be among them by computed lengths."""
    graph = found.graph
    values = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    lengths = {tensor.name: int(np.prod(tensor.dims, dtype=object)) for tensor in graph.initializer}
    unknown = set()
    for name, value in values.items():
        tensor = value.type.tensor_type
        if not tensor.HasField("shape"):
            unknown.add(name)
        elif len(tensor.shape.dim) == 1:
            lengths[name] = tensor.shape.dim[0].dim_value
            if tensor.shape.dim[0].WhichOneof("value") != "dim_value":
                unknown.add(name)
    if sum(lengths.values()) > _MOST_PROPAGATED:
        return False
    nodes = all_nodes([*graph.node, *(node for function in found.functions for node in function.node)])
    return not any(
        node.op_type in _MAKES_VECTORS and any(name in unknown or name not in values for name in node.output)
        for node in nodes
    )


# ---- the batch -----------------------------------------------------------------------------------------------------


def baked_batch(model: ModelProto) -> int | None:
    """Returns the batch that a graph for pictures is bound to although its input leaves the batch open, or None.

    A reshape to a fixed size, as exporters bake it in, answers with as many rows whatever the batch. It is found by
    shape inference with several batches; where that tells nothing, the batch is what the input says.
    """
    inputs = fed(model)
    if len(inputs) != 1 or len(inputs[0].type.tensor_type.shape.dim) != 4:
        return None
    if inputs[0].type.tensor_type.shape.dim[0].WhichOneof("value") == "dim_value":
        return None
    bare = without_weights(model)
    name = inputs[0].name
    answers = [output for output in bare.graph.output if output.name in _dependent_on(name, bare.graph)]
    del bare.graph.output[:]
    bare.graph.output.extend(answers)
    for output in bare.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    several = [_rows(bare, name, batch) for batch in (3, 5)]
    if None not in several and (several[0] != several[1] or not several[0] or None in several[0]):
        return None
    declared = _rows(bare, name, None) or ()
    for batch in dict.fromkeys((*(rows for rows in declared if rows), 1)):
        rows = _rows(bare, name, batch)
        if rows and batch in rows:
            return batch
    return None


def _dependent_on(name: str, graph: GraphProto) -> set[str]:
    """Returns the names of the values of a graph that depend on an input, that included."""
    found = {name}
    for node in graph.node:
        read = (used for each in all_nodes([node]) for used in each.input)
        if not found.isdisjoint(read):
            found.update(node.output)
    return found


def _rows(bare: ModelProto, name: str, batch: int | None) -> tuple[int | None, ...] | None:
    """Returns the first extent of each output of two axes or more, None where it is open; None where nothing fits.

    A single axis is not that of pictures: means over a batch have it.
    """
    import onnx

    (value,) = (each for each in bare.graph.input if each.name == name)
    first = value.type.tensor_type.shape.dim[0]
    before = type(first)()
    before.CopyFrom(first)
    if batch is not None:
        first.dim_value = batch
    try:
        found = inferred(bare, strict=True)
    except (onnx.shape_inference.InferenceError, ValueError):
        return None
    finally:
        first.CopyFrom(before)
    rows: list[int | None] = []
    for output in found.graph.output:
        tensor = output.type.tensor_type
        if not tensor.HasField("shape"):
            rows.append(None)
        elif len(tensor.shape.dim) > 1:
            known = tensor.shape.dim[0].WhichOneof("value") == "dim_value"
            rows.append(tensor.shape.dim[0].dim_value if known else None)
    return tuple(rows)


# ---- training mode -------------------------------------------------------------------------------------------------

_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
_BATCH_NORM_MODE, _DROPOUT_MODE = 14, 12
"""Operator sets from which on an attribute or an input says whether the operator trains."""


@dataclass(frozen=True, kw_only=True)
class TrainingMode:
    """The nodes of a graph that compute as in training, by their names and operators.

    Attributes:
        batch_norms: Those that normalise by the statistics of each batch.
        random: Those that draw random numbers at every run.
    """

    batch_norms: tuple[str, ...] = ()
    random: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, one sentence each."""
        notes = []
        if self.batch_norms:
            notes.append(
                f"in training mode: {_first_of(self.batch_norms)} normalises by the statistics of each batch, so that "
                "a picture's answer depends on its neighbours; export it in inference mode: model.eval()"
            )
        if self.random:
            notes.append(
                f"in training mode: {_first_of(self.random)} draws random numbers, so that no two runs agree; "
                "export it in inference mode: model.eval()"
            )
        return tuple(notes)


def _first_of(names: tuple[str, ...]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def training_mode(model: ModelProto) -> TrainingMode:
    """Returns which nodes of a ``ModelProto`` and of its functions compute as in training."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    groups = [(model.graph.node, opset_of(model)), *((f.node, opset_of(f)) for f in model.functions)]
    found: dict[str, list[str]] = {"batch_norms": [], "random": []}
    for nodes, opset in groups:
        every = list(all_nodes(nodes))[::-1]
        for node in every:
            if node.op_type == "Constant":
                constants.update((node.output[0], item.t) for item in node.attribute if item.HasField("t"))
        for node in every:
            if node.domain not in DEFAULT_DOMAINS:
                continue
            label = f"{node.op_type} '{node.name or node.output[0]}'"
            if node.op_type == "BatchNormalization" and _normalises_by_batch(node, opset):
                found["batch_norms"].append(label)
            elif node.op_type in _RANDOM or (node.op_type == "Dropout" and _drops(node, opset, constants)):
                found["random"].append(label)
    return TrainingMode(batch_norms=tuple(found["batch_norms"]), random=tuple(found["random"]))


def opset_of(holder: ModelProto | FunctionProto) -> int:
    """Returns the version of ONNX's own operator set that a ``ModelProto`` or a function of it uses, 0 for none."""
    return next((entry.version for entry in holder.opset_import if entry.domain in DEFAULT_DOMAINS), 0)


def _normalises_by_batch(node: NodeProto, opset: int) -> bool:
    if opset >= _BATCH_NORM_MODE:
        return any(item.name == "training_mode" and item.i for item in node.attribute)
    return sum(1 for name in node.output if name) > 1


def _drops(node: NodeProto, opset: int, constants: Mapping[str, TensorProto]) -> bool:
    if opset < _DROPOUT_MODE or len(node.input) < 3:
        return False
    ratio = _value(constants.get(node.input[1]))
    return bool(_value(constants.get(node.input[2]))) and ratio != 0


def _value(tensor: TensorProto | None) -> float | None:
    from onnx import numpy_helper

    if tensor is None or tensor.data_location == tensor.EXTERNAL or list(tensor.dims) not in ([], [1]):
        return None
    return float(numpy_helper.to_array(tensor).reshape(-1)[0])
