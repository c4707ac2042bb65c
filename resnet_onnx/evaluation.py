"""Accuracy of a model on any runtime, with the pictures decoded in worker processes while the runtime computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.bench.clock import Watch
from resnet_onnx.data.batches import Batch, Batches, Skipped
from resnet_onnx.data.datasets import PictureSet
from resnet_onnx.models.preprocessing import Layout, Preprocessing
from runtimes.base import Runtime
from runtimes.errors import BadData, BadModel, UsageError
from runtimes.spec import Dimension

Progress = Callable[[int, int], None]
"""Called with the pictures done and the pictures in all."""

NOT_PREDICTED = -1
"""Prediction for a picture that was skipped, or whose outputs are not numbers."""

_TOP = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What an evaluation found.

    Attributes:
        top1: Share of the pictures whose class has the highest output, 0 to 1.
        top5: Share whose class is among the five highest; None for a model of fewer than five classes.
        images: Pictures that were evaluated.
        images_per_second: In steady state, decoding included: without the start of the workers, the runtime's first
            run and the pictures that were decoded meanwhile. Where all were decoded meanwhile, of the whole wall time.
        seconds: Wall time of everything.
        skipped: Pictures that were left out because they can't be decoded.
        not_finite: Pictures for which the model gave NaN; they count as wrong.
        predictions: int64 [pictures of the data set, up to the limit], index of the highest output,
            ``NOT_PREDICTED`` where there is none.
        labels: int64, same shape; the right index.
    """

    top1: float
    top5: float | None
    images: int
    images_per_second: float
    seconds: float
    skipped: tuple[Skipped, ...]
    not_finite: int
    predictions: NDArray[np.int64]
    labels: NDArray[np.int64]

    def to_json(self) -> dict[str, Any]:
        """Returns what results and ``--json`` carry; the predictions stay out."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "images": self.images,
            "images_per_second": self.images_per_second,
            "seconds": self.seconds,
            "skipped": [{"image": skipped.name, "reason": skipped.reason} for skipped in self.skipped],
            "not_finite": self.not_finite,
        }


class PictureModel:
    """A runtime seen as a function from pictures to class scores, whatever form of input its model takes.

    Args:
        runtime: An opened runtime whose model has one input for pictures; its first output holds the scores.
        preprocessing: The model's.

    Attributes:
        as_bytes: Whether the model takes bytes and normalises them itself.
        classes: How many scores it gives, or None where the model leaves that open.
        fixed_batch: The batch size that the model insists on, or None.

    Raises:
        BadModel: The model's input or output does not have the form of a picture classifier's.
    """

    def __init__(self, runtime: Runtime, preprocessing: Preprocessing) -> None:
        self._runtime = runtime
        self._model = runtime.source.name
        if len(runtime.inputs) != 1:
            raise BadModel(
                f"{self._model}: has {len(runtime.inputs)} inputs "
                f"({', '.join(str(spec) for spec in runtime.inputs)}), expected one for pictures"
            )
        self._input = runtime.inputs[0]
        self._output = runtime.outputs[0]
        self._layout = _layout(self._model, str(self._input), self._input.shape, preprocessing.image_size)
        self.as_bytes = self._input.dtype == np.uint8
        if not self.as_bytes and self._input.dtype.name not in ("float32", "float16", "bfloat16", "float64"):
            raise BadModel(f"{self._model}: input {self._input} is neither bytes nor floating point")
        batch, *rest = self._output.shape or (0,)
        if not rest or any(extent != 1 for extent in rest[1:]):
            raise BadModel(f"{self._model}: first output {self._output} is not [batch, classes]")
        self.classes = rest[0] if isinstance(rest[0], int) else None
        self.fixed_batch = next((extent for extent in (self._input.shape[0], batch) if isinstance(extent, int)), None)

    def scores(self, pictures: NDArray[Any]) -> NDArray[np.float64]:
        """Runs the model, in pieces and with padding where it insists on a batch size.

        Args:
            pictures: What ``Batch.pictures`` holds with this model's `as_bytes`.

        Returns:
            float64 [n, classes].
        """
        step = self.fixed_batch or len(pictures)
        return np.concatenate([self._run(pictures[start : start + step]) for start in range(0, len(pictures), step)])

    def warm_up(self, batch_size: int, preprocessing: Preprocessing) -> None:
        """Runs once on grey, since a first run also allocates, plans and compiles."""
        side = preprocessing.image_size
        self.scores(
            np.full((batch_size, side, side, 3), 127, np.uint8)
            if self.as_bytes
            else np.zeros((batch_size, 3, side, side), np.float32)
        )

    def _run(self, pictures: NDArray[Any]) -> NDArray[np.float64]:
        count = len(pictures)
        if self.fixed_batch is not None and count < self.fixed_batch:
            padding = np.zeros((self.fixed_batch - count, *pictures.shape[1:]), pictures.dtype)
            pictures = np.concatenate([pictures, padding])
        if self._layout == "NCHW" and self.as_bytes:
            pictures = pictures.transpose(0, 3, 1, 2)
        elif self._layout == "NHWC" and not self.as_bytes:
            pictures = pictures.transpose(0, 2, 3, 1)
        feeds = {self._input.name: np.ascontiguousarray(pictures, dtype=self._input.dtype)}
        output = self._runtime.run(feeds)[self._output.name]
        if output.ndim < 2 or output.shape[0] != len(pictures) or output.size != output.shape[0] * output.shape[1]:
            raise BadModel(f"{self._model}: gave {list(output.shape)} for {len(pictures)} pictures")
        return output.reshape(len(pictures), -1)[:count].astype(np.float64)


def evaluate(
    runtime: Runtime,
    dataset: PictureSet,
    preprocessing: Preprocessing,
    *,
    class_map: NDArray[np.int64],
    batch_size: int = 32,
    workers: int = 0,
    skip_bad: bool = False,
    progress: Progress | None = None,
    limit: int | None = None,
) -> Evaluation:
    """Measures accuracy on a labelled data set.

    Args:
        runtime: The opened model; beside worker processes it is best opened with ``RuntimeOptions(spin=False)``.
        dataset: Labelled pictures.
        preprocessing: The model's.
        class_map: int64 [classes of the set], the model's output for each class (``labels.match_classes``).
        batch_size: Pictures a run; a model with a fixed batch keeps its own.
        workers: Processes that decode; 0 decodes between the runs.
        skip_bad: Leave pictures out that can't be decoded, counted and named, instead of raising.
        progress: Called after each batch.
        limit: Evaluate so many pictures at most, spread evenly over the data set.

    Raises:
        BadData: The set has no labels, or none of its pictures could be decoded.
        BadPicture: A picture can't be decoded, and `skip_bad` is not set.
        BadModel: The model is no picture classifier, or has too few outputs for `class_map`.
        UsageError: `limit` or `batch_size` is below 1.
        Unavailable: A worker process died.
    """
    if not dataset.labelled:
        raise BadData(
            f"{dataset.name}: these pictures have no labels, so that there is no accuracy to measure",
            fix="put them into one folder per class, or use predict",
        )
    if limit is not None and limit < 1:
        raise UsageError(f"the number of pictures must be at least 1, not {limit}")
    if limit is not None and limit < len(dataset):
        dataset = dataset.subset(np.arange(limit, dtype=np.int64) * len(dataset) // limit)
    model = PictureModel(runtime, preprocessing)
    if model.classes is not None and int(class_map.max()) >= model.classes:
        raise BadModel(f"{runtime.source.name}: has {model.classes} outputs, the data set needs {class_map.max() + 1}")
    total = len(dataset)
    batch_size = min(model.fixed_batch or batch_size, total) if batch_size >= 1 else batch_size
    targets = class_map[dataset.labels]
    tally = _Tally(targets)
    watch = Watch()
    with Batches(
        dataset,
        preprocessing,
        batch_size=batch_size,
        workers=workers,
        as_bytes=model.as_bytes,
        skip_bad=skip_bad,
        take_turns=runtime.device == "cpu",
    ) as batches:
        model.warm_up(batch_size, preprocessing)  # while the workers start
        ahead = batches.wait_for_first()
        steady, before = Watch(), 0
        for batch in batches:
            tally.add(batch, model.scores(batch.pictures))
            if not before and tally.images >= ahead and tally.images < total:
                # What was decoded before the watch started is computed: from here on every picture pays for both.
                steady, before = Watch(), tally.images
            if progress is not None:
                progress(tally.images + len(batches.skipped), total)
        steady_s = (steady if before else watch).stop().wall_s
        skipped = tuple(batches.skipped)
    if not tally.images:
        raise BadData(
            f"{dataset.name}: none of the {total} pictures could be decoded; {skipped[0].reason}",
            fix="check the data set",
        )
    return Evaluation(
        top1=tally.top1 / tally.images,
        top5=tally.top5 / tally.images if tally.classes >= _TOP else None,
        images=tally.images,
        images_per_second=(tally.images - before) / steady_s,
        seconds=watch.stop().wall_s,
        skipped=skipped,
        not_finite=tally.not_finite,
        predictions=tally.predictions,
        labels=targets,
    )


def agreement(a: Evaluation, b: Evaluation) -> float:
    """Returns the share of pictures on which two evaluations of the same data decide alike, 0 to 1.

    Pictures that both skipped are left out; one without a prediction on either side is a disagreement.

    Raises:
        BadData: They saw different pictures.
    """
    if a.predictions.shape != b.predictions.shape or not np.array_equal(a.labels, b.labels):
        raise BadData("the two evaluations are not of the same pictures")
    skipped = {entry.name for entry in a.skipped} & {entry.name for entry in b.skipped}
    alike = (a.predictions == b.predictions) & (a.predictions != NOT_PREDICTED)
    return float(alike.sum() / max(1, len(alike) - len(skipped)))


class _Tally:
    """Counts hits; a tie goes to the lower index, as argmax does, so that a constant output is not always right."""

    def __init__(self, targets: NDArray[np.int64]) -> None:
        self._targets = targets
        self.predictions = np.full(len(targets), NOT_PREDICTED, dtype=np.int64)
        self.images = self.top1 = self.top5 = self.not_finite = self.classes = 0

    def add(self, batch: Batch, scores: NDArray[np.float64]) -> None:
        targets = self._targets[batch.indices]
        rows = np.arange(len(scores))
        self.classes = scores.shape[1]
        usable = ~np.isnan(scores).any(axis=1)
        right = scores[rows, targets][:, None]
        columns = np.arange(self.classes)[None, :]
        with np.errstate(invalid="ignore"):
            ahead = (scores > right) | ((scores == right) & (columns < targets[:, None]))
        rank = ahead.sum(axis=1)
        self.top1 += int((usable & (rank == 0)).sum())
        self.top5 += int((usable & (rank < _TOP)).sum())
        self.images += len(scores)
        self.not_finite += int((~usable).sum())
        self.predictions[batch.indices] = np.where(usable, scores.argmax(axis=1), NOT_PREDICTED)


def _layout(model: str, spec: str, shape: tuple[Dimension, ...], side: int) -> Layout:
    def fits(height: Dimension, width: Dimension) -> bool:
        return all(not isinstance(extent, int) or extent == side for extent in (height, width))

    if len(shape) != 4:
        raise BadModel(f"{model}: input {spec} is no batch of pictures, expected four dimensions")
    if shape[1] == 3 and fits(shape[2], shape[3]):
        return "NCHW"
    if shape[3] == 3 and fits(shape[1], shape[2]):
        return "NHWC"
    if 3 in (shape[1], shape[3]):
        raise BadModel(
            f"{model}: input {spec} is of another size than the {side}×{side} that its preprocessing makes",
            fix="export the model with the --image-size it is used with",
        )
    raise BadModel(f"{model}: input {spec} has no axis of three colour channels")
