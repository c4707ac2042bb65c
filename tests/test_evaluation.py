"""Accuracy: exact counts on known outputs, every form of model input, and the published figure of trained weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from resnet_onnx.data.datasets import PictureSet, from_arrays, open_dataset
from resnet_onnx.evaluation import NOT_PREDICTED, EvaluationPlan, PictureModel, evaluate
from resnet_onnx.models.preprocessing import Preprocessing
from runtimes.errors import BadData, BadModel, BadPicture, UsageError
from runtimes.fake import FakeProgram, FakeRuntime
from runtimes.spec import Dimension, ModelSource, RuntimeOptions, TensorSpec

PLAIN = Preprocessing(image_size=8, resize=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
CLASSES = tuple(f"c{index}" for index in range(10))
Function = Callable[[NDArray[Any]], NDArray[Any]]

SCORES: dict[int, NDArray[Any]] = {}
"""What the fake model answers, by the level of the picture."""


def levels(pictures: NDArray[Any]) -> NDArray[np.int64]:
    """Recovers the level that a one-colour picture was painted with, whatever form it comes in."""
    scale = 1 if pictures.dtype == np.uint8 else 255
    return np.rint(pictures.reshape(len(pictures), -1)[:, 0].astype(np.float64) * scale).astype(np.int64)


def look_up(dtype: str, shape: tuple[Dimension, ...], output: tuple[Dimension, ...], calls: list[int]) -> FakeProgram:
    def function(feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        pictures = feeds["pictures"]
        calls.append(len(pictures))
        rows = [SCORES.get(int(level), np.zeros(10)) for level in levels(pictures)]
        return {"scores": np.stack(rows).astype(np.float32).reshape(-1, *[d for d in output[1:] if d != "n"])}

    return FakeProgram(
        inputs=(TensorSpec("pictures", np.dtype(dtype), shape),),
        outputs=(TensorSpec("scores", np.dtype(np.float32), output),),
        function=function,
    )


def fake(
    dtype: str = "float32",
    shape: tuple[Dimension, ...] = ("n", 3, 8, 8),
    output: tuple[Dimension, ...] = ("n", 10),
    calls: list[int] | None = None,
) -> FakeRuntime:
    arguments = {"dtype": dtype, "shape": shape, "output": output, "calls": calls if calls is not None else []}
    source = ModelSource(factory=f"{__name__}:look_up", arguments=arguments, label="fake.onnx")
    return FakeRuntime(source, device="cpu", options=RuntimeOptions())


def plan(**options: Any) -> EvaluationPlan:
    return EvaluationPlan(data="-", **options)


def painted(count: int, labels: list[int] | None = None) -> PictureSet:
    """Pictures of one level each, 0, 1, 2 …"""
    pictures = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    return from_arrays("painted", pictures, labels or [index % 10 for index in range(count)], CLASSES)


@pytest.fixture(autouse=True)
def right_answers() -> None:
    SCORES.clear()
    SCORES.update({level: np.eye(10)[level % 10] * 5 for level in range(256)})


IDENTITY = np.arange(10)


class TestCounting:
    def test_all_right(self) -> None:
        found = evaluate(fake(), painted(23), PLAIN, plan(batch_size=4), class_map=IDENTITY)
        assert (found.row.top1, found.row.top5, found.row.images) == (1.0, 1.0, 23)
        assert found.predictions.tolist() == [index % 10 for index in range(23)]
        assert found.row.images_per_second > 0
        assert found.row.seconds > 0

    def test_ranks(self) -> None:
        descending = np.arange(10, 0, -1.0)
        SCORES.update(dict.fromkeys(range(10), descending))  # always 0, then 1, then 2 …
        found = evaluate(fake(), painted(10), PLAIN, plan(), class_map=IDENTITY)
        assert (found.row.top1, found.row.top5) == (0.1, 0.5)

    def test_class_map_is_applied(self) -> None:
        found = evaluate(fake(), painted(10), PLAIN, plan(), class_map=IDENTITY[::-1].copy())
        assert found.row.top1 == 0.0
        assert found.labels.tolist() == list(range(9, -1, -1))

    def test_a_constant_output_is_right_for_one_class_only(self) -> None:
        SCORES.clear()  # all zero
        found = evaluate(fake(), painted(10), PLAIN, plan(), class_map=IDENTITY)
        assert (found.row.top1, found.row.top5) == (0.1, 0.5)

    def test_nan_is_never_right(self) -> None:
        SCORES[3] = np.full(10, np.nan)
        SCORES[4] = np.where(np.arange(10) == 4, np.nan, 0)
        SCORES[5] = np.where(np.arange(10) == 4, np.nan, np.eye(10)[5])
        found = evaluate(fake(), painted(10), PLAIN, plan(), class_map=IDENTITY)
        assert (found.row.top1, found.row.top5, found.row.not_finite) == (0.7, 0.7, 3)
        assert found.predictions[3:6].tolist() == [NOT_PREDICTED] * 3

    def test_infinite_logits_still_rank(self) -> None:
        SCORES[2] = np.where(np.arange(10) == 2, np.inf, -np.inf)
        assert evaluate(fake(), painted(10), PLAIN, plan(), class_map=IDENTITY).row.top1 == 1.0

    def test_fewer_than_five_classes_have_no_top5(self) -> None:
        SCORES.update({level: np.eye(3)[level % 3] for level in range(6)})
        pictures = painted(6).source.pictures  # type: ignore[attr-defined]
        three = from_arrays("three", pictures, [0, 1, 2, 0, 1, 1], ["a", "b", "c"])
        found = evaluate(fake(output=("n", 3)), three, PLAIN, plan(), class_map=np.arange(3))
        assert found.row.top5 is None
        assert found.row.top1 == pytest.approx(5 / 6)
        assert found.row.top5 is None

    def test_limit_is_spread_over_the_classes(self) -> None:
        found = evaluate(fake(), painted(200, sorted(list(range(10)) * 20)), PLAIN, plan(limit=10), class_map=IDENTITY)
        assert found.row.images == 10
        assert found.labels.tolist() == list(range(10))

    def test_progress_counts_up(self) -> None:
        seen: list[tuple[int, int]] = []
        evaluate(
            fake(), painted(10), PLAIN, plan(batch_size=4), class_map=IDENTITY, progress=lambda *both: seen.append(both)
        )
        assert seen == [(4, 10), (8, 10), (10, 10)]


class TestForms:
    @pytest.mark.parametrize(
        ("dtype", "shape"),
        [
            ("float32", ("n", 3, 8, 8)),
            ("float32", ("n", 3, "h", "w")),
            ("float32", ("n", 8, 8, 3)),
            ("float16", ("n", 3, 8, 8)),
            ("uint8", ("n", 8, 8, 3)),
            ("uint8", ("n", 3, 8, 8)),
        ],
    )
    def test_every_form_of_input(self, dtype: str, shape: tuple[Dimension, ...]) -> None:
        found = evaluate(fake(dtype, shape), painted(23), PLAIN, plan(batch_size=5), class_map=IDENTITY)
        assert found.row.top1 == 1.0

    @pytest.mark.parametrize("fixed", [1, 4, 30])
    def test_a_fixed_batch_is_padded_and_the_padding_dropped(self, fixed: int) -> None:
        calls: list[int] = []
        runtime = fake(shape=(fixed, 3, 8, 8), output=(fixed, 10), calls=calls)
        calls = runtime.source.arguments["calls"]
        found = evaluate(runtime, painted(23), PLAIN, plan(batch_size=8), class_map=IDENTITY)
        assert (found.row.images, found.row.top1) == (23, 1.0)
        assert set(calls) == {fixed}

    def test_scores_with_spatial_ones(self) -> None:
        found = evaluate(fake(output=("n", 10, 1, 1)), painted(7), PLAIN, plan(), class_map=IDENTITY)
        assert found.row.top1 == 1.0

    @pytest.mark.parametrize(
        ("dtype", "shape", "output", "expected"),
        [
            ("float32", ("n", 3, 224, 224), ("n", 10), "of another size than the 8×8"),
            ("float32", ("n", 1, 8, 8), ("n", 10), "no axis of three colour channels"),
            ("float32", ("n", 192), ("n", 10), "expected four dimensions"),
            ("int64", ("n", 3, 8, 8), ("n", 10), "neither bytes nor floating point"),
            ("float32", ("n", 3, 8, 8), ("n", 10, 7, 7), r"is not \[batch, classes\]"),
            ("float32", ("n", 3, 8, 8), ("n", 4), "has 4 outputs, the data set needs 10"),
        ],
    )
    def test_models_that_are_no_classifiers_of_these_pictures(
        self, dtype: str, shape: tuple[Dimension, ...], output: tuple[Dimension, ...], expected: str
    ) -> None:
        with pytest.raises(BadModel, match=expected) as refused:
            evaluate(fake(dtype, shape, output), painted(5), PLAIN, plan(), class_map=IDENTITY)
        assert refused.value.message.startswith("fake.onnx")

    def test_several_inputs(self) -> None:
        runtime = fake()
        runtime.inputs = (*runtime.inputs, TensorSpec("mask", np.dtype(np.float32), ("n",)))
        with pytest.raises(BadModel, match=r"has 2 inputs \(pictures: .*, mask: float32\[n\]\), expected one"):
            PictureModel(runtime, PLAIN)


class TestData:
    def test_unlabelled_pictures_are_refused(self) -> None:
        with pytest.raises(BadData, match="no labels"):
            evaluate(fake(), from_arrays("mine", np.zeros((2, 8, 8, 3), np.uint8)), PLAIN, plan(), class_map=IDENTITY)

    def test_bad_limits(self) -> None:
        with pytest.raises(UsageError, match="at least 1, not 0"):
            evaluate(fake(), painted(2), PLAIN, plan(limit=0), class_map=IDENTITY)
        with pytest.raises(UsageError, match="batch size must be at least 1, not 0"):
            evaluate(fake(), painted(2), PLAIN, plan(batch_size=0), class_map=IDENTITY)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_bad_pictures(self, tmp_path: Path, workers: int) -> None:
        from PIL import Image

        for index in range(12):
            path = tmp_path / f"c{index % 10}" / f"{index:02d}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (index, index, index)).save(path)
        (tmp_path / "c3" / "03.png").write_bytes(b"text")
        dataset = open_dataset(tmp_path)
        with pytest.raises(BadPicture, match=r"c3/03\.png"):
            evaluate(fake(), dataset, PLAIN, plan(workers=workers), class_map=IDENTITY)
        found = evaluate(fake(), dataset, PLAIN, plan(workers=workers, skip_bad=True, batch_size=2), class_map=IDENTITY)
        assert (found.row.images, found.row.top1) == (11, 1.0)
        assert [skipped.image for skipped in found.row.skipped] == ["c3/03.png"]
        assert (found.predictions == NOT_PREDICTED).sum() == 1
        assert found.row.skipped[0].image == "c3/03.png"
        assert found.row.images_per_second > 0
        only_bad = dataset.subset([[dataset.item_name(i) for i in range(12)].index("c3/03.png")])
        with pytest.raises(BadData, match=r"none of the 1 pictures could be decoded; c3/03\.png: not a picture"):
            evaluate(fake(), only_bad, PLAIN, plan(skip_bad=True), class_map=IDENTITY)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"crops": 5}, "the number of crops is 1 or 10, not 5"),
        ({"scales": (8,), "crops": 1}, "--scales looks at whole pictures, and --crops was given"),
        ({"scales": (8,), "workers": 0}, "and --workers was given"),
    ],
)
def test_a_plan_checks_itself(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        plan(**options)


def test_published_weights_reach_their_figure_on_every_tenth_jpeg(shared_data: Path, tmp_path: Path) -> None:
    import torch

    from converters.torch_export import ExportOptions, export
    from resnet_onnx.data.labels import cifar10_labels, match_classes
    from resnet_onnx.models.build import build
    from resnet_onnx.models.catalog import lookup
    from resnet_onnx.models.fitting import fit
    from resnet_onnx.models.weights_file import read_weights_file
    from runtimes import open_runtime

    fitted = fit(lookup("cifar-resnet20").config, read_weights_file(shared_data / "cifar-resnet20.th"))
    net = build(fitted.config)
    net.load_state_dict(fitted.state)
    export(net.eval(), (torch.zeros(2, 3, 32, 32),), tmp_path / "net.onnx", ExportOptions(), {})
    dataset = open_dataset(shared_data / "cifar10-jpeg.zip").subset(range(0, 10_000, 10))
    preprocessing = Preprocessing(image_size=32, resize=32)
    class_map = match_classes(dataset.classes, cifar10_labels(), 10)
    with open_runtime("ort-cpu", ModelSource(path=tmp_path / "net.onnx")) as runtime:
        found = evaluate(runtime, dataset, preprocessing, plan(batch_size=128, workers=1), class_map=class_map)
    labels = torch.from_numpy(class_map[dataset.labels])
    pictures = np.stack([np.asarray(_decoded(dataset, index)) for index in range(len(dataset))])
    with torch.inference_mode():
        expected = (net(torch.from_numpy(preprocessing.normalise(pictures))).argmax(1) == labels).double().mean().item()
    assert found.row.images == 1000
    assert found.row.top1 == expected
    assert 0.79 < found.row.top1 < 0.84  # 81.03 % on all ten thousand
    assert found.row.top5 is not None
    assert found.row.top5 > 0.97


def _decoded(dataset: PictureSet, index: int) -> NDArray[np.uint8]:
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(bytes(dataset.read(index).data))).convert("RGB"))


def _open_model(folder: Path, classes: int) -> str:
    """Writes a classifier that leaves channels, size and classes open; returns its path."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((classes, 3, 4, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["pixels", "w"], ["c"], strides=[4, 4]),
        helper.make_node("GlobalAveragePool", ["c"], ["g"]),
        helper.make_node("Flatten", ["g"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes, "open", [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["b", "channels", "h", "w"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "classes"])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    path = folder / f"{classes}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return str(path)


def test_open_channels_and_classes_are_told_by_the_graph(tmp_path: Path, capfd: Any) -> None:
    """As exporters of Hugging Face write it; more outputs than the data set has classes are no classes by order."""
    from resnet_onnx.cli.main import main

    command = ["--data", "digits", "--image-size", "16", "--runtime", "ort-cpu,openvino,reference", "--json"]
    assert main(["evaluate", _open_model(tmp_path, 10), *command]) == 0
    out, err = capfd.readouterr()
    assert "by their number" in err  # '0' to '9' are the numbers of the outputs; no label says so
    rows = json.loads(out)["results"]
    assert {row["classes_by"] for row in rows} == {"number"}
    labelled = [*command, "--labels", "cifar10"]
    assert main(["evaluate", _open_model(tmp_path, 10), *labelled]) == 0
    assert "by their number" in capfd.readouterr().err
    assert len({row["top1"] for row in rows}) == 1
    assert len(rows) == 3
    for classes in (1000, 4):
        assert main(["evaluate", _open_model(tmp_path, classes), *command]) == 2
        error = json.loads(capfd.readouterr().out)["error"]
        assert f"the model {classes} outputs" in error["message"]


def test_classes_that_no_name_tells_are_matched_by_order_and_said_so(tmp_path: Path, capfd: Any) -> None:
    from PIL import Image

    from resnet_onnx.cli.main import main

    for index, name in enumerate(("apple", "pear", "plum")):
        (tmp_path / "fruit" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), (80 * index, 40, 90)).save(tmp_path / "fruit" / name / "1.png")
    command = ["evaluate", _open_model(tmp_path, 3), "--data", str(tmp_path / "fruit"), "--image-size", "16", "--json"]
    assert main(command) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["results"][0]["classes_by"] == "order"
    assert "by their order" in err
    labels = tmp_path / "labels.txt"
    labels.write_text("plum\npear\napple\n")
    assert main([*command, "--labels", str(labels)]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["results"][0]["classes_by"] == "name"
    assert "by their order" not in err
