"""From a float32 model to a file in another precision, which passes a gate before it is written."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_onnx.results.convert import Convert, Export
from resnet_onnx.results.writing import typed
from resnet_onnx.version import __version__
from resnet_onnx.workflow.accuracy import skip_bad_named
from resnet_onnx.workflow.onnx_form import onnx_path
from resnet_onnx.workflow.precision import gate as gates
from resnet_onnx.workflow.precision.candidates import Candidate, calibrated, half_candidate, int8_candidate
from resnet_onnx.workflow.precision.config import ConversionConfig
from resnet_onnx.workflow.precision.conversion import Conversion, Progress
from resnet_onnx.workflow.precision.drawing import draw
from resnet_onnx.workflow.precision.pictures import Pictures
from resnet_onnx.workflow.precision.search import ConversionResult, judged, search
from resnet_onnx.workflow.precision.sensitivity import sensitivity
from resnet_onnx.workflow.request import METADATA_PREFIX, Model
from runtimes import onnx_gate, registry
from runtimes.errors import UsageError

if TYPE_CHECKING:
    from resnet_onnx.data.datasets import PictureSet


@skip_bad_named()
def convert(
    model: Model,
    output: Path,
    config: ConversionConfig,
    *,
    pictures: tuple[PictureSet, PictureSet] | None = None,
    plot: Path | None = None,
    progress: Progress = lambda _: None,
) -> Convert:
    """Converts a float32 model to another precision and writes it, if it passes the gate.

    Args:
        model: The model; exported first where it has no ONNX form yet.
        output: Where to write.
        config: What the conversion should be.
        pictures: Those for calibration and validation, and those that are held out for the gate, in place of
            ``config.calibration``.
        plot: Where to draw sensitivity per layer and the histograms of ranges (int8 only); drawn of what the gate
            refuses too, since that is when one looks.
        progress: Called with what is being done.

    Raises:
        CheckFailed: It loses too much, or is too slow; nothing was written.
        UsageError: The model is not float32, or the data don't fit it.
        UnsupportedModel: It can't be converted.
    """
    if model.precision == "fp64":
        raise UsageError(
            f"{model.name} computes in float64, and {config.to} is made from float32",
            fix="export the model in float32; in torch: model.float()",
        )
    if model.precision != "fp32":
        raise UsageError(
            f"{model.name} is {model.precision} already", fix="convert the float32 model that it was made from"
        )
    if config.min_speedup is not None:
        registry.require_all(config.runtimes)
    source = onnx_gate.check_onnx(onnx_path(model))
    if output.resolve() == source.path.resolve():
        raise UsageError(f"--output {output} is the model itself, which stays as it is", fix="name another file")
    data = Pictures(model, config, pictures)
    with tempfile.TemporaryDirectory(prefix="resnet-onnx-") as name:
        conversion = Conversion(
            model=model, source=source, config=config, data=data, folder=Path(name), progress=progress
        )
        result = _int8(conversion, plot) if config.to == "int8" else _half(conversion)
        candidate = result.candidate
        speed = gates.speed(conversion, candidate) if config.min_speedup is not None else None
        record = {
            "to": config.to,
            "from_sha256": source.sha256,
            "made_by": f"resnet-onnx {__version__}",
            "agreement": result.comparison.agreement,
            "gate": result.gate,
            **candidate.record,
        }
        from converters import graph

        graph.set_metadata(candidate.model, {METADATA_PREFIX + "conversion": json.dumps(_plain(record))})
        written = graph.write(
            output, candidate.model, {"made_by": f"resnet-onnx {__version__}", "conversion": _plain(record)}
        )
    found = {
        "path": str(output),
        "sha256": written.sha256,
        "precision": config.to,
        "agreement": result.comparison.agreement,
        "agreement_images": result.comparison.images,
        "agreement_runtime": conversion.runtime,
        "agreement_computed_in": conversion.computes_in,
        "notes": [*(f"{model.name}: {note}" for note in model.notes), *data.notes, *_undecided(conversion)],
        "skipped": [{"image": name, "reason": reason} for name, reason in sorted(data.skipped.items())],
        "size_ratio": written.size_bytes / _total_bytes(source),
        "size_bytes": written.size_bytes,
        "sqnr_db": result.comparison.sqnr_db,
        "opset": written.opset,
        "model": model.name,
        "gate": result.gate,
        "speed": speed,
        "source": {"path": str(source.path), "sha256": source.sha256, "size_bytes": source.size_bytes},
        **candidate.shown,
    }
    return typed(Convert, found)


def _undecided(conversion: Conversion) -> list[str]:
    """Returns what to know of a conversion whose decisions may be read from the wrong output."""
    problem = conversion.model.scores.problem
    if not isinstance(problem, UsageError):
        return []
    return [f"decisions were compared on the first output, {conversion.deciding}: {problem.message} ({problem.fix})"]


def _half(conversion: Conversion) -> ConversionResult:
    result, verdict = judged(conversion, half_candidate(conversion))
    if verdict.problem is not None:
        raise gates.refusal(conversion, verdict.problem, [])
    return result


def _int8(conversion: Conversion, plot: Path | None) -> ConversionResult:
    found = calibrated(conversion)
    candidate = int8_candidate(conversion, found)
    result, verdict = judged(conversion, candidate)
    ranked = conversion.config.sensitivity or plot or verdict.problem
    layers = sensitivity(conversion, found.plan, found.ranges) if ranked else []

    def drawn(candidate: Candidate) -> None:
        if plot is not None:
            draw(
                plot,
                title=f"{conversion.model.name}: int8, ranges by {found.method}",
                layers=layers,
                order=found.plan.layers,
                kept=candidate.kept_fp32,
                observed=found.observed,
                ranges=found.ranges,
            )

    drawn(candidate)
    if verdict.problem is not None:
        if conversion.config.budget_minutes is None:
            raise gates.refusal(conversion, verdict.problem, layers)
        result = search(conversion, found, candidate.validation_sqnr_db, verdict, layers)
        drawn(result.candidate)
    result.candidate.shown["sensitivity"] = layers
    return result


def _total_bytes(checked: onnx_gate.CheckedModel) -> int:
    return checked.size_bytes + sum((checked.path.parent / name).stat().st_size for name in checked.external_data)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def export_half(model: Model, output: Path, precision: Any, *, progress: Progress = lambda _: None) -> Export:
    """Exports a network and converts it to half precision in one step; raises as ``export`` and ``convert``."""
    from resnet_onnx.workflow.onnx_form import export

    with tempfile.TemporaryDirectory(prefix="resnet-onnx-") as name:
        plain = Path(name) / output.name
        result = export(model, plain)
        converted = convert(replace(model, onnx=plain), output, ConversionConfig(to=precision), progress=progress)
    if converted.source is not None:
        converted = replace(converted, source=replace(converted.source, path=None))
    return replace(
        result,
        path=converted.path,
        sha256=converted.sha256,
        precision=converted.precision,
        size_bytes=converted.size_bytes,
        opset=converted.opset,
        conversion=converted,
    )


def default_output(model: Model, to: str) -> Path:
    """Returns the name of a converted file where none was given."""
    return Path(f"{model.file_stem}-{to}.onnx")
