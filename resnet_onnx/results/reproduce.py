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
        kind: ``plain`` or ``residual``, or the shortcut option.
        depth: Weighted layers.
        multiply_adds: For one picture.
        training_error: On unchanged training pictures, 0 to 1.
        training_loss: Mean cross-entropy on them.
        test_error: On the test pictures, 0 to 1.
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
        kind: ``plain`` or ``residual``.
        pictures_of: ``training`` or ``test``.
        shallow: Depth of the shallowest.
        deep: Depth of the deepest.
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
        batch: Pictures a run.
        plain_images_per_second: Of the plain network; None where it could not be measured, as in the next two fields.
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
        rows: The figures of every network.
        verdict: In words.
        reproduced: Whether the paper's claim came out: the deeper plain network has more training error, the deeper
            residual one less. False where the opposite of either came out, None where one is undecided.
        comparisons: Deep against shallow by kind, on training and on test pictures.
        shortcut_cost: In throughput; empty where it was not measured.
        plot: The figure.
        csv: The numbers of every epoch.
        recipe: As it was used.
        training_seconds: Over all networks, tests after each epoch included.
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
class ShortcutComparison:
    """One shortcut option against another, at the same depth.

    Attributes:
        pictures_of: ``training`` or ``test``.
        base: Option of the one, ``A``, ``B`` or ``C``.
        other: Option of the other.
        difference: How much more of the pictures the other one gets wrong.
        ci95: Its interval.
        p_value: Of the exact McNemar test.
        outcome: The other one is ``worse`` or ``better``, or ``undecided``.
    """

    pictures_of: str
    base: str
    other: str
    base_error: float
    other_error: float
    difference: float
    ci95: tuple[float, float]
    p_value: float
    outcome: str
    pictures: int


@dataclass(frozen=True, kw_only=True)
class Shortcuts(Document):
    """The experiment on the shortcut options.

    Attributes:
        rows: The figures of every network; the kind is its option.
        comparisons: Each option against each cheaper one, on training and on test pictures.
        verdict: In words.
        csv: The numbers of every epoch.
        recipe: As it was used.
        training_seconds: Over all networks, tests after each epoch included.
    """

    kind: ClassVar[str] = "reproduce"

    experiment: str = "shortcuts"
    data: str
    rows: Sequence[DegradationRow]
    comparisons: Sequence[ShortcutComparison]
    verdict: str
    csv: str
    recipe: Mapping[str, Any]
    seed: int
    training_seconds: float


@dataclass(frozen=True, kw_only=True)
class CountedStage:
    """The convolutions whose output has one size, as counted.

    Attributes:
        output: Height and width, pixels.
        convolutions: On the main path; projections on shortcuts are not counted.
        channels: Going out.
        multiply_adds: For one picture, projections included.
    """

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
    """One network of table 1, counted, beside what is printed.

    Attributes:
        difference: Of the multiply-adds, as a share of those printed.
        convention: Which way of counting gives the printed multiply-adds; None where none does, or none are printed.
        differs: What is counted here and printed otherwise, in words.
    """

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
