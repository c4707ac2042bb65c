"""The columns of a benchmark: one definition for the terminal, the report's page, Markdown and CSV.

A new column is one entry of ``COLUMNS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from resnet_onnx.bench.statistics import rounded, significant
from resnet_onnx.results.bench import BenchRow
from resnet_onnx.results.tables import csv_text

Place = Literal["terminal", "page"]
"""Where a table is shown; Markdown has the terminal's."""

UNKNOWN = "–"
_SYMMETRIC = 0.75
"""An interval whose shorter side is less than this share of the longer one is shown by its two ends."""


@dataclass(frozen=True, kw_only=True)
class BenchTable:
    """Rows that are shown together, and what their cells need to know of the others.

    Attributes:
        rows: In the order of the table.
        place: Where it is shown.
        reference: The runtime that others are compared with, or None.
        unit: What rows of two runtimes have in common where they may be compared.
    """

    rows: Sequence[BenchRow]
    place: Place
    reference: str | None
    unit: Callable[[BenchRow], tuple[object, ...]]
    base: Mapping[tuple[object, ...], BenchRow] = field(init=False)

    def __post_init__(self) -> None:
        base = {
            self.unit(row): row for row in self.rows if row.runtime == self.reference and row.speed and not row.error
        }
        object.__setattr__(self, "base", base)

    def differ(self, value: Callable[[BenchRow], object]) -> bool:
        """Returns whether rows differ in something."""
        return len({value(row) for row in self.rows}) > 1

    def columns(self) -> list[Column]:
        """Returns the columns that are shown."""
        return [column for column in COLUMNS if self.place in column.places and column.shown(self)]

    def headings(self) -> list[str]:
        """Returns the headings, with units."""
        return [column.heading.format(reference=self.reference) for column in self.columns()]

    def cells(self) -> list[list[str]]:
        """Returns a line of cells for each row."""
        columns = self.columns()
        return [[column.cell(row, self) for column in columns] for row in self.rows]


def _nothing(row: BenchRow, table: BenchTable) -> str:
    return UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        heading: In tables for people, with the unit; ``{reference}`` is the runtime that others are compared with.
        cell: What it shows of a row.
        places: The tables that have it.
        shown: Whether it says anything there.
        csv: Columns of the CSV, with units in their names, and what each says of a row; all digits, None is empty.
    """

    heading: str = ""
    cell: Callable[[BenchRow, BenchTable], str] = _nothing
    places: tuple[Place, ...] = ("terminal", "page")
    shown: Callable[[BenchTable], bool] = lambda table: True
    csv: Mapping[str, Callable[[BenchRow], object]] = field(default_factory=dict)


def bench_csv(rows: Sequence[BenchRow]) -> str:
    """Returns rows of ``bench`` as CSV. Numbers have all their digits; what is not known is empty."""
    columns = {name: value for column in COLUMNS for name, value in column.csv.items()}
    return csv_text(columns, ([value(row) for value in columns.values()] for row in rows))


def work_name(row: BenchRow) -> str:
    """Returns which work a row timed, in words."""
    return " + ".join([row.scope, *row.includes])


def speed_text(row: BenchRow) -> str:
    """Returns images per second, to the digits that are significant."""
    return significant(row.speed, _half_width(row))[0] if row.speed else UNKNOWN


def _half_width(row: BenchRow) -> float | None:
    interval = row.images_per_second_ci95
    return (interval[1] - interval[0]) / 2 if interval else None


def _uncertainty(row: BenchRow, table: BenchTable) -> str:
    half, interval = _half_width(row), row.images_per_second_ci95
    if half is None or interval is None:
        return UNKNOWN
    sides = interval[1] - row.speed, row.speed - interval[0]
    if min(sides) < _SYMMETRIC * max(sides):
        return "–".join(significant(end, half)[0] for end in interval)
    return f"± {significant(row.speed, half)[1]}"


def _runtime(row: BenchRow, table: BenchTable) -> str:
    if table.place == "page":
        return row.runtime
    narrow = row.recorded.get("autocast")
    doubtful = row.error is None and not row.stable
    return row.runtime + (f" (autocast {narrow})" if narrow else "") + (" ~" if doubtful else "")


def _median(row: BenchRow, table: BenchTable) -> str:
    """The interval of the speed is that of the median too, where one run follows the other."""
    p50, half = row.latency_ms.p50, _half_width(row)
    if p50 is None or not row.speed:
        return UNKNOWN
    if row.streams > 1 or half is None:
        return rounded(p50, 3)
    return significant(p50, p50 * half / row.speed)[0]


def _rate(value: float | None) -> str:
    return UNKNOWN if value is None else rounded(value, 3)


def _falls_short(row: BenchRow) -> bool:
    """Whether a row delivers so much less than its figure that a narrow table has to say it."""
    delivered = row.delivered_images_per_second
    return delivered is not None and delivered < 0.9 * row.speed


def _milliseconds(time: float | None) -> str:
    return UNKNOWN if time is None else rounded(time, 3)


def _share(row: BenchRow, table: BenchTable) -> str:
    share, bound = row.roofline.limit_fraction, row.roofline.bound
    return UNKNOWN if share is None else f"{100 * share:.0f} % {bound or ''}".strip()


def _ratio(row: BenchRow, table: BenchTable) -> str:
    base = table.base.get(table.unit(row))
    return UNKNOWN if base is None or not row.speed else f"{row.speed / base.speed:.2f}×"


def _stable(row: BenchRow, table: BenchTable) -> str:
    return "failed" if row.error else "yes" if row.stable else "no ~"


COLUMNS: tuple[Column, ...] = (
    Column(places=(), csv={"model": lambda row: row.model, "precision": lambda row: row.precision}),
    Column(
        heading="runtime",
        cell=_runtime,
        csv={"runtime": lambda row: row.runtime, "version": lambda row: row.version, "device": lambda row: row.device},
    ),
    Column(
        heading="precision",
        cell=lambda row, table: row.precision,
        places=("page",),
        shown=lambda table: table.differ(lambda row: row.precision),
    ),
    Column(heading="batch", cell=lambda row, table: str(row.batch), csv={"batch": lambda row: row.batch}),
    Column(
        heading="scenario",
        cell=lambda row, table: row.loadgen or row.scenario or UNKNOWN,
        places=("terminal",),
        shown=lambda table: any(row.harness is not None or row.capacity is not None for row in table.rows),
    ),
    Column(
        heading="streams",
        cell=lambda row, table: str(row.streams),
        shown=lambda table: any(row.streams > 1 for row in table.rows),
        csv={"streams": lambda row: row.streams},
    ),
    Column(
        heading="threads",
        cell=lambda row, table: str(row.cpu_threads or "all"),
        shown=lambda table: table.differ(lambda row: row.cpu_threads),
        csv={"threads": lambda row: row.cpu_threads, "scenario": lambda row: row.scenario},
    ),
    Column(
        heading="work",
        cell=lambda row, table: work_name(row),
        places=("page",),
        shown=lambda table: table.differ(work_name),
        csv={"scope": lambda row: row.scope, "includes": lambda row: " ".join(row.includes)},
    ),
    Column(
        heading="img/s",
        cell=lambda row, table: speed_text(row),
        csv={"images_per_s": lambda row: row.images_per_second},
    ),
    Column(
        heading="± 95 %",
        cell=_uncertainty,
        csv={
            "images_per_s_low95": lambda row: row.images_per_second_ci95 and row.images_per_second_ci95[0],
            "images_per_s_high95": lambda row: row.images_per_second_ci95 and row.images_per_second_ci95[1],
        },
    ),
    Column(
        heading="delivered",
        cell=lambda row, table: _rate(row.delivered_images_per_second),
        shown=lambda table: any(
            row.delivered_images_per_second is not None if table.place == "page" else _falls_short(row)
            for row in table.rows
        ),
        csv={"delivered_images_per_s": lambda row: row.delivered_images_per_second},
    ),
    Column(heading="p50 ms", cell=_median, csv={"p50_ms": lambda row: row.latency_ms.p50}),
    Column(
        heading="p90 ms",
        cell=lambda row, table: _milliseconds(row.latency_ms.p90),
        csv={"p90_ms": lambda row: row.latency_ms.p90},
    ),
    Column(
        heading="p99 ms",
        cell=lambda row, table: _milliseconds(row.latency_ms.p99),
        csv={"p99_ms": lambda row: row.latency_ms.p99},
    ),
    Column(
        heading="share of peak",
        cell=_share,
        csv={"share_of_limit": lambda row: row.roofline.limit_fraction, "limit": lambda row: row.roofline.bound},
    ),
    Column(
        heading="J/img",
        cell=lambda row, table: _rate(row.energy.joules_per_image if row.energy is not None else None),
        shown=lambda table: any(row.energy is not None and row.energy.joules_per_image for row in table.rows),
        csv={
            "joules_per_image": lambda row: row.energy and row.energy.joules_per_image,
            "power_w": lambda row: row.energy and row.energy.power_w,
        },
    ),
    Column(
        heading="per million",
        cell=lambda row, table: _rate(row.cost_per_million),
        shown=lambda table: any(row.cost_per_million is not None for row in table.rows),
        csv={"cost_per_million": lambda row: row.cost_per_million},
    ),
    Column(
        heading="vs {reference}",
        cell=_ratio,
        shown=lambda table: bool(table.base) if table.place == "page" else table.differ(lambda row: row.runtime),
    ),
    Column(
        heading="",
        cell=lambda row, table: "fastest" if row.best else "front" if row.pareto else "",
        places=("terminal",),
        shown=lambda table: len(table.rows) > 2,
    ),
    Column(places=(), csv={"samples": lambda row: row.samples}),
    Column(
        heading="stable",
        cell=_stable,
        places=("page",),
        csv={
            "stable": lambda row: row.stable,
            "unstable_reason": lambda row: row.unstable_reason,
            "error": lambda row: row.error and row.error.message,
        },
    ),
)
