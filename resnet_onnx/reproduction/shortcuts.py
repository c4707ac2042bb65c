"""The shortcut options: does projecting more of the shortcuts make a residual network better?

He, Zhang, Ren and Sun (arXiv:1512.03385, section 4.1 and table 3) compare zero-padded shortcuts (A), projections where
shapes change (B) and everywhere (C) in ResNet-34: 25.03, 24.52 and 24.19 % top-1 error on ImageNet, small differences
that they take to show that projections are not essential. Here the networks are CIFAR's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from resnet_onnx import workflow
from resnet_onnx.models.catalog import with_shortcut
from resnet_onnx.models.configs import SHORTCUT_OPTIONS
from resnet_onnx.reproduction.curves import Curve, write_csv
from resnet_onnx.reproduction.degradation import (
    DegradationPlan,
    Log,
    Variant,
    train_variant,
    training_seconds,
    variant_result,
)
from resnet_onnx.reproduction.forecast import Forecast
from resnet_onnx.reproduction.predictions import Predictions, Predictor
from resnet_onnx.reproduction.significance import paired_difference
from resnet_onnx.results.reproduce import ShortcutComparison, Shortcuts
from resnet_onnx.training.checkpoint import LAST
from resnet_onnx.training.plan import Progress
from runtimes import files
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
    from resnet_onnx.training.device import limited_threads

    forecast = Forecast(entries=[variant.entry for variant in plan.variants], epochs=plan.epochs)
    recipe, curves = plan.recipe, []
    predictions: dict[str, tuple[Predictions, Predictions]] = {}
    sets, preprocessing = {"train": plan.data.train, "test": plan.test}, plan.variants[0].entry.preprocessing
    predictor = Predictor(sets, preprocessing, device=plan.device, workers=plan.workers)
    with contextlib.closing(predictor), limited_threads(plan.threads):
        for number, variant in enumerate(plan.variants, 1):
            name = variant.entry.name
            log(f"{number} of {len(plan.variants)}: {name}")
            trained = train_variant(plan, variant, predictor, forecast, log, progress)
            recipe = trained.recipe
            curves.append(Curve(model=name, kind=variant.kind, depth=variant.depth, epochs=trained.epochs))
            write_csv(curves, plan.out / NUMBERS)
            status(f"evaluating {name} on its training pictures, without augmentation")
            predictions[variant.kind] = predictor.of_checkpoint(plan.out / name / LAST)
    comparisons = _compare(predictions, plan.variants[0].depth)
    result = Shortcuts(
        data=plan.spec,
        rows=[
            variant_result(variant, curve, predictions[variant.kind], plan.out)
            for variant, curve in zip(plan.variants, curves, strict=True)
        ],
        comparisons=comparisons,
        verdict=conclude(comparisons),
        csv=str(plan.out / NUMBERS),
        recipe=recipe.to_json(),
        seed=plan.seed,
        training_seconds=sum(map(training_seconds, curves)),
    )
    values = dataclasses.asdict(result)
    files.write_json(plan.out / RESULT, {name: values[name] for name in values if name not in ("experiment", "data")})
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
