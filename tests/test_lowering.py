"""Lowerings: what they change, that the numbers stay, that layers really fuse, and the cache."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support import precision_models
from support.precision_models import NET
from support.quantised_models import outputs, quantised, sqnr_db

from converters import graph, lowering
from converters.graph import Graph
from converters.lowering import portable
from resnet_onnx import workflow
from resnet_onnx.cli.main import main
from runtimes import ModelSource, files, onnx_gate, onnx_types, open_runtime
from runtimes.registry import runtimes_that


@pytest.fixture
def int8_file(tmp_path: Path) -> Path:
    return quantised(precision_models.residual(tmp_path / "net.onnx"), tmp_path)


def lowered(path: Path, runtime: str, *, exact: bool = False) -> lowering.Lowering:
    made = lowering.lowered_file(onnx_gate.check_onnx(path), runtime, exact=exact)
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


@pytest.mark.parametrize("runtime", runtimes_that(lambda found: found.lowers_int8))
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


def test_a_file_of_another_tool_with_integer_biases_keeps_its_numbers(tmp_path: Path) -> None:
    """Their scales are data scale × weight scale: halving the data scale alone would halve every bias."""
    import onnxruntime as ort
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(precision_models.feeds())

        def get_next(self) -> Any:
            return next(self.left, None)

    plain, path = precision_models.residual(tmp_path / "net.onnx"), tmp_path / "theirs.onnx"
    quantize_static(plain, path, Reader(), quant_format=QuantFormat.QDQ, activation_type=QuantType.QInt8,
                    weight_type=QuantType.QInt8, extra_options={"ActivationSymmetric": True})  # fmt: skip
    found = Graph(onnx.load(path))
    assert portable.pairs(found)
    assert not portable.is_portable(found)
    model = workflow.resolve(workflow.Request(model=str(path)))
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = next(iter(precision_models.feeds()))
    (want,) = session.run(None, dict(feeds))
    with open_runtime("ort-cpu", workflow.source(model, "ort-cpu")) as opened:
        np.testing.assert_array_equal(opened.run(feeds)["y"], want)
    assert sqnr_db(outputs(plain), outputs(path)) > 15


def test_weights_in_blocks_are_no_products_of_ours() -> None:
    nodes = [
        onnx.helper.make_node("DequantizeLinear", ["a", "s", "z"], ["data"]),
        onnx.helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["weight"], axis=0, block_size=2),
        onnx.helper.make_node("MatMul", ["data", "weight"], ["y"]),
    ]
    arrays = {"s": np.float32(1), "z": np.int8(0), "w": np.ones((4, 3), np.int8), "ws": np.ones((2, 3), np.float32),
              "wz": np.zeros((2, 3), np.int8)}  # fmt: skip
    made = onnx.helper.make_graph(
        nodes, "blocks", [onnx.helper.make_tensor_value_info("a", onnx.TensorProto.INT8, ["n", 4])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()],
    )  # fmt: skip
    assert portable.quantised_products(Graph(onnx.helper.make_model(made))) == []


def test_the_exact_form_clips_behind_any_operator(tmp_path: Path) -> None:
    """A GlobalAveragePool after a ReLU is never negative either, and other pictures go beyond what calibration saw."""
    path = quantised(precision_models.residual(tmp_path / "net.onnx"), tmp_path)
    model = onnx.load(path)
    found = Graph(model)
    for pair in portable.pairs(found):
        if found.producer.get(pair.quantize.input[0]) is not None:  # ranges that are exceeded
            third = np.asarray(np.float32(pair.scale / 3))
            found.constants[pair.quantize.input[1]].CopyFrom(
                onnx.numpy_helper.from_array(third, pair.quantize.input[1])
            )
    narrow = tmp_path / "narrow.onnx"
    graph.write(narrow, model, {})
    want = outputs(narrow, optimize=False)
    assert sqnr_db(want, outputs(lowered(narrow, "ort-cpu", exact=True).path, optimize=False)) > 45


def test_files_in_another_form_are_opened_as_they_are(int8_file: Path) -> None:
    made = lowered(int8_file, "ort-cpu")
    assert lowering.lowered_file(made.checked, "ort-cpu") is None
    assert lowering.lowered_file(made.checked, "openvino") is None
    assert lowering.lowered_file(onnx_gate.check_onnx(int8_file), "tensorrt-rtx") is None
    assert lowering.lowered_file(onnx_gate.check_onnx(int8_file.with_name("net.onnx")), "ort-cpu") is None


def test_the_cache_is_used_and_a_damaged_entry_is_made_again(int8_file: Path) -> None:
    first = lowered(int8_file, "ort-cpu")
    again = lowered(int8_file, "ort-cpu")
    assert (first.path, again.path, again.cached) == (again.path, first.path, True)
    sound = first.path.read_bytes()
    first.path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    third = lowered(int8_file, "ort-cpu")
    assert not third.cached
    assert third.path.read_bytes() == sound


@pytest.mark.parametrize("runtime", runtimes_that(lambda found: found.lowers_int8))
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
    assert json.loads(onnx_gate.check_onnx(target).metadata[onnx_types.LOWERED])["runtime"] == "ort-cpu"
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
            graph.load(onnx_gate.check_onnx(plain)),
            precision,
            precision_models.feeds(),
            folder=tmp_path,
            source=NET,
        )
        paths.append(tmp_path / f"{precision}.onnx")
        graph.write(paths[-1], made.model, {})
    for path in paths:
        for target in ("sm86", "sm120"):
            assert build_engine(onnx_gate.check_onnx(path), library="tensorrt-rtx", target=target).size_bytes > 1000
