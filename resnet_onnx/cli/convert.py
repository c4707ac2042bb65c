"""``resnet-onnx convert``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnet_onnx.cli.options import (
    Number,
    OutputFile,
    check_drawing,
    class_order_option,
    early_problem,
    make_command,
    model_options,
    save_option,
)
from resnet_onnx.cli.terminal import Terminal
from runtimes.errors import UsageError

if TYPE_CHECKING:
    from resnet_onnx.results.convert import Convert, KeptLayer, LayerSensitivity
    from resnet_onnx.workflow import Model, Request

_METHODS = ("auto", "minmax", "entropy", "percentile", "mse")
_SHOWN, _RANKED = 4, 10
_MANY = 1000
"""Pictures from which on the interval of a share says little that the share does not."""


@make_command("convert", example="resnet-onnx convert resnet50.onnx --to int8 --calibration imagenet/", polite=True)
@model_options()
@click.option("--to", required=True, type=click.Choice(["fp16", "bf16", "int8"]), help="The new precision.")
@click.option("--calibration", metavar="D", help="Pictures: a folder, a .zip, digits or cifar10; train split.")
@click.option("--output", "-o", type=OutputFile(folder=True), help="File to write; NAME-PRECISION.onnx by default.")
@click.option("--method", type=click.Choice(_METHODS), default="auto", show_default=True,
              help="How int8 finds its ranges; auto measures all.")  # fmt: skip
@click.option("--count", type=click.IntRange(1, 100_000),
              help="Calibration pictures.  [default: 512; fp16, bf16: 64]")  # fmt: skip
@click.option("--skip-bad", is_flag=True, help="Leave out pictures that can't be decoded; they are counted and named.")
@click.option("--held-out", type=click.IntRange(1, 1_000_000), default=5_000, show_default=True,
              help="Most pictures for the gate.")  # fmt: skip
@click.option("--max-drop", type=Number(min=0, min_open=True), default=1.0, show_default=True,
              help="Largest loss of top-1, points.")  # fmt: skip
@click.option("--min-speedup", type=Number(min=0, min_open=True), help="Least speed over fp32.")
@click.option("--runtime", "--runtimes", "runtimes",
              help="Where --min-speedup is measured.  [default: ort-cpu,openvino; bf16: openvino]")  # fmt: skip
@click.option("--keep-fp32", multiple=True, metavar="PATTERN", help="Layers to keep in fp32 ('layer4.*'); repeatable.")
@click.option("--budget-minutes", type=Number(min=0, min_open=True),
              help="Where int8 is refused: look so long for the layers to keep in fp32.")  # fmt: skip
@click.option("--sensitivity", is_flag=True, help="Rank the layers: each alone in int8.")
@click.option("--plot", type=OutputFile(), help="Draw sensitivity and ranges (int8; .png, .svg, .pdf).")
@click.option("--half-io", is_flag=True, help="Inputs and outputs in half too (fp16, bf16).")
@click.option("--per-tensor", is_flag=True, help="One weight scale per layer, not per channel (int8; worse).")
@class_order_option
@save_option
def command(
    terminal: Terminal,
    *,
    request: Request,
    to: Any,
    output: Path | None,
    min_speedup: float | None,
    runtimes: str | None,
    plot: Path | None,
    per_tensor: bool,
    save: Path | None,
    **options: Any,
) -> None:
    """Change the precision of a model, and keep the result only if it loses next to nothing.

    The new file is compared with fp32 on held-out pictures: by top-1 where at least 2,000 have labels, by the
    outputs' signal-to-noise ratio otherwise. What fails is not written, and the exit code is 1.
    """
    from resnet_onnx import workflow
    from resnet_onnx.results.writing import write
    from runtimes import registry

    runtimes = runtimes or ",".join(registry.conversion_runtimes(to))
    names = tuple(registry.parse_names(runtimes)) if min_speedup is not None else ()
    config = workflow.ConversionConfig(
        to=to, seed=request.seed, min_speedup=min_speedup, runtimes=names, per_channel=not per_tensor, **options
    )
    if plot is not None:
        if to != "int8":
            raise UsageError(f"--plot draws the ranges of int8, and {to} has none", fix="leave --plot out")
        check_drawing(plot)
    if output is not None and not output.is_dir() and output.suffix.lower() != ".onnx":
        raise UsageError(f"--output {output}: an ONNX file ends in .onnx", fix=f"--output {output}.onnx")
    problem = early_problem(request)
    registry.require_all(list(dict.fromkeys([*names, registry.judging_runtime(to)])))
    if problem is not None:
        raise problem
    with terminal.status("preparing the model") as status:
        model = workflow.resolve(request)
        target = output or workflow.default_output(model, to)
        if target.is_dir():
            target = target / workflow.default_output(model, to)
        result = workflow.convert(model, target, config, plot=plot, progress=status.update)
    _print(terminal, model, result)
    if plot is not None:
        terminal.line(f"Drawn: {plot}")
    if save is not None:
        write(save, workflow.saved_result(model, result))
    terminal.emit(result)


def _print(terminal: Terminal, model: Model, result: Convert) -> None:
    from resnet_onnx.results.document import known
    from runtimes.registry import conversion_runtimes

    for note in result.notes:
        terminal.note(note)
    terminal.line(
        f"{result.path}  {result.size_bytes / 1e6:.1f} MB, {100 * result.size_ratio:.0f} % of fp32  "
        f"{model.name} · {result.precision}"
    )
    for skipped in result.skipped:
        terminal.note(f"skipped: {skipped.reason}")
    inside = result.agreement_computed_in
    upcast = f", which computes it in {inside}" if inside not in (None, result.precision) else ""
    terminal.line(
        f"Decides like fp32 on {100 * result.agreement:.2f} %{_interval(result)} of {result.agreement_images} held-out "
        f"pictures ({result.agreement_runtime}{upcast}); outputs {_decibels(result.sqnr_db)} signal to noise"
    )
    _print_gate(terminal, result)
    _print_tried(terminal, result)
    if result.speed is not None:
        for name, row in result.speed.runtimes.items():
            terminal.line(
                f"{name}: {row.images_per_second:.0f} img/s, {row.speedup:.2f}× fp32 (batch {result.speed.batch})"
            )
    _print_sensitivity(terminal, known(result.sensitivity) or ())
    _print_kept(terminal, result.kept_fp32 or ())
    if search := known(result.search):
        tried, share = len(search.tried), search.cost_share
        cost = "" if share is None else f"; they do {100 * share:.1f} % of the multiply-adds"
        terminal.line(f"Found after {tried} {'choice' if tried == 1 else 'choices'} of layers{cost}")
    able = ",".join(conversion_runtimes(result.precision))
    terminal.advice(f"Next: resnet-onnx bench {result.path} --runtime {able}")


def _interval(result: Convert) -> str:
    """Returns how sure the agreement is, where pictures were so few that it is worth saying."""
    from resnet_onnx.parity.proportions import share_interval

    if result.agreement_images >= _MANY:
        return ""
    low, high = share_interval(round(result.agreement * result.agreement_images), result.agreement_images)
    return f" (95 % interval {100 * low:.1f}–{100 * high:.1f})"


def _print_gate(terminal: Terminal, result: Convert) -> None:
    from resnet_onnx.results.convert import Top1Gate

    gate = result.gate
    if isinstance(gate, Top1Gate):
        low, high = gate.drop_ci95
        terminal.line(
            f"Top-1 {100 * gate.top1:.2f} %, fp32 {100 * (gate.fp32_top1 or 0.0):.2f} %: drop {gate.drop_points:+.2f} "
            f"points (95 % interval {low:+.2f} to {high:+.2f}), allowed {gate.max_drop_points:g}"
        )


def _print_tried(terminal: Terminal, result: Convert) -> None:
    from resnet_onnx.results.document import known

    tried = known(result.tried)
    if not tried:
        return
    terminal.line()
    terminal.table(
        ["method", "= fp32 %", "SQNR dB", ""],
        [
            [r.method, f"{100 * r.agreement:.2f}", _number(r.sqnr_db), "chosen" if r.method == result.method else ""]
            for r in tried
        ],
    )


def _print_sensitivity(terminal: Terminal, layers: Sequence[LayerSensitivity]) -> None:
    if not layers:
        return
    whole = sum(row.multiply_adds or 0 for row in layers)
    terminal.line()
    terminal.table(
        ["layer alone in int8", "SQNR dB", "multiply-adds %"],
        [
            [r.layer, _number(r.sqnr_db), f"{100 * r.multiply_adds / whole:.1f}" if r.multiply_adds and whole else "–"]
            for r in layers[:_RANKED]
        ],
    )
    if len(layers) > _RANKED:
        terminal.line(f"  and {len(layers) - _RANKED} less sensitive ones (--json names all)")


def _print_kept(terminal: Terminal, kept: Sequence[KeptLayer]) -> None:
    if not kept:
        return
    terminal.line(f"Kept in fp32: {len(kept)} {'layer' if len(kept) == 1 else 'layers'}")
    for row in kept[:_SHOWN]:
        terminal.line(f"  {row.node}: {row.reason}")
    if len(kept) > _SHOWN:
        terminal.line(f"  and {len(kept) - _SHOWN} more (--json names all)")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _decibels(value: float | None) -> str:
    return f"{value:.1f} dB" if value is not None and value != float("inf") else "without any difference,"
