"""The pictures of a conversion: for calibration, for validation of its choices, and held out for the gate."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.data.feeds import filled
from resnet_onnx.data.scores import class_axis
from resnet_onnx.parity.budget import LABELLED_NEEDED
from resnet_onnx.workflow.accuracy import class_count, match_pictures
from resnet_onnx.workflow.feeds import feeds_of, need_preprocessing, sample_feeds, takes_pictures
from resnet_onnx.workflow.onnx_form import onnx_path
from resnet_onnx.workflow.precision.config import ConversionConfig
from resnet_onnx.workflow.request import Model, refuse_special
from runtimes.errors import BadData, BadModel, BadPicture, UnsupportedModel, UsageError
from runtimes.registry import open_runtime
from runtimes.spec import Feeds, ModelSource

if TYPE_CHECKING:
    from resnet_onnx.data.datasets import PictureSet

_VALIDATION = 1_024
_BATCH = 32

Samples = tuple[Feeds, int | None, NDArray[np.int64] | None]
"""Feeds, how many of their samples count (None: all), and the right outputs where they are known."""

_FEW = 64
"""With fewer pictures left after calibration than three times this, they serve for validation and for the gate."""


class Pictures:
    """The pictures for calibration, for validation (choice of the method), and held out for the gate.

    None serves twice, but where a set without splits is small: then the held-out pictures serve for validation too.

    Attributes:
        pictures: Whether the model takes pictures.
        chance: Top-1 that a guess reaches on the labelled held-out pictures: the share of their largest class.
        skipped: Names of the pictures that were left out because they can't be decoded.
        notes: What the user should know of how pictures and classes were read.
    """

    def __init__(
        self, model: Model, config: ConversionConfig, sets: tuple[PictureSet, PictureSet] | None = None
    ) -> None:
        self._model, self._config = model, config
        self._calibration: PictureSet | None = None
        self._held_out: PictureSet | None = None
        self._validation: PictureSet | None = None
        self._targets: NDArray[np.int64] | None = None
        self.chance = 1.0
        self.skipped: dict[str, str] = {}
        self.notes: tuple[str, ...] = ()
        self.pictures = takes_pictures(model)
        if config.calibration is None and sets is None:
            if config.to == "int8" and model.trained is not False:
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
        if sets is None:
            self._split(str(config.calibration))
        else:
            self._take(*sets)

    def _split(self, name: str) -> None:
        from resnet_onnx.data.datasets import open_dataset

        refuse_special(Path(name), BadData)
        config = self._config
        train = open_dataset(name, split="train")
        if train.split is not None:
            self._take(train, open_dataset(name, split="test"))
            return
        self.notes = train.notes
        order = np.random.default_rng(config.seed).permutation(len(train))
        used = min(config.pictures, max(1, 4 * len(train) // 5))
        rest = order[used:]
        if not len(rest):
            raise BadData(f"--calibration '{name}' has one picture, and some must be held out", fix="name more")
        # What validated a choice must not pass it through the gate, where there are enough of both.
        apart = min(_VALIDATION, len(rest) // 3)
        validation, kept = (rest[:apart], rest[apart:]) if apart >= _FEW else (rest, rest)
        self._divide(train, order[:used], validation, train.subset(np.sort(kept[: config.held_out])))

    def _take(self, train: PictureSet, test: PictureSet) -> None:
        """Calibrates and validates on pictures of one set, and holds out those of another."""
        config = self._config
        self.notes = tuple(dict.fromkeys((*train.notes, *test.notes)))
        order = np.random.default_rng(config.seed).permutation(len(train))
        used = min(config.pictures, max(1, 4 * len(train) // 5))
        validation = order[used : used + _VALIDATION]
        size = min(len(test), config.held_out)
        held_out = test.subset(np.arange(size) * len(test) // size)
        self._divide(train, order[:used], validation if len(validation) else order, held_out)

    def _divide(
        self, train: PictureSet, used: NDArray[np.int64], validation: NDArray[np.int64], held_out: PictureSet
    ) -> None:
        config = self._config
        self._calibration = train.subset(used)
        self._validation = train.subset(validation[:_VALIDATION])
        self._held_out = held_out
        if held_out.labelled and len(held_out) >= LABELLED_NEEDED and self._model.trained is not False:
            # Labels that don't name the model's outputs say nothing of it; the noise of the outputs still does.
            try:
                classes = class_axis(self._model.scores.settled())
                if not isinstance(classes, int):
                    source = ModelSource(path=onnx_path(self._model), label=self._model.name)
                    with open_runtime("ort-cpu", source) as opened:
                        classes = class_count(self._model, opened)
                match = match_pictures(self._model, classes, held_out, config.class_order)
            except (BadData, BadModel) as error:
                self.notes += (f"not judged by accuracy: {error.message}",)
                return
            self._targets = match.outputs[held_out.labels]
            self.notes += match.notes
            self.chance = float(np.bincount(held_out.labels).max() / len(held_out))

    def described(self) -> dict[str, Any]:
        """Returns what the record says of the calibration pictures."""
        if self._calibration is None:
            return {"data": "crops of sample photos", "images": self._config.pictures, "seed": self._config.seed}
        seen = hashlib.sha256()
        used = [i for i in range(len(self._calibration)) if self._calibration.item_name(i) not in self.skipped]
        for index in used:
            data = self._calibration.read(index).data
            seen.update(hashlib.sha256(data if isinstance(data, bytes) else np.ascontiguousarray(data).data).digest())
        return {
            "data": self._calibration.name,
            "images": max(len(used), self._config.pictures if self._crops else 0),
            "files": len(used),
            "skipped": len(self._calibration) - len(used),
            "seed": self._config.seed,
            "sha256": seen.hexdigest(),
        }

    @property
    def _crops(self) -> bool:
        """Whether there are fewer files than requested calibration pictures, so that each is cropped several times."""
        found = self._calibration
        side = self._model.preprocessing.image_size if self._model.preprocessing else 0
        return found is not None and len(found) < self._config.pictures and side >= 64 and self._config.to == "int8"

    def calibration(self, batch: int) -> Iterator[Feeds]:
        """Yields feeds of the calibration pictures."""
        count = self._config.pictures
        if self._calibration is None:
            yield from self._samples(range(0, count, self._model.form.batch or batch), batch)
        elif self._crops:
            yield from self._cropped(self._calibration, count, batch)
        else:
            chosen = self._calibration.subset(np.arange(min(count, len(self._calibration))))
            yield from (feeds for feeds, _ in self._batches(chosen, batch))

    def _cropped(self, found: PictureSet, count: int, batch: int) -> Iterator[Feeds]:
        from resnet_onnx.data.batches import decoded_picture
        from resnet_onnx.data.transforms import prepare

        preprocessing = need_preprocessing(self._model)
        random = np.random.default_rng(self._config.seed)
        size = self._model.form.batch or batch

        good = list(range(len(found)))
        if self._config.skip_bad:
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

    def validation(self) -> Iterator[Samples]:
        """Yields feeds of the validation pictures."""
        return self._compared(self._validation, None, 10_000)

    def held_out(self) -> Iterator[Samples]:
        """Yields feeds of the held-out pictures, and the right outputs where they are known."""
        return self._compared(self._held_out, self._targets, 20_000)

    def _compared(self, pictures: PictureSet | None, targets: NDArray[np.int64] | None, seed: int) -> Iterator[Samples]:
        if pictures is None:
            yield from ((feeds, None, None) for feeds in self._samples(range(seed, seed + 64, 8), 8))
            return
        for feeds, places in self._batches(pictures, _BATCH):
            yield feeds, len(places), None if targets is None else targets[places]

    def _samples(self, seeds: range, batch: int) -> Iterator[Feeds]:
        """Yields feeds of sample photos, or of seeded numbers where the model does not take pictures."""
        for seed in seeds:
            yield sample_feeds(self._model, self._model.form.batch or batch, seed=self._config.seed + seed)

    def _batches(self, pictures: PictureSet, batch: int) -> Iterator[tuple[Feeds, NDArray[np.int64]]]:
        from resnet_onnx.data.batches import Batches

        preprocessing, fixed = need_preprocessing(self._model), self._model.form.batch
        skip = self._config.skip_bad
        with Batches(pictures, preprocessing, batch_size=fixed or batch, skip_bad=skip) as found:
            for taken in found:
                self.skipped |= {one.image: one.reason for one in taken.skipped}
                whole, places = taken.pictures, taken.indices
                if not len(whole):
                    continue
                yield feeds_of(self._model, filled(whole, fixed)), places  # `places` says how many count
            self.skipped |= {one.image: one.reason for one in found.skipped}  # after the last good picture, too
