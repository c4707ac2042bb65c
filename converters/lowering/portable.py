"""What the lowerings share: pairs of Q and DQ as the portable file has them, and which values are never negative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from converters.graph import Graph, attribute
from converters.int8 import PRODUCTS, weight_axis

if TYPE_CHECKING:
    from onnx import NodeProto

NEVER_NEGATIVE = ("Relu", "Sigmoid", "Softmax", "Abs", "Exp", "Softplus")
KEEPS_SIGN = (
    "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceMax", "Slice", "Pad", "Reshape", "Flatten",
    "Transpose", "Squeeze", "Unsqueeze", "Identity", "QuantizeLinear", "DequantizeLinear",
)  # fmt: skip
"""Operators whose output is never negative when their first input is not (a pair of Q and DQ rounds 0 to 0; padding
is with zeros wherever it is quantised)."""


@dataclass(frozen=True)
class Pair:
    """An activation that goes through int8 in steps of `scale`."""

    quantize: NodeProto
    dequantize: NodeProto
    scale: float


def pairs(graph: Graph) -> list[Pair]:
    """Returns the activation pairs of the portable form: one scale, signed bytes, zero point 0."""
    found = []
    for node in graph.proto.node:
        if node.op_type != "QuantizeLinear" or len(node.input) < 3:
            continue
        scale, zero = graph.array(node.input[1]), graph.array(node.input[2])
        readers = graph.readers(node.output[0])
        if scale is None or scale.size != 1 or zero is None or zero.dtype != np.int8 or zero.any():
            continue
        if len(readers) != 1 or readers[0][0].op_type != "DequantizeLinear":
            continue
        back = readers[0][0]
        same = graph.array(back.input[1])
        if same is not None and np.array_equal(same, scale) and not _zero(back, graph):
            found.append(Pair(node, back, float(scale.reshape(()))))
    return found


def is_portable(graph: Graph) -> bool:
    """Whether a graph is in the portable form: activation pairs, and products without a bias or with a float one.

    A bias that is stored in integers has a scale that follows from those of data and weights: it can't stay as it is
    where a lowering changes them. Other tools write such files.
    """
    integer = any(
        len(node.input) > 2 and (maker := graph.producer.get(node.input[2])) and maker.op_type == "DequantizeLinear"
        for node in graph.proto.node
        if node.op_type in PRODUCTS
    )
    return bool(pairs(graph)) and not integer


def _zero(dequantize: NodeProto, graph: Graph) -> bool:
    """Returns whether a DequantizeLinear has a zero point that is not 0."""
    zero = graph.array(dequantize.input[2]) if len(dequantize.input) > 2 else None
    return zero is not None and bool(zero.any())


def never_negative(value: str, graph: Graph) -> bool:
    """Returns whether a value can't be below zero, by the operators that make it."""
    node = graph.producer.get(value)
    if node is None:
        constant = graph.array(value)
        return constant is not None and bool((constant >= 0).all())
    if node.op_type in NEVER_NEGATIVE:
        return True
    if node.op_type == "Clip":
        low = graph.array(node.input[1]) if len(node.input) > 1 and node.input[1] else None
        return low is not None and bool((low >= 0).all())
    if node.op_type == "Pad" and attribute(node, "mode", b"constant") == b"constant":
        fill = graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
        if fill is None or (fill < 0).any():
            return False
    if node.op_type in KEEPS_SIGN:
        return never_negative(node.input[0], graph)
    if node.op_type in ("Add", "Mul"):
        return all(never_negative(name, graph) for name in node.input)
    return False


@dataclass(frozen=True)
class QuantisedProduct:
    """A product whose data and weights are both dequantised.

    Attributes:
        data: The DequantizeLinear of its data.
        weight: The DequantizeLinear of its weights.
        stored: Its weights, int8.
        scales: Of its weights, float64 [channels].
        axis: Of its weights' channels.
    """

    node: NodeProto
    data: NodeProto
    weight: NodeProto
    stored: NDArray[Any]
    scales: NDArray[np.float64]
    axis: int


def quantised_products(graph: Graph) -> list[QuantisedProduct]:
    """Returns the products that read int8 on both sides, with constant weights."""
    found = []
    for node in graph.proto.node:
        if node.op_type not in PRODUCTS:
            continue
        data, weight = (graph.producer.get(name) for name in list(node.input)[:2])
        if data is None or weight is None or {data.op_type, weight.op_type} != {"DequantizeLinear"}:
            continue
        stored, steps = graph.array(weight.input[0]), graph.array(weight.input[1])
        if stored is None or steps is None or graph.array(data.input[1]) is None:
            continue
        axis = weight_axis(node, stored)
        if steps.size not in (1, stored.shape[axis]):  # in blocks, which is not our way
            continue
        scales = np.broadcast_to(steps.astype(np.float64).reshape(-1), stored.shape[axis])
        found.append(QuantisedProduct(node, data, weight, stored, scales, axis))
    return found
