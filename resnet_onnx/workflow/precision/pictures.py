"""Which pictures calibrate a conversion, which choose, and which judge."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.data.feeds import filled
from resnet_onnx.parity.budget import LABELLED_NEEDED
from resnet_onnx.workflow.accuracy import class_count
from resnet_onnx.workflow.feeds import feeds_of, sample_feeds, takes_pictures
from resnet_onnx.workflow.onnx_form import onnx_path
from resnet_onnx.workflow.precision.wishes import Wishes
from resnet_onnx.workflow.request import Model, refuse_special
from resnet_onnx.workflow.resolving import classes_of
from runtimes import onnx_gate
from runtimes.errors import BadData, BadModel, BadPicture, UnsupportedModel, UsageError
from runtimes.registry import open_runtime
from runtimes.spec import Feeds, ModelSource

if TYPE_CHECKING:
    from resnet_onnx.data.datasets import PictureSet

_CHOOSING = 1_024
_BATCH = 32

Judged = tuple[Feeds, int | None, NDArray[np.int64] | None]
"""Feeds, how many of their samples count (None: all), and the right outputs where they are known."""

_FEW = 64
"""With fewer pictures held out than three times this, those that choose between methods judge too."""


class Pictures:
    """Which pictures calibrate, which choose between methods, and which judge.

    None serves twice, but where a set without splits is small: then those that choose also judge.

    Attributes:
        pictures: Whether the model takes pictures.
        chance: Top-1 that a guess reaches on the labelled pictures that judge: the share of their largest class.
        skipped: Names of the pictures that were left out because they can't be decoded.
    """

    def __init__(self, model: Model, wishes: Wishes) -> None:
        self._model, self._wishes = model, wishes
        self._calibrating: PictureSet | None = None
        self._judging: PictureSet | None = None
        self._choosing: PictureSet | None = None
        self._targets: NDArray[np.int64] | None = None
        self.chance = 1.0
        self.skipped: dict[str, str] = {}
        self.pictures = takes_pictures(model)
        if wishes.calibration is None:
            if wishes.to == "int8" and model.trained is not False:
                if not self.pictures:
                    raise UnsupportedModel(
                        f"int8 takes its ranges from real pictures, and {model.name} takes none (RGB, as NCHW or NHWC)",
                        fix="--to fp16 or bf16, which need none",
                    )
                raise UsageError(
                    "int8 takes its ranges from real pictures, and none were named",
                    fix="--calibration D: a folder or .zip of pictures like those that the model will see",
                )
            return
        if not self.pictures:
            raise UsageError(f"{model.name} takes no RGB pictures, so that --calibration can't be used")
        self._split(wishes.calibration)

    def _split(self, name: str) -> None:
        from resnet_onnx.data.datasets import open_dataset
        from resnet_onnx.data.labels import match_classes

        refuse_special(Path(name), BadData)
        wishes = self._wishes
        train = open_dataset(name, split="train")
        order = np.random.default_rng(wishes.seed).permutation(len(train))
        if train.split is None:
            used = min(wishes.pictures, max(1, 4 * len(train) // 5))
            rest = order[used:]
            if not len(rest):
                raise BadData(f"--calibration '{name}' has one picture, and some must be held out", fix="name more")
            # Pictures that choose between methods must not judge the choice, where there are enough of both.
            apart = min(_CHOOSING, len(rest) // 3)
            choosing, kept = (rest[:apart], rest[apart:]) if apart >= _FEW else (rest, rest)
            judging = train.subset(np.sort(kept[: wishes.held_out]))
        else:
            used = min(wishes.pictures, max(1, 4 * len(train) // 5))
            choosing = order[used : used + _CHOOSING]
            test = open_dataset(name, split="test")
            size = min(len(test), wishes.held_out)
            judging = test.subset(np.arange(size) * len(test) // size)
            if not len(choosing):  # there is one picture only
                choosing = order
        self._calibrating = train.subset(order[:used])
        self._choosing = train.subset(choosing[:_CHOOSING])
        self._judging = judging
        if judging.labelled and len(judging) >= LABELLED_NEEDED and self._model.trained is not False:
            path = onnx_path(self._model)
            # Labels that don't name the model's outputs can't judge it; the noise of the outputs still can.
            with contextlib.suppress(BadData, BadModel):
                classes = classes_of(onnx_gate.check_onnx(path).outputs)
                if classes is None:
                    with open_runtime("ort-cpu", ModelSource(path=path, label=self._model.name)) as opened:
                        classes = class_count(self._model, opened)
                places = match_classes(judging.classes, self._model.labels, classes)
                self._targets = places[judging.labels]
                self.chance = float(np.bincount(judging.labels).max() / len(judging))

    def described(self) -> dict[str, Any]:
        """Returns what the record says of the calibration pictures."""
        if self._calibrating is None:
            return {"data": "crops of sample photos", "images": self._wishes.pictures, "seed": self._wishes.seed}
        seen = hashlib.sha256()
        used = [i for i in range(len(self._calibrating)) if self._calibrating.item_name(i) not in self.skipped]
        for index in used:
            data = self._calibrating.read(index).data
            seen.update(hashlib.sha256(data if isinstance(data, bytes) else np.ascontiguousarray(data).data).digest())
        return {
            "data": self._calibrating.name,
            "images": max(len(used), self._wishes.pictures if self._crops else 0),
            "files": len(used),
            "skipped": len(self._calibrating) - len(used),
            "seed": self._wishes.seed,
            "sha256": seen.hexdigest(),
        }

    @property
    def _crops(self) -> bool:
        """Whether there are fewer files than calibration pictures asked for, so that each is cropped several times."""
        found = self._calibrating
        side = self._model.preprocessing.image_size if self._model.preprocessing else 0
        return found is not None and len(found) < self._wishes.pictures and side >= 64 and self._wishes.to == "int8"

    def calibration(self, batch: int) -> Iterator[Feeds]:
        """Yields feeds of the calibration pictures."""
        count = self._wishes.pictures
        if self._calibrating is None:
            size = self._model.form.batch or batch
            for start in range(0, count, size):
                yield sample_feeds(self._model, size, seed=self._wishes.seed + start)
            return
        if self._crops:
            yield from self._cropped(count, batch)
            return
        for feeds, _ in self._batches(self._calibrating.subset(np.arange(min(count, len(self._calibrating)))), batch):
            yield feeds

    def _cropped(self, count: int, batch: int) -> Iterator[Feeds]:
        from resnet_onnx.data.batches import decoded_picture
        from resnet_onnx.data.transforms import prepare

        found, preprocessing = self._calibrating, self._model.preprocessing
        if found is None or preprocessing is None:
            return
        random = np.random.default_rng(self._wishes.seed)
        size = self._model.form.batch or batch

        good = list(range(len(found)))
        if self._wishes.skip_bad:
            for index in range(len(found)):
                try:
                    decoded_picture(found, index)
                except BadPicture as error:
                    self.skipped[found.item_name(index)] = error.message
            good = [index for index in good if found.item_name(index) not in self.skipped]
            if not good:
                raise BadData(f"{found.name}: none of the calibration pictures can be decoded")
        for start in range(0, count, size):
            pictures = []
            for number in range(start, start + size):
                pixels = decoded_picture(found, good[number % len(good)])
                if number >= len(good):
                    height, width = pixels.shape[:2]
                    side = max(1, round(min(height, width) * random.uniform(0.5, 1.0)))
                    top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
                    pixels = np.ascontiguousarray(pixels[top : top + side, left : left + side])
                pictures.append(prepare(pixels, preprocessing))
            yield feeds_of(self._model, np.stack(pictures))

    def choosing(self) -> Iterator[Judged]:
        """Yields feeds of pictures that neither calibrate nor judge, where there are enough of them."""
        if self._choosing is None:
            for start in range(0, 64, 8):
                yield self._sample(8, 10_000 + start), None, None
            return
        for feeds, places in self._batches(self._choosing, _BATCH):
            yield feeds, len(places), None

    def held_out(self) -> Iterator[Judged]:
        """Yields feeds of the pictures that judge, and the right outputs where they are known."""
        if self._judging is None:
            for start in range(0, 64, 8):
                yield self._sample(8, 20_000 + start), None, None
            return
        for feeds, places in self._batches(self._judging, _BATCH):
            yield feeds, len(places), None if self._targets is None else self._targets[places]

    def _sample(self, size: int, seed: int) -> Feeds:
        return sample_feeds(self._model, self._model.form.batch or size, seed=self._wishes.seed + seed)

    def _batches(self, pictures: PictureSet, batch: int) -> Iterator[tuple[Feeds, NDArray[np.int64]]]:
        from resnet_onnx.data.batches import Batches

        preprocessing, fixed = self._model.preprocessing, self._model.form.batch
        if preprocessing is None:
            return
        skip = self._wishes.skip_bad
        with Batches(pictures, preprocessing, batch_size=fixed or batch, skip_bad=skip) as found:
            for taken in found:
                self.skipped |= {one.name: one.reason for one in taken.skipped}
                whole, places = taken.pictures, taken.indices
                if not len(whole):
                    continue
                yield feeds_of(self._model, filled(whole, fixed)), places  # `places` says how many count
            self.skipped |= {one.name: one.reason for one in found.skipped}  # after the last good picture, too
