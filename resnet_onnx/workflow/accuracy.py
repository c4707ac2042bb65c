"""Evaluating and predicting with a model on any runtime."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_onnx.models.configs import VGGConfig
from resnet_onnx.workflow.feeds import need_preprocessing
from resnet_onnx.workflow.opening import target, whole_picture_source
from resnet_onnx.workflow.request import UNTUNED, Model, need_network, refuse_special
from runtimes.base import Runtime
from runtimes.errors import BadData, BadPicture, UsageError
from runtimes.registry import open_runtime, open_target
from runtimes.spec import RuntimeOptions

if TYPE_CHECKING:
    from resnet_onnx.data.datasets import PictureSet
    from resnet_onnx.data.labels import ClassMatch, ClassOrder
    from resnet_onnx.evaluation import Evaluation, EvaluationPlan
    from resnet_onnx.prediction import Predictions

_SCALES = (8, 4096)
"""Shortest and longest side that a picture may be resized to, pixels."""
_VGG_SIDE = 224
"""Side of the picture whose features VGG's fully connected layers see, pixels (arXiv:1409.1556, section 2.1)."""
_WORTH_WORKERS = 200
"""Below so many pictures, decoding in this process is done before worker processes have started."""


def _open_for_pictures(model: Model, runtime: str, device: str | None, options: RuntimeOptions, batch: int) -> Runtime:
    # Spinning threads would take the cores from the workers that decode.
    return open_target(target(model, runtime, device=device, options=replace(options, spin=False), batches=(batch,)))


def evaluate_on(
    model: Model, runtime: str, plan: EvaluationPlan, *, progress: Callable[[int, int], None] | None = None
) -> Evaluation:
    """Measures a model's accuracy on a data set's test split; see ``evaluation.evaluate``.

    Where the plan has scales the runtime is one that opens torch's form. `progress` is called after each batch with the
    pictures done and the pictures in all.
    """
    from resnet_onnx.data.batches import default_workers, start_worker_server
    from resnet_onnx.evaluation import evaluate

    preprocessing = need_preprocessing(model)
    if plan.scales:
        check_scales(model, plan.scales)
    scores = model.scores.settled().name
    dataset = _test_pictures(plan.data)
    if plan.workers is None and not plan.scales:
        few = min(len(dataset), plan.limit or len(dataset)) < _WORTH_WORKERS
        plan = replace(plan, workers=0 if few or dataset.in_memory else default_workers())
    if plan.workers:
        start_worker_server()
    if plan.scales:
        opened = open_runtime(runtime, whole_picture_source(model), device=plan.device, options=plan.options)
    else:
        opened = _open_for_pictures(model, runtime, plan.device, plan.options, plan.batch_size)
    with opened:
        match = match_pictures(model, class_count(model, opened), dataset, plan.class_order)
        with skip_bad_named():
            found = evaluate(
                opened, dataset, preprocessing, plan, class_map=match.outputs, scores=scores, progress=progress
            )
    return replace(found, row=replace(found.row, classes_by=match.by), notes=(*dataset.notes, *match.notes))


def check_scales(model: Model, scales: Sequence[int]) -> None:
    """Raises ``UsageError`` for sizes that a network does not take."""
    network = need_network(model)
    least, most = _SCALES
    if isinstance(network.config, VGGConfig):
        least, side = _VGG_SIDE, network.preprocessing.image_size
        if side // 32 != least // 32:  # what it learned is not what slides over a larger picture
            raise UsageError(f"{model.name} takes scales only where its own pictures are {least}×{least}, not {side}")
    wrong = [scale for scale in scales if not least <= scale <= most]
    if wrong:
        raise UsageError(f"{model.name} takes pictures at scales from {least} to {most} pixels, not {wrong[0]}")


def _test_pictures(data: str) -> PictureSet:
    from resnet_onnx.data.datasets import open_dataset
    from resnet_onnx.evaluation import need_labels

    refuse_special(Path(data), BadData)
    dataset = open_dataset(data, split="test")
    need_labels(dataset)
    return dataset


def match_pictures(
    model: Model, outputs: int, pictures: PictureSet, class_order: ClassOrder | None = None
) -> ClassMatch:
    """Finds the output of a model for each class of a data set; see ``labels.match_outputs``."""
    from resnet_onnx.data.labels import Outputs, match_outputs

    known = Outputs(count=outputs, labels=model.labels, ids=model.label_ids)
    return match_outputs(pictures.classes, known, spellings=pictures.spellings, class_order=class_order)


@contextlib.contextmanager
def skip_bad_named() -> Iterator[None]:
    """Names ``--skip-bad`` in the error of a picture that ends a command."""
    try:
        yield
    except BadPicture as error:
        fix = f"{error.fix or 'replace the file or leave it out'}; --skip-bad leaves out all that can't be decoded"
        raise BadPicture(error.message, fix=fix) from error


def class_count(model: Model, opened: Runtime) -> int:
    """Returns how many scores a picture gets; a black one is looked at where the file leaves that open.

    Raises ``BadModel`` for what is not a picture classifier, and ``UsageError`` where several outputs could hold the
    scores.
    """
    from resnet_onnx.evaluation import PictureModel

    seen = PictureModel(opened, need_preprocessing(model), scores=model.scores.settled().name)
    return seen.classes or seen.warm_up(1).shape[1]


def predict_on(
    model: Model,
    runtime: str,
    images: Sequence[Path],
    *,
    top: int = 5,
    skip_bad: bool = False,
    device: str | None = None,
    options: RuntimeOptions = UNTUNED,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Predicts the classes of pictures; see ``prediction.predict``.

    Of several pictures, those that can't be decoded are left out whether `skip_bad` is set or not, counted and named; a
    single one raises ``BadPicture`` without it.
    """
    from resnet_onnx.data.datasets import picture_files
    from resnet_onnx.prediction import predict

    preprocessing = need_preprocessing(model)
    scores = model.scores.settled().name
    for image in images:
        refuse_special(image, BadPicture)
    pictures = picture_files(images)
    skip = skip_bad or len(pictures) > 1
    with _open_for_pictures(model, runtime, device, options, 1) as opened:
        return predict(
            opened,
            pictures,
            preprocessing,
            labels=model.labels,
            scores=scores,
            top_k=top,
            skip_bad=skip,
            progress=progress,
        )
