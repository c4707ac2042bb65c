"""The degradation experiment: do more layers make a plain network worse, and a residual one better?

He, Zhang, Ren and Sun (arXiv:1512.03385, section 4.2 and figure 6) train plain and residual networks of several depths
in the same way and look at *training* error, which more layers could not raise if they were only easy to train.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_onnx import workflow
from resnet_onnx.bench.clock import Stopwatch
from resnet_onnx.data.datasets import PictureSet
from resnet_onnx.models.catalog import CatalogEntry
from resnet_onnx.models.counting import count
from resnet_onnx.report.words import counted
from resnet_onnx.reproduction.curves import Curve, draw, write_csv
from resnet_onnx.reproduction.forecast import Forecast
from resnet_onnx.reproduction.predictions import Predictions, Predictor
from resnet_onnx.reproduction.shortcut import measure_cost
from resnet_onnx.reproduction.significance import error_interval, paired_difference
from resnet_onnx.results.reproduce import Degradation, DegradationRow, DepthComparison, ShortcutCost, Shortcuts
from resnet_onnx.training.checkpoint import LAST
from resnet_onnx.training.plan import Progress, TrainingPlan, TrainingResult
from resnet_onnx.training.recipes import Recipe
from resnet_onnx.training.splits import TrainingData, open_training_data
from runtimes import files
from runtimes.errors import BadWeights, UsageError

if TYPE_CHECKING:
    from torch import nn

KINDS = ("plain", "residual")
FIGURE, NUMBERS, RESULT = "degradation.png", "degradation.csv", "degradation.json"
_HELD_OUT = 0.1
"""Share that stands for a test set where the pictures have none."""
_IMAGENET_DEPTHS = (18, 34)

Log = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One of the networks: ``plain``, ``residual`` or its shortcut option, and its weighted layers."""

    kind: str
    depth: int
    entry: CatalogEntry


@dataclass(frozen=True, kw_only=True, eq=False)
class DegradationPlan:
    """Everything that decides the experiment.

    Attributes:
        variants: A plain and a residual network of each depth, the shallowest first; or one with each shortcut option.
        spec: What names the pictures on the command line.
        data: What every network learns from; nothing is held out, since nothing is chosen.
        test: What every network is evaluated on after each epoch, and never learns from.
        recipe: Of all networks; it holds nothing out.
        runtimes: On which throughput is measured; none, to leave that out.
        device: Of the training, as in ``TrainingPlan``; so are `threads` and `workers`.

    Raises:
        UsageError: The recipe holds pictures out.
    """

    variants: Sequence[Variant]
    spec: str
    data: TrainingData
    test: PictureSet
    recipe: Recipe
    seed: int = 0
    out: Path
    runtimes: Sequence[str] = ()
    device: str | None = None
    threads: int | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.recipe.validation:
            raise UsageError(
                f"recipe: validation is {self.recipe.validation:g}, but this experiment holds nothing out",
                fix="validation=0",
            )

    @property
    def depths(self) -> list[int]:
        """The depths, rising."""
        return sorted({variant.depth for variant in self.variants})

    @property
    def epochs(self) -> int:
        """Epochs of every training; the recipe's number of steps may end it earlier than its epochs."""
        pictures = len(self.data.train)
        return self.recipe.total_epochs(pictures // min(self.recipe.batch_size, pictures))

    @property
    def title(self) -> str:
        """What is trained and how, in one line."""
        epochs = counted(self.recipe.epochs, "epoch")
        return f"{self.data.train.name}: recipe {self.recipe.name}, {epochs}, seed {self.seed}"


def variants(depths: Sequence[int]) -> list[Variant]:
    """Returns a plain and a residual network of each depth: CIFAR nets (6n+2 layers), or ImageNet's of 18 and 34.

    Raises:
        UsageError: Fewer than two depths, one that does not exist, or both families.
    """
    chosen = sorted(set(depths))
    if len(chosen) < 2:
        raise UsageError(
            f"one depth ({', '.join(map(str, chosen)) or 'none'}) has nothing to be compared with",
            fix="--depths 20,56 compares 20 layers with 56",
        )
    families = {depth in _IMAGENET_DEPTHS for depth in chosen}
    if len(families) > 1:
        raise UsageError(
            f"depths {', '.join(map(str, chosen))} are of two families: 18 and 34 are ImageNet's, the others CIFAR's",
            fix="--depths 20,56 or --depths 18,34",
        )
    prefix = "" if chosen[0] in _IMAGENET_DEPTHS else "cifar-"
    return [
        Variant(
            kind=kind,
            depth=depth,
            entry=workflow.training_entry(f"{prefix}{'plain' if kind == 'plain' else 'resnet'}{depth}"),
        )
        for depth in chosen
        for kind in KINDS
    ]


def experiment_data(spec: str, seed: int) -> tuple[TrainingData, PictureSet]:
    """Returns what every network learns from, and what it is tested on.

    Where the pictures have no test (or validation) split, a tenth of every class is held out as one, by the seed.

    Raises:
        BadData: The pictures are not there, or not fit for training.
    """
    data = open_training_data(spec)
    if data.test is None:
        data = data.with_validation(_HELD_OUT, seed)
    test = data.test or data.validation
    assert test is not None  # with_validation holds some out, or raises
    return TrainingData(train=data.train), test


def run(
    plan: DegradationPlan,
    *,
    log: Log = lambda _: None,
    progress: Callable[[str, Progress], None] = lambda name, step: None,
    status: Log = lambda _: None,
) -> Degradation:
    """Trains what is not trained yet, compares, draws, and measures what the shortcut costs.

    A second call with the same plan goes on where the first one was stopped.

    Args:
        plan: Decides the experiment.
        log: Called with a line of text.
        progress: Called with a network's name and where its training stands.
        status: Called with what is being done between and after the trainings.

    Raises:
        UsageError: The folder holds an experiment of another recipe, seed or data.
        CheckFailed: A training diverged.
        FileProblem: The folder can't be written.
    """
    figure, table = plan.out / FIGURE, plan.out / NUMBERS
    trained = train_variants(
        plan,
        table,
        log=log,
        progress=progress,
        status=status,
        drawn=lambda curves: draw(curves, figure, title=plan.title),
    )
    predictions = {
        (variant.depth, variant.kind): found for variant, found in zip(plan.variants, trained.predictions, strict=True)
    }
    comparisons = _compare(plan.depths, predictions)
    costs = _measure_cost(plan, status) if plan.runtimes else []
    reproduced, verdict = conclude(comparisons)
    result = Degradation(
        data=plan.spec,
        rows=trained.rows(plan),
        verdict=verdict,
        reproduced=reproduced,
        comparisons=comparisons,
        shortcut_cost=costs,
        plot=str(figure),
        csv=str(table),
        recipe=trained.recipe.to_json(),
        seed=plan.seed,
        training_seconds=trained.seconds,
    )
    write_record(plan.out / RESULT, result)
    return result


@dataclass(frozen=True, kw_only=True)
class TrainedVariants:
    """The networks of an experiment, in the order of its plan.

    Attributes:
        recipe: As the last one was trained.
        predictions: Of each, on its training pictures and on the test pictures.
    """

    recipe: Recipe
    curves: Sequence[Curve]
    predictions: Sequence[tuple[Predictions, Predictions]]

    @property
    def seconds(self) -> float:
        """Seconds of all trainings."""
        return sum(map(training_seconds, self.curves))

    def rows(self, plan: DegradationPlan) -> list[DegradationRow]:
        """Returns them as a document's rows."""
        return [
            variant_result(variant, curve, found, plan.out)
            for variant, curve, found in zip(plan.variants, self.curves, self.predictions, strict=True)
        ]


def train_variants(
    plan: DegradationPlan,
    numbers: Path,
    *,
    log: Log,
    progress: Callable[[str, Progress], None],
    status: Log,
    drawn: Callable[[Sequence[Curve]], None] = lambda _: None,
) -> TrainedVariants:
    """Trains the networks that are not trained yet, and lets each predict; errors are those of ``run``.

    `numbers`, the CSV file of all epochs, is written again after every network, and `drawn` is called.
    """
    from resnet_onnx.training.device import limited_threads

    forecast = Forecast(entries=[variant.entry for variant in plan.variants], epochs=plan.epochs)
    recipe, curves, predictions = plan.recipe, list[Curve](), list[tuple[Predictions, Predictions]]()
    sets, preprocessing = {"train": plan.data.train, "test": plan.test}, plan.variants[0].entry.preprocessing
    predictor = Predictor(sets, preprocessing, device=plan.device, workers=plan.workers)
    with contextlib.closing(predictor), limited_threads(plan.threads):
        for number, variant in enumerate(plan.variants, 1):
            name = variant.entry.name
            log(f"{number} of {len(plan.variants)}: {name}")
            trained = train_variant(plan, variant, predictor, forecast, log, progress)
            recipe = trained.recipe
            curves.append(Curve(model=name, kind=variant.kind, depth=variant.depth, epochs=trained.epochs))
            write_csv(curves, numbers)
            drawn(curves)
            status(f"evaluating {name} on its training pictures, without augmentation")
            predictions.append(predictor.of_checkpoint(trained.last))
    return TrainedVariants(recipe=recipe, curves=curves, predictions=predictions)


def write_record(path: Path, result: Degradation | Shortcuts) -> None:
    """Writes what an experiment found beside its checkpoints; its name and data are those of the folder."""
    values = dataclasses.asdict(result)
    files.write_json(path, {name: values[name] for name in values if name not in ("experiment", "data")})


def sentence(found: DepthComparison) -> str:
    """Returns a comparison in words, with the figures."""
    what = (
        f"{found.kind} {found.deep} has {100 * found.deep_error:.2f} % {found.pictures_of} error, "
        f"{found.kind} {found.shallow} has {100 * found.shallow_error:.2f} %"
    )
    low, high = (100 * bound for bound in found.ci95)
    verdict = "undecided" if found.outcome == "undecided" else f"the deeper one is {found.outcome}"
    return f"{what}: {verdict} ({100 * found.difference:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f})"


def conclude(comparisons: Sequence[DepthComparison]) -> tuple[bool | None, str]:
    """Returns whether the paper's claim came out, and the verdict in words.

    The claim (section 4.2): more layers raise the training error of plain networks and lower that of residual ones.
    """
    on_training = {c.kind: c for c in comparisons if c.pictures_of == "training"}
    plain, residual = on_training["plain"], on_training["residual"]
    outcomes = plain.outcome, residual.outcome
    reproduced: bool | None = None
    if outcomes == ("worse", "better"):
        reproduced = True
    elif outcomes[0] == "better" or outcomes[1] == "worse":
        reproduced = False
    heading = {
        True: "Degradation, and its cure by shortcuts, came out as in the paper",
        False: "Not what the paper found",
        None: "Undecided",
    }[reproduced]
    return reproduced, f"{heading}: {sentence(plain)}; {sentence(residual)}."


def train_variant(
    plan: DegradationPlan,
    variant: Variant,
    predictor: Predictor,
    forecast: Forecast,
    log: Log,
    progress: Callable[[str, Progress], None],
) -> TrainingResult:
    """Trains one network of an experiment, or goes on where it was stopped, and tests it after each epoch.

    Raises:
        BadWeights: It was trained outside the experiment.
    """
    from resnet_onnx.training.loop import train

    name = variant.entry.name
    announced = False

    def follow(step: Progress) -> None:
        nonlocal announced
        if step.stage == "training" and step.step:
            forecast.record_start()
        if step.finished is not None:
            forecast.record_epoch(name, step.finished)
            if not announced:
                announced = True
                if line := forecast.line():
                    log(line)
        progress(name, step)

    def test(epoch: int, module: nn.Module) -> Mapping[str, float]:
        watch = Stopwatch()
        found = predictor.predict(module, "test")
        return {"test_top1": 1 - found.error, "test_loss": found.loss, "test_seconds": watch.seconds}

    training = TrainingPlan(
        entry=variant.entry,
        data=plan.data,
        recipe=plan.recipe,
        out=plan.out / name,
        seed=plan.seed,
        resume=True,
        device=plan.device,
        threads=plan.threads,
        workers=plan.workers,
    )
    result = train(training, progress=follow, after_epoch=test)
    if any("test_top1" not in epoch for epoch in result.epochs):
        raise BadWeights(
            f"{training.out} was trained outside this experiment: it has no test error of each epoch",
            fix="name another folder with --out",
        )
    forecast.record_epoch(name, result.epochs[-1])
    if result.resumed_from == result.epochs[-1]["epoch"]:
        log(f"{name} was trained already")
    elif result.resumed_from is not None:
        log(f"{name} went on after epoch {result.resumed_from}")
    return result


def training_seconds(curve: Curve) -> float:
    """Returns what a training took, tests after each epoch included."""
    return sum(epoch["seconds"] + epoch["test_seconds"] for epoch in curve.epochs)


def _compare(
    depths: Sequence[int], predictions: Mapping[tuple[int, str], tuple[Predictions, Predictions]]
) -> list[DepthComparison]:
    shallow, deep = min(depths), max(depths)
    return [
        paired_difference(
            predictions[shallow, kind][index].correct,
            predictions[deep, kind][index].correct,
            kind=kind,
            pictures_of=which,
            depths=(shallow, deep),
        )
        for kind, (index, which) in itertools.product(KINDS, enumerate(("training", "test")))
    ]


def variant_result(
    variant: Variant, curve: Curve, predictions: tuple[Predictions, Predictions], out: Path
) -> DegradationRow:
    """Returns the figures of one network."""
    counts = count(variant.entry.config, variant.entry.image_size)
    training, test = predictions
    last = curve.epochs[-1]
    return DegradationRow(
        model=variant.entry.name,
        kind=variant.kind,
        depth=variant.depth,
        parameters=counts.parameters,
        multiply_adds=counts.multiply_adds,
        epochs=last["epoch"],
        steps=sum(epoch["steps"] for epoch in curve.epochs),
        training_error=training.error,
        training_error_ci95=error_interval(training.correct),
        training_loss=training.loss,
        test_error=test.error,
        test_error_ci95=error_interval(test.correct),
        test_loss=test.loss,
        seconds=training_seconds(curve),
        images_per_second=last["images_per_second"],
        checkpoint=str(out / variant.entry.name / LAST),
    )


def _measure_cost(plan: DegradationPlan, status: Log) -> list[ShortcutCost]:
    models = {}
    for variant in plan.variants:
        name = variant.entry.name
        status(f"exporting {name}")
        onnx = plan.out / f"{name}.onnx"
        trained = workflow.resolve(workflow.Request(model=str(plan.out / name / LAST)))
        workflow.export(trained, onnx)
        models[variant.depth, variant.kind] = workflow.resolve(workflow.Request(model=str(onnx)))
    return measure_cost(models, plan.runtimes, progress=status)
