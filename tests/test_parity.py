"""Parity passes when it must and fails when it must, through the command line and the library."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support import precision_models
from support.quantised_models import quantised

from resnet_onnx import workflow
from resnet_onnx.cli.main import main
from resnet_onnx.parity.adversarial import adversarial_pictures, odd_batches
from resnet_onnx.parity.budget import Sum, allowance
from resnet_onnx.parity.judge import judge
from resnet_onnx.workflow import ParityPlan, Request
from runtimes import files
from runtimes.errors import OutOfMemory, UsageError
from runtimes.ort import OrtCpuRuntime

RUNTIMES = "torch,ort-cpu,openvino"


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parity") / "cifar-resnet20.onnx"
    workflow.export(workflow.resolve(Request(model="cifar-resnet20", seed=3)), path)
    return path


def mutate(source: Path, target: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(source)
    change(model)
    onnx.save(model, target)
    return target


def scale_weight(node_name: str, factor: float, channel: int | None = None) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.name == node_name)
        tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
        values = numpy_helper.to_array(tensor).copy()
        values[slice(None) if channel is None else channel] *= factor
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return change


def drop_relu(model: onnx.ModelProto) -> None:
    relu = [n for n in model.graph.node if n.op_type == "Relu"][4]
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == relu.output[0]:
                node.input[index] = relu.input[0]
    model.graph.node.remove(relu)


def shift_padding(model: onnx.ModelProto) -> None:
    conv = [n for n in model.graph.node if n.op_type == "Conv"][3]
    pads = next(a for a in conv.attribute if a.name == "pads")
    pads.ints[:] = [0, 1, 2, 1]


def rename_output(model: onnx.ModelProto) -> None:
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["scores" if o == name else o for o in node.output]
    model.graph.output[0].name = "scores"


def swap_channels(model: onnx.ModelProto) -> None:
    conv = next(n for n in model.graph.node if n.op_type == "Conv")
    tensor = next(t for t in model.graph.initializer if t.name == conv.input[1])
    values = numpy_helper.to_array(tensor)[:, ::-1].copy()
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def plant_nan(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 2)
    values = numpy_helper.to_array(tensor).copy()
    values[1, 1] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def run_json(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main([*arguments, "--json"])
    out = capfd.readouterr().out
    document: dict[str, Any] = json.loads(out)
    return code, document


def test_every_cpu_runtime_passes(cifar: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    junit, save = tmp_path / "junit.xml", tmp_path / "parity.json"
    code, result = run_json(
        capfd, "parity", str(cifar), "--runtimes", RUNTIMES, "--junit", str(junit), "--save", str(save)
    )
    assert code == 0
    assert result["passed"] is True
    assert [row["runtime"] for row in result["results"]] == RUNTIMES.split(",")
    for row in result["results"]:
        assert 0 < row["relative_rmse"] < row["budget"] < 2e-5
        assert row["top1_agreement"] == 1.0
    assert result["gold"] == "torch float64"
    suite = ElementTree.parse(junit).getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("3", "0")
    saved = json.loads(save.read_text())
    assert saved["kind"] == "parity"
    assert saved["artifacts"]["onnx_sha256"] == files.sha256_file(cifar)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (scale_weight("layer2.1.conv2", 1.01, channel=3), "from gold"),
        (scale_weight("conv1", 1.001), "from gold"),
        (drop_relu, "from gold"),
        (shift_padding, "from gold"),
        (swap_channels, "from gold"),
        (plant_nan, "NaN"),
    ],
    ids=["one channel of one weight off by 1 %", "stem off by 0.1 %", "missing ReLU", "shifted padding", "BGR", "NaN"],
)
def test_a_mutant_fails_on_every_onnx_runtime(
    cifar: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: Callable[[onnx.ModelProto], None],
    reason: str,
) -> None:
    mutant = mutate(cifar, tmp_path / "mutant.onnx", change)
    junit = tmp_path / "junit.xml"
    code, result = run_json(
        capfd, "parity", str(mutant), "--runtimes", "ort-cpu,openvino", "--gold", str(cifar), "--junit", str(junit)
    )
    assert code == 1
    assert result["passed"] is False
    for row in result["results"]:
        assert row["passed"] is False
        assert reason in row["reason"]
    assert ElementTree.parse(junit).getroot()[0].get("failures") == "2"


def test_gold_for_pictures_of_another_size_is_refused(cifar: Path, tmp_path: Path, capfd: Any) -> None:
    """Also where the size is larger than what the model's own pictures are resized to."""
    path = tmp_path / "larger.onnx"
    assert main(["export", "--model", "cifar-resnet8", "--image-size", "48", "-o", str(path), "--quiet"]) == 0
    capfd.readouterr()
    foreign = onnx.load(path)
    del foreign.metadata_props[:]
    path = tmp_path / "foreign.onnx"
    onnx.save(foreign, path)
    code, result = run_json(capfd, "parity", str(cifar), "--runtimes", "ort-cpu", "--gold", str(path))
    assert code == 2
    assert "takes pictures of 32×32, and gold (foreign) of 48×48" in result["error"]["message"]


def test_our_own_file_is_compared_with_its_own_weights(cifar: Path, tmp_path: Path, capfd: Any) -> None:
    # No --gold: the metadata leads to the source weights in the cache, so that a changed file can't be its own truth.
    mutant = mutate(cifar, tmp_path / "mutant.onnx", scale_weight("layer3.0.conv1", 1.02))
    code, result = run_json(capfd, "parity", str(mutant), "--runtimes", "ort-cpu")
    assert code == 1
    assert result["gold"] == "torch float64"


def test_a_renamed_output_is_no_reason_to_pass_in_silence(cifar: Path, tmp_path: Path, capfd: Any) -> None:
    renamed = mutate(cifar, tmp_path / "renamed.onnx", rename_output)
    code, result = run_json(capfd, "parity", str(renamed), "--runtimes", "ort-cpu", "--gold", str(cifar))
    assert code == 0  # another file's single output may be called anything
    assert result["results"][0]["relative_rmse"] < 2e-5


def test_without_its_weights_the_graph_is_gold_and_torch_asks_for_them(
    cifar: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Any
) -> None:
    monkeypatch.setenv("RESNET_ONNX_CACHE", str(tmp_path / "empty"))
    code, result = run_json(capfd, "parity", str(cifar), "--runtimes", "all", "--images", "2")
    assert code == 0
    assert "graph in float64" in result["gold"]
    assert [row["runtime"] for row in result["results"]] == ["ort-cpu", "openvino"]
    code, result = run_json(capfd, "parity", str(cifar), "--runtimes", "torch")
    assert code == 2
    assert "--weights" in result["error"]["fix"]


def test_a_foreign_model_with_several_inputs_and_whole_numbers(tmp_path: Path, capfd: Any) -> None:
    graph = onnx.parser.parse_graph(
        "g (float[n,3] a, float[n,3] b, int64[n,1] k) => (float[n,3] s, int64[n,1] m)"
        " { t = Mul(a, b) s = Tanh(t) m = Add(k, k) }"
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    path = tmp_path / "foreign.onnx"
    onnx.save(model, path)
    code, result = run_json(capfd, "parity", str(path), "--runtimes", "ort-cpu,openvino,reference")
    assert code == 0
    assert set(result["results"][0]["outputs"]) == {"s", "m"}
    assert result["results"][0]["outputs"]["m"]["max_abs"] == 0


def test_every_pair_of_runtimes_is_compared(cifar: Path, capfd: Any) -> None:
    code, result = run_json(capfd, "parity", str(cifar), "--runtimes", RUNTIMES, "--images", "1")
    assert code == 0
    pairs = {(row["runtime"], row["against"]): row["relative_rmse"] for row in result["pairs"]}
    assert set(pairs) == {(a, b) for a in RUNTIMES.split(",") for b in RUNTIMES.split(",") if a != b}
    errors = {row["runtime"]: row["relative_rmse"] for row in result["results"]}
    for (a, b), error in pairs.items():
        assert 0 < error < 2 * (errors[a] + errors[b])  # no further apart than both are from gold


def test_a_tolerance_by_hand_replaces_the_budget_of_its_output_only(cifar: Path, tmp_path: Path, capfd: Any) -> None:
    mutant = mutate(cifar, tmp_path / "mutant.onnx", scale_weight("layer2.1.conv2", 1.01, channel=3))
    common = ("parity", str(mutant), "--gold", str(cifar), "--runtimes", "ort-cpu", "--images", "1")
    code, result = run_json(capfd, *common, "--tolerance-for", "logits=0.1")
    assert code == 0
    assert result["results"][0]["budget"] == 0.1
    assert "by hand" in result["budgets"]["logits"]["reason"]
    assert run_json(capfd, *common, "--tolerance-for", "logits=1e-6")[0] == 1
    for wrong in ("boxes=0.1", "logits", "logits=-1", "logits=nan", "=1"):
        code, result = run_json(capfd, *common, "--tolerance-for", wrong)
        assert code == 2
        assert wrong.partition("=")[0] in result["error"]["message"]


ONE_IMAGE = ParityPlan(runtimes=["ort-cpu"], images=1)


def test_gold_is_computed_once_and_again_when_its_file_is_damaged(
    cifar: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RESNET_ONNX_CACHE", str(tmp_path))
    model = workflow.resolve(Request(model=str(cifar)))  # no weights in this cache: the graph is gold
    first = workflow.check_parity(model, ONE_IMAGE)
    kept = list((tmp_path / "gold").iterdir())
    assert len(kept) == 1
    with monkeypatch.context() as patch:
        patch.setattr("runtimes.reference.ReferenceRuntime._run", None)  # calling it would be an error
        again = workflow.check_parity(model, ONE_IMAGE)
    assert again.outcomes[0].relative_rmse == first.outcomes[0].relative_rmse
    kept[0].write_bytes(kept[0].read_bytes()[:100])
    assert workflow.check_parity(model, ONE_IMAGE).outcomes[0].relative_rmse == first.outcomes[0].relative_rmse
    workflow.check_parity(model, replace(ONE_IMAGE, images=2))
    assert len(list((tmp_path / "gold").iterdir())) == 2  # other pictures, another gold


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"runtimes": []}, "at least one runtime"),
        ({"images": 0}, "images must be at least 1"),
        ({"tolerances": {"y": float("nan")}}, "the tolerance for y"),
        ({"tolerances": {"y": -1.0}}, "the tolerance for y"),
    ],
)
def test_a_plan_that_proves_nothing_is_refused(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        ParityPlan(**{"runtimes": ["ort-cpu"], **wrong})


def test_a_gold_for_other_pictures_is_refused_with_both_sizes(cifar: Path, capfd: Any) -> None:
    code, result = run_json(capfd, "parity", str(cifar), "--gold", "resnet18", "--runtimes", "ort-cpu")
    assert code == 2
    assert "32×32, and gold (resnet18) of 224×224" in result["error"]["message"]
    assert "--image-size 32" in result["error"]["fix"]


def test_a_tolerance_of_zero_asks_for_equal_numbers(cifar: Path, capfd: Any) -> None:
    common = ("parity", str(cifar), "--images", "1", "--tolerance-for", "logits=0")
    code, result = run_json(capfd, *common, "--runtimes", "ort-cpu")
    assert code == 1
    assert result["results"][0]["budget"] == 0


def test_other_weights_beside_the_same_file_are_another_gold(tmp_path: Path, capfd: Any) -> None:
    path = tmp_path / "net.onnx"

    def write(factor: float) -> None:
        weights = (factor * np.random.default_rng(0).standard_normal((64, 10))).astype(np.float32)
        graph = onnx.parser.parse_graph("g (float[n,64] x) => (float[n,10] y) { y = MatMul(x, w) }")
        graph.initializer.append(numpy_helper.from_array(weights, "w"))
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
        (tmp_path / "w.bin").unlink(missing_ok=True)
        onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)

    for factor in (1.0, 2.0):
        write(factor)
        assert run_json(capfd, "parity", str(path), "--runtimes", "ort-cpu")[0] == 0


def test_an_output_without_elements_is_equal_by_its_shape(tmp_path: Path, capfd: Any) -> None:
    graph = onnx.parser.parse_graph(
        "g (float[n,3] x) => (float[k,3] found, float[n,3] y) <float t = {100.0}, int64[1] axis = {1}> {"
        " m = ReduceMax <keepdims = 0> (x, axis) b = Greater(m, t) found = Compress <axis = 0> (x, b) y = Neg(x) }"
    )
    path = tmp_path / "none.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), path)
    code, result = run_json(capfd, "parity", str(path), "--runtimes", "ort-cpu")
    assert code == 0
    assert result["results"][0]["outputs"]["found"]["max_abs"] == 0


BUDGETS = {"y": allowance(1e-7, [Sum(terms=100)], baseline="a test")}
GOLD = {"y": np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]])}


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ({}, "missing"),
        ({"y": GOLD["y"], "z": GOLD["y"]}, "is not gold's"),
        ({"y": GOLD["y"][:1]}, "shape"),
        ({"y": GOLD["y"][:, :2]}, "shape"),
        ({"y": np.array([[1.0, 2.0, np.nan], [3.0, 1.0, 2.0]])}, "NaN"),
        ({"y": np.array([[1.0, 2.0, np.inf], [3.0, 1.0, 2.0]])}, "NaN or Inf"),
        ({"y": GOLD["y"] * 1.00001}, "from gold"),
    ],
    ids=["missing", "extra", "truncated batch", "truncated scores", "NaN", "Inf", "off"],
)
def test_outputs_are_compared_as_sets(found: dict[str, np.ndarray], reason: str) -> None:
    outcome = judge("r", [found], [GOLD], BUDGETS, names=["one", "two"])
    assert not outcome.passed
    assert reason in outcome.reason


def test_equal_outputs_pass_and_say_so() -> None:
    outcome = judge("r", [{"y": GOLD["y"].astype(np.float32)}], [GOLD], BUDGETS, names=["one", "two"])
    assert outcome.passed
    assert outcome.top1_agreement == 1.0
    assert "budget" in outcome.reason


def test_one_bad_picture_does_not_hide_among_good_ones() -> None:
    gold = {"y": np.ones((64, 10)) + np.arange(10)}
    found = {"y": gold["y"].copy()}
    budget = BUDGETS["y"].relative_rmse
    found["y"][17] *= 1 + 20 * budget
    outcome = judge("r", [found], [gold], BUDGETS, names=[f"picture {i}" for i in range(64)])
    assert not outcome.passed


def test_adversarial_pictures_are_what_they_are_called() -> None:
    names, pictures = adversarial_pictures(32)
    by_name = dict(zip(names, pictures, strict=True))
    assert by_name["zeros"].max() == 0
    assert by_name["white"].min() == 255
    assert np.count_nonzero(by_name["one pixel"].any(axis=-1)) == 1
    assert pictures.dtype == np.uint8


def test_batches_are_odd_and_complete() -> None:
    sizes = odd_batches(22)
    assert sum(sizes) == 22
    assert len(set(sizes)) > 2
    assert sizes[0] == 1
    assert 16 in sizes
    assert max(odd_batches(22, largest=8)) == 8


@pytest.mark.parametrize(("images", "inputs"), [(3, 9), (12, 18), (16, 22)])
def test_a_large_batch_is_among_those_tried(
    images: int, inputs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def run(self: OrtCpuRuntime, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append(len(feeds["x"]))
        return self._run_on(self._session, feeds)

    monkeypatch.setattr(OrtCpuRuntime, "_run", run)
    model = workflow.resolve(Request(model=str(foreign(tmp_path / "f.onnx"))))
    report = workflow.check_parity(model, ParityPlan(runtimes=["ort-cpu"], images=images))
    assert report.pictures == inputs
    assert (max(seen) == 16) == (images >= 12)


def test_a_quantised_model_without_adversarial_pictures_has_its_large_batch_too(tmp_path: Path) -> None:
    path = quantised(precision_models.residual(tmp_path / "net.onnx"), tmp_path)
    report = workflow.check_parity(workflow.resolve(Request(model=str(path))), ParityPlan(runtimes=["ort-cpu"]))
    assert report.names[-1] == "sample photo crop 0 (again)"
    assert report.pictures == 17


def test_a_batch_that_does_not_fit_into_memory_is_made_smaller_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(self: OrtCpuRuntime, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if len(feeds["x"]) > limit:
            raise OutOfMemory("no room")
        return self._run_on(self._session, feeds)

    limit = 8
    monkeypatch.setattr(OrtCpuRuntime, "_run", run)
    model = workflow.resolve(Request(model=str(foreign(tmp_path / "f.onnx"))))
    report = workflow.check_parity(model, ParityPlan(runtimes=["ort-cpu"]))
    assert report.passed
    assert "8 is the largest tried" in report.notes[-1]
    limit = 4
    with pytest.raises(OutOfMemory):
        workflow.check_parity(model, ParityPlan(runtimes=["ort-cpu"]))


def test_a_file_judged_against_itself_says_so_in_every_verdict(tmp_path: Path, capfd: Any) -> None:
    path = foreign(tmp_path / "a.onnx")
    written = tmp_path / "junit.xml", tmp_path / "summary.md"
    line = ["parity", str(path), "--runtimes", "ort-cpu", "--junit", str(written[0])]
    assert main([*line, "--summary", str(written[1])]) == 0
    out, _ = capfd.readouterr()
    (row,) = [each for each in out.splitlines() if each.strip().startswith("ort-cpu")]
    assert row.rstrip().endswith("pass (against itself)")
    assert "judged against itself" in written[0].read_text()
    assert written[1].read_text().count("pass (against itself)") == 2
    same = tmp_path / "copy.onnx"
    same.write_bytes(path.read_bytes())
    for gold, itself in ((same, True), (foreign(tmp_path / "b.onnx", opset=18), False)):
        _, result = run_json(capfd, *line[:4], "--gold", str(gold))
        assert ("against itself" in result["results"][0]["reason"]) == itself


def foreign(path: Path, opset: int = 17, *, side: int = 16, classes: int = 4) -> Path:
    """A network that says nothing of itself."""
    from onnx import TensorProto, helper

    random = np.random.default_rng(0)
    arrays = {"w": random.standard_normal((6, 3, 3, 3)), "f": random.standard_normal((6, classes))}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["v"]),
        helper.make_node("MatMul", ["v", "f"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "foreign", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", classes])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def test_gold_of_a_foreign_file_sees_the_same_pictures(tmp_path: Path, capfd: Any) -> None:
    a, b = foreign(tmp_path / "a.onnx"), foreign(tmp_path / "b.onnx", opset=18)
    line = [
        "parity",
        str(a),
        "--gold",
        str(b),
        "--mean",
        "0.1,0.2,0.3",
        "--std",
        "0.5,0.6,0.7",
        "--runtimes",
        "ort-cpu",
    ]
    assert main(line) == 0, capfd.readouterr()


def test_a_file_of_an_older_operator_set_is_held_against_a_catalog_network(
    cifar: Path, tmp_path: Path, capfd: Any
) -> None:
    """Its operator set is older than any that the exporter writes, in which gold would then be asked for."""
    path = foreign(tmp_path / "older.onnx", opset=13, side=32, classes=10)
    for gold in ("cifar-resnet20", str(cifar)):
        code, result = run_json(capfd, "parity", str(path), "--gold", gold, "--runtimes", "ort-cpu", "--localize")
        assert (code, result["passed"]) == (1, False)  # they are different networks


def test_a_tolerance_by_hand_counts_for_whole_numbers_too() -> None:
    gold, found = [{"label": np.asarray([[100, 200]])}], [{"label": np.asarray([[100, 201]])}]
    strict = allowance(1e-7, [Sum(terms=9)], baseline="torch")
    assert not judge("x", found, gold, {"label": strict}, names=["one"]).passed
    by_hand = replace(strict, relative_rmse=0.01, by_hand=True)
    assert judge("x", found, gold, {"label": by_hand}, names=["one"]).passed
    assert not judge("x", found, gold, {"label": replace(by_hand, relative_rmse=1e-3)}, names=["one"]).passed


def test_as_many_scores_as_there_are_objects_are_no_classes() -> None:
    batches = [{"scores": np.asarray([[0.5, 0.2, 0.1]])}, {"scores": np.asarray([[0.5]])}, {"scores": np.zeros((1, 0))}]
    found = judge(
        "x", batches, batches, {"scores": allowance(1e-7, [Sum(terms=9)], baseline="t")}, names=["a", "b", "c"]
    )
    assert (found.passed, found.top1_agreement) == (True, None)


def test_a_baseline_near_its_bound_widens_nothing() -> None:
    bound = allowance(1.0, [Sum(terms=100)] * 20, baseline="torch").bound
    for share in (0.2, 0.3, 0.99, 1.01, 10):
        budget = allowance(share * bound, [Sum(terms=100)] * 20, baseline="torch")
        assert budget.relative_rmse == pytest.approx(min(4 * share, 1) * bound)


def test_reasons_with_any_bytes_in_them_are_written(tmp_path: Path) -> None:
    from resnet_onnx.parity.compare import ParityReport
    from resnet_onnx.parity.junit import write_junit
    from resnet_onnx.parity.summary import write_markdown

    strict = {"y": allowance(1e-7, [Sum(terms=9)], baseline="torch")}
    outcome = judge(
        "x", [{"y": np.full((1, 3), np.nan)}], [{"y": np.zeros((1, 3))}], strict, names=["caf\udce9\x07.jpg"]
    )
    report = ParityReport(gold="g", pictures=1, names=["x"], outcomes=[outcome], budgets=strict)
    assert "caf" in outcome.reason
    write_junit(report, "n\udce9t\x07", tmp_path / "j.xml")
    write_markdown(report, "n\udce9t\x07", tmp_path / "s.md")
    assert "caf" in str(ElementTree.parse(tmp_path / "j.xml").getroot()[0][0][0].text)
    assert "caf" in (tmp_path / "s.md").read_text(encoding="utf-8")
