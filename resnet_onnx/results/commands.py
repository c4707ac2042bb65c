"""The documents of the commands whose results are printed only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypedDict

from resnet_onnx.results.convert import Export
from resnet_onnx.results.document import Document, Environment, FileRecord, Gpus, SkippedPicture
from runtimes.base import Availability
from runtimes.cache import Pruned, Usage


class EpochRecord(TypedDict):
    """The figures of one epoch; accuracies are shares, times are of the training pass.

    Attributes:
        epoch: From 1.
        steps: Of this epoch.
        train_loss: Mean over the steps.
        train_top1: On augmented pictures, while training.
        input_seconds: Spent waiting for pictures and changing them.
        learning_rate: Of the last step.
        validation_loss: Mean cross-entropy; None where nothing is held out, as the accuracy is.
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


class BestEpoch(TypedDict):
    """The epoch that was chosen; `top1` is None where nothing is held out."""

    epoch: int
    top1: float | None


@dataclass(frozen=True, kw_only=True)
class Train(Document):
    """What a training came to.

    Attributes:
        checkpoint: Folder of the best epoch by validation accuracy.
        last: Folder of the last epoch.
        test_top1: Of the best epoch, computed after the choice; None without a test split.
        resumed_from: The epoch after which it went on, or None.
        recipe: Every field, as it was used.
        plot: The curves, or None.
        notes: What the user should know of how the pictures were read.
    """

    kind: ClassVar[str] = "train"

    checkpoint: str
    last: str
    epochs: Sequence[EpochRecord]
    best: BestEpoch
    test_top1: float | None
    images_per_second: float
    resumed_from: int | None
    recipe: Mapping[str, Any]
    model: str
    data: str
    seed: int
    processes: int
    skipped: Sequence[SkippedPicture]
    plot: str | None
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Recipes(Document):
    """Every named recipe with all its fields: ``train --list-recipes``."""

    kind: ClassVar[str] = "train"

    recipes: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class EngineLayers:
    """How many layers of one type and precision a parsed network has."""

    type: str
    precision: str
    count: int


@dataclass(frozen=True, kw_only=True)
class BuildEngine(Document):
    """An engine.

    Attributes:
        key: SHA-256 of everything that changes it.
        seconds: How long it took to build, now or when the cached one was made.
        replaced: Why an engine in the cache was built again, or "".
        target: Compute capability, ``sm86``; of compiled code the machine and its instruction sets.
        shapes: Accepted shapes by input.
        onnx: What it was built from; None where that is a network in torch.
        options: How compiled code was compiled.
    """

    kind: ClassVar[str] = "build"

    path: str
    key: str
    seconds: float
    cached: bool
    replaced: str
    size_bytes: int
    sha256: str
    library: str
    library_version: str
    target: str
    shapes: Mapping[str, str]
    tf32: bool
    layers: Sequence[EngineLayers]
    warnings: Sequence[str]
    cache_path: str
    runtime: str
    model: str
    precision: str
    onnx: FileRecord | None
    options: Mapping[str, int | bool | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BuildLowered(Document):
    """An int8 file in the form that one runtime runs fastest.

    Attributes:
        exact: Whether it clips where the portable file clips.
        changes: How often each change was made.
        onnx: The portable file.
    """

    kind: ClassVar[str] = "build"

    path: str
    key: str
    seconds: float
    cached: bool
    cache_path: str
    runtime: str
    model: str
    precision: str
    exact: bool
    changes: Mapping[str, int]
    size_bytes: int
    onnx: FileRecord


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One sentence on top of the page: good news, bad news, or a reason for doubt."""

    state: Literal["good", "bad", "doubt"]
    text: str


@dataclass(frozen=True, kw_only=True)
class ReportedFile:
    """A saved result that is on the page."""

    path: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class Report(Document):
    """The page that was written."""

    kind: ClassVar[str] = "report"

    path: str
    passed: bool
    findings: Sequence[Finding]
    results: Sequence[ReportedFile]


@dataclass(frozen=True, kw_only=True)
class Doctor(Document):
    """What this machine can run; `gpu` is that of `machine` again.

    Attributes:
        runtimes: Each on its default device.
        on_cuda: Where there is an NVIDIA GPU, those that run on a CPU by default and on a GPU too, tried there.
    """

    kind: ClassVar[str] = "doctor"

    runtimes: Sequence[Availability]
    machine: Environment
    gpu: Gpus
    cache: str
    on_cuda: Sequence[Availability] = ()


@dataclass(frozen=True, kw_only=True)
class CachedEngineRecord:
    """An engine in the cache; `last_used` is in seconds since 1970, what is unknown is ""."""

    path: str
    size_bytes: int
    last_used: float
    model: str
    library: str
    target: str
    shapes: str
    problem: str


@dataclass(frozen=True, kw_only=True)
class Cache(Document):
    """What the cache holds: ``doctor --cache``."""

    kind: ClassVar[str] = "doctor"

    cache: str
    size_bytes: int
    kinds: Sequence[Usage]
    engines: Sequence[CachedEngineRecord]
    removed: Sequence[Pruned]


@dataclass(frozen=True, kw_only=True)
class PublishedError:
    """A published error, percent, and how it was measured."""

    top1_percent: float | None
    top5_percent: float | None
    protocol: str
    source: str


@dataclass(frozen=True, kw_only=True)
class TorchvisionWeights:
    """Weights that torchvision offers, and their accuracy, percent."""

    weights: str
    top1_percent: float
    top5_percent: float


@dataclass(frozen=True, kw_only=True)
class PublishedRecord:
    """What was published about a network; multiply-adds in 10⁹, parameters in 10⁶."""

    multiply_adds_g: float | None
    multiply_adds_source: str | None
    parameters_m: int | float | None
    parameters_source: str | None
    errors: Sequence[PublishedError]
    note: str | None
    torchvision: TorchvisionWeights | None


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """A network, counted.

    Attributes:
        dataset: What it is for; None for a library's network with another number of classes.
        weights: Which trained weights its library has, by tag, the default first; of the catalog's networks none.
        weights_license: License of the default ones as the library states it, or None.
    """

    name: str
    parameters: int
    multiply_adds: int
    image_size: int
    layers: int
    variant: str | None
    dataset: str | None
    published: PublishedRecord | None
    weights: Sequence[str] = ()
    weights_license: str | None = None


@dataclass(frozen=True, kw_only=True)
class Models(Document):
    """Networks of the catalog or of a library.

    Attributes:
        notes: Which networks were left out, and why.
    """

    kind: ClassVar[str] = "models"

    models: Sequence[ModelRecord]
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class DemoParity:
    """One runtime against the gold."""

    runtime: str
    relative_rmse: float | None
    budget: float | None
    passed: bool


@dataclass(frozen=True, kw_only=True)
class DemoSpeed:
    """One runtime at one batch size."""

    runtime: str
    batch: int
    images_per_second: float
    ci95: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class DemoPredicted:
    """How many of the pictures shown were right, and where they are drawn."""

    shown: int
    right: int
    picture: str


@dataclass(frozen=True, kw_only=True)
class Demo(Document):
    """What the demonstration came to.

    Attributes:
        report: The HTML page.
        passed: Accuracy, export and parity are all as promised.
        seconds: Wall time.
        answer: The sentence of ``optimize``; None where no engine could be shown to keep the limits in so short a time.
    """

    kind: ClassVar[str] = "demo"

    report: str
    passed: bool
    seconds: float
    test_top1: float | None
    required_top1: float
    training_images_per_second: float
    export: Export
    parity: Sequence[DemoParity]
    bench: Sequence[DemoSpeed]
    predicted: DemoPredicted
    answer: str | None = None
