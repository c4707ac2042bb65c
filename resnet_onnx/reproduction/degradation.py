"""The degradation experiment: do more layers make a plain network worse, and a residual one better?

He, Zhang, Ren and Sun (arXiv:1512.03385, section 4.2 and figure 6) train plain and residual networks of several depths
in the same way and look at *training* error, which more layers could not raise if they were only easy to train.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_onnx import workflow
from resnet_onnx.bench.clock import Stopwatch
from resnet_onnx.models.catalog import CatalogEntry
from resnet_onnx.models.counting import count
from resnet_onnx.report.words import counted
from resnet_onnx.reproduction.forecast import Forecast, duration
from runtimes import files
from runtimes.errors import BadWeights, UsageError

if TYPE_CHECKING:
    from torch import nn

    from resnet_onnx.data.datasets import PictureSet
    from resnet_onnx.reproduction.answers import Answers
    from resnet_onnx.reproduction.curves import Curve
    from resnet_onnx.reproduction.judgement import Difference
    from resnet_onnx.reproduction.shortcut import Cost
    from resnet_onnx.training.feeds import Feed
    from resnet_onnx.training.plan import Progress, TrainingResult
    from resnet_onnx.training.recipes import Recipe
    from resnet_onnx.training.splits import TrainingData

KINDS = ("plain", "residual")
FIGURE, NUMBERS, RESULT = "degradation.png", "degradation.csv", "degradation.json"
_HELD_OUT = 0.1
"""Share that stands for a test set where the pictures have none."""
_IMAGENET_DEPTHS = (18, 34)

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One of the networks.

    Attributes:
        kind: ``plain`` or ``residual``.
        depth: Weighted layers.
        entry: From the catalog.
    """

    kind: str
    depth: int
    entry: CatalogEntry


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be trained, settled before any work.

    Attributes:
        contestants: A plain and a residual network of each depth, the shallowest first.
        data: What every network learns from; nothing is held out, since nothing is chosen.
        test: What every network is asked about after each epoch, and never learns from.
        recipe: Of all networks.
        seed: Of all networks.
        out: Folder of the experiment.
    """

    contestants: Sequence[Contestant]
    data: TrainingData
    test: PictureSet
    recipe: Recipe
    seed: int
    out: Path

    @property
    def depths(self) -> list[int]:
        """The depths, rising."""
        return sorted({contestant.depth for contestant in self.contestants})


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The deepest networks of a kind against the shallowest.

    Attributes:
        kind: ``plain`` or ``residual``.
        pictures: ``training`` or ``test``.
        shallow: Its depth.
        deep: Its depth.
        difference: In errors.
    """

    kind: str
    pictures: str
    shallow: int
    deep: int
    difference: Difference

    def sentence(self) -> str:
        """Says it in words, with the figures."""
        found = self.difference
        what = (
            f"{self.kind} {self.deep} has {100 * found.deep_error:.2f} % {self.pictures} error, "
            f"{self.kind} {self.shallow} has {100 * found.shallow_error:.2f} %"
        )
        low, high = (100 * bound for bound in found.ci95)
        verdict = "undecided" if found.outcome == "undecided" else f"the deeper one is {found.outcome}"
        return f"{what}: {verdict} ({100 * found.difference:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f})"

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return {
            "kind": self.kind,
            "pictures_of": self.pictures,
            "shallow": self.shallow,
            "deep": self.deep,
            **self.difference.to_json(),
        }


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """What the experiment came to.

    Attributes:
        rows: Per network: its figures, errors as shares, of the network after its last epoch.
        comparisons: Deep against shallow by kind, on training and on test pictures.
        reproduced: Whether the paper's claim came out: the deeper plain network has more training error, the deeper
            residual one less. False where the opposite of either came out, None where one is undecided.
        verdict: In words.
        costs: What the shortcut costs in throughput; empty where it was not asked for.
        plot: The figure.
        csv: The numbers of every epoch.
        recipe: As it was used.
        seed: Of the trainings.
        seconds: Training time over all networks, tests after each epoch included.
    """

    rows: list[dict[str, Any]]
    comparisons: list[Comparison]
    reproduced: bool | None
    verdict: str
    costs: list[Cost]
    plot: Path
    csv: Path
    recipe: Recipe
    seed: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return {
            "rows": self.rows,
            "verdict": self.verdict,
            "reproduced": self.reproduced,
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
            "shortcut_cost": [cost.to_json() for cost in self.costs],
            "plot": str(self.plot),
            "csv": str(self.csv),
            "recipe": self.recipe.to_json(),
            "seed": self.seed,
            "training_seconds": self.seconds,
        }


def contestants(depths: Sequence[int]) -> list[Contestant]:
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
        Contestant(
            kind=kind,
            depth=depth,
            entry=workflow.training_entry(f"{prefix}{'plain' if kind == 'plain' else 'resnet'}{depth}"),
        )
        for depth in chosen
        for kind in KINDS
    ]


def plan(
    spec: str,
    *,
    networks: Sequence[Contestant],
    recipe: Recipe | None,
    epochs: int | None,
    seed: int,
    out: Path,
) -> Plan:
    """Settles what is trained on what.

    Args:
        spec: Pictures, as ``open_training_data`` takes them. Where they have no test (or validation) split, a tenth of
            every class is held out as one.
        networks: What ``contestants`` returned.
        recipe: Of all networks; None chooses by the data.
        epochs: In place of the recipe's.
        seed: Decides weights, order, augmentation and what is held out.
        out: Folder of the experiment.

    Raises:
        BadData: The pictures are not there, or not fit for training.
    """
    from resnet_onnx.training.recipes import default_recipe
    from resnet_onnx.training.splits import TrainingData, open_training_data

    data = open_training_data(spec)
    if data.test is None:
        data = data.with_validation(_HELD_OUT, seed)
    test = data.test or data.validation
    assert test is not None  # with_validation holds some out, or raises
    size = networks[0].entry.image_size
    recipe = recipe or default_recipe(spec, image_size=size, pictures=len(data.train))
    return Plan(
        contestants=networks,
        data=TrainingData(train=data.train),
        test=test,
        recipe=recipe.override(epochs=epochs, validation=0.0),
        seed=seed,
        out=out,
    )


def run(
    experiment: Plan,
    *,
    runtimes: Sequence[str] = (),
    threads: int | None = None,
    workers: int | None = None,
    device: str | None = None,
    tell: Tell = lambda _: None,
    progress: Callable[[str, Progress], None] = lambda name, seen: None,
    busy: Callable[[str], None] = lambda _: None,
) -> Degradation:
    """Trains what is not trained yet, judges, draws, and measures what the shortcut costs.

    A second call with the same plan goes on where the first one was stopped.

    Args:
        experiment: What ``plan`` returned.
        runtimes: On which throughput is measured; none, to leave that out.
        threads: CPU threads of the training.
        workers: Processes that load pictures.
        device: Of the training.
        tell: Told what is worth a line.
        progress: Told where a training stands, with the network's name.
        busy: Told what is going on after the training.

    Raises:
        UsageError: The folder holds an experiment of another recipe, seed or data.
        CheckFailed: A training diverged.
        FileProblem: The folder can't be written.
    """
    from resnet_onnx.reproduction.curves import draw, write_csv
    from resnet_onnx.training.device import limited_threads

    figure, table = experiment.out / FIGURE, experiment.out / NUMBERS
    forecast = Forecast(entries=[c.entry for c in experiment.contestants], epochs=_epochs(experiment))
    recipe = experiment.recipe
    curves: list[Curve] = []
    answers: dict[tuple[int, str], tuple[Answers, Answers]] = {}
    with contextlib.ExitStack() as stack:
        pictures = _Pictures(experiment, device=device, workers=workers)
        stack.callback(pictures.close)
        stack.enter_context(limited_threads(threads))
        for number, contestant in enumerate(experiment.contestants, 1):
            name = contestant.entry.name
            tell(f"{number} of {len(experiment.contestants)}: {name}")
            trained = _train(experiment, contestant, pictures, forecast, threads, workers, device, tell, progress)
            recipe = trained.recipe
            curves.append(_curve(contestant, trained))
            write_csv(curves, table)
            draw(curves, figure, title=_title(experiment))
            busy(f"asking {name} about its training pictures, without augmentation")
            answers[contestant.depth, contestant.kind] = pictures.answers(trained.last)
    comparisons = _compare(experiment.depths, answers)
    rows = [_row(c, curve, answers[c.depth, c.kind], experiment.out) for c, curve in zip(
        experiment.contestants, curves, strict=True)]  # fmt: skip
    costs: list[Cost] = []
    if runtimes:
        costs = _measure_cost(experiment, runtimes, busy)
    reproduced, verdict = conclude(comparisons)
    result = Degradation(
        rows=rows,
        comparisons=comparisons,
        reproduced=reproduced,
        verdict=verdict,
        costs=costs,
        plot=figure,
        csv=table,
        recipe=recipe,
        seed=experiment.seed,
        seconds=sum(epoch["seconds"] + epoch["test_seconds"] for curve in curves for epoch in curve.epochs),
    )
    files.write_json(experiment.out / RESULT, result.to_json())
    return result


def conclude(comparisons: Sequence[Comparison]) -> tuple[bool | None, str]:
    """Returns whether the paper's claim came out, and the verdict in words.

    The claim (section 4.2): more layers raise the training error of plain networks and lower that of residual ones.
    """
    on_training = {c.kind: c for c in comparisons if c.pictures == "training"}
    plain, residual = on_training["plain"], on_training["residual"]
    outcomes = plain.difference.outcome, residual.difference.outcome
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
    return reproduced, f"{heading}: {plain.sentence()}; {residual.sentence()}."


def _epochs(experiment: Plan) -> int:
    recipe, pictures = experiment.recipe, len(experiment.data.train)
    steps = pictures // min(recipe.batch_size, pictures)
    return -(-recipe.total_steps(steps) // steps)


def _title(experiment: Plan) -> str:
    recipe, epochs = experiment.recipe, counted(experiment.recipe.epochs, "epoch")
    return f"{experiment.data.train.name}: recipe {recipe.name}, {epochs}, seed {experiment.seed}"


def _train(
    experiment: Plan,
    contestant: Contestant,
    pictures: _Pictures,
    forecast: Forecast,
    threads: int | None,
    workers: int | None,
    device: str | None,
    tell: Tell,
    progress: Callable[[str, Progress], None],
) -> TrainingResult:
    from resnet_onnx.training.loop import train
    from resnet_onnx.training.plan import TrainingPlan

    entry = contestant.entry
    said = False

    def follow(step: Progress) -> None:
        nonlocal said
        if step.stage == "training" and step.step:
            forecast.started(entry.name)
        if step.finished is not None:
            forecast.saw(entry.name, step.finished)
            if not said:
                said = True
                if line := _forecast_line(forecast):
                    tell(line)
        progress(entry.name, step)

    def test(epoch: int, module: nn.Module) -> Mapping[str, float]:
        watch = Stopwatch()
        found = pictures.ask_test(module)
        return {"test_top1": 1 - found.error, "test_loss": found.loss, "test_seconds": watch.seconds}

    plan = TrainingPlan(
        entry=entry,
        data=experiment.data,
        recipe=experiment.recipe,
        out=experiment.out / entry.name,
        seed=experiment.seed,
        resume=True,
        threads=threads,
        workers=workers,
        device=device,
    )
    result = train(plan, progress=follow, after_epoch=test)
    if any("test_top1" not in epoch for epoch in result.epochs):
        raise BadWeights(
            f"{experiment.out / entry.name} was trained outside this experiment: it has no test error of each epoch",
            fix="name another folder with --out",
        )
    forecast.saw(entry.name, result.epochs[-1])
    if result.resumed_from == result.epochs[-1]["epoch"]:
        tell(f"{entry.name} was trained already")
    elif result.resumed_from is not None:
        tell(f"{entry.name} went on after epoch {result.resumed_from}")
    return result


def _forecast_line(forecast: Forecast) -> str:
    seconds, peak = forecast.seconds_left(), forecast.peak_bytes()
    parts = [f"still about {duration(seconds)} of training, all networks together" if seconds else ""]
    if peak is not None:
        parts.append(f"memory at its peak about {peak / 2**30:.1f} GiB")
    return " · ".join(filter(None, parts))


def _curve(contestant: Contestant, trained: TrainingResult) -> Curve:
    from resnet_onnx.reproduction.curves import Curve

    return Curve(model=contestant.entry.name, kind=contestant.kind, depth=contestant.depth, epochs=trained.epochs)


class _Pictures:
    """The pictures that networks are asked about, loaded when the first one is asked and kept for the others."""

    def __init__(self, experiment: Plan, *, device: str | None, workers: int | None) -> None:
        from resnet_onnx.training.distributed import SINGLE_PROCESS

        self._experiment = experiment
        self._workers = workers
        self._device = SINGLE_PROCESS.device(device)
        self._feeds: dict[str, Feed] = {}

    def ask_test(self, module: nn.Module) -> Answers:
        """Returns a network's answers on the test pictures."""
        return self._ask("test", module)

    def answers(self, checkpoint: Path) -> tuple[Answers, Answers]:
        """Returns a checkpoint's answers on the training and on the test pictures."""
        from resnet_onnx.reproduction.answers import AnswerBook
        from resnet_onnx.training.splits import names_sha256

        book = AnswerBook(checkpoint, checkpoint.parent / "answers.json")
        module: nn.Module | None = None
        found = []
        for which in ("train", "test"):
            fingerprint = names_sha256(self._set(which))
            known = book.known(fingerprint)
            if known is None:
                module = module or book.module(self._device)
                known = self._ask(which, module)
                book.write(fingerprint, known)
            found.append(known)
        self._close("train")  # the next training has its own copy of them
        return found[0], found[1]

    def close(self) -> None:
        """Lets go of all pictures."""
        for which in list(self._feeds):
            self._close(which)

    def _close(self, which: str) -> None:
        if which in self._feeds:
            self._feeds.pop(which).close()

    def _set(self, which: str) -> PictureSet:
        return self._experiment.data.train if which == "train" else self._experiment.test

    def _ask(self, which: str, module: nn.Module) -> Answers:
        from resnet_onnx.reproduction.answers import ask
        from resnet_onnx.training.augmentation import Normaliser

        preprocessing = self._experiment.contestants[0].entry.preprocessing
        return ask(module, self._feed(which), Normaliser(preprocessing, self._device))

    def _feed(self, which: str) -> Feed:
        from resnet_onnx.training.feeds import open_feed
        from resnet_onnx.training.trainer import loading_workers

        if which not in self._feeds:
            dataset = self._set(which)
            workers = loading_workers(self._workers, len(dataset))
            preprocessing = self._experiment.contestants[0].entry.preprocessing
            self._feeds[which] = open_feed(dataset, preprocessing, self._device, recipe=None, seed=0, workers=workers)
        return self._feeds[which]


def _compare(depths: Sequence[int], answers: Mapping[tuple[int, str], tuple[Answers, Answers]]) -> list[Comparison]:
    from resnet_onnx.reproduction.judgement import paired_difference

    shallow, deep = min(depths), max(depths)
    return [
        Comparison(
            kind=kind,
            pictures=which,
            shallow=shallow,
            deep=deep,
            difference=paired_difference(answers[shallow, kind][index].right, answers[deep, kind][index].right),
        )
        for kind, (index, which) in itertools.product(KINDS, enumerate(("training", "test")))
    ]


def _row(contestant: Contestant, curve: Curve, answers: tuple[Answers, Answers], out: Path) -> dict[str, Any]:
    from resnet_onnx.reproduction.judgement import error_interval

    counts = count(contestant.entry.config, contestant.entry.image_size)
    training, test = answers
    last = curve.epochs[-1]
    return {
        "model": contestant.entry.name,
        "kind": contestant.kind,
        "depth": contestant.depth,
        "parameters": counts.parameters,
        "multiply_adds": counts.multiply_adds,
        "epochs": last["epoch"],
        "steps": sum(epoch["steps"] for epoch in curve.epochs),
        "training_error": training.error,
        "training_error_ci95": list(error_interval(training.right)),
        "training_loss": training.loss,
        "test_error": test.error,
        "test_error_ci95": list(error_interval(test.right)),
        "test_loss": test.loss,
        "seconds": sum(epoch["seconds"] + epoch["test_seconds"] for epoch in curve.epochs),
        "images_per_second": last["images_per_second"],
        "checkpoint": str(out / contestant.entry.name / "last"),
    }


def _measure_cost(experiment: Plan, runtimes: Sequence[str], busy: Callable[[str], None]) -> list[Cost]:
    from resnet_onnx.reproduction.shortcut import measure_cost
    from resnet_onnx.training.checkpoint import LAST

    models = {}
    for contestant in experiment.contestants:
        name = contestant.entry.name
        busy(f"exporting {name}")
        onnx = experiment.out / f"{name}.onnx"
        trained = workflow.resolve(workflow.Request(model=str(experiment.out / name / LAST)))
        workflow.export(trained, onnx)
        models[contestant.depth, contestant.kind] = workflow.resolve(workflow.Request(model=str(onnx)))
    return measure_cost(models, runtimes, progress=busy)
