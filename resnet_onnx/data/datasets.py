"""What ``--data`` may name: a folder or .zip of class folders, a flat folder of pictures, ``digits``, ``cifar10``.

A ``PictureSet`` lists its pictures in a fixed order and hands out their bytes one by one; nothing is decoded here and
nothing is extracted. It is picklable, and a copy in a worker process opens its own file.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet_onnx.data.formats import SUFFIXES, by_ending, left_out_note
from resnet_onnx.data.layout import Layout, NoSplit, Part, Split
from resnet_onnx.data.listing import ZIP_FAULTS, Listing, list_folder, list_zip
from resnet_onnx.data.pictures import MAX_BYTES
from runtimes.errors import BadData, BadPicture, NetworkUnavailable
from runtimes.files import read_bounded

NAMED_SETS = ("digits", "cifar10")
"""Data sets that are known by name."""

UNLABELLED = -1
"""The label of a picture that has none."""

_DIGITS_TEST_EVERY = 5
"""Every fifth picture of each class of ``digits`` is for testing: 20 %, stratified, the same on every machine."""


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
            size = path.stat().st_size
            if size > MAX_BYTES:
                raise BadPicture(f"{self.names[index]}: {size:,} bytes; pictures of up to {MAX_BYTES:,} are read")
            return read_bounded(path, MAX_BYTES)
        except OSError as error:
            raise BadPicture(f"{self.names[index]}: can't be read ({error.strerror or error})") from error


class ZipSource(PictureSource):
    """Members of a .zip, read in place; every process opens the archive for itself.

    Args:
        archive: The .zip.
        members: What to call them.
        stored: What the archive calls them, where that differs.
    """

    def __init__(self, archive: Path, members: Sequence[str], stored: Mapping[str, str]) -> None:
        super().__init__(members)
        self.archive = archive
        self._stored = {name: stored[name] for name in members if name in stored}
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def read(self, index: int) -> bytes:
        """Returns the member's bytes; see ``PictureSource.read``."""
        member = self.names[index]
        try:
            archive = self._archive()
            info = archive.getinfo(self._stored.get(member, member))
            if info.file_size > MAX_BYTES:
                raise BadPicture(f"{member}: {info.file_size:,} bytes; pictures of up to {MAX_BYTES:,} are read")
            return archive.read(info)
        except ZIP_FAULTS as error:
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
        notes: What the user should know of how the data was read.
        choice: Which of several split folders was taken and why, in words; or "".
        left_out: How many files were passed over because they are not pictures that can be read, by ending.
        spellings: Where nothing says what class names are encoded in: the names by code page, in the order of
            `classes`, which are one of them.
    """

    name: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    split: str | None
    source: PictureSource
    positions: NDArray[np.int64]
    notes: tuple[str, ...] = ()
    choice: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)
    spellings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

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
        split: ``test`` takes ``test`` or, where that is missing or has no labels, ``val``, ``valid`` or ``validation``;
            ``validation`` the last three; upper or lower case. A set without splits gives all of its pictures for any,
            and its ``split`` is then None.

    Raises:
        NoSplit: It has splits, but not this one.
        BadData: Not there, empty, damaged, or not laid out as class folders.
        NetworkUnavailable: ``cifar10`` has to be downloaded and can't be.
    """
    found = open_splits(spec, split)[split]
    return replace(found, notes=(found.choice, *found.notes) if found.choice else found.notes)


def open_splits(spec: str | Path, first: Split, *others: Split) -> dict[Split, PictureSet]:
    """Opens several splits of what ``--data`` names, which is listed once.

    Args:
        spec: As for ``open_dataset``.
        first: A split that has to be there.
        others: Further ones, each from a folder of its own; those without pictures or without labels are not in the
            result, and for the latter a note of `first` says so.

    Raises:
        NoSplit: There are splits, but not `first`.
        BadData: As for ``open_dataset``.
        NetworkUnavailable: As for ``open_dataset``.
    """
    text = str(spec)
    if text in NAMED_SETS:
        if first == "validation":
            raise NoSplit(f"--data {text} has no pictures for validation", fix="hold some of the training pictures out")
        load = _digits if text == "digits" else _cifar10
        return {split: load(split) for split in (first, *others) if split != "validation"}
    path = Path(text)
    if not text or not path.exists():
        raise BadData(
            f"--data '{text}': no such file or folder; expected a folder, a .zip, or one of {', '.join(NAMED_SETS)}",
            fix="check the path, or use --data digits, which needs no files",
        )
    listing = list_folder(path) if path.is_dir() else list_zip(path)
    layout = Layout(text, listing)
    source = _folder_source(path) if path.is_dir() else _zip_source(path, listing)
    found: dict[Split, PictureSet] = {first: _from_part(text, layout.part(first), source)}
    notes = []
    for split in others if layout.has_splits else ():
        if folder := layout.unlabelled(split):
            notes.append(f"{folder}/ has pictures without labels and is not used")
            continue
        with contextlib.suppress(NoSplit):
            found[split] = _from_part(text, layout.part(split, first=False), source)
    found[first] = replace(found[first], notes=(*found[first].notes, *notes))
    return found


def _folder_source(path: Path) -> Callable[[Sequence[str]], PictureSource]:
    return lambda chosen: FileSource([path / file for file in chosen], chosen)


def _zip_source(path: Path, listing: Listing) -> Callable[[Sequence[str]], PictureSource]:
    return lambda chosen: ZipSource(path, chosen, listing.stored)


def _from_part(name: str, part: Part, source: Callable[[Sequence[str]], PictureSource]) -> PictureSet:
    labels = np.repeat(np.arange(len(part.classes), dtype=np.int64), part.counts)
    return PictureSet(
        name=f"{name} ({part.folder})" if part.folder else name,
        classes=part.classes,
        labels=labels if part.classes else np.full(len(part.files), UNLABELLED, dtype=np.int64),
        split=part.folder and part.folder.casefold(),
        source=source(part.files),
        positions=np.arange(len(part.files), dtype=np.int64),
        notes=part.notes,
        choice=part.choice,
        left_out=part.left_out,
        spellings=part.spellings,
    )


def picture_files(paths: Iterable[Path]) -> PictureSet:
    """Makes an unlabelled set of single files and of whole folders.

    Args:
        paths: Files are taken whatever their names; folders give every picture below them, in sorted order.

    Raises:
        BadData: A path is not there, a folder holds no picture, or nothing was given.
    """
    found: list[Path] = []
    others: list[str] = []
    for path in paths:
        if path.is_dir():
            listing = list_folder(path)
            others.extend(listing.others)
            if not listing.pictures:
                passed = f" ({left_out_note(by_ending(listing.others))})" if listing.others else ""
                raise BadData(
                    f"{path}: no pictures in this folder; looked for {', '.join(sorted(SUFFIXES))} and, by their first "
                    f"bytes, under other endings{passed}",
                    fix="name another folder",
                )
            found.extend(path / file for file in listing.pictures)
        elif path.exists():
            found.append(path)
        else:
            raise BadData(f"{path}: no such file or folder", fix="check the path")
    if not found:
        raise BadData("no pictures were given", fix="name picture files or folders of them")
    left_out = by_ending(others)
    notes = (left_out_note(left_out),) if left_out else ()
    return replace(_unlabelled("pictures", None, FileSource(found)), notes=notes, left_out=left_out)


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
