"""The sums that an ONNX file computes, layer by layer: how many terms each has, and in which format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_onnx.parity.budget import Sum
from runtimes.onnx_arithmetic import PRECISIONS, Computation, Operator, Shape, computation, elements, moved_from

if TYPE_CHECKING:
    from onnx import NodeProto

OPERATOR_ERROR = 16
"""Terms that an elementary function counts as: libraries' are right within 4 units in the last place (OpenCL C
specification, section 7.4, single precision; most are better), and errors add in quadrature."""

_AFFINE = frozenset({"BatchNormalization", "Add", "Sub", "Mul", "Div"})
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Cast"})


def sums_of(path: Path, shapes: Mapping[str, Sequence[int]] | None = None) -> list[Sum]:
    """Returns the terms summed per output element, for each operator of an ONNX file that rounds.

    Convolutions and matrix products count with their fan-in, poolings and reductions with what they pool, elementwise
    operators with one term, other functions with ``OPERATOR_ERROR`` more than they sum. An operator that scales or
    shifts by constants counts with the sum before it, into which it can be folded: batch normalization folded or not, a
    bias inside or outside of its product and a mean as a sum and a division are the same network and give the same.

    Args:
        path: The file.
        shapes: Of the inputs, by name, where the file leaves extents open.

    Raises:
        BadModel: The file does not pass the gate.
    """
    found = computation(path, shapes)
    by_node = {id(operator.node): operator for operator in found.operators}
    return [
        Sum(terms=_terms(operator), precision=operator.precision, pooling=_pooled(operator) is not None)
        for operator in found.operators
        if not _folds(operator, found, by_node)
    ]


def _folds(operator: Operator, found: Computation, by_node: Mapping[int, Operator]) -> bool:
    """Whether an operator scales or shifts by constants what a sum or another such operator made, as finely as that."""
    if not _is_affine(operator):
        return False
    for node in moved_from(operator.node.input[operator.dynamic[0]], found.makers):
        before = by_node.get(id(node))
        if before is not None:
            finer = PRECISIONS.index(operator.precision) <= PRECISIONS.index(before.precision)
            return finer and (_is_affine(before) or _is_sum(before))
    return False


def _is_affine(operator: Operator) -> bool:
    node = operator.node
    if node.op_type not in _AFFINE or len(operator.dynamic) != 1:
        return False
    return node.op_type in ("Add", "Mul", "Sub") or operator.dynamic == (0,)


def _is_sum(operator: Operator) -> bool:
    return _fan_in(operator.node, operator.inputs) is not None or _pooled(operator) is not None


def _terms(operator: Operator) -> int:
    node = operator.node
    if node.op_type in _ELEMENTWISE or _is_affine(operator):
        return 1
    if node.op_type == "Sum":
        return max(1, len(operator.dynamic) - 1)
    fan_in = _fan_in(node, operator.inputs)
    if fan_in is not None:
        return max(1, fan_in)
    pooled = _pooled(operator)
    if pooled is not None:
        return max(1, pooled)
    return OPERATOR_ERROR + _normalised(operator)


def _fan_in(node: NodeProto, inputs: Sequence[Shape | None]) -> int | None:
    """Returns the terms of a product; None for another operator, or where its extents are not known."""
    kind = node.op_type.removeprefix("Fused")
    if kind not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or len(inputs) < 2:
        return None
    left, right = inputs[0], inputs[1]
    if kind == "Conv":
        return elements(right[1:]) if right is not None and len(right) >= 3 else None
    if kind == "ConvTranspose":
        if right is None or len(right) < 3 or right[0] is None:
            return None
        kernel = elements(right[2:])
        return None if kernel is None else right[0] // max(1, int(_attribute(node, "group", 1))) * kernel
    if right:
        last = len(right) == 1 or (kind == "Gemm" and _attribute(node, "transB", 0))
        if (found := right[-1 if last else -2]) is not None:
            return found
    return left[0 if kind == "Gemm" and _attribute(node, "transA", 0) else -1] if left else None


def _pooled(operator: Operator) -> int | None:
    """Returns how many elements a pooling or reduction sums for each of its outputs; None for another operator."""
    node, taken, given = operator.node, operator.inputs[0], operator.outputs[0]
    if node.op_type == "AveragePool":
        return int(math.prod(_attribute(node, "kernel_shape", [1])))
    if node.op_type == "GlobalAveragePool":
        return elements(taken[2:]) if taken is not None else None
    if node.op_type in ("ReduceMean", "ReduceSum"):
        return _reduced(taken, given)
    return None


def _reduced(taken: Shape | None, given: Shape | None) -> int | None:
    """Returns how many elements of `taken` go into one of `given`; extents that are open in both are the same ones."""
    if taken is None or given is None or taken.count(None) != given.count(None):
        return None
    before, after = (math.prod(extent for extent in shape if extent is not None) for shape in (taken, given))
    return before // after if after else None


def _normalised(operator: Operator) -> int:
    """Returns how many elements a function sums on its way to each of its outputs, 0 where it sums none."""
    node, taken = operator.node, operator.inputs[0]
    if node.op_type in ("Softmax", "LogSoftmax", "Hardmax", "CumSum"):
        axis = int(_attribute(node, "axis", -1))
        return (taken[axis] or 0) if taken and -len(taken) <= axis < len(taken) else 0
    if node.op_type in ("InstanceNormalization", "GlobalLpPool"):
        return elements(taken[2:]) or 0 if taken is not None else 0
    if node.op_type == "GroupNormalization":
        whole = elements(taken[1:]) if taken is not None else None
        return (whole or 0) // max(1, int(_attribute(node, "num_groups", 1)))
    if node.op_type in ("LayerNormalization", "RMSNormalization", "MeanVarianceNormalization"):
        axis = int(_attribute(node, "axis", -1))
        return elements(taken[axis:]) or 0 if taken is not None else 0
    if node.op_type.startswith("Reduce"):
        return _reduced(taken, operator.outputs[0]) or 0
    return 0


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
