"""int8 layer by layer: the ranking, the search for layers to keep in float32, and the drawing of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support import precision_models
from support.precision_models import NET

from converters import calibration, graph, int8, switches
from resnet_onnx.cli.main import main
from resnet_onnx.workflow.precision import search
from runtimes import ModelSource, RuntimeOptions, onnx_gate, open_runtime


def run_json(capfd: Any, *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main([*arguments, "--json"])
    document: dict[str, Any] = json.loads(capfd.readouterr().out)
    return code, document


@pytest.fixture
def plan(tmp_path: Path) -> int8.Plan:
    path = precision_models.residual(tmp_path / "net.onnx")
    return int8.plan(int8.prepared(graph.load(onnx_gate.check_onnx(path)), what="net"))


@pytest.fixture
def ranges(plan: int8.Plan, tmp_path: Path) -> dict[str, float]:
    seen = calibration.observe(plan.model, plan.observed, precision_models.feeds(), folder=tmp_path, source=NET)
    return seen.ranges("minmax")


def run(model: Any, path: Path, **extra: np.ndarray) -> np.ndarray:
    onnx.save(model, path)
    feeds = next(iter(precision_models.feeds()))
    with open_runtime("ort-cpu", ModelSource(path=path), options=RuntimeOptions(optimize=False)) as runtime:
        return np.asarray(runtime.run({**feeds, **extra})["y"])


class TestSwitches:
    def test_all_off_is_the_float32_model_bit_for_bit(
        self, plan: int8.Plan, ranges: dict[str, float], tmp_path: Path
    ) -> None:
        model, names = switches.switched(plan, ranges)
        assert tuple(names) == plan.layers
        off = {name: np.asarray(False) for name in names.values()}
        np.testing.assert_array_equal(
            run(model, tmp_path / "switched.onnx", **off), run(plan.model, tmp_path / "plain.onnx")
        )

    @pytest.mark.parametrize("layer", ["conv1", "block.conv2", "fc"])
    def test_one_on_is_that_layer_with_rounded_input_and_weights(
        self, layer: str, plan: int8.Plan, ranges: dict[str, float], tmp_path: Path
    ) -> None:
        model, names = switches.switched(plan, ranges)
        on = {name: np.asarray(other == layer) for other, name in names.items()}
        by_hand = onnx.ModelProto()
        by_hand.CopyFrom(plan.model)
        found = graph.Graph(by_hand)
        node = next(node for node in by_hand.graph.node if node.name == layer)
        data, weight = node.input[:2]
        step = np.float32(ranges[plan.scale_of[data]] / 127)
        array = found.array(weight)
        assert array is not None
        largest = np.abs(array).max(axis=tuple(range(1, array.ndim)), keepdims=True) / np.float32(127)
        node.input[1] = found.add_constant("w.rounded", (np.rint(array / largest) * largest).astype(np.float32))
        node.input[0] = "rounded"
        nodes = list(by_hand.graph.node)
        place = nodes.index(node)
        made = [
            onnx.helper.make_node("Div", [data, found.add_constant("step", np.asarray(step))], ["steps"]),
            onnx.helper.make_node("Round", ["steps"], ["whole"]),
            onnx.helper.make_node(
                "Clip",
                ["whole", found.add_constant("low", np.float32(-128)), found.add_constant("high", np.float32(127))],
                ["clipped"],
            ),
            onnx.helper.make_node("Mul", ["clipped", "step"], ["rounded"]),
        ]
        found.replace_nodes([*nodes[:place], *made, *nodes[place:]])
        want = run(by_hand, tmp_path / "hand.onnx")
        got = run(model, tmp_path / "switched.onnx", **on)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        assert np.abs(got - run(plan.model, tmp_path / "plain.onnx")).max() > 1e-4

    def test_a_scale_per_tensor_is_another_model(
        self, plan: int8.Plan, ranges: dict[str, float], tmp_path: Path
    ) -> None:
        whole = []
        for per_channel in (True, False):
            model, names = switches.switched(plan, ranges, per_channel=per_channel)
            on = {name: np.asarray(other == "block.conv1") for other, name in names.items()}
            whole.append(run(model, tmp_path / "switched.onnx", **on))
        assert np.abs(whole[0] - whole[1]).max() > 1e-5


class TestModelOfTheSearch:
    layers = (
        {"layer": "small", "sqnr_db": 20.0, "multiply_adds": 10},
        {"layer": "large", "sqnr_db": 17.0, "multiply_adds": 1000},
        {"layer": "silent", "sqnr_db": float("inf"), "multiply_adds": 10},
        {"layer": "unknown", "sqnr_db": 23.0, "multiply_adds": None},
    )

    def test_what_frees_most_noise_for_its_work_comes_first(self) -> None:
        # Per multiply-add: small 1e-3, unknown 10^-2.3 / 340 = 1.5e-5, large 10^-1.7 / 1000 = 2.0e-5, silent none.
        assert [row["layer"] for row in search.by_worth(self.layers)] == ["small", "large", "unknown", "silent"]

    def test_as_many_as_noise_that_adds_up_as_energy_asks_for(self) -> None:
        order = search.by_worth(self.layers)
        alone = 10**-2 + 10**-1.7 + 10**-2.3
        assert search.needed(order, alone, 0.9 * alone) == 1
        assert search.needed(order, alone, 0.5 * alone) == 2
        assert search.needed(order, alone, 0.1 * alone) == 3
        # Twice the noise that layers explain alone is shared out among them.
        assert search.needed(order, 2 * alone, 0.5 * 2 * alone) == 2


def huge_channel(shared_data: Path, tmp_path: Path) -> Path:
    """The trained ResNet-20 with one huge channel in one layer, which the next layer undoes."""
    plain = tmp_path / "plain.onnx"
    weights = str(shared_data / "cifar-resnet20.th")
    export = ["export", "--model", "cifar-resnet20", "--weights", weights, "-o", str(plain), "--quiet"]
    assert main([*export, "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]) == 0
    model = onnx.load(plain)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def change(name: str, place: Any, factor: float) -> None:
        array = onnx.numpy_helper.to_array(tensors[name]).copy()
        array[place] *= np.float32(factor)
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(array, name))

    change("layer1.0.conv1.weight", 0, 1e4)
    change("layer1.0.conv1.weight_bias", 0, 1e4)
    change("layer1.0.conv2.weight", (slice(None), 0), 1e-4)
    path = tmp_path / "huge.onnx"
    onnx.save(model, path)
    return path


def convert(path: Path, shared_data: Path, *more: str) -> list[str]:
    return [
        "convert", str(path), "--to", "int8", "--calibration", str(shared_data / "cifar10-jpeg.zip"), "--count", "32",
        "--held-out", "200", "--method", "minmax", "--per-tensor", *more,
    ]  # fmt: skip


def test_the_search_keeps_the_ruined_layers_and_writes_the_rest(shared_data: Path, tmp_path: Path, capfd: Any) -> None:
    path = huge_channel(shared_data, tmp_path)
    capfd.readouterr()
    target, drawing = tmp_path / "out.onnx", tmp_path / "layers.png"
    code, result = run_json(
        capfd, *convert(path, shared_data, "--budget-minutes", "5", "-o", str(target), "--plot", str(drawing))
    )
    assert code == 0, result
    kept = {row["node"] for row in result["kept_fp32"]}
    assert kept & {"layer1.0.conv1", "layer1.0.conv2"}
    assert len(kept) < 12
    assert result["sqnr_db"] >= 20
    last = result["search"]["tried"][-1]
    assert (set(last["kept_fp32"]), last["passed"]) == (kept, True)
    assert 0 < result["search"]["cost_share"] < 0.7
    worst = result["sensitivity"][0]
    assert worst["layer"].startswith("layer1.0.conv")
    # 3×3, 16 channels into 16, 32×32 pixels.
    assert worst["multiply_adds"] == 9 * 16 * 16 * 32 * 32
    quantised = onnx.load(target)
    weights = {node.name: node.input[1] for node in quantised.graph.node if node.op_type in int8.PRODUCTS}
    makers = {name for node in quantised.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    assert {name for name, weight in weights.items() if weight not in makers} == kept
    assert json.loads(onnx_gate.check_onnx(target).metadata["resnet_onnx.conversion"])["kept_fp32"] == sorted(kept)
    assert drawing.read_bytes().startswith(b"\x89PNG")


def test_a_search_without_time_is_refused_and_nothing_is_written(shared_data: Path, tmp_path: Path, capfd: Any) -> None:
    path = huge_channel(shared_data, tmp_path)
    capfd.readouterr()
    target = tmp_path / "out.onnx"
    code, result = run_json(capfd, *convert(path, shared_data, "--budget-minutes", "1e-9", "-o", str(target)))
    assert code == 1
    assert "1e-09 minutes were not enough to find the layers to keep (0 choices tried)" in result["error"]["message"]
    assert not target.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "fp16", "--sensitivity"], "--sensitivity is for int8"),
        (["--to", "bf16", "--budget-minutes", "2"], "--budget-minutes is for int8"),
        (["--to", "fp16", "--plot", "a.png"], "--plot draws the ranges of int8"),
        (["--to", "int8", "--plot", "a.bmp"], "a drawing is a .png, .svg or .pdf"),
        (["--to", "int8", "--budget-minutes", "inf"], "'inf' is not a finite number"),
    ],
)
def test_mistakes_are_told(arguments: list[str], words: str, tmp_path: Path, capfd: Any) -> None:
    code, result = run_json(capfd, "convert", "cifar-resnet8", *arguments, "-o", str(tmp_path / "out.onnx"))
    assert code == 2
    assert words in result["error"]["message"]


def test_ranking_of_a_model_that_passes_is_shown_to_people(tmp_path: Path, capfd: Any) -> None:
    target = tmp_path / "out.onnx"
    assert main(["convert", "cifar-resnet8", "--to", "int8", "--count", "16", "--sensitivity", "-o", str(target)]) == 0
    out = capfd.readouterr().out
    assert "layer alone in int8" in out
    assert "layer3.0.conv1" in out
    assert target.exists()
