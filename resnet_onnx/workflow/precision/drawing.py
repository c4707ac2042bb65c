"""A picture of int8: what each layer costs alone, and where the values of each tensor lie against their range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtimes import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from converters.calibration import Observed

_INT8, _KEPT, _RANGE = "#0072b2", "#e69f00", "#d55e00"
_ROWS = 96
"""Of the drawing of histograms; each spans the same factor."""

_SHOWN_BELOW = 2.0**-14
"""Of a tensor's range: smaller magnitudes are a quarter of a step and less."""


def draw(
    path: Path,
    *,
    title: str,
    layers: Sequence[Mapping[str, Any]],
    order: Sequence[str],
    kept: Sequence[str],
    observed: Observed,
    ranges: Mapping[str, float],
) -> None:
    """Draws sensitivity per layer above the histograms of magnitudes per tensor (.png, .svg or .pdf).

    `layers` are what ``sensitivity`` measured, `order` their names as the network has them, `kept` those in float32.

    Raises:
        FileProblem: The file can't be written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none"}):
        width = min(30.0, max(8.0, 0.17 * max(len(order), len(ranges))))
        figure = Figure(figsize=(width, 9.0), layout="constrained")
        above, below = figure.subplots(2, 1)
        figure.suptitle(title)
        _bars(above, {str(row["layer"]): float(row["sqnr_db"]) for row in layers}, order, set(kept))
        _histograms(below, observed, ranges)
        with files.atomic_file(path) as temporary:
            figure.savefig(temporary, format=path.suffix.removeprefix(".").lower() or "png", dpi=110)


def _bars(axes: Axes, found: Mapping[str, float], order: Sequence[str], kept: set[str]) -> None:
    names = [name for name in order if name in found]
    highest = max((value for value in found.values() if np.isfinite(value)), default=1.0)
    heights = [found[name] if np.isfinite(found[name]) else highest for name in names]
    for label, colour, of in (("int8", _INT8, False), ("kept in fp32", _KEPT, True)):
        places = [place for place, name in enumerate(names) if (name in kept) is of]
        if places:
            axes.bar(places, [heights[place] for place in places], color=colour, label=label, width=0.8)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.set_ylabel("outputs' SQNR, dB")
    axes.set_title("Each layer alone in int8: the lower the bar, the more the layer costs", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if kept:
        axes.legend(frameon=False, fontsize=8)


def _histograms(axes: Axes, observed: Observed, ranges: Mapping[str, float]) -> None:
    names = list(ranges)
    most = max((observed.histograms[name].largest / ranges[name] for name in names), default=1.0)
    edges = np.geomspace(_SHOWN_BELOW, max(1.0, most) * 1.1, _ROWS + 1)
    image = np.stack([_column(observed, name, ranges[name], edges) for name in names], axis=1)
    shown = axes.pcolormesh(np.arange(len(names) + 1) - 0.5, edges, image, cmap="Blues", vmin=0.0)
    axes.set_yscale("log", base=2)
    axes.axhline(1.0, color=_RANGE, linewidth=1.4, label="range: larger values are clipped to it")
    axes.axhline(1 / 254, color=_RANGE, linewidth=1.0, linestyle=":", label="half a step: smaller values become zero")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    axes.set_ylabel("magnitude / range")
    axes.set_title("Where the values of each tensor lie (share of its values, exact zeros left out)", fontsize=10)
    axes.legend(loc="lower left", fontsize=8)
    axes.figure.colorbar(shown, ax=axes, label="share of a tensor's values", pad=0.01)


def _column(observed: Observed, name: str, threshold: float, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the share of a tensor's values between neighbouring edges, float64 [len(edges) − 1]."""
    histogram = observed.histograms[name]
    total = max(1, int(histogram.counts.sum()))
    # Within a bin of the histogram the values count as spread evenly: its bins are wider than these for small ones.
    reached = np.concatenate([[0.0], np.cumsum(histogram.counts)]) / total
    at = np.interp(edges * threshold, np.arange(len(reached)) * histogram.width, reached)
    return np.asarray(np.diff(at), np.float64)
