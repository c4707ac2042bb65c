"""A parity report as JUnit XML."""

from __future__ import annotations

from pathlib import Path

from resnet_onnx.parity.compare import ParityReport
from resnet_onnx.results.junit import Case, write_suite


def write_junit(report: ParityReport, model: str, path: Path) -> None:
    """Writes one test case per runtime; raises ``FileProblem`` where it can't."""
    cases = [
        Case(
            name=outcome.runtime,
            seconds=outcome.seconds,
            failure=None if outcome.passed else outcome.reason,
            text=outcome.reason,
        )
        for outcome in report.outcomes
    ]
    write_suite(path, "parity", model, cases)
