"""One self-contained HTML page: a verdict, then pictures and tables. Needs no network; its one script sorts tables."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet_onnx.results.commands import Finding
from runtimes import files
from runtimes.text import shown


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawn picture: an ``<svg>`` element, which is taken into the page as it is, and what it shows."""

    svg: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page.

    Attributes:
        text: A sentence or two, or "".
        columns: Headings of the table, with units.
        rows: Cells of the table; none for no table.
        picture: A PNG file that goes into the page, or None; `caption` is what it shows.
        commands: Commands that make these numbers again.
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
    path: Path, *, title: str, findings: Sequence[Finding], sections: Sequence[Section], footer: str = ""
) -> None:
    """Writes the page.

    Args:
        path: HTML file to write.
        title: Of the page.
        findings: The first is the verdict, the others are what else there is to know at once.
        sections: The parts, in order.
        footer: Conditions: machine, versions, date.

    Raises:
        FileProblem: The file can't be written.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("resnet_onnx.report", "."),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_as_shown,
    )
    environment.filters["base64"] = lambda picture: Markup(base64.b64encode(picture.read_bytes()).decode())
    template = environment.get_template("page.html")
    text = template.render(title=title, verdict=findings[0], findings=findings[1:], sections=sections, footer=footer)
    files.write_text(path, text)


def _as_shown(value: object) -> object:
    """Returns text as a page may show it; a drawing and an embedded picture are no text of anybody's."""
    from markupsafe import Markup

    return shown(value, lines=True) if isinstance(value, str) and not isinstance(value, Markup) else value
