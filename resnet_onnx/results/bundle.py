"""The documents of a bundle: what it says of itself, its proof, and what ``bundle`` and ``verify`` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from resnet_onnx.results.document import (
    Amount,
    Count,
    Document,
    Environment,
    FileRecord,
    Fraction,
    Positive,
    Whole,
    check_ends,
)

LimitVerdict = Literal["met", "broken", "undecided"]
Verdict = Literal["pass", "fail", "note", "skipped"]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A limit that the user set, and how the choice stands to it.

    Attributes:
        name: ``p99``, ``top1_drop``, ``agreement``, ``throughput`` …
        limit: In the unit of the option: milliseconds, points, a share, images per second.
        value: What was found; None where it was not measured.
        ci95: Its 95 % interval, by which it was judged.
    """

    name: str
    limit: float
    value: float | None = None
    ci95: tuple[float, float] | None = None
    verdict: LimitVerdict

    def __post_init__(self) -> None:
        check_ends("ci95", self.ci95)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of one run of the batch, queueing not included; `p99` is None where too few runs were timed."""

    p50: Positive
    p99: Positive | None = None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How fast it is; what is None was not measured.

    Attributes:
        over_reference: Images per second over those of the reference, measured in turns.
        over_reference_ci95: Its interval, which holds whenever the measurement was stopped.
        images_per_second: On the machine where it was measured, at its pace.
        pace_us: Microseconds that this machine took for a fixed piece of arithmetic beside it (``bench.clock.pace``).
        measured_s: Time of all turns.
    """

    over_reference: Positive | None = None
    over_reference_ci95: tuple[float, float] | None = None
    images_per_second: Positive | None = None
    images_per_second_ci95: tuple[float, float] | None = None
    latency_ms: Latency | None = None
    pace_us: Positive | None = None
    measured_s: Amount | None = None

    def __post_init__(self) -> None:
        check_ends("over_reference_ci95", self.over_reference_ci95)
        check_ends("images_per_second_ci95", self.images_per_second_ci95)


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or output of the model; `place` is its place among its kind, and a text in a shape is an open axis."""

    name: str
    dtype: str
    shape: Sequence[int | str]
    place: Whole = 0


@dataclass(frozen=True, kw_only=True)
class BundledModel:
    """The model in a bundle.

    Attributes:
        file: What the runtime loads.
        form: ``onnx``, ``lowered onnx`` or ``engine``.
        portable: The portable ONNX file; `file` itself where that is one. None where only an engine was given.
        weights: Where they came from, in words.
        license: Of the weights; None where it is not known.
    """

    name: str
    file: str
    form: Literal["onnx", "lowered onnx", "engine"]
    portable: str | None
    input: Tensor
    output: Tensor
    weights: str | None = None
    weights_sha256: str | None = None
    license: str | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the runtime was set while it was measured; ``run.py`` sets it the same.

    Attributes:
        batch: Pictures a run.
        streams: Runs beside each other.
        threads: CPU threads over all streams together; None on a GPU.
        spin: Whether idle threads spin; None where the library has no such choice.
        precision_hint: What OpenVINO was told to compute floating point in; None elsewhere.
        recorded: All that the runtime reported of itself.
    """

    batch: Annotated[int, Meta(ge=1, le=65_536)]
    streams: Annotated[int, Meta(ge=1, le=4096)]
    threads: Annotated[int, Meta(ge=1, le=4096)] | None = None
    spin: bool | None = None
    precision_hint: str | None = None
    device: str = "cpu"
    recorded: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PicturePreparation:
    """From a picture to the model's input.

    Attributes:
        resize: Length that the shorter side is scaled to, pixels, antialiased.
        crop: Side of the square that is cut from the middle, pixels.
        mean: In RGB, as fractions of 1; not used where the input takes bytes.
        channels: Order in which the model takes them.
        dtype: Of the tensor; ``uint8`` has the normalisation in the graph.
    """

    resize: Count
    interpolation: Literal["bilinear", "bicubic"]
    crop: Count
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    channels: Literal["RGB", "BGR"] = "RGB"
    dtype: Literal["float32", "float16", "uint8"] = "float32"


@dataclass(frozen=True, kw_only=True)
class ReferenceRecord:
    """What speed is a ratio to: the float32 network on the same library with one CPU thread, or a product on the GPU.

    Attributes:
        file: In the bundle; it has the network's graph and none of its weights.
    """

    file: str
    input: Tensor
    output: Tensor
    batch: Count = 1
    threads: Count = 1


@dataclass(frozen=True, kw_only=True)
class Bundle(Document):
    """What a bundle says of itself: ``bundle.json``.

    Attributes:
        tool: The program that wrote it, and its version.
        labels: A name per output.
        files: Every other file but ``bundle.sha256``, with its hash.
        machine: Where it was measured.
        packages: What ``requirements.txt`` pins, by distribution.
        notes: What the user should know.
    """

    kind: ClassVar[str] = "bundle"

    tool: str
    runtime: str
    precision: str
    model: BundledModel
    settings: Settings
    preprocessing: PicturePreparation
    labels: Sequence[str]
    files: Sequence[FileRecord]
    limits: Sequence[Limit] = ()
    figures: Figures
    reference: ReferenceRecord | None = None
    machine: Environment
    packages: Mapping[str, str]
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class ProofBudget:
    """What the scores may differ by from gold, as a relative RMSE, and why; one picture's at most `picture`."""

    relative_rmse: Amount
    picture: Amount
    reason: str


@dataclass(frozen=True, kw_only=True)
class Proof(Document):
    """What the outputs are held against: ``proof/proof.json``; the numbers lie beside it.

    Attributes:
        pictures: Files in ``proof/``, in the order of the tensors; empty where none were written.
        gold: What the truth is, in words.
        decisions: Gold's best class of each picture.
        labels: Their labels.
        labels_sha256: Of all labels, joined by newlines.
        reference_decisions: Of the network before its precision was changed; None where it was not.
        agreement: Share of the pictures that the bundle decided as that network.
        margin_multiple: How many times the largest error of a picture its two best scores may be apart where another
            class is chosen.
    """

    kind: ClassVar[str] = "proof"

    pictures: Sequence[str]
    gold: str
    budget: ProofBudget
    decisions: Sequence[Whole]
    labels: Sequence[str]
    labels_sha256: Sha256
    reference_decisions: Sequence[Whole] | None = None
    agreement: Fraction | None = None
    margin_multiple: Amount


@dataclass(frozen=True, kw_only=True)
class BundleResult(Document):
    """The bundle that was written.

    Attributes:
        path: The folder.
        sha256: Of ``bundle.json``, which has the hash of every other file: what ``verify --sha256`` pins.
        parity: Relative RMSE of the proof's outputs against gold, and its budget.
        prepared_s: Seconds that gold, parity and the measurement took.
        written_s: Seconds that the rest took.
    """

    kind: ClassVar[str] = "bundle"

    path: str
    sha256: str
    runtime: str
    precision: str
    files: Sequence[FileRecord]
    size_bytes: int
    figures: Figures
    relative_rmse: float | None = None
    budget: float | None = None
    prepared_s: float = 0.0
    written_s: float = 0.0
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True, kw_only=True)
class VerifiedSpeed:
    """Speed as a ratio to the reference.

    Attributes:
        promised: The bundle's.
        measured: Here.
        ratio: Measured over promised.
        ratio_ci95: Its interval.
    """

    promised: float | None = None
    measured: float | None = None
    ratio: float | None = None
    ratio_ci95: tuple[float, float] | None = None
    images_per_second: float | None = None
    latency_ms: Latency | None = None


@dataclass(frozen=True, kw_only=True)
class Verify(Document):
    """Whether a bundle still computes and runs here what it did where it was made.

    Attributes:
        sha256: Of its ``bundle.json``.
    """

    kind: ClassVar[str] = "verify"

    passed: bool
    path: str
    sha256: str
    runtime: str
    precision: str
    checks: Sequence[Check]
    speed: VerifiedSpeed
    notes: Sequence[str] = ()
