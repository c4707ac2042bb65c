"""What a graph computes in follows from its operators, not from metadata or from how its weights are stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from resnet_onnx.cli.main import main
from resnet_onnx.parity.budget import UNIT_ROUNDOFF, Sum, allowance, noise_scale
from resnet_onnx.parity.summation import sums_of
from runtimes import onnx_gate
from runtimes.onnx_arithmetic import computation, graph_precision
from tests.support.rewritings import foreign_net

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def run_json(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main([*arguments, "--json"])
    document: dict[str, Any] = json.loads(capfd.readouterr().out)
    return code, document


def write(path: Path, text: str, **metadata: str) -> Path:
    """Writes a model in ONNX's text form with a weight ``w`` [4, 3, 3, 3] in float32 and ``h`` in half."""
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21, "own" : 1]>' + text)
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    read = {name for node in model.graph.node for name in node.input}
    for name, array in (("w", weight), ("h", weight.astype(np.float16))):
        if name in read:
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


IN, OUT = "net (float[n,3,8,8] x) => (float[n,4,6,6] y)", "net (float[n,3,8,8] x) => (float16[n,4,6,6] y)"
GRAPHS = {
    "plain": ("fp32", f"{IN} {{ y = Conv(x, w) }}"),
    "stored as half": ("fp32", f"{IN} {{ c = Cast <to = 1> (h) y = Conv(x, c) }}"),
    "stored as half in a function": (
        "fp32",
        f"{IN} {{ y = own.conv(x, h) }}"
        '<domain: "own", opset_import: ["" : 21]> conv (x, k) => (y) { c = Cast <to = 1> (k) y = Conv(x, c) }',
    ),
    "weights through Q and DQ": (
        "fp32",
        f"{IN} <float s = {{0.1}}, int8 z = {{0}}> "
        "{ q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z) y = Conv(x, d) }",
    ),
    "half at the input only": (
        "fp32",
        "net (float16[n,3,8,8] x) => (float[n,4,6,6] y) { c = Cast <to = 1> (x) y = Conv(c, w) }",
    ),
    "half at the output only": ("fp32", f"{OUT} {{ c = Conv(x, w) y = Cast <to = 10> (c) }}"),
    "half weights and products": ("fp16", f"{OUT} {{ c = Cast <to = 10> (x) y = Conv(c, h) }}"),
    "casts before each product": (
        "fp16",
        f"{IN} {{ c = Cast <to = 10> (x) k = Cast <to = 10> (w) p = Conv(c, k) y = Cast <to = 1> (p) }}",
    ),
    "bfloat16 in a function": (
        "bf16",
        f"{IN} {{ y = own.conv(x, w) }}"
        '<domain: "own", opset_import: ["" : 21]> conv (x, k) => (y) '
        "{ c = Cast <to = 16> (x) d = Cast <to = 16> (k) p = Mul(c, c) q = Cast <to = 1> (p) y = Conv(q, k) }",
    ),
    "half in a branch": (
        "fp16",
        f"{IN} <bool yes = {{1}}> {{ c = Conv(x, w) y = If (yes) <"
        "then_branch = a () => (float[n,4,6,6] t) { d = Cast <to = 10> (c) e = Sqrt(d) t = Cast <to = 1> (e) }, "
        "else_branch = b () => (float[n,4,6,6] f) { f = Identity(c) }> }",
    ),
    "activations through Q and DQ": (
        "int8",
        f"{IN} <float s = {{0.1}}, int8 z = {{0}}> "
        "{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Conv(d, w) }",
    ),
    "double": ("fp64", "net (double[n,3] x) => (double[n,3] y) { y = Sqrt(x) }"),
    "half that is only moved": ("fp16", "net (float16[n,3] x) => (float16[n,3] y) { y = Neg(x) }"),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_the_precision_of_a_file_is_that_of_its_operators(tmp_path: Path, case: str) -> None:
    expected, text = GRAPHS[case]
    assert graph_precision(write(tmp_path / "net.onnx", text)) == expected


def test_only_what_is_rounded_to_half_is_scaled(tmp_path: Path) -> None:
    sums = sums_of(write(tmp_path / "net.onnx", GRAPHS["half at the output only"][1]))
    assert sums == [Sum(terms=27), Sum(terms=1, precision="fp16")]
    assert noise_scale(sums) == pytest.approx(2.0**13 / 28**0.5, rel=1e-3)
    budget = allowance(1e-7, sums, baseline="torch")
    assert UNIT_ROUNDOFF["fp16"] < budget.relative_rmse < 5 * UNIT_ROUNDOFF["fp16"]
    assert "of 2 sums 1 in fp16" in budget.reason
    assert sums_of(write(tmp_path / "input.onnx", GRAPHS["half at the input only"][1])) == [Sum(terms=27)]


def test_pooling_of_any_spelling_counts_what_it_pools(tmp_path: Path) -> None:
    spelled = [
        "y = GlobalAveragePool(x)",
        "y = AveragePool <kernel_shape = [8,8]> (x)",
        "y = ReduceMean(x, axes)",
        "s = ReduceSum(x, axes) y = Div(s, count)",
    ]
    for text in spelled:
        path = tmp_path / "net.onnx"
        constants = "<int64[2] axes = {2,3}, float count = {64.0}>"
        write(path, f"net (float[n,3,8,8] x) => (float[n,3,1,1] y) {constants} {{ {text} }}")
        assert sums_of(path) == [Sum(terms=64, pooling=True)], text
    open_size = write(path, f"net (float[n,3,h,w] x) => (float[n,3,1,1] y) {{ {spelled[0]} }}")
    assert sums_of(open_size, {"x": (1, 3, 5, 7)}) == [Sum(terms=35, pooling=True)]


def test_a_long_vector_costs_no_memory(tmp_path: Path) -> None:
    path = write(
        tmp_path / "net.onnx",
        "net (float[2000000] x) => (float[1] y) <int64[1] i = {0}> { g = Gather(x, i) y = Sqrt(g) }",
    )
    assert len(computation(path).operators) == 1


@pytest.mark.parametrize("command", ["parity {} --runtimes ort-cpu", "convert {} --to fp16 -o {}.new.onnx"])
def test_metadata_that_contradicts_the_graph_are_refused(tmp_path: Path, capfd: Any, command: str) -> None:
    """A wider budget than the arithmetic needs would let a score off by 1 pass."""
    model = onnx.load(foreign_net(tmp_path / "net.onnx"))
    bias = next(t for t in model.graph.initializer if t.name == "fb")
    values = numpy_helper.to_array(bias).copy()
    values[0] += 1
    bias.CopyFrom(numpy_helper.from_array(values, "fb"))
    onnx.helper.set_model_props(model, {"precision": "bf16"})
    path = tmp_path / "lying.onnx"
    onnx.save(model, path)
    code, result = run_json(capfd, *command.replace("{}", str(path)).split())
    assert code == 2
    assert "says precision bf16, but its graph computes in fp32" in result["error"]["message"]


def test_other_peoples_metadata_are_theirs(tmp_path: Path, capfd: Any) -> None:
    path = write(tmp_path / "net.onnx", GRAPHS["plain"][1], precision="FP16")
    code, result = run_json(capfd, "parity", str(path), "--runtimes", "ort-cpu", "--images", "1")
    assert (code, result["precision"]) == (0, "fp32")
    assert onnx_gate.check_onnx(path).metadata["precision"] == "FP16"


@pytest.mark.parametrize("flat", ["GlobalAveragePool(c)", "ReduceMean(c, axes)"])
def test_a_long_mean_of_equal_values_is_no_fault(tmp_path: Path, capfd: Any, flat: str) -> None:
    """OpenVINO adds 1,024 equal values one after the other, ONNX Runtime in blocks."""
    path = write(
        tmp_path / "net.onnx",
        "net (float[n,3,34,34] x) => (float[n,4,1,1] y) <int64[2] axes = {2,3}> { c = Conv(x, w) y = " + flat + " }",
    )
    code, result = run_json(capfd, "parity", str(path), "--runtimes", "ort-cpu,openvino", "--images", "1")
    assert [row["reason"] for row in result["results"] if not row["passed"]] == []
    assert code == 0
    assert all(row["relative_rmse"] < row["budget"] < 1e-4 for row in result["results"])


def test_a_file_stored_in_half_is_converted_as_the_float32_model_that_it_is(tmp_path: Path, capfd: Any) -> None:
    path = write(tmp_path / "net.onnx", GRAPHS["stored as half"][1])
    out = tmp_path / "half.onnx"
    code, result = run_json(capfd, "convert", str(path), "--to", "fp16", "--count", "4", "-o", str(out))
    assert code == 0, result
    assert graph_precision(out) == "fp16"


def test_casts_before_each_product_have_the_budget_of_half(tmp_path: Path, capfd: Any) -> None:
    path = write(tmp_path / "net.onnx", GRAPHS["casts before each product"][1])
    code, result = run_json(capfd, "parity", str(path), "--runtimes", "ort-cpu,openvino", "--images", "1")
    assert code == 0
    budget = result["budgets"]["y"]
    assert budget["noise"] < 1e-6  # that of float32, whatever the graph casts to
    assert 1e-3 < budget["relative_rmse"] < 1e-2
    assert "scaled by" in budget["reason"]


@pytest.fixture
def optimised(tmp_path: Path) -> tuple[Path, Path]:
    """A network, and what ONNX Runtime's optimiser writes of it, with operators of its own."""
    import onnxruntime

    plain, path = foreign_net(tmp_path / "plain.onnx"), tmp_path / "optimised.onnx"
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.optimized_model_filepath = str(path)
    settings.log_severity_level = 4
    onnxruntime.InferenceSession(str(plain), settings, providers=["CPUExecutionProvider"])
    return plain, path


def test_a_file_with_a_runtimes_own_operators_asks_for_another_gold(optimised: tuple[Path, Path], capfd: Any) -> None:
    plain, path = optimised
    code, result = run_json(capfd, "parity", str(path), "--runtimes", "ort-cpu")
    assert code == 3
    assert "com.microsoft:FusedConv" in result["error"]["message"]
    assert result["error"]["fix"].endswith("--gold MODEL")
    judged = ("parity", str(path), "--runtimes", "ort-cpu", "--images", "1", "--gold", str(plain))
    code, result = run_json(capfd, *judged)
    assert (code, result["passed"]) == (0, True)


def quantised_by_operators(plain: Path, path: Path) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Noise(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            random = np.random.default_rng(0)
            self.feeds = iter([{"data": random.standard_normal((4, 3, 32, 32)).astype(np.float32)}] * 2)

        def get_next(self) -> Any:
            return next(self.feeds, None)

    quantize_static(str(plain), str(path), Noise(), quant_format=QuantFormat.QOperator, per_channel=True)
    return path


def test_the_advice_on_a_model_of_quantised_operators_works(optimised: tuple[Path, Path], capfd: Any) -> None:
    plain = optimised[0]
    path = quantised_by_operators(plain, plain.with_name("quantised.onnx"))
    judged = ("parity", str(path), "--runtimes", "ort-cpu", "--images", "1")
    code, result = run_json(capfd, *judged)
    assert code == 3
    advice = result["error"]["fix"].split(": ")[1].split(";")[0]
    assert advice == "--gold MODEL --tolerance-for scores=0.1"
    code, result = run_json(capfd, *judged, *advice.replace("MODEL", str(plain)).split())
    assert code == (0 if result["results"][0]["relative_rmse"] <= 0.1 else 1)
    assert result["results"][0]["budget"] == 0.1
    with_gold = run_json(capfd, *judged, "--gold", str(plain))[1]["error"]["fix"]
    assert "--tolerance-for scores=0.1" in with_gold
    assert "--gold" not in with_gold  # which is there already
    with_tolerance = run_json(capfd, *judged, "--tolerance-for", "scores=0.1")[1]["error"]["fix"]
    assert with_tolerance.endswith("--gold MODEL")
