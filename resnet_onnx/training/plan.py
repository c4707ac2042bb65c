"""What a training is given, what it reports while it runs, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resnet_onnx.models.catalog import CatalogEntry
from resnet_onnx.models.configs import NetworkConfig, with_classes
from resnet_onnx.results.commands import BestEpoch
from resnet_onnx.results.document import SkippedPicture
from resnet_onnx.training.history import EpochRow
from resnet_onnx.training.recipes import Recipe
from resnet_onnx.training.splits import TrainingData
from runtimes.errors import UsageError

if TYPE_CHECKING:
    import torch

Stage = Literal["checking", "loading", "training", "validating", "testing"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingPlan:
    """Everything that decides a training.

    The network has one output per class of the data set, and the class names become its labels.

    Attributes:
        entry: The network, from the catalog or a library.
        data: The pictures, as ``open_training_data`` returns them. Where they have no validation split,
            ``recipe.validation`` of every class is held out.
        recipe: Every number of the training. In several processes ``recipe.batch_size`` is divided among them, which
            changes the training only where docs/training.md says so.
        out: Folder of the run.
        seed: Decides initial weights, held-out pictures, order and augmentation.
        resume: Go on from ``out/last``; start where there is none; return at once where it is complete.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None selects a GPU where there is one.
        threads: CPU threads; None leaves torch's setting. One thread makes runs reproducible to the bit.
        workers: Processes that load pictures; None chooses by the size of the data set.
        initial_state: State dict to start from, or None for fresh weights.
        weights_license: License of what it starts from, where that is stated.
        skip_bad: Up to so many pictures may be left out because they can't be decoded; where it is not 0, all are
            decoded once to find them.

    Raises:
        UsageError: A number is out of range.
    """

    entry: CatalogEntry
    data: TrainingData
    recipe: Recipe
    out: Path
    seed: int = 0
    resume: bool = False
    device: str | None = None
    threads: int | None = None
    workers: int | None = None
    initial_state: Mapping[str, torch.Tensor] | None = None
    weights_license: str | None = None
    skip_bad: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (("threads", self.threads, 1), ("workers", self.workers, 0),
                                   ("skip_bad", self.skip_bad, 0)):  # fmt: skip
            if value is not None and value < least:
                raise UsageError(f"{name} must be a whole number of at least {least}, not {value}")

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, in the order of the network's outputs."""
        return self.data.train.classes

    @property
    def config(self) -> NetworkConfig:
        """The architecture, with one output per class."""
        return with_classes(self.entry.config, len(self.labels))


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a training stands; given to the callback at every step.

    Attributes:
        epoch: From 1.
        epochs: Of the whole training.
        step: Steps done in this epoch.
        steps: Steps of an epoch.
        done: Steps done in the whole training.
        total: Steps of the whole training.
        loss: Of the last step whose loss was read, or None.
        top1: Accuracy on this epoch's pictures so far, augmented and while training, 0 to 1; or None.
        images_per_second: Of this epoch so far, or None.
        finished: The epoch's figures, once, when it is over.
    """

    stage: Stage
    epoch: int
    epochs: int
    step: int = 0
    steps: int = 0
    done: int = 0
    total: int = 0
    loss: float | None = None
    top1: float | None = None
    images_per_second: float | None = None
    finished: EpochRow | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The outcome of a training.

    Attributes:
        checkpoint: Folder of the best epoch by validation accuracy (the last epoch, where nothing is held out).
        last: Folder of the last epoch.
        recipe: As it was used, with every ``auto`` resolved.
        test_top1: Of the best checkpoint on the test split, computed after the choice; None without a test split.
        images_per_second: Training pictures by seconds over all epochs, without validation.
        resumed_from: The epoch after which this call went on, or None for a fresh start.
        skipped: Pictures that were left out because they can't be decoded.
    """

    checkpoint: Path
    last: Path
    recipe: Recipe
    epochs: list[EpochRow]
    best: BestEpoch
    test_top1: float | None
    images_per_second: float
    resumed_from: int | None
    skipped: tuple[SkippedPicture, ...] = ()
