"""The paper's figure: error against steps, plain networks beside residual ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from resnet_onnx.report.charts import COLOURS
from resnet_onnx.report.words import counted
from resnet_onnx.results.tables import csv_text
from resnet_onnx.training.history import EpochRow
from runtimes.files import atomic_file, write_text

_THIN, _BOLD = 1.0, 2.4


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One network's way through its training, with the figures of its tests after every epoch."""

    model: str
    kind: str
    depth: int
    epochs: Sequence[EpochRow]

    def points(self) -> list[dict[str, Any]]:
        """Returns a row per epoch; errors are shares, 0 to 1."""
        return [
            {
                "model": self.model,
                "kind": self.kind,
                "depth": self.depth,
                "epoch": epoch["epoch"],
                "step": step,
                "training_error": 1 - epoch["train_top1"],
                "training_loss": epoch["train_loss"],
                "test_error": 1 - epoch["test_top1"],
                "test_loss": epoch["test_loss"],
                "learning_rate": epoch["learning_rate"],
                "images_per_second": epoch["images_per_second"],
            }
            for epoch, step in zip(self.epochs, accumulate(epoch["steps"] for epoch in self.epochs), strict=True)
        ]


def write_csv(curves: Sequence[Curve], path: Path) -> None:
    """Writes every epoch of every network, a row each; raises ``FileProblem``."""
    points = [point for curve in curves for point in curve.points()]
    write_text(path, csv_text(points[0], (point.values() for point in points)))


def draw(curves: Sequence[Curve], path: Path, *, title: str) -> None:
    """Draws a panel for plain and one for residual networks; thin is training error, bold is test error. A PNG.

    Args:
        curves: Of both kinds; networks that are not trained yet are left out.
        path: Where to.
        title: What was trained, and how.

    Raises:
        FileProblem: The file can't be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    figure = Figure(figsize=(10.0, 5.2), layout="constrained", dpi=120)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    depths = sorted({curve.depth for curve in curves})
    for axes, kind in zip(panels, ("plain", "residual"), strict=True):
        for curve in (c for c in curves if c.kind == kind):
            points = curve.points()
            colour = COLOURS[depths.index(curve.depth) % len(COLOURS)]
            steps = [point["step"] for point in points]
            mark = "o" if len(points) == 1 else None
            for name, width in (("training", _THIN), ("test", _BOLD)):
                percent = [100 * point[f"{name}_error"] for point in points]
                axes.plot(
                    steps, percent, color=colour, linewidth=width, marker=mark, markersize=2 + width,
                    label=f"{curve.depth} layers, {name} {percent[-1]:.1f} %",
                )  # fmt: skip
        axes.set_title(kind)
        axes.set_xlabel("steps")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:  # no network of a kind may be trained yet
            # Below the panel: curves go everywhere inside, and a single epoch is a few points in the middle.
            lines = [*axes.lines[::2], *axes.lines[1::2]]  # a column of training errors, one of test errors
            axes.legend(
                handles=lines, frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2
            )
    panels[0].set_ylabel("error, %")
    errors = [point[f"{name}_error"] for curve in curves for point in curve.points() for name in ("training", "test")]
    panels[0].set_ylim(0, 105 * max(errors, default=1.0) or 1)  # some room above the highest point
    epoch = next((curve.epochs[0]["steps"] for curve in curves), 1)
    last = max((curve.points()[-1]["step"] for curve in curves), default=epoch)
    panels[0].set_xlim(0, 1.04 * last)
    note = (
        f"{counted(epoch, 'step')} an epoch. Thin: training error, on augmented pictures while training. "
        "Bold: test error."
    )
    figure.suptitle(f"{title}\n{note}", fontsize=10)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
