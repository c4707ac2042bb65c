"""``resnet-onnx verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from resnet_onnx.cli.options import Number, make_command
from resnet_onnx.cli.terminal import Terminal
from runtimes.errors import CheckFailed

if TYPE_CHECKING:
    from resnet_onnx.results.bundle import Verify

_SHOWN = {"pass": "pass", "fail": "FAIL", "note": "note", "skipped": "–"}


@make_command("verify", example="resnet-onnx verify resnet50-openvino/ --min-speed 0.8")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--sha256", metavar="HEX", help="What its bundle.json must have, as bundle printed it.")
@click.option("--min-speed", type=Number(0, min_open=True), help="Fail below this share of the promised ratio (0.8).")
@click.option("--p99", type=Number(0, min_open=True), metavar="MS", help="Fail above so many milliseconds a run.")
@click.option("--trust-engine", is_flag=True, help="Open an engine or a compiled package, which is code.")
@click.option(
    "--duration", type=Number(0, min_open=True), default=10.0, show_default=True, help="Seconds to measure, about."
)
def command(
    terminal: Terminal,
    *,
    bundle: Path,
    sha256: str | None,
    min_speed: float | None,
    p99: float | None,
    trust_engine: bool,
    duration: float,
) -> None:
    """Say whether a bundle still computes and runs here what it did where it was made.

    Files, runner, preprocessing, outputs, decisions and labels fail (exit code 1). Another library version, another
    machine and another speed are notes, unless --min-speed or --p99 asks for more. Nothing from the bundle is executed.
    """
    from resnet_onnx.deploy.verification import VerifyPlan, verify_bundle

    plan = VerifyPlan(sha256=sha256, min_speed=min_speed, p99_ms=p99, trust_engine=trust_engine, seconds=duration)
    with terminal.status("verifying", refresh_per_second=1) as status:
        found = verify_bundle(bundle, plan, progress=status.update)
    _print(terminal, found)
    terminal.emit(found)
    if not found.passed:
        raise click.exceptions.Exit(CheckFailed.exit_code)


def _print(terminal: Terminal, found: Verify) -> None:
    failed = [check.name for check in found.checks if check.verdict == "fail"]
    noted = [check.name for check in found.checks if check.verdict == "note"]
    verdict = (
        f"Failed: {', '.join(failed)}" if failed else "Passed" + (f", with notes: {', '.join(noted)}" if noted else "")
    )
    terminal.line(f"{verdict} · {found.runtime} · {found.precision}")
    terminal.table(
        ["check", "verdict", "what was found"],
        [[check.name, _SHOWN[check.verdict], check.detail] for check in found.checks],
        left=3,
    )
