"""The documents of ``reproduce``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from resnet_onnx.results.document import Document


@dataclass(frozen=True, kw_only=True)
class DegradationRow:
    """The figures of one network, after its last epoch.

    Attributes:
        model: Its name.
        kind: ``plain`` or ``residual``.
        depth: Weighted layers.
        parameters: Of the network.
        multiply_adds: For one picture.
        epochs: Trained.
        steps: Trained.
        training_error: On unchanged training pictures, 0 to 1.
        training_error_ci95: Its 95 % interval.
        training_loss: Mean cross-entropy on them.
        test_error: On the test pictures, 0 to 1.
        test_error_ci95: Its 95 % interval.
        test_loss: Mean cross-entropy on them.
        seconds: Of training, tests after each epoch included.
        images_per_second: Of the last epoch's training.
        checkpoint: Folder of the last epoch.
    """

    model: str
    kind: str
    depth: int
    parameters: int
    multiply_adds: int
    epochs: int
    steps: int
    training_error: float
    training_error_ci95: tuple[float, float]
    training_loss: float
    test_error: float
    test_error_ci95: tuple[float, float]
    test_loss: float
    seconds: float
    images_per_second: float
    checkpoint: str


@dataclass(frozen=True, kw_only=True)
class DepthComparison:
    """The deepest network of a kind against the shallowest.

    Attributes:
        pictures_of: ``training`` or ``test``.
        difference: How much more of the pictures the deeper one gets wrong.
        ci95: Its interval.
        p_value: Of the exact McNemar test.
        outcome: The deeper one is ``worse`` or ``better``, or ``undecided``.
    """

    kind: str
    pictures_of: str
    shallow: int
    deep: int
    shallow_error: float
    deep_error: float
    difference: float
    ci95: tuple[float, float]
    p_value: float
    outcome: str
    pictures: int


@dataclass(frozen=True, kw_only=True)
class ShortcutCost:
    """One runtime at one batch size, for one depth.

    Attributes:
        depth: Weighted layers of both networks.
        runtime: Where.
        batch: Pictures a run.
        plain_images_per_second: Images per second of the plain network, or None where it could not be measured.
        residual_images_per_second: Of the residual one.
        ratio: Residual over plain; below 1, the shortcut costs something.
        ci95: Of the ratio; None where there were too few samples.
        doubts: Why the two are not stable measurements, or what went wrong; empty where nothing is in doubt.
    """

    depth: int
    runtime: str
    batch: int
    plain_images_per_second: float | None
    residual_images_per_second: float | None
    ratio: float | None
    ci95: tuple[float, float] | None
    doubts: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Degradation(Document):
    """The experiment on plain and residual networks of several depths.

    Attributes:
        reproduced: Whether the paper's claim came out; None where it is undecided.
        plot: The figure.
        csv: The numbers of every epoch.
    """

    kind: ClassVar[str] = "reproduce"

    experiment: str = "degradation"
    data: str
    rows: Sequence[DegradationRow]
    verdict: str
    reproduced: bool | None
    comparisons: Sequence[DepthComparison]
    shortcut_cost: Sequence[ShortcutCost]
    plot: str
    csv: str
    recipe: Mapping[str, Any]
    seed: int
    training_seconds: float


@dataclass(frozen=True, kw_only=True)
class CountedStage:
    """The convolutions whose output has one size, as counted."""

    output: tuple[int, int]
    convolutions: int
    channels: int
    multiply_adds: int


@dataclass(frozen=True, kw_only=True)
class PrintedStage:
    """The convolutions whose output has one size, as printed."""

    output: tuple[int, int]
    convolutions: int


@dataclass(frozen=True, kw_only=True)
class CountedNetwork:
    """One network of table 1, counted, beside what is printed; `differs` says in what it does."""

    model: str
    layers: int
    printed_layers: int | None
    stages: Sequence[CountedStage]
    printed_stages: Sequence[PrintedStage]
    parameters: int
    printed_parameters_m: float | None
    multiply_adds: int
    printed_multiply_adds_g: float | None
    difference: float | None
    convention: str | None
    source: str | None
    differs: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Table1(Document):
    """Table 1 of the ResNet paper, counted."""

    kind: ClassVar[str] = "reproduce"

    experiment: str = "table1"
    rows: Sequence[CountedNetwork]
    verdict: str
    agrees: bool
    plot: str | None = None
