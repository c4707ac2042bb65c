"""Bundles: what is in them, that they run without this program, that they are whole or absent."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from support import bundles

from resnet_onnx.cli.main import main
from resnet_onnx.data.samples import photo_files
from resnet_onnx.deploy import bundle as writing
from resnet_onnx.deploy.reference import reference_file
from resnet_onnx.results.bundle import Bundle, Figures, Proof
from resnet_onnx.workflow import ConversionConfig, Model, Request, convert, feeds_of, onnx_path, predict_on, resolve
from runtimes import onnx_gate
from runtimes.errors import CheckFailed, FileProblem, UsageError
from runtimes.registry import open_runtime
from runtimes.spec import ModelSource


@pytest.fixture(scope="module")
def model() -> Model:
    return bundles.network()


@pytest.fixture(scope="module")
def written(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "out"
    bundles.write(model, folder)
    return folder


@pytest.fixture(scope="module")
def int8(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("int8") / "int8.onnx"
    convert(model, path, ConversionConfig(to="int8", method="minmax", count=32))
    return replace(resolve(Request(model=str(path))), labels=bundles.LABELS)


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class TestWhatIsInIt:
    def test_the_seal_is_that_of_sha256sum_and_has_every_file(self, written: Path) -> None:
        lines = (written / "bundle.sha256").read_text().splitlines()
        sealed = dict(reversed(line.split("  ", 1)) for line in lines)
        found = hashes(written)
        del found["bundle.sha256"]
        assert sealed == found
        recorded = {row["path"]: row["sha256"] for row in bundles.about(written)["files"]}
        assert recorded == {name: digest for name, digest in found.items() if name != "bundle.json"}

    def test_documents_say_what_the_model_is(self, written: Path, model: Model) -> None:
        about = msgspec.json.decode((written / "bundle.json").read_bytes(), type=Bundle)
        assert about.preprocessing.crop == 32
        assert about.preprocessing.mean == model.preprocessing.mean  # type: ignore[union-attr]
        assert list(about.labels) == list(bundles.LABELS)
        assert (about.settings.batch, about.settings.streams, about.settings.threads) == (4, 1, 1)
        assert about.model.file == about.model.portable == "model.onnx"
        proof = msgspec.json.decode((written / "proof" / "proof.json").read_bytes(), type=Proof)
        assert len(proof.pictures) == len(proof.decisions) == 32
        assert np.load(written / "proof" / "gold.npy").shape == (32, 10)
        assert (written / "README.md").read_text().startswith("# cifar-resnet20, fp32, on ort-cpu")
        assert "<svg" in (written / "report.html").read_text()

    @pytest.mark.parametrize(("named", "expected"), [(None, "cc-by-nc-4.0"), ("MIT", "MIT")])
    def test_it_states_the_license_that_the_weights_source_states(
        self, named: str | None, expected: str, model: Model, tmp_path: Path
    ) -> None:
        assert model.network is not None
        network = replace(model.network, weights_license="cc-by-nc-4.0")
        bundles.write(replace(model, network=network), tmp_path / "out", license=named)
        assert bundles.about(tmp_path / "out")["model"]["license"] == expected

    def test_without_a_ratio_to_the_reference_it_says_that_it_promises_no_speed(
        self, model: Model, tmp_path: Path
    ) -> None:
        found = bundles.write(model, tmp_path / "out", figures=Figures(images_per_second=100.0))
        assert [note for note in found.notes if note.startswith("speed is not promised")]

    def test_requirements_pin_what_was_measured(self, written: Path) -> None:
        pinned = (written / "requirements.txt").read_text().splitlines()
        assert f"numpy=={np.__version__}" in pinned
        assert not any(line.startswith(("torch", "resnet")) for line in pinned)

    def test_the_same_contents_give_the_same_bytes(self, written: Path, model: Model, tmp_path: Path) -> None:
        bundles.write(model, tmp_path / "again")
        first, second = hashes(written), hashes(tmp_path / "again")
        # The document of parity has the seconds that it took, and the others have its hash.
        different = {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}
        assert different <= {"proof/parity.json", "bundle.json", "bundle.sha256"}

    def test_a_lowered_file_and_its_portable_one_share_their_weights(
        self, int8: Model, model: Model, tmp_path: Path
    ) -> None:
        found = bundles.write(int8, tmp_path / "out", original=model)
        about = bundles.about(tmp_path / "out")
        assert (about["model"]["form"], about["model"]["portable"]) == ("lowered onnx", "portable.onnx")
        one = onnx_path(int8).stat().st_size
        both = sum((tmp_path / "out" / name).stat().st_size for name in ("model.onnx", "portable.onnx", "weights.bin"))
        assert both < 1.5 * one  # its graph counts twice; of a large network the weights are nearly all
        assert found.size_bytes < 1.1 * one + 10e6
        feeds = feeds_of(int8, np.zeros((2, 32, 32, 3), np.uint8))
        scores = []
        for path in (onnx_path(int8), tmp_path / "out" / "portable.onnx"):
            with open_runtime("ort-cpu", ModelSource(path=path)) as opened:
                scores.append(opened.run(feeds)["logits"])
        np.testing.assert_array_equal(*scores)
        proof = json.loads((tmp_path / "out" / "proof" / "proof.json").read_text())
        assert len(proof["reference_decisions"]) == 32

    def test_the_reference_has_no_weights_and_the_same_products(self, model: Model) -> None:
        path = reference_file(model, "ort-cpu")
        assert path == reference_file(model, "ort-cpu")
        assert path.stat().st_size < onnx_path(model).stat().st_size / 10
        with open_runtime("ort-cpu", ModelSource(path=path)) as opened:
            scores = opened.run(feeds_of(model, np.full((3, 32, 32, 3), 200, np.uint8)))["logits"]
        assert scores.shape == (3, 10)
        assert np.isfinite(scores).all()
        import onnx

        ours, theirs = (
            [node.op_type for node in onnx.load(str(one)).graph.node if node.op_type in ("Conv", "Gemm")]
            for one in (path, onnx_path(model))
        )
        assert ours == theirs

    def test_pictures_of_the_users_are_taken_as_they_are_and_it_is_said(self, model: Model, tmp_path: Path) -> None:
        data = tmp_path / "data" / "a"
        data.mkdir(parents=True)
        for index, photo in enumerate(photo_files()):
            (data / f"{index}.jpg").write_bytes(photo.read_bytes())
        found = bundles.write(model, tmp_path / "out", pictures="data", data=str(data.parent))
        assert "the proof's pictures are from data: who gets the bundle gets them" in found.notes
        kept = sorted((tmp_path / "out" / "proof" / "pictures").iterdir())
        assert [path.read_bytes() for path in kept] == [photo.read_bytes() for photo in photo_files()]

    def test_without_pictures_there_are_tensors_alone(self, model: Model, tmp_path: Path) -> None:
        bundles.write(model, tmp_path / "out", pictures="none")
        assert not (tmp_path / "out" / "proof" / "pictures").exists()
        assert (tmp_path / "out" / "proof" / "tensors.npz").is_file()


class TestRunning:
    def test_it_needs_neither_torch_nor_this_program(self, written: Path) -> None:
        code = (
            "import run; c = run.Classifier(); found = c(sys.argv[1]); "
            "used = {n.partition('.')[0] for n in sys.modules}; "
            "assert not used & {'torch', 'torchvision', 'onnx', 'resnet_onnx', 'runtimes', 'converters'}, used; "
            "print(found[0][0])"
        )
        assert bundles.alone(written, code, str(photo_files()[0])).strip() in bundles.LABELS

    @pytest.mark.parametrize("runtime", ["ort-cpu", "openvino"])
    def test_it_answers_as_predict_does(self, model: Model, tmp_path: Path, runtime: str) -> None:
        bundles.write(model, tmp_path / "out", runtime=runtime, streams=2, threads=2)
        photos = list(photo_files())
        ours = predict_on(model, runtime, photos, top=3)
        code = (
            "import json, run; c = run.Classifier(); print(json.dumps(["
            "c.batch(sys.argv[1:], top=3), [c(open(n, 'rb').read(), 3) for n in sys.argv[1:]], "
            "c.batch(sys.argv[1:] * 9, top=3)[-1]]))"
        )
        batch, single, last = json.loads(bundles.alone(tmp_path / "out", code, *map(str, photos)))
        for found in (batch, single):
            assert [[label for label, _ in row] for row in found] == [
                [c.label for c in row.top] for row in ours.records
            ]
            for row, expected in zip(found, ours.records, strict=True):
                np.testing.assert_allclose([p for _, p in row], [c.probability for c in expected.top], rtol=1e-4)
        assert [label for label, _ in last] == [label for label, _ in batch[-1]]

    def test_its_tensors_are_ours_bit_for_bit(self, written: Path, model: Model, tmp_path: Path) -> None:
        from resnet_onnx.data.pictures import decode
        from resnet_onnx.data.transforms import prepare

        files = sorted((written / "proof" / "pictures").iterdir())
        code = "import numpy, run; numpy.save(sys.argv[1], run.Classifier().tensor(sys.argv[2:]))"
        bundles.alone(written, code, str(tmp_path / "t.npy"), *map(str, files))
        assert model.preprocessing is not None
        ours = np.stack([prepare(decode(path.read_bytes(), path.name), model.preprocessing) for path in files])
        np.testing.assert_array_equal(np.load(tmp_path / "t.npy"), feeds_of(model, ours)["input"])

    def test_a_fixed_batch_is_filled_up(self, tmp_path: Path) -> None:
        fixed = resolve(Request(model="cifar-resnet20"))
        fixed = replace(fixed, labels=bundles.LABELS, form=replace(fixed.form, batch=3))
        bundles.write(fixed, tmp_path / "out", batch=3)
        code = "import run; c = run.Classifier(); print([len(c.batch(sys.argv[1:] * n)) for n in (0, 1, 3, 4)])"
        assert bundles.alone(tmp_path / "out", code, str(photo_files()[0])).strip() == "[0, 1, 3, 4]"

    def test_from_the_command_line_it_prints_labels(self, written: Path) -> None:
        photo = str(photo_files()[0])
        done = subprocess.run(
            [sys.executable, str(written / "run.py"), photo], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith(f"{photo}: thing ")
        assert done.stdout.count("%") == 5


class TestWholeOrAbsent:
    def test_what_fails_leaves_nothing(self, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(writing.readme, "write_readme", full)
        with pytest.raises(FileProblem, match="No space left"):
            bundles.write(model, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    def test_a_bundle_is_replaced_and_nothing_else_is(self, model: Model, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        bundles.write(model, tmp_path / "out")
        (tmp_path / "out" / "of-the-old-one").touch()
        bundles.write(model, tmp_path / "out")
        assert not (tmp_path / "out" / "of-the-old-one").exists()
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").touch()
        with pytest.raises(UsageError, match="is there and is not a bundle"):
            bundles.write(model, tmp_path / "mine")
        assert (tmp_path / "mine" / "thesis.txt").exists()

    def test_what_does_not_compute_as_gold_is_not_written(self, model: Model, tmp_path: Path) -> None:
        import onnx
        from onnx import numpy_helper

        changed = onnx.load(str(onnx_path(model)))
        tensor = next(t for t in changed.graph.initializer if len(t.dims) == 4)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
        onnx.save(changed, tmp_path / "changed.onnx")
        other = replace(model, onnx=tmp_path / "changed.onnx")
        with pytest.raises(CheckFailed, match="no bundle is written"):
            bundles.write(other, tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestCommand:
    @pytest.mark.parametrize(
        ("runtime", "because"),
        [("torch", "the network's own program"), ("reference", "too slow"), ("tensorrt", "opens engines")],
    )
    def test_a_runtime_that_can_not_be_bundled_says_why(
        self, runtime: str, because: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        out = str(tmp_path / "out")
        assert main(["bundle", "cifar-resnet20", "--runtime", runtime, "--out", out]) == 2
        said = " ".join(capfd.readouterr().err.split())
        assert f"runtime '{runtime}' can't be bundled" in said
        assert because in said
        assert "ort-cpu" in said

    def test_the_users_pictures_have_to_be_named(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        words = [
            "bundle",
            "cifar-resnet20",
            "--runtime",
            "ort-cpu",
            "--out",
            str(tmp_path / "o"),
            "--proof-pictures",
            "data",
        ]
        assert main(words) == 2
        assert "name them: --data D" in capfd.readouterr().err

    def test_it_measures_and_writes(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        out = str(tmp_path / "out")
        words = ["bundle", "cifar-resnet20", "--runtime", "ort-cpu", "--threads", "1", "--duration", "1", "--out", out]
        assert main([*words, "--json"]) == 0
        found = json.loads(capfd.readouterr().out)
        assert (found["kind"], found["path"], found["runtime"], found["precision"]) == (
            "bundle",
            out,
            "ort-cpu",
            "fp32",
        )
        assert found["figures"]["over_reference"] > 0
        assert {row["path"] for row in found["files"]} >= {"run.py", "verify.py", "model.onnx", "proof/gold.npy"}
        assert found["sha256"] == hashlib.sha256((tmp_path / "out" / "bundle.json").read_bytes()).hexdigest()

    def test_a_result_of_another_file_is_refused(
        self, written: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        saved, other = tmp_path / "parity.json", str(written / "proof" / "reference.onnx")
        assert onnx_gate.check_onnx(Path(other)).sha256
        assert (
            main(
                ["parity", str(written / "model.onnx"), "--runtimes", "ort-cpu", "--images", "2", "--save", str(saved)]
            )
            == 0
        )
        words = ["bundle", "cifar-resnet20", "--seed", "5", "--runtime", "ort-cpu", "--out", str(tmp_path / "o")]
        assert main([*words, "--from", str(saved)]) == 2
        assert "a result of another file" in capfd.readouterr().err
