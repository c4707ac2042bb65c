"""A parity report as a Markdown table, for a CI's summary page or a pull request."""

from __future__ import annotations

from pathlib import Path

from resnet_onnx.parity.compare import ParityReport
from resnet_onnx.results import tables
from runtimes import files


def markdown(report: ParityReport, model: str) -> str:
    """Returns a table with a row per runtime, and the reason of each failure below."""
    rows = []
    for outcome in report.outcomes:
        equal = "–" if outcome.decisions is None else f"{outcome.decisions.equal} of {outcome.decisions.pictures}"
        figures = [f"{outcome.relative_rmse:.1e}", f"{outcome.budget:.1e}", equal]
        rows.append([outcome.runtime, outcome.version, *figures, report.verdict(outcome.passed)])
    first = next(iter(report.budgets.values()))
    return tables.markdown(
        ["runtime", "version", "rel. RMSE", "budget", "top-1 equal", "verdict"],
        rows,
        above=[
            f"### Parity of {model}: {_verdict(report)}",
            f"Gold: {report.gold}, {report.described_inputs} · budget: {first.reason}",
        ],
        below=[f"{outcome.runtime}: {outcome.reason}" for outcome in report.outcomes if not outcome.passed],
    )


def _verdict(report: ParityReport) -> str:
    return report.verdict(report.passed).replace("FAIL", "**FAIL**")


def write_markdown(report: ParityReport, model: str, path: Path) -> None:
    """Writes the table; raises ``FileProblem`` where it can't."""
    files.write_text(path, markdown(report, model))
