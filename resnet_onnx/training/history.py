"""The figures of a training's epochs, and the table of them for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict

from resnet_onnx.report.tables import csv_text

COLUMNS = (
    "epoch",
    "steps",
    "learning_rate",
    "train_loss",
    "train_top1",
    "validation_loss",
    "validation_top1",
    "seconds",
    "input_seconds",
    "images_per_second",
)
"""Of the table, in this order; accuracies are shares, times are of the training pass."""


class EpochRow(TypedDict):
    """The figures of one epoch, in the order in which a checkpoint keeps them.

    Attributes:
        epoch: From 1.
        steps: Of this epoch.
        train_loss: Mean over the steps.
        train_top1: On augmented pictures, while training; 0 to 1.
        seconds: Of the training pass.
        images_per_second: Of the training pass.
        input_seconds: Of it, spent on waiting for pictures and on augmenting them.
        learning_rate: Of the last step.
        validation_loss: Mean cross-entropy on the validation pictures, or None.
        validation_top1: Accuracy on them, 0 to 1, or None.
        test_top1: Accuracy on the test pictures, in experiments that compute it after every epoch.
        test_loss: Mean cross-entropy on them.
        test_seconds: Spent on it.
    """

    epoch: int
    steps: int
    train_loss: float
    train_top1: float
    seconds: float
    images_per_second: float
    input_seconds: float
    learning_rate: float
    validation_loss: float | None
    validation_top1: float | None
    test_top1: NotRequired[float]
    test_loss: NotRequired[float]
    test_seconds: NotRequired[float]


class BestEpoch(TypedDict):
    """The epoch whose weights are kept as the best.

    Attributes:
        epoch: From 1.
        top1: Its accuracy on the validation pictures, or None.
        loss: Its loss on them, or None.
    """

    epoch: int
    top1: float | None
    loss: NotRequired[float | None]


def history_csv(history: Sequence[EpochRow]) -> str:
    """Returns one line for each epoch under a line of ``COLUMNS``; what was not measured is empty."""
    return csv_text(COLUMNS, ([row.get(name) for name in COLUMNS] for row in history))
