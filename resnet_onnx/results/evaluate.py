"""The documents of ``evaluate`` and ``predict``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from msgspec import Meta

from resnet_onnx.results.document import Amount, Document, Fraction, SkippedPicture, Whole


@dataclass(frozen=True, kw_only=True)
class OneCrop:
    """What the centre crop alone gives, found in the same run as an average over several views of each picture."""

    top1: float
    top5: float | None


@dataclass(frozen=True, kw_only=True)
class EvaluateRow:
    """Accuracy on one runtime.

    Attributes:
        top1: Share of the pictures whose class has the highest output, 0 to 1.
        top5: Share whose class is among the five highest; None for a model of fewer than five classes.
        images_per_second: In steady state, decoding included: without the start of the workers, the runtime's first
            run and the pictures that were decoded meanwhile. Where all were decoded meanwhile, of the whole wall time.
        seconds: Wall time of everything.
        not_finite: Pictures for which the model gave NaN (in an average of several views: NaN or Inf); they count as
            wrong.
        one_crop: The centre crop alone, where several views of each picture were averaged.
        classes_by: How classes were given their outputs: ``name``, ``number`` or ``order``.
    """

    runtime: str
    top1: Fraction
    top5: Fraction | None
    images: Whole
    images_per_second: Amount
    seconds: float | None = None
    skipped: Sequence[SkippedPicture] = ()
    not_finite: int = 0
    one_crop: OneCrop | None = None
    classes_by: str | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluate(Document):
    """Accuracy on labelled pictures; the figures of the first runtime stand beside ``results`` too.

    Attributes:
        data: The pictures.
        views: What was looked at of each picture, in words: ``1 crop``.
        resize: Shorter side before the crops, pixels; None is the model's own.
        scales: Shorter sides of whole pictures, pixels.
        notes: What the user should know of how model, labels and pictures were read.
    """

    kind: ClassVar[str] = "evaluate"

    model: str
    precision: str
    data: str
    views: str | None = None
    crops: int | None = None
    resize: int | None = None
    scales: Sequence[int] | None = None
    runtime: str | None = None
    top1: float | None = None
    top5: float | None = None
    images: int | None = None
    images_per_second: float | None = None
    seconds: float | None = None
    skipped: Sequence[SkippedPicture] = ()
    not_finite: int | None = None
    one_crop: OneCrop | None = None
    classes_by: str | None = None
    notes: Sequence[str] = ()
    results: Annotated[Sequence[EvaluateRow], Meta(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One class that a picture may show: its name, its place in the model's output, its probability, 0 to 1."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True, kw_only=True)
class PredictionRecord:
    """The likeliest classes of one picture, likeliest first."""

    image: str
    top: Sequence[Candidate]


@dataclass(frozen=True, kw_only=True)
class Predict(Document):
    """What pictures show.

    Attributes:
        skipped: Pictures that can't be decoded.
        notes: What the user should know of how model, labels and pictures were read.
    """

    kind: ClassVar[str] = "predict"

    model: str
    runtime: str
    predictions: Sequence[PredictionRecord]
    skipped: Sequence[SkippedPicture]
    plot: str | None
    notes: Sequence[str] = ()
