"""``resnet-onnx convert``: real pictures and trained weights, the gate, and what the user reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import precision_models

from resnet_onnx import workflow
from resnet_onnx.cli.main import main
from resnet_onnx.workflow.precision import Comparison, gate, pictures
from resnet_onnx.workflow.precision.conversion import Conversion
from runtimes import files, onnx_gate
from runtimes.errors import CheckFailed


@pytest.fixture(scope="session")
def trained(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained ResNet-20 as an ONNX file."""
    path = tmp_path_factory.mktemp("trained") / "net.onnx"
    request = workflow.Request(
        model="cifar-resnet20",
        weights=str(shared_data / "cifar-resnet20.th"),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        labels="cifar10",
    )
    workflow.export(workflow.resolve(request), path)
    return path


def run_json(capfd: Any, *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main([*arguments, "--json"])
    document: dict[str, Any] = json.loads(capfd.readouterr().out)
    return code, document


@pytest.mark.slow
def test_int8_on_trained_weights_keeps_its_decisions_and_says_how(
    trained: Path, shared_data: Path, tmp_path: Path, capfd: Any
) -> None:
    target = tmp_path / "out.onnx"
    code, result = run_json(
        capfd, "convert", str(trained), "--to", "int8", "--calibration", str(shared_data / "cifar10-jpeg.zip"),
        "--count", "256", "--held-out", "2000", "-o", str(target),
    )  # fmt: skip
    assert code == 0
    assert result["path"] == str(target)
    assert result["precision"] == "int8"
    assert result["agreement"] > 0.975
    assert 0.2 < result["size_ratio"] < 0.35
    assert {row["method"] for row in result["tried"]} == {"minmax", "entropy", "percentile", "mse"}
    gate = result["gate"]
    assert (gate["kind"], gate["images"]) == ("top1", 2000)
    low, high = gate["drop_ci95"]
    assert low < gate["drop_points"] < high <= 1.0
    metadata = onnx_gate.check_onnx(target).metadata
    record = json.loads(metadata["resnet_onnx.conversion"])
    assert record["from_sha256"] == files.sha256_file(trained)
    assert record["calibration"]["images"] == 256
    assert len(record["calibration"]["sha256"]) == 64
    assert metadata["resnet_onnx.network"] == onnx_gate.check_onnx(trained).metadata["resnet_onnx.network"]


def ruined(trained: Path, path: Path) -> Path:
    """One huge channel under a scale per tensor rounds all others to zero; what reads it undoes the size."""
    import onnx

    model = onnx.load(trained)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, change in (("layer1.0.conv1.weight", 1e4), ("layer1.0.conv1.weight_bias", 1e4)):
        array = onnx.numpy_helper.to_array(tensors[name]).copy()
        array[0] *= np.float32(change)
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(array, name))
    array = onnx.numpy_helper.to_array(tensors["layer1.0.conv2.weight"]).copy()
    array[:, 0] /= np.float32(1e4)
    tensors["layer1.0.conv2.weight"].CopyFrom(onnx.numpy_helper.from_array(array, "layer1.0.conv2.weight"))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("labels", [False, True])
def test_a_ruined_model_is_refused_and_nothing_is_written(
    labels: bool, trained: Path, shared_data: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the noise of the outputs, and by top-1 where there are labels enough."""
    for module in (gate, pictures):
        monkeypatch.setattr(module, "LABELLED_NEEDED", 200 if labels else 201)
    target = tmp_path / "out.onnx"
    target.write_bytes(b"what was there before")
    code, result = run_json(
        capfd, "convert", str(ruined(trained, tmp_path / "huge.onnx")), "--to", "int8", "--calibration",
        str(shared_data / "cifar10-jpeg.zip"), "--count", "32", "--held-out", "200", "--method", "minmax",
        "--per-tensor", "-o", str(target),
    )  # fmt: skip
    assert code == 1
    assert result["error"]["kind"] == "check-failed"
    assert ("points of top-1 (95 % interval" in result["error"]["message"]) is labels
    assert ("signal-to-noise ratio" in result["error"]["message"]) is not labels
    assert "nothing was written" in result["error"]["message"]
    assert "layer1.0.conv" in result["error"]["message"]
    assert "--per-tensor" in result["error"]["fix"]
    assert target.read_bytes() == b"what was there before"
    assert not onnx_gate.manifest_path(target).exists()


def test_labels_of_something_else_do_not_judge(
    trained: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digits, of which a network for CIFAR-10 knows nothing; and a network whose outputs they do not even number."""
    for module in (gate, pictures):
        monkeypatch.setattr(module, "LABELLED_NEEDED", 100)
    other = precision_models.residual(tmp_path / "five.onnx")  # 5 outputs, and there are 10 digits
    for path in (trained, other):
        code, result = run_json(
            capfd, "convert", str(path), "--to", "int8", "--calibration", "digits", "--count", "32", "--method",
            "minmax", "-o", str(tmp_path / "out.onnx"),
        )  # fmt: skip
        assert code == 0, result
        assert (result["gate"]["kind"], result["gate"]["images"]) == ("sqnr", 364)


def test_labels_judge_where_the_file_leaves_its_classes_open(
    trained: Path, shared_data: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    for module in (gate, pictures):
        monkeypatch.setattr(module, "LABELLED_NEEDED", 200)
    model = onnx.load(trained)
    del model.metadata_props[:]
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
    onnx.save(model, tmp_path / "open.onnx")
    code, result = run_json(
        capfd, "convert", str(tmp_path / "open.onnx"), "--to", "int8", "--calibration",
        str(shared_data / "cifar10-jpeg.zip"), "--count", "32", "--held-out", "200", "--method", "minmax",
        "--labels", "cifar10", "--max-drop", "20", "-o", str(tmp_path / "out.onnx"),
    )  # fmt: skip
    assert code == 0, result
    assert (result["gate"]["kind"], result["gate"]["images"]) == ("top1", 200)


def checked(found: Comparison, *, chance: float) -> gate.Verdict:
    conversion: Any = SimpleNamespace(config=workflow.ConversionConfig(to="int8"), data=SimpleNamespace(chance=chance))
    return gate.check(conversion, found)


def test_who_guesses_has_nothing_to_lose_and_is_compared_by_the_outputs() -> None:
    few = Comparison(images=2000, labelled=2000, both=205, energies=[(1.0, 0.5)])
    assert checked(few, chance=0.1).problem is not None
    assert checked(few, chance=0.1).gate["kind"] == "sqnr"
    many = Comparison(images=2000, labelled=2000, both=1500, energies=[(1.0, 0.5)])
    assert (checked(many, chance=0.1).problem, checked(many, chance=0.1).gate["kind"]) == (None, "top1")
    many.energies = [(1.0, 0.5), (1.0, np.inf)]
    assert "is not finite, or has another shape" in str(checked(many, chance=0.1).problem)
    few.energies = many.energies
    assert "is not finite, or has another shape" in str(checked(few, chance=0.1).problem)


def test_a_model_without_pictures_is_told_that_int8_needs_them(tmp_path: Path, capfd: Any) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.eye(6, dtype=np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 6]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "plain", [x], [y], [weight])
    path = tmp_path / "plain.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    assert main(["convert", str(path), "--to", "int8", "-o", str(tmp_path / "x.onnx")]) == 3
    told = capfd.readouterr().err
    assert "takes none" in told
    assert "--to fp16 or bf16" in told


def test_bad_pictures_end_a_conversion_unless_they_may_be_skipped(tmp_path: Path, capfd: Any) -> None:
    from PIL import Image

    dice = np.random.default_rng(0)
    for split, count in (("train", 80), ("test", 33)):
        for name in ("a", "b"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(count // 2 + (count % 2 if name == "a" else 0)):
                picture = Image.fromarray(dice.integers(0, 255, (8, 8, 3), dtype=np.uint8))
                picture.save(tmp_path / "data" / split / name / f"{i}.png")
    (tmp_path / "data" / "train" / "a" / "1.png").write_text("no picture")
    (tmp_path / "data" / "test" / "b" / "9.png").write_text("no picture")  # the last, after 32 good ones, a batch
    command = ["convert", "cifar-resnet8", "--to", "int8", "--calibration", str(tmp_path / "data"), "--count", "64",
               "--method", "minmax", "-o", str(tmp_path / "x.onnx")]  # fmt: skip
    code, refused = run_json(capfd, *command)
    assert (code, "1.png" in refused["error"]["message"]) == (2, True)
    code, result = run_json(capfd, *command, "--skip-bad")
    assert code == 0, result
    assert {Path(one["image"]).parts[-3:] for one in result["skipped"]} == {
        ("train", "a", "1.png"), ("test", "b", "9.png"),
    }  # fmt: skip
    told = result["calibration"]
    assert told["files"] + told["skipped"] == told["images"] + told["skipped"] == 64
    assert result["agreement_images"] == 32


@pytest.mark.parametrize(("asked", "used"), [([], 64), (["--count", "100"], 100)])
def test_half_precision_looks_at_as_many_pictures_as_it_says(
    asked: list[str], used: int, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    calibration = pictures.Pictures.calibration

    def counting(self: pictures.Pictures, batch: int) -> Any:
        for feeds in calibration(self, batch):
            seen.append(len(next(iter(feeds.values()))))
            yield feeds

    monkeypatch.setattr(pictures.Pictures, "calibration", counting)
    code, result = run_json(
        capfd, "convert", "cifar-resnet8", "--to", "fp16", "--calibration", "digits", *asked, "-o",
        str(tmp_path / "x.onnx"),
    )  # fmt: skip
    assert code == 0
    assert sum(seen) == used
    record = json.loads(onnx_gate.check_onnx(tmp_path / "x.onnx").metadata["resnet_onnx.conversion"])
    assert record["calibration"]["images"] == used
    assert result["agreement_computed_in"] == "fp32"  # ONNX Runtime's CPU kernels upcast


def test_calibration_validation_and_held_out_pictures_are_disjoint(tmp_path: Path) -> None:
    """Also where the training pictures are fewer than may calibrate."""
    model = workflow.resolve(workflow.Request(model="cifar-resnet8"))
    chosen = pictures.Pictures(model, workflow.ConversionConfig(to="int8", calibration="digits", count=5_000))
    parts = [chosen._calibration, chosen._validation, chosen._held_out]
    names = [{part.item_name(i) for i in range(len(part))} for part in parts if part is not None]
    assert [len(part) for part in names] == [1146, 287, 364]
    assert len(set.union(*names)) == 1797


@pytest.mark.parametrize(("precision", "runtime"), [("fp16", "ort-cpu"), ("bf16", "openvino")])
def test_files_with_half_inputs_are_measured_and_proven(
    precision: str, runtime: str, tmp_path: Path, capfd: Any
) -> None:
    net, half = tmp_path / "net.onnx", tmp_path / "half.onnx"
    assert main(["export", "cifar-resnet8", "-o", str(net), "--quiet"]) == 0
    capfd.readouterr()
    code, result = run_json(
        capfd, "convert", str(net), "--to", precision, "--half-io", "--min-speedup", "0.01", "--runtime", runtime,
        "-o", str(half),
    )  # fmt: skip
    assert code == 0, result
    assert result["speed"]["runtimes"][runtime]["speedup"] > 0
    code, result = run_json(capfd, "parity", str(half), "--runtime", f"torch,{runtime}")
    assert code == 0, result
    assert [row["passed"] for row in result["results"]] == [True, True]


def test_every_output_is_judged(tmp_path: Path, capfd: Any) -> None:
    """Row 21: the second head, whose values fp16 does not hold, is ruined although the first one is fine."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    path = precision_models.residual(tmp_path / "two.onnx")
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(1e-9, np.float32), "tiny"))
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(1e9, np.float32), "back"))
    model.graph.node.append(helper.make_node("Mul", ["y", "tiny"], ["small"], name="small"))
    model.graph.node.append(helper.make_node("Mul", ["small", "back"], ["z"], name="head2"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 5]))
    onnx.save(model, path)
    source = onnx_gate.check_onnx(path)
    wrong = onnx.load(path)
    for tensor in wrong.graph.initializer:
        if tensor.name == "tiny":
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(0, np.float32), "tiny"))
    found = workflow.resolve(workflow.Request(model=str(path)))
    config = workflow.ConversionConfig(to="fp16")
    data = pictures.Pictures(found, config)
    conversion = Conversion(
        model=found, source=source, config=config, data=data, folder=tmp_path, progress=lambda _: None
    )
    assert conversion.compare_one(onnx.load(path), "held-out").sqnr_db == np.inf
    spoilt = conversion.compare_one(wrong, "held-out")
    assert (spoilt.agreement, spoilt.sqnr_db) == (1.0, pytest.approx(0.0, abs=0.1))
    assert gate.check(conversion, spoilt).problem is not None


def test_a_speed_that_no_machine_reaches_is_refused(tmp_path: Path, capfd: Any) -> None:
    target = tmp_path / "out.onnx"
    code, result = run_json(
        capfd, "convert", "cifar-resnet8", "--to", "fp16", "--min-speedup", "1000", "--runtime", "ort-cpu",
        "-o", str(target),
    )  # fmt: skip
    assert code == 1
    assert "is not 1000× as fast as fp32 at batch 8: ort-cpu" in result["error"]["message"]
    assert not target.exists()


def test_a_fixed_batch_larger_than_the_pictures_held_out_is_filled_up(
    tmp_path: Path, shared_data: Path, capfd: Any
) -> None:
    net = tmp_path / "net.onnx"
    weights = str(shared_data / "cifar-resnet20.th")
    export = ["export", "--model", "cifar-resnet20", "--weights", weights, "--batch", "16", "-o", str(net), "--quiet"]
    assert main(export) == 0
    capfd.readouterr()
    code, result = run_json(
        capfd, "convert", str(net), "--to", "fp16", "--calibration", str(shared_data / "cifar10-jpeg.zip"),
        "--held-out", "10", "-o", str(tmp_path / "half.onnx"),
    )  # fmt: skip
    assert code == 0
    assert result["agreement_images"] == 10


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1"])
def test_a_speed_that_is_no_number_is_refused(value: str, tmp_path: Path, capfd: Any) -> None:
    code, result = run_json(
        capfd, "convert", "cifar-resnet8", "--to", "fp16", f"--min-speedup={value}", "-o", str(tmp_path / "o.onnx")
    )
    assert code == 2
    assert "--min-speedup" in result["error"]["message"]


def test_an_unavailable_runtime_is_said_before_a_missing_model(tmp_path: Path, capfd: Any) -> None:
    line = ("convert", "nosuch.onnx", "--to", "int8", "--min-speedup", "2", "--runtime", "ort-cuda")
    code, result = run_json(capfd, *line)
    assert code == 3, result


def test_half_precision_of_a_catalog_name_needs_no_pictures(tmp_path: Path, capfd: Any) -> None:
    target = tmp_path / "out.onnx"
    code, result = run_json(capfd, "convert", "cifar-resnet8", "--to", "bf16", "-o", str(target))
    assert code == 0
    assert (result["precision"], result["agreement_runtime"], result["kept_fp32"]) == ("bf16", "openvino", [])
    assert result["gate"]["kind"] == "sqnr"
    assert result["sqnr_db"] > 30
    assert 0.45 < result["size_ratio"] < 0.6


@pytest.mark.parametrize(("to", "able"), [("bf16", "openvino"), ("fp16", "ort-cpu,openvino")])
def test_the_next_step_names_runtimes_that_can(to: str, able: str, tmp_path: Path, capfd: Any) -> None:
    net, made = precision_models.residual(tmp_path / "net.onnx"), tmp_path / "made.onnx"
    assert main(["convert", str(net), "--to", to, "-o", str(made)]) == 0
    assert capfd.readouterr().out.endswith(f"Next: resnet-onnx bench {made} --runtime {able}\n")


def test_the_answer_for_people(tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "cifar-resnet8", "--to", "fp16", "--keep-fp32", "layer3.*"]) == 0
    out = capfd.readouterr().out
    assert "cifar-resnet8-fp16.onnx" in out
    assert "Decides like fp32 on" in out
    assert "Kept in fp32" in out
    assert "asked for" in out
    assert (tmp_path / "cifar-resnet8-fp16.onnx").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "int4"], "int4"),
        (["--to", "fp16", "-o", "x.engine"], "an ONNX file ends in .onnx"),
        (["--to", "int8", "--half-io"], "--half-io is for fp16 and bf16"),
        (["--to", "fp16", "--keep-fp32", "nothing"], "fits no node"),
        (["--to", "int8", "--calibration", "nowhere"], "nowhere"),
        (["--to", "fp16", "--max-drop", "0"], "--max-drop"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, capfd: Any, arguments: list[str], words: str) -> None:
    assert main(["convert", "cifar-resnet8", "-o", str(tmp_path / "x.onnx"), *arguments]) == 2
    assert words in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_trained_weights_want_real_pictures_for_int8(trained: Path, tmp_path: Path, capfd: Any) -> None:
    assert main(["convert", str(trained), "--to", "int8", "-o", str(tmp_path / "x.onnx")]) == 2
    assert "none were named" in capfd.readouterr().err


def test_a_converted_file_is_not_converted_again_nor_written_over(tmp_path: Path, capfd: Any) -> None:
    path = tmp_path / "net.onnx"
    assert main(["export", "--model", "cifar-resnet8", "-o", str(path), "--quiet"]) == 0
    before = path.read_bytes()
    assert main(["convert", str(path), "--to", "fp16", "-o", str(path)]) == 2
    assert "is the model itself" in capfd.readouterr().err
    assert path.read_bytes() == before
    half = tmp_path / "half.onnx"
    assert main(["convert", str(path), "--to", "fp16", "-o", str(half), "--quiet"]) == 0
    assert main(["convert", str(half), "--to", "bf16", "-o", str(path)]) == 2
    assert "is fp16 already" in capfd.readouterr().err


def test_torch_refuses_int8_and_all_leaves_it_out(tmp_path: Path, capfd: Any) -> None:
    path = tmp_path / "net.onnx"
    assert main(["convert", "cifar-resnet8", "--to", "int8", "--count", "32", "--method", "mse", "-o", str(path)]) == 0
    model = workflow.resolve(workflow.Request(model=str(path)))
    assert model.precision == "int8"
    assert workflow.runnable(model, ["torch", "ort-cpu"], chosen_by_all=True) == (
        ["ort-cpu"],
        ["torch (runtime 'torch' can't run net in int8: its Q/DQ graph has no torch form here)"],
    )
    assert main(["evaluate", str(path), "--data", "digits", "--runtime", "torch"]) in (2, 3)
    capfd.readouterr()


def test_all_leaves_out_who_lacks_an_operator_and_keeps_who_has_another_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file or memory that fails in one runtime is for the row of that runtime to say, not for all of them."""
    from runtimes import registry
    from runtimes.errors import BadModel, OutOfMemory, RuntimeUnavailable, UnsupportedModel

    model = workflow.resolve(workflow.Request(model=str(precision_models.residual(tmp_path / "foreign.onnx"))))
    failures = {"ort-cpu": BadModel("broken"), "openvino": OutOfMemory("full"), "reference": UnsupportedModel("no Foo")}

    def refuse(name: str, *arguments: Any, **more: Any) -> Any:
        raise failures[name]

    monkeypatch.setattr(registry, "open_runtime", refuse)
    names = ["torch", *failures]
    kept, left_out = workflow.runnable(model, names, chosen_by_all=True)
    assert kept == ["ort-cpu", "openvino"]
    assert [text.split(" ")[0] for text in left_out] == ["torch", "reference"]
    with pytest.raises(RuntimeUnavailable, match="no Foo"):
        workflow.runnable(model, ["reference"], chosen_by_all=True)


class TestComparison:
    def test_counts(self) -> None:
        found = Comparison()
        want = np.eye(4, dtype=np.float32)
        got = want.copy()
        got[0] = [0, 1, 0, 0]
        found.add([want], [got], np.asarray([0, 1, 3, 3]))
        assert (found.images, found.equal, found.labelled) == (4, 3, 4)
        assert (found.both, found.only_fp32, found.only_candidate) == (2, 1, 0)
        assert found.drop == 25
        assert found.sqnr_db == pytest.approx(10 * np.log10(4 / 2))

    def test_an_output_that_is_no_number_is_a_disagreement_and_no_signal(self) -> None:
        found = Comparison()
        found.add([np.eye(2)], [np.asarray([[np.nan, 1.0], [0.0, 1.0]])], np.asarray([0, 1]))
        assert found.equal == 1
        assert found.sqnr_db == -np.inf

    def test_another_number_of_rows_and_scalars_are_answers_too(self) -> None:
        found = Comparison()
        found.add([np.ones((10, 4))], [np.ones((9, 4))], np.asarray([0]))
        assert (found.images, found.equal, found.labelled, found.sqnr_db) == (10, 0, 0, -np.inf)
        single = Comparison()
        single.add([np.asarray(2.0)], [np.asarray(2.0)], None)
        assert (single.images, single.equal, single.sqnr_db) == (1, 1, np.inf)

    def test_an_output_without_rows_is_no_fault(self) -> None:
        found = Comparison()
        nothing = np.zeros((0, 4), np.float32)
        found.add([nothing, np.ones((2, 3), np.float32)], [nothing, np.ones((2, 3), np.float32)], None)
        assert (found.finite, found.sqnr_db, found.images) == (True, np.inf, 0)
        other = Comparison()
        other.add([nothing], [np.zeros((1, 4), np.float32)], None)
        assert not other.finite

    def test_the_worst_output_counts_and_whole_numbers_beside_it_do_not(self) -> None:
        found = Comparison()
        for _ in range(2):
            found.add([np.eye(2), np.ones((2, 3)), np.ones((2, 1), np.int64)],
                      [np.eye(2), np.full((2, 3), 0.9), np.zeros((2, 1), np.int64)], None)  # fmt: skip
        assert found.sqnr_db == pytest.approx(20)
        assert found.agreement == 1

    def test_the_interval_against_the_published_one(self) -> None:
        """Agresti and Min's formula by hand: 53 and 16 discordant of 1,600."""
        found = Comparison(labelled=1600, only_fp32=53, only_candidate=16)
        low, high = found.drop_interval()
        middle = 100 * (53.5 - 16.5) / 1602
        width = 100 * 1.959964 * np.sqrt(70 - 37**2 / 1602) / 1602
        assert (low, high) == pytest.approx((middle - width, middle + width))

    @given(st.integers(0, 2**32 - 1))
    def test_the_interval_covers_the_true_drop(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        inside = 0
        for _ in range(200):
            draws = random.multinomial(2000, [0.015, 0.008, 0.977])
            found = Comparison(labelled=2000, only_fp32=int(draws[0]), only_candidate=int(draws[1]))
            low, high = found.drop_interval()
            inside += low <= 0.7 <= high
        assert inside >= 178  # 95 % of 200 is 190; four standard deviations less

    def test_a_failed_gate_is_the_exit_code_of_a_check(self) -> None:
        assert CheckFailed.exit_code == 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_pictures(trained: Path, shared_data: Path, tmp_path: Path) -> None:
    """Row 26: peak resident memory with ten times the pictures for calibration and for the gate is within 5 %."""

    def peak_bytes(count: int) -> int:
        script = (
            "import resource, sys\n"
            "from resnet_onnx.cli.main import main\n"
            "code = main(sys.argv[1:])\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
            "sys.exit(code)\n"
        )
        arguments = [
            "convert", str(trained), "--to", "int8", "--calibration", str(shared_data / "cifar10-jpeg.zip"),
            "--method", "minmax", "--count", str(count), "--held-out", str(count), "--quiet",
            "-o", str(tmp_path / f"{count}.onnx"),
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True, timeout=300
        )
        return int(done.stdout.split()[-1])

    few, many = peak_bytes(400), peak_bytes(4_000)
    assert many < 1.05 * few


def test_int8_that_is_slower_is_refused(shared_data: Path, tmp_path: Path, capfd: Any) -> None:
    """Row 21: a factor per channel leaves nothing for int8 to save, and rounding costs a pass over the picture."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.full((3, 1, 1, 1), 0.5, np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", group=3)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 256, 256]) for name in "xy")
    net = helper.make_graph([node], "thin", [x], [y], [weight])
    thin, target = tmp_path / "thin.onnx", tmp_path / "out.onnx"
    onnx.save(helper.make_model(net, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), thin)
    code, result = run_json(
        capfd, "convert", str(thin), "--to", "int8", "--calibration", str(shared_data / "cifar10-jpeg.zip"),
        "--mean", "0,0,0", "--std", "1,1,1", "--count", "16", "--held-out", "32", "--method", "minmax",
        "--min-speedup", "1", "--runtime", "ort-cpu", "-o", str(target),
    )  # fmt: skip
    assert code == 1, result
    assert "is not 1× as fast as fp32 at batch 8: ort-cpu 0." in result["error"]["message"]
    assert not target.exists()
