"""The verdict on one runtime: its outputs beside gold's, within their budgets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.parity.budget import MARGIN_MULTIPLE, Budget
from resnet_onnx.parity.metrics import Decisions, DecisionSum, Distance, DistanceSum
from resnet_onnx.parity.records import Outputs, Records
from resnet_onnx.results.parity import OriginalDistance


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one runtime came to.

    Attributes:
        relative_rmse: The worst output's; infinite where an output is missing, misshapen or not finite.
        top1_agreement: Fraction of pictures decided as gold does, or None where the output does not hold scores.
        decisions: Of the output that holds scores, or None.
        original: Of a quantised model, how far it is from the network it was made from; else None.
    """

    runtime: str
    passed: bool
    relative_rmse: float
    budget: float
    top1_agreement: float | None
    reason: str
    distances: Mapping[str, Distance]
    decisions: Decisions | None
    version: str = ""
    recorded: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    original: OriginalDistance | None = None


def _are_scores(array: NDArray[Any]) -> bool:
    return array.ndim == 2 and array.shape[0] > 0 and array.shape[1] > 1 and array.dtype.kind == "f"


class _Tally:
    """What is known of one output after some batches."""

    def __init__(self, gold: NDArray[Any]) -> None:
        self.distance = DistanceSum()
        self.decisions = DecisionSum() if _are_scores(gold) else None
        self.whole_numbers = gold.dtype.kind in "iub"
        self.gold_finite = True
        self.shapes: str | None = None

    def add(self, gold: NDArray[Any], found: NDArray[Any]) -> None:
        if found.shape != gold.shape:
            self.shapes = self.shapes or f"has shape {list(found.shape)}, gold {list(gold.shape)}"
        elif self.shapes is None:
            self.distance.add(gold, found)
            self.gold_finite &= bool(np.isfinite(gold.astype(np.float64)).all())
            if not _are_scores(gold):  # as many as an object detector finds: not in every batch
                self.decisions = None
            if self.decisions is not None:
                self.decisions.add(gold, found)


def judge(
    runtime: str,
    found: Iterable[Outputs],
    gold: Iterable[Outputs],
    budgets: Mapping[str, Budget],
    *,
    names: Sequence[str],
    scores: str | None = None,
) -> Outcome:
    """Judges the outputs of one runtime, batch by batch, against gold's: as sets of names, shapes, and numbers.

    A missing, extra or misshapen output fails, and so does a NaN or Inf on either side. Top-1 is that of the output
    named `scores`; without a name, of the only one that can hold scores.
    """
    missing: dict[str, None] = {}
    extra: dict[str, None] = {}
    tallies: dict[str, _Tally] = {}
    for theirs, ours in zip(gold, found, strict=True):
        missing.update((name, None) for name in theirs if name not in ours)
        extra.update((name, None) for name in ours if name not in theirs)
        for name, truth in theirs.items():
            if name in ours:
                tallies.setdefault(name, _Tally(truth)).add(truth, ours[name])
    scores = _scores(tallies, scores)
    problems: list[str] = []
    if missing:
        problems.append(f"output {', '.join(missing)} is missing")
    if extra:
        problems.append(f"output {', '.join(extra)} is not gold's")
    distances: dict[str, Distance] = {}
    chosen: Decisions | None = None
    for name, tally in tallies.items():
        if name in missing:
            continue
        if tally.shapes is not None:
            problems.append(f"'{name}' {tally.shapes}")
            continue
        measured = distances[name] = tally.distance.total()
        if not measured.finite:
            who = runtime if tally.gold_finite else "gold"
            problems.append(f"'{name}' has NaN or Inf ({who}), first in {_named(names, measured.worst_index)}")
            continue
        problems += _number_problems(name, tally, measured, budgets[name], names)
        if name == scores and tally.decisions is not None:
            chosen = tally.decisions.total(measured.max_abs_per_picture, multiple=MARGIN_MULTIPLE)
            if chosen.unexcused:
                who = ", ".join(_named(names, index) for index in chosen.unexcused[:3])
                problems.append(f"top-1 differs from gold without the excuse of a near tie in {who}")
    worst = max(distances, key=lambda n: _share(distances[n].relative_rmse, budgets[n].relative_rmse), default=None)
    error = distances[worst].relative_rmse if worst and not missing else float("inf")
    budget = budgets[worst or next(iter(budgets))]
    passed = not problems
    return Outcome(
        runtime=runtime,
        passed=passed,
        relative_rmse=error,
        budget=budget.relative_rmse,
        top1_agreement=chosen.agreement if chosen else None,
        reason=_praise(runtime, error, budget, chosen) if passed else "; ".join(problems),
        distances=distances,
        decisions=chosen,
    )


def _scores(tallies: Mapping[str, _Tally], named: str | None) -> str | None:
    able = [name for name, tally in tallies.items() if tally.decisions is not None]
    return named if named in able else able[0] if len(able) == 1 and named is None else None


def _number_problems(name: str, tally: _Tally, measured: Distance, budget: Budget, names: Sequence[str]) -> list[str]:
    if tally.whole_numbers and not budget.by_hand:
        return [] if measured.max_abs == 0 else [f"'{name}' holds whole numbers and differs by {measured.max_abs:g}"]
    problems = []
    if not measured.relative_rmse <= budget.relative_rmse:
        problems.append(
            f"'{name}' is {measured.relative_rmse:.1e} from gold, budget {budget.relative_rmse:.1e} ({budget.reason})"
        )
    # One bad picture must not hide among good ones: n equal errors would each be the overall error.
    limit = budget.relative_rmse * np.sqrt(len(measured.per_picture))
    if not problems and not measured.worst_picture <= limit:
        problems.append(f"'{name}' is {measured.worst_picture:.1e} from gold in {_named(names, measured.worst_index)}")
    return problems


def _share(error: float, budget: float) -> float:
    """Returns how much of its budget an error takes; a budget may be 0, by hand or where nothing is rounded."""
    return error / budget if budget else 0.0 if error == 0 else float("inf")


def _named(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else f"input {index}"


def _praise(runtime: str, error: float, budget: Budget, chosen: Decisions | None) -> str:
    beside = f"the noise of {budget.baseline}"
    beside = f"{error / budget.noise:.1f} × {beside}" if budget.noise > 0 else f"{beside} is 0"
    text = f"{runtime} is {error:.1e} from gold; budget {budget.relative_rmse:.1e}; {beside}"
    if chosen and chosen.excused:
        text += f"; {len(chosen.excused)} near tie{'s' if len(chosen.excused) > 1 else ''} decided otherwise"
    return text


def distance_from_original(original: Records, found: Records, scores: str | None = None) -> OriginalDistance:
    """Returns how far an output is from that of the original: that with the scores, or the first."""
    distances, choices = DistanceSum(), DecisionSum()
    decides = False
    for exact, ours in zip(original, found, strict=True):
        name = scores if scores in exact and scores in ours else None
        a, b = (outputs[name or next(iter(outputs))] for outputs in (exact, ours))
        if a.shape != b.shape:
            return OriginalDistance(relative_rmse=float("inf"), top1_agreement=None)
        distances.add(a, b)
        decides = _are_scores(a)
        if decides:
            choices.add(a, b)
    whole = distances.total()
    return OriginalDistance(
        relative_rmse=whole.relative_rmse,
        top1_agreement=choices.total(whole.max_abs_per_picture, multiple=0.0).agreement if decides else None,
    )
