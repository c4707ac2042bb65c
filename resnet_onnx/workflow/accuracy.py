"""Evaluating and predicting with a model on any runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_onnx.workflow.feeds import need_preprocessing
from resnet_onnx.workflow.opening import source, tuned
from resnet_onnx.workflow.request import UNTUNED, Model, refuse_special
from resnet_onnx.workflow.resolving import classes_of
from runtimes.base import Runtime
from runtimes.errors import BadData, BadPicture
from runtimes.registry import open_runtime
from runtimes.spec import RuntimeOptions

if TYPE_CHECKING:
    from resnet_onnx.evaluation import Evaluation
    from resnet_onnx.prediction import Predictions

_WORTH_WORKERS = 200
"""Below so many pictures, decoding in this process is done before worker processes have started."""


def _open_for_pictures(
    model: Model, runtime: str, device: str | None, threads: int | None, tuning: RuntimeOptions, batch: int
) -> Runtime:
    # Spinning threads would take the cores from the workers that decode.
    options = tuned(model, runtime, replace(tuning, threads=threads, spin=False), (batch,))
    found = source(model, runtime, device=device, options=options, batches=(batch,))
    return open_runtime(runtime, found, device=device, options=options)


def evaluate_on(
    model: Model,
    runtime: str,
    data: str,
    *,
    batch_size: int = 32,
    limit: int | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    device: str | None = None,
    threads: int | None = None,
    tuning: RuntimeOptions = UNTUNED,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measures a model's accuracy on a data set's test split; see ``evaluation.evaluate``."""
    from resnet_onnx.data.batches import default_workers, start_worker_server
    from resnet_onnx.data.datasets import open_dataset
    from resnet_onnx.data.labels import match_classes
    from resnet_onnx.evaluation import evaluate

    preprocessing = need_preprocessing(model)
    refuse_special(Path(data), BadData)
    dataset = open_dataset(data, split="test")
    few = min(len(dataset), limit or len(dataset)) < _WORTH_WORKERS
    count = (0 if few or dataset.in_memory else default_workers()) if workers is None else workers
    if count:
        start_worker_server()
    with _open_for_pictures(model, runtime, device, threads, tuning, batch_size) as opened:
        classes = classes_of(opened.outputs)
        class_map = match_classes(
            dataset.classes, model.labels, len(model.labels or dataset.classes) if classes is None else classes
        )
        return evaluate(
            opened,
            dataset,
            preprocessing,
            class_map=class_map,
            batch_size=batch_size,
            workers=count,
            skip_bad=skip_bad,
            progress=progress,
            limit=limit,
        )


def predict_on(
    model: Model,
    runtime: str,
    images: Sequence[Path],
    *,
    top: int = 5,
    skip_bad: bool = False,
    device: str | None = None,
    threads: int | None = None,
    tuning: RuntimeOptions = UNTUNED,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Says what pictures show; see ``prediction.predict``."""
    from resnet_onnx.prediction import predict

    preprocessing = need_preprocessing(model)
    for image in images:
        refuse_special(image, BadPicture)
    with _open_for_pictures(model, runtime, device, threads, tuning, 1) as opened:
        return predict(
            opened, images, preprocessing, labels=model.labels, top_k=top, skip_bad=skip_bad, progress=progress
        )
