"""The page of ``demo``: that of ``report``, with what was trained and predicted on top."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image
from support.saved_results import SCHEMA_1

from resnet_onnx import demonstration
from resnet_onnx.results.reading import read
from resnet_onnx.training.plan import TrainingResult
from resnet_onnx.training.recipes import lookup_recipe


@pytest.mark.parametrize("passed", [True, False])
def test_the_page_is_that_of_the_saved_results_and_of_the_training(passed: bool, tmp_path: Path) -> None:
    epoch = {
        "epoch": 3, "steps": 4, "train_loss": 0.5, "train_top1": 0.9, "seconds": 1.0, "images_per_second": 432.1,
        "input_seconds": 0.1, "learning_rate": 0.1, "validation_loss": None, "validation_top1": None,
    }  # fmt: skip
    trained = TrainingResult(
        checkpoint=tmp_path, last=tmp_path, recipe=lookup_recipe("digits"), epochs=[epoch],
        best={"epoch": 3, "top1": None}, test_top1=0.984, images_per_second=432.1, resumed_from=None,
    )  # fmt: skip
    picture = tmp_path / "p.png"
    Image.new("RGB", (4, 4)).save(picture)
    results = [read(SCHEMA_1 / "bench.json"), read(SCHEMA_1 / "parity.json")]
    demonstration._report(tmp_path / "page.html", results, trained, picture, passed=passed)
    page = (tmp_path / "page.html").read_text()
    assert [text.partition("?")[0] for text in re.findall(r"<h2>(.*?)</h2>", page)] == [
        "What it predicts", "How it was trained", "How fast is it", "Does every runtime compute the same",
        "What this page was made from", "Environment", "Make these numbers again",
    ]  # fmt: skip
    state, words = ("good", "98.4 % of held-out digits, and the same") if passed else ("bad", "Not as promised: 98.4 %")
    assert f'<p class="verdict {state}">{words}' in page
    assert "<td>0.5000</td><td>–</td><td>432</td>" in page
    assert "data:image/png;base64," in page
