"""Small ONNX files for tests, made by hand."""

from __future__ import annotations

from pathlib import Path

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
