"""``resnet-onnx parity``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from resnet_onnx.cli.gpu_options import check_tuning, tuning_options
from resnet_onnx.cli.options import (
    OutputFile,
    check_drawing,
    device_option,
    make_command,
    model_options,
    runtime_option,
    save_option,
    threads_option,
)
from resnet_onnx.cli.terminal import Terminal
from runtimes.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from resnet_onnx.parity.compare import ParityReport
    from resnet_onnx.results.parity import Localisation, OriginalDistance
    from resnet_onnx.workflow import Request
    from runtimes.spec import RuntimeOptions


@make_command("parity", example="resnet-onnx parity resnet50.onnx --runtimes torch,ort-cpu,openvino", polite=True)
@model_options()
@runtime_option(default="all", several=True)
@click.option("--gold", metavar="MODEL", help="Take the truth from another model or checkpoint.")
@click.option("--data", metavar="D", help="Pictures: a folder, a .zip, digits or cifar10; sample photos by default.")
@click.option("--images", type=click.IntRange(1), default=16, show_default=True, help="Pictures to compare.")
@click.option("--junit", type=OutputFile(), help="Write the verdicts as JUnit XML.")
@click.option("--summary", type=OutputFile(), help="Write the verdicts as a Markdown table.")
@click.option(
    "--tolerance-for",
    "tolerances",
    metavar="OUTPUT=VALUE",
    multiple=True,
    help="Relative RMSE allowed for one output, in place of the derived budget.",
)
@click.option("--localize", is_flag=True, help="Name the first node that differs, with the error per layer.")
@click.option("--plot", type=OutputFile(), help="Draw the error per layer (.png, .svg, .pdf); implies --localize.")
@device_option
@threads_option
@tuning_options
@save_option
def command(
    terminal: Terminal,
    *,
    request: Request,
    runtimes: str,
    gold: str | None,
    data: str | None,
    images: int,
    junit: Path | None,
    summary: Path | None,
    tolerances: tuple[str, ...],
    localize: bool,
    plot: Path | None,
    device: str | None,
    threads: int | None,
    tuning: RuntimeOptions,
    save: Path | None,
) -> None:
    """Prove or refute that runtimes compute the same function as the network in float64.

    The budget is derived from the noise of float32 itself on the same inputs. Exit code 1 when a runtime fails.
    """
    from dataclasses import replace

    from resnet_onnx import workflow
    from resnet_onnx.parity import record
    from resnet_onnx.parity.junit import write_junit
    from resnet_onnx.parity.localize import draw
    from resnet_onnx.parity.summary import write_markdown
    from resnet_onnx.results.writing import write
    from runtimes import registry

    if plot is not None:
        check_drawing(plot)
    allowed = dict(_tolerance(text) for text in tolerances)
    names = registry.parse_names(runtimes, device=device)
    check_tuning(tuning, names, device=device)
    registry.require_all(names, device=device)
    with terminal.status("preparing the model") as status:
        model = workflow.resolve(request)
        names, left_out = workflow.runnable(model, names, chosen_by_all=registry.means_all(runtimes), device=device)
        plan = workflow.ParityPlan(
            runtimes=names,
            gold=gold,
            data=data,
            images=images,
            seed=request.seed,
            device=device,
            options=replace(tuning, threads=threads),
            tolerances=allowed,
        )
        report = workflow.check_parity(model, plan, progress=lambda text: status.update(f"running {text}"))
        located = None
        if localize or plot is not None:
            status.update("looking for the first difference")
            located = workflow.localize_parity(model, plan, report)
    notes = [f"{model.name}: {note}" for note in model.notes]
    for note in (*notes, *report.notes):
        terminal.note(note)
    if left_out:
        terminal.note(f"left out: {', '.join(left_out)}")
    result = record.document(report, model=model.name, precision=model.precision, located=located, notes=notes)
    _print(terminal, report)
    if located is not None:
        _print_localisation(terminal, located)
        if plot is not None:
            draw(located, f"{model.name}: error against float64", plot)
    if junit is not None:
        write_junit(report, model.name, junit)
    if summary is not None:
        write_markdown(report, model.name, summary)
    if save is not None:
        write(save, workflow.saved_result(model, result))
    terminal.emit(result)
    if not report.passed:
        raise click.exceptions.Exit(CheckFailed.exit_code)


def _tolerance(text: str) -> tuple[str, float]:
    name, sign, value = text.rpartition("=")
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not sign or not name or not 0 <= number < float("inf"):
        raise UsageError(f"--tolerance-for {text}: expected OUTPUT=VALUE, such as boxes=1e-4")
    return name, number


def _print(terminal: Terminal, report: ParityReport) -> None:
    first = next(iter(report.budgets.values()))
    terminal.line(f"Gold: {report.gold}, {report.described_inputs} · budget: {first.reason}")
    terminal.line()
    rows = []
    for outcome in report.outcomes:
        share = outcome.relative_rmse / outcome.budget if outcome.budget else float("inf")
        equal = "–" if outcome.decisions is None else f"{outcome.decisions.equal} of {outcome.decisions.pictures}"
        rows.append(
            [
                outcome.runtime,
                f"{outcome.relative_rmse:.1e}",
                f"{outcome.budget:.1e}",
                f"{share:.0%}" if share < 10 else f"{share:,.0f}×",
                equal,
                *([] if outcome.original is None else _beside_original(outcome.original)),
                report.verdict(outcome.passed),
            ]
        )
    beside = ["from original", "top-1 as original"] if report.original else []
    terminal.table(["runtime", "rel. RMSE", "budget", "of it", "top-1 equal", *beside, "verdict"], rows)
    if report.original:
        terminal.line(f"Original: {report.original}. No verdict hangs on it: it is what quantisation costs.")
    runtimes = [outcome.runtime for outcome in report.outcomes]
    if len(runtimes) > 1:
        terminal.line()
        cells = [[a, *("–" if a == b else f"{report.pairs[b, a]:.1e}" for b in runtimes)] for a in runtimes]
        terminal.table(["each against", *runtimes], cells)
    for outcome in report.outcomes:
        if not outcome.passed:
            terminal.line()
            terminal.line(f"{outcome.runtime}: {outcome.reason}")


def _beside_original(original: OriginalDistance) -> list[str]:
    agreement = "–" if original.top1_agreement is None else f"{original.top1_agreement:.1%}"
    return [f"{original.relative_rmse:.1e}", agreement]


def _print_localisation(terminal: Terminal, located: Localisation) -> None:
    terminal.line()
    last = {layer.stage: layer for layer in located.layers}  # a line per stage: its last value
    if last:
        names = list(located.layers[0].errors)
        rows = [
            [layer.stage, layer.node, *("–" if (e := layer.errors[name]) is None else f"{e:.1e}" for name in names)]
            for layer in last.values()
        ]
        terminal.table(["error after", "node", *names], rows, left=2)
    for found in located.findings:
        terminal.line(found.text)
    if not located.findings:
        terminal.line("No runtime fails: there is no first difference.")
