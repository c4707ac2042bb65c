"""fp32 → int8: where QuantizeLinear and DequantizeLinear stand in the portable file.

One file for every runtime: symmetric signed bytes for activations and for weights (per output channel), float bias, so
that TensorRT 10, 11 and RTX parse it. A pair stands on the input of every convolution and matrix product, after every
ReLU (never between a layer and its ReLU), and on both inputs of every residual addition; one pair per tensor, and what
only moves values (pooling by maximum, slices, padding with zeros) has the scale of what it moves. Runtimes that want
another form of the same numbers get it from ``converters.lowering``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from converters.calibration import LEVELS
from converters.graph import Graph, attribute, name_of, plain, set_metadata, shapes
from runtimes.errors import UnsupportedModel, UsageError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

OPSET = 13
"""The first operator set whose DequantizeLinear takes a scale per channel."""

PRODUCTS = ("Conv", "Gemm", "MatMul")
"""Operators that are worth a byte: nearly all the work of a network."""

RECTIFIERS = ("Relu", "Clip")
_MOVERS = ("MaxPool", "Slice", "Pad", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity")
"""Operators whose output has no value that their input does not have (padding: besides zero)."""

SMALLEST_SCALE = float(np.finfo(np.float32).tiny) * 2**20
"""For a channel whose weights are all zero, and a guard against scales that vanish in float32."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be quantised.

    Attributes:
        model: The float32 ``ModelProto`` that it is about: constants as initialisers, batch norm folded.
        layers: Names of the products, in order.
        tensors: Values that get a pair of Q and DQ, in order.
        scale_of: The value whose range a value of `tensors` takes: itself, or what was moved to make it.
    """

    model: ModelProto
    layers: tuple[str, ...]
    tensors: tuple[str, ...]
    scale_of: Mapping[str, str]

    @property
    def observed(self) -> tuple[str, ...]:
        """Returns the values whose ranges are needed."""
        return tuple(dict.fromkeys(self.scale_of[name] for name in self.tensors))


def prepared(model: ModelProto, *, what: str) -> ModelProto:
    """Returns a copy of a float32 model that is ready to be quantised.

    Raises:
        UnsupportedModel: Its operator set can't be raised, it is quantised already, or it has no product.
        BadModel: It has operators that ONNX does not know.
    """
    copy = plain(model, what=what, opset=OPSET)
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in copy.graph.node):
        raise UnsupportedModel(f"{what} is quantised already", fix="convert the float32 model that it came from")
    graph = Graph(copy)
    fold_batch_norm(graph)
    if not products(graph):
        raise UnsupportedModel(f"{what} has no convolution or matrix product with constant float32 weights")
    return copy


def products(graph: Graph) -> list[NodeProto]:
    """Returns the products whose weights are constant float32, in the graph's order."""
    found = []
    for node in graph.proto.node:
        weight = graph.array(node.input[1]) if node.op_type in PRODUCTS and len(node.input) > 1 else None
        fits = weight is not None and weight.dtype == np.float32 and weight.ndim > 1
        if fits and node.input[0] not in graph.constants:
            found.append(node)
    return found


def weight_axis(node: NodeProto, weight: NDArray[Any]) -> int:
    """Returns the axis of a product's weights that counts output channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return weight.ndim - 1


_BRANCHES = ("If", "Loop", "Scan")


def kept_anyway(model: ModelProto) -> dict[str, str]:
    """Returns the products of a prepared model that can't be int8, each with the reason."""
    graph, shaped = Graph(model), shapes(model)
    reasons = {}
    for node in products(graph):
        source = _moved(node.input[0], graph, shaped)[-1]
        maker = graph.producer.get(source)
        if maker is not None and maker.op_type in _BRANCHES:
            reasons[name_of(node)] = (
                f"its input comes out of {name_of(maker)} ({maker.op_type}), whose other branch calibration may not see"
            )
        elif source not in shaped or node.input[0] not in shaped:
            reasons[name_of(node)] = "the shape of its input can't be told"
    return reasons


def plan(model: ModelProto, *, keep_fp32: Collection[str] = ()) -> Plan:
    """Decides which values of a prepared model are quantised; `keep_fp32` names products that stay in float32.

    Raises:
        UsageError: No product is left.
    """
    graph = Graph(model)
    shaped = shapes(model)
    chosen = [node for node in products(graph) if name_of(node) not in keep_fp32]
    if not chosen:
        raise UsageError("every layer was kept in fp32: nothing is left to quantise", fix="name fewer: --keep-fp32")
    quantised = {id(node) for node in chosen}
    wanted: set[str] = {node.input[0] for node in chosen}
    for node in graph.proto.node:
        if _is_residual(node, graph, shaped) and any(id(graph.producer.get(name)) in quantised for name in node.input):
            wanted |= set(node.input)
            quantised.add(id(node))
    for node in graph.proto.node:
        if node.op_type in RECTIFIERS and id(graph.producer.get(node.input[0])) in quantised:
            wanted.add(node.output[0])
    scale_of: dict[str, str] = {}
    for name in sorted(wanted):
        path = _moved(name, graph, shaped)
        scale_of |= dict.fromkeys(path, path[-1])
    order = [*graph.inputs, *graph.producer]
    tensors = tuple(name for name in order if name in scale_of)
    return Plan(model=model, layers=tuple(name_of(node) for node in chosen), tensors=tensors, scale_of=scale_of)


def _is_residual(node: NodeProto, graph: Graph, shaped: Mapping[str, tuple[Any, ...]]) -> bool:
    if node.op_type != "Add" or any(name in graph.constants for name in node.input):
        return False
    a, b = (shaped.get(name) for name in node.input)
    return a is not None and b is not None and len(a) == len(b) == 4 and a[1:] == b[1:]


def _moved(name: str, graph: Graph, shaped: Mapping[str, tuple[Any, ...]]) -> list[str]:
    """Returns a value and those that were only moved to make it, back to the one that was computed."""
    path = [name]
    while (maker := graph.producer.get(path[-1])) is not None and _moves(maker, graph) and maker.input[0] in shaped:
        path.append(maker.input[0])
    return path


def _moves(node: NodeProto, graph: Graph) -> bool:
    if node.op_type not in _MOVERS:
        return False
    if node.op_type == "Pad":
        value = graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
        return attribute(node, "mode", b"constant") != b"constant" or (value is not None and not value.any())
    return True


# ---- weights ---------------------------------------------------------------------------------------------------------


def quantised_weight(weight: NDArray[Any], axis: int, *, per_channel: bool = True) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rounds float32 weights of any rank to signed bytes, symmetric, without clipping; `axis` is of output channels.

    Returns:
        int8 of the same shape, and float32 scales: [channels], or [] where not `per_channel`.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others if per_channel else None)
    scale = np.maximum(largest.astype(np.float64) / LEVELS, SMALLEST_SCALE).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    steps = weight.astype(np.float64) / (scale.reshape(shape) if per_channel else scale)
    return np.clip(np.rint(steps), -LEVELS, LEVELS).astype(np.int8), np.asarray(scale)


def rounded_weight(node: NodeProto, weight: NDArray[Any], *, per_channel: bool = True) -> NDArray[np.float32]:
    """Returns a product's weights as int8 holds them, back in float32 of the same shape."""
    axis = weight_axis(node, weight)
    whole, scale = quantised_weight(weight, axis, per_channel=per_channel)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    return np.asarray(whole * (scale.reshape(shape) if per_channel else scale), np.float32)


def signal_to_noise_db(signal: NDArray[Any], noise: NDArray[Any]) -> float:
    """Returns 10·log10 of the ratio of the energies; infinite where there is no noise."""
    energy = float(np.sum(np.square(signal, dtype=np.float64)))
    lost = float(np.sum(np.square(noise, dtype=np.float64)))
    return float("inf") if lost == 0 else 10 * float(np.log10(max(energy, 1e-300) / lost))


def weight_sqnr_db(node: NodeProto, weight: NDArray[Any], *, per_channel: bool = True) -> float:
    """Returns the signal-to-noise ratio of a product's weights in its worst quarter of channels, decibels.

    One huge channel hides what rounding does to the others in any sum over all of them.
    """
    axis = weight_axis(node, weight)
    back = rounded_weight(node, weight, per_channel=per_channel)
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    errors = np.moveaxis(weight - back, axis, 0).reshape(rows.shape)
    ratios = [signal_to_noise_db(row, error) for row, error in zip(rows, errors, strict=True) if row.any()]
    # Not interpolated: a channel that int8 holds exactly is infinitely far above its noise.
    return sorted(ratios)[len(ratios) // 4] if ratios else float("inf")


# ---- the new graph ---------------------------------------------------------------------------------------------------


def quantise(chosen: Plan, ranges: Mapping[str, float], *, per_channel: bool = True) -> ModelProto:
    """Returns the portable int8 model.

    `ranges` are clipping thresholds by value, for all of ``chosen.observed``. A weight scale per output channel is what
    serves; one per layer is what poorer tools do.
    """
    from onnx import helper

    copy = deepcopy(chosen.model)
    graph = Graph(copy)
    layers = set(chosen.layers)
    tensors = set(chosen.tensors)
    zero = graph.add_constant("int8_zero", np.zeros((), np.int8))
    scales: dict[str, str] = {}
    outputs = set(graph.outputs)
    made: dict[str, str] = {}
    nodes: list[NodeProto] = []

    def scale(name: str) -> str:
        source = chosen.scale_of[name]
        if source not in scales:
            step = np.float32(max(ranges[source] / LEVELS, SMALLEST_SCALE))
            scales[source] = graph.add_constant(f"{source}.scale", np.asarray(step))
        return scales[source]

    def pair(name: str) -> None:
        whole, back = graph.free_name(f"{name}.int8"), graph.free_name(f"{name}.dequantized")
        nodes.append(helper.make_node("QuantizeLinear", [name, scale(name), zero], [whole], name=f"{name}.quantize"))
        nodes.append(
            helper.make_node("DequantizeLinear", [whole, scale(name), zero], [back], name=f"{name}.dequantize")
        )
        made[name] = back

    for name in graph.inputs:
        if name in tensors:
            pair(name)
    weights: dict[str, str] = {}
    for node in list(graph.proto.node):
        for place, name in enumerate(node.input):
            if name in made:
                node.input[place] = made[name]
        if name_of(node) in layers and node.op_type in PRODUCTS:
            name = node.input[1]
            if name not in weights:
                weights[name] = _weight(graph, node, name, nodes, per_channel=per_channel)
            node.input[1] = weights[name]
        nodes.append(node)
        for name in node.output:
            if name in tensors and name not in outputs:
                pair(name)
    graph.replace_nodes(nodes)
    del graph.proto.value_info[:]
    graph.drop_unused_constants()
    set_metadata(copy, {"precision": "int8"})
    return copy


def _weight(graph: Graph, node: NodeProto, name: str, nodes: list[NodeProto], *, per_channel: bool) -> str:
    from onnx import helper

    weight = graph.array(name)
    if weight is None:
        raise UnsupportedModel(f"the weights {name} are not constant")
    axis = weight_axis(node, weight)
    whole, scale = quantised_weight(weight, axis, per_channel=per_channel)
    stored = graph.add_constant(f"{name}.int8", whole)
    steps = graph.add_constant(f"{name}.scale", scale)
    zeros = graph.add_constant(f"{name}.zero_point", np.zeros(scale.shape, np.int8))
    back = graph.free_name(f"{name}.dequantized")
    axes: dict[str, Any] = {"axis": axis} if per_channel else {}
    nodes.append(
        helper.make_node("DequantizeLinear", [stored, steps, zeros], [back], name=f"{name}.dequantize", **axes)
    )
    return back


# ---- bias ------------------------------------------------------------------------------------------------------------


def with_shifts(
    chosen: Plan, ranges: Mapping[str, float], *, per_channel: bool = True
) -> tuple[ModelProto, dict[str, str]]:
    """Returns the float32 model with a second, quantised product beside each: how far int8 moves its mean.

    Each quantised product reads the float32 values, so that every layer is measured by itself.

    Returns:
        The model, and by layer the name of a value [channels]: mean of quantised minus float32, over batch and pixels.
    """
    from onnx import helper

    copy = deepcopy(chosen.model)
    graph = Graph(copy)
    zero = graph.add_constant("int8_zero", np.zeros((), np.int8))
    pooled: dict[int, str] = {}
    nodes: list[NodeProto] = []
    shifts: dict[str, str] = {}
    layers = set(chosen.layers)
    shaped = shapes(chosen.model)
    version = next(entry.version for entry in copy.opset_import if entry.domain in ("", "ai.onnx"))
    for node in list(graph.proto.node):
        nodes.append(node)
        rank = len(shaped.get(node.output[0], ()))
        if name_of(node) not in layers or node.op_type not in PRODUCTS or rank not in (2, 4):
            continue
        stem, data = f"{name_of(node)}.shift", node.input[0]
        step = graph.add_constant(f"{stem}.scale", np.asarray(np.float32(ranges[chosen.scale_of[data]] / LEVELS)))
        whole, back = graph.free_name(f"{stem}.int8"), graph.free_name(f"{stem}.data")
        nodes.append(helper.make_node("QuantizeLinear", [data, step, zero], [whole], name=whole))
        nodes.append(helper.make_node("DequantizeLinear", [whole, step, zero], [back], name=back))
        twin = deepcopy(node)
        twin.name = graph.free_name(f"{stem}.product")
        twin.input[0] = back
        twin.input[1] = _weight(graph, node, node.input[1], nodes, per_channel=per_channel)
        twin.output[0] = twin.name
        nodes.append(twin)
        difference = graph.free_name(f"{stem}.difference")
        nodes.append(helper.make_node("Sub", [twin.name, node.output[0]], [difference], name=difference))
        mean, axes = graph.free_name(stem), [0, *range(2, rank)]
        if version >= _AXES_AS_INPUT:
            if rank not in pooled:
                pooled[rank] = graph.add_constant(f"shift_axes_{rank}", np.asarray(axes, np.int64))
            nodes.append(helper.make_node("ReduceMean", [difference, pooled[rank]], [mean], name=mean, keepdims=0))
        else:
            nodes.append(helper.make_node("ReduceMean", [difference], [mean], name=mean, axes=axes, keepdims=0))
        shifts[name_of(node)] = mean
    graph.replace_nodes(nodes)
    del graph.proto.value_info[:]
    return copy, shifts


_AXES_AS_INPUT = 18
"""From this operator set on ReduceMean takes its axes as an input."""


def corrected(chosen: Plan, shifts: Mapping[str, NDArray[np.float64]]) -> Plan:
    """Returns a plan whose float biases take back how far int8 moves the mean of each layer (arXiv 1906.04721, 4.2).

    `shifts` are the means of quantised minus float32 outputs by layer, float64 [channels].
    """
    copy = deepcopy(chosen.model)
    graph = Graph(copy)
    for node in graph.proto.node:
        shift = shifts.get(name_of(node))
        # A MatMul has no place for a bias, and a Gemm may scale its own.
        scaled = node.op_type == "Gemm" and attribute(node, "beta", 1.0) != 1.0
        if shift is None or node.op_type == "MatMul" or scaled:
            continue
        bias = graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(shift.shape)
        if bias is None or bias.shape != shift.shape or not np.isfinite(shift).all():
            continue
        del node.input[2:]
        node.input.append(graph.add_constant(f"{name_of(node)}.corrected_bias", (bias - shift).astype(np.float32)))
    graph.drop_unused_constants()
    return replace(chosen, model=copy)


# ---- batch norm ------------------------------------------------------------------------------------------------------


def fold_batch_norm(graph: Graph) -> int:
    """Multiplies batch norms into the convolutions before them, in place; returns how many.

    Exports made here have none; foreign ones may, and a convolution can't fuse with what stands behind a Q/DQ pair.
    """
    folded = 0
    for norm in [node for node in graph.proto.node if node.op_type == "BatchNormalization"]:
        conv = graph.producer.get(norm.input[0])
        if conv is None or conv.op_type != "Conv" or len(graph.readers(conv.output[0])) != 1:
            continue
        if conv.output[0] in graph.outputs or len([name for name in norm.output if name]) != 1:
            continue
        weight = graph.array(conv.input[1])
        terms = [graph.array(name) for name in norm.input[1:5]]
        bias = graph.array(conv.input[2]) if len(conv.input) > 2 and conv.input[2] else None
        if weight is None or any(term is None for term in terms) or (len(conv.input) > 2 and bias is None):
            continue
        gamma, beta, mean, variance = (np.asarray(term, np.float64) for term in terms)
        factor = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
        scaled = weight.astype(np.float64) * factor.reshape(-1, *[1] * (weight.ndim - 1))
        shifted = beta + ((0.0 if bias is None else bias.astype(np.float64)) - mean) * factor
        new_weight = graph.add_constant(f"{conv.input[1]}.folded", scaled.astype(weight.dtype))
        new_bias = graph.add_constant(f"{conv.input[1]}.folded_bias", shifted.astype(weight.dtype))
        del conv.input[1:]
        conv.input.extend([new_weight, new_bias])
        conv.output[0] = norm.output[0]
        graph.proto.node.remove(norm)
        graph.refresh()
        folded += 1
    graph.drop_unused_constants()
    return folded
