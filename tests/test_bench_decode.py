"""``bench --include decode``: picture files in, scores out, and rows that say so."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_onnx.bench.feed_factory import FedRun
from resnet_onnx.bench.plan import BenchPlan
from resnet_onnx.cli.main import main
from resnet_onnx.data.batches import prepared_picture
from resnet_onnx.data.datasets import open_dataset
from resnet_onnx.workflow import Request, decoding, feeds_of, resolve, source
from runtimes.errors import BadPicture, UsageError
from runtimes.registry import open_runtime


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (40 + index, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.jpg")
    return folder


@pytest.mark.parametrize("threads", [1, 2])
def test_runs_take_turns_with_the_files_as_evaluate_would_prepare_them(threads: int, photos: Path) -> None:
    model = resolve(Request(model="cifar-resnet20"))
    factory = pickle.loads(pickle.dumps(decoding(model, str(photos))))  # as it reaches the process that measures
    assert factory.includes == ("decode",)
    assert factory.label == f"{photos} (3 files)"
    following = factory.open(batch=2, threads=threads)
    files = open_dataset(photos)
    for places in ([0, 1], [2, 0], [1, 2]):
        assert model.preprocessing is not None
        pictures = np.stack([prepared_picture(files, place, model.preprocessing) for place in places])
        (found,), (expected,) = following().values(), feeds_of(model, pictures).values()
        np.testing.assert_array_equal(found, expected)


def test_a_run_ends_with_the_scores_of_its_own_pictures(photos: Path) -> None:
    model = resolve(Request(model="cifar-resnet20"))
    factory = decoding(model, str(photos))
    with open_runtime("ort-cpu", source(model, "ort-cpu")) as runtime:
        run, again = (FedRun(runtime, factory.open(batch=2, threads=1)), factory.open(batch=2, threads=1))
        for _ in range(2):
            run.enqueue()
            run.synchronize()
            expected = runtime.run(again())
            assert run.outputs().keys() == expected.keys()
            np.testing.assert_array_equal(run.outputs()["logits"], expected["logits"])


@pytest.mark.parametrize("runtime", ["ort-cpu", "openvino", "torch"])
def test_several_streams_decode_and_run_beside_each_other(
    runtime: str, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = main(["bench", "cifar-resnet20", "--runtime", runtime, "--batch", "2", "--streams", "2", "--duration", "0.3",
                 "--include", "decode", "--data", str(photos), "--json"])  # fmt: skip
    (row,) = json.loads(capfd.readouterr().out)["results"]
    assert (code, row["error"], row["streams"]) == (0, None, 2)
    assert row["images_per_second"] > 0


def test_rows_say_that_decoding_is_included(photos: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["cifar-resnet20", "--runtime", "ort-cpu", "--batch", "2", "--duration", "0.2", "--include", "decode"]
    saved, page = tmp_path / "d.json", tmp_path / "d.html"
    assert main(["bench", *arguments, "--data", str(photos), "--save", str(saved)]) == 0
    shown = capfd.readouterr().out
    assert f"picture files in and scores out, decoding included: {photos} (3 files)" in shown
    found = json.loads(saved.read_text())
    (row,) = found["results"]
    assert (row["scope"], row["includes"], row["error"]) == ("end-to-end", ["decode"], None)
    assert row["images_per_second"] > 0
    assert found["settings"]["pictures"] == f"{photos} (3 files)"
    assert main(["report", str(saved), "--out", str(page), "--quiet"]) == 0
    assert "ort-cpu · batch 2 + decode" in page.read_text()
    other = {**found, "settings": {**found["settings"], "includes": [], "pictures": None}}
    (tmp_path / "o.json").write_text(json.dumps(other))
    assert main(["compare", str(saved), str(tmp_path / "o.json")]) == 2
    assert "another work beside the model (decode and none)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "photos"], "without --include decode nothing is decoded"),
        (["--include", "decode", "--scope", "device"], "begins with files in host memory"),
        (["--include", "decode", "--data", "digits"], "there is nothing to decode"),
        (["--include", "decode", "--data", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_message(arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "cifar-resnet20", "--runtime", "ort-cpu", *arguments]) == 2
    error = capfd.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_file_that_is_no_picture_ends_the_run_with_its_name(photos: Path) -> None:
    (photos / "3.jpg").write_bytes(b"no picture")
    following = decoding(resolve(Request(model="cifar-resnet20")), str(photos)).open(batch=4, threads=2)
    with pytest.raises(BadPicture, match=r"3\.jpg"):
        following()


def test_what_is_decoded_is_in_host_memory() -> None:
    factory = decoding(resolve(Request(model="cifar-resnet20")), None)
    assert factory.label == "the sample photos of scikit-learn (2 files)"
    with pytest.raises(UsageError, match="decode begins in host memory"):
        BenchPlan(feed_factory=factory)
