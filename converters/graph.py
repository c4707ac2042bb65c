"""ONNX graphs as changes of precision see them: who makes a value, who reads it, and files read and written safely."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtimes import onnx_gate, onnx_graph, onnx_plain
from runtimes.errors import BadModel, RewritingFailed, UnsupportedModel, reason

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

MAX_BYTES = 2**31 - 2**20
"""One protobuf message holds less than 2 GiB; what is converted must fit into one file."""


class Graph:
    """The main graph of a ``ModelProto`` with its values by name.

    Attributes:
        proto: The main graph.
        constants: Initialisers by name.
        producer: The node that makes each value.
        inputs: Names of the graph's inputs, without initialisers.
        outputs: Names of the graph's outputs.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.proto = model.graph
        self.refresh()

    def refresh(self) -> None:
        """Reads the graph anew after it was changed."""
        self.constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in self.proto.initializer}
        self.producer: dict[str, NodeProto] = {name: node for node in self.proto.node for name in node.output if name}
        self._readers: dict[str, list[tuple[NodeProto, int]]] = {}
        for node in self.proto.node:
            for place, name in enumerate(node.input):
                self._readers.setdefault(name, []).append((node, place))
        self.inputs = [value.name for value in self.proto.input if value.name not in self.constants]
        self.outputs = [value.name for value in self.proto.output]
        self._taken = {*self.constants, *self.producer, *(value.name for value in self.proto.input)}

    def readers(self, value: str) -> list[tuple[NodeProto, int]]:
        """Returns the nodes that read a value and at which place of their inputs."""
        return self._readers.get(value, [])

    def array(self, name: str) -> NDArray[Any] | None:
        """Returns an initialiser as an array, or None where the value is computed."""
        from onnx import numpy_helper

        tensor = self.constants.get(name)
        return None if tensor is None else np.asarray(numpy_helper.to_array(tensor))

    def add_constant(self, name: str, array: NDArray[Any]) -> str:
        """Adds an initialiser under `name`, or under a name like it where that is taken; returns the name."""
        from onnx import numpy_helper

        name = self.free_name(name)
        tensor = numpy_helper.from_array(array, name)
        self.proto.initializer.append(tensor)
        self.constants[name] = tensor
        return name

    def free_name(self, wanted: str) -> str:
        """Returns `wanted`, or a name like it that no value has yet, and takes it."""
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name

    def replace_nodes(self, nodes: Iterable[NodeProto]) -> None:
        """Puts `nodes` in place of those that are there."""
        kept = list(nodes)
        del self.proto.node[:]
        self.proto.node.extend(kept)
        self.refresh()

    def insert(self, before: Mapping[int, NodeProto], dropped: Collection[int] = ()) -> None:
        """Puts nodes before those whose ``id`` `before` names, and drops some and the constants that nothing reads."""
        nodes = []
        for node in self.proto.node:
            if id(node) in before:
                nodes.append(before[id(node)])
            if id(node) not in dropped:
                nodes.append(node)
        self.replace_nodes(nodes)
        self.drop_unused_constants()

    def drop_unused_constants(self) -> None:
        """Removes initialisers that nothing reads, in subgraphs neither."""
        used = set(self.outputs)
        for node in self.proto.node:
            used |= set(node.input) | captured(node)
        kept = [tensor for tensor in self.proto.initializer if tensor.name in used]
        if len(kept) != len(self.proto.initializer):
            dropped = {tensor.name for tensor in self.proto.initializer} - {tensor.name for tensor in kept}
            del self.proto.initializer[:]
            self.proto.initializer.extend(kept)
            # Before IR version 4 every initialiser is an input too.
            inputs = [value for value in self.proto.input if value.name not in dropped]
            del self.proto.input[:]
            self.proto.input.extend(inputs)
        self.refresh()


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Returns the value of a node's attribute, or `default` where it has none of that name."""
    from onnx import helper

    for candidate in node.attribute:
        if candidate.name == name:
            return helper.get_attribute_value(candidate)
    return default


def captured(node: NodeProto) -> set[str]:
    """Returns the names that a node's subgraphs may read from outside."""
    names: set[str] = set()
    for item in node.attribute:
        for graph in (item.g, *item.graphs):
            for inner in graph.node:
                names |= set(inner.input) | captured(inner)
            names |= {value.name for value in graph.output}
    return names


def rename_captured(node: NodeProto, names: Mapping[str, str]) -> None:
    """Renames values that a node's subgraphs read from outside, in place; ONNX lets no inner value have such a name."""
    for item in node.attribute:
        for graph in (item.g, *item.graphs):
            for inner in graph.node:
                inner.input[:] = [names.get(name, name) for name in inner.input]
                rename_captured(inner, names)
            for value in graph.output:
                value.name = names.get(value.name, value.name)


def name_of(node: NodeProto) -> str:
    """Returns what people call a node: its name, or its first output where it has none."""
    return str(node.name or node.output[0])


def load(checked: onnx_gate.CheckedModel) -> ModelProto:
    """Reads a model that passed the gate, its external data included.

    Raises:
        UnsupportedModel: It is too large to be written as one file.
    """
    size = checked.size_bytes + sum((checked.path.parent / name).stat().st_size for name in checked.external_data)
    if size > MAX_BYTES:
        raise UnsupportedModel(f"{checked.path} has {size / 2**30:.1f} GiB, more than fits into one ONNX file (2 GiB)")
    return onnx_gate.load_model(checked)


def at_opset(model: ModelProto, opset: int, *, what: str) -> ModelProto:
    """Returns the model in at least that operator set.

    Raises:
        UnsupportedModel: ONNX can't convert it; says why.
    """
    from onnx import version_converter

    present = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if present >= opset:
        return model
    try:
        converted = version_converter.convert_version(model, opset)
    except Exception as error:
        raise UnsupportedModel(
            f"{what} has opset {present} and can't be brought to {opset}, which this precision needs: {reason(error)}",
            fix=f"export it again with opset {opset}",
        ) from error
    # The converter renames nothing and keeps no metadata.
    if not converted.metadata_props:
        converted.metadata_props.extend(model.metadata_props)
    return converted


def set_metadata(model: ModelProto, values: Mapping[str, str]) -> None:
    """Sets entries of ``metadata_props``; the others stay."""
    found = {entry.key: entry.value for entry in model.metadata_props} | dict(values)
    del model.metadata_props[:]
    for key, value in found.items():
        model.metadata_props.add(key=key, value=value)


def plain(model: ModelProto, *, what: str, opset: int = 1) -> ModelProto:
    """Returns a copy in the form that rewriting knows: ``onnx_plain.plain``, and of at least that operator set.

    Constants that the graph casts to float32 are stored so, and node names are unique.

    Raises:
        UnsupportedModel: ONNX can't bring it to that operator set.
        BadModel: It has operators that ONNX does not know, so that the types of its values can't be told.
    """
    # Functions first: ONNX's converter of operator sets leaves their bodies behind.
    copy = at_opset(onnx_plain.plain(model), opset, what=what)
    onnx_plain.constants_from_nodes(copy)  # the converter writes new ones
    _fold_casts(copy)
    _name_nodes_apart(copy)
    onnx_plain.drop_types_of_initialisers(copy)
    _refuse_unknown_operators(copy, what)
    return copy


def _fold_casts(model: ModelProto) -> None:
    """Replaces a constant of a narrower or wider float that the graph casts to float32 by what comes out."""
    from onnx import TensorProto, numpy_helper

    graph = model.graph
    floats = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type in floats}
    outputs = {value.name for value in graph.output}
    kept = []
    for node in graph.node:
        source = constants.get(node.input[0]) if node.op_type == "Cast" and node.domain == "" else None
        if source is None or attribute(node, "to") != TensorProto.FLOAT or node.output[0] in outputs:
            kept.append(node)
            continue
        wide = numpy_helper.to_array(source).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(wide, node.output[0]))
    if len(kept) != len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)
        Graph(model).drop_unused_constants()


def _name_nodes_apart(model: ModelProto) -> None:
    """Gives nodes of one name different ones: bodies of functions bring theirs to every place of a call."""
    taken: set[str] = set()
    for node in onnx_graph.all_nodes(model.graph.node):
        name, number = node.name, 1
        while node.name and node.name in taken:
            number += 1
            node.name = f"{name}_{number}"
        taken.add(node.name)


def _refuse_unknown_operators(model: ModelProto, what: str) -> None:
    import onnx

    found: dict[tuple[str, str], list[str]] = {}
    for node in onnx_graph.all_nodes(model.graph.node):
        if node.domain and not onnx.defs.has(node.op_type, node.domain):
            found.setdefault((node.domain, node.op_type), []).extend(name for name in node.output if name)
    if not found:
        return
    types = element_types(model)
    if any(name not in types for outputs in found.values() for name in outputs):
        named = ", ".join(f"{operator} ({domain})" for domain, operator in found)
        optimised = any(domain.startswith("com.microsoft") for domain, _ in found)
        raise BadModel(
            f"{what} has operators that are not part of ONNX, so that the types of its values can't be told: {named}"
            + ("; ONNX Runtime writes such a file when it optimises a model" if optimised else ""),
            fix="convert the original model, from before it was optimised" if optimised else None,
        )


def _inferred(model: ModelProto) -> ModelProto:
    bare = onnx_graph.without_weights(model)
    found = onnx_graph.propagated(bare)
    ranks = _ranks_of_products(model, found)
    if not ranks:
        return found
    bare.graph.value_info.extend(ranks)
    return onnx_graph.propagated(bare)


def _ranks_of_products(model: ModelProto, inferred: ModelProto) -> list[ValueInfoProto]:
    """Returns how many axes convolutions and Gemms read and make where shape inference lost track.

    Behind a reshape to a computed shape, or a branch, it knows nothing any more; but a convolution has as many axes as
    its weights.
    """
    from onnx import TensorProto, helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    known = {value.name for value in values if value.type.tensor_type.HasField("shape")} | set(weights)
    ranks: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 1 and node.input[1] in weights:
            rank = len(weights[node.input[1]].dims)
            ranks |= {name: rank for name in (node.input[0], node.output[0]) if name not in known}
    return [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
        for name, rank in ranks.items()
        if name not in {value.name for value in (*model.graph.input, *model.graph.output)}
    ]


def element_types(model: ModelProto) -> dict[str, int]:
    """Returns the ONNX element type of every value whose type shape inference finds."""
    inferred = _inferred(model)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    found = {value.name: int(value.type.tensor_type.elem_type) for value in values if value.type.tensor_type.elem_type}
    return found | {tensor.name: int(tensor.data_type) for tensor in model.graph.initializer}


def shapes(model: ModelProto) -> dict[str, tuple[int | str | None, ...]]:
    """Returns the shape of every value that shape inference finds; an open extent is a name or None."""
    inferred = _inferred(model)
    found: dict[str, tuple[int | str | None, ...]] = {}
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            found[value.name] = tuple(
                d.dim_value if d.WhichOneof("value") == "dim_value" else d.dim_param or None for d in kind.shape.dim
            )
    for tensor in model.graph.initializer:
        found[tensor.name] = tuple(tensor.dims)
    return found


def write(path: Path, model: ModelProto, manifest: Mapping[str, Any]) -> onnx_gate.CheckedModel:
    """Writes a model as one self-contained file with its manifest, once it has passed the gate.

    Raises:
        FileProblem: The file can't be written; what was there before is untouched.
        RewritingFailed: The gate refuses it, see ``draft``.
    """
    with onnx_gate.atomic_model(path, manifest) as temporary:
        draft(temporary, model)
    return onnx_gate.check_onnx(path)


def draft(path: Path, model: ModelProto) -> onnx_gate.CheckedModel:
    """Writes a graph that was rewritten here to a file of ours, and passes it through the gate.

    Raises:
        RewritingFailed: The gate refuses it. The model that it was made from had passed, so that this is a fault of
            ours and says nothing of that model.
    """
    onnx_plain.drop_types_of_initialisers(model)
    path.write_bytes(model.SerializeToString())
    try:
        return onnx_gate.check_onnx(path)
    except BadModel as error:
        raise RewritingFailed(f"a graph that was rewritten here did not pass the gate: {error.message}") from error


def expose(model: ModelProto, names: Iterable[str]) -> ModelProto:
    """Returns a copy of a model whose outputs are the values `names`.

    Raises:
        UnsupportedModel: Shape inference can't tell the type of one of them.
    """
    changed, inferred = deepcopy(model), _inferred(model)
    known = {value.name: value for value in (*inferred.graph.value_info, *model.graph.output)}
    del changed.graph.output[:]
    for name in names:
        if name not in known or not known[name].type.tensor_type.HasField("shape"):
            raise UnsupportedModel(f"the shape of the value '{name}' can't be told", fix="export the model again")
        changed.graph.output.append(known[name])
    return changed


def is_float32(types: Mapping[str, int], name: str) -> bool:
    """Returns whether a value is known to hold float32."""
    from onnx import TensorProto

    return types.get(name) == TensorProto.FLOAT
