"""A comparison on the page: the verdicts, and of rows that were measured in turns how the interval narrowed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from resnet_onnx.bench.always_valid import RatioSequence
from resnet_onnx.bench.paired import Block
from resnet_onnx.bench.statistics import rounded
from resnet_onnx.report import charts
from resnet_onnx.report.charts import Course
from resnet_onnx.report.page import Chart, Section
from resnet_onnx.results.commands import Finding
from resnet_onnx.results.compare import Compare, ComparedRow, PairedBlocks
from resnet_onnx.results.document import Saved

_LOOKS = 60
"""Places at which the interval is drawn; more would not be seen."""


def findings(document: Saved[Compare]) -> list[Finding]:
    """Returns a sentence a row, and one where the outputs differ or rows are missing."""
    found = document.result
    told = [_finding(found, row) for row in found.rows]
    different = [row for row in found.rows if row.outputs is not None and row.outputs.different]
    told += [Finding(state="bad", text=f"{_where(found, row)}: outputs {_text(row)}.") for row in different]
    if found.missing:
        told.append(Finding(state="bad", text=f"{found.model}: only BASE has {', '.join(found.missing)}."))
    return told


def _finding(found: Compare, row: ComparedRow) -> Finding:
    where = _where(found, row)
    if row.failed:
        return Finding(state="bad", text=f"{where}: NEW could not be measured, and BASE could.")
    ratio = "" if row.ratio is None else f" ({_ratio(row)})"
    tolerance = f"{100 * found.tolerance:g} %"
    states = {
        "slower": ("bad", f"NEW is slower by more than {tolerance}{ratio}"),
        "faster": ("good", f"NEW is faster by more than {tolerance}{ratio}"),
        "same": ("good", f"NEW is as fast as BASE within {tolerance}{ratio}"),
    }
    state, text = states.get(row.verdict, ("doubt", f"NEW is not shown to be as fast as BASE{ratio}"))
    return Finding(state=state, text=f"{where}: {text}.")  # type: ignore[arg-type]


def section(document: Saved[Compare]) -> Section:
    """Returns the part of the page: a chart of each row that has blocks, and the table."""
    found = document.result
    how = "Measured in turns, blocks of ABBA or BAAB by a coin." if found.paired else "Two saved results."
    return Section(
        heading=f"Is NEW as fast as BASE? {found.model}",
        text=f"{how} Ratio: images per second, NEW over BASE; {100 * found.tolerance:g} % does not matter.",
        charts=[
            Chart(
                svg=_course(row.blocks, found.tolerance),
                caption=f"{_name(row)}: every block, and the 95 % interval at every moment; between the dashed lines a "
                "difference does not matter.",
            )
            for row in found.rows
            if row.blocks is not None and row.ci95 is not None
        ],
        columns=["runtime", "batch", "BASE img/s", "NEW img/s", "ratio", "verdict", "outputs"],
        rows=[
            [
                _name(row).rpartition(" batch ")[0],
                str(row.batch),
                _speed(row.base_images_per_second),
                _speed(row.new_images_per_second),
                _ratio(row),
                "FAILED" if row.failed else row.verdict,
                "–" if row.outputs is None else "different" if row.outputs.different else "equal",
            ]
            for row in found.rows
        ],
        notes=[f"{_name(row)}: {note}" for row in found.rows for note in (*row.notes, *_outputs(row))],
    )


def _course(blocks: PairedBlocks, tolerance: float) -> str:
    """Draws how the interval narrowed; it is computed anew from the blocks."""
    ratios = [
        Block(order=order, turns_s=turns).log_ratio for order, turns in zip(blocks.orders, blocks.turns_s, strict=True)
    ]
    at = list(itertools.accumulate(blocks.spent_s))
    every = max(1, len(ratios) // _LOOKS)
    sequence, looks = RatioSequence(), []
    for index, ratio in enumerate(ratios):
        sequence.add(ratio)
        if (len(ratios) - 1 - index) % every == 0 and (ends := sequence.interval().ends) is not None:
            looks.append((at[index], *ends))
    drawn = Course(
        x=at,
        values=[math.exp(ratio) for ratio in ratios],
        looks=[look[0] for look in looks],
        low=[look[1] for look in looks],
        high=[look[2] for look in looks],
    )
    edges = (1 - tolerance, 1 / (1 - tolerance))
    return charts.course(drawn, edges=edges, x="seconds of measuring", y="NEW over BASE")


def _where(found: Compare, row: ComparedRow) -> str:
    return f"{found.model} {row.precision} on {_name(row)}"


def _name(row: ComparedRow) -> str:
    streams = f" {row.streams} streams" if row.streams > 1 else ""
    threads = f" {row.threads} threads" if row.threads else ""
    return f"{row.runtime}{streams}{threads} batch {row.batch}"


def _ratio(row: ComparedRow) -> str:
    if row.ratio is None:
        return "–"
    return f"{row.ratio:.3f}" + ("" if row.ci95 is None else f", {row.ci95[0]:.3f} – {row.ci95[1]:.3f}")


def _speed(value: float | None) -> str:
    return "–" if value is None else rounded(value, 3)


def _text(row: ComparedRow) -> str:
    return row.outputs.text if row.outputs is not None else ""


def _outputs(row: ComparedRow) -> Sequence[str]:
    return () if row.outputs is None else (f"outputs {row.outputs.text}",)
