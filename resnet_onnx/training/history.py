"""The figures of a training's epochs, and the table of them for other programs."""

from __future__ import annotations

from collections.abc import Sequence

from resnet_onnx.results.commands import BestEpoch, EpochRecord
from resnet_onnx.results.tables import csv_text

COLUMNS = (
    "epoch", "steps", "learning_rate", "train_loss", "train_top1", "validation_loss", "validation_top1",
    "seconds", "input_seconds", "images_per_second",
)  # fmt: skip
"""Of the table, in this order; accuracies are shares, times are of the training pass."""


class EpochRow(EpochRecord, total=False):
    """An epoch as a checkpoint keeps it; experiments add the test that they do after it, `test_seconds` long."""

    test_top1: float
    test_loss: float
    test_seconds: float


class ValidatedBest(BestEpoch, total=False):
    """The epoch whose weights are kept as the best, with its loss on the validation pictures, or None."""

    loss: float | None


def history_csv(history: Sequence[EpochRow]) -> str:
    """Returns one line for each epoch under a line of ``COLUMNS``; what was not measured is empty."""
    return csv_text(COLUMNS, ([row.get(name) for name in COLUMNS] for row in history))
