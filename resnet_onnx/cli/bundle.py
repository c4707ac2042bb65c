"""``resnet-onnx bundle``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnet_onnx.cli.gpu_options import check_tuning, tuning_options
from resnet_onnx.cli.options import (
    Number,
    OutputFile,
    device_option,
    early_problem,
    make_command,
    model_options,
    one_runtime,
    threads_option,
)
from resnet_onnx.cli.terminal import Terminal

if TYPE_CHECKING:
    from resnet_onnx.results.bundle import BundleResult
    from resnet_onnx.workflow import Request
    from runtimes.spec import RuntimeOptions


@make_command("bundle", example="resnet-onnx bundle resnet50.onnx --runtime openvino --out resnet50-openvino/")
@model_options()
@click.option("--runtime", "runtimes", required=True, metavar="R", help="What runs it.")
@click.option("--out", required=True, type=OutputFile(folder=True, file=False), help="Folder to write.")
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "bf16", "int8"]), help="Convert it first.  [default: as it is]"
)
@click.option("--batch", type=click.IntRange(1, 4096), help="Pictures a run.  [default: 1, or its own fixed batch]")
@click.option("--streams", type=click.IntRange(1, 1024), default=1, show_default=True, help="Runs beside each other.")
@click.option("--data", metavar="D", help="Pictures: a folder, a .zip, digits or cifar10; they calibrate --precision.")
@click.option(
    "--from",
    "saved",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="RESULT.json",
    help="Take parity, evaluate, convert or bench --save in place of measuring; repeatable.",
)
@click.option(
    "--proof-pictures",
    type=click.Choice(["samples", "data", "none"]),
    default="samples",
    show_default=True,
    help="Pictures that go into the bundle: sample photos, some of --data, or none.",
)
@click.option("--license", "weights_license", metavar="TEXT", help="Licence of the weights.")
@click.option(
    "--duration", type=Number(0, min_open=True), default=20.0, show_default=True, help="Seconds to measure, at most."
)
@device_option
@threads_option
@tuning_options
def command(
    terminal: Terminal,
    *,
    request: Request,
    runtimes: str,
    out: Path,
    streams: int,
    saved: tuple[Path, ...],
    weights_license: str | None,
    duration: float,
    device: str | None,
    threads: int | None,
    tuning: RuntimeOptions,
    **options: Any,
) -> None:
    """Write a folder that classifies pictures without this program, and proves that it does so as measured.

    It has the file that the runtime loads, the settings, the preprocessing, labels, a runner that needs no torch, and
    the proof: pictures, what float64 makes of them, what an output may differ by, the speed as a ratio to a reference.
    """
    from resnet_onnx import workflow
    from resnet_onnx.deploy.bundling import BundlePlan, bundle
    from runtimes import registry

    runtime = one_runtime(runtimes)
    plan = BundlePlan(
        runtime=runtime,
        device=device,
        options=replace(tuning, threads=threads, streams=streams),
        saved=saved,
        license=weights_license,
        seconds=duration,
        **options,
    )
    check_tuning(tuning, [runtime], device=device)
    problem = early_problem(request)
    registry.require_all([runtime], device=device)
    if problem is not None:
        raise problem
    with terminal.status("preparing the model", refresh_per_second=1) as status:
        model = workflow.resolve(request)
        for note in model.notes:
            terminal.note(f"{model.name}: {note}")
        found = bundle(model, plan, out, progress=status.update)
    _print(terminal, found)
    terminal.emit(found)


def _print(terminal: Terminal, found: BundleResult) -> None:
    from resnet_onnx.deploy.readme import speed_sentence

    terminal.line(f"{found.path}  {found.size_bytes / 1e6:.1f} MB, {len(found.files) + 2} files")
    terminal.line(speed_sentence(found.figures))
    if found.relative_rmse is not None and found.budget is not None:
        terminal.line(f"Proven: {found.relative_rmse:.1e} from gold, budget {found.budget:.1e}.")
    terminal.line(f"SHA-256 of bundle.json: {found.sha256}")
    for note in found.notes:
        terminal.note(note)
    terminal.line(
        f"Check it where it runs: resnet-onnx verify {found.path}   or, without this program: python verify.py in it"
    )
