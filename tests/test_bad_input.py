"""A user's mistake, or a hostile file, is one clear message: what was given, what was expected; nothing is done."""

from __future__ import annotations

import io
import json
import os
import pickle
import shlex
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.bad_models import assert_one_error, model, node, sound, value

from resnet_onnx.cli.main import main
from resnet_onnx.models.build import build
from resnet_onnx.models.catalog import lookup

LONG = "L" * 300


class Evil:
    """What a pickle of this would do: make a file called ``pwned``."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch {shlex.quote(str(folder / 'pwned'))}"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def png(path: Path, size: tuple[int, int] = (40, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 30, 30)).save(path)


def bomb() -> bytes:
    """A PNG of 2.5 gigapixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    side = 50_000
    rows = zlib.compress(bytes((side // 8 + 1) * 1000), 9)
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _weights(folder: Path) -> None:
    torch.manual_seed(0)
    state = build(lookup("cifar-resnet8").config).state_dict()
    torch.save(state, folder / "w.pth")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "w.safetensors")
    torch.save(build(lookup("cifar-resnet14").config).state_dict(), folder / "w14.pth")
    torch.save({**state, "fc.weight": torch.zeros(10, 7)}, folder / "misshapen.pth")
    torch.save({**state, "conv1.weight": state["conv1.weight"] * float("nan")}, folder / "nan.pth")
    torch.save({"a": torch.zeros(3)}, folder / "other.pth")
    torch.save([1, 2], folder / "list.pth")
    data = (folder / "w.pth").read_bytes()
    (folder / "cut.pth").write_bytes(data[: len(data) // 2])
    (folder / "cut.safetensors").write_bytes((folder / "w.safetensors").read_bytes()[:-100])
    (folder / "head.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    (folder / "text.pth").write_text("hello")
    (folder / "empty.pth").write_bytes(b"")
    torch.save({"w": Evil(folder)}, folder / "evil.pth")
    (folder / "evil.bin").write_bytes(pickle.dumps({"w": Evil(folder)}, 2))
    (folder / "evil.pt").write_bytes(pickle.dumps(Evil(folder)))


def _pictures(folder: Path) -> None:
    png(folder / "ok.png")
    (folder / "text.jpg").write_text("hello")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.svg").write_text("<svg/>")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    with io.BytesIO() as stream:
        Image.fromarray(noise).save(stream, "JPEG")
        (folder / "cut.jpg").write_bytes(stream.getvalue()[: stream.tell() // 2])
    (folder / "bomb.png").write_bytes(bomb())
    os.mkfifo(folder / "pipe")


def _sets(folder: Path) -> None:
    for name in ("a", "b"):
        png(folder / "strangers" / name / "1.png")
    png(folder / "flat" / "1.png")
    (folder / "nothing").mkdir()
    for name in ("airplane", "bird"):
        png(folder / "mixed" / name / "good.png")
        (folder / "allbad" / name).mkdir(parents=True)
        (folder / "allbad" / name / "1.jpg").write_text("x")
    (folder / "mixed" / "bird" / "text.jpg").write_text("x")
    (folder / "mixed" / "bird" / "bomb.png").write_bytes(bomb())
    (folder / "mixed" / "airplane" / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes())
    (folder / "pipes" / "airplane").mkdir(parents=True)
    os.mkfifo(folder / "pipes" / "airplane" / "1.jpg")
    (folder / "text.zip").write_text("hello")
    good = (folder / "ok.png").read_bytes()
    with zipfile.ZipFile(folder / "outside.zip", "w") as archive:
        archive.writestr("../evil/1.png", good)
        archive.writestr("/absolute/1.png", good)
    with zipfile.ZipFile(folder / "good.zip", "w") as archive:
        for name in ("airplane", "bird"):
            archive.writestr(f"{name}/1.png", good)
    data = (folder / "good.zip").read_bytes()
    (folder / "cut.zip").write_bytes(data[:-30])
    flipped = bytearray(data)
    flipped[60] ^= 255
    (folder / "flipped.zip").write_bytes(flipped)


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good and bad things of every kind."""
    folder = tmp_path_factory.mktemp("things")
    _weights(folder)
    _pictures(folder)
    _sets(folder)
    for name, content in {
        "three.txt": b"a\nb\nc\n", "none.txt": b"", "binary.txt": bytes(range(128, 256)), "same.txt": b"a\n" * 10
    }.items():  # fmt: skip
        (folder / name).write_bytes(content)
    (folder / "folder").mkdir()
    onnx.save(sound(), folder / "sound.onnx")
    vector = model([node("Relu", "x", "y")], inputs=[value("x", ["n", 7])], outputs=[value("y", ["n", 7])])
    onnx.save(vector, folder / "vector.onnx")
    onnx.save(model([node("Relu", "x", "y")]), folder / "dense.onnx")
    quiet = ["--quiet", "--model", "cifar-resnet8"]
    assert main(["export", *quiet, "-o", str(folder / "random.onnx")]) == 0
    assert main(["export", str(folder / "w.pth"), *quiet, "-o", str(folder / "net.onnx")]) == 0
    assert main(["export", str(folder / "w.pth"), *quiet, "-o", str(folder / "fixed.onnx"), "--batch", "4"]) == 0
    return folder


@pytest.fixture
def here(things: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder of a command; whatever the command does, ``pwned`` does not appear in it."""
    monkeypatch.chdir(things)
    before = {path: path.stat(follow_symlinks=False).st_mtime_ns for path in things.rglob("*") if path.is_file()}
    yield things
    after = {path: path.stat(follow_symlinks=False).st_mtime_ns for path in things.rglob("*") if path.is_file()}
    assert after == before, "a command that was refused wrote something"


CIFAR = "export --model cifar-resnet8 -o new.onnx"

REFUSED: dict[str, tuple[str, ...]] = {
    # a command line -> what its message says
    # ---- commands and flags
    "exprot --depth 50": ("'exprot'", "did you mean export?", "resnet-onnx --help"),
    "frobnicate": ("'frobnicate'", "resnet-onnx --help"),
    "--frobnicate": ("'--frobnicate'",),
    "export --frobnicate": ("'--frobnicate'", "resnet-onnx export --help"),
    "export --depth": ("'--depth' requires an argument", "resnet-onnx export --help"),
    "export --depth abc": ("'--depth'", "'abc'"),
    "export": ("nothing to export", "export --depth 50"),
    "export --depth 77": ("no ResNet of depth 77: choose 18, 34, 50, 101 or 152",),
    "export --depth -5": ("depth -5",),
    "export --depth 50 --model resnet18": ("--depth 50", "'resnet18'"),
    "export resnet50 --model resnet18": ("'resnet50'", "resnet18"),
    "export a b": ("(b)",),
    "doctor extra": ("(extra)",),
    "train extra": ("(extra)",),
    "demo --seed -1": ("'--seed'", "-1", "2147483647"),
    f"{CIFAR} --seed 99999999999": ("99999999999",),
    # ---- names
    "models no-such-net": ("'no-such-net'", "resnet-onnx models"),
    "models resnet5O": ("'resnet5O'", "did you mean resnet50"),
    "export --model cifar-resnet21": ("6n+2", "21", "cifar-resnet20"),
    "export --model cifar-resnet99999998": ("'cifar-resnet99999998'",),
    "bench no-such-net": ("'no-such-net'",),
    "parity ''": ("MODEL is empty",),
    f"parity {LONG}": (LONG, "File name too long"),
    "parity nowhere/net.onnx": ("no such file: nowhere/net.onnx",),
    "export nowhere.pth": ("no such file: nowhere.pth",),
    "export --model resnet50-v1 --variant v1.5": ("'resnet50-v1'", "use resnet50"),
    "export --model vgg16 --shortcut A": ("vgg16 has no shortcuts",),
    "parity net.onnx --variant v1": ("--variant",),
    "parity net.onnx --model resnet18": ("net.onnx is an ONNX file",),
    "parity net.onnx --image-size 64": ("net.onnx takes pictures of 32×32, not 64",),
    "parity vector.onnx --data digits --runtimes ort-cpu": ("vector takes no pictures", "--data"),
    "parity net.onnx --gold no-such-net --runtimes ort-cpu": ("'no-such-net'",),
    "parity net.onnx --gold vector.onnx --runtimes ort-cpu": ("x: float32[n, 7]",),
    "parity sound.onnx --runtimes torch": ("sound", "weights", "--weights FILE"),
    # ---- form
    f"{CIFAR} --batch 0": ("'--batch'", "1 to 4096"),
    f"{CIFAR} --batch many": ("'many'", "'dynamic'"),
    f"{CIFAR} --batch 1000000000": ("1000000000",),
    f"{CIFAR} --opset 3": ("--opset 3", "18 to 24"),
    f"{CIFAR} --image-size 1": ("1", "8 to 4096"),
    f"{CIFAR} --image-size 100000": ("100000",),
    f"{CIFAR} --layout NHWC": ("NHWC", "--input uint8"),
    f"{CIFAR} --input float64": ("'float64'", "'float32', 'uint8'"),
    f"{CIFAR} --precision int3": ("'int3'",),
    f"{CIFAR} --variant v3": ("'v3'",),
    f"{CIFAR} --shortcut D": ("'D'",),
    f"{CIFAR} --mean a,b,c": ("'a,b,c'", "0.485,0.456,0.406"),
    f"{CIFAR} --mean 1,2": ("'1,2' has 2 numbers",),
    f"{CIFAR} --mean nan": ("nan", "finite"),
    f"{CIFAR} --std 0": ("std positive", "0.0"),
    f"{CIFAR} --std 0.1,0.1,1e400": ("inf",),
    # ---- labels
    f"{CIFAR} --labels nowhere.txt": ("'nowhere.txt'", "No such file"),
    f"{CIFAR} --labels three.txt": ("three.txt has 3 labels, the model 10 outputs",),
    f"{CIFAR} --labels none.txt": ("'none.txt'", "empty"),
    f"{CIFAR} --labels binary.txt": ("'binary.txt'", "UTF-8"),
    f"{CIFAR} --labels folder": ("'folder'", "directory"),
    f"{CIFAR} --labels imagenet": ("1000 labels",),
    # ---- weights
    f"{CIFAR} --weights nowhere": ("'nowhere'", "no such file or folder"),
    f"{CIFAR} --weights ''": ("''", "no such file or folder"),
    f"{CIFAR} --weights {LONG}": (LONG, "File name too long"),
    f"{CIFAR} --weights folder": ("folder is not a checkpoint", "checkpoint.json"),
    f"{CIFAR} --weights pipe": ("pipe is a pipe, socket or device",),
    f"{CIFAR} --weights /dev/zero": ("/dev/zero is a pipe, socket or device",),
    f"{CIFAR} --weights text.pth": ("text.pth is not a weights file",),
    f"{CIFAR} --weights empty.pth": ("empty.pth is empty",),
    f"{CIFAR} --weights evil.pth": ("evil.pth is refused", "posix.system"),
    f"{CIFAR} --weights evil.bin": ("evil.bin is refused", "posix.system"),
    f"{CIFAR} --weights evil.pt": ("evil.pt",),
    "export evil.pth --model cifar-resnet8": ("evil.pth is refused", "posix.system"),
    "predict evil.pth ok.png --model cifar-resnet8": ("evil.pth is refused",),
    "evaluate cifar-resnet8 --weights evil.bin --data digits": ("evil.bin is refused",),
    "parity net.onnx --weights evil.pth --runtimes ort-cpu": ("evil.pth is refused",),
    "bench cifar-resnet8 --weights evil.pth --runtime ort-cpu": ("evil.pth is refused",),
    "train --weights evil.pth --epochs 1 --out run": ("evil.pth is refused",),
    "parity evil.bin --runtimes ort-cpu": ("evil.bin",),
    f"{CIFAR} --weights cut.pth": ("cut.pth is damaged",),
    f"{CIFAR} --weights cut.safetensors": ("cut.safetensors is damaged",),
    f"{CIFAR} --weights head.safetensors": ("head.safetensors is damaged",),
    f"{CIFAR} --weights list.pth": ("list.pth holds a list",),
    f"{CIFAR} --weights other.pth": ("other.pth does not fit", "conv1.weight"),
    f"{CIFAR} --weights w14.pth": ("w14.pth does not fit", "--model cifar-resnet14"),
    f"{CIFAR} --weights misshapen.pth": ("another head: fc.weight [classes, 64]", "has fc.weight [10, 7]"),
    f"{CIFAR} --weights nan.pth": ("nan.pth", "'conv1.weight' has NaN"),
    f"{CIFAR} --weights net.onnx": ("net.onnx is not a weights file",),
    f"{CIFAR} --weights ok.png": ("ok.png is not a weights file",),
    f"{CIFAR} --weights good.zip": ("good.zip", "torch.save"),
    "export w.pth": ("w.pth", "--model NAME"),
    "export w.pth --model cifar-resnet8 --weights w.pth": ("twice",),
    "export net.onnx": ("net.onnx is an ONNX file already",),
    "export folder": ("folder is not a checkpoint",),
    "parity sound.onnx --weights w.pth --runtimes ort-cpu": ("--model NAME",),
    # ---- where it goes
    "export --depth 18 -o net.txt": ("net.txt", ".onnx"),
    "export --model cifar-resnet8 -o ok.png/net.onnx": ("can't write ok.png/net.onnx",),
    "export --model cifar-resnet8 -o /proc/net.onnx": ("can't write /proc/net.onnx",),
    f"export --model cifar-resnet8 -o {LONG}.onnx": (LONG, "File name too long"),
    "parity net.onnx --save folder": ("'--save'", "folder"),
    "evaluate net.onnx --data good.zip --save folder": ("'--save'", "folder"),
    "bench net.onnx --save folder": ("folder",),
    "parity cifar-resnet8 --cache-dir ok.png": ("can't use the cache folder", "ok.png"),
    "parity cifar-resnet8 --cache-dir ~no-such-user-here/cache": ("can't find the cache folder",),
    "train --out ok.png --epochs 1": ("can't write into ok.png",),
    "demo --out ok.png": ("ok.png",),
    # ---- runtimes and devices
    "parity net.onnx --runtimes nosuch": ("'nosuch'", "ort-cpu", "openvino"),
    "parity net.onnx --runtimes ''": ("no runtime named",),
    "predict net.onnx ok.png --runtime ort-cpu,openvino": ("one runtime, not 2",),
    "parity net.onnx --device tpu": ("'tpu'", "cpu, cuda or cuda:N"),
    "parity net.onnx --runtimes ort-cpu --device cuda": ("'ort-cpu' runs on cpu, not on 'cuda'",),
    "train --device tpu": ("'tpu'",),
    "parity net.onnx --threads 0": ("'--threads'",),
    "parity net.onnx --images 0": ("'--images'",),
    # ---- benchmarks
    "bench net.onnx --batch 0": ("'--batch'",),
    "bench net.onnx --batch 1,-3": ("'1,-3'",),
    "bench net.onnx --batch ''": ("'--batch'",),
    "bench net.onnx --streams 0": ("'--streams'",),
    "bench net.onnx --duration 0": ("'--duration'",),
    "bench net.onnx --duration nan --runtime ort-cpu": ("nan",),
    "bench net.onnx --scenario latency --streams 2": ("--streams 2",),
    "bench net.onnx --scope gpu": ("'gpu'",),
    "bench fixed.onnx --batch 8": ("fixed batch of 4", "8"),
    "bench net.onnx --harness mlperf --harness-logs ok.png": ("'--harness-logs'", "ok.png"),
    # ---- data
    "evaluate net.onnx": ("'--data'",),
    "evaluate net.onnx --data nowhere": ("'nowhere'",),
    "evaluate net.onnx --data ''": ("''",),
    f"evaluate net.onnx --data {LONG}": (LONG, "File name too long"),
    "evaluate net.onnx --data ok.png": ("'ok.png'", ".zip"),
    "evaluate net.onnx --data pipe": ("pipe is a pipe, socket or device",),
    "evaluate net.onnx --data flat": ("no labels", "one folder per class"),
    "evaluate net.onnx --data nothing": ("'nothing'", "no pictures"),
    "evaluate net.onnx --data strangers": ("a, b", "airplane"),
    "evaluate net.onnx --data pipes": ("airplane/1.jpg", "not a regular file"),
    "evaluate net.onnx --data allbad --skip-bad": ("none of the 2 pictures",),
    "evaluate net.onnx --data text.zip": ("'text.zip'",),
    "evaluate net.onnx --data outside.zip": ("'outside.zip'",),
    "evaluate net.onnx --data cut.zip": ("'cut.zip'",),
    "evaluate net.onnx --data flipped.zip": ("airplane/1.png in flipped.zip", "CRC"),
    "evaluate net.onnx --data digits --batch 100000": ("100000",),
    "evaluate net.onnx --data digits --limit 0": ("'--limit'",),
    "evaluate net.onnx --data digits --workers -1": ("'--workers'",),
    "evaluate net.onnx --data digits --labels three.txt": ("3 labels", "10"),
    "evaluate random.onnx --data digits": ("random weights", "--weights"),
    "evaluate cifar-resnet8 --data digits": ("random weights",),
    "evaluate vector.onnx --data digits": ("x: float32[n, 7]",),
    "evaluate dense.onnx --data digits": ("y: float32[", "[batch, classes]"),
    "parity net.onnx --data nowhere --runtimes ort-cpu": ("'nowhere'",),
    "train --data nowhere": ("'nowhere'",),
    "train --data nothing": ("'nothing'",),
    f"train --data {LONG}": ("File name too long",),
    # ---- training
    "train --model no-such-net": ("'no-such-net'",),
    "train --recipe no-such-recipe": ("'no-such-recipe'", "digits"),
    "train --epochs 0": ("'--epochs'",),
    "train --batch 0": ("'--batch'",),
    "train --lr nan": ("learning_rate", "nan"),
    "train --lr -1": ("learning_rate", "-1"),
    "train --std 0": ("std positive",),
    "train --image-size 7": ("'--image-size'",),
    "train --weights random --epochs 1": ("--weights", "trained"),
    # ---- pictures
    "predict": ("'MODEL'",),
    "predict net.onnx": ("'IMAGE...'",),
    "predict net.onnx nowhere.png": ("nowhere.png",),
    f"predict net.onnx {LONG}": (LONG, "File name too long"),
    "predict net.onnx nothing": ("nothing", "no pictures"),
    "predict net.onnx text.jpg": ("text.jpg", "JPEG, PNG"),
    "predict net.onnx page.svg": ("page.svg", "JPEG, PNG"),
    "predict net.onnx empty.jpg": ("empty.jpg", "empty"),
    "predict net.onnx cut.jpg": ("cut.jpg", "incomplete JPEG"),
    "predict net.onnx bomb.png": ("bomb.png", "decompression bomb"),
    "predict net.onnx pipe": ("pipe is a pipe, socket or device",),
    "predict net.onnx /dev/zero": ("/dev/zero is a pipe, socket or device",),
    "predict net.onnx pipes": ("pipes/airplane/1.jpg", "not a regular file"),
    "predict net.onnx text.jpg --skip-bad": ("none of the 1 pictures", "text.jpg"),
    "predict net.onnx ok.png --top 0": ("'--top'",),
    "predict net.onnx ok.png --labels three.txt": ("3 labels",),
    "predict random.onnx ok.png": ("random weights",),
    "predict resnet18 ok.png": ("random weights",),
    "predict vector.onnx ok.png": ("x: float32[n, 7]",),
    "predict dense.onnx ok.png": ("[batch, classes]",),
    # ---- engines
    "build net.onnx": ("'--runtime'",),
    "build net.onnx --runtime ort-gpu": ("'ort-gpu'",),
    "build net.onnx --runtime tensorrt-rtx --target sm12345": ("'sm12345'",),
    "build net.onnx --runtime tensorrt-rtx --shapes frob": ("'frob'",),
}  # fmt: skip


@pytest.mark.parametrize("line", REFUSED)
@pytest.mark.usefixtures("here")
def test_a_mistake_is_one_clear_message(line: str, capfd: pytest.CaptureFixture[str]) -> None:
    code = main(shlex.split(line))
    out, err = capfd.readouterr()
    assert code == 2, err
    assert out == ""
    lines = err.splitlines()
    assert [text.startswith("error: ") for text in lines].count(True) == 1
    message = err[err.index("error: ") :]
    for text in REFUSED[line]:
        assert text in message
    assert "Traceback" not in err
    assert len(message) < 1500


@pytest.mark.parametrize("line", REFUSED)
@pytest.mark.usefixtures("here")
def test_with_json_a_mistake_is_one_document(line: str, capfd: pytest.CaptureFixture[str]) -> None:
    code = main([*shlex.split(line), "--json"])
    out, _ = capfd.readouterr()
    document = json.loads(out)
    assert code == 2
    assert list(document) == ["schema", "kind", "error"]
    assert list(document["error"]) == ["kind", "message", "fix"]
    assert document["error"]["kind"] in ("usage", "bad-model", "bad-weights", "bad-data", "bad-picture", "file")
    text = f"{document['error']['message']} {document['error']['fix']}"
    # With another flag behind it, click does not say what an option in front of it lacks.
    for expected in REFUSED[line] if line != "export --depth" else ():
        assert expected in text


def test_the_table_is_large_enough() -> None:
    commands = {line.split()[0] for line in REFUSED}
    assert len(REFUSED) >= 150
    assert commands >= {
        "export",
        "parity",
        "bench",
        "evaluate",
        "predict",
        "train",
        "models",
        "doctor",
        "demo",
        "build",
    }


@pytest.mark.parametrize(
    "line",
    [
        "export --depth 77",
        f"{CIFAR} --weights evil.pth",
        "predict net.onnx bomb.png",
        "evaluate net.onnx --data strangers",
        "parity net.onnx --runtimes nosuch",
    ],
)
@pytest.mark.usefixtures("here")
def test_a_mistake_in_a_real_process(line: str) -> None:
    command = [sys.executable, "-m", "resnet_onnx", *shlex.split(line)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_error(done.stderr)


# ---- weights are never code ------------------------------------------------------------------------------------------


def test_the_hostile_pickle_is_hostile(tmp_path: Path) -> None:
    """Else the tests above prove nothing."""
    _weights(tmp_path)
    with open(tmp_path / "evil.bin", "rb") as handle:
        pickle.load(handle)
    assert (tmp_path / "pwned").exists()
    (tmp_path / "pwned").unlink()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "pwned").exists()


def test_sound_weights_load_from_every_format(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    answers = []
    for name in ("w.pth", "w.safetensors"):
        assert main(["predict", name, "--model", "cifar-resnet8", "ok.png", "--json"]) == 0
        answers.append(json.loads(capfd.readouterr().out)["predictions"])
    assert answers[0] == answers[1]
    assert not (here / "pwned").exists()


# ---- pictures are skipped only where the user asked ------------------------------------------------------------------


def test_bad_pictures_of_a_set_stop_the_evaluation(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    del here
    assert main(["evaluate", "net.onnx", "--data", "mixed", "--json"]) == 2
    error = json.loads(capfd.readouterr().out)["error"]
    assert error["kind"] == "bad-picture"
    assert any(name in error["message"] for name in ("cut.jpg", "bomb.png", "text.jpg"))


@pytest.mark.parametrize("workers", ["0", "2"])
def test_bad_pictures_of_a_set_are_skipped_on_demand_and_counted(
    here: Path, workers: str, capfd: pytest.CaptureFixture[str]
) -> None:
    del here
    line = ["evaluate", "net.onnx", "--data", "mixed", "--skip-bad", "--workers", workers]
    assert main([*line, "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["images"] == 2
    skipped = {Path(row["image"]).name: row["reason"] for row in document["skipped"]}
    assert set(skipped) == {"cut.jpg", "bomb.png", "text.jpg"}
    assert "decompression bomb" in skipped["bomb.png"]
    assert "incomplete" in skipped["cut.jpg"]
    assert main(line) == 0
    out, err = capfd.readouterr()
    assert err.count("skipped: ") == 3
    assert out.splitlines()[2].split()[:1] == ["ort-cpu"]
    assert out.splitlines()[2].split()[3:5] == ["2", "3"], "images and skipped"


def test_bad_pictures_are_skipped_by_predict_on_demand(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    del here
    names = ["text.jpg", "ok.png", "bomb.png", "cut.jpg"]
    assert main(["predict", "net.onnx", *names, "--skip-bad", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert [row["image"] for row in document["predictions"]] == ["ok.png"]
    assert [row["image"] for row in document["skipped"]] == ["text.jpg", "bomb.png", "cut.jpg"]


# ---- metadata of a file that was made here ---------------------------------------------------------------------------

VALUES = (None, -1, 0, 10**12, "x", [], {}, True, 1.5, "../../etc/passwd", ["a"])


def _places(tree: object, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield above
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:2]) if isinstance(tree, list) else ()
    for key, item in items:
        yield from _places(item, (*above, key))


def _changed(tree: object, place: tuple[str | int, ...], new: object) -> object:
    if not place:
        return new
    copy = dict(tree) if isinstance(tree, dict) else list(tree)  # type: ignore[call-overload]
    copy[place[0]] = _changed(copy[place[0]], place[1:], new)
    return copy


@pytest.mark.parametrize("key", ["network", "form"])
def test_no_metadata_makes_a_fault(things: Path, key: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    original = onnx.load(things / "net.onnx")
    entry = next(p for p in original.metadata_props if p.key == f"resnet_onnx.{key}")
    tree = json.loads(entry.value)
    path = tmp_path / "net.onnx"
    texts = [json.dumps(_changed(tree, place, new)) for place in _places(tree) for new in VALUES]
    refused = 0
    for text in [*texts, "", "{", "[" * 100_000, "NaN", '{"a": 1}', "\ufffd"]:
        entry.value = text
        path.write_bytes(original.SerializeToString())
        code = main(["predict", str(path), str(things / "ok.png"), "--quiet"])
        err = capfd.readouterr().err
        assert code in (0, 2), f"{text}: {err}"
        refused += code == 2
    assert refused > len(texts) // 2


@pytest.mark.parametrize(
    ("key", "place", "new"),
    [
        ("network", ("preprocessing", "image_size"), 16),
        ("network", ("preprocessing", "image_size"), 32.5),
        ("network", ("preprocessing", "image_size"), True),
        ("form", ("batch",), 3),
        ("form", ("batch",), 10**12),
        ("form", ("input",), "uint8"),
    ],
    ids=str,
)
def test_metadata_of_another_input_is_refused(
    things: Path, key: str, place: tuple[str, ...], new: object, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changed = onnx.load(things / "net.onnx")
    entry = next(p for p in changed.metadata_props if p.key == f"resnet_onnx.{key}")
    entry.value = json.dumps(_changed(json.loads(entry.value), place, new))
    path = tmp_path / "net.onnx"
    onnx.save(changed, path)
    assert main(["parity", str(path), "--runtimes", "ort-cpu", "--images", "1"]) == 2
    err = capfd.readouterr().err
    assert "metadata" in err
    assert "the graph has input: float32[" in err or "can't be read" in err
