"""One small network written in the ways that other tools write theirs: each form computes what ``residual`` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from support import precision_models


def write(path: Path, form: str, *, opset: int = 13) -> Path:
    """Writes ``precision_models.residual`` in a form of ``FORMS``."""
    model = onnx.load(precision_models.residual(path, opset=opset))
    FORMS[form](model)
    path.write_bytes(model.SerializeToString())
    return path


def _node(model: ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def _before(model: ModelProto, name: str, *nodes: onnx.NodeProto) -> None:
    place = [node.name for node in model.graph.node].index(name)
    for node in reversed(nodes):
        model.graph.node.insert(place, node)


def _array(model: ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def _replace(model: ModelProto, name: str, *new: TensorProto) -> None:
    kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *new])


def _scalar_constants(model: ModelProto) -> None:
    """Relu as Clip with scalar bounds, and a division by a scalar that a Constant node holds."""
    relu = _node(model, "relu1")
    relu.op_type = "Clip"
    relu.input.extend(["low", "high"])
    bounds = {"low": np.float32(0), "high": np.float32(1e4), "half": np.float32(0.5)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in bounds.items())
    _node(model, "fc").input[0] = "scaled"
    _before(
        model,
        "fc",
        helper.make_node("Constant", [], ["two"], name="two", value_float=2.0),
        helper.make_node("Div", ["f", "two"], ["halved"], name="divide"),
        helper.make_node("Div", ["halved", "half"], ["scaled"], name="divide_again"),
    )


def _stored_as_half(model: ModelProto) -> None:
    """Weights that are stored as float16 and computed with in float32."""
    for node in [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]:
        name = node.input[1]
        _replace(model, name, numpy_helper.from_array(_array(model, name).astype(np.float16), name))
        node.input[1] = f"{name}.wide"
        cast = helper.make_node("Cast", [name], [node.input[1]], name=node.input[1], to=TensorProto.FLOAT)
        _before(model, node.name, cast)


def _function(model: ModelProto) -> None:
    """A convolution and its Relu in a local function, called twice."""
    opset = [helper.make_opsetid("", model.opset_import[0].version)]
    body = [
        helper.make_node("Conv", ["a", "w", "b"], ["c"], name="inner", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"], name="inner_relu"),
    ]
    model.functions.append(helper.make_function("my.library", "ConvRelu", ["a", "w", "b"], ["d"], body, opset))
    model.opset_import.append(helper.make_opsetid("my.library", 1))
    for conv, relu in (("conv1", "relu1"), ("block.conv1", "block.relu1")):
        node = _node(model, conv)
        node.op_type, node.domain = "ConvRelu", "my.library"
        del node.attribute[:]
        node.output[0] = _node(model, relu).output[0]
        model.graph.node.remove(_node(model, relu))


def _branch(model: ModelProto) -> None:
    """The pooled features come out of an If, whose branches read a value from outside and lose its shape."""
    flatten = _node(model, "flatten")
    model.graph.node.remove(flatten)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(3, np.int64), "three"))
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(1, np.int64), "axis"))

    def branch(name: str, node: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

    squeeze = helper.make_node("Squeeze", ["g", "axes"], ["then"], name="squeeze")
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([2, 3], np.int64), "axes"))
    reshape = helper.make_node("Reshape", ["g", "shape"], ["else"], name="reshape")
    _before(
        model,
        "fc",
        helper.make_node("Shape", ["x"], ["extents"], name="extents"),
        helper.make_node("Gather", ["extents", "axis"], ["channels"], name="channels"),
        helper.make_node("Equal", ["channels", "three"], ["coloured"], name="coloured"),
        helper.make_node(
            "If",
            ["coloured"],
            ["f"],
            name="branch",
            then_branch=branch("then", squeeze),
            else_branch=branch("else", reshape),
        ),
    )


def _sparse(model: ModelProto) -> None:
    """The weights of the last layer as a sparse initialiser."""
    weight = _array(model, "wfc")
    _replace(model, "wfc")
    values = numpy_helper.from_array(weight.reshape(-1), "wfc")
    places = numpy_helper.from_array(np.arange(weight.size, dtype=np.int64), "wfc.indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, weight.shape))


def _long_domain(model: ModelProto) -> None:
    model.opset_import[0].domain = "ai.onnx"


def _inputs_too(model: ModelProto) -> None:
    """Initialisers that are inputs too, as before IR version 4."""
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


def _typed_weights(model: ModelProto) -> None:
    """What the graph says of the types of its initialisers."""
    for tensor in model.graph.initializer:
        model.graph.value_info.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


def _computed_shape(model: ModelProto) -> None:
    """A reshape to a computed shape, behind which shape inference knows no extent and no rank."""
    node = _node(model, "block.conv1")
    node.input[0] = "reshaped"
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(0, np.int64), "zero"))
    _before(
        model,
        "block.conv1",
        helper.make_node("Shape", ["p1"], ["p1.shape"], name="shape_of"),
        helper.make_node("NonZero", ["p1.shape"], ["places"], name="places"),
        helper.make_node("Gather", ["places", "zero"], ["all"], name="all"),
        helper.make_node("Gather", ["p1.shape", "all"], ["computed"], name="computed"),
        helper.make_node("Reshape", ["p1", "computed"], ["reshaped"], name="reshape"),
    )


FORMS: dict[str, Callable[[ModelProto], None]] = {
    "scalar constants": _scalar_constants,
    "weights stored as fp16": _stored_as_half,
    "local function": _function,
    "If": _branch,
    "sparse initialiser": _sparse,
    "domain ai.onnx": _long_domain,
    "initialisers as inputs": _inputs_too,
    "types of initialisers": _typed_weights,
    "computed shape": _computed_shape,
}


def optimised(path: Path) -> Path:
    """Writes the network as ONNX Runtime does when it optimises: with an operator of its own."""
    model = onnx.load(precision_models.residual(path))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    node, relu = _node(model, "conv1"), _node(model, "relu1")
    node.op_type, node.domain = "FusedConv", "com.microsoft"
    node.attribute.append(helper.make_attribute("activation", "Relu"))
    node.output[0] = relu.output[0]
    model.graph.node.remove(relu)
    path.write_bytes(model.SerializeToString())
    return path
