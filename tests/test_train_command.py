"""A user's own folder, from pictures to labels: train, resume, export, evaluate, parity, predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnet_onnx.cli.main import main
from resnet_onnx.training.checkpoint import read_checkpoint


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that differ in colour and in nothing else, as train/ and test/ folders of JPEG and PNG."""
    root = tmp_path_factory.mktemp("pictures")
    dice = np.random.default_rng(0)
    for split, count in (("train", 48), ("test", 12)):
        for name, colour in (("rust", (180, 70, 40)), ("sea", (40, 90, 180))):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                side = int(dice.integers(30, 60))
                noise = dice.normal(colour, 60, (side, side + 7, 3))
                picture = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
                picture.save(folder / f"{index:03d}.{'png' if index % 5 == 0 else 'jpg'}")
    return root


def run_json(capfd: Any, *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main([*arguments, "--json"])
    document: dict[str, Any] = json.loads(capfd.readouterr().out)
    return code, document


def test_a_folder_becomes_a_deployed_classifier(pictures: Path, tmp_path: Path, capfd: Any) -> None:
    out, onnx = tmp_path / "run", tmp_path / "colours.onnx"
    train = ("train", "--model", "cifar-resnet8", "--data", str(pictures), "--out", str(out), "--threads", "1")
    code, result = run_json(capfd, *train, "--epochs", "3")
    assert code == 0
    assert Path(result["checkpoint"]).is_dir()
    assert [epoch["epoch"] for epoch in result["epochs"]] == [1, 2, 3]
    assert result["best"]["top1"] >= 0.9
    assert result["images_per_second"] > 0

    code, refused = run_json(capfd, *train, "--epochs", "3")
    assert code == 2
    assert "--resume" in json.dumps(refused["error"])
    code, again = run_json(capfd, *train, "--epochs", "3", "--resume")
    assert code == 0
    assert again["epochs"] == result["epochs"]

    assert run_json(capfd, "export", str(out), "-o", str(onnx))[0] == 0
    for runtime in ("torch", "ort-cpu", "openvino"):
        code, accuracy = run_json(capfd, "evaluate", str(onnx), "--data", str(pictures), "--runtime", runtime)
        assert code == 0
        assert accuracy["images"] == 24
        assert accuracy["top1"] == result["test_top1"] >= 0.9
        assert accuracy["top5"] is None
    code, proof = run_json(capfd, "parity", str(onnx), "--data", str(pictures), "--images", "4")
    assert code == 0
    assert proof["passed"] is True

    one = pictures / "test" / "sea" / "003.jpg"
    plot = tmp_path / "answers.png"
    code, answers = run_json(
        capfd, "predict", str(onnx), str(one), str(pictures / "test" / "rust"), "--plot", str(plot)
    )
    assert code == 0
    assert len(answers["predictions"]) == 13
    first = answers["predictions"][0]
    assert first["image"] == str(one)
    assert first["top"][0] == {"label": "sea", "index": 1, "probability": first["top"][0]["probability"]}
    assert 0.5 < first["top"][0]["probability"] <= 1
    with Image.open(plot) as drawn:
        assert drawn.format == "PNG"


def test_a_checkpoint_is_a_model_too(pictures: Path, tmp_path: Path, capfd: Any) -> None:
    out = tmp_path / "run"
    arguments = ("--data", str(pictures), "--out", str(out), "--epochs", "1", "--batch", "8", "--threads", "1")
    assert run_json(capfd, "train", "--model", "cifar-plain8", *arguments)[0] == 0
    code, result = run_json(capfd, "evaluate", str(out), "--data", str(pictures), "--runtime", "ort-cpu,torch")
    assert code == 0
    assert [row["runtime"] for row in result["results"]] == ["ort-cpu", "torch"]
    assert result["results"][0]["top1"] == result["results"][1]["top1"]


def test_training_starts_from_given_weights(pictures: Path, tmp_path: Path, capfd: Any) -> None:
    arguments = ("--model", "cifar-resnet8", "--data", str(pictures), "--batch", "8", "--threads", "1")
    assert run_json(capfd, "train", *arguments, "--out", str(tmp_path / "a"), "--epochs", "2")[0] == 0
    code, result = run_json(
        capfd, "train", *arguments, "--out", str(tmp_path / "b"), "--epochs", "1", "--lr", "0.001",
        "--weights", str(tmp_path / "a"),
    )  # fmt: skip
    assert code == 0
    assert result["best"]["top1"] >= 0.9


def test_any_field_of_a_recipe_can_be_set(pictures: Path, tmp_path: Path, capfd: Any) -> None:
    out = tmp_path / "run"
    train = ("train", "--model", "cifar-resnet8", "--data", str(pictures), "--out", str(out), "--threads", "1",
             "--epochs", "1")  # fmt: skip
    for wrong, said in (("momentum", "FIELD=VALUE"), ("momentum=much", "a number"), ("speed=1", "no field 'speed'")):
        code, refused = run_json(capfd, *train, "--set", wrong)
        assert (code, said in refused["error"]["message"]) == (2, True)
    assert not out.exists()
    code, result = run_json(capfd, *train, "--set", "momentum=0.8", "--set", "nesterov=false", "--set", "freeze=conv1")
    assert code == 0
    recipe = result["recipe"]
    assert (recipe["momentum"], recipe["nesterov"], recipe["freeze"]) == (0.8, False, ["conv1"])
    assert read_checkpoint(out / "last").recipe == recipe


def test_recipes_are_listed(capfd: Any) -> None:
    code, result = run_json(capfd, "train", "--list-recipes")
    assert code == 0
    assert {"digits", "cifar-fast", "cifar-paper"} <= {recipe["name"] for recipe in result["recipes"]}
    assert all(recipe["source"] for recipe in result["recipes"])
    assert main(["train", "--list-recipes"]) == 0
    shown = capfd.readouterr().out
    for recipe in result["recipes"]:  # whole, however long a source is and however narrow the terminal
        assert f"{recipe['name']}: {recipe['epochs']} epochs" in shown
        assert recipe["source"] in shown
