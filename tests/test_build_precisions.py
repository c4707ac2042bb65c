"""fp16, bf16 and int8 files are what TensorRT-RTX parses and builds, for two generations of GPUs. Built, not run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from support.rtx import TARGETS, build, count, needs_rtx

from converters import calibration, graph, int8
from resnet_onnx import workflow
from resnet_onnx.cli.main import main
from runtimes import ModelSource, onnx_gate

pytestmark = needs_rtx

_LARGE = pytest.mark.slow
NETWORKS = [
    pytest.param("cifar-resnet8", id="cifar-resnet8"),
    pytest.param("resnet18", id="resnet18", marks=_LARGE),
    pytest.param("resnet50", id="resnet50", marks=_LARGE),
    pytest.param("resnet101", id="resnet101", marks=_LARGE),
    pytest.param("vgg16", id="vgg16", marks=_LARGE),
]


def plain(network: str, folder: Path) -> Path:
    path = folder / f"{network}.onnx"
    workflow.export(workflow.resolve(workflow.Request(model=network)), path)
    return path


def in_int8(path: Path, network: str, folder: Path) -> Path:
    """The int8 file as ``convert`` makes it, without the gate: random weights of deep networks don't pass it."""
    model = workflow.resolve(workflow.Request(model=network))
    plan = int8.plan(int8.prepared(graph.load(onnx_gate.check_onnx(path)), what=network))
    pictures = [workflow.sample_feeds(model, 2, seed=seed) for seed in range(2)]
    seen = calibration.observe(
        plan.model, plan.observed, pictures, folder=folder, source=ModelSource(path=path, label=network)
    )
    target = folder / "int8.onnx"
    graph.write(target, int8.quantise(plan, seen.ranges("minmax")), {})
    return target


def products(path: Path) -> int:
    return sum(node.op_type == "Conv" for node in onnx.load(path, load_external_data=False).graph.node)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_built_in_itself(
    network: str, precision: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, half = plain(network, tmp_path), tmp_path / "half.onnx"
    assert main(["convert", str(path), "--to", precision, "--quiet", "-o", str(half)]) == 0
    capfd.readouterr()
    for target in TARGETS:
        found = build(capfd, half, "--target", target, "-o", str(tmp_path / f"{target}.engine"))
        assert (found["precision"], found["target"]) == (precision, target)
        assert count(found, "convolution", precision) == products(path)


@pytest.mark.parametrize("network", NETWORKS)
def test_int8_is_built_with_every_pair(network: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = plain(network, tmp_path)
    whole = in_int8(path, network, tmp_path)
    pairs = sum(node.op_type == "QuantizeLinear" for node in onnx.load(whole).graph.node)
    sizes: dict[str, Any] = {}
    for target in TARGETS:
        found = build(capfd, whole, "--target", target, "-o", str(tmp_path / f"{target}.engine"))
        assert (found["precision"], found["target"]) == ("int8", target)
        assert count(found, "quantize", "int8") == pairs
        sizes[target] = found["size_bytes"]
    if network == "resnet50":  # of small networks the kernels are larger than the weights
        whole_size = build(capfd, path, "--target", TARGETS[0])["size_bytes"]
        assert sizes[TARGETS[0]] <= 0.35 * whole_size
        print(f"resnet50: {sizes[TARGETS[0]] / 1e6:.1f} MB in int8, {whole_size / 1e6:.1f} MB in fp32")
