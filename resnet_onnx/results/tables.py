"""Results as text for other programs: Markdown for a README or a pull request, CSV for a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Iterable, Sequence

from runtimes.text import shown


def csv_text(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Returns CSV with a line of headings.

    Quoted as in RFC 4180, but with lines that end as Unix tools expect it; None is an empty cell.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


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
        lines += ["", "```", shown(shlex.join(command)), "```"]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(text: str, *, keep: str = "") -> str:
    """Escapes what Markdown or HTML would take for more than text."""
    signs = "".join(sign for sign in r"\`*_|[]<>~" if sign not in keep)
    return re.sub(f"([{re.escape(signs)}])", r"\\\1", shown(" ".join(text.split())))
