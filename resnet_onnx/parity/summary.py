"""A parity report as a Markdown table, for a CI's summary page or a pull request."""

from __future__ import annotations

from pathlib import Path

from resnet_onnx.parity.compare import ParityReport
from runtimes import files


def markdown(report: ParityReport, model: str) -> str:
    """Returns a table with a row per runtime, and the reason of each failure below."""
    lines = [
        f"### Parity of {model}: {_verdict(report, report.passed)}",
        "",
        f"Gold: {report.gold}, {report.pictures} inputs · budget: {next(iter(report.budgets.values())).reason}",
        "",
        "| runtime | version | rel. RMSE | budget | top-1 equal | verdict |",
        "|---|---|---:|---:|---:|---|",
    ]
    for outcome in report.outcomes:
        equal = "–" if outcome.decisions is None else f"{outcome.decisions.equal} of {outcome.decisions.pictures}"
        lines.append(
            f"| {outcome.runtime} | {outcome.version} | {outcome.relative_rmse:.1e} | {outcome.budget:.1e} | {equal} "
            f"| {_verdict(report, outcome.passed)} |"
        )
    lines += [f"\n{outcome.runtime}: {outcome.reason}" for outcome in report.outcomes if not outcome.passed]
    return "\n".join(lines) + "\n"


def _verdict(report: ParityReport, passed: bool) -> str:
    return report.verdict(passed).replace("FAIL", "**FAIL**")


def write_markdown(report: ParityReport, model: str, path: Path) -> None:
    """Writes the table; raises ``FileProblem`` where it can't."""
    files.write_text(path, markdown(report, model))
