"""Data sets, pictures and label files as people bring them: read right, or refused in one true sentence."""

from __future__ import annotations

import os
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import features

from resnet_onnx.data import listing
from resnet_onnx.data.datasets import open_dataset, open_splits
from resnet_onnx.data.formats import format_of, is_picture, left_out_note
from resnet_onnx.data.label_files import Labels, read_label_file
from resnet_onnx.data.labels import (
    Outputs,
    cifar10_labels,
    imagenet_labels,
    imagenet_wordnet_ids,
    match_outputs,
    read_labels,
)
from resnet_onnx.data.pictures import decode
from resnet_onnx.training.splits import open_training_data
from runtimes.errors import BadData, BadPicture, FileProblem, UsageError
from tests.support.colours import COLOURS, PLAIN, Files, Run, classes, colour_model, encoded, write_folder

WORDS = ("ash", "birch", "cedar", "dogwood", "elm", "fir", "gum", "hazel", "ilex", "juniper", "kauri", "larch")
LINES = ("one", "two", "three")


def heic() -> bytes:
    return b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


def write_zip(root: Path, files: Files) -> Path:
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture(params=[write_folder, write_zip], ids=["folder", "zip"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Files], Path]:
    return lambda files: request.param(tmp_path / "set", files)  # type: ignore[no-any-return]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    return lambda *line: Run(capfd, *line)


@pytest.fixture
def labels_file(tmp_path: Path) -> Callable[..., Path]:
    def write(content: str | bytes, name: str = "labels.txt") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


# ---- pictures --------------------------------------------------------------------------------------------------------

MEMBERS: dict[str, str] = {
    ".jpg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".JPEG": "JPEG", ".png": "PNG", ".webp": "WEBP", ".tif": "TIFF",
    ".avif": "AVIF", ".image": "JPEG", "": "PNG", ".data": "GIF", ".x": "BMP", ".y": "PPM", ".z": "AVIF",
}  # fmt: skip
"""Endings, and what is in the files: the last six are not known."""


class TestPicturesByContent:
    def test_every_ending_and_none(self, written: Callable[[Files], Path]) -> None:
        assert features.check("avif")
        files = {f"a/{i}{suffix}": encoded(3, form) for i, (suffix, form) in enumerate(MEMBERS.items())}
        found = open_dataset(written(files | {"b/0.png": encoded(1)}))
        assert len(found) == len(MEMBERS) + 1
        assert not found.notes
        for index in range(len(MEMBERS)):
            item = found.read(index)
            assert isinstance(item.data, bytes)
            assert np.abs(decode(item.data, item.name).astype(int)[4, 4] - COLOURS[3]).max() <= 8, item.name

    def test_what_is_left_out_is_counted_and_named_by_ending(self, written: Callable[[Files], Path]) -> None:
        files = classes(["cat", "dog"]) | {f"cat/{i}.txt": b"notes" for i in range(10)}
        files |= {"dog/a.heic": heic(), "dog/b.HEIC": heic(), "LICENSE": b"words"}
        found = open_dataset(written(files))
        assert len(found) == 4
        assert found.left_out == {".txt": 10, ".heic": 2, "without an ending": 1}
        assert found.notes == ("13 files left out: 10 .txt, 2 .heic (HEIC, which can't be read), 1 without an ending",)

    def test_files_of_systems_are_left_out_in_silence(self, written: Callable[[Files], Path]) -> None:
        junk = ["cat/.DS_Store", "cat/Thumbs.db", "cat/._0.png", "__MACOSX/cat/._0.png", "desktop.ini",
                ".ipynb_checkpoints/0.png", "cat/@eaDir/0.png/thumb.jpg"]  # fmt: skip
        found = open_dataset(written(classes(["cat", "dog"]) | dict.fromkeys(junk, b"\0\5\x16\7")))
        assert (len(found), found.notes, found.left_out) == (4, (), {})

    def test_known_endings_are_not_opened(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = write_folder(tmp_path, classes(["a", "b"]) | {"a/notes.txt": b"x", "a/unknown": encoded(0)})
        opened: list[str] = []
        head = listing._head
        monkeypatch.setattr(listing, "_head", lambda path: opened.append(path) or head(path))
        assert len(open_dataset(root)) == 5
        assert opened == [f"{root}/a/unknown"]

    def test_a_pipe_without_an_ending_is_not_opened(self, tmp_path: Path) -> None:
        root = write_folder(tmp_path, classes(["a", "b"]))
        os.mkfifo(root / "a" / "pipe")
        assert len(open_dataset(root)) == 4

    @pytest.mark.parametrize(
        ("head", "form"),
        [
            (heic()[:64], "HEIC"),
            (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
            (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf", "HEIC"),
            (b"\0\0\0\x18ftypisom\0\0\0\0isommp41", None),
            (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
            (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
            (b"II*\0\x10\0\0\0CR\2\0", "camera raw"),
            (b"8BPS\0\1", "Photoshop"),
            (b"BMW and other makers of cars", None),
            (b"P5 is a norm", None),
            (b"", None),
        ],
    )
    def test_first_bytes(self, head: bytes, form: str | None) -> None:
        assert format_of(head) == form

    def test_a_format_that_cannot_be_read_is_named_whatever_the_file_is_called(self) -> None:
        with pytest.raises(BadPicture, match=r"photo\.jpg: a HEIC picture, which can't be read") as refused:
            decode(heic(), "photo.jpg")
        assert "convert" in (refused.value.fix or "")
        assert not is_picture("a.dng", lambda: b"II*\0" + bytes(60))  # begins like TIFF, and holds a small preview

    def test_class_of_heic_alone_says_what_is_in_it(self, written: Callable[[Files], Path]) -> None:
        with pytest.raises(BadData, match=r"no pictures in class folder dog \(1 file left out: 1 \.heic \(HEIC"):
            open_dataset(written(classes(["cat"]) | {"dog/1.heic": heic()}))

    def test_many_endings_are_summed_up_and_signs_of_control_stay_out(self) -> None:
        files = listing.Listing(pictures=(), folders=frozenset(), others=tuple(f"x.e{i}" for i in range(9)))
        from resnet_onnx.data.formats import by_ending

        note = left_out_note(by_ending([*files.others, "y.\x1b[31m", "e.heic"]))
        assert note.startswith("11 files left out: 1 .e0, ")
        assert note.endswith("1 .heic (HEIC, which can't be read) and 4 others")
        assert "\x1b" not in note

    def test_evaluate_counts_them_all(self, run: Callable[..., Run], tmp_path: Path) -> None:
        files = {f"{word}/{i}{suffix}": encoded(place, "JPEG") for place, word in enumerate(WORDS[:3])
                 for i, suffix in enumerate((".jpg", ".jfif", ".unheard"))}  # fmt: skip
        data = write_folder(tmp_path / "set", files | {"ash/a.txt": b"x"})
        model = colour_model(tmp_path / "net.onnx", range(3))
        labels = tmp_path / "l.txt"
        labels.write_text("\n".join(WORDS[:3]))
        found = run("evaluate", model, *PLAIN, "--data", data, "--labels", labels)
        assert (found.code, found.result["top1"], found.result["images"]) == (0, 1.0, 9)
        assert "1 file left out: 1 .txt" in found.result["notes"]
        assert "1 file left out: 1 .txt" in found.stderr


# ---- splits ----------------------------------------------------------------------------------------------------------


class TestSplits:
    @pytest.mark.parametrize("train", ["train", "Train", "TRAIN"])
    @pytest.mark.parametrize("held", ["test", "Test", "val", "Val", "valid", "VALID", "validation", "Validation"])
    def test_names_in_any_case(self, tmp_path: Path, train: str, held: str) -> None:
        files = classes(["a", "b"], f"{train}/", 3) | classes(["a", "b"], f"{held}/", 1)
        root = write_folder(tmp_path, files)
        found = open_dataset(root)
        assert (len(found), found.split) == (2, held.casefold())
        assert found.notes == (f"the pictures of {held}/ are used (beside it: {train}/)",)
        assert len(open_dataset(root, split="train")) == 6
        data = open_training_data(str(root))
        other = data.test if held.casefold() == "test" else data.validation
        assert other is not None
        assert (len(data.train), len(other)) == (6, 2)
        purpose = "for the final figure" if held.casefold() == "test" else "to choose the best epoch by"
        assert data.notes == (f"train/ to learn from, {held.casefold()}/ {purpose}",)

    def test_three_splits_of_roboflow(self, written: Callable[[Files], Path]) -> None:
        files = {
            k: v for i, s in enumerate(("train", "valid", "test")) for k, v in classes("ab", f"{s}/", i + 1).items()
        }
        path = written(files)
        found = open_splits(path, "train", "validation", "test")
        assert {split: len(pictures) for split, pictures in found.items()} == {"train": 2, "validation": 4, "test": 6}
        assert len(open_dataset(path)) == 6

    @pytest.mark.parametrize("unlabelled", [("test/1.png", "test/2.png"), ("test/unknown/1.png", "test/unknown/2.png")])
    def test_unlabelled_test_neither_stops_training_nor_hides_val(
        self, written: Callable[[Files], Path], unlabelled: tuple[str, ...]
    ) -> None:
        files = classes(["a", "b"], "train/", 3) | classes(["a", "b"], "val/") | dict.fromkeys(unlabelled, encoded(3))
        path = written(files)
        found = open_dataset(path)
        assert (len(found), found.split, found.classes) == (4, "val", ("a", "b"))
        assert "test/ has pictures without labels" in found.notes[0]
        data = open_training_data(str(path))
        assert data.test is None
        assert data.validation is not None
        assert "test/ has pictures without labels and is not used" in data.notes

    def test_unlabelled_test_alone(self, written: Callable[[Files], Path]) -> None:
        path = written(classes(["a", "b"], "train/", 3) | {"test/1.png": encoded(1)})
        assert not open_dataset(path).labelled
        data = open_training_data(str(path))
        assert (len(data.train), data.validation, data.test) == (6, None, None)
        assert "test/ has pictures without labels and is not used" in data.notes

    def test_no_fix_points_at_training_pictures(
        self, run: Callable[..., Run], tmp_path: Path, written: Callable[[Files], Path]
    ) -> None:
        model = colour_model(tmp_path / "net.onnx", range(2))
        path = written(classes(["a", "b"], "train/"))
        found = run("evaluate", model, *PLAIN, "--data", path)
        assert found.code == 2
        assert found.error.endswith("add test/CLASS/*.jpg, with pictures that are not in train")
        kaggle = write_folder(tmp_path / "k", classes(["a", "b"], "train/") | {"test/1.png": encoded(0)})
        found = run("evaluate", model, *PLAIN, "--data", kaggle)
        assert found.code == 2
        assert "have no labels" in found.error
        assert "/train" not in found.error

    def test_two_folders_for_one_purpose(self, written: Callable[[Files], Path]) -> None:
        path = written(classes("ab", "train/") | classes("ab", "val/") | classes("ab", "valid/"))
        with pytest.raises(BadData, match="val/ and valid/ are both there"):
            open_dataset(path)
        assert len(open_dataset(path, split="train")) == 4

    def test_pictures_beside_the_splits_are_counted(self, written: Callable[[Files], Path]) -> None:
        path = written(classes("ab", "train/") | classes("ab", "test/") | classes("ab", "extra/") | {"x.md": b"x"})
        notes = open_dataset(path).notes
        assert "4 pictures outside of the split folders left out (extra/a/0.png first)" in notes
        assert "1 file left out: 1 .md" in notes

    def test_what_is_left_out_of_other_splits_is_not_counted(self, written: Callable[[Files], Path]) -> None:
        path = written(classes("ab", "train/") | classes("ab", "test/") | {"train/a/1.txt": b"x", "test/b/1.csv": b"x"})
        assert open_dataset(path).left_out == {".csv": 1}
        assert open_dataset(path, split="train").left_out == {".txt": 1}
        notes = open_training_data(str(path)).notes
        assert notes[1:] == ("1 file left out: 1 .txt", "1 file of test/ left out: 1 .csv")


# ---- class order -----------------------------------------------------------------------------------------------------


class TestNumberedFolders:
    """Folders 0 … 11 and a model whose outputs are in ImageFolder's order of them, without labels."""

    NAMES = tuple(str(number) for number in range(12))
    ORDER = tuple(sorted(NAMES))

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        return colour_model(tmp_path / "net.onnx", [int(name) for name in self.ORDER])

    def evaluate(self, run: Callable[..., Run], tmp_path: Path, model: Path, *more: object) -> Run:
        data = write_folder(tmp_path / "set", classes(self.NAMES, count=1))
        return run("evaluate", model, *PLAIN, "--data", data, *more)

    def test_ambiguous_is_asked(self, run: Callable[..., Run], tmp_path: Path, model: Path) -> None:
        found = self.evaluate(run, tmp_path, model)
        assert found.code == 2
        assert "by number output 0 is 0, 1 is 1, 2 is 2" in found.error
        assert "by name output 0 is 0, 1 is 1, 2 is 10" in found.error
        assert "--class-order number or --class-order name" in found.error

    @pytest.mark.parametrize(("order", "top1"), [("name", 1.0), ("number", 2 / 12)])
    def test_the_option_decides(
        self, run: Callable[..., Run], tmp_path: Path, model: Path, order: str, top1: float
    ) -> None:
        found = self.evaluate(run, tmp_path, model, "--class-order", order)
        assert (found.code, found.result["top1"]) == (0, pytest.approx(top1))
        assert any(f"--class-order {order}" in note for note in found.result["notes"])

    def test_ten_are_not_ambiguous_and_always_said(self) -> None:
        found = match_outputs(sorted(map(str, range(10))), Outputs(count=10))
        assert (found.outputs.tolist(), found.by) == (list(range(10)), "number")
        assert "by their number" in found.notes[0]

    def test_from_one_to_ten_are_ambiguous_too(self) -> None:
        names = sorted(str(number) for number in range(1, 11))
        with pytest.raises(UsageError, match="two orders are possible"):
            match_outputs(names, Outputs(count=10))
        found = match_outputs(names, Outputs(count=10), class_order="number")
        assert found.outputs.tolist() == [int(name) - 1 for name in names]
        # A model that has names for its outputs knows their order: the numbers count them.
        found = match_outputs(names, Outputs(count=10, labels=cifar10_labels()))
        assert found.outputs.tolist() == [int(name) - 1 for name in names]
        assert "by their number" in found.notes[0]

    def test_leading_zeros_leave_one_order(self) -> None:
        names = [f"{number:02d}" for number in range(12)]
        assert match_outputs(names, Outputs(count=12)).outputs.tolist() == list(range(12))

    def test_some_numbers_of_a_model_without_labels(self) -> None:
        with pytest.raises(BadData, match="without labels") as refused:
            match_outputs(["3", "7"], Outputs(count=10))
        assert "--class-order number" in (refused.value.fix or "")
        assert match_outputs(["3", "7"], Outputs(count=10), class_order="number").outputs.tolist() == [3, 7]

    def test_an_order_that_cannot_be(self) -> None:
        with pytest.raises(UsageError, match="class folder 'x' is not a number"):
            match_outputs(["1", "x"], Outputs(count=2), class_order="number")
        with pytest.raises(BadData, match="nor by order"):
            match_outputs(["1", "2"], Outputs(count=3), class_order="name")

    def test_names_go_before_the_option(self) -> None:
        found = match_outputs(self.ORDER, Outputs(count=12, labels=self.ORDER), class_order="number")
        assert (found.outputs.tolist(), found.by) == (list(range(12)), "name")
        assert "was not needed" in found.notes[0]

    def test_conversion_asks_too(
        self, run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from resnet_onnx.workflow.precision import pictures

        monkeypatch.setattr(pictures, "LABELLED_NEEDED", 2)
        model = colour_model(tmp_path / "net.onnx", [int(name) for name in self.ORDER])
        data = write_folder(tmp_path / "set", classes(self.NAMES, count=1))
        line = ("convert", model, *PLAIN, "--to", "fp16", "--calibration", data, "--output", tmp_path / "half.onnx")
        found = run(*line)
        assert found.code == 2
        assert "two orders are possible" in found.error
        found = run(*line, "--class-order", "name")
        assert found.code == 0, found.result
        assert any("--class-order name" in note for note in found.result["notes"])


# ---- names from other systems ----------------------------------------------------------------------------------------


class TestNamesFromOtherSystems:
    @pytest.mark.parametrize("form", ["NFC", "NFD"])
    def test_unicode_forms(self, written: Callable[[Files], Path], form: Any) -> None:
        labels = ["avión", "pájaro"]
        found = open_dataset(written(classes([unicodedata.normalize(form, name) for name in labels])))
        for other in ("NFC", "NFD"):
            known = [unicodedata.normalize(other, name) for name in labels]  # type: ignore[arg-type]
            match = match_outputs(found.classes, Outputs(count=2, labels=known))
            assert (match.outputs.tolist(), match.by) == ([0, 1], "name")
        assert found.classes == tuple(labels)

    def test_unicode_forms_differ_between_splits(self, written: Callable[[Files], Path]) -> None:
        train, test = (unicodedata.normalize(form, "pájaro") for form in ("NFC", "NFD"))
        data = open_training_data(str(written(classes([train, "x"], "train/", 3) | classes([test, "x"], "test/"))))
        assert data.test is not None

    def test_two_folders_of_one_name(self, written: Callable[[Files], Path]) -> None:
        names = [unicodedata.normalize(form, "pájaro") for form in ("NFC", "NFD")]  # type: ignore[arg-type]
        with pytest.raises(BadData, match="2 class folders are called pájaro"):
            open_dataset(written(classes(names)))

    def test_backslashes_in_a_zip(self, tmp_path: Path) -> None:
        files = classes(["cat", "dog"], "set/")
        found = open_dataset(write_zip(tmp_path / "w", {name.replace("/", "\\"): data for name, data in files.items()}))
        assert found.classes == ("cat", "dog")
        assert found.read(2).data == encoded(1)
        assert found.item_name(0) == "set/cat/0.png"
        assert found.notes == ("names in the .zip are written with backslashes, which were read as folders",)

    def test_backslashes_that_climb_out(self, tmp_path: Path) -> None:
        files = classes(["cat", "dog"]) | {"../../evil.png": encoded(1), "/etc/evil.png": encoded(1)}
        found = open_dataset(write_zip(tmp_path / "w", {name.replace("/", "\\"): data for name, data in files.items()}))
        assert len(found) == 4
        assert "2 files of the .zip left out: their names lead outside of it" in found.notes

    def in_page(self, path: Path, names: Sequence[str], page: str) -> Path:
        """A .zip whose names are in a code page, and that does not say so."""
        stand_ins = [chr(65 + i) * len(name.encode(page)) + "Z" * i for i, name in enumerate(names)]
        raw = [name.encode(page) + b"Z" * i for i, name in enumerate(names)]
        data = write_zip(path, classes(stand_ins)).read_bytes()
        for stand_in, name in zip(stand_ins, raw, strict=True):
            data = data.replace(stand_in.encode() + b"/", name + b"/")
        path.with_suffix(".zip").write_bytes(data)
        return path.with_suffix(".zip")

    @pytest.mark.parametrize(
        ("page", "names"),
        [
            ("cp866", ("кот", "собакаZ")),
            ("gb18030", ("猫", "小狗Z")),
            ("cp932", ("表", "いぬZ")),  # 表 has a backslash as its second byte
            ("cp437", ("mädchen", "jüngeZ")),
            ("cp1251", ("кот", "собакаZ")),
        ],
    )
    def test_code_pages(self, tmp_path: Path, page: str, names: tuple[str, ...]) -> None:
        plain = [name.rstrip("Z") for name in names]
        found = open_dataset(self.in_page(tmp_path / "w", plain, page))
        match = match_outputs(
            found.classes, Outputs(count=3, labels=["other", *reversed(names)]), spellings=found.spellings
        )
        assert sorted(match.outputs.tolist()) == [1, 2]
        assert match.by == "name"
        assert f"read in code page {page}" in match.notes[0]
        assert isinstance(found.read(0).data, bytes)

    def test_a_code_page_that_nothing_tells_is_said(self, tmp_path: Path) -> None:
        path = self.in_page(tmp_path / "w", ["кот", "собака"], "cp866")
        found = open_dataset(path)
        match = match_outputs(found.classes, Outputs(count=2), spellings=found.spellings)
        assert match.by == "order"
        assert "read in code page cp437 (¬«Γ, ß«íá¬áZ)" in match.notes[0]
        assert any("read in code page cp437" in note for note in open_training_data(str(path)).notes)

    @pytest.mark.parametrize("how", ["flag", "no flag", "extra field"])
    def test_utf8_names_need_no_code_page(self, tmp_path: Path, how: str) -> None:
        path = write_zip(tmp_path / "w", classes(["кот", "пёс"]))
        if how == "no flag":
            data = bytearray(path.read_bytes())
            for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
                at = data.find(mark)
                while at >= 0:
                    data[at + offset + 1] &= ~0x08 & 0xFF
                    at = data.find(mark, at + 4)
            path.write_bytes(data)
        elif how == "extra field":
            with zipfile.ZipFile(path, "w") as archive:
                for i, name in enumerate(("кот/0.png", "пёс/0.png")):
                    info = zipfile.ZipInfo(f"X{i}/0.png")
                    stored = f"é{i}/0.png".encode("cp437")
                    value = b"\1" + struct.pack("<I", zlib.crc32(stored)) + name.encode()
                    info.extra = struct.pack("<HH", 0x7075, len(value)) + value
                    archive.writestr(info, encoded(i))
            data = bytearray(path.read_bytes())
            for i in range(2):
                data = data.replace(f"X{i}/0".encode(), f"é{i}/0".encode("cp437"))
            path.write_bytes(data)
        found = open_dataset(path)
        assert found.classes == ("кот", "пёс")
        match = match_outputs(found.classes, Outputs(count=2, labels=("пёс", "кот")), spellings=found.spellings)
        assert (match.outputs.tolist(), match.notes) == ([1, 0], ())
        assert isinstance(found.read(1).data, bytes)

    def test_methods_of_compression(self, tmp_path: Path) -> None:
        path = write_zip(tmp_path / "w", classes(["a"]))
        data = bytearray(path.read_bytes())
        for mark, offset in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
            at = data.find(mark)
            while at >= 0:
                struct.pack_into("<H", data, at + offset, 9)
                at = data.find(mark, at + 4)
        path.write_bytes(data)
        with pytest.raises(BadData, match=r"a/0\.png is compressed by method 9, which can't be read"):
            open_dataset(path)


# ---- label files -----------------------------------------------------------------------------------------------------

NUMBERED = "labels were read as NUMBER LABEL a line"
LABEL_FILES: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "one a line": ("one\ntwo\nthree\n", ()),
    "one a line, CR": ("one\rtwo\rthree", ()),
    "one a line, CR LF and BOM": (b"\xef\xbb\xbfone\r\ntwo\r\nthree\r\n", ()),
    "UTF-16": ("one\r\ntwo\r\nthree\r\n".encode("utf-16"), ()),
    "UTF-16 without a mark": ("one\r\ntwo\r\nthree\r\n".encode("utf-16-le"), ()),
    "UTF-16, big end first": (b"\xfe\xff" + "one\ntwo\nthree".encode("utf-16-be"), ()),
    "UTF-32": ("one\ntwo\nthree".encode("utf-32"), ()),
    "numbers": ("0 one\n1 two\n2 three\n", (NUMBERED,)),
    "numbers and colons": ("0: one\n1: two\n2: three\n", (NUMBERED,)),
    "numbers in another order": ("2 three\n0 one\n1 two\n", (NUMBERED,)),
    "numbers from one": ("1 one\n2 two\n3 three\n", (f"{NUMBERED}, counted from 1",)),
    "CSV": ("0,one\n1,two\n2,three\n", (NUMBERED,)),
    "CSV with headings": ("id,name\n0,one\n1,two\n2,three\n", (f"{NUMBERED}, below the headings 'id,name'",)),
    "CSV with quotes": ('0,"one"\n1,"two"\n2,"three"\n', (NUMBERED,)),
    "CSV, label first": ("one,0\ntwo,1\nthree,2\n", ("labels were read as LABEL NUMBER a line",)),
    "TSV": ("0\tone\n1\ttwo\n2\tthree\n", (NUMBERED,)),
    "JSON list": ('["one", "two", "three"]', ("labels were read from JSON",)),
    "JSON by number": ('{"2": "three", "0": "one", "1": "two"}', ("labels were read from JSON",)),
    "JSON by label": ('{"two": 1, "one": 0, "three": 2}', ("labels were read from JSON",)),
    "JSON of a configuration": (
        '{"id2label": {"0": "one", "1": "two", "2": "three"}}',
        ("labels were read from JSON",),
    ),
    "Python by number": ("{0: 'one',\n 1: 'two',\n 2: 'three'}", ("labels were read from a Python literal",)),
    "Python by label": ("{'one': 0, 'two': 1, 'three': 2}", ("labels were read from a Python literal",)),
    "Python list": ("['one', 'two', 'three']", ("labels were read from a Python literal",)),
}
WITH_IDS: dict[str, str] = {
    "lines": "n00000001 one\nn00000002 two\nn00000003 three\n",
    "CSV": "n00000001,one\nn00000002,two\nn00000003,three\n",
    "CSV with headings": "wnid,label\nn00000001,one\nn00000002,two\nn00000003,three\n",
    "numbered": "0,n00000001,one\n1,n00000002,two\n2,n00000003,three\n",
    "Keras": '{"0": ["n00000001", "one"], "1": ["n00000002", "two"], "2": ["n00000003", "three"]}',
}
WRONG_FILES: dict[str, tuple[str | bytes, str]] = {
    "gaps": ('{"0": "a", "2": "b"}', "do not run from 0 to 1"),
    "numbers for numbers": ("{0: 1, 1: 0}", "either side may be the label"),
    "no number": ('{"a": "b"}', "'a' is not the number of an output"),
    "cut JSON": ('{"0": "a", ', "begins like JSON and is not"),
    "no labels": ('[["a", "b", "c"]]', "is not a label"),
    "an id is missing": ("n00000001 one\nn00000002 two\nthree\n", "'three' has no WordNet id"),
    "an id twice": ("n00000001 one\nn00000001 two\n", "WordNet id n00000001 stands there twice"),
    "not text": (b"a\n\xff\xfe\n", "not UTF-8 text"),
}


class TestLabelFiles:
    @pytest.mark.parametrize("form", LABEL_FILES)
    def test_forms(self, labels_file: Callable[..., Path], form: str) -> None:
        content, notes = LABEL_FILES[form]
        assert read_label_file(str(labels_file(content))) == Labels(names=LINES, notes=notes)

    @pytest.mark.parametrize("form", WITH_IDS)
    def test_wordnet_ids_are_kept(self, labels_file: Callable[..., Path], form: str) -> None:
        found = read_label_file(str(labels_file(WITH_IDS[form])))
        assert (found.names, found.ids) == (LINES, ("n00000001", "n00000002", "n00000003"))
        assert any("WordNet ids" in note for note in found.notes)

    @pytest.mark.parametrize(
        "lines",
        [
            ("class 0", "class 1", "class 2"),
            ("0", "1", "2"),
            ("3 wheeler", "7 up"),
            ("tench, Tinca tinca", "goldfish, Carassius auratus"),
            ("[unused]", "[cls]"),
        ],
    )
    def test_labels_that_only_look_like_another_form(
        self, labels_file: Callable[..., Path], lines: tuple[str, ...]
    ) -> None:
        assert read_label_file(str(labels_file("\n".join(lines)))) == Labels(names=lines)

    @pytest.mark.parametrize("form", WRONG_FILES)
    def test_refused_in_one_sentence(self, labels_file: Callable[..., Path], form: str) -> None:
        content, message = WRONG_FILES[form]
        with pytest.raises(UsageError, match=message):
            read_label_file(str(labels_file(content)))

    def test_only_a_regular_file_of_bounded_size_is_read(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for path in (str(tmp_path / "pipe"), "/dev/zero"):
            with pytest.raises(FileProblem, match="not a regular file"):
                read_label_file(path)
        with open(tmp_path / "sparse", "wb") as handle:
            handle.truncate(10**10)
        with pytest.raises(UsageError, match="larger than"):
            read_label_file(str(tmp_path / "sparse"))

    def test_a_background_class(self) -> None:
        labels = Labels(names=("background", *LINES))
        assert labels.for_outputs(4, "f") == labels
        assert labels.for_outputs(None, "f") == labels
        found = labels.for_outputs(3, "f")
        assert found.names == LINES
        assert found.notes == ("the first label, background, was left out: 3 outputs, 4 labels",)
        with pytest.raises(UsageError, match=r"f has 3 labels, the model 2 outputs; the first is 'one'"):
            Labels(names=LINES).for_outputs(2, "f")
        found = read_labels("imagenet").for_outputs(1001, "imagenet")
        assert found.names == ("background", *imagenet_labels())
        assert "background" in found.notes[0]

    def test_two_classes_of_one_name(self, labels_file: Callable[..., Path]) -> None:
        labels = read_label_file(str(labels_file("crane\ncat\ncrane\n"))).names
        assert labels == ("crane", "cat", "crane")
        known = Outputs(count=3, labels=labels)
        assert match_outputs(["cat"], known).outputs.tolist() == [1]  # whose own name decides
        for names in (["crane"], ["cat", "crane"], ["crane", "x", "y"]):
            with pytest.raises(BadData, match="'crane' is the label of outputs 0 and 2"):
                match_outputs(names, known)

    def test_two_classes_of_one_name_are_printed(
        self, run: Callable[..., Run], tmp_path: Path, labels_file: Callable[..., Path]
    ) -> None:
        model = colour_model(tmp_path / "net.onnx", range(3))
        picture = write_folder(tmp_path / "p", {"0.png": encoded(2)}) / "0.png"
        found = run("predict", model, *PLAIN, picture, "--labels", labels_file("crane\ncat\ncrane\n"))
        assert found.code == 0
        assert found.result["predictions"][0]["top"][0] | {"probability": 0} == {
            "label": "crane", "index": 2, "probability": 0,
        }  # fmt: skip


class TestWordNetIds:
    IDS = ("n02099601", "n01440764")  # golden retriever (207), tench (0)

    def test_of_a_label_file_whatever_its_order(self) -> None:
        known = Outputs(count=3, labels=["a", "b", "c"], ids=["n01440764", None, "n02099601"])
        assert match_outputs(self.IDS, known).outputs.tolist() == [2, 0]

    @pytest.mark.parametrize("background", [0, 1])
    @pytest.mark.parametrize("spelt", ["torchvision", "synonyms"])
    def test_of_imagenet_by_its_names(self, background: int, spelt: str) -> None:
        names = [name + (", other name" if spelt == "synonyms" else "") for name in imagenet_labels()]
        labels = ["background"] * background + names
        found = match_outputs(self.IDS, Outputs(count=len(labels), labels=labels))
        assert found.outputs.tolist() == [207 + background, background]

    def test_of_some_of_imagenets_classes(self) -> None:
        labels = ["Goldfish", "golden_retriever", "tench, Tinca tinca"]
        assert match_outputs(self.IDS, Outputs(count=3, labels=labels)).outputs.tolist() == [1, 2]

    def test_duplicate_names_do_not_matter_to_ids(self) -> None:
        labels = ["crane" if name == "crane bird" else name for name in imagenet_labels()]
        place = imagenet_wordnet_ids().index("n02012849")
        assert labels[place] == "crane"
        known = Outputs(count=1000, labels=labels)
        assert match_outputs(["n02012849"], known).outputs.tolist() == [place]

    def test_a_model_of_1001_outputs_without_labels_is_not_guessed(self) -> None:
        with pytest.raises(BadData, match="1001 outputs without labels"):
            match_outputs(self.IDS, Outputs(count=1001))

    def test_labels_of_a_file_reach_the_match(
        self, run: Callable[..., Run], tmp_path: Path, labels_file: Callable[..., Path]
    ) -> None:
        model = colour_model(tmp_path / "net.onnx", [1, 0])
        data = write_folder(tmp_path / "set", classes(["n00000001", "n00000002"]))
        labels = labels_file("n00000002 two\nn00000001 one\n")
        found = run("evaluate", model, *PLAIN, "--data", data, "--labels", labels)
        assert (found.code, found.result["top1"], found.result["classes_by"]) == (0, 1.0, "name")
        assert any("WordNet ids" in note for note in found.result["notes"])


# ---- predict ---------------------------------------------------------------------------------------------------------


class TestOneBadPicture:
    @pytest.fixture
    def line(self, tmp_path: Path) -> list[object]:
        files = {"1.png": encoded(0), "2.png": b"", "3.png": encoded(1), "4.jpg": b"<html>404", "5.heic": heic()}
        folder = write_folder(tmp_path / "pics", files)
        return ["predict", colour_model(tmp_path / "net.onnx", range(3)), *PLAIN, folder]

    def test_is_named_and_the_others_are_answered(self, run: Callable[..., Run], line: list[object]) -> None:
        found = run(*line)
        assert found.code == 1
        assert [Path(one["image"]).name for one in found.result["predictions"]] == ["1.png", "3.png"]
        assert [Path(one["image"]).name for one in found.result["skipped"]] == ["2.png", "4.jpg"]
        assert "2 of 4 pictures can't be decoded: exit code 1 (0 with --skip-bad)" in found.stderr
        assert "2.png: the file is empty" in found.stderr
        assert any("1 .heic (HEIC" in note for note in found.result["notes"])

    def test_with_skip_bad_all_is_well(self, run: Callable[..., Run], line: list[object]) -> None:
        found = run(*line, "--skip-bad")
        assert (found.code, len(found.result["predictions"]), len(found.result["skipped"])) == (0, 2, 2)
        assert "2.png: the file is empty" in found.stderr

    def test_nothing_but_bad_pictures(self, run: Callable[..., Run], line: list[object], tmp_path: Path) -> None:
        write_folder(tmp_path / "pics", {"1.png": b"", "3.png": b""})
        found = run(*line)
        assert found.code == 2
        assert "none of the 4 pictures could be decoded" in found.error
        found = run(*line[:-1], tmp_path / "pics" / "1.png")
        assert (found.code, found.result["error"]["kind"]) == (2, "bad-picture")

    def test_evaluate_names_the_option(self, run: Callable[..., Run], line: list[object], tmp_path: Path) -> None:
        data = write_folder(tmp_path / "set", classes(["a", "b", "c"]) | {"b/9.png": b""})
        found = run("evaluate", line[1], *PLAIN, "--data", data)
        assert found.code == 2
        assert "--skip-bad" in found.error
        assert run("evaluate", line[1], *PLAIN, "--data", data, "--skip-bad").result["top1"] == 1.0


def test_notes_of_every_command(run: Callable[..., Run], tmp_path: Path) -> None:
    """Parity, prediction and training say what they left out, on stderr and in the result."""
    files = classes(["a", "b"], "train/", 4) | classes(["a", "b"], "valid/") | {"valid/a/x.heic": heic()}
    data = write_folder(tmp_path / "set", files)
    model = colour_model(tmp_path / "net.onnx", range(2))
    found = run("parity", model, *PLAIN, "--data", data, "--runtimes", "ort-cpu", "--images", "2")
    wanted = "1 file left out: 1 .heic (HEIC, which can't be read)"
    assert found.code == 0
    assert {wanted, "the pictures of valid/ are used (beside it: train/)"} <= set(found.result["notes"])
    assert wanted in found.stderr
    found = run("predict", model, *PLAIN, data)
    assert wanted in found.result["notes"]
    found = run("train", "--model", "cifar-resnet8", "--data", data, "--epochs", "1", "--batch", "4", "--image-size",
                "8", "--recipe", "digits", "--workers", "0", "--out", tmp_path / "run", "--threads", "1")  # fmt: skip
    assert found.code == 0, found.result
    assert "train/ to learn from, valid/ to choose the best epoch by" in found.result["notes"]
    assert "1 file of valid/ left out: 1 .heic (HEIC, which can't be read)" in found.result["notes"]


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> dict[str, list[bytes]]:
    """The first three test pictures of each class of CIFAR-10."""
    with zipfile.ZipFile(shared_data / "cifar10-jpeg.zip") as archive:
        found = sorted(name for name in archive.namelist() if name.startswith("test/") and name.endswith(".jpg"))
        return {
            label: [archive.read(name) for name in [one for one in found if one.startswith(f"test/{label}/")][:3]]
            for label in cifar10_labels()
        }


@pytest.mark.parametrize(
    ("data", "labels", "right", "images"), [("jfif", "cifar10", 41, 50), ("numbered", None, 24, 32)]
)
def test_trained_network_on_real_pictures(
    run: Callable[..., Run],
    tmp_path: Path,
    shared_data: Path,
    photos: dict[str, list[bytes]],
    data: str,
    labels: str | None,
    right: int,
    images: int,
) -> None:
    """The figures of the table of cases, with published weights: 82.00 % of 50 and 75.00 % of 32."""
    import torch

    weights: Path = shared_data / "cifar-resnet20.th"
    if data == "numbered":
        names = cifar10_labels()
        files = {
            f"{n}/{i}.jpg": one for n in range(12) for i, one in enumerate(photos[names[n % 10]][: 3 - 2 * (n > 9)])
        }
        state = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
        rows = sorted(range(12), key=str)
        for name, outside in (("module.linear.weight", 0.0), ("module.linear.bias", -50.0)):
            tensor = state[name]
            state[name] = torch.stack([tensor[n] if n < 10 else torch.full_like(tensor[0], outside) for n in rows])
        weights = tmp_path / "twelve.pth"
        torch.save(state, weights)
    else:
        files = {f"{name}/{i}.jpg": one for name in photos for i, one in enumerate(photos[name][:2])}
        files |= {f"{name}/e{i}.jfif": one for name in photos for i, one in enumerate(photos[name])}
    data_set = write_folder(tmp_path / "set", files)
    line: list[object] = ["evaluate", weights, "--model", "cifar-resnet20", "--runtime", "torch", "--data", data_set]
    line += ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
    line += ["--class-order", "name"] if labels is None else ["--labels", labels]
    result = run(*line).result
    assert (round(result["top1"] * result["images"]), result["images"]) == (right, images)
