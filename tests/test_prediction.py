"""Predictions: probabilities, order, sources, and the drawing."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from resnet_onnx.data.datasets import open_dataset
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.prediction import MAX_DRAWN, draw, predict, probabilities
from resnet_onnx.results.evaluate import Candidate, PredictionRecord
from runtimes.errors import BadData, BadModel, BadPicture, FileProblem, UsageError
from runtimes.fake import FakeProgram, FakeRuntime
from runtimes.spec import ModelSource, RuntimeOptions, TensorSpec

PLAIN = Preprocessing(image_size=16, resize=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
COLOURS = ("red", "green", "blue")


def mean_colour(gain: float) -> FakeProgram:
    """A classifier of colours: its logits are the channels' means."""

    def function(feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        return {"logits": (gain * feeds["pictures"].mean(axis=(2, 3))).astype(np.float32)}

    return FakeProgram(
        inputs=(TensorSpec("pictures", np.dtype(np.float32), ("n", 3, 16, 16)),),
        outputs=(TensorSpec("logits", np.dtype(np.float32), ("n", 3)),),
        function=function,
    )


def runtime(gain: float = 1.0) -> FakeRuntime:
    source = ModelSource(factory=f"{__name__}:mean_colour", arguments={"gain": gain}, label="colours.onnx")
    return FakeRuntime(source, device="cpu", options=RuntimeOptions())


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("b_green.png", "a_red.png", "sub/c_blue.jpg"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), name.split("_")[1].split(".")[0]).save(path, quality=95)
    (tmp_path / "pictures" / "notes.txt").write_text("not for decoding")
    return tmp_path / "pictures"


class TestPredict:
    def test_a_folder_in_sorted_order(self, pictures: Path) -> None:
        found = predict(runtime(), [pictures], PLAIN, labels=COLOURS)
        assert [Path(p.image).name for p in found] == ["a_red.png", "b_green.png", "c_blue.jpg"]
        assert [p.top[0].label for p in found] == ["red", "green", "blue"]
        assert [p.top[0].index for p in found] == [0, 1, 2]

    def test_probabilities_are_the_softmax(self, pictures: Path) -> None:
        (found,) = predict(runtime(2.0), [pictures / "a_red.png"], PLAIN, labels=COLOURS, top_k=2)
        e2 = np.e**2
        assert [c.probability for c in found.top] == pytest.approx([e2 / (e2 + 2), 1 / (e2 + 2)], rel=1e-6)
        assert [c.label for c in found.top] == ["red", "green"]  # a tie goes to the lower index

    def test_without_labels_classes_go_by_their_index(self, pictures: Path) -> None:
        (found,) = predict(runtime(), [pictures / "sub"], PLAIN, top_k=9)
        assert [c.label for c in found.top] == ["class 2", "class 0", "class 1"]

    def test_json(self, pictures: Path) -> None:
        (found,) = predict(runtime(1000), [pictures / "a_red.png"], PLAIN, labels=COLOURS, top_k=1)
        top = (Candidate(label="red", index=0, probability=1.0),)
        assert found == PredictionRecord(image=str(pictures / "a_red.png"), top=top)

    def test_a_data_set(self) -> None:
        digits = open_dataset("digits").subset(range(20))
        found = predict(runtime(), digits, PLAIN)
        assert [p.image for p in found] == [digits.item_name(index) for index in range(20)]

    def test_every_mode_of_picture(self, tmp_path: Path) -> None:
        for mode in ("L", "LA", "RGBA", "CMYK", "P", "1", "I;16"):
            picture = Image.new("RGB", (9, 50), "white").convert("L" if mode == "I;16" else mode)
            if mode == "I;16":
                picture = Image.fromarray(np.full((9, 50), 65535, np.uint16))
            picture.save(tmp_path / f"{mode.replace(';', '')}.{'jpg' if mode == 'CMYK' else 'png'}")
        found = predict(runtime(), [tmp_path], PLAIN)
        assert len(found) == 7
        for prediction in found:
            assert [c.probability for c in prediction.top] == pytest.approx([1 / 3] * 3, abs=0.01), prediction.image

    def test_bad_pictures(self, pictures: Path) -> None:
        bad = pictures / "bad.jpg"
        bad.write_bytes(b"hello")
        with pytest.raises(BadPicture, match=r"bad\.jpg: not a picture"):
            predict(runtime(), [pictures], PLAIN)
        found = predict(runtime(), [pictures], PLAIN, skip_bad=True)
        assert len(found) == 3
        assert [skipped.image for skipped in found.skipped] == [str(bad)]
        with pytest.raises(BadData, match="none of the 1 pictures could be decoded"):
            predict(runtime(), [bad], PLAIN, skip_bad=True)

    def test_bad_arguments(self, pictures: Path) -> None:
        with pytest.raises(BadData, match="no such file or folder"):
            predict(runtime(), [pictures / "none.jpg"], PLAIN)
        with pytest.raises(UsageError, match="at least 1, not 0"):
            predict(runtime(), [pictures], PLAIN, top_k=0)
        with pytest.raises(UsageError, match="has 3 outputs and 2 labels"):
            predict(runtime(), [pictures], PLAIN, labels=["a", "b"])

    def test_nan_is_no_prediction(self, pictures: Path) -> None:
        with pytest.raises(BadModel, match=r"colours\.onnx: gave NaN or Inf for .*a_red\.png"):
            predict(runtime(float("nan")), [pictures], PLAIN)


class TestProbabilities:
    @example(np.array([1.0, 1.86143422e-05]))
    @given(arrays(np.float64, st.integers(2, 40), elements=st.floats(-1e4, 1e4)))
    def test_are_positive_sum_to_one_and_keep_the_order(self, scores: NDArray[np.float64]) -> None:
        found = probabilities(scores)
        # What are probabilities already stay as they are, and half precision sums them to 1 within 5e-4.
        assert found.sum() == pytest.approx(1, abs=1e-3 if found is scores else 1e-6)
        assert found.min() >= 0
        assert found[scores.argmax()] == found.max()

    def test_probabilities_stay_what_they_are(self) -> None:
        given_ones = np.array([0.7, 0.2, 0.1])
        assert np.array_equal(probabilities(given_ones), given_ones)
        both = np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.3]])
        assert probabilities(both)[0, 0] == pytest.approx(0.4643, abs=1e-3)  # one of them shows that both are logits
        assert probabilities(np.array([0.7, 0.2, 0.3]))[0] == pytest.approx(0.4392, abs=1e-3)  # these are logits

    def test_shifts_do_not_matter(self) -> None:
        scores = np.array([1.0, 2.0, 4.0])
        assert probabilities(scores + 800) == pytest.approx(probabilities(scores))


class TestDraw:
    @pytest.mark.parametrize("count", [1, 3, 5])
    def test_writes_a_png_that_shows_the_pictures(self, tmp_path: Path, count: int) -> None:
        for index in range(count):
            Image.new("RGB", (20, 20), "red").save(tmp_path / f"{index}.png")
        found = predict(runtime(), [tmp_path], PLAIN, labels=COLOURS)
        draw(found, tmp_path / "plot.png")
        with Image.open(tmp_path / "plot.png") as drawn:
            assert drawn.format == "PNG"
            assert drawn.width == pytest.approx(100 * (3 * min(count, 4) + 0.4), abs=2)
            pixels = np.asarray(drawn.convert("RGB")).reshape(-1, 3)
        red = (pixels == [255, 0, 0]).all(axis=1).mean()
        assert red > 0.25 * count / (4 * -(-count // 4) if count > 4 else count)

    def test_wrong_answers_are_marked(self, tmp_path: Path) -> None:
        for folder, colour in (("red", "red"), ("green", "red")):
            (tmp_path / "set" / folder).mkdir(parents=True)
            Image.new("RGB", (20, 20), colour).save(tmp_path / "set" / folder / "a.png")
        found = predict(runtime(), open_dataset(tmp_path / "set"), PLAIN, labels=COLOURS)
        draw(found, tmp_path / "plot.png")
        with Image.open(tmp_path / "plot.png") as drawn:
            pixels = np.asarray(drawn.convert("RGB")).astype(int)
        mark = (abs(pixels - [0xB3, 0x26, 0x1E]).sum(axis=2) < 60).any(axis=0)
        middle = len(mark) // 2
        assert mark[:middle].any() != mark[middle:].any()

    def test_long_and_odd_names(self, tmp_path: Path) -> None:
        path = tmp_path / ("$x^{" * 15 + ".png")
        Image.new("RGB", (20, 20), "red").save(path)
        labels = ["a label that goes on and on, and on, until nobody reads it any more", "$\\frac{", "日本"]
        draw(predict(runtime(), [path], PLAIN, labels=labels), tmp_path / "plot.png")
        assert (tmp_path / "plot.png").stat().st_size > 1000

    def test_many_pictures_are_cut(self, tmp_path: Path) -> None:
        digits = open_dataset("digits").subset(range(MAX_DRAWN + 5))
        draw(predict(runtime(), digits, PLAIN, top_k=1), tmp_path / "plot.png")
        with Image.open(tmp_path / "plot.png") as drawn:
            assert drawn.height == pytest.approx(100 * (MAX_DRAWN // 4 * 3.65 + 0.4), abs=40)

    def test_the_same_predictions_give_the_same_file(self, pictures: Path, tmp_path: Path) -> None:
        found = predict(runtime(), [pictures], PLAIN)
        draw(found, tmp_path / "1.png")
        draw(found, tmp_path / "2.png")
        assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()

    def test_runs_in_another_thread_and_touches_no_global_state(self, pictures: Path, tmp_path: Path) -> None:
        import sys

        found = predict(runtime(), [pictures], PLAIN)
        errors: list[BaseException] = []

        def work() -> None:
            try:
                draw(found, tmp_path / "plot.png")
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert errors == []
        assert (tmp_path / "plot.png").exists()
        assert "matplotlib.pyplot" not in sys.modules

    def test_what_can_not_be_written(self, pictures: Path, tmp_path: Path) -> None:
        found = predict(runtime(), [pictures], PLAIN)
        (tmp_path / "folder").mkdir()
        with pytest.raises(FileProblem):
            draw(found, tmp_path / "folder")
