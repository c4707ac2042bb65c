"""fp16 and bf16: what computes in half, what stays in float32 and is named, and that runtimes say what they do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support import foreign_forms, precision_models
from support.precision_models import NET

from converters import graph, half
from resnet_onnx import workflow
from resnet_onnx.cli.main import main
from resnet_onnx.parity.quantised import float32_twin
from runtimes import ModelSource, files, onnx_arithmetic, onnx_gate, open_runtime
from runtimes.errors import BadModel, CheckFailed, RewritingFailed, UnsupportedModel, UsageError


def converted(path: Path, folder: Path, precision: Any, **options: Any) -> tuple[half.HalfModel, Path]:
    model = graph.load(onnx_gate.check_onnx(path))
    made = half.convert(model, precision, precision_models.feeds(), folder=folder, source=NET, **options)
    target = folder / f"{path.stem}-{precision}.onnx"
    graph.write(target, made.model, {})
    return made, target


def outputs(path: Path, runtime: str = "ort-cpu") -> np.ndarray:
    with open_runtime(runtime, ModelSource(path=path)) as opened:
        found = [opened.run({s.name: f["x"].astype(s.dtype) for s in opened.inputs}) for f in precision_models.feeds()]
    return np.concatenate([next(iter(f.values())) for f in found]).astype(np.float64)


def relative_rmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2) / np.mean(a**2)))


@pytest.mark.parametrize(("precision", "runtime", "unit"), [("fp16", "ort-cpu", 2**-11), ("bf16", "openvino", 2**-8)])
def test_every_layer_computes_in_half_with_inputs_and_outputs_in_float32(
    tmp_path: Path, precision: str, runtime: str, unit: float
) -> None:
    plain = precision_models.residual(tmp_path / "net.onnx")
    made, path = converted(plain, tmp_path, precision)
    assert made.kept == ()
    assert made.converted == 11
    assert made.casts == 2
    checked = onnx_gate.check_onnx(path)
    assert [str(s.dtype) for s in (*checked.inputs, *checked.outputs)] == ["float32", "float32"]
    assert {str(a.data_type) for a in onnx.load(path).graph.initializer if len(a.dims) > 1} == {
        str(half._half_element(precision))  # type: ignore[arg-type]
    }
    error = relative_rmse(outputs(plain), outputs(path, runtime))
    assert unit / 20 < error < 4 * unit


def test_half_io_changes_the_types_of_inputs_and_outputs(tmp_path: Path) -> None:
    plain = precision_models.residual(tmp_path / "net.onnx")
    made, path = converted(plain, tmp_path, "fp16", half_io=True)
    checked = onnx_gate.check_onnx(path)
    assert [str(s.dtype) for s in (*checked.inputs, *checked.outputs)] == ["float16", "float16"]
    assert made.casts == 0
    assert relative_rmse(outputs(plain), outputs(path)) < 2e-3


def test_a_layer_that_overflows_is_named_and_stays_in_float32(tmp_path: Path) -> None:
    plain = precision_models.residual(tmp_path / "net.onnx", first_scale=2e4)
    made, path = converted(plain, tmp_path, "fp16")
    kept = {row.node: row.reason for row in made.kept}
    assert "conv1" in kept
    assert "its output reaches" in kept["conv1"]
    assert "fp16 ends at 6.55e+04" in kept["conv1"]
    assert "block.conv2" not in kept
    assert relative_rmse(outputs(plain), outputs(path)) < 2e-3
    made, path = converted(plain, tmp_path, "bf16")
    assert made.kept == ()  # bfloat16 has float32's range


def test_without_the_search_that_model_overflows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = precision_models.residual(tmp_path / "net.onnx", first_scale=1e5)
    monkeypatch.setattr(half, "_out_of_range", lambda *_: [])
    _, path = converted(plain, tmp_path, "fp16")
    weights = [onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.name.startswith("w1")]
    assert not np.isfinite(weights[0]).all()


def test_weights_too_small_for_fp16_are_named(tmp_path: Path) -> None:
    plain = precision_models.residual(tmp_path / "net.onnx", first_scale=1e-7)
    made, _ = converted(plain, tmp_path, "fp16")
    assert "values too small" in {row.node: row.reason for row in made.kept}["conv1"]


def test_layers_can_be_kept_by_pattern(tmp_path: Path) -> None:
    plain = precision_models.residual(tmp_path / "net.onnx")
    made, path = converted(plain, tmp_path, "fp16", keep=("block.*",))
    assert [row.node for row in made.kept] == ["block.conv1", "block.relu1", "block.conv2", "block.add", "block.relu2"]
    assert relative_rmse(outputs(plain), outputs(path)) < 2e-3
    with pytest.raises(UsageError, match="'nothing' fits no node"):
        converted(plain, tmp_path, "fp16", keep=("nothing",))


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_foreign_models_of_older_operator_sets_convert_too(tmp_path: Path, opset: int) -> None:
    plain = precision_models.residual(tmp_path / "net.onnx", opset=opset, batch_norm=True)
    want = outputs(plain)
    assert relative_rmse(want, outputs(converted(plain, tmp_path, "fp16")[1])) < 2e-3
    _, path = converted(plain, tmp_path, "bf16")
    assert onnx_gate.check_onnx(path).opset == half.BF16_OPSET
    assert relative_rmse(want, outputs(path, "openvino")) < 2e-2


@pytest.mark.parametrize("to", ["fp16", "int8"])
def test_models_from_before_ir_version_4_convert_too(to: str, tmp_path: Path, capfd: Any) -> None:
    """There, every initialiser is an input too."""
    path = precision_models.residual(tmp_path / "net.onnx", opset=8 if to == "fp16" else 11)
    model = onnx.load(path)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    onnx.save(model, path)
    target = tmp_path / "out.onnx"
    more = ["--calibration", "digits", "--count", "32", "--method", "minmax"] if to == "int8" else []
    assert main(["convert", str(path), "--to", to, *more, "-o", str(target)]) == 0, capfd.readouterr().err
    assert [spec.name for spec in onnx_gate.check_onnx(target).inputs] == ["x"]


@pytest.mark.parametrize(("precision", "runtime", "most"), [("fp16", "ort-cpu", 2e-3), ("bf16", "openvino", 2e-2)])
@pytest.mark.parametrize("form", foreign_forms.FORMS)
def test_a_network_converts_in_whatever_form_it_is_written(
    tmp_path: Path, form: str, precision: str, runtime: str, most: float
) -> None:
    if runtime == "openvino" and form == "computed shape":
        pytest.skip("OpenVINO refuses a convolution of unknown rank, in float32 too")
    want = outputs(precision_models.residual(tmp_path / "plain.onnx"))
    foreign = foreign_forms.write(tmp_path / "net.onnx", form)
    assert relative_rmse(want, outputs(foreign)) < 1e-3  # of "weights stored as fp16"; the others are equal
    assert relative_rmse(outputs(foreign), outputs(foreign, "reference")) < 1e-5
    made, path = converted(foreign, tmp_path, precision)
    assert not {row.operator for row in made.kept} & {"Conv", "Gemm", "Clip", "Div", "Shape"}
    graph = onnx.load(path).graph
    half_weights = [t.name for t in graph.initializer if t.data_type == half._half_element(precision)]  # type: ignore[arg-type]
    assert len(half_weights) >= 8
    assert not {value.name for value in graph.value_info} & {tensor.name for tensor in graph.initializer}
    assert 0 < relative_rmse(want, outputs(path, runtime)) < most


def test_a_half_model_with_initialisers_as_inputs_has_a_twin_in_float32(tmp_path: Path) -> None:
    """Parity takes float32's noise from it."""
    plain = precision_models.residual(tmp_path / "net.onnx", opset=13)
    path = converted(plain, tmp_path, "fp16", half_io=True)[1]
    model = onnx.load(path)
    foreign_forms.FORMS["initialisers as inputs"](model)
    onnx_gate.manifest_path(path).unlink()
    onnx.save(model, path)
    twin = float32_twin(path, tmp_path / "twin.onnx")
    assert [str(spec.dtype) for spec in onnx_gate.check_onnx(twin).inputs] == ["float16"]
    assert relative_rmse(outputs(plain), outputs(twin)) < 1e-3


def test_operators_of_another_library_are_named_with_the_way_out(tmp_path: Path, capfd: Any) -> None:
    path = foreign_forms.optimised(tmp_path / "net.onnx")
    for to in ("fp16", "bf16", "int8"):
        more = ["--calibration", "digits", "--count", "16"] if to == "int8" else []
        assert main(["convert", str(path), "--to", to, *more, "-o", str(tmp_path / "out.onnx")]) == 2
        said = capfd.readouterr().err
        assert "operators that are not part of ONNX" in said
        assert "FusedConv (com.microsoft)" in said
        assert "convert the original model, from before it was optimised" in said
    assert not (tmp_path / "out.onnx").exists()


def test_float64_is_told_what_to_do(tmp_path: Path, capfd: Any) -> None:
    path = precision_models.residual(tmp_path / "net.onnx")
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            wide = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    onnx.save(model, path)
    assert main(["convert", str(path), "--to", "fp16", "-o", str(tmp_path / "out.onnx")]) == 2
    said = capfd.readouterr().err
    assert "computes in float64, and fp16 is made from float32" in said
    assert "export the model in float32" in said


@pytest.mark.parametrize("refused_by", ["gate", "runtime"])
def test_a_broken_rewriting_is_our_fault_and_says_why(
    tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch, refused_by: str
) -> None:
    rewrite = half._Rewriter.rewrite

    def broken(self: Any) -> None:
        rewrite(self)
        nodes = self._graph.proto.node
        if refused_by == "gate":
            nodes[1].input[0] = "nowhere"
        else:  # ONNX's checker passes it
            nodes[1].name = nodes[2].name

    path, target = precision_models.residual(tmp_path / "net.onnx"), tmp_path / "out.onnx"
    monkeypatch.setattr(half._Rewriter, "rewrite", broken)
    assert main(["convert", str(path), "--to", "fp16", "-o", str(target)]) == 70
    said = " ".join(capfd.readouterr().err.split())
    assert "internal error: " in said
    if refused_by == "gate":
        assert "rewritten here did not pass the gate" in said
        assert "nowhere" in said
    else:
        assert "ort-cpu opens net and refuses the file that was made of it here" in said
        assert "two nodes with same node name" in said
    assert "please report it" in said
    assert not target.exists()


def test_what_a_runtime_refuses_from_the_start_is_not_our_fault(tmp_path: Path) -> None:
    path = precision_models.residual(tmp_path / "net.onnx")
    copy, model = tmp_path / "copy.onnx", onnx.load(path)
    sound = ModelSource(path=path, label="net")
    model.graph.node[1].name = model.graph.node[2].name
    onnx.save(model, copy)
    with pytest.raises(RewritingFailed, match="opens net and refuses"):
        open_runtime("ort-cpu", sound.rewritten(copy))
    with pytest.raises(UnsupportedModel, match=r"^ort-cpu can't open worse: .*two nodes with same node name"):
        open_runtime("ort-cpu", ModelSource(path=copy, label="worse").rewritten(copy, label="ours"))
    with pytest.raises(BadModel):
        open_runtime("ort-cpu", ModelSource(path=tmp_path / "none.onnx"))


def test_nan_in_the_float32_model_is_said(tmp_path: Path) -> None:
    plain = precision_models.residual(tmp_path / "net.onnx", first_scale=float("nan"))
    with pytest.raises(CheckFailed, match="float32 model itself computes NaN"):
        converted(plain, tmp_path, "fp16")


def test_ort_cpu_says_that_it_upcasts_fp16_and_refuses_bf16_by_operator(tmp_path: Path) -> None:
    plain = precision_models.residual(tmp_path / "net.onnx")
    with open_runtime("ort-cpu", ModelSource(path=converted(plain, tmp_path, "fp16")[1])) as opened:
        assert opened.recorded["precision"] == "fp16"
        assert opened.recorded["computes_in"] == "fp32"
    with pytest.raises(UnsupportedModel, match="no kernel for operator Conv"):
        open_runtime("ort-cpu", ModelSource(path=converted(plain, tmp_path, "bf16")[1]))


def test_openvino_says_in_what_it_computes(tmp_path: Path) -> None:
    import openvino

    plain = precision_models.residual(tmp_path / "net.onnx")
    can = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    with open_runtime("openvino", ModelSource(path=plain)) as opened:
        assert "computes_in" not in opened.recorded
    with open_runtime("openvino", ModelSource(path=converted(plain, tmp_path, "bf16")[1])) as opened:
        kernel = next(row.provider for row in opened.placement() if row.operator == "Convolution")
        assert (opened.recorded["computes_in"] == "bf16") == kernel.endswith("bf16") == ("BF16" in can)
    native = "FP16" in can
    with open_runtime("openvino", ModelSource(path=converted(plain, tmp_path, "fp16")[1])) as opened:
        # Asked for f16 on a CPU without, it would compute in bfloat16 and say nothing.
        assert opened.recorded["computes_in"] == ("fp16" if native else "fp32")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_torch_computes_in_the_precision_of_the_file(tmp_path: Path, precision: str) -> None:
    path = tmp_path / "net.onnx"
    assert main(["export", "--model", "cifar-resnet8", "--precision", precision, "-o", str(path), "--quiet"]) == 0
    model = workflow.resolve(workflow.Request(model=str(path)))
    assert model.precision == precision
    feeds = workflow.sample_feeds(model, 4)
    fp32 = workflow.resolve(workflow.Request(model="cifar-resnet8"))
    with open_runtime("torch", workflow.source(fp32, "torch")) as opened:
        want = opened.run(feeds)["logits"]
    with open_runtime("torch", workflow.source(model, "torch")) as opened:
        assert opened.recorded["dtype"] == {"fp16": "float16", "bf16": "bfloat16"}[precision]
        got = opened.run(feeds)["logits"]
    assert got.dtype == np.float32
    unit = {"fp16": 2**-11, "bf16": 2**-8}[precision]
    assert unit / 20 < relative_rmse(want, got) < 20 * unit


def test_export_in_half_says_so_in_file_and_answer(tmp_path: Path, capfd: Any) -> None:
    path = tmp_path / "net.onnx"
    code = main(["export", "--model", "cifar-resnet8", "--precision", "fp16", "-o", str(path), "--json"])
    result = json.loads(capfd.readouterr().out)
    assert code == 0
    assert result["precision"] == "fp16"
    assert result["path"] == str(path)
    assert result["sha256"] == files.sha256_file(path)
    assert result["conversion"]["sqnr_db"] > 50
    metadata = onnx_gate.check_onnx(path).metadata
    assert metadata["precision"] == "fp16"
    assert json.loads(metadata["resnet_onnx.network"])["weights_sha256"] == result["weights_sha256"]
    assert json.loads(onnx_gate.manifest_path(path).read_text())["conversion"]["to"] == "fp16"


def test_the_precision_of_a_file_without_metadata_is_read_from_its_graph(tmp_path: Path) -> None:
    plain = precision_models.residual(tmp_path / "net.onnx")
    assert onnx_arithmetic.graph_precision(plain) == "fp32"
    for precision in ("fp16", "bf16"):
        assert onnx_arithmetic.graph_precision(converted(plain, tmp_path, precision)[1]) == precision
