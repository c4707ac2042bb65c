"""The pictures of a search: for calibration, for the gate, and portions for decisions that no choice has seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.data.labels import ClassOrder
from resnet_onnx.data.scores import class_axis
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.optimization.candidate import PICTURE_SHARES
from resnet_onnx.workflow.accuracy import class_count, match_pictures
from resnet_onnx.workflow.opening import target
from resnet_onnx.workflow.request import Model, refuse_special
from runtimes.cores import usable_cores
from runtimes.errors import BadData, BadModel, BadPicture
from runtimes.registry import DEFAULT_RUNTIME, open_target
from runtimes.spec import RuntimeOptions

if TYPE_CHECKING:
    from resnet_onnx.data.datasets import PictureSet

FOR_GATE = 5_000
"""Pictures for the gate of a conversion at most, as ``convert`` has them."""

_FOR_CHOICES = 0.4
"""Share of a set without splits that calibrates and passes the gate."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchPictures:
    """What a data set gives to a search. No picture is in two of its parts.

    Attributes:
        calibration: For calibration, and for the choices of a conversion.
        gate: Held out for its gate.
        portions: One for each of ``PICTURE_SHARES``; labelled where accuracy can be judged.
        outputs: The model's output for each class, int64 [classes]; None where accuracy can't be judged.
        unjudged: Why it can't, or "".
        notes: What the user should know of how the data was read.
    """

    calibration: PictureSet
    gate: PictureSet
    portions: tuple[PictureSet, ...]
    outputs: NDArray[np.int64] | None
    unjudged: str = ""
    notes: tuple[str, ...] = ()

    @property
    def chance(self) -> float:
        """Top-1 that a guess reaches: the share of the largest class."""
        labels = self.gate.labels[self.gate.labels >= 0]
        return float(np.bincount(labels).max() / len(labels)) if len(labels) else 1.0

    def limited(self, *, gate: int, judged: int) -> SearchPictures:
        """Returns the same with at most so many pictures for the gate, and in all portions together."""
        total = sum(map(len, self.portions))
        share = min(1.0, judged / max(1, total))
        return replace(
            self,
            gate=_thinned(self.gate, min(1.0, gate / max(1, len(self.gate)))),
            portions=tuple(_thinned(portion, share) for portion in self.portions),
        )


def _thinned(pictures: PictureSet, share: float) -> PictureSet:
    count = min(len(pictures), max(1, round(share * len(pictures))))
    return pictures if share >= 1 else pictures.subset(np.arange(count) * len(pictures) // count)


def open_pictures(model: Model, data: str, *, seed: int = 0, class_order: ClassOrder | None = None) -> SearchPictures:
    """Opens and divides a data set.

    Of a set with splits the training pictures calibrate and pass the gate, and the test pictures judge.

    Raises:
        BadData: `data` can't be opened, or has too few pictures to divide.
    """
    from resnet_onnx.data.datasets import open_dataset

    refuse_special(Path(data), BadData)
    train = open_dataset(data, split="train")
    if train.split is None:
        order = shuffled(train.labels, seed)
        some = portioned(order, (_FOR_CHOICES, 1 - _FOR_CHOICES))
        train, test = train.subset(some[0]), train.subset(some[1])
    else:
        test = open_dataset(data, split="test")
    order = shuffled(train.labels, seed)
    calibrating, gate = portioned(order, (0.5, 0.5))
    if not len(calibrating) or len(test) < len(PICTURE_SHARES):
        raise BadData(f"{data}: has too few pictures to calibrate and to judge with", fix="name a larger data set")
    outputs, unjudged, notes = _outputs(model, test, class_order)
    return SearchPictures(
        calibration=train.subset(calibrating),
        gate=train.subset(gate),
        portions=tuple(test.subset(part) for part in portioned(shuffled(test.labels, seed), PICTURE_SHARES)),
        outputs=outputs,
        unjudged=unjudged,
        notes=tuple(dict.fromkeys((*train.notes, *test.notes, *notes))),
    )


def _outputs(
    model: Model, test: PictureSet, class_order: ClassOrder | None
) -> tuple[NDArray[np.int64] | None, str, tuple[str, ...]]:
    """Returns the model's output for each class, or why there is none, and notes."""
    if not test.labelled:
        return None, f"{test.name} has no labels", ()
    if model.trained is False:
        return None, f"{model.name} has random weights", ()
    try:
        classes = class_axis(model.scores.settled())
        if not isinstance(classes, int):
            with open_target(
                target(model, DEFAULT_RUNTIME, device=None, options=RuntimeOptions(spin=False), batches=(1,))
            ) as opened:
                classes = class_count(model, opened)
        match = match_pictures(model, classes, test, class_order)
    except (BadData, BadModel) as error:
        return None, error.message, ()
    return match.outputs, "", match.notes


def shuffled(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Returns the places of all pictures, class by class, in random order within each class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return order[np.argsort(labels[order], kind="stable")].astype(np.int64)


def portioned(order: NDArray[np.int64], shares: Sequence[float]) -> list[NDArray[np.int64]]:
    """Deals places out in turn, so that neighbours (pictures of a class) are spread over all portions by their shares.

    Each place goes to the portion that lacks most; every portion then has its share within one picture.
    """
    wanted = np.asarray(shares)
    counts = np.zeros(len(wanted), np.int64)
    owner = np.empty(len(order), np.int64)
    for place in range(len(order)):
        portion = int(np.argmax(wanted * (place + 1) - counts))
        owner[place] = portion
        counts[portion] += 1
    return [np.sort(order[owner == portion]) for portion in range(len(wanted))]


def prepared_batches(
    pictures: PictureSet, preprocessing: Preprocessing, sizes: Sequence[int]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Yields batches of the given sizes in turn and the places of their pictures, until all were there.

    Pictures are uint8 [batch, size, size, 3], RGB; those that can't be decoded are left out.
    """
    from resnet_onnx.data.batches import prepared_picture

    def one(place: int) -> NDArray[np.uint8] | None:
        try:
            return prepared_picture(pictures, place, preprocessing)
        except BadPicture:
            return None

    start = turn = 0
    with ThreadPoolExecutor(usable_cores()) as pool:
        while start < len(pictures):
            places = range(start, min(start + sizes[turn % len(sizes)], len(pictures)))
            start, turn = places.stop, turn + 1
            found = [
                (place, each) for place, each in zip(places, pool.map(one, places), strict=True) if each is not None
            ]
            if found:
                yield np.stack([each for _, each in found]), np.array([place for place, _ in found], np.int64)
