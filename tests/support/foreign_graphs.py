"""Small networks as other exporters write them: one plain network, and what changes it into each kind."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE, CLASSES, CHANNELS = 16, 4, 6
Change = Callable[[onnx.ModelProto], None]


def network(*, opset: int = 18, ir_version: int = 9, dtype: type = np.float32) -> onnx.ModelProto:
    """A network from ``x`` [n, 3, 16, 16] to ``y`` [n, 4]: convolution, batch norm, ReLU, pooling, head."""
    random = np.random.default_rng(0)
    arrays = {
        "w": random.standard_normal((CHANNELS, 3, 3, 3)),
        "gamma": 1 + 0.1 * random.standard_normal(CHANNELS),
        "beta": 0.1 * random.standard_normal(CHANNELS),
        "mean": 0.1 * random.standard_normal(CHANNELS),
        "var": 0.5 + random.random(CHANNELS),
        "f": random.standard_normal((CLASSES, CHANNELS)),
        "b": random.standard_normal(CLASSES),
    }
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"], name="norm"),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["v"], name="flat", axis=1),
        helper.make_node("Gemm", ["v", "f", "b"], ["y"], name="head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("x", element, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", element, ["n", CLASSES])],
        [numpy_helper.from_array(array.astype(dtype), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def written(path: Path, *changes: Change, **how: int | type) -> Path:
    """Writes the network with some changes."""
    model = network(**how)  # type: ignore[arg-type]
    for change in changes:
        change(model)
    path.write_bytes(model.SerializeToString())
    return path


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(each for each in model.graph.node if each.name == name)


def input_dims(*extents: int | str | None) -> Change:
    def change(model: onnx.ModelProto) -> None:
        for value, wanted in ((model.graph.input[0], extents), (model.graph.output[0], (extents[0], CLASSES))):
            element = value.type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(value.name, element, wanted))

    return change


def add_constant(model: onnx.ModelProto, name: str, value: object, dtype: type = np.int64) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))


def reshaped(*shape: int) -> Change:
    """The flattening before the head, as a reshape to a constant shape."""

    def change(model: onnx.ModelProto) -> None:
        flat = node(model, "flat")
        flat.op_type = "Reshape"
        del flat.attribute[:]
        flat.input.append("shape")
        add_constant(model, "shape", shape)

    return change


def _append(model: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    head = node(model, "head")
    head.output[0] = "logits"
    model.graph.node.extend(nodes)


def joined_by_computed_shape(model: onnx.ModelProto) -> None:
    """All rows become one, by a shape that only a run knows."""
    add_constant(model, "none", 0)
    add_constant(model, "one row", [1, -1])
    _append(
        model,
        helper.make_node("Shape", ["logits"], ["s"]),
        helper.make_node("Mul", ["s", "none"], ["zeros"]),
        helper.make_node("Add", ["zeros", "one row"], ["computed"]),
        helper.make_node("Reshape", ["logits", "computed"], ["y"]),
    )
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "many"


def flattened_by_computed_shape(model: onnx.ModelProto) -> None:
    """``x.view(x.size(0), -1)`` as torch's older exporter writes it."""
    add_constant(model, "zero", [0])
    add_constant(model, "rest", [-1])
    place = [each.name for each in model.graph.node].index("flat")
    flat = model.graph.node[place]
    flat.op_type = "Reshape"
    del flat.attribute[:]
    flat.input.append("computed")
    nodes = [
        helper.make_node("Shape", ["g"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["size"]),
        helper.make_node("Concat", ["size", "rest"], ["computed"], axis=0),
    ]
    for offset, each in enumerate(nodes):
        model.graph.node.insert(place + offset, each)


def flattened_by_if(model: onnx.ModelProto) -> None:
    branches = {
        name: helper.make_graph(
            [helper.make_node(operator, ["g", *more], [name], **{"axis": 1} if operator == "Flatten" else {})],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name, operator, more in (("then_branch", "Flatten", ()), ("else_branch", "Squeeze", ("sides",)))
    }
    add_constant(model, "sides", [2, 3])
    add_constant(model, "yes", True, bool)
    flat = node(model, "flat")
    flat.CopyFrom(helper.make_node("If", ["yes"], ["v"], name="flat", **branches))


def without_output_shape(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.ClearField("shape")


def without_graph_name(model: onnx.ModelProto) -> None:
    model.graph.name = ""


def written_out_domain(model: onnx.ModelProto) -> None:
    model.opset_import[0].domain = "ai.onnx"
    for each in model.graph.node:
        each.domain = "ai.onnx" if each.name in ("conv", "head") else ""


def sparse_head(model: onnx.ModelProto) -> None:
    (dense,) = (tensor for tensor in model.graph.initializer if tensor.name == "f")
    array = numpy_helper.to_array(dense)
    places = np.flatnonzero(np.abs(array) > 0.3)
    sparse = onnx.SparseTensorProto(dims=array.shape)
    sparse.values.CopyFrom(numpy_helper.from_array(array.reshape(-1)[places], "f"))
    sparse.indices.CopyFrom(numpy_helper.from_array(places, "places"))
    model.graph.initializer.remove(dense)
    model.graph.sparse_initializer.append(sparse)


def statistics_of_positions(model: onnx.ModelProto) -> None:
    """``spatial=0``, as MXNet wrote it, with statistics of channels."""
    node(model, "norm").attribute.append(helper.make_attribute("spatial", 0))


def norm_in_training(model: onnx.ModelProto) -> None:
    norm = node(model, "norm")
    if model.opset_import[0].version >= 14:
        norm.attribute.append(helper.make_attribute("training_mode", 1))
        norm.output.extend(["running mean", "running var"])
    else:
        norm.output.extend(["mean out", "var out", "saved mean", "saved var"])


def dropout(*, training: bool, ratio: float = 0.5) -> Change:
    def change(model: onnx.ModelProto) -> None:
        add_constant(model, "ratio", ratio, np.float32)
        add_constant(model, "training", training, bool)
        _append(model, helper.make_node("Dropout", ["logits", "ratio", "training"], ["y"], name="drop"))

    return change


def noise(model: onnx.ModelProto) -> None:
    _append(
        model,
        helper.make_node("RandomNormalLike", ["logits"], ["noise"], name="noise"),
        helper.make_node("Add", ["logits", "noise"], ["y"]),
    )


# ---- a few hundred bytes that mean gigabytes -----------------------------------------------------------------------

MANY = 20_000_000


def _vector(nodes: list[onnx.NodeProto], constants: dict[str, object], *, long: int | None = None) -> onnx.ModelProto:
    """A graph whose nodes make the vector ``v``, one element of which is the output."""
    graph = helper.make_graph(
        [*nodes, helper.make_node("Gather", ["v", "first"], ["y"])],
        "long",
        [helper.make_tensor_value_info("v" if long else "x", TensorProto.INT64, [long or "n"])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [1])],
        [
            numpy_helper.from_array(np.array(value, np.int64), name)
            for name, value in {"first": [0], **constants}.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _filled(shape: str, output: str) -> onnx.NodeProto:
    one = helper.make_tensor("", TensorProto.INT64, [1], [1])
    return helper.make_node("ConstantOfShape", [shape], [output], value=one)


def _doubled(times: int, *, constant: bool = False) -> onnx.ModelProto:
    names = ["v0", *(f"v{step}" for step in range(1, times)), "v"]
    return _vector(
        [
            helper.make_node("Shape", ["x"], ["s" if constant else "v0"]),
            *(helper.make_node("Concat", [a] * 2, [b], axis=0) for a, b in itertools.pairwise(names)),
        ],
        {"v0": [1]} if constant else {},
    )


LONG: dict[str, Callable[[], onnx.ModelProto]] = {
    "input": lambda: _vector([], {}, long=MANY),
    "ConstantOfShape": lambda: _vector([_filled("s", "u"), helper.make_node("Add", ["u", "u"], ["v"])], {"s": [MANY]}),
    "Range": lambda: _vector([helper.make_node("Range", ["a", "b", "c"], ["v"])], {"a": 0, "b": MANY, "c": 1}),
    "Expand": lambda: _vector([helper.make_node("Expand", ["a", "s"], ["v"])], {"a": [1], "s": [MANY]}),
    "Tile": lambda: _vector(
        [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Tile", ["s", "r"], ["v"])], {"r": [MANY]}
    ),
    "Pad": lambda: _vector([helper.make_node("Pad", ["a", "p"], ["v"])], {"a": [1], "p": [0, MANY]}),
    "Concat": lambda: _doubled(24),
    "Concat of constants": lambda: _doubled(27, constant=True),
    "a shape of a computed shape": lambda: _vector(
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Mul", ["s", "none"], ["z"]),
            helper.make_node("Add", ["z", "many"], ["w"]),
            _filled("w", "u"),
            helper.make_node("Add", ["u", "u"], ["t"]),
            _filled("t", "r"),
            helper.make_node("Shape", ["r"], ["v"]),
        ],
        {"none": 0, "many": [MANY]},
    ),
}
"""Files of a few hundred bytes with a vector of many elements, by what makes it."""
