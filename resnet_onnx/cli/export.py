"""``resnet-onnx export``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnet_onnx.cli.options import make_command, model_options
from resnet_onnx.cli.terminal import Terminal
from runtimes.errors import UsageError

if TYPE_CHECKING:
    from resnet_onnx.workflow import OnnxForm, Request

_LARGEST_BATCH = 4096


class _Batch(click.ParamType[int]):
    name = "dynamic|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "dynamic":
            return 0
        try:
            number = int(value)
        except ValueError:
            self.fail(f"'{value}' is neither 'dynamic' nor a whole number", param, ctx)
        if not 0 <= number <= _LARGEST_BATCH or str(value) == "0":
            self.fail(f"{number}: expected 1 to {_LARGEST_BATCH}, or 'dynamic'", param, ctx)
        return number


@make_command("export", example="resnet-onnx export --depth 101", polite=True)
@model_options(required=False)
@click.option("--depth", type=int, help="An ImageNet ResNet: 18, 34, 50, 101 or 152.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="File to write; NAME.onnx by default.")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16"]), default="fp32",
              show_default=True, help="Inputs and outputs stay fp32.")  # fmt: skip
@click.option("--input", "element", type=click.Choice(["float32", "uint8"]), default="float32", show_default=True,
              help="uint8 puts the normalisation into the graph.")  # fmt: skip
@click.option("--layout", type=click.Choice(["NCHW", "NHWC"]), help="Of a uint8 input; NHWC by default.")
@click.option("--batch", type=_Batch(), default="dynamic", show_default=True)
@click.option("--opset", type=int, help="ONNX operator set, 18 to 24.")
def command(
    terminal: Terminal,
    *,
    request: Request,
    depth: int | None,
    output: Path | None,
    precision: str,
    element: str,
    layout: str | None,
    batch: int,
    opset: int | None,
) -> None:
    """Export a network to one self-contained ONNX file, verified against torch before it is kept.

    MODEL is a catalog name, timm:NAME or torchvision:NAME, a checkpoint folder or a weights file; --depth N names an
    ImageNet ResNet. Weights are random unless --weights says otherwise.
    """
    request = _with_depth(request, depth)
    if precision == "bf16" and opset is not None and opset < 22:
        raise UsageError(
            f"--opset {opset}: convolutions take bfloat16 from opset 22 on", fix="--opset 22, or leave it out"
        )
    request = replace(request, form=_form(element, layout, batch, opset))
    target = output or Path(_default_name(request))
    if target.is_dir():
        target = target / _default_name(request)
    if target.suffix.lower() != ".onnx":
        raise UsageError(f"--output {target}: an ONNX file ends in .onnx", fix=f"--output {target}.onnx")

    from resnet_onnx import workflow
    from resnet_onnx.results.document import known

    with terminal.status("preparing the network") as status:
        model = workflow.resolve(request)
        if model.onnx is not None:
            raise UsageError(
                f"{request.model} is an ONNX file already", fix="give a catalog name, checkpoint or weights"
            )
        status.update(f"exporting and verifying {model.name}")
        if precision == "fp32":
            result = workflow.export(model, target)
        else:
            result = workflow.export_half(model, target, precision, progress=status.update)
    for note in model.notes:
        terminal.note(f"{model.name}: {note}")
    verified = result.verified
    shown = replace(model, precision=result.precision)
    terminal.line(f"{result.path}  {result.size_bytes / 1e6:.1f} MB  {shown.description}")
    terminal.line(
        f"Verified against torch at batch {', '.join(map(str, verified.batches))} on {verified.runtime}: "
        f"relative RMSE {verified.relative_rmse:.1e}. SHA-256 {result.sha256[:16]}…"
    )
    half = known(result.conversion)
    if half is not None:
        terminal.line(
            f"In {precision} {half.sqnr_db:.1f} dB signal to noise against fp32 ({half.agreement_runtime}); "
            f"{len(half.kept_fp32 or ())} layers kept in fp32"
        )
    terminal.advice(f"Next: resnet-onnx parity {result.path} --runtimes all")
    terminal.emit(result)


def _with_depth(request: Request, depth: int | None) -> Request:
    from resnet_onnx.models import catalog

    if depth is not None:
        if request.model is not None:
            raise UsageError(f"--depth {depth} and '{request.model}' both name a network; give one")
        return replace(request, model=catalog.by_depth(depth, request.variant).name, variant=None)
    if request.model is None:
        raise UsageError(
            "nothing to export: give --depth N, --model NAME or MODEL", fix="resnet-onnx export --depth 50"
        )
    return request


def _form(element: Any, layout: Any, batch: int, opset: int | None) -> OnnxForm:
    from resnet_onnx.workflow import OnnxForm

    if opset is not None and not 18 <= opset <= 24:
        raise UsageError(f"--opset {opset}: torch's exporter writes 18 to 24")
    layout = layout or ("NHWC" if element == "uint8" else "NCHW")
    return OnnxForm(input=element, layout=layout, batch=batch or None, opset=opset)


def _default_name(request: Request) -> str:
    from resnet_onnx.models import libraries
    from resnet_onnx.models.network import file_stem

    given = str(request.model) if request.name is None else request.name
    name = file_stem(given) if request.name or libraries.parse(given) else Path(given).stem
    suffix = "-v1" if request.variant == "v1" and not name.endswith("-v1") else ""
    return f"{name}{suffix}.onnx"
