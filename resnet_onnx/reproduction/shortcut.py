"""What the shortcut costs in throughput: residual networks over plain ones of the same depth, on each runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from resnet_onnx import workflow
from resnet_onnx.results.reproduce import ShortcutCost

if TYPE_CHECKING:
    from resnet_onnx.bench.row import Row

BATCHES = (1, 64)
_SECONDS_A_ROW = 4.0


def measure_cost(
    models: Mapping[tuple[int, str], workflow.Model],
    names: Sequence[str],
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> list[ShortcutCost]:
    """Measures all networks on all runtimes in turns, so that what disturbs the machine meets each alike.

    Args:
        models: By depth and kind (``plain`` or ``residual``), both kinds of every depth.
        names: Runtimes.
        progress: Called with what is being done.
    """
    from resnet_onnx.bench.measure import measure
    from resnet_onnx.bench.plan import BenchPlan
    from runtimes.spec import Target

    keys = [(depth, kind, name) for depth, kind in models for name in names]
    targets = [
        Target(runtime=name, source=workflow.source(models[depth, kind], name, batches=BATCHES))
        for depth, kind, name in keys
    ]
    feeds = workflow.sample_feeds(next(iter(models.values())), 16)
    rows = iter(measure(targets, feeds, BenchPlan(batches=BATCHES, duration_s=_SECONDS_A_ROW), progress=progress))
    found = {(*key, batch): next(rows) for key in keys for batch in BATCHES}
    return [
        _cost(depth, name, batch, found[depth, "plain", name, batch], found[depth, "residual", name, batch])
        for depth in dict.fromkeys(depth for depth, _ in models)
        for name in names
        for batch in BATCHES
    ]


def _cost(depth: int, runtime: str, batch: int, plain: Row, residual: Row) -> ShortcutCost:
    from resnet_onnx.bench.compare import ratio_interval
    from resnet_onnx.bench.record import images_per_second, unstable_reason

    speeds = []
    doubts = []
    for kind, row in (("plain", plain), ("residual", residual)):
        doubt = row.error.message if row.error is not None else unstable_reason(row)
        if doubt:
            doubts.append(f"{kind}: {doubt}")
        speeds.append(None if row.error is not None else images_per_second(row))
    base, new = speeds
    return ShortcutCost(
        depth=depth,
        runtime=runtime,
        batch=batch,
        plain_images_per_second=base[0] if base else None,
        residual_images_per_second=new[0] if new else None,
        ratio=new[0] / base[0] if base and new else None,
        ci95=ratio_interval(base, new) if base and new else None,
        doubts=tuple(doubts),
    )
