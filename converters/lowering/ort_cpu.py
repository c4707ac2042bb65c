"""ONNX Runtime's CPU kernels: unsigned bytes for activations, signed ones for weights, int32 bias.

Its fast integer kernels multiply unsigned by signed bytes, and its fusions want the bias quantised too. A value that is
never negative gets zero point 0 and, since no code is left for negative numbers, half the scale: all eight bits serve,
and the ReLU before it is what the lower end of the byte does anyway. Any other value is shifted by 128, which changes
no number.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from converters.graph import Graph, attribute, name_of
from converters.lowering.portable import QuantisedProduct, never_negative, pairs, quantised_products

_LARGEST_BIAS = 2.0**30
"""Of int32's 2**31: leaves room to add the products."""


def lower(graph: Graph, *, exact: bool = False) -> dict[str, int]:
    """Rewrites a portable graph in place; returns how often each change was made.

    `exact` keeps every step and clips where the portable file clips: slower and no closer to float32.
    """
    shifted, widened, absorbed = unsigned_activations(graph, exact=exact)
    biases = integer_biases(graph)
    return {"unsigned": widened, "shifted": shifted, "absorbed_relu": absorbed, "int32_bias": biases}


def unsigned_activations(graph: Graph, *, exact: bool = False, signed_stay: bool = False) -> tuple[int, int, int]:
    """Turns signed activation pairs into unsigned ones, in place.

    Returns:
        How many were shifted by 128, which `signed_stay` prevents; how many got zero point 0; how many ReLUs were
        dropped.
    """
    from onnx import helper

    zero_zero = graph.add_constant("uint8_zero", np.zeros((), np.uint8))
    zero_middle = graph.add_constant("uint8_middle", np.asarray(128, np.uint8))
    found = [(pair, never_negative(pair.quantize.input[0], graph)) for pair in pairs(graph)]
    scales: dict[str, str] = {}
    shifted = widened = absorbed = 0
    dropped: set[int] = set()
    clips: dict[int, Any] = {}
    for pair, positive in found:
        quantize, dequantize = pair.quantize, pair.dequantize
        if not positive:
            if not signed_stay:
                quantize.input[2] = dequantize.input[2] = zero_middle
                shifted += 1
            continue
        # A value and what was moved to make it share a scale, so that nothing is rounded twice.
        name = quantize.input[1]
        if not exact:
            if name not in scales:
                scales[name] = graph.add_constant(
                    f"{name}.unsigned", np.asarray(np.float32(pair.scale) / np.float32(2))
                )
            quantize.input[1] = dequantize.input[1] = scales[name]
        quantize.input[2] = dequantize.input[2] = zero_zero
        widened += 1
        value = quantize.input[0]
        relu = graph.producer.get(value)
        alone = (
            relu is not None
            and relu.op_type == "Relu"
            and len(graph.readers(value)) == 1
            and value not in graph.outputs
        )
        source = relu.input[0] if relu is not None and alone else value
        quantize.input[0] = source
        if exact:
            # Portable bytes end at 127 steps; an unsigned byte would go on to 255.
            low = graph.add_constant("clip_low", np.zeros((), np.float32))
            high = graph.add_constant(f"{name}.clip_high", np.asarray(np.float32(127 * pair.scale)))
            clipped = graph.free_name(f"{value}.clipped")
            clips[id(quantize)] = helper.make_node("Clip", [source, low, high], [clipped], name=clipped)
            quantize.input[0] = clipped
        if alone:
            dropped.add(id(relu))
            absorbed += not exact
    graph.insert(clips, dropped)
    return shifted, widened, absorbed


def integer_biases(graph: Graph) -> int:
    """Quantises the biases of integer products to int32 in steps of data scale × weight scale; returns how many."""
    from onnx import helper

    added: dict[int, Any] = {}
    for product in quantised_products(graph):
        node = product.node
        bias = graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        data_scale = graph.array(product.data.input[1])
        scaled = node.op_type == "Gemm" and {attribute(node, name, 1.0) for name in ("alpha", "beta")} != {1.0}
        if bias is None or data_scale is None or bias.dtype != np.float32 or scaled:
            continue
        if bias.shape != product.scales.shape:
            continue
        step = float(data_scale.reshape(()))
        steps = step * _scales_that_hold(graph, product, bias, step)
        whole = np.clip(np.rint(bias.astype(np.float64) / steps), -(2**31), 2**31 - 1).astype(np.int32)
        stem = f"{node.input[2]}.{name_of(node)}"
        stored = graph.add_constant(f"{stem}.int32", whole)
        scale = graph.add_constant(f"{stem}.scale", steps.astype(np.float32))
        zeros = graph.add_constant(f"{stem}.zero_point", np.zeros(whole.shape, np.int32))
        back = graph.free_name(f"{stem}.dequantized")
        added[id(node)] = helper.make_node(
            "DequantizeLinear", [stored, scale, zeros], [back], name=f"{stem}.dequantize", axis=0
        )
        node.input[2] = back
    graph.insert(added)
    return len(added)


def _scales_that_hold(graph: Graph, product: QuantisedProduct, bias: Any, data_scale: float) -> Any:
    """Returns weight scales with which every bias fits into int32, rounding the weights anew where they must grow.

    A channel that is nearly dead has tiny weights beside a bias of usual size; nothing is lost by coarser steps there.
    """
    needed = np.abs(bias.astype(np.float64)) / (_LARGEST_BIAS * data_scale)
    if (needed <= product.scales).all():
        return product.scales
    grown = np.maximum(product.scales, needed)
    shape = [-1 if i == product.axis else 1 for i in range(product.stored.ndim)]
    whole = np.rint(product.stored.astype(np.float64) * (product.scales / grown).reshape(shape)).astype(np.int8)
    from onnx import helper

    kept = [a for a in product.weight.attribute if a.name != "axis"]
    del product.weight.attribute[:]
    product.weight.attribute.extend([*kept, helper.make_attribute("axis", product.axis)])  # one scale a channel now
    product.weight.input[0] = graph.add_constant(f"{product.weight.input[0]}.coarser", whole)
    product.weight.input[1] = graph.add_constant(f"{product.weight.input[1]}.coarser", grown.astype(np.float32))
    if graph.constants[product.weight.input[2]].dims != list(grown.shape):
        product.weight.input[2] = graph.add_constant("coarser.zero_point", np.zeros(grown.shape, np.int8))
    return grown
