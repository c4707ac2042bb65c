"""One self-contained HTML page: a verdict, then tables and pictures. Needs no network and no script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtimes import files


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
    """

    heading: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    picture: Path | None = None
    caption: str = ""
    commands: Sequence[str] = ()


def write_page(
    path: Path, *, title: str, verdict: str, passed: bool, sections: Sequence[Section], footer: str = ""
) -> None:
    """Writes the page.

    Args:
        path: HTML file to write.
        title: Of the page.
        verdict: The answer, in a sentence.
        passed: Whether it is a good one.
        sections: The parts, in order.
        footer: Conditions: machine, versions, date.

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
        }
        for section in sections
    ]
    template = environment.get_template("page.html")
    files.write_text(path, template.render(title=title, verdict=verdict, passed=passed, sections=parts, footer=footer))
