"""What saved results of ``convert`` say: what a change of precision costs, what it saves, and in which layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from resnet_onnx.bench.statistics import rounded
from resnet_onnx.report import charts
from resnet_onnx.report.charts import Bar
from resnet_onnx.report.page import Chart, Section
from resnet_onnx.report.words import joined, listed
from resnet_onnx.results.commands import Finding
from resnet_onnx.results.convert import Convert, RuntimeSpeed, Top1Gate
from resnet_onnx.results.document import Saved, known

_WORST = 12
"""Layers in a picture: those that lose most."""


def findings(document: Saved[Convert]) -> list[Finding]:
    """Returns one sentence: what the new precision costs and what it saves."""
    body = document.result
    parts = [f"{100 * body.agreement:.1f} % of {body.agreement_images:,} decisions as in fp32"]
    gate = body.gate
    if isinstance(gate, Top1Gate):
        parts.append(f"top-1 {_change(gate.drop_points)} (95 % interval of the drop {_range(gate.drop_ci95)})")
    elif body.sqnr_db is not None:
        parts.append(f"signal over noise of the outputs {body.sqnr_db:.1f} dB")
    parts.append(f"the file has {100 * body.size_ratio:.0f} % of the size")
    faster = [f"{row.speedup:.1f}× as fast on {name}" for name, row in _speeds(body).items()]
    return [Finding(state="good", text=f"{body.model} in {body.precision}: {', '.join([*parts, *faster])}.")]


def section(document: Saved[Convert], palette: dict[str, str]) -> Section:
    """Returns the table, and pictures of the layers and tensors that lose most."""
    body = document.result
    gate = body.gate
    drop, interval, top1 = "–", "–", "–"
    if isinstance(gate, Top1Gate):
        drop, interval = _signed(gate.drop_points), _range(gate.drop_ci95)
        top1 = f"{100 * gate.top1:.2f}"
    kept = body.kept_fp32 or ()
    return Section(
        heading=f"What does {body.precision} cost? {body.model}",
        text=joined(
            f"Judged on {body.agreement_images:,} pictures that calibration did not see.",
            f"Allowed: {gate.max_drop_points:g} points of top-1."
            if isinstance(gate, Top1Gate)
            else f"Needed: {gate.least_sqnr_db:g} dB at the outputs; too few labels to judge accuracy.",
        ),
        charts=[
            chart
            for what, losses in {
                "Outputs with one layer alone in int8": [(r.layer, r.sqnr_db) for r in known(body.sensitivity) or ()],
                "Weights of a layer by themselves": [(r.layer, r.sqnr_db) for r in known(body.weights) or ()],
                "Values of a tensor by themselves": [(r.tensor, r.sqnr_db) for r in known(body.activations) or ()],
            }.items()
            for chart in _losses(losses, what, palette)
        ],
        columns=["precision", "ranges", "same decision", "top-1 %", "drop, points", "95 %", "SQNR dB", "size"],
        rows=[
            [
                body.precision,
                known(body.method) or "–",
                f"{100 * body.agreement:.2f} %",
                top1,
                drop,
                interval,
                "–" if body.sqnr_db is None else rounded(body.sqnr_db, 3),
                f"{100 * body.size_ratio:.0f} %",
            ]
        ],
        notes=[
            *([f"Kept in fp32: {listed([row.node for row in kept])}."] if kept else []),
            *[
                f"{name}: {rounded(row.images_per_second, 3)} images per second, {row.speedup:.2f}× fp32."
                for name, row in _speeds(body).items()
            ],
        ],
    )


def _losses(losses: Sequence[tuple[str, float | None]], what: str, palette: dict[str, str]) -> list[Chart]:
    found = [(name, sqnr_db) for name, sqnr_db in losses if sqnr_db is not None]
    worst = sorted(found, key=lambda loss: loss[1])[:_WORST]
    if not worst:
        return []
    bars = [Bar(label=name, value=max(sqnr_db, 0.0), text=f"{sqnr_db:.1f}") for name, sqnr_db in worst]
    return [
        Chart(
            svg=charts.bars(bars, unit="signal over quantisation noise, dB", palette=palette),
            caption=f"{what}, the {len(worst)} that lose most of {len(found)}: the lower, the more is lost.",
        )
    ]


def _speeds(body: Convert) -> Mapping[str, RuntimeSpeed]:
    return {} if body.speed is None else body.speed.runtimes


def _change(drop: float) -> str:
    points = f"{abs(drop):.2f}"
    return "unchanged" if points == "0.00" else f"{'down' if drop > 0 else 'up'} {points} points"


def _range(interval: Sequence[float]) -> str:
    return f"{_signed(interval[0])} to {_signed(interval[1])}"


def _signed(points: float) -> str:
    return f"{points:.2f}".replace("-", "−")
