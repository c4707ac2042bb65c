"""The figures of a training's epochs for TensorBoard, where it is installed.

Its own writer appends to its files: the one thing here that is not written in one step, because a log has no end. What
a kill may cut off is in ``history.csv`` too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resnet_onnx.training.history import COLUMNS, EpochRow
from runtimes.environment import load_library

_EXTRA = "resnet-onnx[tensorboard]"


def load() -> Any:
    """Returns torch's module that writes TensorBoard logs.

    Raises:
        RuntimeUnavailable: TensorBoard is not installed; the message names the extra.
    """
    load_library("tensorboard", runtime="TensorBoard logs", package=_EXTRA)
    return load_library("torch.utils.tensorboard", runtime="TensorBoard logs", package=_EXTRA)


def log(folder: Path, row: EpochRow, step: int) -> None:
    """Appends the figures of an epoch to the logs in a folder; TensorBoard reads its files as one run.

    Args:
        folder: Of the logs.
        row: One of ``TrainingResult.epochs``.
        step: Steps done in the whole training; what the logs have from there on, of a run that was killed, is void.

    Raises:
        RuntimeUnavailable: TensorBoard is not installed.
    """
    with load().SummaryWriter(str(folder), purge_step=step) as writer:
        for name in COLUMNS[2:]:
            value = row.get(name)
            if value is not None:
                writer.add_scalar(_tag(name), value, step)


def _tag(column: str) -> str:
    """Returns ``loss/train`` for ``train_loss``, so that what belongs together is in one chart; others as they are."""
    split, _, figure = column.partition("_")
    return f"{figure}/{split}" if split in ("train", "validation") else column
