"""What saved results of ``convert`` say: what a change of precision costs, and in which layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from resnet_onnx.bench.statistics import rounded
from resnet_onnx.report import charts
from resnet_onnx.report.charts import Bar
from resnet_onnx.report.page import Chart, Finding, Section
from resnet_onnx.report.words import joined

Document = Mapping[str, Any]

_WORST = 15
"""Layers in the picture: those that lose most."""


def findings(document: Document) -> list[Finding]:
    """Returns one sentence: what the new precision costs and what it saves."""
    body = document["result"]
    parts = []
    if body["drop"] is not None:
        parts.append(f"top-1 {_change(body['drop'])}{_between(body['drop_ci95'])}")
    if body["agreement"] is not None:
        parts.append(f"{100 * body['agreement']:.1f} % of the decisions as before")
    if body.get("sqnr_db") is not None:
        parts.append(f"signal over quantisation noise {body['sqnr_db']:.1f} dB")
    if body["size_ratio"]:
        parts.append(f"a file of {100 * body['size_ratio']:.0f} % of the size")
    told = ", ".join(parts) or "nothing was measured"
    return [Finding(state="good" if parts else "doubt", text=f"{body['model']} to {body['precision']}: {told}.")]


def section(document: Document, palette: dict[str, str]) -> Section:
    """Returns the table, and the picture of the layers that lose most."""
    body = document["result"]
    layers = [layer for layer in body.get("layers") or () if layer["sqnr_db"] is not None]
    worst = sorted(layers, key=lambda layer: layer["sqnr_db"])[:_WORST]
    pictures = []
    if worst:
        bars = [
            Bar(
                label=layer["name"],
                value=max(layer["sqnr_db"], 0.0),
                text=f"{layer['sqnr_db']:.1f}" + (" kept" if layer.get("kept") else ""),
                doubtful=bool(layer.get("kept")),
            )
            for layer in worst
        ]
        pictures.append(
            Chart(
                svg=charts.bars(bars, unit="signal over quantisation noise, dB", palette=palette),
                caption=f"The {len(worst)} layers that lose most, of {len(layers)}: the lower, the more is lost. "
                "Hatched: kept in floating point.",
            )
        )
    kept = sum(bool(layer.get("kept")) for layer in body.get("layers") or ())
    return Section(
        heading=f"What does {body['precision']} cost? {body['model']}",
        text=joined(
            f"Ranges: {body['method']}." if body["method"] else "",
            f"{body['images']:,} held-out pictures." if body["images"] else "",
            f"{kept} layer{'' if kept == 1 else 's'} kept in floating point." if kept else "",
        ),
        charts=pictures,
        columns=["precision", "method", "drop, points", "95 %", "same decision", "SQNR dB", "size"],
        rows=[
            [
                body["precision"],
                body["method"] or "–",
                "–" if body["drop"] is None else f"{100 * body['drop']:.2f}".replace("-", "−"),
                _range(body["drop_ci95"]),
                "–" if body["agreement"] is None else f"{100 * body['agreement']:.2f} %",
                "–" if body.get("sqnr_db") is None else rounded(body["sqnr_db"], 3),
                "–" if not body["size_ratio"] else f"{100 * body['size_ratio']:.0f} %",
            ]
        ],
    )


def _change(drop: float) -> str:
    points = f"{abs(100 * drop):.2f}"
    return "unchanged" if points == "0.00" else f"{'down' if drop > 0 else 'up'} {points} points"


def _between(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" (95 %: a drop of {_range(interval)})"


def _range(interval: Sequence[float] | None) -> str:
    return "–" if interval is None else f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f}".replace("-", "−")
