"""Budgets of narrow precisions: scaled from float32's noise and checked by simulation; int8 by its own rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from resnet_onnx import workflow
from resnet_onnx.cli.main import main
from resnet_onnx.parity.budget import DECORRELATED, NOISE_MULTIPLE, UNIT_ROUNDOFF, allowance, quantised_allowance
from resnet_onnx.parity.metrics import distance
from resnet_onnx.parity.quantised import is_quantised, step_error, without_rounding
from resnet_onnx.parity.records import Records, rebatched
from resnet_onnx.parity.summation import sums_of
from resnet_onnx.workflow import Model, Request
from runtimes.errors import UnsupportedModel
from runtimes.registry import open_runtime
from runtimes.spec import ModelSource

ROOT = Path(__file__).resolve().parent.parent


def run_json(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main([*arguments, "--json"])
    document: dict[str, Any] = json.loads(capfd.readouterr().out)
    return code, document


# ---- int8 ------------------------------------------------------------------------------------------------------------


class Pictures:
    """Calibration data as ONNX Runtime's quantiser reads it."""

    def __init__(self, model: Model, count: int) -> None:
        self._feeds: Iterator[Any] = iter([dict(workflow.sample_feeds(model, 4, seed=i)) for i in range(count // 4)])

    def get_next(self) -> Any:
        return next(self._feeds, None)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("budgets") / "cifar-resnet8.onnx"
    workflow.export(workflow.resolve(Request(model="cifar-resnet8", seed=3)), path)
    return path


@pytest.fixture(scope="module")
def quantised(cifar: Path) -> dict[str, Path]:
    """The two forms that ONNX Runtime's own quantiser writes: without ReLUs and with unsigned numbers, and signed."""
    from onnxruntime.quantization import QuantType, quantize_static

    model = workflow.resolve(Request(model=str(cifar)))
    forms = {
        "u8s8": (QuantType.QUInt8, {}),
        "s8s8": (QuantType.QInt8, {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}),
    }
    paths = {}
    for name, (activations, options) in forms.items():
        paths[name] = cifar.with_name(f"{name}.onnx")
        quantize_static(
            str(cifar), str(paths[name]), Pictures(model, 32), per_channel=True, activation_type=activations,
            weight_type=QuantType.QInt8, extra_options=options,
        )  # fmt: skip
    return paths


@pytest.mark.parametrize("form", ["u8s8", "s8s8"])
def test_an_int8_model_passes_on_every_runtime_and_both_errors_are_reported(
    quantised: dict[str, Path], form: str, capfd: Any
) -> None:
    code, result = run_json(capfd, "parity", str(quantised[form]), "--runtimes", "ort-cpu,openvino,reference")
    assert code == 0
    assert any("quantised by another tool: its metadata still says fp32" in note for note in result["notes"])
    assert result["gold"] == "the quantised graph in float64"
    assert "rounding" in result["budgets"]["logits"]["reason"]
    rows = {row["runtime"]: row for row in result["results"]}
    assert rows["reference"]["relative_rmse"] == 0
    for name in ("ort-cpu", "openvino"):
        assert 0 < rows[name]["relative_rmse"] < rows[name]["budget"] < 0.12
        assert 0.005 < rows[name]["original"]["relative_rmse"] < 0.12
        assert rows[name]["original"]["top1_agreement"] >= 0.8
    assert "cifar-resnet8" in result["original"]


def test_a_fault_in_an_int8_model_fails_against_the_sound_one(
    quantised: dict[str, Path], tmp_path: Path, capfd: Any
) -> None:
    model = onnx.load(quantised["s8s8"])
    scale = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and "relu" in n.input[0]).input[1]
    tensor = next(t for t in model.graph.initializer if t.name == scale)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / 4, scale))  # values are cut off at a fourth
    path = tmp_path / "cut.onnx"
    onnx.save(model, path)
    code, result = run_json(
        capfd, "parity", str(path), "--gold", str(quantised["s8s8"]), "--runtimes", "ort-cpu,openvino"
    )
    assert code == 1
    assert not any(row["passed"] for row in result["results"])


def test_whole_number_products_are_refused_beside_a_float_gold_too(tmp_path: Path, capfd: Any) -> None:
    """As dynamic quantisation writes them: their steps are not in the graph, so that no budget can be told."""
    from onnx import TensorProto, helper

    weight = np.random.default_rng(0).integers(-100, 100, (6, 4)).astype(np.int8)

    def write(name: str, nodes: list[Any], **arrays: Any) -> str:
        graph = helper.make_graph(
            nodes, name, [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
            [numpy_helper.from_array(np.asarray(array), key) for key, array in arrays.items()],
        )  # fmt: skip
        path = tmp_path / f"{name}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
        return str(path)

    plain = write("plain", [helper.make_node("MatMul", ["x", "w"], ["y"])], w=weight.astype(np.float32))
    dynamic = write(
        "dynamic",
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
            helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["f", "s"], ["y"]),
        ],
        w=weight,
    )
    code, result = run_json(capfd, "parity", dynamic, "--gold", plain, "--runtimes", "ort-cpu")
    assert code == 3
    assert "computes with whole numbers" in result["error"]["message"]
    assert (
        run_json(capfd, "parity", dynamic, "--gold", plain, "--runtimes", "ort-cpu", "--tolerance-for", "y=0.1")[0] == 0
    )
    model = onnx.load(plain)
    model.graph.output[0].name = model.graph.node[0].output[0] = "logits"
    onnx.save(model, plain)
    judged = ("parity", dynamic, "--gold", plain, "--runtimes", "ort-cpu", "--tolerance-for", "y=0.1")
    assert run_json(capfd, *judged)[0] == 0  # gold's only output is called otherwise


def test_without_rounding_the_quantised_graph_is_near_the_original(
    cifar: Path, quantised: dict[str, Path], tmp_path: Path
) -> None:
    feeds = workflow.sample_feeds(workflow.resolve(Request(model=str(cifar))), 4, seed=50)
    exact = scores(cifar, feeds)
    for form, path in quantised.items():
        assert is_quantised(path)
        plain = without_rounding(path, tmp_path / f"{form}.onnx")
        assert not is_quantised(plain)
        rounded, unrounded = (distance(exact, scores(each, feeds)).relative_rmse for each in (path, plain))
        assert 0 < unrounded < rounded  # what is left are the weights' own steps
    assert not is_quantised(cifar)


def scores(path: Path, feeds: Any) -> np.ndarray:
    with open_runtime("reference", ModelSource(path=path)) as runtime:
        return next(iter(runtime.run(feeds).values()))


def test_step_sizes_add_up_in_quadrature_and_double_with_the_steps(tmp_path: Path) -> None:
    def written(step: float) -> Path:
        graph = onnx.parser.parse_graph(
            f"g (float[n,64] x) => (float[n,64] y) <float s = {{{step}}}, int8 z = {{0}}>"
            " { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) r = Neg(d)"
            "   p = QuantizeLinear(r, s, z) y = DequantizeLinear(p, s, z) }"
        )
        path = tmp_path / f"{step}.onnx"
        onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10), path)
        return path

    feeds = {"x": np.random.default_rng(0).uniform(-1, 1, (8, 64)).astype(np.float32)}
    fine, coarse = step_error(written(0.01), feeds), step_error(written(0.02), feeds)
    size = float(np.sqrt(np.mean(feeds["x"] ** 2)))
    assert fine == pytest.approx(np.sqrt(2) * 0.01 / np.sqrt(12) / size, rel=1e-3)
    assert coarse == pytest.approx(2 * fine, rel=1e-3)


def test_arithmetic_in_whole_numbers_is_refused_with_what_to_do(tmp_path: Path) -> None:
    graph = onnx.parser.parse_graph(
        "g (uint8[2,3] x) => (int32[2,4] y) <uint8[3,4] w = {1,2,3,4,5,6,7,8,9,1,2,3}> { y = MatMulInteger(x, w) }"
    )
    path = tmp_path / "integer.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10), path)
    with pytest.raises(UnsupportedModel, match="MatMulInteger"):
        without_rounding(path, tmp_path / "out.onnx")


def test_rounding_beyond_its_steps_widens_nothing() -> None:
    assert quantised_allowance(0.05, 0.03).relative_rmse == pytest.approx(DECORRELATED * 0.05)
    for noise in (1.0, np.inf, np.nan):
        assert quantised_allowance(noise, 0.03).relative_rmse == pytest.approx(DECORRELATED * NOISE_MULTIPLE * 0.03)


def test_scales_in_constant_nodes_give_the_same_budget(quantised: dict[str, Path], tmp_path: Path, capfd: Any) -> None:
    model = onnx.load(quantised["u8s8"])
    moved = [t for t in model.graph.initializer if "scale" in t.name or "zero_point" in t.name]
    for tensor in moved:
        model.graph.initializer.remove(tensor)
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
    path = tmp_path / "constants.onnx"
    onnx.save(model, path)
    budgets = [
        run_json(capfd, "parity", str(each), "--runtimes", "ort-cpu", "--images", "2")[1]["budgets"]["logits"]
        for each in (quantised["u8s8"], path)
    ]
    assert budgets[0]["relative_rmse"] > 0
    assert budgets[1] == budgets[0]


def test_whole_number_products_are_judged_by_hand_where_asked(tmp_path: Path, capfd: Any) -> None:
    graph = onnx.parser.parse_graph(
        "g (float[n,3] x) => (float[n,4] y) <int8[3,4] w = {1,2,3,4,5,6,7,8,9,1,2,3}> {"
        " q, s, z = DynamicQuantizeLinear(x) p = MatMulInteger(q, w, z) f = Cast <to = 1> (p) y = Mul(f, s) }"
    )
    path = tmp_path / "integer.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10), path)
    code, result = run_json(capfd, "parity", str(path), "--runtimes", "ort-cpu,openvino")
    assert code == 3
    assert "--tolerance-for" in result["error"]["fix"]
    code, result = run_json(capfd, "parity", str(path), "--runtimes", "ort-cpu,openvino", "--tolerance-for", "y=0.02")
    assert code == 0
    assert result["results"][0]["budget"] == 0.02


# ---- half precision --------------------------------------------------------------------------------------------------


def half_model(path: Path) -> Path:
    """A foreign network of three convolutions in float16."""
    random = np.random.default_rng(1)
    constants = []
    for name, shape in (("a", (16, 3, 3, 3)), ("b", (16, 16, 3, 3)), ("c", (8, 16, 3, 3))):
        values = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        constants.append(numpy_helper.from_array(values.astype(np.float16), name))
    graph = onnx.parser.parse_graph(
        "g (float16[n,3,16,16] x) => (float16[n,8] y) {"
        " p = Conv <pads = [1,1,1,1]> (x, a) q = Relu(p) r = Conv <pads = [1,1,1,1]> (q, b) s = Relu(r)"
        " t = Conv <pads = [1,1,1,1]> (s, c) u = GlobalAveragePool(t) y = Flatten(u) }"
    )
    graph.initializer.extend(constants)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)], ir_version=10), path)
    return path


def test_a_foreign_half_precision_model_is_measured_by_its_float32_twin(tmp_path: Path, capfd: Any) -> None:
    path = half_model(tmp_path / "half.onnx")
    code, result = run_json(capfd, "parity", str(path), "--runtimes", "ort-cpu,openvino", "--images", "4")
    assert code == 0
    budget = result["budgets"]["y"]
    assert budget["noise"] < 1e-6  # float32's, not the half's own
    assert budget["relative_rmse"] < 0.02
    assert all(1e-5 < row["relative_rmse"] < budget["relative_rmse"] for row in result["results"])


def test_a_foreign_model_has_three_baselines_and_the_median_counts(tmp_path: Path, capfd: Any, cifar: Path) -> None:
    model = onnx.load(cifar)
    del model.metadata_props[:]
    path = tmp_path / "foreign.onnx"
    onnx.save(model, path)
    code, result = run_json(capfd, "parity", str(path), "--runtimes", "ort-cpu,openvino,reference")
    assert code == 0
    assert "ort-cpu without fusion, ort-cpu and openvino" in result["budgets"]["logits"]["reason"]
    errors = {row["runtime"]: row["relative_rmse"] for row in result["results"]}
    assert min(errors["ort-cpu"], errors["openvino"]) <= result["budgets"]["logits"]["noise"]
    assert result["budgets"]["logits"]["noise"] <= max(errors["ort-cpu"], errors["openvino"])


def _rounded(tensor: torch.Tensor) -> torch.Tensor:
    """Rounds float32 to TF32's 11 significant bits, to nearest."""
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def simulated(module: torch.nn.Module, batch: torch.Tensor, precision: str) -> torch.Tensor:
    """Computes in a narrow precision as hardware does: narrow operands, float32 sums, narrow results (not TF32's)."""
    with torch.inference_mode():
        if precision != "tf32":
            dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
            return module.to(dtype)(batch.to(dtype)).double()
        for layer in module.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                layer.weight.data = _rounded(layer.weight.data)
                layer.register_forward_pre_hook(lambda _, given: tuple(_rounded(x) for x in given))
        return module(batch).double()


NETWORKS = ["cifar-resnet20", "cifar-resnet110", "resnet18", "resnet50", "vgg16", "plain34"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16", "tf32"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_scaled_noise_fits_a_simulated_run(name: str, precision: str) -> None:
    network = workflow.resolve(Request(model=name, seed=1)).network
    assert network is not None
    model = workflow.resolve(Request(model=name, seed=1))
    batch = torch.from_numpy(next(iter(workflow.sample_feeds(model, 4).values())))
    with torch.inference_mode():
        exact = network.load().eval().double()(batch.double()).numpy()
        plain = network.load().eval()(batch).numpy()
    narrow = simulated(network.load().eval(), batch, precision).numpy()
    noise = distance(exact, plain).relative_rmse
    seen = distance(exact, narrow).relative_rmse
    scaled = noise * UNIT_ROUNDOFF[precision] / UNIT_ROUNDOFF["fp32"]
    budget = allowance(noise, sums_of(workflow.onnx_path(model)), baseline="torch", precision=precision)
    print(f"{name} {precision}: simulated {seen:.1e}, scaled {scaled:.1e}, budget {budget.relative_rmse:.1e}")
    assert seen <= budget.relative_rmse  # no false alarm
    assert seen >= scaled / 100  # and not so loose that it could not fail


# ---- memory ----------------------------------------------------------------------------------------------------------

PEAK = """
import resource, sys
from resnet_onnx import workflow
from resnet_onnx.workflow import ParityPlan, Request
plan = ParityPlan(runtimes=["torch", "ort-cpu", "openvino"], images=int(sys.argv[2]))
report = workflow.check_parity(workflow.resolve(Request(model=sys.argv[1])), plan)
assert report.passed and report.pictures == int(sys.argv[2]) + 6
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read from getrusage")
def test_memory_is_flat_in_the_number_of_pictures(cifar: Path) -> None:
    def peak(pictures: int) -> int:
        environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
        arguments = [sys.executable, "-c", PEAK, str(cifar), str(pictures)]
        return int(subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, check=True).stdout)

    few, many = peak(60), peak(600)
    assert many < 1.05 * few


def test_records_come_back_as_they_were_and_are_cut_anew() -> None:
    import ml_dtypes

    records = Records()
    whole = np.arange(20, dtype=np.float32).reshape(10, 2)
    for start, stop in ((0, 1), (1, 6), (6, 10)):
        records.append({"x": whole[start:stop], "h": whole[start:stop].astype(ml_dtypes.bfloat16)})
    for _ in range(2):
        assert [len(record["x"]) for record in records] == [1, 5, 4]
        assert [record["h"].dtype for record in records] == [np.dtype(ml_dtypes.bfloat16)] * 3
    cut = list(rebatched(records, [4, 4]))
    np.testing.assert_array_equal(np.concatenate([r["x"] for r in cut]), whole[:8])


def test_a_gold_of_another_fixed_batch_sees_the_same_pictures(cifar: Path, tmp_path: Path, capfd: Any) -> None:
    fixed = tmp_path / "three.onnx"
    assert main(["export", "--model", "cifar-resnet8", "--seed", "3", "--batch", "3", "-o", str(fixed), "--quiet"]) == 0
    capfd.readouterr()
    code, result = run_json(capfd, "parity", str(cifar), "--gold", str(fixed), "--runtimes", "ort-cpu", "--images", "5")
    assert code == 0
    assert result["pictures"] == 11
    assert result["results"][0]["top1_agreement"] == 1.0
    code, result = run_json(capfd, "parity", str(fixed), "--gold", str(cifar), "--runtimes", "ort-cpu", "--images", "5")
    assert code == 0
    assert result["pictures"] == 12  # filled up to whole batches


# ---- files that convert wrote ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    path = tmp_path_factory.mktemp("trained") / "net.onnx"
    weights = str(shared_data / "cifar-resnet20.th")
    line = ["export", "--model", "cifar-resnet20", "--weights", weights, "--mean", ".485,.456,.406"]
    assert main([*line, "--std", ".229,.224,.225", "-o", str(path), "--quiet"]) == 0
    return path


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_a_converted_file_passes_on_all_that_can_open_it(
    trained: Path, shared_data: Path, tmp_path: Path, capfd: Any, precision: str
) -> None:
    path, data = tmp_path / f"{precision}.onnx", str(shared_data / "cifar10-jpeg.zip")
    few = ["--count", "64", "--held-out", "200", *(["--method", "mse"] if precision == "int8" else [])]
    assert main(["convert", str(trained), "--to", precision, "--calibration", data, *few, "-o", str(path)]) == 0
    capfd.readouterr()
    code = main(["parity", str(path), "--runtimes", "all", "--data", data, "--json"])
    captured = capfd.readouterr()
    result = json.loads(captured.out)
    assert code == 0
    here = {"fp16": ["torch", "ort-cpu", "openvino"], "bf16": ["torch", "openvino"], "int8": ["ort-cpu", "openvino"]}
    assert [row["runtime"] for row in result["results"] if row["runtime"] != "reference"] == here[precision]
    for left in {"torch", "ort-cpu", "openvino"} - set(here[precision]):
        assert f"left out: {left} (" in captured.err  # and why
    limits = {"fp16": 0.05, "bf16": 0.3, "int8": 0.15}
    assert all(0 < row["relative_rmse"] < row["budget"] < limits[precision] for row in result["results"])
    assert (result["original"] is not None) == (precision == "int8")
