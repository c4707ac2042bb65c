"""Charts as SVG text that takes the colour of the page's own text, so that one picture serves light, dark and paper.

Colours: Okabe and Ito, "Color Universal Design" (2008): colour-blind eyes tell them apart; every bar is also named in
words. A palette has a colour per series; every function that draws returns an ``<svg>`` element.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
GOOD, BAD = "#0072b2", "#d55e00"

_INK = "#010203"
"""Stands for the text's colour until the picture is drawn."""

_SIGNS = ("o", "s", "D", "^", "v", "P", "X")
_DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))

_WIDTH_IN, _ROW_IN, _FRAME_IN, _PLANE_IN = 4.6, 0.31, 0.75, 3.3
"""Narrow enough that a phone does not shrink the letters."""

_SMALL = 9.5

_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}
_LONGEST_LABEL = 26


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One line of a chart.

    Attributes:
        label: At its left.
        value: Its length; None draws none.
        interval: Ends of its 95 % interval, or None.
        text: Beside it.
        series: What gives it its colour.
        doubtful: Drawn hatched.
    """

    label: str
    value: float | None
    interval: tuple[float, float] | None = None
    text: str = ""
    series: str = ""
    doubtful: bool = False


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of a plane.

    Attributes:
        line: What it is joined with, as the legend names it.
        series: What gives it its colour.
        x: Its place, above 0.
        y: Its place, above 0.
        text: Above it.
        ringed: Whether it stands out.
    """

    line: str
    series: str
    x: float
    y: float
    text: str = ""
    ringed: bool = False


@dataclass(frozen=True, kw_only=True)
class Roof:
    """A limit of the machine.

    Attributes:
        name: Which peak it is.
        top: Billions of operations per second.
        slope: Billions of bytes per second.
        undisturbed: Whether nothing else ran while it was measured.
    """

    name: str
    top: float
    slope: float
    undisturbed: bool = True


def colours(series: Sequence[str]) -> dict[str, str]:
    """Returns a colour per name, the same for the same names whatever their order."""
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(sorted(set(series)))}


def bars(items: Sequence[Bar], *, unit: str, palette: dict[str, str], room: float = 0.25) -> str:
    """Draws horizontal bars from zero with their intervals, from top to bottom.

    `room` is for the text beside the bars, as a fraction of the longest.
    """
    from matplotlib.ticker import MaxNLocator

    def draw(axes: Axes) -> None:
        most = max((max(item.value or 0, *(item.interval or (0,))) for item in items), default=1) or 1
        for place, item in enumerate(items):
            if item.value is not None:
                axes.barh(
                    place,
                    item.value,
                    height=0.68,
                    color=palette.get(item.series, COLOURS[0]),
                    hatch="///" if item.doubtful else None,
                    edgecolor=_INK if item.doubtful else "none",
                    linewidth=0,
                    alpha=0.9,
                )
                _interval(axes, place, item.interval)
            end = max(item.value or 0, *(item.interval or (0,)))
            axes.text(end + most * 0.02, place, item.text, va="center", fontsize=_SMALL)
        axes.set_xlim(0, most * (1 + room))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axes.set_xlabel(unit)

    return _rows(items, draw)


def dots(
    items: Sequence[Bar], *, unit: str, palette: dict[str, str], log: bool = False, limit: float | None = None
) -> str:
    """Draws points with their intervals, from top to bottom, on an axis that need not begin at zero.

    On a logarithmic axis values of 0 stand at its left end. At `limit` a line is drawn that must not be crossed.
    """

    def draw(axes: Axes) -> None:
        ends = [end for item in items for end in (item.value, *(item.interval or ())) if end is not None]
        ends += [limit] if limit is not None else []
        ends = [end for end in ends if end > 0 or not log] or [1.0]
        least, most = min(ends), max(ends)
        for place, item in enumerate(items):
            colour = palette.get(item.series, COLOURS[0])
            axes.axhline(place, color=_INK, alpha=0.12, linewidth=0.8, zorder=0)
            if item.value is not None:
                _interval(axes, place, item.interval)
                axes.plot(max(item.value, least) if log else item.value, place, "o", color=colour, markersize=8)
            if item.text:
                axes.annotate(
                    item.text, (1, place), xycoords=("axes fraction", "data"), va="center", ha="left", fontsize=_SMALL,
                    xytext=(4, 0), textcoords="offset points",
                )  # fmt: skip
        if limit is not None:
            axes.axvline(limit, color=BAD, linewidth=1.5, linestyle="--")
        if log:
            axes.set_xlim(least / 2, most * 2)
            _logarithmic(axes, "x")
        else:
            margin = (most - least) * 0.08 or abs(most) * 0.01 or 1.0
            axes.set_xlim(least - margin, most + margin)
        axes.set_xlabel(unit)

    return _rows(items, draw)


def spreads(items: Sequence[tuple[str, str, Sequence[float]]], *, unit: str, palette: dict[str, str]) -> str:
    """Draws how samples spread: a thin line from the 1st to the 99th percentile, a thick one over the middle half.

    `items` are label, series and samples, from top to bottom; the axis is logarithmic.
    """
    import numpy as np

    def draw(axes: Axes) -> None:
        for place, (_, series, samples) in enumerate(items):
            low, quarter, middle, three, high = np.percentile(samples, (1, 25, 50, 75, 99))
            colour = palette.get(series, COLOURS[0])
            axes.plot([low, high], [place, place], color=colour, linewidth=1.6)
            axes.plot([quarter, three], [place, place], color=colour, linewidth=9, solid_capstyle="butt")
            axes.plot([middle, middle], [place - 0.3, place + 0.3], color=_INK, linewidth=1.8)
        _logarithmic(axes, "x")
        axes.set_xlabel(unit)

    return _rows([Bar(label=label, value=None) for label, _, _ in items], draw)


def front(items: Sequence[Point], *, palette: dict[str, str]) -> str:
    """Draws throughput in images per second over latency in ms, a line per runtime along its batch sizes."""

    def draw(axes: Axes) -> None:
        _lines(axes, sorted(items, key=lambda item: item.x), palette)
        axes.margins(0.12, 0.18)
        _plane(axes, "latency p50, ms", "images per second")

    return _drawn(_PLANE_IN, draw)


def roofline(items: Sequence[Point], roofs: Sequence[Roof], *, palette: dict[str, str]) -> str:
    """Draws achieved operations per second over operations per byte, below what the machine reaches.

    The form: Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009, figure 1. Points are operations per byte, and
    billions of operations per second.
    """

    def draw(axes: Axes) -> None:
        _lines(axes, sorted(items, key=lambda item: item.x), palette)
        ridges = [roof.top / roof.slope for roof in roofs]
        left = min([*(item.x for item in items), *ridges]) / 2
        right = max([*(item.x for item in items), *ridges]) * 2.5
        for roof, ridge in zip(roofs, ridges, strict=True):
            axes.plot([left, ridge, right], [left * roof.slope, roof.top, roof.top], "--", color=_INK, linewidth=1.2,
                      alpha=0.8, zorder=1)  # fmt: skip
            axes.annotate(f"{roof.name} peak", (right, roof.top), xytext=(0, 3), textcoords="offset points", ha="right",
                          fontsize=_SMALL)  # fmt: skip
        lowest = min(item.y for item in items)
        axes.set_xlim(left, right)
        axes.set_ylim(lowest / 2, max([*(roof.top for roof in roofs), *(item.y for item in items)]) * 2)
        _plane(axes, "operations per byte moved", "billion operations per s")

    return _drawn(_PLANE_IN, draw)


def load(items: Sequence[Point], *, limit_ms: float, palette: dict[str, str]) -> str:
    """Draws latency in ms over arrivals a second, a line per runtime; at the limit a line that must not be crossed."""

    def draw(axes: Axes) -> None:
        _lines(axes, sorted(items, key=lambda item: item.x), palette)
        axes.axhline(limit_ms, color=BAD, linewidth=1.5, linestyle="--")
        axes.margins(0.12, 0.18)
        _plane(axes, "arrivals per second", "latency p99, ms")

    return _drawn(_PLANE_IN, draw)


@dataclass(frozen=True, kw_only=True)
class Course:
    """How a quantity was known better and better.

    Attributes:
        x: Of the single values.
        values: Drawn as dots.
        looks: Places of the interval, a subset of `x`.
        low: Its lower end at each look.
        high: Its upper end, likewise.
    """

    x: Sequence[float]
    values: Sequence[float]
    looks: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def course(found: Course, *, edges: tuple[float, float], x: str, y: str) -> str:
    """Draws single values as dots, the interval that they supported as a band, and the edges of what does not matter.

    What lies far outside is cut off: the band's first width and the values' middle nine tenths are in view.
    """
    import numpy as np

    def draw(axes: Axes) -> None:
        axes.plot(found.x, found.values, ".", color=COLOURS[0], markersize=2.5, alpha=0.35, zorder=1)
        axes.fill_between(found.looks, found.low, found.high, color=COLOURS[1], alpha=0.45, linewidth=0, zorder=2)
        for edge in edges:
            axes.axhline(edge, color=_INK, linestyle="--", linewidth=1.0)
        ends = [*np.percentile(found.values, (5, 95)), *edges, *found.low[-1:], *found.high[-1:]]
        margin = 0.08 * (max(ends) - min(ends))
        axes.set_ylim(min(ends) - margin, max(ends) + margin)
        axes.set_xlim(left=0)
        axes.spines["left"].set_visible(True)
        axes.set_xlabel(x)
        axes.set_ylabel(y)

    return _drawn(_PLANE_IN, draw)


def _lines(axes: Axes, items: Sequence[Point], palette: dict[str, str]) -> None:
    """Draws a line per name; those of one series share its colour and sign, and differ in how they are dashed."""
    series = list(palette)
    dashes: dict[str, int] = {}
    for name in dict.fromkeys(item.line for item in items):
        own = [item for item in items if item.line == name]
        colour, sign = palette.get(own[0].series, COLOURS[0]), "o"
        if own[0].series in series:
            sign = _SIGNS[series.index(own[0].series) % len(_SIGNS)]
        dash = dashes.setdefault(own[0].series, 0)
        dashes[own[0].series] += 1
        axes.plot([i.x for i in own], [i.y for i in own], linestyle=_DASHES[dash % len(_DASHES)], marker=sign,
                  markersize=5, color=colour, linewidth=1.5, label=name, zorder=2)  # fmt: skip
        for item in own:
            if item.ringed:
                axes.plot(item.x, item.y, sign, color=colour, markersize=9, markeredgecolor=_INK, markeredgewidth=1.2)
            axes.annotate(item.text, (item.x, item.y), xytext=(0, 7), textcoords="offset points", ha="center",
                          fontsize=_SMALL)  # fmt: skip
    axes.spines["left"].set_visible(True)
    axes.grid(alpha=0.15, color=_INK, linewidth=0.6)


def _plane(axes: Axes, x: str, y: str) -> None:
    """Names logarithmic axes, and the lines above them."""
    _logarithmic(axes, "x")
    _logarithmic(axes, "y")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(
        frameon=False, fontsize=_SMALL, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handlelength=1.8,
        columnspacing=1.2, borderaxespad=0.2,
    )  # fmt: skip


def _logarithmic(axes: Axes, which: str) -> None:
    """Makes an axis logarithmic, with plain numbers at it; finer ones where it spans little."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    decades = math.log10(high / low)
    if decades < 0.7:
        axis.set_major_locator(MaxNLocator(5))
    else:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0,), numticks=8))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}" if 1e-4 <= value < 1e7 else f"{value:.0e}")


def _interval(axes: Axes, place: float, interval: tuple[float, float] | None) -> None:
    if interval is not None:
        axes.plot(interval, [place, place], color=_INK, linewidth=1.4)
        for end in interval:
            axes.plot([end, end], [place - 0.16, place + 0.16], color=_INK, linewidth=1.4)


def _rows(items: Sequence[Bar], draw: Any) -> str:
    def named(axes: Axes) -> None:
        draw(axes)
        axes.set_yticks(range(len(items)), [_short(item.label) for item in items])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(items) - 0.4, -0.6)

    return _drawn(_FRAME_IN + _ROW_IN * len(items), named)


def _drawn(height_in: float, draw: Any) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Names come from files: what a font lacks is drawn by the browser's own.
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        figure: Figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
        draw(figure.subplots())
        return _text(figure)


def _text(figure: Figure) -> str:
    import matplotlib as mpl

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    # Names inside the picture must differ from those of others on the page, and be the same every time.
    salt = hashlib.sha256(re.sub(r"[0-9a-f]{10}\b", "", buffer.getvalue()).encode()).hexdigest()
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="((?:figure|axes|patch|text|line2d|matplotlib|xtick|ytick|legend|PolyCollection)[^"]*)"',
                 "", svg)  # fmt: skip
    svg = re.sub(r'^<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg.replace(_INK, "currentColor"), count=1)
    svg = re.sub(r'^<svg ([^>]*?)height="[^"]*"', r'<svg aria-hidden="true" \1', svg, count=1)
    # The page's own font stands here, not the list of fonts of the machine that drew it.
    return re.sub(r"font: ([^;\"']*?)px [^;\"]*", r"font: \1px system-ui, sans-serif", svg)


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"
