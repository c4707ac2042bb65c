"""What ``--data`` may name: a folder or .zip of class folders, a flat folder of pictures, ``digits``, ``cifar10``.

A ``PictureSet`` lists its pictures in a fixed order and hands out their bytes one by one; nothing is decoded here and
nothing is extracted. It is picklable, and a copy in a worker process opens its own file.
"""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet_onnx.data.pictures import MAX_BYTES, SUFFIXES
from runtimes.errors import BadData, BadPicture, NetworkUnavailable

Split = Literal["train", "test", "validation"]
"""The requested part of a set with splits: ``test`` to evaluate, ``train`` to calibrate and to train."""

NAMED_SETS = ("digits", "cifar10")
"""Data sets that are known by name."""

UNLABELLED = -1
"""The label of a picture that has none."""

_SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "test": ("test", "val", "validation"),
    "validation": ("val", "validation"),
}
_ALL_SPLIT_FOLDERS = frozenset(name for names in _SPLIT_FOLDERS.values() for name in names)
_ZIP_FAULTS = (OSError, KeyError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error)
"""What the zipfile module raises on damaged archives (``NotImplementedError`` for odd methods is a RuntimeError)."""
_LAYOUT = "expected CLASS/*.jpg, or train/CLASS/*.jpg with test/CLASS/*.jpg or val/CLASS/*.jpg"
_DIGITS_TEST_EVERY = 5
"""Every fifth picture of each class of ``digits`` is for testing: 20 %, stratified, the same on every machine."""


class NoSplit(BadData):
    """A data set has splits, but not the requested one."""


@dataclass(frozen=True)
class Item:
    """One picture as it is stored.

    Attributes:
        name: What messages and results call it.
        data: The bytes of a picture file, or uint8 [height, width, 3] where the set holds decoded pictures.
        label: Index into the set's ``classes``, or ``UNLABELLED``.
    """

    name: str
    data: bytes | NDArray[np.uint8]
    label: int


class PictureSource(ABC):
    """Where pictures come from; `names` fixes their order."""

    in_memory = False

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    @abstractmethod
    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """Returns the picture's file bytes, or its pixels.

        Raises:
            BadPicture: It can't be read.
        """


class FileSource(PictureSource):
    """Picture files on disk.

    Args:
        paths: The files.
        names: What to call them; their paths where it is not given.
    """

    def __init__(self, paths: Sequence[Path], names: Sequence[str] | None = None) -> None:
        super().__init__(names if names is not None else [str(path) for path in paths])
        self.paths = tuple(paths)

    def read(self, index: int) -> bytes:
        """Returns the file's bytes; see ``PictureSource.read``."""
        path = self.paths[index]
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise BadPicture(f"{self.names[index]}: no regular file")  # reading a pipe may never end
            size = found.st_size
            if size > MAX_BYTES:
                raise BadPicture(f"{self.names[index]}: {size:,} bytes; pictures of up to {MAX_BYTES:,} are read")
            return path.read_bytes()
        except OSError as error:
            raise BadPicture(f"{self.names[index]}: can't be read ({error.strerror or error})") from error


class ZipSource(PictureSource):
    """Members of a .zip, read in place; every process opens the archive for itself.

    Args:
        archive: The .zip.
        members: Their names inside it.
    """

    def __init__(self, archive: Path, members: Sequence[str]) -> None:
        super().__init__(members)
        self.archive = archive
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def read(self, index: int) -> bytes:
        """Returns the member's bytes; see ``PictureSource.read``."""
        member = self.names[index]
        try:
            archive = self._archive()
            info = archive.getinfo(member)
            if info.file_size > MAX_BYTES:
                raise BadPicture(f"{member}: {info.file_size:,} bytes; pictures of up to {MAX_BYTES:,} are read")
            return archive.read(info)
        except _ZIP_FAULTS as error:
            raise BadPicture(
                f"{member} in {self.archive}: can't be read ({error})", fix="make the .zip anew"
            ) from error

    def _archive(self) -> zipfile.ZipFile:
        # A forked child shares its parent's file position, so that a handle is good only in the process that made it.
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), zipfile.ZipFile(self.archive))
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


class ArraySource(PictureSource):
    """Decoded pictures in memory.

    Args:
        pictures: uint8 [n, height, width, 3], RGB.
        names: One name a picture.
    """

    in_memory = True

    def __init__(self, pictures: NDArray[np.uint8], names: Sequence[str]) -> None:
        super().__init__(names)
        self.pictures = pictures

    def read(self, index: int) -> NDArray[np.uint8]:
        """Returns uint8 [height, width, 3]."""
        picture: NDArray[np.uint8] = self.pictures[index]
        return picture


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureSet:
    """Pictures in a fixed order, with or without labels.

    Attributes:
        name: Its name as the user gave it, and the split that was taken.
        classes: Class names in the order of the labels; empty for an unlabelled set.
        labels: int64 [n], index into `classes`, or ``UNLABELLED``.
        split: The split that was taken, or None where the set has none and training and testing see the same pictures.
        source: Where the bytes come from.
        positions: int64 [n], each picture's place in `source`.
    """

    name: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    split: str | None
    source: PictureSource
    positions: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def labelled(self) -> bool:
        """Whether the pictures have labels."""
        return bool(self.classes)

    @property
    def in_memory(self) -> bool:
        """Whether the pictures are decoded already, so that worker processes would only cost."""
        return self.source.in_memory

    def item_name(self, index: int) -> str:
        """Returns the picture's name without reading it."""
        return self.source.names[int(self.positions[index])]

    def read(self, index: int) -> Item:
        """Reads one picture.

        Raises:
            BadPicture: It can't be read.
        """
        position = int(self.positions[index])
        return Item(self.source.names[position], self.source.read(position), int(self.labels[index]))

    def subset(self, indices: ArrayLike) -> PictureSet:
        """Returns the pictures at `indices` (repeats allowed), with the same classes."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(self, labels=self.labels[chosen], positions=self.positions[chosen])


def open_dataset(spec: str | Path, *, split: Split = "test") -> PictureSet:
    """Opens what ``--data`` names.

    Args:
        spec: ``digits``, ``cifar10``, a folder or a .zip. A folder whose name is a data set's is given as ``./digits``.
        split: ``test`` takes ``test``, ``val`` or ``validation``, in this order; ``validation`` the last two. A set
            without splits gives all of its pictures for any, and its ``split`` is then None.

    Raises:
        NoSplit: It has splits, but not this one.
        BadData: Not there, empty, damaged, or not laid out as class folders.
        NetworkUnavailable: ``cifar10`` has to be downloaded and can't be.
    """
    text = str(spec)
    if text in NAMED_SETS and split == "validation":
        raise NoSplit(f"--data {text} has no pictures for validation", fix="hold some of the training pictures out")
    if text == "digits":
        return _digits(split)
    if text == "cifar10":
        return _cifar10(split)
    path = Path(text)
    if not text or not path.exists():
        raise BadData(
            f"--data '{text}': no such file or folder; expected a folder, a .zip, or one of {', '.join(NAMED_SETS)}",
            fix="check the path, or use --data digits, which needs no files",
        )
    if path.is_dir():
        files, folders = _walk(path)
        return _from_layout(
            text, files, folders, split, lambda chosen: FileSource([path / file for file in chosen], chosen)
        )
    files, folders = _list_zip(path)
    return _from_layout(text, files, folders, split, lambda chosen: ZipSource(path, chosen))


def picture_files(paths: Iterable[Path]) -> PictureSet:
    """Makes an unlabelled set of single files and of whole folders.

    Args:
        paths: Files are taken whatever their names; folders give every picture below them, in sorted order.

    Raises:
        BadData: A path is not there, a folder holds no picture, or nothing was given.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            files, _ = _walk(path)
            if not files:
                raise BadData(
                    f"{path}: no pictures in this folder; looked for {', '.join(SUFFIXES)}", fix="name another folder"
                )
            found.extend(path / file for file in files)
        elif path.exists():
            found.append(path)
        else:
            raise BadData(f"{path}: no such file or folder", fix="check the path")
    if not found:
        raise BadData("no pictures were given", fix="name picture files or folders of them")
    return _unlabelled("pictures", None, FileSource(found))


def from_arrays(
    name: str, pictures: NDArray[np.uint8], labels: ArrayLike | None = None, classes: Sequence[str] = ()
) -> PictureSet:
    """Makes a set of pictures in memory.

    Args:
        name: What results call it.
        pictures: uint8 [n, height, width, 3], RGB.
        labels: [n], index into `classes`; None for an unlabelled set.
        classes: Class names.

    Raises:
        BadData: Shapes, dtypes or labels do not fit together.
    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or len(pictures) == 0:
        raise BadData(f"{name}: expected uint8 [n, height, width, 3], not {pictures.dtype} {list(pictures.shape)}")
    source = ArraySource(pictures, [f"{name}/{index:05d}" for index in range(len(pictures))])
    if labels is None:
        return _unlabelled(name, None, source)
    indices = np.asarray(labels, dtype=np.int64)
    if indices.shape != (len(pictures),) or indices.min() < 0 or indices.max() >= len(classes):
        raise BadData(f"{name}: labels need one index below {len(classes)} for each of {len(pictures)} pictures")
    return PictureSet(
        name=name,
        classes=tuple(classes),
        labels=indices,
        split=None,
        source=source,
        positions=np.arange(len(pictures), dtype=np.int64),
    )


def _unlabelled(name: str, split: str | None, source: PictureSource) -> PictureSet:
    count = len(source.names)
    return PictureSet(
        name=name,
        classes=(),
        labels=np.full(count, UNLABELLED, dtype=np.int64),
        split=split,
        source=source,
        positions=np.arange(count, dtype=np.int64),
    )


def _is_hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith((".", "/")) or part == "__MACOSX" for part in parts)


def _walk(root: Path) -> tuple[list[str], set[str]]:
    """Returns picture files and folders below `root`, relative, with forward slashes, sorted; hidden ones left out."""
    files: list[str] = []
    folders: set[str] = set()

    def refuse(error: OSError) -> None:
        raise BadData(f"{error.filename}: can't be listed ({error.strerror})", fix="check the folder's permissions")

    seen: set[tuple[int, int]] = set()
    for folder, below, names in os.walk(root, onerror=refuse, followlinks=True):
        status = os.stat(folder)
        relative = PurePosixPath(Path(folder).relative_to(root).as_posix())
        if (status.st_dev, status.st_ino) in seen:  # a link back up would be walked for ever
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below[:] = sorted(name for name in below if not _is_hidden([name]))
        folders.update(str(relative / name) for name in below)
        files.extend(
            str(relative / name) for name in names if name.lower().endswith(SUFFIXES) and not _is_hidden([name])
        )
    return sorted(files), folders


def _list_zip(path: Path) -> tuple[list[str], set[str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except _ZIP_FAULTS as error:
        raise BadData(
            f"--data '{path}': can't be read as a .zip ({error}); a file given as data must be a .zip of class folders",
            fix="name a folder or an undamaged .zip",
        ) from error
    files: set[str] = set()
    folders: set[str] = set()
    for member in members:
        parts = PurePosixPath(member.filename).parts
        if _is_hidden(parts):  # also ".." and absolute names: such members are never read
            continue
        if member.is_dir():
            folders.add(str(PurePosixPath(member.filename)))
        elif member.filename.lower().endswith(SUFFIXES):
            if member.flag_bits & 0x1:
                raise BadData(
                    f"--data '{path}': {member.filename} is encrypted", fix="make the .zip without a password"
                )
            files.add(member.filename)
        folders.update(str(parent) for parent in PurePosixPath(member.filename).parents if parent.parts)
    return sorted(files), folders


def _from_layout(
    name: str, files: list[str], folders: set[str], split: Split, source: Callable[[list[str]], PictureSource]
) -> PictureSet:
    """Finds class folders among `files` and makes the set; `source` turns chosen files into a ``PictureSource``."""
    if not files:
        raise BadData(
            f"--data '{name}': no pictures in it; looked for {', '.join(SUFFIXES)}", fix=f"name another one; {_LAYOUT}"
        )
    prefix, taken = _find_root(name, files, folders, split)
    inside = [file for file in files if file.startswith(prefix)]
    by_class: dict[str, list[str]] = defaultdict(list)
    flat: list[str] = []
    for file in inside:
        parts = file[len(prefix) :].split("/")
        if len(parts) == 1:
            flat.append(file)
        elif len(parts) == 2:
            by_class[parts[0]].append(file)
        else:
            raise BadData(
                f"--data '{name}': {file} lies deeper than a class folder; {_LAYOUT}",
                fix="name a folder, or make a .zip, whose class folders hold the pictures directly",
            )
    label = f"{name} ({taken})" if taken else name
    if not by_class:
        return _unlabelled(label, taken, source(flat))
    if flat:
        raise BadData(
            f"--data '{name}': {len(flat)} pictures lie beside the class folders, {flat[0]} first; {_LAYOUT}",
            fix="move them into their class folders or away",
        )
    here = {folder[len(prefix) :].split("/")[0] for folder in folders if folder.startswith(prefix) and folder != prefix}
    empty = sorted(here - set(by_class) - {""})
    if empty:
        raise BadData(
            f"--data '{name}': no pictures in class folder {', '.join(prefix + folder for folder in empty[:5])}",
            fix="fill it or remove it",
        )
    classes = tuple(sorted(by_class))
    for class_name in classes:
        if any("\ud800" <= sign <= "\udfff" for sign in class_name):  # no model file could hold it as a label
            raise BadData(
                f"--data '{name}': the name of the class folder {prefix}{class_name!r} is not UTF-8", fix="rename it"
            )
    chosen = [file for class_name in classes for file in by_class[class_name]]
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(by_class[class_name]) for class_name in classes])
    return PictureSet(
        name=label,
        classes=classes,
        labels=labels,
        split=taken,
        source=source(chosen),
        positions=np.arange(len(chosen), dtype=np.int64),
    )


def _find_root(name: str, files: list[str], folders: set[str], split: Split) -> tuple[str, str | None]:
    """Returns the prefix under which the class folders lie, and the split folder that was taken."""
    prefix = ""
    for _ in range(2):
        inside = [file[len(prefix) :] for file in files if file.startswith(prefix)]
        tops = {file.split("/")[0] for file in inside if "/" in file}
        splits = {top for top in tops if top in _ALL_SPLIT_FOLDERS}
        deep = {file.split("/")[0] for file in inside if file.count("/") >= 2}
        # A class may be named "train": split folders are recognised by what lies in them, or by being all there is.
        if splits and (splits & deep or splits == tops):
            empty = {folder[len(prefix) :] for folder in folders if folder.startswith(prefix)} - tops
            return _choose_split(name, prefix, splits, empty, split)
        if len(tops) == 1 and tops <= deep and all("/" in file for file in inside):
            only = next(iter(tops))
            if all(file.count("/") >= 2 for file in inside):
                prefix = f"{prefix}{only}/"  # the one folder around everything that archives often have
                continue
        break
    return prefix, None


def _choose_split(name: str, prefix: str, present: set[str], empty: set[str], split: Split) -> tuple[str, str]:
    for candidate in _SPLIT_FOLDERS[split]:
        if candidate in present:
            return f"{prefix}{candidate}/", candidate
        if candidate in empty:
            raise BadData(f"--data '{name}': no pictures in the folder {prefix}{candidate}", fix="fill it or remove it")
    raise NoSplit(
        f"--data '{name}': has {', '.join(sorted(present))} but no {' or '.join(_SPLIT_FOLDERS[split])}, "
        f"which is needed here",
        fix=f"add it, or name the class folders themselves: {name}/{prefix}{sorted(present)[0]}",
    )


def _digits(split: Split) -> PictureSet:
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = np.asarray(digits.target, dtype=np.int64)
    grey = np.rint(np.asarray(digits.images) * (255.0 / 16.0)).astype(np.uint8)  # the pictures have 17 grey levels
    for_test = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        for_test[np.flatnonzero(labels == digit)[::_DIGITS_TEST_EVERY]] = True
    chosen = np.flatnonzero(for_test if split == "test" else ~for_test)
    pictures = np.ascontiguousarray(np.repeat(grey[:, :, :, None], 3, axis=3))
    return PictureSet(
        name=f"digits ({split})",
        classes=tuple(str(digit) for digit in range(10)),
        labels=labels[chosen],
        split=split,
        source=ArraySource(pictures, [f"digits/{index:04d}" for index in range(len(pictures))]),
        positions=chosen.astype(np.int64),
    )


def _cifar10(split: Split) -> PictureSet:
    from urllib.error import URLError

    from torchvision.datasets import CIFAR10

    from runtimes.files import cache_dir

    folder = cache_dir("datasets", "cifar10")
    try:
        loaded = CIFAR10(root=str(folder), train=split == "train", download=True)
    except (URLError, OSError, RuntimeError) as error:
        raise NetworkUnavailable(
            f"--data cifar10 has to be downloaded into {folder}, and that failed ({error})",
            fix="connect to the network, or give a folder or .zip of CIFAR-10 pictures, or use --data digits",
        ) from error
    pictures = np.ascontiguousarray(loaded.data, dtype=np.uint8)
    return PictureSet(
        name=f"cifar10 ({split})",
        classes=tuple(loaded.classes),
        labels=np.asarray(loaded.targets, dtype=np.int64),
        split=split,
        source=ArraySource(pictures, [f"cifar10/{split}/{index:05d}" for index in range(len(pictures))]),
        positions=np.arange(len(pictures), dtype=np.int64),
    )
