"""What --data may name, and what is said when it can't be used."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_onnx.data.datasets import UNLABELLED, from_arrays, open_dataset, picture_files
from runtimes.errors import BadData, BadPicture


def png(level: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (level, level, level)).save(out, "PNG")
    return out.getvalue()


Writer = Callable[[list[str]], Path]


@pytest.fixture(params=["folder", "zip"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Writer:
    """Writes a tree of one-colour pictures, as a folder or as a .zip; names that end in / are empty folders."""

    def as_folder(names: list[str]) -> Path:
        root = tmp_path / "set"
        root.mkdir()
        for level, name in enumerate(names):
            if name.endswith("/"):
                (root / name).mkdir(parents=True, exist_ok=True)
            else:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(png(level) if name.lower().endswith((".png", ".jpg")) else b"notes")
        return root

    def as_zip(names: list[str]) -> Path:
        path = tmp_path / "set.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for level, name in enumerate(names):
                archive.writestr(
                    name, b"" if name.endswith("/") else png(level) if name.endswith((".png", ".jpg")) else b"notes"
                )
        return path

    return as_folder if request.param == "folder" else as_zip


class TestLayouts:
    def test_class_folders(self, write: Writer) -> None:
        found = open_dataset(write(["dog/b.png", "cat/2.png", "cat/1.png", "dog/readme.txt"]))
        assert found.classes == ("cat", "dog")
        assert found.labels.tolist() == [0, 0, 1]
        assert [found.item_name(i) for i in range(len(found))] == ["cat/1.png", "cat/2.png", "dog/b.png"]
        assert found.split is None
        assert found.labelled
        assert found.read(1).data == png(1)
        assert found.read(2).label == 1

    @pytest.mark.parametrize("held_out", ["test", "val", "validation"])
    def test_splits(self, write: Writer, held_out: str) -> None:
        path = write([f"train/a/{i}.png" for i in range(3)] + [f"{held_out}/a/9.png"])
        assert len(open_dataset(path, split="train")) == 3
        test = open_dataset(path)
        assert len(test) == 1
        assert test.item_name(0) == f"{held_out}/a/9.png"
        assert (test.split, open_dataset(path, split="train").split) == (held_out, "train")
        assert held_out in test.name

    def test_test_goes_before_val(self, write: Writer) -> None:
        assert open_dataset(write(["train/a/1.png", "val/a/2.png", "test/a/3.png"])).split == "test"

    def test_one_folder_around_everything(self, write: Writer) -> None:
        found = open_dataset(write(["photos/cat/1.png", "photos/dog/1.png"]))
        assert found.classes == ("cat", "dog")

    def test_one_folder_around_splits(self, write: Writer) -> None:
        found = open_dataset(write(["photos/train/cat/1.png", "photos/test/cat/1.png", "photos/test/dog/1.png"]))
        assert found.classes == ("cat", "dog")
        assert found.split == "test"

    def test_a_single_class_is_a_class(self, write: Writer) -> None:
        assert open_dataset(write(["cat/1.png", "cat/2.png"])).classes == ("cat",)

    def test_a_class_may_be_called_train(self, write: Writer) -> None:
        found = open_dataset(write(["train/1.png", "bus/1.png", "car/1.png"]))
        assert found.classes == ("bus", "car", "train")
        assert found.split is None

    def test_flat_pictures_are_unlabelled(self, write: Writer) -> None:
        found = open_dataset(write(["b.png", "a.png"]))
        assert not found.labelled
        assert found.labels.tolist() == [UNLABELLED, UNLABELLED]
        assert found.item_name(0) == "a.png"

    def test_flat_splits_are_unlabelled(self, write: Writer) -> None:
        path = write(["train/1.png", "train/2.png", "test/3.png"])
        assert (len(open_dataset(path)), len(open_dataset(path, split="train"))) == (1, 2)
        assert not open_dataset(path).labelled

    def test_hidden_and_macos_files_are_left_out(self, write: Writer) -> None:
        found = open_dataset(
            write(["cat/1.png", "cat/._1.png", "__MACOSX/cat/._1.png", "__MACOSX/x/1.png", ".thumbs/cat/1.png"])
        )
        assert found.classes == ("cat",)
        assert len(found) == 1

    def test_order_and_pickling(self, write: Writer) -> None:
        found = open_dataset(write([f"{c}/{i}.png" for c in "cab" for i in (10, 9, 1)]))
        found.read(0)  # opens the archive
        copy = pickle.loads(pickle.dumps(found))
        assert [copy.read(i) for i in range(9)] == [found.read(i) for i in range(9)]
        assert [found.item_name(i) for i in range(3)] == ["a/1.png", "a/10.png", "a/9.png"]

    def test_subset_may_repeat(self, write: Writer) -> None:
        found = open_dataset(write(["a/1.png", "b/1.png"])).subset([1, 0, 1])
        assert found.labels.tolist() == [1, 0, 1]
        assert found.read(2).data == png(1)
        assert found.subset([2]).item_name(0) == "b/1.png"


BAD_LAYOUTS: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "no pictures in it"),
    "no pictures": (["cat/notes.txt", "dog/"], "no pictures in it"),
    "an empty class": (["cat/1.png", "dog/"], r"no pictures in class folder dog"),
    "a class with other files only": (["cat/1.png", "dog/notes.txt"], r"no pictures in class folder dog"),
    "an empty class in a split": (["train/a/1.png", "test/a/1.png", "test/b/"], r"class folder test/b"),
    "pictures beside class folders": (["cat/1.png", "dog/1.png", "stray.png"], r"1 pictures lie beside.*stray\.png"),
    "too deep": (["cat/a/1.png", "dog/b/1.png"], r"cat/a/1\.png lies deeper than a class folder"),
    "training pictures only": (["train/a/1.png", "train/b/1.png"], r"has train but no test or val or validation"),
}


class TestRefusals:
    @pytest.mark.parametrize("which", BAD_LAYOUTS)
    def test_bad_layout(self, write: Writer, which: str) -> None:
        names, expected = BAD_LAYOUTS[which]
        with pytest.raises(BadData, match=expected) as refused:
            open_dataset(write(names))
        assert refused.value.fix

    def test_no_training_pictures(self, write: Writer) -> None:
        with pytest.raises(BadData, match=r"has test but no train"):
            open_dataset(write(["test/a/1.png"]), split="train")

    @pytest.mark.parametrize("spec", ["", "no/such/folder", "imagnet"])
    def test_no_such_path(self, spec: str) -> None:
        with pytest.raises(BadData, match=r"no such file or folder; expected a folder, a \.zip, or one of digits"):
            open_dataset(spec)

    @pytest.mark.parametrize(
        ("name", "content"),
        [("set.zip", b""), ("set.zip", b"PK\x03\x04 cut"), ("photo.png", png(3)), ("set.tar.gz", b"\x1f\x8b\x08" * 9)],
    )
    def test_not_a_zip(self, tmp_path: Path, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadData, match=r"can't be read as a \.zip"):
            open_dataset(tmp_path / name)

    def test_a_zip_without_its_end(self, tmp_path: Path) -> None:
        path = tmp_path / "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for i in range(50):
                archive.writestr(f"a/{i}.png", png(i))
        path.write_bytes(path.read_bytes()[:-300])
        with pytest.raises(BadData, match=r"can't be read as a \.zip"):
            open_dataset(path)

    def test_a_damaged_member_is_named_when_read(self, tmp_path: Path) -> None:
        path = tmp_path / "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for i in range(3):
                archive.writestr(f"a/{i}.png", png(i))
        data = bytearray(path.read_bytes())
        data[data.index(b"a/1.png") + 20] ^= 0xFF
        path.write_bytes(data)
        found = open_dataset(path)
        assert found.read(0).data == png(0)
        with pytest.raises(BadPicture, match=r"a/1\.png in .*: can't be read \(Bad CRC"):
            found.read(1)

    def test_encrypted(self, tmp_path: Path) -> None:
        path = tmp_path / "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/1.png", png(1))
        data = bytearray(path.read_bytes())
        data[data.index(b"PK\x01\x02") + 8] |= 1
        path.write_bytes(data)
        with pytest.raises(BadData, match=r"a/1\.png is encrypted"):
            open_dataset(path)

    def test_members_that_climb_out_are_not_read(self, tmp_path: Path) -> None:
        path = tmp_path / "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("../../evil/1.png", "/etc/1.png", "a/../../b/1.png", "a/1.png"):
                archive.writestr(name, png(1))
        found = open_dataset(path)
        assert found.classes == ("a",)
        assert len(found) == 1
        assert list(tmp_path.iterdir()) == [path]

    def test_a_file_that_vanishes_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "1.png").write_bytes(png(1))
        found = open_dataset(tmp_path)
        (tmp_path / "a" / "1.png").unlink()
        with pytest.raises(BadPicture, match=r"a/1\.png: can't be read \(No such file"):
            found.read(0)

    def test_a_link_back_up_ends(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "1.png").write_bytes(png(1))
        (tmp_path / "a" / "up").symlink_to(tmp_path)
        assert len(picture_files([tmp_path])) == 1


class TestDigits:
    def test_split_is_fixed_stratified_and_disjoint(self) -> None:
        train, test = open_dataset("digits", split="train"), open_dataset("digits")
        assert (len(train), len(test)) == (1433, 364)
        assert np.bincount(test.labels).tolist() == [36, 37, 36, 37, 37, 37, 37, 36, 35, 36]
        assert not {train.item_name(i) for i in range(len(train))} & {test.item_name(i) for i in range(len(test))}
        assert train.classes == tuple("0123456789")
        assert test.in_memory

    def test_pictures_are_bytes_of_the_right_digits(self) -> None:
        from sklearn.datasets import load_digits

        digits, test = load_digits(), open_dataset("digits")
        for index in (0, 100, 363):
            item = test.read(index)
            original = int(item.name.removeprefix("digits/"))
            assert isinstance(item.data, np.ndarray)
            assert item.data.shape == (8, 8, 3)
            assert item.data.max() <= 255
            assert np.array_equal(item.data[..., 1], np.rint(digits.images[original] * 255 / 16))
            assert item.label == digits.target[original]


def test_shared_cifar_archive(shared_data: Path) -> None:
    from resnet_onnx.data.labels import cifar10_labels

    test = open_dataset(shared_data / "cifar10-jpeg.zip")
    assert test.classes == cifar10_labels()
    assert np.bincount(test.labels).tolist() == [1000] * 10
    train = open_dataset(shared_data / "cifar10-jpeg.zip", split="train")
    assert (len(train), train.item_name(0)) == (50_000, "train/airplane/0000.jpg")


def test_cifar10_without_network_says_so(tmp_path: Path) -> None:
    code = (
        "from resnet_onnx.data.datasets import open_dataset\n"
        "from runtimes.errors import NetworkUnavailable\n"
        "try: open_dataset('cifar10')\n"
        "except NetworkUnavailable as e: print(e.exit_code, e.message, e.fix)\n"
    )
    refuses = "http://127.0.0.1:9"
    environment = {**os.environ, "RESNET_ONNX_CACHE": str(tmp_path), "HTTPS_PROXY": refuses, "https_proxy": refuses}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("3 --data cifar10 has to be downloaded"), done.stderr
    assert "--data digits" in done.stdout


class TestPictureFiles:
    def test_files_and_folders_in_order(self, tmp_path: Path) -> None:
        for name in ("b/2.png", "b/sub/1.png", "a.png", "b/notes.txt"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(png(1))
        found = picture_files([tmp_path / "b", tmp_path / "a.png"])
        assert [Path(found.item_name(i)).relative_to(tmp_path).as_posix() for i in range(len(found))] == [
            "b/2.png",
            "b/sub/1.png",
            "a.png",
        ]

    def test_nothing_to_find(self, tmp_path: Path) -> None:
        with pytest.raises(BadData, match="no such file or folder"):
            picture_files([tmp_path / "x.jpg"])
        with pytest.raises(BadData, match="no pictures in this folder"):
            picture_files([tmp_path])
        with pytest.raises(BadData, match="no pictures were given"):
            picture_files([])


class TestFromArrays:
    def test_values(self) -> None:
        pictures = np.zeros((2, 4, 4, 3), np.uint8)
        found = from_arrays("mine", pictures, [1, 0], ["x", "y"])
        assert found.read(0).label == 1
        assert not from_arrays("mine", pictures).labelled

    def test_misfits(self) -> None:
        pictures = np.zeros((2, 4, 4, 3), np.uint8)
        with pytest.raises(BadData, match="expected uint8"):
            from_arrays("mine", pictures.astype(np.float32))  # type: ignore[arg-type]
        for labels in ([0], [0, 2], [-1, 0]):
            with pytest.raises(BadData, match="labels need one index"):
                from_arrays("mine", pictures, labels, ["x", "y"])


def test_importing_loads_neither_torch_nor_sklearn() -> None:
    code = (
        "import sys, resnet_onnx.data.datasets, resnet_onnx.data.labels, resnet_onnx.data.batches,"
        "resnet_onnx.data.samples, resnet_onnx.evaluation, resnet_onnx.prediction\n"
        "print([m for m in ('torch', 'torchvision', 'sklearn', 'PIL', 'matplotlib', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
