"""``bench --profile``: layers by each runtime's profiler, found again in the graph, beside their own ideals."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from support import saved_results
from support.onnx_models import weights, write_model

from resnet_onnx.bench import roofline
from resnet_onnx.bench.layers import beside_ideal, worst
from resnet_onnx.results.bench import BenchRow, LayerRecord
from resnet_onnx.results.writing import typed
from runtimes.ort import node_times
from runtimes.spec import LayerTime

PEAKS = roofline.Peaks(gflops={"fp32": 1.0}, bandwidth_gbs=1.0, threads=1, measured_at=time.time(), undisturbed=True)
"""A nanosecond an operation, and a nanosecond a byte."""


@pytest.fixture
def block(tmp_path: Path) -> Path:
    """Two convolutions 4→4, 1×1, on 8×8, with a shortcut, as ``models/resnet.py`` names them; and a pooling."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="conv1"),
        helper.make_node("Relu", ["a"], ["relu"], name="relu"),
        helper.make_node("Conv", ["relu", "w2"], ["conv2"], name="conv2"),
        helper.make_node("Add", ["conv2", "x"], ["add"], name="add"),
        helper.make_node("Relu", ["add"], ["relu_2"], name="relu_2"),
        helper.make_node("MaxPool", ["relu_2"], ["pool"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
    ]
    constants = {"w1": weights(4, 4, 1, 1), "w2": weights(4, 4, 1, 1)}
    return write_model(tmp_path / "block.onnx", nodes, {"x": ["n", 4, 8, 8]}, constants)


SHAPES = {"x": (1, 4, 8, 8)}


def found(block: Path, *layers: tuple[str, str], **more: Any) -> list[LayerRecord]:
    times = [LayerTime(name, operator, 1e-3) for name, operator in layers]
    return beside_ideal(times, block, SHAPES, more.get("peaks", PEAKS), more.get("precision", "fp32"))


def test_an_ideal_is_the_longer_of_operations_and_bytes(block: Path) -> None:
    conv, pool = found(block, ("conv1", "Conv"), ("pool", "MaxPool"))
    assert (conv.node, conv.bound) == ("conv1", "memory")
    elements = 4 * 64 + 16 + 4 * 64
    assert conv.ideal_ms == pytest.approx(max(2 * 4 * 64 * 4, 4 * elements) * 1e-6)
    assert conv.lost_ms == pytest.approx(1 - conv.ideal_ms)
    assert pool.ideal_ms == pytest.approx(4 * (4 * 64 + 4 * 16) * 1e-6)
    fast = roofline.Peaks(gflops={"fp32": 0.1}, bandwidth_gbs=1.0, threads=1, measured_at=0.0, undisturbed=True)
    (slow,) = found(block, ("conv1", "Conv"), peaks=fast)
    assert (slow.bound, slow.ideal_ms) == ("compute", pytest.approx(2 * 4 * 64 * 4 * 1e-5))


def test_a_fused_layer_is_set_beside_the_product_in_it(block: Path) -> None:
    names = [("relu_nchwc", "Conv"), ("relu_2", "FusedConv"), ("conv2/WithoutBiases", "Convolution")]
    assert [layer.node for layer in found(block, *names[:2])] == ["conv1", "conv2"]
    assert [layer.node for layer in found(block, names[0], names[2])] == ["conv1", "conv2"]
    (module,) = found(block, ("network.conv2", "Conv2d"))
    assert module.node == "conv2"


def test_what_the_graph_does_not_have_is_lost_entirely(block: Path) -> None:
    (reorder,) = found(block, ("x_abcd_acdb", "Reorder"))
    assert (reorder.node, reorder.ideal_ms, reorder.lost_ms) == (None, 0.0, 1.0)


def test_what_is_unknown_has_no_ideal(block: Path) -> None:
    assert [layer.ideal_ms for layer in found(block, ("conv1", "Conv"), peaks=None)] == [None]
    assert [layer.ideal_ms for layer in found(block, ("conv1", "Conv"), precision="bf16")] == [None]
    (nameless,) = found(block, ("Conv_7", "Conv"))  # a product is the graph's, whatever it is called
    assert (nameless.ideal_ms, nameless.lost_ms) == (None, None)


def test_the_worst_lose_most_and_not_take_most() -> None:
    def layer(name: str, ms: float, ideal: float) -> LayerRecord:
        lost_ms = max(0.0, ms - ideal)
        return LayerRecord(name=name, operator="", node=None, ms=ms, ideal_ms=ideal, bound=None, lost_ms=lost_ms)

    layers = [layer("long", 10, 9.5), layer("bad", 4, 1), layer("good", 1, 1.2)]
    assert [one.name for one in worst(layers, 2)] == ["bad", "long"]


def test_onnx_runtimes_profile_is_averaged_without_its_first_run() -> None:
    def event(name: str, microseconds: float) -> dict[str, Any]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": {"op_name": "Conv"}}

    run = {"cat": "Session", "name": "model_run", "dur": 5000}
    events = [event("a", 900), event("b", 800), run, event("a", 10), event("b", 20), event("a", 30), event("b", 20)]
    assert node_times(events, 2) == [
        LayerTime("a", "Conv", pytest.approx(20e-6)), LayerTime("b", "Conv", pytest.approx(20e-6)),
    ]  # fmt: skip


def test_the_command_profiles_every_runtime(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "resnet_onnx", "bench", "cifar-resnet20", "--runtime", "ort-cpu,openvino,torch"]
    saved = tmp_path / "r.json"
    done = subprocess.run(
        [*command, "--batch", "2", "--duration", "0.3", "--profile", "--save", str(saved)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for row in json.loads(saved.read_text())["results"]:
        layers = row["layers"]
        convolutions = [layer for layer in layers if "conv" in layer["operator"].lower()]
        assert len(convolutions) == 19, row["runtime"]
        assert len({layer["node"] for layer in convolutions}) == 19, "each is found in the graph, none twice"
        assert all(layer["ms"] > 0 and layer["ideal_ms"] > 0 for layer in convolutions)
        assert all(layer["lost_ms"] == max(0, layer["ms"] - layer["ideal_ms"]) for layer in layers)
        assert f"Where the missing share goes: {row['runtime']} batch 2" in done.stdout
    assert np.isfinite(sum(layer["ms"] for layer in layers))


def test_a_profile_of_concurrent_runs_says_why_there_is_none() -> None:
    command = [sys.executable, "-m", "resnet_onnx", "bench", "cifar-resnet20", "--runtime", "ort-cpu", "--batch", "1"]
    done = subprocess.run(
        [*command, "--streams", "2", "--duration", "0.1", "--profile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "only rows of one run at a time are" in done.stderr


def test_what_a_runtime_converts_by_itself_is_no_product(block: Path) -> None:
    names = ("Convert", "QuantizeLinear", "DequantizeLinear")
    assert [layer.ideal_ms for layer in found(block, *[(f"x_{name}", name) for name in names])] == [0.0, 0.0, 0.0]
    products = ("Convolution", "ConvInteger", "FusedGemm", "Linear", "QLinearConv", "MatMul", "FullyConnected")
    assert [layer.ideal_ms for layer in found(block, *[(f"x_{name}", name) for name in products])] == [None] * 7


def test_layers_that_lose_nothing_take_no_place_among_the_worst(capsys: Any) -> None:
    from resnet_onnx.cli.bench_profile import print_profile
    from resnet_onnx.cli.terminal import Terminal

    def layer(name: str, ms: float, lost_ms: float | None) -> dict[str, Any]:
        ideal = None if lost_ms is None else ms - lost_ms
        known = {"name": name, "operator": "Conv", "node": None, "bound": None}
        return {**known, "ms": ms, "ideal_ms": ideal, "lost_ms": lost_ms}

    layers = [layer(f"fast{i}", 9.0, 0.0) for i in range(12)] + [layer("unknown", 5.0, None), layer("slow", 2.0, 1.0)]
    print_profile(Terminal(), [typed(BenchRow, saved_results.row(saved_results.noisy(1), layers=layers))])
    shown = capsys.readouterr().out
    assert shown.index("slow") < shown.index("unknown")
    assert "fast" not in shown
