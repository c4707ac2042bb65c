"""The README's way from two folders of pictures to a deployed classifier with class names."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from resnet_onnx.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
(EXAMPLE,) = re.findall(r"```bash\n(.*?)```", README, re.S)
NUMERALS = ROOT / "docs" / "numerals.py"
COMMANDS = [shlex.split(line) for line in EXAMPLE.replace("\\\n", "").splitlines() if line.startswith("resnet-onnx ")]


def run_json(capfd: Any, *arguments: str) -> dict[str, Any]:
    capfd.readouterr()
    code = main([*arguments, "--json"])
    document: dict[str, Any] = json.loads(capfd.readouterr().out)
    assert code == 0, document
    return document


def test_two_classes_are_learned_with_frozen_layers_and_predicted_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(NUMERALS))["write"](tmp_path)
    assert [len(list(Path("mine/train", name).iterdir())) for name in ("eight", "nine")] == [20, 20]
    assert len(list(Path("others/train").iterdir())) == 8
    first, second, export, *_, predict = COMMANDS
    short = ["--set", "validation=0", "--threads", "1"]  # the way, not the skill: an epoch for each
    run_json(capfd, *first[1:], *short, "--epochs", "1")
    trained = run_json(capfd, *second[1:], *short, "--epochs", "1")
    assert trained["recipe"]["freeze"] == ["conv1", "bn1", "layer1"]
    before, after = (load_file(Path(run, "last", "model.safetensors")) for run in ("runs/others", "runs/mine"))
    assert (before["fc.weight"].shape[0], after["fc.weight"].shape[0]) == (8, 2)
    kept = {name for name in before if not name.startswith("fc.") and np.array_equal(before[name], after[name])}
    assert kept == {name for name in before if name.startswith(("conv1.", "bn1.", "layer1."))}
    run_json(capfd, *export[1:])
    (answer,) = run_json(capfd, *predict[1:])["predictions"]
    assert {candidate["label"] for candidate in answer["top"]} == {"eight", "nine"}
    with Image.open("answer.png") as drawn:
        assert drawn.format == "PNG"


@pytest.mark.slow
@pytest.mark.timeout(1800)  # more than the usual ten minutes on a loaded machine
def test_the_example_of_the_readme_as_it_stands(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", EXAMPLE.replace("docs/numerals.py", shlex.quote(str(NUMERALS)))],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (top1,) = re.findall(r"^ ort-cpu +([\d.]+) +– +83 +0 ", done.stdout, re.M)
    assert float(top1) >= 95
    assert len(re.findall(r" pass *$", done.stdout, re.M)) == 3
    answer = done.stdout[done.stdout.index("mine/test/nine/0665.png") :].splitlines()
    assert re.fullmatch(r" +\d+\.\d %  nine", answer[1])
    assert re.fullmatch(r" +\d+\.\d %  eight", answer[2])
    assert (tmp_path / "answer.png").is_file()


def _photos(folder: Path) -> None:
    """Crops of scikit-learn's two sample photos, a class each; those to test on are of other places."""
    from sklearn.datasets import load_sample_image

    dice = np.random.default_rng(0)
    for name in ("china", "flower"):
        photo = load_sample_image(f"{name}.jpg")
        for split, count, columns in (("train", 24, (0, 380)), ("test", 8, (420, 540))):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                top, left = dice.integers(0, photo.shape[0] - 100), dice.integers(*columns)
                crop = Image.fromarray(photo[top : top + 96, left : left + 96])
                crop.save(folder / split / name / f"{number:02}.jpg", quality=95)


@pytest.mark.slow
def test_a_network_of_timm_is_fine_tuned_on_photos_and_deployed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Its weights are a file, as one that was downloaded elsewhere: here a made-up one, whose license travels along."""
    import safetensors.torch
    import timm
    import torch

    monkeypatch.chdir(tmp_path)
    _photos(Path("photos"))
    torch.manual_seed(0)
    Path("hub").mkdir()
    safetensors.torch.save_file(timm.create_model("resnet18").state_dict(), "hub/model.safetensors")
    stated = {"pretrained_cfg": {"license": "cc-by-nc-4.0"}}
    Path("hub/config.json").write_text(json.dumps(stated))
    trained = run_json(
        capfd,
        *("train", "--model", "timm:resnet18", "--weights", "hub/model.safetensors", "--data", "photos"),
        *("--image-size", "64", "--epochs", "12", "--batch", "8", "--threads", "1", "--set", "validation=0"),
        *("--set", "smallest_area=0.6"),
    )
    assert Path(trained["checkpoint"]).is_relative_to("runs/timm-resnet18-photos")
    assert trained["test_top1"] >= 0.8
    exported = run_json(capfd, "export", trained["checkpoint"], "--output", "mine.onnx")
    assert exported["weights_license"] == "cc-by-nc-4.0"
    run_json(capfd, "convert", "mine.onnx", "--to", "int8", "--calibration", "photos", "--output", "mine-int8.onnx",
             "--max-drop", "10")  # fmt: skip
    for model in ("mine.onnx", "mine-int8.onnx"):
        answers = run_json(capfd, "predict", model, *map(str, sorted(Path("photos/test").rglob("*.jpg"))))[
            "predictions"
        ]
        right = [answer["top"][0]["label"] == Path(answer["image"]).parent.name for answer in answers]
        assert sum(right) >= 13  # of 16
