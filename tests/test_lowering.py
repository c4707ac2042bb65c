"""Lowerings: what they change, that the numbers stay, that layers really fuse, and the cache."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import precision_models
import pytest
from test_convert_int8 import outputs, quantised, sqnr_db

from converters import graph, lowering
from converters.graph import Graph
from converters.lowering import portable
from resnet_onnx import workflow
from resnet_onnx.cli.main import main
from runtimes import ModelSource, files, onnx_types, open_runtime


@pytest.fixture
def int8_file(tmp_path: Path) -> Path:
    return quantised(precision_models.residual(tmp_path / "net.onnx"), tmp_path)


def lowered(path: Path, runtime: str, *, exact: bool = False) -> lowering.Lowering:
    made = lowering.lowered_file(files.check_onnx(path), runtime, exact=exact)
    assert made is not None
    return made


def test_never_negative_values_are_told_by_what_makes_them(int8_file: Path) -> None:
    found = Graph(onnx.load(int8_file))
    told = {p.quantize.input[0]: portable.never_negative(p.quantize.input[0], found) for p in portable.pairs(found)}
    assert told == {"x": False, "r1": True, "p1": True, "r2": True, "c3": False, "r3": True, "g": True, "f": True}


def test_ort_cpu_gets_unsigned_bytes_integer_biases_and_no_relu(int8_file: Path) -> None:
    made = lowered(int8_file, "ort-cpu")
    assert made.changes == {"unsigned": 6, "shifted": 2, "absorbed_relu": 3, "int32_bias": 4}
    found = Graph(onnx.load(made.path))
    assert "Relu" not in {node.op_type for node in found.proto.node}
    portable_scale = {n.input[0]: Graph(onnx.load(int8_file)).array(n.input[1]) for n in onnx.load(int8_file).graph.node
                      if n.op_type == "QuantizeLinear"}  # fmt: skip
    for node in found.proto.node:
        if node.op_type == "QuantizeLinear":
            zero, scale = found.array(node.input[2]), found.array(node.input[1])
            assert zero is not None
            assert scale is not None
            assert zero.dtype == np.uint8
            if node.input[0] in ("x", "c3"):
                assert int(zero) == 128
                assert scale == portable_scale[node.input[0]]
            else:
                assert int(zero) == 0


def test_openvino_keeps_signed_what_may_be_negative(int8_file: Path) -> None:
    made = lowered(int8_file, "openvino")
    assert made.changes == {"unsigned": 6, "shifted": 0, "absorbed_relu": 3, "int32_bias": 0}


@pytest.mark.parametrize("runtime", lowering.LOWERED_RUNTIMES)
def test_the_lowered_file_is_nearer_to_float32_than_the_portable_one(int8_file: Path, runtime: str) -> None:
    want = outputs(int8_file.with_name("net.onnx"))
    before = sqnr_db(want, outputs(int8_file, "ort-cpu", optimize=False))
    assert sqnr_db(want, outputs(lowered(int8_file, runtime).path, runtime)) > before + 0.5


def test_the_exact_form_gives_the_portable_numbers(int8_file: Path) -> None:
    """Unoptimised, so that both are computed as they stand; only the bias is rounded, to a 2**-31th of its range."""
    want = outputs(int8_file, optimize=False)
    exact = outputs(lowered(int8_file, "ort-cpu", exact=True).path, optimize=False)
    fine = outputs(lowered(int8_file, "ort-cpu").path, optimize=False)
    assert sqnr_db(want, exact) > 45
    assert sqnr_db(want, fine) < 45


def test_ort_fuses_every_convolution_with_its_relu_and_every_addition(int8_file: Path, tmp_path: Path) -> None:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    settings.log_severity_level = 4
    ort.InferenceSession(str(lowered(int8_file, "ort-cpu").path), settings, providers=["CPUExecutionProvider"])
    operators = collections.Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert operators["QLinearConv"] == 3
    assert operators["QLinearAdd"] == 1
    assert operators["QGemm"] == 1
    assert operators["Conv"] == operators["Relu"] == operators["Add"] == operators["Gemm"] == 0


def test_openvino_fuses_convolution_addition_and_relu_in_int8(int8_file: Path) -> None:
    with open_runtime("openvino", ModelSource(path=lowered(int8_file, "openvino").path)) as opened:
        rows = [(row.operator, row.provider.rpartition("_")[2].lower()) for row in opened.placement()]
    assert [kind for operator, kind in rows if operator == "Convolution"] == ["i8"] * 3
    assert not [operator for operator, _ in rows if operator in ("Eltwise", "Relu", "Add")]


def test_a_bias_too_large_for_its_steps_coarsens_a_dead_channel(tmp_path: Path) -> None:
    path = precision_models.residual(tmp_path / "net.onnx")
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name == "w2":
            array[3] *= 1e-12
        if tensor.name == "b2":
            array[3] = 2.0
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, path)
    whole = quantised(path, tmp_path)
    made = lowered(whole, "ort-cpu")
    assert made.changes["int32_bias"] == 4
    assert sqnr_db(outputs(path), outputs(made.path)) > 25


def test_files_in_another_form_are_opened_as_they_are(int8_file: Path) -> None:
    made = lowered(int8_file, "ort-cpu")
    assert lowering.lowered_file(made.checked, "ort-cpu") is None
    assert lowering.lowered_file(made.checked, "openvino") is None
    assert lowering.lowered_file(files.check_onnx(int8_file), "tensorrt-rtx") is None
    assert lowering.lowered_file(files.check_onnx(int8_file.with_name("net.onnx")), "ort-cpu") is None


def test_the_cache_is_used_and_a_damaged_entry_is_made_again(int8_file: Path) -> None:
    first = lowered(int8_file, "ort-cpu")
    again = lowered(int8_file, "ort-cpu")
    assert (first.path, again.path, again.cached) == (again.path, first.path, True)
    sound = first.path.read_bytes()
    first.path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    third = lowered(int8_file, "ort-cpu")
    assert not third.cached
    assert third.path.read_bytes() == sound


@pytest.mark.parametrize("runtime", lowering.LOWERED_RUNTIMES)
def test_the_workflow_opens_the_lowering_and_the_runtime_records_it(int8_file: Path, runtime: str) -> None:
    before = files.sha256_file(int8_file)
    model = workflow.resolve(workflow.Request(model=str(int8_file)))
    assert model.precision == "int8"
    source = workflow.source(model, runtime)
    assert source.path == lowered(int8_file, runtime).path
    with open_runtime(runtime, source) as opened:
        assert opened.recorded["precision"] == opened.recorded["computes_in"] == "int8"
        assert opened.recorded["lowered_from"] == before
        assert opened.recorded["lowered_for"] == runtime
    assert files.sha256_file(int8_file) == before
    assert workflow.source(model, "reference").path == int8_file


def test_build_writes_the_form_of_a_runtime(int8_file: Path, tmp_path: Path, capfd: Any) -> None:
    target = tmp_path / "deploy.onnx"
    assert main(["build", str(int8_file), "--runtime", "ort-cpu", "--output", str(target), "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["path"] == str(target)
    assert set(result) >= {"path", "key", "seconds", "cached"}
    assert json.loads(files.check_onnx(target).metadata[onnx_types.LOWERED])["runtime"] == "ort-cpu"
    np.testing.assert_array_equal(outputs(target), outputs(lowered(int8_file, "ort-cpu").path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["net.onnx", "--runtime", "ort-cpu"], "there is nothing to build for runtime 'ort-cpu'"),
        (["net-int8.onnx", "--runtime", "ort-cpu", "--target", "sm86"], "--target: for engines"),
        (["net-int8.onnx", "--runtime", "ort-cpu", "--output", "a.engine"], "loads an ONNX file"),
        (["net-int8.onnx", "--runtime", "ort-cpu", "--output", "net-int8.onnx"], "is the model itself"),
    ],
)
def test_build_says_what_it_can_not_lower(
    int8_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(int8_file.parent)
    assert main(["build", *arguments]) == 2
    assert words in capfd.readouterr().err


def test_an_engine_of_every_precision_builds_for_two_targets(int8_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'resnet-onnx[tensorrt-rtx]'")
    from converters import half
    from converters.tensorrt_family import build_engine

    plain = int8_file.with_name("net.onnx")
    paths = [int8_file]
    for precision in ("fp16", "bf16"):
        made = half.convert(
            graph.load(files.check_onnx(plain)), precision, precision_models.feeds(), folder=tmp_path, what="net"
        )
        paths.append(tmp_path / f"{precision}.onnx")
        graph.write(paths[-1], made.model, {})
    for path in paths:
        for target in ("sm86", "sm120"):
            assert build_engine(files.check_onnx(path), library="tensorrt-rtx", target=target).size_bytes > 1000
