"""Accuracy from several views of each picture: ten crops, and whole pictures at several sizes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from resnet_onnx.cli.main import main
from resnet_onnx.data.batches import Batches
from resnet_onnx.data.datasets import PictureSet, from_arrays, open_dataset
from resnet_onnx.data.transforms import CENTRE, prepare, ten_crops
from resnet_onnx.evaluation import NOT_PREDICTED, Evaluation, EvaluationPlan, evaluate
from resnet_onnx.models.picture_tensor import resize
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.results.evaluate import OneCrop
from runtimes.errors import BadModel, BadPicture, UsageError
from runtimes.fake import FakeProgram, FakeRuntime
from runtimes.spec import Dimension, ModelSource, RuntimeOptions, TensorSpec

ROOM = Preprocessing(image_size=8, resize=10, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
CLASSES = ("a", "b", "c")
FIRST_PIXELS = (0, 2, 20, 22, 11, 7, 9, 27, 29, 18)
"""Upper left pixel of each of the ten crops of a 10×10 picture whose pixels are numbered by row."""

ANSWERS: dict[int, NDArray[Any]] = {}
"""What the fake model answers, by the upper left pixel that it sees; zeros by default."""
SEEN: list[tuple[int, ...]] = []
"""Shapes that the fake model was run with."""


def answer(dtype: str, shape: tuple[Dimension, ...], output: tuple[Dimension, ...]) -> FakeProgram:
    def function(feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        pictures = feeds["pictures"]
        SEEN.append(pictures.shape)
        scale = 1 if pictures.dtype == np.uint8 else 255
        first = np.rint(pictures.reshape(len(pictures), -1)[:, 0].astype(np.float64) * scale).astype(int)
        return {"scores": np.stack([ANSWERS.get(pixel, np.zeros(3)) for pixel in first]).astype(np.float32)}

    inputs = (TensorSpec("pictures", np.dtype(dtype), shape),)
    outputs = (TensorSpec("scores", np.dtype(np.float32), output),)
    return FakeProgram(inputs=inputs, outputs=outputs, function=function)


def by_height(heights: Mapping[int, list[float]]) -> FakeProgram:
    def function(feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        SEEN.append(feeds["pictures"].shape)
        return {"scores": np.tile(np.float32(heights[feeds["pictures"].shape[2]]), (len(feeds["pictures"]), 1))}

    inputs = (TensorSpec("pictures", np.dtype(np.float32), ("n", 3, "h", "w")),)
    outputs = (TensorSpec("scores", np.dtype(np.float32), ("n", 3)),)
    return FakeProgram(inputs=inputs, outputs=outputs, function=function)


def fake(factory: Callable[..., FakeProgram] = answer, **arguments: Any) -> FakeRuntime:
    if factory is answer:
        arguments = {"dtype": "float32", "shape": ("n", 3, 8, 8), "output": ("n", 3), **arguments}
    source = ModelSource(factory=f"{__name__}:{factory.__name__}", arguments=arguments, label="fake.onnx")
    return FakeRuntime(source, device="cpu", options=RuntimeOptions())


@pytest.fixture(autouse=True)
def _nothing_known() -> None:
    ANSWERS.clear()
    SEEN.clear()


def numbered(labels: list[int]) -> PictureSet:
    """Pictures of 10×10 whose pixels are numbered by row, from 0 to 99."""
    one = np.arange(100, dtype=np.uint8).reshape(1, 10, 10, 1) * np.ones((1, 1, 1, 3), np.uint8)
    return from_arrays("numbered", np.repeat(one, len(labels), axis=0), labels, CLASSES)


def plan(**options: Any) -> EvaluationPlan:
    return EvaluationPlan(data="-", **options)


def softmax(row: NDArray[Any]) -> NDArray[np.float64]:
    powers = np.exp(row.astype(np.float64))
    share: NDArray[np.float64] = powers / powers.sum()
    return share


def ten(labels: list[int], runtime: FakeRuntime | None = None, **how: Any) -> Evaluation:
    return evaluate(runtime or fake(), numbered(labels), ROOM, plan(crops=10, **how), class_map=np.arange(3))


class TestTenCrops:
    def test_they_are_the_five_of_torchvision_and_their_mirror_images(self) -> None:
        import torch
        from torchvision.transforms.v2 import functional

        picture = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
        resized = torch.from_numpy(resize(picture, 10, "bilinear")).permute(2, 0, 1)
        assert resized.shape == (3, 10, 13)
        five = functional.five_crop(resized, [8, 8])
        expected = [crop.permute(1, 2, 0).numpy() for crop in (*five, *map(functional.horizontal_flip, five))]
        assert np.array_equal(ten_crops(picture, ROOM), np.stack(expected))

    def test_the_centre_is_what_one_crop_is(self) -> None:
        picture = np.random.default_rng(0).integers(0, 256, (61, 40, 3), dtype=np.uint8)
        assert np.array_equal(ten_crops(picture, ROOM)[CENTRE], prepare(picture, ROOM))

    def test_the_average_is_of_probabilities_not_of_logits(self) -> None:
        rows = np.tile([2.0, 0.0, 0.0], (10, 1))
        rows[3] = [0.0, 30.0, 0.0]  # one crop is very sure of b
        ANSWERS.update(zip(FIRST_PIXELS, rows, strict=True))
        assert rows.mean(axis=0).argmax() == 1
        assert np.mean([softmax(row) for row in rows], axis=0).argmax() == 0
        found = ten([0, 1])
        assert found.predictions.tolist() == [0, 0]
        assert (found.row.top1, found.row.images) == (0.5, 2)

    def test_the_average_decides_as_by_hand(self) -> None:
        dice = np.random.default_rng(1)
        decisions = []
        for _ in range(20):
            rows = dice.normal(0, 2, (10, 3))
            ANSWERS.update(zip(FIRST_PIXELS, rows, strict=True))
            assert ten([0]).predictions[0] == np.mean([softmax(row) for row in rows], axis=0).argmax()
            decisions.append((ten([0]).predictions[0], rows[CENTRE].argmax()))
        assert any(mean != centre for mean, centre in decisions)

    def test_a_picture_that_only_its_mirrored_crop_gets_right(self) -> None:
        ANSWERS[27] = np.array([0.0, 0.0, 9.0])  # the mirror image of the lower left corner
        found = ten([2])
        assert found.row.top1 == 1.0
        assert found.row.one_crop is not None
        assert found.row.one_crop.top1 == 0.0
        assert found.row.one_crop == OneCrop(top1=0.0, top5=None)
        assert evaluate(fake(), numbered([2]), ROOM, plan(), class_map=np.arange(3)).row.top1 == 0.0

    def test_the_centre_beside_is_the_figure_of_one_crop(self) -> None:
        ANSWERS[11] = np.array([0.0, 5.0, 0.0])
        alone = evaluate(fake(), numbered([0, 1, 1, 2]), ROOM, plan(), class_map=np.arange(3))
        found = ten([0, 1, 1, 2])
        assert found.row.one_crop is not None
        assert found.row.one_crop.top1 == alone.row.top1 == 0.5
        assert alone.row.one_crop is None

    def test_probabilities_stay_probabilities(self) -> None:
        ANSWERS.update({pixel: np.array([0.4, 0.6, 0.0]) for pixel in FIRST_PIXELS})
        ANSWERS[0] = np.array([1.0, 0.0, 0.0])
        ANSWERS[2] = np.array([0.9, 0.1, 0.0])  # mean 0.51, 0.49; of softmaxes of these, b would win
        assert ten([0]).row.top1 == 1.0

    def test_nan_or_inf_in_one_crop_is_never_right(self) -> None:
        for bad in (np.nan, np.inf):
            ANSWERS[29] = np.array([bad, 0.0, 0.0])
            found = ten([0])
            assert (found.row.top1, found.row.not_finite) == (0.0, 1)
            assert found.predictions.tolist() == [NOT_PREDICTED]

    @pytest.mark.parametrize("fixed", [1, 4, 30])
    def test_a_model_with_a_fixed_batch(self, fixed: int) -> None:
        ANSWERS[27] = np.array([0.0, 0.0, 9.0])
        found = ten([2, 2, 2, 2], fake(shape=(fixed, 3, 8, 8), output=(fixed, 3)))
        assert found.row.top1 == 1.0
        assert {shape[0] for shape in SEEN} == {fixed}

    def test_a_model_that_takes_bytes(self) -> None:
        ANSWERS[27] = np.array([0.0, 0.0, 9.0])
        assert ten([2, 2], fake(dtype="uint8", shape=("n", 8, 8, 3))).row.top1 == 1.0

    def test_a_run_has_no_more_crops_than_the_batch(self) -> None:
        ten([0] * 7, batch_size=4)
        assert max(shape[0] for shape in SEEN) == 4
        SEEN.clear()
        ten([0] * 7, batch_size=32)
        assert [shape[0] for shape in SEEN] == [30, 30, 30, 10]  # the first is the warm-up

    def test_worker_processes_make_the_same_crops(self, tmp_path: Path) -> None:
        from PIL import Image

        dice = np.random.default_rng(2)
        for index in range(9):
            path = tmp_path / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(dice.integers(0, 256, (12 + index, 15, 3), dtype=np.uint8)).save(path)
        (tmp_path / "a" / "4.png").write_bytes(b"text")

        def crops(workers: int) -> NDArray[Any]:
            with Batches(open_dataset(tmp_path), ROOM, batch_size=2, crops=10, workers=workers, skip_bad=True) as found:
                return np.concatenate([batch.pictures for batch in found])

        here = crops(0)
        assert here.shape == (8, 10, 8, 8, 3)
        assert np.array_equal(here, crops(2))

    def test_without_room_to_move_it_is_refused(self) -> None:
        tight = Preprocessing(image_size=8, resize=8)
        with pytest.raises(UsageError, match="10 crops of 8×8 out of pictures whose shorter side is resized to 8"):
            evaluate(fake(), numbered([0]), tight, plan(crops=10), class_map=np.arange(3))


class TestScales:
    def test_the_average_over_the_sizes_is_of_probabilities(self) -> None:
        rows = {8: [9.0, 0.0, 0.0], 12: [0.0, 1.0, 0.0], 16: [0.0, 1.0, 0.0], 24: [0.0, 1.0, 0.0]}
        logits = np.array(list(rows.values()))[1:]
        runtime = fake(by_height, heights=rows)
        found = evaluate(
            runtime,
            numbered([0, 1]),
            ROOM,
            plan(
                scales=(
                    12,
                    16,
                    24,
                )
            ),
            class_map=np.arange(3),
        )
        assert np.mean([softmax(row) for row in logits], axis=0).argmax() == 1
        assert found.predictions.tolist() == [1, 1]
        assert found.row.one_crop is not None
        assert found.row.one_crop.top1 == 0.5  # the 8×8 centre, which says a

    def test_one_sure_size_does_not_outvote_two(self) -> None:
        rows = {8: [0.0] * 3, 12: [0.0, 0.0, 30.0], 16: [2.0, 0.0, 0.0], 24: [2.0, 0.0, 0.0]}
        runtime = fake(by_height, heights=rows)
        found = evaluate(
            runtime,
            numbered([0]),
            ROOM,
            plan(
                scales=(
                    12,
                    16,
                    24,
                )
            ),
            class_map=np.arange(3),
        )
        assert found.row.top1 == 1.0

    def test_the_whole_picture_is_seen_and_no_run_is_larger_than_the_batch(self) -> None:
        wide = from_arrays("wide", np.zeros((5, 10, 20, 3), np.uint8), [0] * 5, CLASSES)
        runtime = fake(by_height, heights={8: [0.0] * 3, 16: [0.0] * 3, 80: [0.0] * 3})
        evaluate(
            runtime,
            wide,
            ROOM,
            plan(
                scales=(
                    16,
                    80,
                ),
                batch_size=16,
            ),
            class_map=np.arange(3),
        )
        assert SEEN[1:] == [(5, 3, 8, 8), (2, 3, 16, 32), (2, 3, 16, 32), (1, 3, 16, 32), *[(1, 3, 80, 160)] * 5]

    def test_bad_pictures(self, tmp_path: Path) -> None:
        from PIL import Image

        for index in range(6):
            path = tmp_path / "abc"[index % 3] / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (10 + index, 10)).save(path)
        (tmp_path / "b" / "4.png").write_bytes(b"text")
        runtime = fake(by_height, heights={8: [0.0, 0.0, 1.0], 10: [1.0, 0.0, 0.0]})
        dataset, identity = open_dataset(tmp_path), np.arange(3)
        with pytest.raises(BadPicture, match=r"b/4\.png"):
            evaluate(runtime, dataset, ROOM, plan(scales=(10,)), class_map=identity)
        found = evaluate(runtime, dataset, ROOM, plan(scales=(10,), skip_bad=True, batch_size=2), class_map=identity)
        assert (found.row.images, found.row.top1) == (5, 0.4)
        assert [skipped.image for skipped in found.row.skipped] == ["b/4.png"]
        assert found.row.one_crop is not None
        assert found.row.one_crop.top1 == 0.4  # the two c, where a was right above

    def test_a_model_of_one_size_is_refused(self) -> None:
        with pytest.raises(BadModel, match="does not take pictures of any size"):
            evaluate(fake(), numbered([0]), ROOM, plan(scales=(8,)), class_map=np.arange(3))

    def test_a_network_of_torch_decides_as_by_hand(self, tmp_path: Path) -> None:
        import torch
        from PIL import Image

        from resnet_onnx.workflow import Request, evaluate_on, resolve

        dice = np.random.default_rng(3)
        for index in range(12):
            path = tmp_path / f"{index % 10}" / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            noise = dice.integers(0, 256, (5, 5 + index % 3, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((40 + 9 * (index % 3), 40)).save(path)
        model = resolve(Request(model="cifar-resnet8"))
        assert model.network is not None
        found = evaluate_on(model, "torch", EvaluationPlan(data=str(tmp_path), scales=(32, 48), batch_size=5))
        net, pictures = model.network.load(), open_dataset(tmp_path)
        expected = []
        for index in range(len(pictures)):
            picture = np.asarray(Image.open(tmp_path / pictures.item_name(index)))
            views = [resize(picture, scale, "bilinear")[None] for scale in (32, 48)]
            with torch.inference_mode():
                logits = [net(torch.from_numpy(model.network.preprocessing.normalise(view)))[0] for view in views]
            expected.append(torch.stack([row.double().softmax(0) for row in logits]).mean(0).argmax().item())
        assert found.predictions.tolist() == expected
        assert len(set(expected)) > 1


def test_vgg_slides_its_fully_connected_layers_over_a_larger_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from resnet_onnx.models import vgg
    from resnet_onnx.models.build import build_empty
    from resnet_onnx.models.configs import VGGConfig

    monkeypatch.setattr(vgg, "_HIDDEN", 64)  # 138 million weights prove no more
    net = build_empty(VGGConfig(depth=16, num_classes=5)).eval()
    assert isinstance(net, vgg.VGG)
    torch.manual_seed(0)  # some draws make pooling and sliding nearly alike
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                layer.weight.normal_(0, (2 / layer.weight[0].numel()) ** 0.5)
                layer.bias.normal_(0, 0.1)
    sliding = net.fully_convolutional().eval()
    assert sliding.classifier[0].weight.data_ptr() == net.classifier[0].weight.data_ptr()
    picture = torch.randn(1, 3, 256, 224)
    with torch.inference_mode():
        alone = net(picture[:, :, :224])
        assert torch.allclose(sliding(picture[:, :, :224]), alone, rtol=1e-4, atol=1e-4)
        features = net.features(picture)
        assert features.shape[2:] == (8, 7)
        positions = [net.classifier(features[:, :, row : row + 7].flatten(1)) for row in range(2)]
        expected = torch.stack(positions).mean(0)
        assert torch.allclose(sliding(picture), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(net(picture), expected, rtol=1e-2, atol=1e-2)  # pooled: another function


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "digits"
    assert main(["train", "--model", "cifar-resnet8", "--epochs", "1", "--out", str(out), "--quiet"]) == 0
    return out


class TestCommand:
    def test_ten_crops_beside_one(self, checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
        evaluate = ["evaluate", str(checkpoint), "--data", "digits", "--resize", "34", "--limit", "90"]
        capfd.readouterr()
        assert main([*evaluate, "--json"]) == 0
        one = json.loads(capfd.readouterr().out)
        assert main([*evaluate, "--crops", "10", "--runtime", "ort-cpu,torch", "--json"]) == 0
        found = json.loads(capfd.readouterr().out)
        assert (found["crops"], found["scales"], found["resize"], found["views"]) == (10, None, 34, "10 crops")
        assert (one["crops"], one["views"], one["one_crop"]) == (1, "1 crop", None)
        assert [row["one_crop"]["top1"] for row in found["results"]] == [one["top1"]] * 2
        assert found["results"][0]["top1"] == found["results"][1]["top1"] != one["top1"]
        assert main([*evaluate, "--crops", "10"]) == 0
        shown = capfd.readouterr().out
        assert f" 1 crop      {100 * one['top1']:.2f}" in shown
        assert f" 10 crops    {100 * found['top1']:.2f}" in shown

    def test_scales_beside_one_crop(self, checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
        evaluate = ["evaluate", str(checkpoint), "--data", "digits", "--limit", "90", "--runtime", "torch", "--json"]
        capfd.readouterr()
        assert main(evaluate) == 0
        one = json.loads(capfd.readouterr().out)
        assert main([*evaluate, "--scales", "32"]) == 0
        same = json.loads(capfd.readouterr().out)
        assert (same["crops"], same["scales"], same["views"]) == (None, [32], "scale 32")
        assert same["top1"] == same["one_crop"]["top1"] == one["top1"]  # the whole of a square picture is its centre

    @pytest.mark.parametrize(
        ("options", "message", "fix"),
        [
            (["--crops", "10"], "shorter side is resized to 32 leave nothing to choose", "--resize 36"),
            (["--crops", "3"], "'3' is not one of '1', '10'", "evaluate --help"),
            (["--resize", "31"], "--resize 31 leaves less than the 32×32 that", "--resize 32 or more"),
            (["--resize", "0"], "0 is not in the range 1<=x<=4096", "evaluate --help"),
            (["--scales", "abc"], "'abc' is not a list of whole numbers like 224,256,384,480,640", "evaluate --help"),
            (["--scales", "32,40"], "--scales runs on torch only, not on ort-cpu:", "--runtime torch"),
            (["--scales", "4", "--runtime", "torch"], "scales from 8 to 4096 pixels, not 4", None),
            (["--scales", "32", "--runtime", "torch", "--crops", "10"], "--crops was given", "leave one of them out"),
            (["--scales", "32", "--runtime", "torch", "--workers", "2"], "--workers was given", "leave one"),
            (["--scales", "32", "--runtime", "torch", "--resize", "34"], "--resize was given", "leave one"),
        ],
    )
    def test_what_makes_no_sense(
        self,
        checkpoint: Path,
        capfd: pytest.CaptureFixture[str],
        options: list[str],
        message: str,
        fix: str | None,
    ) -> None:
        capfd.readouterr()
        assert main(["evaluate", str(checkpoint), "--data", "digits", *options, "--json"]) == 2
        error = json.loads(capfd.readouterr().out)["error"]
        assert message in error["message"]
        assert error["fix"] is None if fix is None else fix in error["fix"]

    def test_pictures_without_class_folders_and_pictures_left_out(
        self, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        from PIL import Image

        for index in range(3):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"{index}.png")
        assert main(["evaluate", str(checkpoint), "--data", str(tmp_path)]) == 2
        assert f"{tmp_path}: these pictures have no labels" in capfd.readouterr().err
        for index in range(3):
            folder = tmp_path / "set" / str(index)
            folder.mkdir(parents=True)
            (tmp_path / f"{index}.png").rename(folder / "a.png")
        (tmp_path / "set" / "2" / "b.png").write_bytes(b"text")
        evaluate = ["evaluate", str(checkpoint), "--data", str(tmp_path / "set"), "--skip-bad"]
        for workers in ("0", "2"):
            assert main([*evaluate, "--workers", workers]) == 0
            shown = capfd.readouterr()
            assert "skipped: 2/b.png: not a picture of a known format" in shown.err
            assert float(shown.out.split()[-1]) > 0  # images per second, though all were decoded before it was timed
