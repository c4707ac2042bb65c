"""A search on the page: the candidates, the front of latency and throughput, accuracy beside speed, the race."""

from __future__ import annotations

from resnet_onnx.bench.statistics import rounded
from resnet_onnx.report import charts
from resnet_onnx.report.charts import Bar, Point
from resnet_onnx.report.page import Chart, Section
from resnet_onnx.results.commands import Finding
from resnet_onnx.results.document import Saved
from resnet_onnx.results.optimize import CandidateRow, Optimize

_LONGEST_REASON = 88


def findings(document: Saved[Optimize]) -> list[Finding]:
    """Returns the answer as a sentence, or that there is none."""
    found = document.result
    if found.answer is not None:
        return [Finding(state="good", text=f"{found.model}: {found.answer.sentence}")]
    near = f" The nearest: {found.nearest}" if found.nearest else ""
    return [Finding(state="bad", text=f"{found.model}: no candidate can be shown to keep the limits.{near}")]


def table(found: Optimize, most: int | None = None) -> tuple[list[str], list[list[str]], int]:
    """Returns headings, cells and how many rows were left out.

    Rows that are shown differ in what became of them: of the many that left the race, the best.
    """
    drops = _drops(found)
    first = [row for row in found.candidates if row.state in ("confirmed", "tied")]
    raced = [row for row in found.candidates if row.state in ("eliminated", "failed")]
    raced.sort(key=lambda row: -(row.images_per_second or row.over_answer or 0.0))
    if most is not None:  # one that was not measured tells nothing
        raced = [row for row in raced if row.over_answer is not None or row.state == "failed"]
    out = [row for row in found.candidates if row.state in ("refused", "unavailable")]
    room = len(raced) if most is None else max(3, most - len(first) - len(out))
    shown = [*first, *raced[:room], *out]
    columns = ["candidate", "img/s", "run ms", "drop", "state"]
    return columns, [_cells(row, drops) for row in shown], len(found.candidates) - len(shown)


def _cells(row: CandidateRow, drops: dict[str, str]) -> list[str]:
    confirmed = row.state == "confirmed"
    about = "" if confirmed else "≈ "
    return [
        row.name,
        "" if row.images_per_second is None else about + rounded(row.images_per_second, 3),
        "" if row.latency_ms is None else about + rounded(row.latency_ms, 2),
        drops.get(row.form, "") if confirmed else "",
        _state(row),
    ]


def _state(row: CandidateRow) -> str:
    reason = " ".join(row.reason.split())
    if len(reason) > _LONGEST_REASON:
        reason = f"{reason[: _LONGEST_REASON - 1].rpartition(' ')[0]} …"
    return f"{row.state}: {reason}" if reason else row.state


def _drops(found: Optimize) -> dict[str, str]:
    answer = found.answer
    if answer is None or answer.top1_drop is None:
        return {}
    ends = answer.top1_drop_ci95
    half = "" if ends is None else f" ± {(ends[1] - ends[0]) / 2:.2f}"
    return {f"{answer.runtime} {answer.precision}": f"{answer.top1_drop:+.2f}{half}"}


def sections(document: Saved[Optimize]) -> list[Section]:
    """Returns what the page shows of a search."""
    found = document.result
    columns, rows, _ = table(found)
    parts = [
        Section(
            heading=f"Which engine? {found.model}",
            text=f"Goal: {found.goal}. {_timed(found)} {found.spent_s:.0f} s of {found.budget_s:.0f} s. Speeds with ≈ "
            "are the answer's confirmed rate times the ratio to it, measured in turns.",
            charts=_charts(found),
            columns=columns,
            rows=rows,
            notes=[*found.ties, *found.next_steps],
        )
    ]
    if found.forms:
        parts.append(_admission(found))
    if found.path:
        parts.append(_race(found))
    return parts


def _timed(found: Optimize) -> str:
    covers = {
        "pictures": "A run covers picture files to scores: reading, decoding, preprocessing, computing.",
        "device": "A run covers the model alone.",
        "end-to-end": "A run covers arrays in and arrays out.",
    }
    return covers[found.timed]


def _charts(found: Optimize) -> list[Chart]:
    measured = [row for row in found.candidates if row.images_per_second is not None and row.latency_ms is not None]
    if not measured:
        return []
    points = [
        Point(
            x=row.latency_ms or 0.0,
            y=row.images_per_second or 0.0,
            text=str(row.batch),
            line=f"{row.form}, {row.streams} × {row.threads}" if row.threads else f"{row.form}, {row.streams}",
            series=row.form,
            ringed=row.state == "confirmed",
        )
        for row in measured
    ]
    series = charts.colours([row.form for row in measured])
    drawn = [
        Chart(
            svg=charts.front(points, palette=series),
            caption="Throughput beside the time of a run; each point is a candidate, labelled with its batch.",
        )
    ]
    noise = [form for form in found.forms if form.admitted and form.agreement is not None]
    if len(noise) > 1:
        best = {row.form: max(r.images_per_second or 0.0 for r in measured if r.form == row.form) for row in measured}
        bars = [
            Bar(
                label=name,
                value=100 * (form.agreement or 0.0),
                text=f"{100 * (form.agreement or 0.0):.2f} %, {best.get(name, 0.0):,.0f} img/s",
                series=name,
            )
            for form in noise
            for name in (f"{form.runtime} {form.precision}",)
        ]
        colours = {**charts.colours([bar.series for bar in bars]), **series}
        drawn.append(
            Chart(
                svg=charts.dots(bars, unit="decided as the network, %", palette=colours),
                caption="Accuracy beside speed: how often each form decides as the network, and its best speed.",
            )
        )
    return drawn


def _admission(found: Optimize) -> Section:
    return Section(
        heading="Who was admitted",
        text="Before anything was timed, each form was held against the network at every batch size of the race.",
        columns=["form", "proof", "relative RMSE", "budget", "signal to noise, dB", "alike %", "pictures", "verdict"],
        rows=[
            [
                f"{form.runtime} {form.precision}",
                form.proof,
                "–" if form.error is None else f"{form.error:.1e}",
                "–" if form.budget is None else f"{form.budget:.1e}",
                "–" if form.sqnr_db is None else f"{form.sqnr_db:.1f}",
                "–" if form.agreement is None else f"{100 * form.agreement:.2f}",
                f"{form.pictures:,}",
                "admitted" if form.admitted else f"refused: {form.reason}",
            ]
            for form in found.forms
        ],
    )


def _race(found: Optimize) -> Section:
    return Section(
        heading="The path of the race",
        text="Each line is a challenger in turns with the best so far; the interval holds whenever it was stopped.",
        columns=["at s", "challenger", "against", "ratio", "95 %", "blocks", "then"],
        rows=[
            [
                f"{step.at_s:.0f}",
                step.challenger,
                step.best,
                "–" if step.ratio is None else f"{step.ratio:.3f}",
                "–" if step.ci95 is None else f"{step.ci95[0]:.3f} – {step.ci95[1]:.3f}",
                str(step.blocks),
                step.outcome,
            ]
            for step in found.path
        ],
    )
