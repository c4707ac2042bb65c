"""A parity report and what was localised, as the document has them."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET

from resnet_onnx.parity.compare import ParityReport
from resnet_onnx.parity.judge import Outcome
from resnet_onnx.results.parity import BudgetRecord, Localisation, OutputDistance, Parity, ParityPair, ParityRow
from resnet_onnx.results.writing import typed


def document(
    report: ParityReport,
    *,
    model: str,
    precision: str,
    located: Localisation | None = None,
    notes: Sequence[str] = (),
) -> Parity:
    """Returns the document of a report, and of what ``--localize`` found where it looked; `notes` are on the model."""
    return Parity(
        model=model,
        precision=precision,
        passed=report.passed,
        gold=report.gold,
        original=report.original or None,
        pictures=report.pictures,
        results=[_row(outcome) for outcome in report.outcomes],
        pairs=[ParityPair(runtime=a, against=b, relative_rmse=error) for (a, b), error in report.pairs.items()],
        budgets={name: typed(BudgetRecord, budget) for name, budget in report.budgets.items()},
        localisation=UNSET if located is None else located,
        notes=[*notes, *report.notes],
    )


def _row(outcome: Outcome) -> ParityRow:
    return ParityRow(
        runtime=outcome.runtime,
        version=outcome.version,
        relative_rmse=outcome.relative_rmse,
        budget=outcome.budget,
        top1_agreement=outcome.top1_agreement,
        passed=outcome.passed,
        reason=outcome.reason,
        outputs={name: typed(OutputDistance, distance) for name, distance in outcome.distances.items()},
        original=outcome.original,
        options=outcome.recorded,
        seconds=outcome.seconds,
    )
