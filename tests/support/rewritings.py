"""One network written in many ways: changes of an ONNX file that leave its function as it is, to the last bit in exact
arithmetic. They are what exporters, optimisers and storage tools do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Rewriting = Callable[[ModelProto], None]


def plain(model: ModelProto) -> ModelProto:
    """Returns a copy without metadata whose weights fit into half precision, so that they can be stored in it."""
    found = deepcopy(model)
    del found.metadata_props[:]
    del found.graph.value_info[:]
    for node in found.graph.node:
        del node.metadata_props[:]
    for tensor in found.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16).astype(np.float32), tensor.name))
    return found


def rewritten(model: ModelProto, name: str) -> ModelProto:
    """Returns a copy of a plain model, written in the way `name` of ``REWRITINGS``."""
    found = deepcopy(model)
    REWRITINGS[name](found)
    onnx.checker.check_model(found)
    return found


def with_fault(model: ModelProto, node: str) -> ModelProto:
    """Returns a copy of a model with one channel of a convolution's weights off by 1 %."""
    found = deepcopy(model)
    name = next(n for n in found.graph.node if n.name == node).input[1]
    tensor = next(t for t in found.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values[3] = (values[3] * 1.01).astype(np.float16)  # an odd number of half's units, which all forms can store
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return found


# ---- the weights -----------------------------------------------------------------------------------------------------


def _weights(model: ModelProto) -> Iterator[tuple[TensorProto, np.ndarray]]:
    for tensor in list(model.graph.initializer):
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            yield tensor, numpy_helper.to_array(tensor)


def _in_front(model: ModelProto, nodes: list[NodeProto]) -> None:
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])


def constant_nodes(model: ModelProto) -> None:
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    del model.graph.initializer[:]
    _in_front(model, nodes)


def _stored(model: ModelProto, store: Callable[[np.ndarray], np.ndarray], read: Callable[..., list[NodeProto]]) -> None:
    nodes = []
    for tensor, array in _weights(model):
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(store(array)), f"{name}.stored"))
        nodes += read(model, f"{name}.stored", name, array)
    _in_front(model, nodes)


def transposed(model: ModelProto) -> None:
    _stored(model, lambda a: a.T, lambda _, stored, name, __: [helper.make_node("Transpose", [stored], [name])])


def flattened(model: ModelProto) -> None:
    def read(model: ModelProto, stored: str, name: str, array: np.ndarray) -> list[NodeProto]:
        model.graph.initializer.append(numpy_helper.from_array(np.array(array.shape, np.int64), f"{name}.shape"))
        same = helper.make_node("Identity", [f"{name}.shape"], [f"{name}.same"])
        return [same, helper.make_node("Reshape", [stored, f"{name}.same"], [name])]

    _stored(model, np.ravel, read)


def stored_in_half(model: ModelProto) -> None:
    cast = TensorProto.FLOAT
    _stored(
        model,
        lambda a: a.astype(np.float16),
        lambda _, stored, name, __: [helper.make_node("Cast", [stored], [name], to=cast)],
    )


def dequantised(model: ModelProto) -> None:
    """Every number of half precision is a multiple of 2^-24."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(2.0**-24, np.float32), "unit"))
    _stored(
        model,
        lambda a: (a.astype(np.float64) * 2**24).astype(np.int32),
        lambda _, stored, name, __: [helper.make_node("DequantizeLinear", [stored, "unit"], [name])],
    )


# ---- the nodes -------------------------------------------------------------------------------------------------------


def _each(model: ModelProto, operators: set[str], change: Callable[[NodeProto], list[NodeProto]]) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        model.graph.node.extend(change(node) if node.op_type in operators else [node])


def _constant(model: ModelProto, name: str, array: np.ndarray) -> str:
    model.graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def _values(model: ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def local_functions(model: ModelProto) -> None:
    """Every convolution is a function of its own, which has its weights inside."""
    opsets = list(model.opset_import)

    def change(node: NodeProto) -> list[NodeProto]:
        tensors = {name: next(t for t in model.graph.initializer if t.name == name) for name in node.input[1:]}
        inner = [helper.make_node("Constant", [], [name], value=tensor) for name, tensor in tensors.items()]
        for tensor in tensors.values():
            model.graph.initializer.remove(tensor)
        name = f"f_{node.name}".replace(".", "_")
        body = [*inner, helper.make_node("Conv", node.input, ["out"])]
        body[-1].attribute.extend(node.attribute)
        body[-1].input[0] = "in"
        model.functions.append(helper.make_function("own", name, ["in"], ["out"], body, opsets))
        return [helper.make_node(name, node.input[:1], node.output, name=node.name, domain="own")]

    _each(model, {"Conv"}, change)
    model.opset_import.append(helper.make_opsetid("own", 1))


def _halved(model: ModelProto, node: NodeProto, bias: np.ndarray | None) -> tuple[NodeProto, np.ndarray]:
    """Returns a convolution with half the weights and another bias, and the bias that it had."""
    weights = _values(model, node.input[1])
    had = _values(model, node.input[2]) if len(node.input) > 2 else np.zeros(len(weights), np.float32)
    inputs = [node.input[0], _constant(model, f"{node.name}.half", weights / 2)]
    if bias is not None:
        inputs.append(_constant(model, f"{node.name}.mean", np.resize(bias, len(weights)).astype(np.float32)))
    conv = helper.make_node("Conv", inputs, [f"{node.output[0]}.raw"], name=node.name)
    conv.attribute.extend(node.attribute)
    return conv, had


def unfolded_norms(model: ModelProto) -> None:
    def change(node: NodeProto) -> list[NodeProto]:
        conv, shift = _halved(model, node, np.array([0.125, -0.25]))
        of, count = node.name, len(shift)
        parts = [
            _constant(model, f"{of}.scale", np.full(count, 2, np.float32)),
            _constant(model, f"{of}.shift", shift),
            conv.input[2],
            _constant(model, f"{of}.variance", np.ones(count, np.float32)),
        ]
        norm = helper.make_node("BatchNormalization", [conv.output[0], *parts], node.output, epsilon=0.0)
        return [conv, norm]

    _each(model, {"Conv"}, change)


def scales_and_shifts(model: ModelProto) -> None:
    def change(node: NodeProto) -> list[NodeProto]:
        conv, shift = _halved(model, node, None)
        two = _constant(model, f"{node.name}.two", np.full((len(shift), 1, 1), 2, np.float32))
        added = _constant(model, f"{node.name}.shift", shift.reshape(-1, 1, 1))
        out = node.output[0]
        return [
            conv,
            helper.make_node("Mul", [conv.output[0], two], [f"{out}.scaled"]),
            helper.make_node("Add", [f"{out}.scaled", added], [out]),
        ]

    _each(model, {"Conv"}, change)


def matrix_products(model: ModelProto) -> None:
    def change(node: NodeProto) -> list[NodeProto]:
        weights = _constant(model, f"{node.name}.turned", np.ascontiguousarray(_values(model, node.input[1]).T))
        product = f"{node.output[0]}.product"
        return [
            helper.make_node("MatMul", [node.input[0], weights], [product], name=node.name),
            helper.make_node("Add", [node.input[2], product], node.output),
        ]

    _each(model, {"Gemm"}, change)


def pools_as_sums(model: ModelProto) -> None:
    """Where the picture ends as 4×4 or 8×8."""
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }

    def change(node: NodeProto) -> list[NodeProto]:
        axes = _constant(model, "sum.axes", np.array([2, 3], np.int64))
        share = _constant(model, "sum.share", np.array(1 / np.prod(shapes[node.input[0]][2:]), np.float32))
        keeps = int(node.op_type == "GlobalAveragePool")
        return [
            helper.make_node("ReduceSum", [node.input[0], axes], ["sum"], keepdims=keeps),
            helper.make_node("Mul", ["sum", share], node.output),
        ]

    _each(model, {"ReduceMean", "GlobalAveragePool"}, change)


def idle_nodes(model: ModelProto) -> None:
    """Exporters leave nodes that do nothing: copies, dropout, casts to what a value is already."""

    def change(node: NodeProto) -> list[NodeProto]:
        out = node.output[0]
        inner = deepcopy(node)
        inner.output[0] = f"{out}.0"
        cast = TensorProto.FLOAT
        return [
            inner,
            helper.make_node("Identity", [f"{out}.0"], [f"{out}.1"]),
            helper.make_node("Dropout", [f"{out}.1"], [f"{out}.2"]),
            helper.make_node("Cast", [f"{out}.2"], [out], to=cast),
        ]

    _each(model, {"Conv", "Add", "Relu", "Gemm"}, change)


def open_size(model: ModelProto) -> None:
    for dimension, name in zip(model.graph.input[0].type.tensor_type.shape.dim, ("n", None, "h", "w"), strict=True):
        if name is not None:
            dimension.Clear()
            dimension.dim_param = name


def initialisers_as_inputs(model: ModelProto) -> None:
    """As in files of IR version 3, and with the paddings as nodes of their own."""

    def change(node: NodeProto) -> list[NodeProto]:
        pads = next((list(a.ints) for a in node.attribute if a.name == "pads"), [0] * 4)
        if not any(pads):
            return [node]
        amounts = _constant(model, f"{node.name}.pads", np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64))
        inner = deepcopy(node)
        del inner.attribute[:]
        inner.attribute.extend(a for a in node.attribute if a.name != "pads")
        inner.input[0] = f"{node.name}.padded"
        return [helper.make_node("Pad", [node.input[0], amounts], [inner.input[0]]), inner]

    _each(model, {"Conv"}, change)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


REWRITINGS: dict[str, Rewriting] = {
    "constant nodes": constant_nodes,
    "weights transposed": transposed,
    "weights flattened": flattened,
    "weights stored in half": stored_in_half,
    "weights dequantised": dequantised,
    "local functions": local_functions,
    "norms unfolded": unfolded_norms,
    "scales and shifts": scales_and_shifts,
    "matrix products": matrix_products,
    "pools as sums": pools_as_sums,
    "idle nodes": idle_nodes,
    "open size": open_size,
    "initialisers as inputs": initialisers_as_inputs,
}


def foreign_net(path: Path) -> Path:
    """Writes a residual network as another tool would: batch norms as nodes, pictures of 32×32 as ``data``."""
    random = np.random.default_rng(5)
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 18]>
        net (float[n,3,32,32] data) => (float[n,10] scores) {
          c0 = Conv <pads = [1,1,1,1], strides = [2,2]> (data, w0)
          n0 = BatchNormalization (c0, g0, b0, m0, v0) r0 = Relu (n0)
          p0 = MaxPool <kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1]> (r0)
          c1 = Conv <pads = [1,1,1,1]> (p0, w1)
          n1 = BatchNormalization (c1, g1, b1, m1, v1) r1 = Relu (n1)
          c2 = Conv <pads = [1,1,1,1]> (r1, w2)
          n2 = BatchNormalization (c2, g2, b2, m2, v2)
          a0 = Add (n2, p0) r2 = Relu (a0)
          pooled = GlobalAveragePool (r2) flat = Flatten (pooled)
          scores = Gemm <transB = 1> (flat, fc, fb)
        }""")
    arrays = {"fc": random.standard_normal((10, 16)) / 2, "fb": random.standard_normal(10) / 10}
    for index, channels in enumerate((3, 16, 16)):
        arrays[f"w{index}"] = random.standard_normal((16, channels, 3, 3)) * np.sqrt(2 / (9 * channels))
        arrays[f"g{index}"] = 1 + random.standard_normal(16) / 10
        arrays[f"b{index}"] = random.standard_normal(16) / 10
        arrays[f"m{index}"] = random.standard_normal(16) / 10
        arrays[f"v{index}"] = random.uniform(0.5, 1.5, 16)
    for node in model.graph.node:
        node.name = node.output[0]
    model.graph.initializer.extend(
        numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()
    )
    onnx.save(model, path)
    return path
