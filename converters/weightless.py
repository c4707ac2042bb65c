"""A graph without its weights: as fast as the network that it was made from, a hundredth of its size, no secret of it.

Every large weight becomes a ConstantOfShape of the same shape, which libraries fold when they load the file; from there
on they have the same products of the same shapes to compute. All weights of a product are one over its fan-in, so that
values stay of the size of the inputs and no product meets a denormal number.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtimes import files, onnx_gate, onnx_plain

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto

KEPT_ELEMENTS = 1024
"""Smaller weights stay as they are: a bias, a scale, the shape of a Reshape."""


def without_weights(path: Path, target: Path) -> Path:
    """Writes a float32 graph, or one whose weights are read through DequantizeLinear, without its weights.

    Names in its metadata are dropped with them. Raises ``BadModel`` where the file does not pass the gate.
    """
    model = onnx_plain.plain(onnx_gate.load_model(onnx_gate.check_onnx(path)))
    graph = model.graph
    large = {tensor.name: tensor for tensor in graph.initializer if np.prod(tensor.dims, dtype=object) > KEPT_ELEMENTS}
    dequantised = [
        node for node in graph.node if node.op_type == "DequantizeLinear" and node.input and node.input[0] in large
    ]
    made: list[NodeProto] = []
    for node in dequantised:
        made += _constant(graph, large[node.input[0]], node.output[0])
    floats = [tensor for tensor in large.values() if tensor.data_type == _float32()]
    for tensor in floats:
        made += _constant(graph, tensor, tensor.name)
    rest = [node for node in graph.node if node not in dequantised]
    del graph.node[:]
    graph.node.extend([*made, *rest])
    read = {name for node in graph.node for name in node.input}
    gone = {tensor.name for tensor in floats}
    kept = [tensor for tensor in graph.initializer if tensor.name in read and tensor.name not in gone]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:], model.metadata_props[:]
    files.write_bytes(target, model.SerializeToString(deterministic=True))
    onnx_gate.check_onnx(target)
    return target


def _float32() -> int:
    from onnx import TensorProto

    return int(TensorProto.FLOAT)


def _constant(graph: GraphProto, tensor: TensorProto, output: str) -> list[NodeProto]:
    """Adds the shape of a weight to the graph; returns the node that makes a constant of that shape."""
    from onnx import helper, numpy_helper

    shape = f"{output}.shape"
    graph.initializer.append(numpy_helper.from_array(np.asarray(tensor.dims, np.int64), shape))
    fan_in = int(np.prod(tensor.dims[1:], dtype=np.int64)) if len(tensor.dims) > 1 else 1
    value = numpy_helper.from_array(np.asarray([1 / fan_in], np.float32))
    return [helper.make_node("ConstantOfShape", [shape], [output], name=f"{output}.constant", value=value)]
