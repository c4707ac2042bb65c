"""The documents of ``convert`` and ``export``, which may convert what it exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from msgspec import UNSET, Struct, UnsetType

from resnet_onnx.results.document import Amount, Document, FileRecord, Fraction, SkippedPicture, Whole, check_ends


# Structs: ``kind`` says which of the two it is.
class Top1Gate(Struct, frozen=True, kw_only=True, tag_field="kind", tag="top1"):
    """Judged by accuracy.

    Attributes:
        images: Labelled pictures.
        drop_points: Below 0 where it rose.
        drop_ci95: Its paired 95 % interval.
    """

    images: int | None = None
    fp32_top1: float | None = None
    top1: Fraction
    drop_points: float
    drop_ci95: tuple[float, float]
    max_drop_points: Amount
    sqnr_db: float | None = None

    def __post_init__(self) -> None:
        check_ends("drop_ci95", self.drop_ci95)


class SqnrGate(Struct, frozen=True, kw_only=True, tag_field="kind", tag="sqnr"):
    """Judged by the noise of the outputs, decibels."""

    images: int | None = None
    sqnr_db: float | None = None
    least_sqnr_db: float
    agreement: float | None = None


@dataclass(frozen=True, kw_only=True)
class RuntimeSpeed:
    """Images per second of the new file on one runtime; `speedup` is over fp32."""

    speedup: Amount
    fp32_images_per_second: Amount | None = None
    images_per_second: Amount


@dataclass(frozen=True, kw_only=True)
class SpeedRecord:
    """What ``--min-speedup`` measured, by runtime."""

    batch: int | None = None
    min_speedup: float | None = None
    runtimes: Mapping[str, RuntimeSpeed]


@dataclass(frozen=True, kw_only=True)
class TriedMethod:
    """How well one way of finding ranges did on the validation pictures."""

    method: str
    agreement: float
    sqnr_db: float | None


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord:
    """The pictures that calibrated; hash and counts of files where they are not the sample photos."""

    data: str
    images: int
    files: int | UnsetType = UNSET
    skipped: int | UnsetType = UNSET
    seed: int
    sha256: str | UnsetType = UNSET


@dataclass(frozen=True, kw_only=True)
class KeptLayer:
    """A layer that stays in fp32, and why."""

    node: str
    operator: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class LayerNoise:
    """What rounding does to a layer's weights by itself, decibels; None where there is no noise."""

    layer: str
    sqnr_db: float | None


@dataclass(frozen=True, kw_only=True)
class TensorNoise:
    """What rounding does to a tensor by itself, decibels; None where there is no noise."""

    tensor: str
    sqnr_db: float | None


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """Noise of the outputs with one layer alone in int8, decibels, and its multiply-adds for one sample."""

    layer: str
    sqnr_db: float | None
    multiply_adds: int | None = None


@dataclass(frozen=True, kw_only=True)
class SearchStep:
    """One choice of layers in fp32; `passed` is None where the gate was not asked."""

    kept_fp32: Sequence[str]
    sqnr_db: float | None
    passed: bool | None


@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """What ``--budget-minutes`` tried; `cost_share` is the share of the multiply-adds that stays in fp32."""

    minutes: float
    tried: Sequence[SearchStep]
    cost_share: float | None


@dataclass(frozen=True, kw_only=True)
class Convert(Document):
    """A model in another precision: what it costs and what it saves.

    Attributes:
        agreement: Share of the held-out pictures that are decided as in fp32.
        agreement_images: How many they are.
        agreement_runtime: Where they were decided.
        agreement_computed_in: The precision in which it multiplied, where that is known.
        size_ratio: Bytes of the new file over the old one's.
        sqnr_db: Signal over quantisation noise of the outputs; None where there is no difference.
        gate: Why it was let pass.
        method: How the ranges were found.
        bias_corrected: ``""``, ``layers`` or ``layers and outputs``: whose mean shift is taken back in the biases.
        ranges: Clipping threshold by value.
        notes: What the user should know of how model, labels and pictures were read.
    """

    kind: ClassVar[str] = "convert"

    path: str = ""
    sha256: str = ""
    precision: str
    agreement: Fraction
    agreement_images: Whole
    agreement_runtime: str = ""
    agreement_computed_in: str | None = None
    skipped: Sequence[SkippedPicture] = ()
    size_ratio: Amount
    size_bytes: int = 0
    sqnr_db: float | None
    opset: int = 0
    model: str
    gate: Top1Gate | SqnrGate
    speed: SpeedRecord | None = None
    source: FileRecord | None = None
    method: str | UnsetType | None = UNSET
    bias_corrected: str | UnsetType = UNSET
    tried: Sequence[TriedMethod] | UnsetType = UNSET
    calibration: CalibrationRecord | UnsetType = UNSET
    kept_fp32: Sequence[KeptLayer] | None = ()
    converted_nodes: int | UnsetType = UNSET
    casts: int | UnsetType = UNSET
    layers: int | UnsetType = UNSET
    ranges: Mapping[str, float | None] | UnsetType = UNSET
    weights: Sequence[LayerNoise] | UnsetType | None = UNSET
    activations: Sequence[TensorNoise] | UnsetType | None = UNSET
    search: SearchRecord | UnsetType = UNSET
    sensitivity: Sequence[LayerSensitivity] | UnsetType | None = UNSET
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Verified:
    """How far an exported file is from torch, at which batch sizes, on which runtime."""

    batches: Sequence[int]
    relative_rmse: float
    runtime: str


@dataclass(frozen=True, kw_only=True)
class InputForm:
    """The form of an exported input; `batch` is a number or ``dynamic``."""

    input: str
    layout: str
    batch: int | str
    image_size: int


@dataclass(frozen=True, kw_only=True)
class Export(Document):
    """An exported ONNX file.

    Attributes:
        weights: Where the weights came from.
        conversion: Of ``--precision fp16`` and ``bf16``.
    """

    kind: ClassVar[str] = "export"

    path: str
    sha256: str
    precision: str
    verified: Verified
    size_bytes: int
    opset: int
    model: str
    weights: str
    weights_sha256: str
    weights_license: str | None = None
    input: InputForm
    conversion: Convert | UnsetType = UNSET
