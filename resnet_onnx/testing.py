"""One line for a user's own test suite: do these two models compute the same function?"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resnet_onnx.parity.compare import ParityReport


def assert_parity(
    model: str | PathLike[str],
    gold: str | PathLike[str] | None = None,
    *,
    runtimes: str = "ort-cpu",
    data: str | None = None,
    images: int = 16,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
) -> ParityReport:
    """Asserts that runtimes compute `model` as `gold` does in float64, within the derived budget.

    Args:
        model: As the command line's MODEL: an ONNX file, a checkpoint, or a name of the catalog.
        gold: Another model whose float64 form is the truth; None is the model itself.
        runtimes: Comma list of runtimes, or ``all``.
        data: Pictures: a folder, a .zip, digits or cifar10; None takes crops of sample photos.
        images: How many of them.
        seed: Of the crops and of random weights.
        device: ``cpu``, ``cuda:0`` …; None is each runtime's own default.
        threads: CPU threads; None is all.

    Returns:
        The report, for further assertions.

    Raises:
        AssertionError: A runtime fails; the message has each failing runtime's reason.
        ToolkitError: The model can't be opened, or a runtime is not available.
    """
    from resnet_onnx import workflow
    from runtimes import registry
    from runtimes.spec import RuntimeOptions

    names = registry.parse_names(runtimes, device=device)
    registry.require_all(names, device=device)
    resolved = workflow.resolve(workflow.Request(model=str(model), seed=seed))
    names, _ = workflow.runnable(resolved, names, chosen_by_all=registry.means_all(runtimes), device=device)
    plan = workflow.ParityPlan(
        runtimes=names,
        gold=None if gold is None else str(gold),
        data=data,
        images=images,
        seed=seed,
        device=device,
        options=RuntimeOptions(threads=threads),
    )
    report = workflow.check_parity(resolved, plan)
    failures = [f"{outcome.runtime}: {outcome.reason}" for outcome in report.outcomes if not outcome.passed]
    if failures:
        raise AssertionError(f"{resolved.name} does not compute what gold ({report.gold}) does\n" + "\n".join(failures))
    return report
