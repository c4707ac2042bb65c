"""The splits of a training: pictures to learn from, to choose the best epoch by, and to test the choice on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.data.batches import Batches
from resnet_onnx.data.datasets import PictureSet, open_splits
from resnet_onnx.data.labels import code_page_note
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.results.document import SkippedPicture
from runtimes.errors import BadData


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The pictures of one training.

    Attributes:
        train: To learn from.
        validation: To choose the best epoch by; None until ``with_validation``, where the data set has no ``val``.
        test: Never used in a choice; None where the data set has none.
        notes: What the user should know of how the data was read.

    Raises:
        BadData: Unlabelled, one class only, an empty class, or splits with different classes.
    """

    train: PictureSet
    validation: PictureSet | None = None
    test: PictureSet | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        train, classes = self.train, self.train.classes
        layout = "put the pictures of each class into a folder of its own: CLASS/*.jpg or train/CLASS/*.jpg"
        if not train.labelled:
            raise BadData(f"{train.name} has no class folders, so there is nothing to learn", fix=layout)
        if len(classes) < 2:
            raise BadData(f"{train.name} has one class ({classes[0]}); a classifier needs at least two", fix=layout)
        for other in (self.validation, self.test):
            if other is not None and other.classes != classes:
                odd = sorted(set(other.classes) ^ set(classes)) or ["their order"]
                raise BadData(
                    f"{other.name} has {len(other.classes)} classes and {train.name} has {len(classes)}; "
                    f"they differ in {', '.join(odd[:5])}",
                    fix="give every split the same class folders",
                )
        counts = np.bincount(train.labels, minlength=len(classes))
        if not counts.all():
            empty = [classes[i] for i in np.flatnonzero(counts == 0)]
            raise BadData(
                f"{train.name} has no pictures of {', '.join(empty[:5])}", fix="add some, or remove the empty classes"
            )

    def with_validation(self, share: float, seed: int) -> TrainingData:
        """Returns the same data with `share` of every class held out of `train`, where there is no validation yet.

        Raises:
            BadData: There are too few pictures to hold any out.
        """
        if self.validation is not None or share == 0:
            return self
        kept, held = hold_out(self.train.labels, share, seed)
        if not len(held):
            raise BadData(
                f"{self.train.name} has one picture of each class: too few to hold some out for validation",
                fix="add pictures, or train without validation (share 0)",
            )
        return replace(self, train=self.train.subset(kept), validation=self.train.subset(held))

    def unreadable(self, preprocessing: Preprocessing, workers: int) -> dict[str, list[SkippedPicture]]:
        """Decodes every picture once, in `workers` processes or here, and returns those that can't be, by split."""
        found: dict[str, list[SkippedPicture]] = {}
        for name, pictures in self._splits().items():
            with Batches(pictures, preprocessing, batch_size=256, workers=workers, skip_bad=True) as decoded:
                for _ in decoded:
                    pass
                found[name] = list(decoded.skipped)
        return found

    def without(
        self, unreadable: Mapping[str, Sequence[SkippedPicture]], *, at_most: int
    ) -> tuple[TrainingData, tuple[SkippedPicture, ...]]:
        """Returns the data without some pictures, as ``unreadable`` returns them, and what was left out.

        Raises:
            BadData: They are more than `at_most`, or a class or a split has no picture left.
        """
        bad = tuple(one for skipped in unreadable.values() for one in skipped)
        if len(bad) > at_most:
            raise BadData(
                f"{len(bad)} pictures can't be decoded, and at most {at_most} may be left out: "
                f"{'; '.join(one.reason for one in bad[:3])}{'; …' if len(bad) > 3 else ''}",
                fix=f"repair them, or allow more: --skip-bad {len(bad)}",
            )
        kept: dict[str, PictureSet] = {}
        for name, pictures in self._splits().items():
            names = {one.image for one in unreadable.get(name, ())}
            left = [i for i in range(len(pictures)) if pictures.item_name(i) not in names]
            if not left:
                raise BadData(
                    f"{name} of {pictures.name}: none of its {len(pictures)} pictures can be decoded; {bad[0].reason}",
                    fix="repair them, or take that split out",
                )
            kept[name] = pictures.subset(left)
        splits = replace(self, train=kept["train"], validation=kept.get("validation"), test=kept.get("test"))
        return splits, bad

    def _splits(self) -> dict[str, PictureSet]:
        found = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: pictures for name, pictures in found.items() if pictures is not None}

    def fingerprint(self) -> dict[str, dict[str, Any] | None]:
        """Returns plain values that identify the pictures by name, class and order, without reading them."""
        sets = {"train": self.train, "validation": self.validation}
        return {
            name: None if pictures is None else {"pictures": len(pictures), "sha256": names_sha256(pictures)}
            for name, pictures in sets.items()
        }


def names_sha256(pictures: PictureSet) -> str:
    """Returns a hash that identifies pictures by name, class and order, without reading them."""
    digest = hashlib.sha256()
    for index, label in enumerate(pictures.labels.tolist()):
        digest.update(f"{label} {pictures.item_name(index)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def open_training_data(spec: str) -> TrainingData:
    """Opens what ``--data`` names for training.

    ``train`` is learned from, ``val`` (``valid``, ``validation``) chooses the best epoch, ``test`` is only ever for the
    final figure, and is left out where it has no labels. Without ``val`` some of ``train`` will be held out; without
    splits everything is ``train``.

    Raises:
        BadData: Not there, or not fit for training.
        NetworkUnavailable: It has to be downloaded and can't be.
    """
    splits = open_splits(spec, "train", "validation", "test")
    train, validation, test = splits["train"], splits.get("validation"), splits.get("test")
    uses = {"to learn from": train, "to choose the best epoch by": validation, "for the final figure": test}
    folders = [
        f"{one.split}/ {use}" for use, one in uses.items() if one is not None and one.split and not one.in_memory
    ]
    notes = [", ".join(folders)] if folders else []
    notes += [note for one in splits.values() for note in one.notes]
    if train.spellings:
        notes += filter(None, [code_page_note(*next(iter(train.spellings.items())))])
    return TrainingData(train=train, validation=validation, test=test, notes=tuple(notes))


def hold_out(labels: NDArray[np.int64], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Splits indices by class: `share` of each, at least one picture where there are two, never all of them.

    Returns:
        Indices to train on and held-out indices, each rising.
    """
    rng = np.random.default_rng([seed, 0x5EED])
    held = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        held.append(members[: min(max(1, round(share * len(members))), len(members) - 1)])
    chosen = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen
