"""What the Quantize/Dequantize nodes of a graph do to its numbers: the ground of an int8 budget."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.parity.localize import Graph
from resnet_onnx.parity.running import run
from runtimes import files, onnx_gate, onnx_plain
from runtimes.errors import UnsupportedModel
from runtimes.spec import Feeds, ModelSource, Target

_QUANTISE, _DEQUANTISE = "QuantizeLinear", "DequantizeLinear"
_INTEGER_PRODUCTS = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})


def is_quantised(path: Path) -> bool:
    """Whether a graph rounds activations to whole numbers: some node quantises what depends on the inputs."""
    graph = Graph(path)
    return any(node.op_type == _QUANTISE or node.op_type in _INTEGER_PRODUCTS for node in graph.nodes)


def without_rounding(path: Path, target: Path) -> Path:
    """Writes the graph without the rounding of its activations; weights keep their quantised values.

    A pair of Quantize and Dequantize becomes nothing, or a Relu where it quantises from zero on: quantisers drop a ReLU
    whose work such a pair does.

    Raises:
        UnsupportedModel: Activations are computed with as whole numbers (QLinearConv and its like), so that rounding
            can't be taken out of the graph.
    """
    import onnx

    graph = Graph(path)
    model = onnx.load(str(graph.path))
    refuse_whole_numbers(path, graph)
    pairs = {node.output[0]: node for node in graph.nodes if node.op_type == _QUANTISE}
    kept = []
    for node in model.graph.node:
        if node.op_type == _DEQUANTISE and node.input[0] in pairs:
            pair = pairs[node.input[0]]
            operator = "Relu" if _from_zero(pair, graph) else "Identity"
            kept.append(onnx.helper.make_node(operator, [pair.input[0]], [node.output[0]], name=node.name))
        elif node.op_type != _QUANTISE or node.output[0] not in pairs:
            kept.append(node)
    left = {name for node in kept for name in node.input} & set(pairs)
    if left:
        raise UnsupportedModel(f"{path}: {', '.join(sorted(left)[:3])} is read as whole numbers outside a Q/DQ pair")
    del model.graph.node[:]
    model.graph.node.extend(kept)
    # Types of tensors that are no longer there would not pass the checker.
    del model.graph.value_info[:]
    files.write_bytes(target, model.SerializeToString())
    return target


def refuse_whole_numbers(path: Path, graph: Graph, *, fix: str = "") -> None:
    """Raises ``UnsupportedModel`` where a graph rounds without Q/DQ; says to type tolerances and `fix`."""
    for node in graph.nodes:
        if node.op_type in _INTEGER_PRODUCTS:
            by_hand = " ".join([*([fix] if fix else []), *(f"--tolerance-for {name}=0.1" for name in graph.outputs)])
            raise UnsupportedModel(
                f"{path} computes with whole numbers ({node.op_type}): its rounding and its function are one, so that "
                "no budget can be derived",
                fix=f"say what you allow it, as a relative RMSE: {by_hand}; or quantise it with QuantizeLinear and "
                "DequantizeLinear (QDQ)",
            )


def _from_zero(node: Any, graph: Graph) -> bool:
    """Whether a QuantizeLinear maps 0 to the smallest whole number that it knows, so that it cuts off what is below."""
    from onnx import numpy_helper

    if len(node.input) < 3 or not node.input[2]:
        return True  # without a zero point it is uint8 with zero point 0
    zero = graph.initializers.get(node.input[2])
    if zero is None:
        return False
    values = numpy_helper.to_array(zero)
    return values.dtype.kind in "iu" and bool((values == np.iinfo(values.dtype).min).all())


def step_error(path: Path, feeds: Feeds, *, weights: bool = False) -> float:
    """Returns what the step sizes of a quantised graph add up to, relative to the output.

    Rounding to a step Δ is an error of Δ/√12, uniformly distributed (Widrow & Kollár, Quantization Noise, 2008, section
    4.2); beside a tensor of root mean square r that is Δ/(√12·r). Layers pass a relative error on, and independent
    errors add in quadrature. The root mean squares are those of `feeds`; every quantised tensor is kept in memory. The
    rounding of `weights` counts where the graph stands beside the network before quantisation.

    Raises:
        UnsupportedModel: The model computes with whole numbers, so that its steps are not all in the graph.
    """
    import onnx
    from onnx import numpy_helper

    graph = Graph(path)
    refuse_whole_numbers(path, graph)
    constants = {name: numpy_helper.to_array(tensor) for name, tensor in graph.initializers.items()}
    nodes = [n for n in graph.nodes if n.op_type == _QUANTISE and n.input[1] in constants]
    wanted = [n.input[0] for n in nodes if n.input[0] not in graph.inputs]
    with tempfile.TemporaryDirectory(prefix="resnet-onnx-") as folder:
        exposed = ModelSource(path=path).rewritten(graph.exposed(wanted, Path(folder) / "exposed.onnx"))
        values = dict(next(iter(run(Target(runtime="reference", source=exposed), [feeds]).outputs)))
    values |= {name: array for name, array in feeds.items() if name in graph.inputs}
    total = sum(_rounding(constants[n.input[1]], values[n.input[0]]) for n in nodes if n.input[0] in values)
    if weights:
        for node in onnx.load(str(graph.path)).graph.node:
            if node.op_type == _DEQUANTISE and node.input[0] in constants and node.input[1] in constants:
                steps = constants[node.input[1]].astype(np.float64)
                axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
                whole = constants[node.input[0]].astype(np.float64)
                middle = constants.get(node.input[2]) if len(node.input) > 2 else None
                shape = [1] * whole.ndim
                if steps.ndim and whole.ndim:
                    shape[axis] = steps.size
                if middle is not None:
                    whole = whole - middle.astype(np.float64).reshape(shape if middle.ndim else [])
                total += _rounding(steps, whole * steps.reshape(shape)) if whole.ndim > 1 else 0.0
    return math.sqrt(total)


def _rounding(steps: NDArray[Any], values: NDArray[Any]) -> float:
    """Returns the variance of rounding to steps Δ beside the mean square of what is rounded."""
    size = float(np.mean(values.astype(np.float64) ** 2))
    return float(np.mean(steps.astype(np.float64) ** 2)) / 12 / size if size > 0 else 0.0


def float32_twin(path: Path, target: Path) -> Path:
    """Writes a half-precision model with the same weights that computes in float32, so that float32's noise shows."""
    import onnx

    from runtimes.reference import widen

    model = onnx.load(str(onnx_gate.check_onnx(path).path))
    onnx_plain.constants_from_nodes(model)
    given = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    widen(model, "FLOAT")
    for value in model.graph.input:  # takes what the model takes
        element = value.type.tensor_type.elem_type
        if element == given[value.name]:
            continue
        value.type.tensor_type.elem_type = given[value.name]
        wide = f"{value.name}.float32"
        for node in model.graph.node:
            node.input[:] = [wide if name == value.name else name for name in node.input]
        model.graph.node.insert(0, onnx.helper.make_node("Cast", [value.name], [wide], to=element))
    files.write_bytes(target, model.SerializeToString())
    return target
