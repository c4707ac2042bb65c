"""Export: what is in the file, that it is verified before it is kept, and that nothing is lost when it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from converters import torch_export
from converters.torch_export import ExportOptions
from resnet_onnx import workflow
from resnet_onnx.cli.main import main
from resnet_onnx.data.samples import sample_pictures
from resnet_onnx.workflow import Request
from runtimes import ModelSource, files, onnx_gate, open_runtime
from runtimes.errors import CheckFailed

ROOT = Path(__file__).resolve().parent.parent


def run_json(capfd: Any, *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main([*arguments, "--json"])
    document: dict[str, Any] = json.loads(capfd.readouterr().out)
    return code, document


def test_the_file_says_what_it_is(tmp_path: Path, capfd: Any) -> None:
    path = tmp_path / "net.onnx"
    code, result = run_json(
        capfd, "export", "--model", "cifar-resnet8", "--seed", "5", "--output", str(path),
        "--mean", "0.1,0.2,0.3", "--std", "0.4,0.5,0.6", "--labels", "cifar10",
    )  # fmt: skip
    assert code == 0
    assert result["path"] == str(path)
    assert result["precision"] == "fp32"
    assert result["sha256"] == files.sha256_file(path)
    assert result["verified"]["batches"] == [1, 3, 64]
    assert 0 < result["verified"]["relative_rmse"] < 1e-5
    metadata = onnx_gate.check_onnx(path).metadata
    network = json.loads(metadata["resnet_onnx.network"])
    assert network["preprocessing"]["mean"] == [0.1, 0.2, 0.3]
    assert network["labels"][0] == "airplane"
    assert network["weights_sha256"] == result["weights_sha256"]
    assert metadata["precision"] == "fp32"
    manifest = json.loads(onnx_gate.manifest_path(path).read_text())
    assert manifest["model"]["sha256"] == result["sha256"]
    model = onnx.load(path)
    assert [i.name for i in model.graph.input] == ["input"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not [n for n in model.graph.node if n.op_type == "BatchNormalization"]


def test_nodes_are_named_after_modules_and_no_folder_of_this_machine_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    workflow.export(workflow.resolve(Request(model="cifar-resnet8")), path)
    names = [node.name for node in onnx.load(path).graph.node]
    assert {"conv1", "layer2.0.conv2", "fc"} <= set(names)
    assert len(set(names)) == len(names)
    data = path.read_bytes()
    assert str(ROOT).encode() not in data
    assert b"site-packages" not in data


def test_the_same_command_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        workflow.export(workflow.resolve(Request(model="cifar-resnet8", seed=2)), tmp_path / name)
    assert files.sha256_file(tmp_path / "a.onnx") == files.sha256_file(tmp_path / "b.onnx")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_uint8_input_takes_bytes_and_gives_the_same_scores(tmp_path: Path, layout: Any) -> None:
    plain = workflow.resolve(Request(model="cifar-resnet8"))
    form = workflow.OnnxForm(input="uint8", layout=layout)
    bytes_in = workflow.resolve(Request(model="cifar-resnet8", form=form))
    workflow.export(plain, tmp_path / "float.onnx")
    workflow.export(bytes_in, tmp_path / "uint8.onnx")
    pictures = sample_pictures(3, plain.preprocessing, seed=9)  # type: ignore[arg-type]
    scores = []
    for name in ("float.onnx", "uint8.onnx"):
        model = workflow.resolve(Request(model=str(tmp_path / name)))
        with open_runtime("ort-cpu", workflow.source(model, "ort-cpu")) as runtime:
            feeds = workflow.feeds_of(model, pictures)
            scores.append(runtime.run(feeds)["logits"])
    assert feeds["input"].dtype == np.uint8
    assert feeds["input"].shape == ((3, 3, 32, 32) if layout == "NCHW" else (3, 32, 32, 3))
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-5)


def test_other_tools_quantise_the_file(tmp_path: Path) -> None:
    """What a file says of the types of its initialisers would contradict what ONNX Runtime puts in their place."""
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path, ready, dynamic = (tmp_path / f"{name}.onnx" for name in ("net", "ready", "dynamic"))
    assert main(["export", "--model", "cifar-resnet20", "-o", str(path), "--quiet"]) == 0
    graph = onnx.load(path).graph
    assert not {value.name for value in graph.value_info} & {tensor.name for tensor in graph.initializer}
    assert graph.value_info
    quant_pre_process(path, ready)
    quantize_dynamic(path, dynamic)
    feeds = workflow.sample_feeds(workflow.resolve(workflow.Request(model=str(path))), 4)
    results = []
    for one in (path, ready, dynamic):
        with open_runtime("ort-cpu", ModelSource(path=one)) as opened:
            results.append(opened.run(feeds)["logits"])
    assert np.abs(results[1] - results[0]).max() < 1e-4 * np.abs(results[0]).max()
    assert 0 < np.abs(results[2] - results[0]).max() < 0.1 * np.abs(results[0]).max()


def test_a_fixed_batch_is_fixed(tmp_path: Path, capfd: Any) -> None:
    path = tmp_path / "four.onnx"
    code, result = run_json(capfd, "export", "cifar-resnet8", "--batch", "4", "--opset", "21", "-o", str(path))
    assert code == 0
    assert result["verified"]["batches"] == [4, 4, 4]
    checked = onnx_gate.check_onnx(path)
    assert checked.inputs[0].shape[0] == 4
    assert checked.opset == 21


class _Changing(nn.Module):
    """A module whose next call computes something else: what a wrong export looks like from outside."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.factor


def _run(path: Path, feeds: Any) -> Any:
    with open_runtime("ort-cpu", ModelSource(path=path)) as runtime:
        return [runtime.run(batch) for batch in feeds]


@pytest.mark.parametrize(("factor", "reason"), [(1.001, "does not compute"), (float("nan"), "NaN")])
def test_a_wrong_export_is_never_kept(tmp_path: Path, factor: float, reason: str, monkeypatch: Any) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"the old file")
    module = _Changing(1.0).eval()
    batches = [(torch.randn(n, 4),) for n in (1, 3, 8)]
    really = torch_export.export

    def export_then_change(*arguments: Any) -> None:
        really(*arguments)
        module.factor = factor

    monkeypatch.setattr(torch_export, "export", export_then_change)
    with pytest.raises(CheckFailed, match=reason):
        torch_export.write_verified(
            path, module, batches[1], ExportOptions(), metadata={}, manifest={},
            check=torch_export.Check(batches=batches, evaluate=_run, runtime="ort-cpu", bound=2.0**-12),
        )  # fmt: skip
    assert path.read_bytes() == b"the old file"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx"]


def test_foreign_weights_become_a_network_with_the_right_scores(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    original = resnet18(num_classes=7).eval()
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    (tmp_path / "labels.txt").write_text("\n".join("abcdefg"))
    request = Request(
        model="resnet18", weights=str(tmp_path / "weights.pth"), labels=str(tmp_path / "labels.txt"), image_size=64
    )
    path = tmp_path / "mine.onnx"
    workflow.export(workflow.resolve(request), path)
    model = workflow.resolve(Request(model=str(path)))
    assert model.labels == tuple("abcdefg")
    assert model.trained is True
    assert model.preprocessing is not None
    pictures = sample_pictures(2, model.preprocessing)
    feeds = workflow.feeds_of(model, pictures)
    with open_runtime("ort-cpu", workflow.source(model, "ort-cpu")) as runtime:
        found = runtime.run(feeds)["logits"]
    with torch.inference_mode():
        expected = original(torch.from_numpy(feeds["input"])).numpy()
    assert np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)) < 5e-6


def test_an_export_for_a_runtime_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = workflow.resolve(Request(model="cifar-resnet8", seed=77))
    first = workflow.onnx_path(model)
    stamp = first.stat().st_mtime_ns

    def never(*_: Any) -> None:
        raise AssertionError("exported again")

    monkeypatch.setattr(workflow.onnx_form, "export", never)
    assert workflow.onnx_path(model) == first
    assert first.stat().st_mtime_ns == stamp


def test_a_damaged_export_in_the_cache_is_made_again() -> None:
    model = workflow.resolve(Request(model="cifar-resnet8", seed=78))
    path = workflow.onnx_path(model)
    good = path.read_bytes()
    path.write_bytes(good[:1000] + b"\xff" + good[1001:])
    assert workflow.onnx_path(model).read_bytes() == good


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "resnet50-v1",
        "plain18",
        "plain34",
        "vgg16",
        "vgg19",
    ],
)
def test_every_imagenet_network_is_equal_on_all_cpu_runtimes_on_photos(
    name: str, shared_data: Path, tmp_path: Path, capfd: Any
) -> None:
    path = tmp_path / f"{name}.onnx"
    assert run_json(capfd, "export", "--model", name, "-o", str(path))[0] == 0
    code, result = run_json(
        capfd, "parity", str(path), "--runtimes", "torch,ort-cpu,openvino",
        "--data", str(shared_data / "imagenet-photos-100.zip"), "--images", "12",
    )  # fmt: skip
    assert code == 0, [row["reason"] for row in result["results"]]


@pytest.mark.parametrize("runtime", ["torch", "ort-cpu", "openvino"])
def test_trained_weights_keep_their_accuracy(runtime: str, shared_data: Path, tmp_path: Path, capfd: Any) -> None:
    """The published CIFAR weights on every fifth test JPEG; all 10,000 give 81.03 % (README)."""
    path = tmp_path / "cifar.onnx"
    code, _ = run_json(
        capfd, "export", "--model", "cifar-resnet20", "--weights", str(shared_data / "cifar-resnet20.th"),
        "--mean", ".485,.456,.406", "--std", ".229,.224,.225", "-o", str(path),
    )  # fmt: skip
    assert code == 0
    code, result = run_json(
        capfd, "evaluate", str(path), "--data", str(shared_data / "cifar10-jpeg.zip"), "--runtime", runtime,
        "--limit", "2000",
    )  # fmt: skip
    assert code == 0
    assert result["images"] == 2000
    assert abs(result["top1"] - EVERY_FIFTH) <= 0.0006, result["top1"]


EVERY_FIFTH = 0.8045
"""Measured with torch in float32 on the same 2,000 pictures."""
