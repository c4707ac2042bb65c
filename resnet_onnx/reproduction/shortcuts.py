"""The shortcut options: does projecting more of the shortcuts make a residual network better?

He, Zhang, Ren and Sun (arXiv:1512.03385, section 4.1 and table 3) compare zero-padded shortcuts (A), projections where
shapes change (B) and everywhere (C) in ResNet-34: 25.03, 24.52 and 24.19 % top-1 error on ImageNet, small differences
that they take to show that projections are not essential. Here the networks are CIFAR's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from resnet_onnx import workflow
from resnet_onnx.models.catalog import with_shortcut
from resnet_onnx.models.configs import SHORTCUT_OPTIONS
from resnet_onnx.reproduction.degradation import (
    DegradationPlan,
    Log,
    Variant,
    train_variants,
    write_record,
)
from resnet_onnx.reproduction.predictions import Predictions
from resnet_onnx.reproduction.significance import paired_difference
from resnet_onnx.results.reproduce import ShortcutComparison, Shortcuts
from resnet_onnx.training.plan import Progress
from runtimes.errors import UsageError

NUMBERS, RESULT = "shortcuts.csv", "shortcuts.json"
DEPTH = 20


def variants(depths: Sequence[int]) -> list[Variant]:
    """Returns a CIFAR network of one depth, 6n+2, with each of the paper's shortcut options.

    Raises:
        UsageError: Several depths, or one that does not exist.
    """
    if len(depths) > 1:
        raise UsageError(
            f"shortcuts compares options at one depth, not at {', '.join(map(str, depths))}",
            fix=f"--depths {depths[0]}",
        )
    depth = depths[0] if depths else DEPTH
    entry = workflow.training_entry(f"cifar-resnet{depth}")
    return [
        Variant(
            kind=option, depth=depth, entry=replace(with_shortcut(entry, option), name=f"{entry.name}-option-{option}")
        )
        for option in SHORTCUT_OPTIONS
    ]


def run(
    plan: DegradationPlan,
    *,
    log: Log = lambda _: None,
    progress: Callable[[str, Progress], None] = lambda name, step: None,
    status: Log = lambda _: None,
) -> Shortcuts:
    """Trains what is not trained yet, and compares the options on the same pictures; goes on where it was stopped.

    Arguments and errors are those of ``degradation.run``.
    """
    trained = train_variants(plan, plan.out / NUMBERS, log=log, progress=progress, status=status)
    predictions = {variant.kind: found for variant, found in zip(plan.variants, trained.predictions, strict=True)}
    comparisons = _compare(predictions, plan.variants[0].depth)
    result = Shortcuts(
        data=plan.spec,
        rows=trained.rows(plan),
        comparisons=comparisons,
        verdict=conclude(comparisons),
        csv=str(plan.out / NUMBERS),
        recipe=trained.recipe.to_json(),
        seed=plan.seed,
        training_seconds=trained.seconds,
    )
    write_record(plan.out / RESULT, result)
    return result


def conclude(comparisons: Sequence[ShortcutComparison]) -> str:
    """Returns in words what the test pictures say of each pair of options, beside the paper's order."""
    on_test = [found for found in comparisons if found.pictures_of == "test"]
    decided = [sentence(found) for found in on_test if found.outcome != "undecided"]
    paper = "the paper has A 25.03, B 24.52, C 24.19 % for ResNet-34 on ImageNet (arXiv:1512.03385, table 3)"
    if not decided:
        return f"On test pictures no option is better than another beyond chance; {paper}."
    return f"{'; '.join(decided)}; {paper}."


def sentence(found: ShortcutComparison) -> str:
    """Returns a comparison in words, with the figures."""
    low, high = (100 * bound for bound in found.ci95)
    outcome = "undecided" if found.outcome == "undecided" else f"{found.other} is {found.outcome}"
    return (
        f"on {found.pictures_of} pictures {found.base} has {100 * found.base_error:.2f} % error and {found.other} "
        f"{100 * found.other_error:.2f} %: {outcome} ({100 * found.difference:+.2f} points, 95 % interval {low:+.2f} "
        f"to {high:+.2f})"
    )


def _compare(predictions: Mapping[str, tuple[Predictions, Predictions]], depth: int) -> list[ShortcutComparison]:
    comparisons = []
    for (index, which), (base, other) in itertools.product(
        enumerate(("training", "test")), itertools.combinations(predictions, 2)
    ):
        found = paired_difference(
            predictions[base][index].correct,
            predictions[other][index].correct,
            kind="residual",
            pictures_of=which,
            depths=(depth, depth),
        )
        comparisons.append(
            ShortcutComparison(
                pictures_of=which,
                base=base,
                other=other,
                base_error=found.shallow_error,
                other_error=found.deep_error,
                difference=found.difference,
                ci95=found.ci95,
                p_value=found.p_value,
                outcome=found.outcome,
                pictures=found.pictures,
            )
        )
    return comparisons
