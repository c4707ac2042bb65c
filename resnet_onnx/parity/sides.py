"""Whether two sides of a comparison of speed computed the same: by how much they differ, and what rounding explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.parity.budget import DECORRELATED, LEAST_SQNR_DB, SAME_FUNCTION, UNIT_ROUNDOFF, derived_bound
from resnet_onnx.parity.metrics import distance
from resnet_onnx.parity.summation import sums_of
from resnet_onnx.results.compare import ComparedOutputs

Outputs = Mapping[str, NDArray[Any]]


def rounding_limit(graphs: Sequence[Path | None], precisions: Sequence[str]) -> float:
    """Returns how far two sides may be apart by rounding alone, as a relative RMSE.

    Each is at most the derived bound of its graph and precision from the truth, and the two are independent. Where
    there is no graph ``SAME_FUNCTION`` serves; a quantised side has no such bound, and ``LEAST_SQNR_DB`` ends what a
    precision explains.
    """
    most = 10 ** (-LEAST_SQNR_DB / 20)
    bounds = [
        most
        if precision not in UNIT_ROUNDOFF
        else SAME_FUNCTION * UNIT_ROUNDOFF[precision] / UNIT_ROUNDOFF["fp32"]
        if graph is None
        else derived_bound(sums_of(graph), precision)
        for graph, precision in zip(graphs, precisions, strict=True)
    ]
    return min(most, DECORRELATED * max(bounds))


def compare_outputs(base: Outputs, new: Outputs, limit: float, *, scores: str | None = None) -> ComparedOutputs:
    """Compares what two sides computed from the same inputs; a model's only output may have another name.

    `scores` is the base's output that decides; None is its only one.
    """
    if len(base) == len(new) == 1:
        new = dict(zip(base, new.values(), strict=True))
        scores = next(iter(base))
    problem = _misfit(base, new)
    if problem:
        return ComparedOutputs(different=True, relative_rmse=None, limit=limit, top1_agreement=None, text=problem)
    if all(np.array_equal(base[name], new[name]) for name in base):
        return ComparedOutputs(
            different=False,
            relative_rmse=0.0,
            limit=limit,
            top1_agreement=_agreement(base, new, scores),
            text="equal bit by bit",
        )
    apart = max(distance(base[name], new[name]).relative_rmse for name in base)
    agreement = _agreement(base, new, scores)
    classes = "" if agreement is None else f", best class equal on {100 * agreement:.4g} % of the pictures"
    different = not apart <= limit
    said = f"relative RMSE {apart:.1e}{classes}; rounding explains up to {limit:.1e}"
    return ComparedOutputs(
        different=different,
        relative_rmse=apart if np.isfinite(apart) else None,
        limit=limit,
        top1_agreement=agreement,
        text=f"{'different' if different else 'equal up to rounding'}: {said}",
    )


def _misfit(base: Outputs, new: Outputs) -> str:
    """Says why outputs can't be compared, or ""."""
    if base.keys() != new.keys():
        return f"different outputs: BASE has {', '.join(base)}; NEW has {', '.join(new)}"
    for name, array in base.items():
        if array.shape != new[name].shape:
            return f"different shapes of '{name}': {list(array.shape)} and {list(new[name].shape)}"
    return ""


def _agreement(base: Outputs, new: Outputs, scores: str | None) -> float | None:
    """Returns the share of pictures with the same best class; None where no output holds scores."""
    found = None if scores is None else base.get(scores)
    if scores is None or found is None or found.ndim != 2 or found.shape[1] < 2 or not len(found):
        return None
    return float(np.mean(found.argmax(axis=1) == new[scores].argmax(axis=1)))
