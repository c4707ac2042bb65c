"""Splits and class folders among the names of a folder or .zip."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from resnet_onnx.data.formats import SUFFIXES, by_ending, left_out_note
from resnet_onnx.data.listing import CODE_PAGES, Listing
from runtimes.errors import BadData

Split = Literal["train", "test", "validation"]
"""The requested part of a set with splits: ``test`` to evaluate, ``train`` to calibrate and to train."""

LAYOUT = "expected CLASS/*.jpg, or train/CLASS/*.jpg with test/CLASS/*.jpg or val/CLASS/*.jpg"

_ROLES: Mapping[str, Split] = {
    "train": "train",
    "test": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
"""What a split folder is for, by its name in lower case."""
_TAKEN: Mapping[Split, tuple[Split, ...]] = {
    "train": ("train",),
    "test": ("test", "validation"),
    "validation": ("validation",),
}
"""Roles whose pictures serve for a split, the first one first."""
_SHOWN = 5


class NoSplit(BadData):
    """A data set has splits, but not the requested one."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The pictures of one split, or of a set without splits.

    Attributes:
        folder: The split folder as it is written, or None.
        classes: Class names, sorted; empty for an unlabelled set.
        files: Names of the pictures in the order of their classes.
        counts: Pictures per class.
        spellings: Where nothing says what names are encoded in: the class names by code page.
        left_out: How many files were passed over, by ending.
        choice: Which of several split folders was taken and why, in words; or "".
        notes: What the user should know of how the data was read.
    """

    folder: str | None
    classes: tuple[str, ...]
    files: tuple[str, ...]
    counts: tuple[int, ...]
    spellings: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, int]
    choice: str
    notes: tuple[str, ...]


class Layout:
    """Where splits and class folders lie among listed names.

    Args:
        name: What messages call the data set.
        listing: Its names.

    Raises:
        BadData: There is no picture.
    """

    def __init__(self, name: str, listing: Listing) -> None:
        self._name, self._listing = name, listing
        if not listing.pictures:
            raise BadData(
                f"--data '{name}': no pictures in it; looked for {', '.join(sorted(SUFFIXES))} and, by their first "
                f"bytes, under other endings{_beside(listing.others)}",
                fix=f"name another one; {LAYOUT}",
            )
        self._prefix, self._splits = self._find_root()

    @property
    def has_splits(self) -> bool:
        """Whether there are split folders."""
        return bool(self._splits)

    def part(self, split: Split, *, first: bool = True) -> Part:
        """Returns the pictures of a split; all of them where there are no splits.

        Args:
            split: Which one.
            first: Whether it is the first or only one of this set that is used: the folder for validation then serves
                for ``test`` where that is missing or has no labels, and what lies outside of the split folders counts.

        Raises:
            NoSplit: There are splits, but not this one.
            BadData: Empty, or not laid out as class folders.
        """
        if not self._splits:
            return self._read(self._prefix, self._listing.others, notes=self._listing.notes)
        folder, reason = self._choose(split, _TAKEN[split] if first else (split,))
        prefix = f"{self._prefix}{folder}/"
        if not first:
            return self._read(prefix, [file for file in self._listing.others if file.startswith(prefix)], folder=folder)
        splits = tuple(f"{self._prefix}{other}/" for other in self._splits)
        beside = ", ".join(f"{other}/" for other in self._splits if other != folder)
        choice = f"the pictures of {folder}/ are used" + (f" (beside it: {beside})" if beside else "") + reason
        stray = [file for file in self._listing.pictures if not file.startswith(splits)]
        note = f"{_pictures(len(stray))} outside of the split folders left out ({stray[0]} first)" if stray else ""
        others = [file for file in self._listing.others if file.startswith(prefix) or not file.startswith(splits)]
        notes = (*self._listing.notes, *([note] if note else []))
        return self._read(prefix, others, folder=folder, choice=choice, notes=notes)

    def _find_root(self) -> tuple[str, tuple[str, ...]]:
        """Returns the prefix under which the class or split folders lie, and the split folders that hold pictures."""
        prefix = ""
        for _ in range(2):
            inside = [file[len(prefix) :] for file in self._listing.pictures]
            tops = {file.split("/")[0] for file in inside if "/" in file}
            splits = {top for top in tops if top.casefold() in _ROLES}
            deep = {file.split("/")[0] for file in inside if file.count("/") >= 2}
            # A class may be named "train": split folders are recognised by what lies in them, or by being all there is.
            if splits and (splits & deep or splits == tops):
                return prefix, tuple(sorted(splits))
            if len(tops) != 1 or not all(file.count("/") >= 2 for file in inside):
                break
            prefix = f"{prefix}{next(iter(tops))}/"  # the one folder around everything that archives often have
        return prefix, ()

    def unlabelled(self, role: Split) -> str | None:
        """Returns the folder of a split whose pictures have no labels, as one for a competition, or None."""
        return next((folder for folder in self._folders(role) if not self._labelled(folder)), None)

    def _folders(self, role: Split) -> list[str]:
        return [folder for folder in self._splits if _ROLES[folder.casefold()] == role]

    def _choose(self, split: Split, roles: Sequence[Split]) -> tuple[str, str]:
        """Returns the split folder to take, and why it is not the first choice."""
        unlabelled: list[str] = []
        for role in roles:
            present = self._folders(role)
            if len(present) > 1:
                raise BadData(
                    f"--data '{self._name}': {' and '.join(f'{folder}/' for folder in present)} are both there, and "
                    "either may be meant",
                    fix="keep one of them",
                )
            if not present:
                self._refuse_empty(role)
            elif role == "train" or self._labelled(present[0]):
                reason = f": {unlabelled[0]}/ has pictures without labels" if unlabelled else ""
                return present[0], reason
            else:
                unlabelled += present
        if unlabelled:
            return unlabelled[0], ""
        needed = [name for role in roles for name in _ROLES if _ROLES[name] == role and name != "valid"]
        example = f"{self._prefix}{needed[0]}/CLASS/*.jpg"
        raise NoSplit(
            f"--data '{self._name}': has {', '.join(self._splits)} but no {' or '.join(needed)}, which is needed here",
            fix=f"add {example}" + ("" if split == "train" else ", with pictures that are not in train"),
        )

    def _refuse_empty(self, role: Split) -> None:
        for folder in self._listing.folders:
            parent, _, last = folder.rpartition("/")
            if parent == self._prefix.rstrip("/") and _ROLES.get(last.casefold()) == role:
                held = [file for file in self._listing.others if file.startswith(f"{folder}/")]
                raise BadData(
                    f"--data '{self._name}': no pictures in the folder {folder}{_beside(held)}",
                    fix="fill it or remove it",
                )

    def _labelled(self, folder: str) -> bool:
        """Whether a split has class folders; one folder that no split for training knows is a bag for all pictures."""
        classes = self._classes(folder)
        known = {name for other in self._splits if other.casefold() == "train" for name in self._classes(other)}
        return len(classes) > 1 or bool(classes and (not known or classes <= known))

    def _classes(self, folder: str) -> set[str]:
        prefix = f"{self._prefix}{folder}/"
        inside = (file[len(prefix) :] for file in self._listing.pictures if file.startswith(prefix))
        return {_composed(name) for name in {file.partition("/")[0] for file in inside if "/" in file}}

    def _read(
        self,
        prefix: str,
        others: Sequence[str],
        *,
        folder: str | None = None,
        choice: str = "",
        notes: tuple[str, ...] = (),
    ) -> Part:
        by_class: dict[str, list[str]] = defaultdict(list)
        flat: list[str] = []
        for file in self._listing.pictures:
            if not file.startswith(prefix):
                continue
            first, *rest = file[len(prefix) :].split("/")
            if not rest:
                flat.append(file)
            elif len(rest) == 1:
                by_class[first].append(file)
            else:
                raise BadData(
                    f"--data '{self._name}': {file} lies deeper than a class folder; {LAYOUT}",
                    fix="name a folder, or make a .zip, whose class folders hold the pictures directly",
                )
        left_out = by_ending(others)
        if left_out:
            notes += (left_out_note(left_out, f"{folder}/" if folder and not choice else ""),)
        if by_class:
            self._check_classes(prefix, by_class, flat)
        names = sorted(by_class, key=_composed)
        return Part(
            folder=folder,
            classes=tuple(_composed(name) for name in names),
            files=tuple(file for name in names for file in by_class[name]) if names else tuple(flat),
            counts=tuple(len(by_class[name]) for name in names),
            spellings=self._spellings(prefix, [by_class[name][0] for name in names], names),
            left_out=left_out,
            choice=choice,
            notes=notes,
        )

    def _check_classes(self, prefix: str, by_class: Mapping[str, Sequence[str]], flat: Sequence[str]) -> None:
        if flat:
            raise BadData(
                f"--data '{self._name}': {len(flat)} pictures lie beside the class folders, {flat[0]} first; {LAYOUT}",
                fix="move them into their class folders or away",
            )
        inside = (folder for folder in self._listing.folders if folder.startswith(prefix) and folder != prefix)
        empty = sorted({folder[len(prefix) :].split("/")[0] for folder in inside} - set(by_class) - {""})
        if empty:
            held = [file for file in self._listing.others if file.startswith(tuple(f"{prefix}{e}/" for e in empty))]
            raise BadData(
                f"--data '{self._name}': no pictures in class folder "
                f"{', '.join(prefix + folder for folder in empty[:_SHOWN])}{_beside(held)}",
                fix="fill it or remove it",
            )
        for name in by_class:
            if any("\ud800" <= sign <= "\udfff" for sign in name):  # no model file could hold it as a label
                raise BadData(
                    f"--data '{self._name}': the name of the class folder {prefix}{name!r} is not UTF-8",
                    fix="rename it",
                )
        for name, count in Counter(map(_composed, by_class)).items():
            if count > 1:
                raise BadData(
                    f"--data '{self._name}': {count} class folders are called {prefix}{name}, with another composition "
                    "of accents (Unicode NFC and NFD)",
                    fix="put their pictures into one of them",
                )

    def _spellings(self, prefix: str, files: Sequence[str], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Returns the class names in every code page that they may be written in; files are the first of each class."""
        raw, depth = self._listing.raw, prefix.count("/")
        # A name that is not in `raw` is certain, whatever the others are written in.
        stored = [raw[file].split(b"/")[depth] if file in raw else None for file in files]
        if all(part is None or part.isascii() for part in stored):
            return {}
        found = {}
        for page in CODE_PAGES:
            try:
                decoded = tuple(
                    _composed(name if part is None else part.decode(page))
                    for part, name in zip(stored, names, strict=True)
                )
            except UnicodeDecodeError:
                continue
            if all(name.isprintable() for name in decoded):
                found[page] = decoded
        return found


def _composed(name: str) -> str:
    """Returns a name with its accents composed (NFC), as most systems but macOS write them."""
    return unicodedata.normalize("NFC", name)


def _pictures(count: int) -> str:
    return f"{count} {'picture' if count == 1 else 'pictures'}"


def _beside(others: Sequence[str]) -> str:
    """Says which other files there are where pictures were expected."""
    return f" ({left_out_note(by_ending(others))})" if others else ""
