"""``resnet-onnx optimize``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnet_onnx.cli.gpu_options import Size, check_tuning, tuning_options
from resnet_onnx.cli.options import (
    Number,
    OutputFile,
    WholeNumbers,
    class_order_option,
    device_option,
    early_problem,
    make_command,
    model_options,
    save_option,
)
from resnet_onnx.cli.terminal import Terminal
from runtimes.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from resnet_onnx.results.optimize import CandidateRow, Optimize, OptimizeDryRun
    from resnet_onnx.workflow import Request
    from runtimes.spec import RuntimeOptions

_SHOWN = 12


@make_command(
    "optimize", example="resnet-onnx optimize resnet50.onnx --data imagenet/ --max-drop 0.5 --p99 50 --out fast/"
)
@model_options()
@click.option(
    "--data", metavar="D", help="Pictures: a folder, a .zip, digits or cifar10. With labels they judge accuracy."
)
@click.option("--goal", type=click.Choice(["throughput", "latency", "cost"]), default="throughput", show_default=True,
              help="Most pictures a second, the shortest run, or the least cost of a picture.")  # fmt: skip
@click.option("--max-drop", type=Number(0, 100), help="Points of top-1 that it may lose.  [default: 1, with --data]")
@click.option("--p99", "p99_ms", type=Number(0, min_open=True), metavar="MS",
              help="Limit of the 99th percentile of the time of one run of the batch.")  # fmt: skip
@click.option("--min-throughput", type=Number(0, min_open=True), help="Least pictures a second.")
@click.option("--arrivals", type=click.Choice(["poisson"]),
              help="Judge --p99 from arrival to answer, by the rate of random arrivals that it allows.")  # fmt: skip
@click.option("--max-memory", type=Size(), help="Most that the process of an engine may hold: 500MB, 4GiB.")
@click.option("--price", type=Number(0, min_open=True), help="Of the machine per hour.")
@click.option("--runtime", "--runtimes", "runtimes", default="all", show_default=True,
              help="Runtimes, a comma list, or 'all' that are known.")  # fmt: skip
@click.option("--precisions", metavar="P,P", help="fp32, bf16, fp16, int8.  [default: what this machine computes in]")
@click.option("--batch", "batches", type=WholeNumbers(), help="Batch sizes.  [default: searched]")
@click.option("--streams", type=WholeNumbers(), help="Concurrent runs.  [default: searched]")
@click.option("--threads", type=WholeNumbers(), help="CPU threads, all streams together.  [default: searched]")
@click.option("--scope", type=click.Choice(["device", "end-to-end"]),
              help="Time the model alone.  [default: from picture files, decoding included]")  # fmt: skip
@click.option("--time-budget", type=Number(0, min_open=True), default=15.0, show_default=True, metavar="MINUTES",
              help="For everything: admission, compiling, race, confirmation.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with a search that was ended: nothing is measured twice.")
@click.option("--dry-run", is_flag=True, help="Only show the candidates, their order and the expected time.")
@click.option("--out", type=OutputFile(folder=True, file=False), help="Folder of the bundle to deploy.")
@class_order_option
@device_option
@tuning_options
@save_option
def command(
    terminal: Terminal,
    *,
    request: Request,
    runtimes: str,
    precisions: str | None,
    scope: Any,
    time_budget: float,
    dry_run: bool,
    tuning: RuntimeOptions,
    device: str | None,
    save: Path | None,
    **options: Any,
) -> None:
    """Find the fastest engine that still computes the same function, and prove it.

    Every runtime and precision is admitted only after it was shown to compute what MODEL does; then they race in turns,
    and the winner is confirmed on fresh samples and on pictures that no choice has seen.
    """
    from resnet_onnx import workflow
    from resnet_onnx.optimization.candidates import runtimes_named
    from resnet_onnx.optimization.optimizing import optimize_model, plan_search
    from resnet_onnx.optimization.plan import OptimizePlan
    from resnet_onnx.results.writing import write

    plan = OptimizePlan(
        runtimes=_names(runtimes),
        precisions=None if precisions is None else _listed(precisions),
        timed=scope,
        time_budget_s=60 * time_budget,
        device=device,
        options=tuning,
        seed=request.seed,
        **options,
    )
    problem = early_problem(request)
    check_tuning(tuning, runtimes_named(plan), device=device)
    if problem is not None:
        raise problem
    with terminal.status("preparing the model", refresh_per_second=1) as status:
        model = workflow.resolve(request)
        if dry_run:
            planned = plan_search(model, plan, progress=status.update)
        else:
            found = optimize_model(model, plan, progress=status.update)
    if dry_run:
        _print_planned(terminal, planned)
        terminal.emit(planned)
        return
    _print(terminal, found)
    if save is not None:
        write(save, workflow.saved_result(model, found))
        terminal.note(f"saved: {save}")
    terminal.emit(found)
    if found.answer is None:
        raise click.exceptions.Exit(CheckFailed.exit_code)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _names(text: str) -> tuple[str, ...]:
    names = _listed(text)
    if not names:
        raise UsageError("--runtimes is empty", fix="name some, or leave it out for all")
    if "all" in names:
        if len(names) > 1:
            raise UsageError(f"--runtimes {text}: 'all' means every runtime that is known here already")
        return ()
    return names


# ---- for people ------------------------------------------------------------------------------------------------------


def _print(terminal: Terminal, found: Optimize) -> None:
    from resnet_onnx.report.search import table

    for note in found.notes:
        terminal.note(note)
    if found.answer is not None:
        terminal.line(found.answer.sentence)
    else:
        admitted = any(form.admitted for form in found.forms)
        none = "No candidate could be measured to its end." if admitted else "No candidate was admitted."
        terminal.line("No candidate can be shown to keep the limits." if found.nearest else none)
        if found.nearest:
            terminal.line(f"The nearest: {found.nearest}")
    terminal.line(_proof(found))
    terminal.line()
    columns, rows, left = table(found, _SHOWN)
    terminal.table(columns, rows, text_last=True)
    if left:
        where = f", {found.bundle}/report.html" if found.bundle else ""
        terminal.line(f" … {left} more (--json{where})")
    for limit in found.limits:
        terminal.line(_limit(limit))
    for line in found.ties:
        terminal.line(f"Tie: {line}")
    for line in found.next_steps:
        terminal.line(f"Next: {line}")
    if found.bundle is not None:
        terminal.line()
        terminal.line(f"Bundle: {found.bundle}   check it where it runs: resnet-onnx verify {found.bundle}")


def _proof(found: Optimize) -> str:
    admitted = [form for form in found.forms if form.admitted]
    shown = max((form.pictures for form in admitted), default=0)
    told = f"{len(admitted)} of {len(found.forms)} forms of the network admitted, on up to {shown:,} pictures"
    confirmed = "; confirmed on fresh samples" if found.answer is not None else ""
    return f"{told}{confirmed}. {found.spent_s:.0f} s of {found.budget_s:.0f} s."


def _limit(limit: Any) -> str:
    value = "not measured" if limit.value is None else f"{limit.value:.4g}"
    ends = "" if limit.ci95 is None else f" ({limit.ci95[0]:.4g} to {limit.ci95[1]:.4g})"
    return f"{limit.name}: {value}{ends}, limit {limit.limit:g}: {limit.verdict}"


def _print_planned(terminal: Terminal, planned: OptimizeDryRun) -> None:
    for note in planned.notes:
        terminal.note(note)
    terminal.line(
        f"{planned.model}: {len(planned.candidates)} candidates, in this order; about {planned.expected_s / 60:.1f} "
        f"minutes of at most {planned.budget_s / 60:g}."
    )
    terminal.line()
    terminal.table(
        ["candidate", "batch", "streams", "threads", "expected img/s"],
        [
            [
                f"{row.runtime} {row.precision}", str(row.batch), str(row.streams), str(row.threads or "–"),
                f"{row.expected_images_per_second:,.0f}",
            ]
            for row in planned.candidates
        ],
    )  # fmt: skip
    _print_unavailable(terminal, planned.unavailable)


def _print_unavailable(terminal: Terminal, rows: Sequence[CandidateRow]) -> None:
    for row in rows:
        terminal.line(f"unavailable: {row.name}: {row.reason}")
