"""Small networks with everything that a change of precision must treat right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtimes.spec import Feeds, ModelSource

CHANNELS, CLASSES, SIDE = 8, 5, 12
NET = ModelSource(path=Path("net.onnx"), label="net")
"""What messages call a network from here, where the file itself is not opened."""


def residual(
    path: Path, *, first_scale: float = 1.0, huge_channel: float = 1.0, opset: int = 18, batch_norm: bool = False
) -> Path:
    """Writes conv–relu–pool, one residual block, pooling and a Gemm: ``x`` [batch, 3, 12, 12] to ``y`` [batch, 5].

    Args:
        path: Where to write.
        first_scale: The first convolution's weights are this much larger, and the second's smaller.
        huge_channel: One output channel of the second convolution is this much larger, and what reads it smaller.
        opset: Operator set.
        batch_norm: Put a batch norm behind the first convolution.
    """
    random = np.random.default_rng(1)

    def weight(out: int, into: int, side: int) -> np.ndarray:
        return (random.standard_normal((out, into, side, side)) * np.sqrt(2 / (into * side * side))).astype(np.float32)

    w1, w2, w3 = weight(CHANNELS, 3, 3) * first_scale, weight(CHANNELS, CHANNELS, 3), weight(CHANNELS, CHANNELS, 3)
    w2 = (w2 / first_scale).astype(np.float32)
    w2[0] *= huge_channel
    w3[:, 0] /= huge_channel
    bias = [(0.1 * random.standard_normal(CHANNELS)).astype(np.float32) for _ in range(3)]
    bias[0] *= np.float32(first_scale)
    arrays = {
        "w1": w1.astype(np.float32), "b1": bias[0], "w2": w2, "b2": bias[1], "w3": w3, "b3": bias[2],
        "wfc": random.standard_normal((CLASSES, CHANNELS)).astype(np.float32), "bfc": np.zeros(CLASSES, np.float32),
        "shape": np.asarray([0, -1], np.int64),
    }  # fmt: skip
    pads = [1, 1, 1, 1]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=pads),
        helper.make_node("Relu", ["n1" if batch_norm else "c1"], ["r1"], name="relu1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"], name="block.conv1", pads=pads),
        helper.make_node("Relu", ["c2"], ["r2"], name="block.relu1"),
        helper.make_node("Conv", ["r2", "w3", "b3"], ["c3"], name="block.conv2", pads=pads),
        helper.make_node("Add", ["c3", "p1"], ["a"], name="block.add"),
        helper.make_node("Relu", ["a"], ["r3"], name="block.relu2"),
        helper.make_node("GlobalAveragePool", ["r3"], ["g"], name="average"),
        helper.make_node("Reshape", ["g", "shape"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "wfc", "bfc"], ["y"], name="fc", transB=1),
    ]
    if batch_norm:
        arrays |= {
            "gamma": random.uniform(0.5, 2, CHANNELS).astype(np.float32),
            "beta": random.standard_normal(CHANNELS).astype(np.float32),
            "mean": random.standard_normal(CHANNELS).astype(np.float32),
            "var": random.uniform(0.5, 2, CHANNELS).astype(np.float32),
        }
        nodes.insert(1, helper.make_node("BatchNormalization", ["c1", "gamma", "beta", "mean", "var"], ["n1"]))
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


def feeds(count: int = 4, size: int = 8, seed: int = 0) -> Iterator[Feeds]:
    """Yields seeded inputs."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        yield {"x": random.standard_normal((size, 3, SIDE, SIDE)).astype(np.float32)}
