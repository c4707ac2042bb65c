"""Charts as SVG text that takes the colour of the page's own text, so that one picture serves light, dark and paper.

Colours: Okabe and Ito, "Color Universal Design" (2008): colour-blind eyes tell them apart; every bar is also named in
words.
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

_WIDTH_IN, _ROW_IN, _FRAME_IN = 4.9, 0.3, 0.75
"""Narrow enough that a phone hardly shrinks the letters."""

_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
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


def colours(series: Sequence[str]) -> dict[str, str]:
    """Returns a colour per name, the same for the same names whatever their order."""
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(sorted(set(series)))}


def bars(items: Sequence[Bar], *, unit: str, palette: dict[str, str]) -> str:
    """Draws horizontal bars from zero with their intervals.

    Args:
        items: From top to bottom.
        unit: Of the axis.
        palette: A colour per series.

    Returns:
        An ``<svg>`` element.
    """

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
            axes.text(end + most * 0.02, place, item.text, va="center", fontsize=9)
        axes.set_xlim(0, most * 1.22)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axes.set_xlabel(unit)

    return _rows(items, draw)


def dots(
    items: Sequence[Bar], *, unit: str, palette: dict[str, str], log: bool = False, limit: float | None = None
) -> str:
    """Draws points with their intervals on an axis that need not begin at zero.

    Args:
        items: From top to bottom.
        unit: Of the axis.
        palette: A colour per series.
        log: Whether the axis is logarithmic; values of 0 then stand at its left end.
        limit: Where a line is drawn that must not be crossed, or None.
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
                    item.text, (1, place), xycoords=("axes fraction", "data"), va="center", ha="left", fontsize=9,
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

    Args:
        items: Label, series and samples, from top to bottom.
        unit: Of the axis, which is logarithmic.
        palette: A colour per series.
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


def front(items: Sequence[tuple[str, float, float, int, bool]], *, palette: dict[str, str]) -> str:
    """Draws throughput over latency, a line per runtime along its batch sizes.

    Args:
        items: Runtime, latency in ms, images per second, batch, and whether nothing is both faster and quicker.
        palette: A colour per runtime.
    """

    def draw(axes: Axes) -> None:
        for name in dict.fromkeys(item[0] for item in items):
            own = sorted((item for item in items if item[0] == name), key=lambda item: item[3])
            axes.plot([i[1] for i in own], [i[2] for i in own], "-", color=palette[name], linewidth=1.5, label=name)
            for _, latency, speed, batch, best in own:
                axes.plot(
                    latency, speed, "o", color=palette[name], markersize=9 if best else 5,
                    markeredgecolor=_INK if best else "none", markeredgewidth=1.2,
                )  # fmt: skip
                axes.annotate(str(batch), (latency, speed), xytext=(0, 8), textcoords="offset points", ha="center",
                              fontsize=8)  # fmt: skip
        axes.margins(0.12, 0.18)
        _logarithmic(axes, "x")
        _logarithmic(axes, "y")
        axes.spines["left"].set_visible(True)
        axes.grid(alpha=0.15, color=_INK, linewidth=0.6)
        axes.set_xlabel("latency p50, ms")
        axes.set_ylabel("images per second")
        axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)

    return _drawn(3.2, draw)


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
