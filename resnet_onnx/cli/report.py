"""``resnet-onnx report``."""

from __future__ import annotations

from pathlib import Path

import click

from resnet_onnx.cli.options import make_command
from resnet_onnx.cli.terminal import Terminal
from runtimes.errors import UsageError


@make_command("report", example="resnet-onnx report bench.json parity.json evaluate.json --out report.html")
@click.argument("results", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RESULT...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="The page to write.",
)
def command(terminal: Terminal, *, results: tuple[Path, ...], out: Path) -> None:
    """Make one self-contained HTML page of saved results.

    RESULT are files of bench, compare, parity, evaluate or convert --save, in any mix. The page needs no network.
    """
    from resnet_onnx.report.assemble import write_report
    from resnet_onnx.results.commands import Report, ReportedFile
    from resnet_onnx.results.reading import read

    files = {path.resolve(): path for path in results}
    if out.resolve() in files:
        raise UsageError(f"--out {out} is one of the results and would be overwritten", fix="name another --out")
    documents = [read(path) for path in files.values()]
    findings = write_report(out, documents)
    for finding in findings:
        terminal.line(f"{_MARKS[finding.state]} {finding.text}")
    terminal.line()
    terminal.line(f"{out}: {len(documents)} result{'' if len(documents) == 1 else 's'}, one page")
    terminal.emit(
        Report(
            path=str(out),
            passed=all(finding.state != "bad" for finding in findings),
            findings=findings,
            results=[
                ReportedFile(path=str(path), kind=found.kind)
                for path, found in zip(files.values(), documents, strict=True)
            ],
        )
    )


_MARKS = {"good": "✓", "bad": "✗", "doubt": "~"}
