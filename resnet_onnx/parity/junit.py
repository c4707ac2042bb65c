"""A parity report as JUnit XML, which every CI server reads."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from resnet_onnx.parity.compare import ParityReport
from runtimes import files


def write_junit(report: ParityReport, model: str, path: Path) -> None:
    """Writes one test case per runtime; raises ``FileProblem`` where it can't."""
    model = _printable(model)
    failures = sum(not outcome.passed for outcome in report.outcomes)
    suite = ElementTree.Element(
        "testsuite",
        name=f"parity {model}",
        tests=str(len(report.outcomes)),
        failures=str(failures),
        errors="0",
        skipped="0",
        time=f"{sum(outcome.seconds for outcome in report.outcomes):.3f}",
    )
    for outcome in report.outcomes:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"parity.{model}", name=outcome.runtime, time=f"{outcome.seconds:.3f}"
        )
        reason = _printable(outcome.reason)
        if not outcome.passed:
            ElementTree.SubElement(case, "failure", message=reason, type="parity").text = reason
        else:
            ElementTree.SubElement(case, "system-out").text = reason
    root = ElementTree.Element("testsuites")
    root.append(suite)
    files.write_bytes(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _printable(text: str) -> str:
    """Returns a text that XML can hold: names of files may have control characters, or be no Unicode."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "?" for sign in text)
