"""``bundle``: changes precision where asked, measures or takes what was measured, and writes the bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from resnet_onnx.bench.paired import PairedPlan
from resnet_onnx.deploy.bundle import BundleContents, check_target, write_bundle
from resnet_onnx.deploy.reference import MEASURED_S, bundle_side, measure_against_reference, reference_side
from resnet_onnx.deploy.runner import need_standalone
from resnet_onnx.results.bench import Bench
from resnet_onnx.results.bundle import BundleResult, Figures, Latency
from resnet_onnx.results.convert import Convert
from resnet_onnx.results.document import Document, known
from resnet_onnx.results.evaluate import Evaluate
from resnet_onnx.results.parity import Parity
from resnet_onnx.results.reading import AnyResult, of_kind, read
from resnet_onnx.workflow import ConversionConfig, Request, batch_sizes, convert, graph_path, resolve
from resnet_onnx.workflow.request import UNTUNED, Model
from runtimes import onnx_gate
from runtimes.errors import BadData, RuntimeUnavailable, UsageError
from runtimes.spec import RuntimeOptions

Progress = Callable[[str], None]
BodyT = TypeVar("BodyT", bound=Document)


@dataclass(frozen=True, kw_only=True)
class BundlePlan:
    """What to bundle of a model.

    Attributes:
        precision: What to convert it to first; None leaves it as it is.
        batch: Pictures a run; None is the model's fixed batch, or 1.
        data: Pictures: calibrate a conversion, and may be the proof's.
        saved: Saved results of the same model to take in place of measuring.
        proof_pictures: ``samples``, ``data`` or ``none``.
        seconds: Time of the measurement against the reference, at most.
    """

    runtime: str
    precision: str | None = None
    batch: int | None = None
    options: RuntimeOptions = UNTUNED
    device: str | None = None
    data: str | None = None
    saved: Sequence[Path] = field(default_factory=tuple)
    proof_pictures: str = "samples"
    license: str | None = None
    seconds: float = MEASURED_S

    def __post_init__(self) -> None:
        if self.proof_pictures == "data" and self.data is None:
            raise UsageError("--proof-pictures data needs pictures", fix="name them: --data D")
        need_standalone(self.runtime)


def bundle(model: Model, plan: BundlePlan, out: Path, *, progress: Progress = lambda _: None) -> BundleResult:
    """Writes a bundle of a model.

    Raises:
        UsageError: `out` is there and not a bundle, or the plan does not fit the model.
        BadData: A saved result is of another model.
        CheckFailed: The runtime, or the conversion, does not pass.
    """
    check_target(out)
    results = [read(path) for path in plan.saved]
    with tempfile.TemporaryDirectory(prefix="resnet-onnx-") as folder:
        form, conversion = _converted(model, plan, Path(folder), progress)
        _check_results(form, plan.saved, results)
        (batch,) = batch_sizes(form, (plan.batch,) if plan.batch is not None else None)[:1]
        contents = BundleContents(
            model=form,
            original=model,
            runtime=plan.runtime,
            batch=batch,
            options=plan.options,
            device=plan.device,
            figures=_figures(form, model, plan, batch, results, progress),
            parity=_body(results, Parity),
            conversion=conversion or _body(results, Convert),
            accuracy=_body(results, Evaluate),
            pictures=plan.proof_pictures,
            data=plan.data,
            license=plan.license,
        )
        return write_bundle(contents, out, progress=progress)


def _converted(model: Model, plan: BundlePlan, folder: Path, progress: Progress) -> tuple[Model, Convert | None]:
    """Returns the model in the precision of the plan, and what its conversion found."""
    if plan.precision in (None, model.precision):
        return model, None
    if plan.precision == "fp32":
        raise UsageError(f"{model.name} is {model.precision}, and fp32 can't be made of it", fix="name its fp32 file")
    config = ConversionConfig(to=plan.precision, calibration=plan.data)  # type: ignore[arg-type]  # it checks that
    path = folder / f"{model.name}-{plan.precision}.onnx"
    progress(f"converting to {plan.precision}")
    found = convert(model, path, config, progress=progress)
    form = resolve(Request(model=str(path)))
    return replace(form, name=model.name, labels=model.labels, trained=model.trained), replace(found, path="")


def _check_results(model: Model, paths: Sequence[Path], results: Sequence[AnyResult]) -> None:
    """Raises ``BadData`` where a saved result is of another file than the model's."""
    path = graph_path(model)
    ours = None if path is None else onnx_gate.check_onnx(path).sha256
    for name, found in zip(paths, results, strict=True):
        if isinstance(found, Bench):
            theirs = found.model.sha256
        else:
            made = found.result.sha256 if isinstance(found.result, Convert) else None
            theirs = made or known(found.artifacts.onnx_sha256)
        if theirs is not None and ours is not None and theirs != ours:
            raise BadData(
                f"{name}: a result of another file (SHA-256 {theirs[:12]}…) than {model.name} ({ours[:12]}…)",
                fix="name the file that it was made of as MODEL",
            )


def _body(results: Sequence[AnyResult], kind: type[BodyT]) -> BodyT | None:
    found = of_kind(results, kind)
    return found[0].result if found else None


def _figures(
    form: Model, original: Model, plan: BundlePlan, batch: int, results: Sequence[AnyResult], progress: Progress
) -> Figures:
    """Measures the speed, or takes it from a saved benchmark."""
    for found in results:
        if isinstance(found, Bench):
            return _measured_before(found, plan, batch)
    side = bundle_side(form, plan.runtime, batch=batch, options=plan.options, device=plan.device)
    try:
        reference = reference_side(original, plan.runtime, device=plan.device)
    except RuntimeUnavailable:  # it opens no ONNX file
        return Figures()
    return measure_against_reference(side, reference, PairedPlan(duration_s=plan.seconds, seed=0), progress=progress)


def _measured_before(found: Bench, plan: BundlePlan, batch: int) -> Figures:
    """Returns the figures of the row of a saved benchmark that was measured as the plan says."""
    streams = plan.options.streams or 1
    for row in found.results:
        fits = row.runtime == plan.runtime and row.batch == batch and row.streams == streams
        if fits and row.error is None and row.images_per_second:
            latency, pace = row.latency_ms, row.disturbance.pace_us
            return Figures(
                images_per_second=row.images_per_second,
                images_per_second_ci95=row.images_per_second_ci95,
                latency_ms=Latency(p50=latency.p50, p99=latency.p99) if latency is not None and latency.p50 else None,
                pace_us=pace or None,
            )
    raise BadData(
        f"the saved benchmark has no row of {plan.runtime} at batch {batch} with {streams} stream"
        f"{'s' if streams > 1 else ''}",
        fix="measure it: leave out --from, or name its --batch and --streams",
    )
