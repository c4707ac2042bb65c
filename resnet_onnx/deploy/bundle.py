"""Writes a bundle: the file that the runtime loads, how it was set, how pictures are prepared, and the evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from resnet_onnx.results.bundle import BundleResult, Figures, Limit
from resnet_onnx.results.convert import Convert
from resnet_onnx.results.document import Document
from resnet_onnx.results.evaluate import Evaluate
from resnet_onnx.results.parity import Parity
from resnet_onnx.workflow.request import UNTUNED, Model
from runtimes.errors import UsageError
from runtimes.spec import RuntimeOptions

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class BundleContents:
    """What a bundle is written from; everything measured was measured before.

    Attributes:
        model: The form that runs, after a change of precision.
        original: The network before it; the same model where nothing changed.
        options: Streams, threads and the like, as measured.
        device: Of the runtime; None is its own default.
        figures: Its speed, as ``measure_against_reference`` finds it, or as a race confirmed it.
        parity: Kept under ``proof/``, as the other documents are; the proof's own pictures are judged in any case.
        results: Further documents kept under ``proof/``, by file name (``optimize.json``).
        pictures: The proof's: ``samples``, or ``data`` for the first of `data`, or ``none`` for tensors alone.
        data: Pictures of the user's, where `pictures` is ``data``.
        license: Of the weights; None where it is not known.
        report: Writes ``report.html``; None writes the one that ``report`` makes of the documents.
        notes: What the user should know.
    """

    model: Model
    original: Model
    runtime: str
    batch: int
    options: RuntimeOptions = UNTUNED
    device: str | None = None
    figures: Figures
    parity: Parity | None = None
    conversion: Convert | None = None
    accuracy: Evaluate | None = None
    limits: tuple[Limit, ...] = ()
    results: Mapping[str, Document] = field(default_factory=dict)
    pictures: str = "samples"
    data: str | None = None
    license: str | None = None
    report: Callable[[Path], None] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"batch must be at least 1, not {self.batch}")
        if self.pictures not in ("samples", "data", "none"):
            raise UsageError(f"proof pictures are samples, data or none, not '{self.pictures}'")
        if self.pictures == "data" and self.data is None:
            raise UsageError("--proof-pictures data needs pictures", fix="name them: --data D")


def write_bundle(contents: BundleContents, out: Path, *, progress: Progress = lambda _: None) -> BundleResult:
    """Writes a bundle into `out`, whole or not at all; a bundle that is there is replaced.

    Raises:
        UsageError: `out` is there and not a bundle, or the runtime can't be deployed without this program.
        CheckFailed: The runtime does not compute what gold does on the proof's pictures.
        FileProblem: The folder can't be written.
    """
    raise NotImplementedError
