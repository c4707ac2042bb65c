"""One self-contained HTML page: a verdict, then pictures and tables. Needs no network; its one script sorts tables."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtimes import files


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawn picture.

    Attributes:
        svg: An ``<svg>`` element, taken into the page as it is.
        caption: What it shows.
    """

    svg: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One sentence on top of the page.

    Attributes:
        state: Whether it is good news, bad news, or a reason for doubt.
        text: The sentence.
    """

    state: Literal["good", "bad", "doubt"]
    text: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page.

    Attributes:
        heading: Its title.
        text: A sentence or two, or "".
        columns: Headings of the table, with units.
        rows: Cells of the table; none for no table.
        picture: A PNG file that goes into the page, or None.
        caption: What the picture shows.
        commands: Commands that make these numbers again.
        charts: Drawn pictures.
        facts: Names and what they stand for.
        notes: Remarks below the table.
    """

    heading: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    picture: Path | None = None
    caption: str = ""
    commands: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()


def write_page(
    path: Path,
    *,
    title: str,
    verdict: str,
    passed: bool,
    doubtful: bool = False,
    sections: Sequence[Section],
    footer: str = "",
    findings: Sequence[Finding] = (),
) -> None:
    """Writes the page.

    Args:
        path: HTML file to write.
        title: Of the page.
        verdict: The answer, in a sentence.
        passed: Whether it is a good one.
        doubtful: Whether it rests on numbers that can't be trusted.
        sections: The parts, in order.
        footer: Conditions: machine, versions, date.
        findings: What else there is to know at once.

    Raises:
        FileProblem: The file can't be written.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("resnet_onnx.report", "."),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    parts = [
        {
            "heading": section.heading,
            "text": section.text,
            "columns": section.columns,
            "rows": section.rows,
            "png": base64.b64encode(section.picture.read_bytes()).decode() if section.picture else "",
            "caption": section.caption,
            "commands": section.commands,
            "charts": section.charts,
            "facts": section.facts,
            "notes": section.notes,
        }
        for section in sections
    ]
    template = environment.get_template("page.html")
    state = "bad" if not passed else "doubt" if doubtful else "good"
    text = template.render(title=title, verdict=verdict, state=state, findings=findings, sections=parts, footer=footer)
    files.write_text(path, text)
