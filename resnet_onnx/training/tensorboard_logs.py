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
    load_library("tensorboard", purpose="TensorBoard logs", package=_EXTRA)
    return load_library("torch.utils.tensorboard", purpose="TensorBoard logs", package=_EXTRA)


def log(folder: Path, row: EpochRow, step: int) -> None:
    """Appends the figures of an epoch to the logs in a folder; TensorBoard reads its files as one run.

    What the logs have from `step` of the whole training on, of a run that was killed, is void.
    """
    with load().SummaryWriter(str(folder), purge_step=step) as writer:
        for name in COLUMNS[2:]:
            value = row.get(name)
            if value is not None:
                split, _, figure = name.partition("_")
                # ``loss/train`` for ``train_loss``: what belongs together is in one chart.
                tag = f"{figure}/{split}" if split in ("train", "validation") else name
                writer.add_scalar(tag, value, step)
