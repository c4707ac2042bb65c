"""The sums that an ONNX file computes: how many terms go into each of its outputs, layer by layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtimes import onnx_gate

_EXACT = """
    Relu LeakyRelu MaxPool GlobalMaxPool Reshape Flatten Transpose Identity Dropout Squeeze Unsqueeze Concat Split Slice
    Gather Pad Constant ConstantOfShape Shape Expand Tile Neg Abs Clip Max Min ReduceMax ReduceMin Where Equal Greater
    Less ArgMax ArgMin TopK Not And Or Cast Size Range DepthToSpace SpaceToDepth
"""
EXACT_OPERATORS = frozenset(_EXACT.split())
"""Operators that round nothing (LeakyRelu once, in one branch): they move, choose or compare values."""

OPERATOR_ERROR = 16
"""Terms that any other operator counts as: libraries' elementary functions are right within 4 units in the last place
(OpenCL C specification, section 7.4, single precision; most are better), and errors add in quadrature."""


def summation_lengths(path: Path) -> list[int]:
    """Returns, for each operator of an ONNX file that rounds, the terms summed per output element.

    Convolutions and matrix products count with their fan-in, sums with one term, other functions with
    ``OPERATOR_ERROR``. Raises ``BadModel`` for a file that does not pass the gate.
    """
    import onnx

    checked = onnx_gate.check_onnx(path)
    model = onnx.load(str(checked.path), load_external_data=False)
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    lengths = []
    for node in model.graph.node:
        weight = shapes.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type in EXACT_OPERATORS:
            continue
        if node.op_type in ("Conv", "ConvTranspose") and weight is not None and len(weight) >= 3:
            lengths.append(int(np.prod(weight[1:])))
        elif node.op_type == "Gemm" and weight is not None and len(weight) == 2:
            transposed = next((a.i for a in node.attribute if a.name == "transB"), 0)
            lengths.append(weight[1] if transposed else weight[0])
        elif node.op_type == "MatMul" and weight is not None and len(weight) >= 2:
            lengths.append(weight[-2])
        elif node.op_type in ("Add", "Sub", "Mul", "Sum"):
            lengths.append(1)
        else:
            lengths.append(OPERATOR_ERROR)
    return lengths
