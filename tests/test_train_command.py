"""A user's own folder, from pictures to labels: train, resume, export, evaluate, parity, predict."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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


def test_a_folder_called_like_the_network_is_not_taken_for_it(
    pictures: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("train", "--model", "cifar-resnet8", "--data", str(pictures), "--batch", "8", "--threads", "1",
                 "--epochs", "1")  # fmt: skip
    assert run_json(capfd, *arguments, "--out", "cifar-resnet8")[0] == 0
    for weights in ("cifar-resnet8", "cifar-resnet8/last/model.safetensors"):
        out = str(tmp_path / weights.replace("/", "-")) + "-again"
        assert run_json(capfd, *arguments, "--weights", weights, "--out", out)[0] == 0


@pytest.mark.parametrize("command", ["train", "export"])
def test_pictures_too_small_for_the_network_are_refused(
    command: str, pictures: Path, tmp_path: Path, capfd: Any
) -> None:
    given = {
        "train": ("--model", "vgg16", "--data", str(pictures), "--out", str(tmp_path / "out")),
        "export": ("vgg16", "-o", str(tmp_path / "out.onnx")),
    }
    code, refused = run_json(capfd, command, *given[command], "--image-size", "31")
    assert code == 2
    assert "nothing is left of 31×31 pixels; it needs 32×32" in refused["error"]["message"]
    assert not list(tmp_path.glob("out*"))


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


def test_curves_and_logs_of_a_run_are_written(pictures: Path, tmp_path: Path, capfd: Any) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra: tensorboard)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, plot = tmp_path / "run", tmp_path / "curves.png"
    code, result = run_json(
        capfd, "train", "--model", "cifar-resnet8", "--data", str(pictures), "--out", str(out), "--epochs", "2",
        "--threads", "1", "--plot", str(plot), "--tensorboard", "--freeze", "conv1", "--freeze", "bn1",
    )  # fmt: skip
    assert code == 0
    assert (result["plot"], result["recipe"]["freeze"]) == (str(plot), ["conv1", "bn1"])
    with Image.open(plot) as drawn:
        assert drawn.format == "PNG"
        colours = {colour for _, colour in drawn.convert("RGB").getcolors(1 << 24)}
    assert {(0, 114, 178), (213, 94, 0)} <= colours  # the lines of training and validation
    logs = EventAccumulator(str(out / "tensorboard"))
    logs.Reload()
    for tag, column in (("loss/train", "train_loss"), ("top1/validation", "validation_top1")):
        logged = [event.value for event in logs.Scalars(tag)]
        assert logged == pytest.approx([epoch[column] for epoch in result["epochs"]], rel=1e-6)
    with (out / "history.csv").open() as handle:
        assert [float(row["train_loss"]) for row in csv.DictReader(handle)] == [
            epoch["train_loss"] for epoch in result["epochs"]
        ]


def test_what_cannot_be_written_is_refused_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    train = ("train", "--model", "cifar-resnet8", "--data", "digits", "--out", str(tmp_path / "run"))
    code, refused = run_json(capfd, *train, "--plot", str(tmp_path / "curves.bmp"))
    assert (code, refused["error"]["fix"]) == (2, "end it in .png, .svg, .pdf")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    code, refused = run_json(capfd, *train, "--tensorboard")
    assert (code, refused["error"]["fix"]) == (3, "pip install 'resnet-onnx[tensorboard]'")
    assert not (tmp_path / "run").exists()


def test_bad_pictures_are_counted_and_named(pictures: Path, tmp_path: Path, capfd: Any) -> None:
    shutil.copytree(pictures, tmp_path / "data")
    (tmp_path / "data" / "train" / "sea" / "001.jpg").write_bytes(b"no picture")
    train = ("train", "--model", "cifar-resnet8", "--data", str(tmp_path / "data"), "--epochs", "1", "--threads", "1")
    code, refused = run_json(capfd, *train, "--out", str(tmp_path / "a"))
    assert (code, refused["error"]["kind"]) == (2, "bad-picture")
    assert "sea/001.jpg" in refused["error"]["message"]
    code, result = run_json(capfd, *train, "--out", str(tmp_path / "b"), "--skip-bad", "1")
    assert code == 0
    assert [Path(skipped["image"]).name for skipped in result["skipped"]] == ["001.jpg"]
    assert main([*train, "--out", str(tmp_path / "c"), "--skip-bad", "1"]) == 0
    shown = capfd.readouterr()
    assert "Left out because they can't be read: 1" in shown.out
    assert "left out: " in shown.err
    assert "sea/001.jpg" in shown.err


def test_a_head_is_kept_for_the_same_classes_only_and_else_drawn_by_the_seed(
    pictures: Path, tmp_path: Path, capfd: Any
) -> None:
    renamed = shutil.copytree(pictures, tmp_path / "renamed")
    for split in ("train", "test"):
        (renamed / split / "rust").rename(renamed / split / "zinc")  # as many classes, of other names
    first = tmp_path / "first"
    train = ("train", "--model", "cifar-resnet8", "--threads", "1", "--epochs", "1", "--lr", "1e-12")
    assert main([*train, "--data", str(pictures), "--out", str(first)]) == 0
    start = read_checkpoint(first / "best").module_state()
    heads = {}
    for name, data, seed in (("same", pictures, 0), ("a", renamed, 0), ("b", renamed, 0), ("c", renamed, 1)):
        out = tmp_path / name
        more = ("--weights", str(first), "--data", str(data), "--out", str(out), "--seed", str(seed))
        assert main([*train, *more]) == 0
        assert ("with its head" if name == "same" else f"head drawn anew (seed {seed}) for 2 classes") in (
            capfd.readouterr().err
        )
        state = read_checkpoint(out / "last").module_state()
        assert torch.allclose(state["conv1.weight"], start["conv1.weight"], atol=1e-9)
        heads[name] = state["fc.weight"]
    assert torch.allclose(heads["same"], start["fc.weight"], atol=1e-9)
    assert not torch.allclose(heads["a"], start["fc.weight"], atol=1e-3)
    assert torch.equal(heads["a"], heads["b"])
    assert not torch.allclose(heads["a"], heads["c"], atol=1e-3)
