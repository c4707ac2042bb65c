"""Which output holds the scores: settled by the option or by the labels, said, or asked; never the first one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from resnet_onnx.data.scores import find_scores
from runtimes import onnx_gate
from runtimes.errors import BadModel, UsageError
from runtimes.onnx_types import BFLOAT16
from runtimes.registry import open_runtime
from runtimes.spec import ModelSource, TensorSpec
from tests.support.colours import PLAIN, Run, classes, colour_model, write_folder

NAMES = ("ash", "birch", "cedar", "dogwood")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    return lambda *line: Run(capfd, *line)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "set", classes(NAMES, count=1))


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(NAMES))
    return path


def made(folder: Path, *listed: str) -> Path:
    return colour_model(folder / "net.onnx", range(len(NAMES)), listed)


def spec(name: str, *shape: int | str, dtype: object = np.float32) -> TensorSpec:
    return TensorSpec(name, np.dtype(dtype), shape)


FEATURES, LOGITS = spec("features", "n", 64), spec("logits", "n", 10)


class TestChoice:
    @pytest.mark.parametrize("only", [FEATURES, spec("map", 1, 10, 7, 7), spec("label", "n", dtype=np.int64)])
    def test_a_single_output_is_taken_without_a_word(self, only: TensorSpec) -> None:
        assert find_scores([only], "net").settled() is only
        assert find_scores([only], "net").note == ""

    @pytest.mark.parametrize(
        "beside",
        [
            spec("label", "n", dtype=np.int64),
            spec("places", "n", 4, dtype=np.int32),
            spec("map", "n", 10, 7, 7),
            spec("open map", "n", 10, "h", "w"),
            spec("loss", 1),
            spec("temperature", "n", 1),
        ],
        ids=lambda one: one.name,
    )
    @pytest.mark.parametrize("scores", [LOGITS, spec("pooled", 1, 10, 1, 1), spec("half", "n", 10, dtype=BFLOAT16)])
    def test_what_can_not_be_scores_is_not_in_the_way(self, beside: TensorSpec, scores: TensorSpec) -> None:
        for outputs in ([beside, scores], [scores, beside]):
            found = find_scores(outputs, "net")
            assert found.settled() is scores
            assert str(scores) in found.note
            assert str(beside) in found.note

    @pytest.mark.parametrize("outputs", [[FEATURES, LOGITS], [LOGITS, FEATURES]])
    def test_labels_decide(self, outputs: Sequence[TensorSpec]) -> None:
        found = find_scores(outputs, "net", fits=lambda count: count == 10)
        assert found.settled() is LOGITS
        assert "the only one with a score for each label" in found.note

    @pytest.mark.parametrize(
        ("outputs", "classes_", "why"),
        [
            ([FEATURES, LOGITS], None, "there are no labels"),
            ([FEATURES, LOGITS], 11, "none has one for each label"),
            ([LOGITS, spec("softmax", "n", 10)], 10, "several have one for each label"),
            ([spec("a", "n", "c"), spec("b", "n", "d")], 10, "several have one for each label"),
        ],
    )
    def test_two_readings_are_asked(self, outputs: Sequence[TensorSpec], classes_: int | None, why: str) -> None:
        fits = None if classes_ is None else lambda count: count == classes_
        with pytest.raises(UsageError, match=why) as caught:
            find_scores(outputs, "net", fits=fits).settled()
        for output in outputs:
            assert str(output) in caught.value.message
            assert f"--output-name {output.name}" in str(caught.value.fix)
        named = find_scores(outputs, "net", named=outputs[1].name, fits=fits)
        assert (named.settled(), named.note) == (outputs[1], "")

    def test_an_open_dimension_stands_behind_one_that_fits(self) -> None:
        def ten(count: int) -> bool:
            return count == 10

        assert find_scores([spec("any", "n", "c"), LOGITS], "net", fits=ten).settled() is LOGITS
        assert find_scores([FEATURES, spec("any", "n", "c")], "net", fits=ten).settled().name == "any"

    @pytest.mark.parametrize("named", ["nope", "label", "map"])
    def test_a_wrong_name_names_what_there_is(self, named: str) -> None:
        outputs = [LOGITS, spec("label", "n", dtype=np.int64), spec("map", "n", 10, 7, 7)]
        with pytest.raises(UsageError, match=f"--output-name {named}: ") as caught:
            find_scores(outputs, "net", named=named)
        assert all(str(output) in caught.value.message for output in outputs)

    def test_none_that_could(self) -> None:
        with pytest.raises(BadModel, match="none of its 2 outputs holds scores"):
            find_scores([spec("map", "n", 10, 7, 7), spec("label", "n", dtype=np.int64)], "net").settled()


class TestCommands:
    def test_features_before_scores_are_asked(self, run: Callable[..., Run], tmp_path: Path, data: Path) -> None:
        model = made(tmp_path, "mean", "scores")
        picture = next(data.glob("*/*"))
        for line in (["predict", model, picture], ["evaluate", model, "--data", data]):
            found = run(*line, *PLAIN)
            assert found.code == 2
            assert "mean: float32[n, 3], scores: float32[n, 4]" in found.error
            assert "--output-name mean or --output-name scores" in found.error

    @pytest.mark.parametrize("how", ["labels", "name"])
    def test_features_before_scores_are_left_aside(
        self, run: Callable[..., Run], tmp_path: Path, data: Path, labels: Path, how: str
    ) -> None:
        model = made(tmp_path, "mean", "scores")
        more = ["--labels", labels] if how == "labels" else ["--output-name", "scores"]
        found = run("evaluate", model, *PLAIN, "--data", data, *more)
        assert (found.code, found.result["top1"]) == (0, 1.0)
        said = "the scores are read from its output scores: float32[n, 4], the only one with a score for each label"
        assert any(said in note for note in found.result["notes"]) == (how == "labels")
        assert (said in found.stderr) == (how == "labels")

    @pytest.mark.parametrize("beside", ["label", "word"])
    @pytest.mark.parametrize("first", [True, False])
    def test_a_label_output_beside_scores(
        self, run: Callable[..., Run], tmp_path: Path, data: Path, beside: str, first: bool
    ) -> None:
        model = made(tmp_path, *((beside, "scores") if first else ("scores", beside)))
        found = run("evaluate", model, *PLAIN, "--data", data)
        assert (found.code, found.result["top1"]) == (0, 1.0)
        said = {"label": "not from label: int64[n]", "word": "output 'word' is a tensor of type string"}[beside]
        assert any(said in note for note in found.result["notes"])
        found = run("parity", model, *PLAIN, "--runtimes", "ort-cpu", "--images", 2)
        assert (found.code, found.result["results"][0]["top1_agreement"]) == (0, 1.0)
        assert any(said in note for note in found.result["notes"])

    def test_zip_map_alone_is_one_true_sentence(self, run: Callable[..., Run], tmp_path: Path, data: Path) -> None:
        found = run("evaluate", made(tmp_path, "word", "table"), "--data", data)
        assert found.code == 2
        assert "the output 'word' is a tensor of type string, expected a tensor of numbers" in found.error
        assert "without ZipMap" in found.error

    def test_parity_compares_every_output_and_decides_by_the_one_named(
        self, run: Callable[..., Run], tmp_path: Path
    ) -> None:
        model = made(tmp_path, "mean", "scores")
        line = ["parity", model, *PLAIN, "--runtimes", "ort-cpu", "--images", 2]
        found = run(*line)
        (row,) = found.result["results"]
        assert (found.code, row["top1_agreement"], sorted(row["outputs"])) == (0, None, ["mean", "scores"])
        assert any("top-1 was not compared" in note and "--output-name" in note for note in found.result["notes"])
        found = run(*line, "--output-name", "scores")
        assert (found.code, found.result["results"][0]["top1_agreement"]) == (0, 1.0)

    def test_a_conversion_decides_by_the_scores(
        self, run: Callable[..., Run], tmp_path: Path, data: Path, labels: Path
    ) -> None:
        model, out = made(tmp_path, "mean", "scores"), tmp_path / "half.onnx"
        line = ["convert", model, *PLAIN, "--to", "fp16", "--output", out]
        assert any("decisions were compared on the first output, mean" in n for n in run(*line).result["notes"])
        found = run(*line, "--labels", labels, "--calibration", data)
        assert (found.code, found.result["agreement"]) == (0, 1.0)
        assert not any("decisions were compared" in note for note in found.result["notes"])

    def test_a_network_of_ours_has_one(self, run: Callable[..., Run], tmp_path: Path) -> None:
        found = run("parity", "cifar-resnet20", "--runtimes", "torch", "--output-name", "scores")
        assert found.code == 2
        assert "its outputs are logits: float32[batch, 10]" in found.error


@pytest.mark.parametrize("runtime", ["ort-cpu", "reference"])
def test_outputs_that_no_array_holds_are_not_computed(tmp_path: Path, runtime: str) -> None:
    path = made(tmp_path, "word", "scores", "table")
    checked = onnx_gate.check_onnx(path)
    assert checked.odd_outputs == {0: "'word' is a tensor of type string", 2: "'table' is a sequence"}
    with open_runtime(runtime, ModelSource(path=path)) as opened:
        assert [output.name for output in opened.outputs] == ["scores"]
        feeds = {"x": np.full((2, 3, 8, 8), 0.5, np.float32)}
        assert opened.run(feeds)["scores"].shape == (2, 4)
        with opened.prepare(feeds) as prepared:
            prepared.enqueue()
            assert list(prepared.outputs()) == ["scores"]
