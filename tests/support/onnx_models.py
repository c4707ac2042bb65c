"""Small ONNX files for tests, made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    initializers: dict[str, np.ndarray],
    *,
    element: int = TensorProto.FLOAT,
    output_element: int | None = None,
    side: int = 8,
    channels: int = 4,
    batch: str | int = "batch",
    graph_name: str = "graph",
    seed_metadata: dict[str, str] | None = None,
) -> Path:
    """Writes a graph from ``x`` [batch, 3, side, side] to ``y`` [batch, channels, side, side]."""
    graph = helper.make_graph(
        nodes,
        graph_name,
        [helper.make_tensor_value_info("x", element, [batch, 3, side, side])],
        [helper.make_tensor_value_info("y", output_element or element, [batch, channels, side, side])],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, seed_metadata or {})
    onnx.save(model, path)
    return path


def weight(dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(dtype)


def small_conv(path: Path, *, side: int = 8, batch: str | int = "batch", graph_name: str = "graph") -> Path:
    """One convolution named ``conv1``."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv1", pads=[1] * 4)
    return save(path, [node], {"w": weight()}, side=side, batch=batch, graph_name=graph_name)


def write_model(
    path: Path, nodes: list[onnx.NodeProto], inputs: Mapping[str, list[Any]], weights: Mapping[str, Any]
) -> Path:
    """Writes a float32 model whose last node makes its one output."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def weights(*shape: int) -> np.ndarray:
    """Seeded normal numbers, float32."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)
