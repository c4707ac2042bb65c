"""Localisation names the node in which a fault was planted, on every runtime, and says how sure it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from resnet_onnx import workflow
from resnet_onnx.cli.main import main
from resnet_onnx.parity.localize import Graph, localize, match
from resnet_onnx.workflow import Request
from runtimes.spec import ModelSource, Target

Change = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("localize") / "cifar-resnet20.onnx"
    workflow.export(workflow.resolve(Request(model="cifar-resnet20", seed=3)), path)
    return path


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def weight(name: str, change: Callable[[np.ndarray], None], slot: int = 1) -> Change:
    def apply(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == node_of(model, name).input[slot])
        values = numpy_helper.to_array(tensor).copy()
        change(values)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return apply


def scale_channel(channel: int, factor: float) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values[channel] *= factor

    return change


def drop(name: str) -> Change:
    def apply(model: onnx.ModelProto) -> None:
        gone = node_of(model, name)
        for node in model.graph.node:
            node.input[:] = [gone.input[0] if i == gone.output[0] else i for i in node.input]
        model.graph.node.remove(gone)

    return apply


def pad(name: str) -> Change:
    def apply(model: onnx.ModelProto) -> None:
        next(a for a in node_of(model, name).attribute if a.name == "pads").ints[:] = [0, 1, 2, 1]

    return apply


def forget_names(model: onnx.ModelProto) -> None:
    for index, node in enumerate(model.graph.node):
        for other in model.graph.node:
            other.input[:] = [f"t{index}" if i == node.output[0] and i != "logits" else i for i in other.input]
        node.output[:] = [o if o == "logits" else f"t{index}" for o in node.output]
        node.name = f"n{index}"


def saved(source: Path, target: Path, *changes: Change) -> Path:
    model = onnx.load(source)
    for change in changes:
        change(model)
    onnx.save(model, target)
    return target


def located(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main(["parity", *arguments, "--images", "2", "--json"])
    return code, json.loads(capfd.readouterr().out)


@pytest.mark.parametrize(
    ("change", "node", "cause"),
    [
        (weight("layer2.1.conv2", scale_channel(3, 1.01)), "layer2.1.conv2", "1 of 32 output channels (channel 3, ra"),
        (weight("conv1", scale_channel(0, 1.01)), "conv1", "Its weight differs from the gold's in 1 of 16"),
        (weight("fc", scale_channel(7, 0.99)), "fc", "channel 7, ratio 0.99"),
        (weight("layer3.0.conv1", scale_channel(5, 1.5), slot=2), "layer3.0.conv1", "Its bias differs"),
        (drop("layer2.0.relu"), "layer2.0.relu", "goes on from layer2.0.conv1"),
        (drop("layer2.0.relu_2"), "layer2.0.relu_2", "Gold has it before layer2.1.conv1"),
        (pad("layer3.1.conv1"), "layer3.1.conv1", "Its attribute pads is [0, 1, 2, 1], gold's [1, 1, 1, 1]"),
        (weight("layer1.2.conv1", scale_channel(2, float("nan"))), "layer1.2.conv1", "1 of 16 output channels"),
    ],
    ids=["channel", "stem", "fc", "bias", "relu in a block", "relu at a block's end", "padding", "NaN"],
)
def test_the_planted_fault_is_named(
    cifar: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], change: Change, node: str, cause: str
) -> None:
    broken = saved(cifar, tmp_path / "broken.onnx", change)
    code, result = located(capfd, str(broken), "--gold", str(cifar), "--runtimes", "ort-cpu,openvino", "--localize")
    assert code == 1
    found = result["localisation"]["first_differences"]
    assert [(f["runtime"], f["node"], f["sure"]) for f in found] == [("ort-cpu", node, True), ("openvino", node, True)]
    assert all(cause in f["cause"] for f in found)


def test_the_error_per_layer_has_every_runtime_and_is_drawn(cifar: Path, tmp_path: Path, capfd: Any) -> None:
    broken = saved(cifar, tmp_path / "broken.onnx", weight("layer2.1.conv2", scale_channel(3, 1.01)))
    plot = tmp_path / "layers.png"
    code, result = located(capfd, str(broken), "--runtimes", "torch,ort-cpu,openvino", "--plot", str(plot))
    assert code == 1
    layers = {layer["node"]: layer["errors"] for layer in result["localisation"]["ladder"]}
    assert next(iter(layers)) == "conv1"
    assert list(layers)[-1] == "fc"
    assert all(0 < error < 3e-6 for error in layers["layer2.0.relu_2"].values())
    assert layers["layer2.1.relu_2"]["torch"] < 3e-6  # torch has the source weights, and is watched at its modules
    assert layers["layer2.1.relu_2"]["ort-cpu"] > 1e-5
    assert [f["runtime"] for f in result["localisation"]["first_differences"]] == ["ort-cpu", "openvino"]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_sound_model_has_no_first_difference(cifar: Path, capfd: Any) -> None:
    assert main(["parity", str(cifar), "--runtimes", "ort-cpu", "--images", "2", "--localize"]) == 0
    out = capfd.readouterr().out
    assert "no first difference" in out
    assert "stage 3" in out


def test_without_common_names_the_order_of_operators_serves_and_is_less_sure(cifar: Path, tmp_path: Path) -> None:
    broken = saved(cifar, tmp_path / "b.onnx", weight("layer2.1.conv2", scale_channel(3, 1.01)), forget_names)
    expected = [n.name for n in onnx.load(cifar).graph.node].index("layer2.1.conv2")
    assert not match(Graph(broken), Graph(cifar)).by_name
    model = workflow.resolve(Request(model=str(cifar)))
    feeds = workflow.sample_feeds(model, 1)
    target = Target(runtime="ort-cpu", source=ModelSource(path=broken))
    found = localize(broken, cifar, [target], feeds, feeds, failed=["ort-cpu"]).findings[0]
    assert found.node == f"n{expected}"
    assert not found.sure
    assert "order of operators" in found.why


def test_a_drawing_needs_a_known_format(cifar: Path, capfd: Any) -> None:
    code, result = located(capfd, str(cifar), "--plot", "layers.docx")
    assert code == 2
    assert ".png" in result["error"]["message"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["resnet50", "resnet152"])
def test_nine_of_ten_faults_at_random_depths_are_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.onnx"
    model = workflow.resolve(Request(model=name, image_size=32))
    workflow.export(model, path)
    feeds = workflow.sample_feeds(model, 1)
    random = np.random.default_rng(5)
    proto = onnx.load(path)
    nodes = [n.name for n in proto.graph.node if n.op_type in ("Conv", "Relu")]
    chosen = [str(n) for n in random.choice(nodes, 10, replace=False)]
    named = []
    for node in chosen:
        kind = node_of(proto, node).op_type
        channel = int(random.integers(64))
        change = drop(node) if kind == "Relu" else weight(node, scale_channel(channel, 1.01))
        broken = saved(path, tmp_path / "broken.onnx", change)
        target = Target(runtime="ort-cpu", source=ModelSource(path=broken))
        found = localize(broken, path, [target], feeds, feeds, failed=["ort-cpu"]).findings[0]
        named.append(found.node)
        print(node, found.node, found.sure, flush=True)
    print(f"{name}: {list(zip(chosen, named, strict=True))}")
    right = sum(a == b for a, b in zip(chosen, named, strict=True))
    assert right >= 9, list(zip(chosen, named, strict=True))
