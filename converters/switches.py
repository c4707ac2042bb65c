"""One float32 graph in which each layer can be switched to int8 by itself, to see what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.calibration import LEVELS
from converters.graph import Graph, name_of
from converters.int8 import SMALLEST_SCALE, Plan, products, rounded_weight
from runtimes.errors import UnsupportedModel

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def switched(
    chosen: Plan, ranges: Mapping[str, float], *, per_channel: bool = True
) -> tuple[ModelProto, dict[str, str]]:
    """Returns the float32 model with a switch for each layer; one session then measures all of them.

    A layer that is switched on reads its values rounded to signed bytes and computes with rounded weights: what
    keeping it in float32 would give back. All others stay as they are.

    The arguments are those of ``int8.quantise``.

    Returns:
        The model, and by layer the name of its switch: a further input, bool [].
    """
    from onnx import TensorProto, helper

    copy = deepcopy(chosen.model)
    graph = Graph(copy)
    layers = set(chosen.layers)
    zero = graph.add_constant("int8_zero", np.zeros((), np.int8))
    rounded: dict[str, str] = {}
    switches: dict[str, str] = {}
    nodes: list[NodeProto] = []
    changing = {id(node) for node in products(graph) if name_of(node) in layers}
    for node in list(graph.proto.node):
        if id(node) not in changing:
            nodes.append(node)
            continue
        layer, (data, weight) = name_of(node), node.input[:2]
        step = max(ranges[chosen.scale_of[data]] / LEVELS, SMALLEST_SCALE)
        scale = graph.add_constant(f"{layer}.switch_scale", np.asarray(np.float32(step)))
        if weight not in rounded:
            array = graph.array(weight)
            if array is None:
                raise UnsupportedModel(f"the weights {weight} are not constant")
            rounded[weight] = graph.add_constant(
                f"{weight}.rounded", rounded_weight(node, array, per_channel=per_channel)
            )
        names = {part: graph.free_name(f"{layer}.{part}") for part in ("on", "whole", "back", "int8", "float")}
        twin, plain = deepcopy(node), deepcopy(node)
        twin.input[0], twin.input[1], twin.output[0] = names["back"], rounded[weight], names["int8"]
        plain.output[0] = names["float"]
        pair = [
            helper.make_node("QuantizeLinear", [data, scale, zero], [names["whole"]]),
            helper.make_node("DequantizeLinear", [names["whole"], scale, zero], [names["back"]]),
        ]
        branches: dict[str, Any] = {}
        for branch, name, inner in (("then_branch", "int8", [*pair, twin]), ("else_branch", "float", [plain])):
            output = helper.make_tensor_value_info(names[name], TensorProto.FLOAT, None)
            branches[branch] = helper.make_graph(inner, names[name], [], [output])
        nodes.append(helper.make_node("If", [names["on"]], [node.output[0]], name=layer, **branches))
        graph.proto.input.append(helper.make_tensor_value_info(names["on"], TensorProto.BOOL, []))
        switches[layer] = names["on"]
    graph.replace_nodes(nodes)
    # What is known of shapes would have to hold inside the branches too; ONNX Runtime infers it anew.
    del graph.proto.value_info[:]
    return copy, switches
