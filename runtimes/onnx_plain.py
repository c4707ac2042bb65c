"""ONNX graphs in one plain form: what computes the same is written in one way, for the code that reads and rewrites."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runtimes import onnx_graph

if TYPE_CHECKING:
    from onnx import ModelProto

INITIALISERS_ALONE = 4
"""The IR version from which an initialiser need not be an input of the graph too (onnx.proto, ``IR_VERSION``)."""

_CONSTANTS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
"""Element types by the attribute of Constant that holds plain numbers."""


def plain(model: ModelProto) -> ModelProto:
    """Returns a copy of a model that computes the same and is written in one way.

    The default domain has its short name, local functions stand where they are called, and every constant is a dense
    initialiser that no input repeats.
    """
    from onnx import inliner

    copy = type(model)()
    copy.CopyFrom(model)
    onnx_graph.respell(copy)
    if copy.functions:
        metadata = list(copy.metadata_props)
        copy = inliner.inline_local_functions(copy, convert_version=True)
        if not copy.metadata_props:
            copy.metadata_props.extend(metadata)
    onnx_graph.fill_in(copy)
    constants_from_nodes(copy)
    return copy


def constants_from_nodes(model: ModelProto) -> None:
    """Turns Constant nodes into initialisers, in place, whatever attribute holds the value; none is an input too."""
    from onnx import helper, numpy_helper

    graph = model.graph
    model.ir_version = max(model.ir_version, INITIALISERS_ALONE)  # before, new ones would have to be inputs too
    named = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in named]
    del graph.input[:]
    graph.input.extend(inputs)
    kept = []
    for node in graph.node:
        held = next(iter(node.attribute), None) if node.op_type == "Constant" and node.domain == "" else None
        dtype = None if held is None else _CONSTANTS.get(held.name)
        if held is None or (dtype is None and held.name not in ("value", "sparse_value")):
            kept.append(node)
            continue
        tensor = graph.initializer.add()
        if held.name == "value":
            tensor.CopyFrom(held.t)
        elif held.name == "sparse_value":
            tensor.CopyFrom(onnx_graph.dense(held.sparse_tensor))
        else:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(helper.get_attribute_value(held), dtype)))
        tensor.name = node.output[0]
    if len(kept) != len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)


def drop_types_of_initialisers(model: ModelProto) -> None:
    """Removes what a graph says of the types of its initialisers, in place: they say it themselves.

    A tool that changes an initialiser, as ONNX Runtime's quantiser does, would leave the old type behind.
    """
    held = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.value_info if value.name not in held]
    if len(kept) != len(model.graph.value_info):
        del model.graph.value_info[:]
        model.graph.value_info.extend(kept)
