"""Verdicts as JUnit XML, which every CI server reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from runtimes import files
from runtimes.text import shown


@dataclass(frozen=True, kw_only=True)
class Case:
    """One test case.

    Attributes:
        failure: Why it failed, or None.
        text: What else there is to say of it.
    """

    name: str
    seconds: float
    failure: str | None = None
    text: str = ""


def write_suite(path: Path, command: str, subject: str, cases: Sequence[Case]) -> None:
    """Writes one suite, named after a command and what it judged; raises ``FileProblem`` where it can't."""
    subject = shown(subject)
    suite = ElementTree.Element(
        "testsuite",
        name=f"{command} {subject}",
        tests=str(len(cases)),
        failures=str(sum(case.failure is not None for case in cases)),
        errors="0",
        skipped="0",
        time=f"{sum(case.seconds for case in cases):.3f}",
    )
    for case in cases:
        element = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"{command}.{subject}",
            name=shown(case.name),
            time=f"{case.seconds:.3f}",
        )
        if case.failure is not None:
            reason = shown(case.failure, lines=True)
            ElementTree.SubElement(element, "failure", message=reason, type=command).text = reason
        elif case.text:
            ElementTree.SubElement(element, "system-out").text = shown(case.text, lines=True)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    files.write_bytes(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
