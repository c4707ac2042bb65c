"""``resnet-onnx demo``."""

from __future__ import annotations

from pathlib import Path

import click

from resnet_onnx.cli.options import make_command
from resnet_onnx.cli.terminal import Terminal
from runtimes.errors import CheckFailed


@make_command("demo", example="resnet-onnx demo")
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="Folder to fill.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
def command(terminal: Terminal, *, out: Path, seed: int) -> None:
    """Take a residual net the whole way on bundled real data, in minutes: train, export, prove, measure, optimize."""
    from resnet_onnx.demonstration import demonstrate

    result = demonstrate(out, seed=seed, tell=terminal.note)
    terminal.line()
    terminal.line(f"{'Passed' if result.passed else 'FAILED'} in {result.seconds:.0f} s. Report: {result.report}")
    terminal.line("Try next:")
    terminal.line(f"  resnet-onnx evaluate {out / 'digits.onnx'} --data digits --runtime all")
    terminal.line("  resnet-onnx optimize resnet50 --time-budget 10 --out fast")
    terminal.line("  resnet-onnx bench resnet50 --runtime torch,ort-cpu,openvino")
    terminal.line("  resnet-onnx export --depth 101")
    terminal.emit(result)
    if not result.passed:
        raise click.exceptions.Exit(CheckFailed.exit_code)
