"""What ``bench --profile`` prints: the layers that lose most time, of each row that was profiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from resnet_onnx.cli.terminal import Terminal

if TYPE_CHECKING:
    from resnet_onnx.results.bench import BenchRow


def print_profile(terminal: Terminal, rows: Sequence[BenchRow]) -> None:
    """Prints, for each profiled row, the ten layers that lose most time against their own ideal."""
    from resnet_onnx.bench.layers import worst
    from resnet_onnx.bench.statistics import rounded

    profiled = [(row, row.layers) for row in rows if row.layers]
    for row, layers in profiled:
        total = sum(layer.ms for layer in layers)
        lost = sum(layer.lost_ms or 0.0 for layer in layers)
        terminal.line()
        terminal.line(
            f"Where the missing share goes: {row.runtime} batch {row.batch}, {len(layers)} layers of "
            f"{rounded(total, 3)} ms by its own profiler (a run without: {rounded(row.latency_ms.p50 or 0.0, 3)} ms)"
        )
        cells = [
            [
                layer.name,
                layer.operator,
                rounded(layer.ms, 3),
                "–" if layer.ideal_ms is None else rounded(layer.ideal_ms, 2),
                layer.bound or "–",
                "–" if layer.lost_ms is None or lost <= 0 else f"{100 * layer.lost_ms / lost:.0f} %",
            ]
            for layer in worst(layers)
        ]
        terminal.table(["layer", "operator", "ms", "ideal ms", "bound", "of the loss"], cells)
        unknown = sum(layer.ms for layer in layers if layer.lost_ms is None)
        if unknown:
            terminal.line(
                f"Layers of {rounded(unknown, 3)} ms have no known ideal (–): no peak was measured for their precision "
                "and device, or their node can't be found in the graph."
            )
    for row in rows:
        if row.unprofiled:
            terminal.note(f"not profiled: {row.runtime} batch {row.batch}: {row.unprofiled}")
    if not profiled and not any(row.unprofiled for row in rows):
        terminal.note("nothing was profiled: only rows of one run at a time are (--scenario latency)")
