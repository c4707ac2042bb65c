"""A runtime that another package declares goes through every command; no file of ours knows its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from support import made_up_runtime
from support.made_up_runtime import NAME, MadeUpRuntime

from resnet_onnx import workflow
from resnet_onnx.cli.main import main
from runtimes import registry
from runtimes.errors import RuntimeUnavailable, UsageError
from runtimes.fake import FakeRuntime
from runtimes.ort import OrtCpuRuntime, OrtCudaRuntime
from runtimes.ov import OpenVINORuntime
from runtimes.pytorch import TorchRuntime
from runtimes.reference import ReferenceRuntime
from runtimes.spec import RuntimeOptions
from runtimes.testing import RuntimeContract


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(made_up_runtime.install(tmp_path / "site-packages")))


@pytest.fixture
def net(tmp_path: Path) -> str:
    """A convolution and its mean for ten classes, of pictures [batch, 3, 16, 16], as some other tool exported it."""
    weight = np.random.default_rng(0).uniform(0, 1, (10, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["pixels", "w"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["c"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["logits"], name="flatten"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return str(path)


def run(capfd: pytest.CaptureFixture[str], *line: str, code: int = 0) -> Any:
    assert main([*line, "--json"]) == code, capfd.readouterr().out
    return json.loads(capfd.readouterr().out)


class TestMadeUpRuntime(RuntimeContract):
    runtime = MadeUpRuntime


def test_doctor_names_it(capfd: pytest.CaptureFixture[str]) -> None:
    (row,) = [row for row in run(capfd, "doctor")["runtimes"] if row["name"] == NAME]
    assert (row["available"], row["version"], row["devices"]) == (True, "1.2.3", ["cpu"])
    assert main(["doctor"]) == 0
    assert MadeUpRuntime.title in capfd.readouterr().out


def test_it_is_measured_proved_and_reported(net: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bench, parity, page = tmp_path / "bench.json", tmp_path / "parity.json", tmp_path / "report.html"
    line = ("--batch", "1", "--duration", "0.2", "--channels-last")  # which it uses
    measured = run(capfd, "bench", net, "--runtime", NAME, *line, "--save", str(bench))
    assert [(row["runtime"], row["precision"]) for row in measured["results"]] == [(NAME, "fp32")]
    proved = run(capfd, "parity", net, "--runtimes", f"{NAME},ort-cpu", "--save", str(parity), "--localize")
    mine, theirs = proved["results"]
    assert (mine["runtime"], mine["passed"], mine["budget"]) == (NAME, True, theirs["budget"])
    run(capfd, "report", str(bench), str(parity), "--out", str(page))
    assert NAME in page.read_text()


def test_all_takes_it_too(net: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert NAME in registry.parse_names("all")
    assert NAME in registry.parse_names("all", device="cpu")
    assert not MadeUpRuntime.has_device("cuda")
    line = ("--data", "digits", "--image-size", "16", "--limit", "2", "--runtime", "all")
    assert NAME in [row["runtime"] for row in run(capfd, "evaluate", net, *line)["results"]]


def test_it_evaluates_and_predicts(net: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = ("--data", "digits", "--image-size", "16", "--limit", "20", "--runtime", f"{NAME},ort-cpu")
    mine, theirs = run(capfd, "evaluate", net, *line)["results"]
    assert (mine["runtime"], mine["top1"], mine["images"]) == (NAME, theirs["top1"], 20)
    Image.new("RGB", (16, 16), (80, 40, 90)).save(tmp_path / "p.png")
    found = run(capfd, "predict", net, str(tmp_path / "p.png"), "--image-size", "16", "--runtime", NAME)
    assert found["predictions"][0]["top"][0]["label"]


def test_a_conversion_is_measured_on_it(net: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = ("--to", "fp16", "--image-size", "16", "--min-speedup", "0.001", "--runtime", NAME)
    made = run(capfd, "convert", net, *line, "-o", str(tmp_path / "half.onnx"))
    assert list(made["speed"]["runtimes"]) == [NAME]


def test_there_is_nothing_to_build_for_it(net: str, capfd: pytest.CaptureFixture[str]) -> None:
    error = run(capfd, "build", net, "--runtime", NAME, code=2)["error"]
    assert error["message"] == f"there is nothing to build for runtime '{NAME}': it {MadeUpRuntime.build_advice}"


def test_an_option_is_refused_that_it_does_not_declare(net: str, capfd: pytest.CaptureFixture[str]) -> None:
    error = run(capfd, "bench", net, "--runtime", NAME, "--autocast", "bf16", code=2)["error"]
    assert error["message"] == f"--autocast is for torch, torch-compile, and {NAME} would not use it"
    error = run(capfd, "bench", net, "--runtime", "openvino", "--channels-last", code=2)["error"]
    assert NAME in error["message"]


def test_a_scaled_evaluation_is_refused_that_needs_another_form(net: str, capfd: pytest.CaptureFixture[str]) -> None:
    line = ("--data", "digits", "--scales", "16", "--runtime", NAME)
    assert "torch only" in run(capfd, "evaluate", net, *line, code=2)["error"]["message"]


# ---- the arithmetic, which the budget of an error follows ------------------------------------------------------------


@pytest.mark.parametrize("runtime", [MadeUpRuntime, OrtCpuRuntime, OpenVINORuntime, ReferenceRuntime, TorchRuntime])
def test_on_a_cpu_tf32_changes_nothing(runtime: type[registry.Runtime]) -> None:
    assert runtime.arithmetic("fp32", RuntimeOptions(tf32=True), "cpu") == "fp32"
    assert runtime.arithmetic("fp32", RuntimeOptions(tf32=True)) == "fp32"


@pytest.mark.parametrize(
    ("runtime", "device", "options", "precision", "expected"),
    [
        (TorchRuntime, "cuda", RuntimeOptions(tf32=True), "fp32", "tf32"),
        (TorchRuntime, "cuda:1", RuntimeOptions(tf32=True), "fp16", "fp16"),
        (TorchRuntime, "cuda", RuntimeOptions(), "fp32", "fp32"),
        (TorchRuntime, "cuda", RuntimeOptions(tf32=True, autocast="bf16"), "fp32", "bf16"),
        (TorchRuntime, "cpu", RuntimeOptions(autocast="fp16"), "fp32", "fp16"),
        (OrtCudaRuntime, None, RuntimeOptions(tf32=True), "fp32", "tf32"),
        (OrtCudaRuntime, None, RuntimeOptions(tf32=True), "int8", "int8"),
        (FakeRuntime, None, RuntimeOptions(autocast="bf16"), "fp32", "fp32"),
    ],
)
def test_the_arithmetic_is_what_file_options_and_device_give(
    runtime: type[registry.Runtime], device: str | None, options: RuntimeOptions, precision: str, expected: str
) -> None:
    assert runtime.arithmetic(precision, options, device) == expected


def test_a_runtime_on_the_cpu_is_held_to_the_budget_of_float32(tmp_path: Path) -> None:
    model = workflow.resolve(workflow.Request(model="cifar-resnet8"))
    plans = (
        workflow.ParityPlan(runtimes=["torch", NAME], images=1, options=RuntimeOptions(tf32=tf32))
        for tf32 in (True, False)
    )
    with_tf32, without = (workflow.check_parity(model, plan) for plan in plans)
    assert [one.budget for one in with_tf32.outcomes] == [one.budget for one in without.outcomes]


# ---- packages that are broken ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ("nowhere_at_all:Adapter", "can't be loaded: No module named 'nowhere_at_all'"),
        ("support.made_up_runtime:Absent", "can't be loaded"),
        ("support.made_up_runtime:install", "is not the adapter of a runtime named 'broken'"),
        ("support.made_up_runtime:MadeUpRuntime", "is not the adapter of a runtime named 'broken'"),
    ],
)
def test_a_broken_adapter_is_told_and_stops_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: str, words: str
) -> None:
    folder = made_up_runtime.install(tmp_path / "other", adapter=adapter, name="broken")
    monkeypatch.syspath_prepend(str(folder))
    answer = registry.probe("broken")
    assert not answer.available
    assert words in answer.reason
    assert "made-up" in answer.fix
    assert "broken" in registry.runtime_names()
    assert "broken" not in registry.parse_names("all")
    with pytest.raises(RuntimeUnavailable, match="broken"):
        registry.parse_names("ort-cpu,broken")


def test_a_name_of_ours_stays_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(made_up_runtime.install(tmp_path / "other", name="ort-cpu")))
    assert registry.adapter("ort-cpu") is OrtCpuRuntime
    assert registry.runtime_names().count("ort-cpu") == 1


def test_without_the_package_the_name_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.path", [part for part in __import__("sys").path if not part.startswith(str(tmp_path))])
    with pytest.raises(UsageError, match=f"unknown runtime '{NAME}'"):
        registry.adapter(NAME)
