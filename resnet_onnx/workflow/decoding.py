"""Picture files as feeds, made anew for every run: what ``bench --include decode`` times beside the model."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resnet_onnx.bench.feed_factory import FeedFactory
from resnet_onnx.data.feeds import PictureInput
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.workflow.feeds import need_picture_input, need_preprocessing
from resnet_onnx.workflow.request import Model, refuse_special
from runtimes.errors import BadData, UsageError
from runtimes.spec import Feeds

if TYPE_CHECKING:
    from resnet_onnx.data.datasets import PictureSet

_MOST_PICTURES = 512
"""Pictures that the runs take turns with, spread evenly over a larger set: enough for files of every size."""


def decoding(model: Model, data: str | None) -> FeedFactory:
    """Returns what reads, decodes and prepares a batch of picture files (two sample photos) before each run.

    Raises:
        UsageError: The model takes no pictures, or `data` holds no files to decode.
        BadData: `data` can't be opened, or is empty.
    """
    from resnet_onnx.data.datasets import open_dataset, picture_files
    from resnet_onnx.data.samples import photo_files

    preprocessing = need_preprocessing(model)
    picture = need_picture_input(model)
    if data is None:
        dataset, label = picture_files(photo_files()), "the sample photos of scikit-learn"
    else:
        refuse_special(Path(data), BadData)
        dataset, label = open_dataset(data, split="test"), data
    if dataset.in_memory:
        raise UsageError(
            f"{label} holds decoded pictures, so that there is nothing to decode",
            fix="--data with a folder or .zip of picture files, or leave --data out",
        )
    if not len(dataset):
        raise BadData(f"{label}: has no pictures")
    if len(dataset) > _MOST_PICTURES:
        dataset = dataset.subset(np.arange(_MOST_PICTURES, dtype=np.int64) * len(dataset) // _MOST_PICTURES)
    passed = "".join(f"; {note}" for note in dataset.notes)
    return FeedFactory(
        factory=f"{__name__}:feeds_from_files",
        arguments={"dataset": dataset, "preprocessing": preprocessing, "picture": picture},
        includes=("decode",),
        label=f"{label} ({len(dataset)} files{passed})",
    )


def feeds_from_files(
    *, batch: int, threads: int, dataset: PictureSet, preprocessing: Preprocessing, picture: PictureInput
) -> Callable[[], Feeds]:
    """Returns a function that reads, decodes and prepares the next `batch` files on each call, round and round.

    So many `threads` work at the same time; the decoder lets other threads run meanwhile.
    """
    from resnet_onnx.data.batches import prepared_picture

    turn = count()
    workers = min(threads, batch)
    # The threads end with the process that measures.
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode") if workers > 1 else None

    def one(place: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        return prepared_picture(dataset, place % len(dataset), preprocessing)

    def feeds() -> Feeds:
        places = [next(turn) for _ in range(batch)]
        pictures = np.stack(list(pool.map(one, places) if pool is not None else map(one, places)))
        return picture.feeds(pictures, preprocessing)

    return feeds
