"""Results as text for other programs: Markdown for a README or a pull request, CSV for a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_CSV = {
    "model": ("model",),
    "precision": ("precision",),
    "runtime": ("runtime",),
    "version": ("version",),
    "device": ("device",),
    "batch": ("batch",),
    "streams": ("streams",),
    "threads": ("threads",),
    "scenario": ("scenario",),
    "scope": ("scope",),
    "includes": ("includes",),
    "images_per_s": ("images_per_second",),
    "images_per_s_low95": ("images_per_second_ci95", 0),
    "images_per_s_high95": ("images_per_second_ci95", 1),
    "p50_ms": ("latency_ms", "p50"),
    "p90_ms": ("latency_ms", "p90"),
    "p99_ms": ("latency_ms", "p99"),
    "share_of_limit": ("roofline", "limit_fraction"),
    "limit": ("roofline", "bound"),
    "samples": ("samples",),
    "stable": ("stable",),
    "unstable_reason": ("unstable_reason",),
    "error": ("error", "message"),
}
"""Columns of the CSV, with units in their names, and where each stands in a row of the result."""


def bench_csv(document: Mapping[str, Any]) -> str:
    """Returns the rows of a result of ``bench`` as CSV. Numbers have all their digits; what is not known is empty."""
    return csv_text(_CSV, ([_cell(_at(row, place)) for place in _CSV.values()] for row in document["results"]))


def csv_text(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Returns CSV with a line of headings.

    Quoted as in RFC 4180, but with lines that end as Unix tools expect it; None is an empty cell.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """Returns a value as a cell of a CSV: what is not known is empty, words stand side by side."""
    return "" if value is None else " ".join(value) if isinstance(value, list | tuple) else value


def markdown(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    above: Sequence[str] = (),
    below: Sequence[str] = (),
    command: Sequence[str] = (),
) -> str:
    """Returns a table as GitHub's Markdown.

    Args:
        columns: Headings, with units; the first is aligned left, the others hold numbers.
        rows: Cells.
        above: Lines above the table, which may contain Markdown.
        below: Lines below it, taken as text.
        command: What makes it again, or nothing.
    """
    lines = [_text(line, keep="*") for line in above]
    lines = [*lines[:1], *([""] if len(lines) > 1 else []), *lines[1:], ""] if lines else []
    lines.append(_row([_text(column) for column in columns]))
    lines.append(_row([":---", *["---:"] * (len(columns) - 1)]))
    lines += [_row([_text(cell) for cell in row]) for row in rows]
    if below:
        lines += ["", *[f"- {_text(line.strip())}" for line in below]]
    if command:
        lines += ["", "```", shlex.join(command), "```"]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(text: str, *, keep: str = "") -> str:
    """Escapes what Markdown or HTML would take for more than text."""
    signs = "".join(sign for sign in r"\`*_|[]<>~" if sign not in keep)
    return re.sub(f"([{re.escape(signs)}])", r"\\\1", " ".join(text.split()))


def _at(row: Mapping[str, Any], place: Sequence[str | int]) -> Any:
    found: Any = row
    for step in place:
        if found is None or (isinstance(step, str) and step not in found):
            return None
        found = found[step]
    return found
