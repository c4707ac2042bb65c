"""``--resize``: one option of every command that prepares pictures, whatever kind of file MODEL is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from resnet_onnx.workflow import Request, resolve
from runtimes.errors import UsageError
from tests.support.colours import COLOURS, PLAIN, Run, colour_model

OUTER, INNER = 1, 2
NAMES = ("outside", "outer", "inner")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    return lambda *line: Run(capfd, *line)


@pytest.fixture
def framed(tmp_path: Path) -> Path:
    """A picture of one colour with a quarter of another in its middle, in the class folder of the latter."""
    picture = Image.new("RGB", (64, 64), COLOURS[OUTER])
    picture.paste(COLOURS[INNER], (16, 16, 48, 48))
    path = tmp_path / "set" / NAMES[INNER] / "framed.png"
    path.parent.mkdir(parents=True)
    picture.save(path)
    return path


def test_it_decides_what_a_command_sees(run: Callable[..., Run], tmp_path: Path, framed: Path) -> None:
    model, labels = colour_model(tmp_path / "net.onnx", range(3)), tmp_path / "labels.txt"
    labels.write_text("\n".join(NAMES))

    def predicted(*more: object) -> object:
        return run("predict", model, framed, *PLAIN, *more).result["predictions"][0]["top"][0]["index"]

    def right(*more: object) -> object:
        return run("evaluate", model, "--data", framed.parents[1], "--labels", labels, *PLAIN, *more).result["top1"]

    assert (predicted(), predicted("--resize", 16)) == (OUTER, INNER)
    assert (right(), right("--resize", 16)) == (0.0, 1.0)


@pytest.mark.parametrize("size", [None, 40])
def test_it_travels_in_an_export_and_can_be_changed(run: Callable[..., Run], tmp_path: Path, size: int | None) -> None:
    path, more = tmp_path / "net.onnx", ["--image-size", str(size)] if size else []
    side = size or 32
    line = ["export", "--model", "cifar-resnet20", "--input", "uint8", *more, "--output", path]
    assert run(*line, "--resize", side - 1).code == 2
    assert run(*line, "--resize", 44).code == 0
    for request, resize in ((Request(model=str(path)), 44), (Request(model=str(path), resize=41), 41)):
        preprocessing = resolve(request).preprocessing
        assert preprocessing is not None
        assert (preprocessing.image_size, preprocessing.resize) == (side, resize)
    with pytest.raises(UsageError, match=f"--resize 31 leaves less than the {side}×{side}"):
        resolve(Request(model=str(path), resize=31))


def test_a_file_of_others_and_its_weights(tmp_path: Path) -> None:
    model = str(colour_model(tmp_path / "net.onnx", range(3)))
    for resize in (None, 9):
        preprocessing = resolve(Request(model=model, resize=resize)).preprocessing
        assert preprocessing is not None
        assert (preprocessing.image_size, preprocessing.resize) == (8, resize or 8)
    with pytest.raises(UsageError, match="--resize 7 leaves less than the 8×8"):
        resolve(Request(model=model, resize=7))
