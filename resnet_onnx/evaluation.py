"""Accuracy of a model on any runtime, with the pictures decoded in worker processes while the runtime computes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.bench.clock import Watch
from resnet_onnx.data.batches import Batches, decoded_picture
from resnet_onnx.data.datasets import PictureSet
from resnet_onnx.data.feeds import filled, picture_input, with_channels
from resnet_onnx.data.labels import ClassOrder
from resnet_onnx.data.scores import find_scores
from resnet_onnx.data.transforms import CENTRE, Crops, prepare
from resnet_onnx.models.picture_tensor import resize
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.results.document import SkippedPicture
from resnet_onnx.results.evaluate import EvaluateRow, OneCrop
from runtimes.base import Runtime
from runtimes.errors import BadData, BadModel, BadPicture, UsageError
from runtimes.spec import RuntimeOptions

Progress = Callable[[int, int], None]
"""Called with the pictures done and the pictures in all."""

NOT_PREDICTED = -1
"""Prediction for a picture that was skipped, or whose outputs are not numbers."""

_TOP = 5
_SUM_TOLERANCE = 1e-3
"""How far outputs in [0, 1] may sum from 1 and still be probabilities; half precision sums 1,000 of them to 5e-4."""


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """How accuracy is measured.

    Attributes:
        data: Labelled pictures, as ``--data`` names them; their test split.
        device: Device of the runtime; None is its own default.
        options: Of the runtime.
        batch_size: Pictures a run; a model with a fixed batch keeps its own. Each crop of a picture counts as one, and
            with `scales` a run has as many pixels at most as so many pictures of the model's own size, or one picture.
        crops: 1 looks at the centre of each picture; 10 averages the probabilities of ten crops (``ten_crops``), as
            Krizhevsky, Sutskever and Hinton (2012), section 4.1, average "the predictions made by the network's
            softmax layer"; arXiv:1512.03385, section 3.4, tests so. None is 1.
        scales: Average over whole pictures with these shorter sides, pixels, in place of crops; see ``evaluate``.
        limit: At most so many pictures, spread evenly over the data set; None takes all.
        workers: Processes that decode; 0 decodes between the runs, None chooses by the number of pictures.
        skip_bad: Whether pictures that can't be decoded are left out, counted and named, instead of ending everything.
        class_order: How class folders that are named by numbers are ordered, where no name tells; see
            ``labels.match_outputs``.

    Raises:
        UsageError: A number is out of range, or `scales` is combined with what is for crops.
    """

    data: str
    device: str | None = None
    options: RuntimeOptions = field(default_factory=RuntimeOptions)
    batch_size: int = 32
    crops: Crops | None = None
    scales: tuple[int, ...] = ()
    limit: int | None = None
    workers: int | None = None
    skip_bad: bool = False
    class_order: ClassOrder | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"batch size must be at least 1, not {self.batch_size}")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"the number of pictures must be at least 1, not {self.limit}")
        if self.crops not in (None, *get_args(Crops)):
            raise UsageError(f"the number of crops is 1 or 10, not {self.crops}")
        for option, value in (("--crops", self.crops), ("--workers", self.workers)):
            if self.scales and value is not None:
                raise UsageError(
                    f"--scales looks at whole pictures, and {option} was given", fix="leave one of them out"
                )


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What an evaluation found.

    Attributes:
        row: The figures; its `classes_by` is the caller's to say (``labels.ClassMatch``).
        predictions: int64 [pictures of the data set, up to the limit], index of the highest output,
            ``NOT_PREDICTED`` where there is none.
        labels: int64, same shape; the right index.
        notes: What the user should know of how pictures and classes were read.
    """

    row: EvaluateRow
    predictions: NDArray[np.int64]
    labels: NDArray[np.int64]
    notes: tuple[str, ...] = ()


class PictureModel:
    """A runtime seen as a function from pictures to class scores, whatever form of input its model takes.

    Args:
        runtime: An opened runtime whose model has one input for pictures.
        preprocessing: The model's.
        scores: Name of the output that holds the scores, where the model has several; None where only one can.

    Attributes:
        name: The model's, for messages.
        runtime: The runtime's name.
        device: The runtime's.
        classes: How many scores it gives, or None where the model leaves that open.
        fixed_batch: The batch size that the model insists on, or None.
        any_size: Whether it takes pictures of any height and width.

    Raises:
        BadModel: The model's input or output does not have the form of a picture classifier's.
        UsageError: Several outputs could hold the scores.
    """

    def __init__(self, runtime: Runtime, preprocessing: Preprocessing, *, scores: str | None = None) -> None:
        self._runtime, self._preprocessing = runtime, preprocessing
        self.name, self.runtime, self.device = runtime.source.name, runtime.name, runtime.device
        self._input = picture_input(with_channels(runtime.inputs), self.name)
        named = scores if len(runtime.outputs) > 1 else None
        self._output = find_scores(runtime.outputs, self.name, named=named).settled()
        side = preprocessing.image_size
        if self._input.size not in (None, side):
            raise BadModel(
                f"{self.name}: input {self._input.spec} is of another size than the {side}×{side} that its "
                "preprocessing makes",
                fix="export the model with the --image-size it is used with",
            )
        batch, *rest = self._output.shape or (0,)
        if not rest or any(extent != 1 for extent in rest[1:]):
            raise BadModel(f"{self.name}: output {self._output} is not [batch, classes]")
        self.classes = rest[0] if isinstance(rest[0], int) else None
        self.any_size = self._input.size is None
        batches = self._input.spec.shape[0], batch
        self.fixed_batch = next((extent for extent in batches if isinstance(extent, int)), None)

    def scores(self, pictures: NDArray[np.uint8], *, at_once: int | None = None) -> NDArray[np.float64]:
        """Runs the model on uint8 [n, height, width, 3], RGB, resized and cropped; returns float64 [n, classes].

        It runs in pieces of at most `at_once`, or of the batch size that it insists on, the last of them filled up.
        """
        step = self.fixed_batch or at_once or len(pictures)
        return np.concatenate([self._run(pictures[start : start + step]) for start in range(0, len(pictures), step)])

    def warm_up(self, batch_size: int) -> NDArray[np.float64]:
        """Runs once on black, since a first run also allocates, plans and compiles; returns float64 [n, classes]."""
        side = self._preprocessing.image_size
        return self.scores(np.zeros((batch_size, side, side, 3), np.uint8))

    def _run(self, pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
        count = len(pictures)
        pictures = filled(pictures, self.fixed_batch)
        output = self._runtime.run(self._input.feeds(pictures, self._preprocessing))[self._output.name]
        if output.ndim < 2 or output.shape[0] != len(pictures) or output.size != output.shape[0] * output.shape[1]:
            raise BadModel(f"{self.name}: gave {list(output.shape)} for {len(pictures)} pictures")
        return output.reshape(len(pictures), -1)[:count].astype(np.float64)


def evaluate(
    runtime: Runtime,
    dataset: PictureSet,
    preprocessing: Preprocessing,
    plan: EvaluationPlan,
    *,
    class_map: NDArray[np.int64],
    scores: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measures accuracy on a labelled data set.

    With ``plan.scales`` whole pictures are looked at in several sizes (arXiv:1512.03385, section 3.4; arXiv:1409.1556,
    3.2). The network averages its scores over all positions of a picture by itself; their probabilities are averaged
    over the sizes, as arXiv:1409.1556, section 4.2, averages "the resulting class posteriors". Pictures are decoded in
    this process then, one by one: next to the work on large pictures that costs little.

    Args:
        runtime: The opened model; beside worker processes it is best opened with ``RuntimeOptions(spin=False)``. For
            scales it takes pictures of any height and width.
        dataset: Labelled pictures, those that ``plan.data`` names.
        preprocessing: The model's.
        plan: What is looked at, and how.
        class_map: int64 [classes of the set], the model's output for each class (``labels.match_classes``).
        scores: Name of the output that holds them; needed where several could, see ``data.scores.find_scores``.
        progress: Called after each batch.

    Raises:
        BadData: The set has no labels, or none of its pictures could be decoded.
        BadPicture: A picture can't be decoded, and ``plan.skip_bad`` is not set.
        BadModel: The model is not a picture classifier, takes one size only where there are scales, or has too few
            outputs for `class_map`.
        UsageError: All crops of a picture would be the same, or several outputs could hold the scores.
        Unavailable: A worker process died.
    """
    size = preprocessing.image_size
    if plan.crops == 10 and preprocessing.resize == size:
        raise UsageError(
            f"10 crops of {size}×{size} out of pictures whose shorter side is resized to {size} leave nothing to "
            "choose",
            fix=f"--resize {size + max(1, round(size / 8))} leaves room to move, or take 1 crop",
        )
    need_labels(dataset)
    if plan.limit is not None and plan.limit < len(dataset):
        dataset = dataset.subset(np.arange(plan.limit, dtype=np.int64) * len(dataset) // plan.limit)
    model = PictureModel(runtime, preprocessing, scores=scores)
    if plan.scales and (not model.any_size or model.fixed_batch is not None):
        raise BadModel(f"{model.name}: does not take pictures of any size, as scales need")
    if model.classes is not None and int(class_map.max()) >= model.classes:
        raise BadModel(f"{model.name}: has {model.classes} outputs, the data set needs {class_map.max() + 1}")
    targets = class_map[dataset.labels]
    look_at = _whole_pictures if plan.scales else _crops
    return look_at(model, dataset, preprocessing, plan, targets, progress)


def _crops(
    model: PictureModel,
    dataset: PictureSet,
    preprocessing: Preprocessing,
    plan: EvaluationPlan,
    targets: NDArray[np.int64],
    progress: Progress | None,
) -> Evaluation:
    """Evaluates one crop or the mean over ten; `targets` is int64 [pictures], the model's output for each."""
    total, crops = len(dataset), plan.crops or 1
    batch_size = min(max(1, (model.fixed_batch or plan.batch_size) // crops), total)
    tally, centre = _Tally(targets), _Tally(targets)
    watch = Watch()
    with Batches(
        dataset,
        preprocessing,
        batch_size=batch_size,
        crops=crops,
        workers=plan.workers or 0,
        skip_bad=plan.skip_bad,
        take_turns=model.device == "cpu",
    ) as batches:
        model.warm_up(min(batch_size * crops, plan.batch_size))  # while the workers start
        ahead = batches.wait_for_first()
        steady, before = Watch(), 0
        for batch in batches:
            if crops == 1:
                tally.add(batch.indices, model.scores(batch.pictures))
            else:
                views = batch.pictures.reshape(-1, *batch.pictures.shape[2:])
                scores = model.scores(views, at_once=plan.batch_size).reshape(len(batch.indices), crops, -1)
                tally.add(batch.indices, probabilities(scores).mean(axis=1))
                centre.add(batch.indices, scores[:, CENTRE])
            if not before and tally.images >= ahead and tally.images + len(batches.skipped) < total:
                # What was decoded before the watch started is computed: from here on every picture pays for both.
                steady, before = Watch(), tally.images
            if progress is not None:
                progress(tally.images + len(batches.skipped), total)
        if before == tally.images:  # what came after the watch started could not be decoded
            steady, before = watch, 0
        steady_s = (steady if before else watch).stop().wall_s
    return _evaluation(
        model.runtime,
        dataset,
        tally,
        None if crops == 1 else centre,
        batches.skipped,
        images_per_second=(tally.images - before) / steady_s,
        seconds=watch.stop().wall_s,
    )


def _whole_pictures(
    model: PictureModel,
    dataset: PictureSet,
    preprocessing: Preprocessing,
    plan: EvaluationPlan,
    targets: NDArray[np.int64],
    progress: Progress | None,
) -> Evaluation:
    """Evaluates the mean over whole pictures of several sizes, and the centre crop; arguments as ``_crops``."""
    tally, centre = _Tally(targets), _Tally(targets)
    skipped: list[SkippedPicture] = []
    pixels = plan.batch_size * preprocessing.image_size**2
    watch = Watch()
    model.warm_up(1)
    steady = Watch()
    for start in range(0, len(dataset), plan.batch_size):
        good: list[int] = []
        crops: list[NDArray[np.uint8]] = []
        sizes: list[list[NDArray[np.uint8]]] = [[] for _ in plan.scales]
        for index in range(start, min(start + plan.batch_size, len(dataset))):
            try:
                picture = decoded_picture(dataset, index)
            except BadPicture as error:
                if not plan.skip_bad:
                    raise
                skipped.append(SkippedPicture(image=dataset.item_name(index), reason=error.message))
                continue
            good.append(index)
            crops.append(prepare(picture, preprocessing))
            for scale, pictures in zip(plan.scales, sizes, strict=True):
                pictures.append(resize(picture, scale, preprocessing.interpolation))
        if good:
            indices = np.asarray(good, dtype=np.int64)
            centre.add(indices, _scores_by_shape(model, crops, pixels))
            found = [probabilities(_scores_by_shape(model, pictures, pixels)) for pictures in sizes]
            tally.add(indices, np.mean(found, axis=0))
        if progress is not None:
            progress(tally.images + len(skipped), len(dataset))
    speed = tally.images / steady.stop().wall_s
    seconds = watch.stop().wall_s
    return _evaluation(model.runtime, dataset, tally, centre, skipped, images_per_second=speed, seconds=seconds)


def _scores_by_shape(model: PictureModel, pictures: Sequence[NDArray[np.uint8]], pixels: int) -> NDArray[np.float64]:
    """Runs pictures of one shape together, `pixels` of them at most or one picture; returns float64 [n, classes]."""
    scores: dict[int, NDArray[np.float64]] = {}
    for places in _alike(pictures, pixels):
        found = model.scores(np.stack([pictures[place] for place in places]))
        scores.update(zip(places, found, strict=True))
    return np.stack([scores[place] for place in range(len(pictures))])


def _alike(pictures: Sequence[NDArray[np.uint8]], pixels: int) -> Iterator[list[int]]:
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, picture in enumerate(pictures):
        by_shape[picture.shape].append(place)
    for (height, width, _), places in by_shape.items():
        step = max(1, pixels // (height * width))
        yield from (places[start : start + step] for start in range(0, len(places), step))


def need_labels(dataset: PictureSet) -> None:
    """Raises ``BadData`` for pictures without labels."""
    if not dataset.labelled:
        raise BadData(
            f"{dataset.name}: these pictures have no labels, so that there is no accuracy to measure",
            fix="put them into one folder per class, add them so as val/CLASS/*.jpg, or use predict",
        )


def _evaluation(
    runtime: str,
    dataset: PictureSet,
    tally: _Tally,
    centre: _Tally | None,
    skipped: Sequence[SkippedPicture],
    *,
    images_per_second: float,
    seconds: float,
) -> Evaluation:
    if not tally.images:
        raise BadData(
            f"{dataset.name}: none of the {len(dataset)} pictures could be decoded; {skipped[0].reason}",
            fix="check the data set",
        )
    row = EvaluateRow(
        runtime=runtime,
        top1=tally.top1_share,
        top5=tally.top5_share,
        images=tally.images,
        images_per_second=images_per_second,
        seconds=seconds,
        skipped=tuple(skipped),
        not_finite=tally.not_finite,
        one_crop=None if centre is None else OneCrop(top1=centre.top1_share, top5=centre.top5_share),
    )
    return Evaluation(row=row, predictions=tally.predictions, labels=tally.targets)


def probabilities(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turns a model's outputs, float64 [..., classes], into probabilities: softmax, unless all are that already.

    Returns:
        float64 [..., classes], in [0, 1], summing to 1 along the last axis, or within ``_SUM_TOLERANCE`` of it where
        they were probabilities; NaN where a score is NaN or +Inf.
    """
    with np.errstate(invalid="ignore"):
        sums = scores.sum(axis=-1)
        if scores.min() >= 0 and scores.max() <= 1 and (np.abs(sums - 1) <= _SUM_TOLERANCE).all():
            return scores
        shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


class _Tally:
    """Counts hits; a tie goes to the lower index, as argmax does, so that a constant output is not always right."""

    def __init__(self, targets: NDArray[np.int64]) -> None:
        self.targets = targets
        self.predictions = np.full(len(targets), NOT_PREDICTED, dtype=np.int64)
        self.images = self.top1 = self.top5 = self.not_finite = self.classes = 0

    @property
    def top1_share(self) -> float:
        return self.top1 / self.images

    @property
    def top5_share(self) -> float | None:
        return self.top5 / self.images if self.classes >= _TOP else None

    def add(self, indices: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
        targets = self.targets[indices]
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
        self.predictions[indices] = np.where(usable, scores.argmax(axis=1), NOT_PREDICTED)
