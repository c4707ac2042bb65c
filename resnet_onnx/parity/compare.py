"""Runs every runtime and the gold on the same inputs and judges the difference."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from resnet_onnx.parity.budget import Budget, Sum, allowance, quantised_allowance
from resnet_onnx.parity.judge import Outcome, distance_from_original, judge
from resnet_onnx.parity.metrics import DistanceSum
from resnet_onnx.parity.records import Outputs, Records, rebatched
from resnet_onnx.parity.running import Batches, Ran, gold_outputs, run
from runtimes.errors import RunFailed, UnsupportedModel, UsageError
from runtimes.registry import adapter
from runtimes.spec import Target, check_rows

Progress = Callable[[str], None]

INT8 = "int8"

AGAINST_ITSELF = "judged against itself: what is wrong in the file is wrong in gold too"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What targets are compared with: gold, a float32 baseline, or the original of a quantised model.

    Attributes:
        itself: Whether it is the very file that is judged, so that what is wrong in the file is not found.
    """

    target: Target
    description: str
    itself: bool = False


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """What the rounding of a quantised model is held against.

    Attributes:
        unrounded: The same graph without its Quantize/Dequantize nodes, where the quantised graph itself is gold; None
            where gold is what the graph was made from.
        steps: Relative error that the step sizes of those nodes add up to, in quadrature.
    """

    unrounded: Reference | None
    steps: float


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of a comparison.

    Attributes:
        names: A name per picture.
        batches: Feeds of the targets; batch sizes may differ, so that a picture's result is seen not to depend on its
            neighbours.
        gold_batches: The same pictures as the feeds of all references, where another model is gold; its single output
            then stands for the targets' single output, whatever the names of the two. None: the same feeds.
        notes: What the user should know of how the pictures were read.
        pictures: Whether they are pictures, each of which has a row in some output.
        adversarial: How many of them nobody photographed.
    """

    names: Sequence[str]
    batches: Batches
    gold_batches: Batches | None = None
    notes: tuple[str, ...] = ()
    pictures: bool = False
    adversarial: int = 0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared with what, and what the budgets follow.

    Attributes:
        baselines: Plain float32 evaluations whose noise sets the budget, the median of it where there are several. One
            that can't run the model is left out, as long as another can.
        quantisation: For a quantised model, in place of `baselines`.
        sums: Those that the model computes, each with the format that it rounds to.
        precision: Of a file that is not quantised, ``fp32``, ``fp16`` or ``bf16``.
        tolerances: Relative RMSE allowed by output name, where the user set it in place of the derived budget.
        original: The network that a quantised model was made from, in float64; its distance is reported.
        scores: The targets' output whose highest value is the top-1; None where only one can be.
        gold_key: What gold's outputs depend on besides the inputs; with it they are kept in the cache.
    """

    gold: Reference
    targets: Sequence[Target]
    inputs: Inputs
    sums: Sequence[Sum]
    baselines: Sequence[Reference] = ()
    quantisation: Quantisation | None = None
    precision: str = "fp32"
    tolerances: Mapping[str, float] = field(default_factory=dict)
    original: Reference | None = None
    scores: str | None = None
    gold_key: str | None = None

    def arithmetic(self, target: Target) -> str:
        """Returns the precision that a target computes in throughout; ``fp32`` where each operator has the graph's."""
        if self.quantisation is not None:
            return INT8
        found = adapter(target.runtime).arithmetic(self.precision, target.options, target.device)
        # A module in torch is cast as a whole; a graph says of each operator what it rounds to.
        return "fp32" if found == self.precision and target.source.factory is None else found


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """All runtimes against the gold.

    Attributes:
        adversarial: How many of the pictures nobody photographed.
        budgets: Allowance per output, of the first runtime's precision.
        pairs: Relative RMSE of the worst output between two runtimes, by their names; the first is taken as the truth.
        original: What a quantised model was made from, in words, or "".
        notes: What the user should know of how the pictures were read.
        itself: Whether gold is the very file that was judged.
    """

    gold: str
    pictures: int
    names: Sequence[str]
    budgets: Mapping[str, Budget]
    outcomes: Sequence[Outcome]
    pairs: Mapping[tuple[str, str], float] = field(default_factory=dict)
    original: str = ""
    notes: tuple[str, ...] = ()
    itself: bool = False
    adversarial: int = 0

    @property
    def described_inputs(self) -> str:
        """How many inputs there were, and of which kind."""
        return f"{self.pictures} inputs" + (f" ({self.adversarial} of them adversarial)" if self.adversarial else "")

    @property
    def passed(self) -> bool:
        """Whether every runtime passed."""
        return all(outcome.passed for outcome in self.outcomes)

    def verdict(self, passed: bool) -> str:
        """Returns ``pass`` or ``FAIL``, and that a file was judged against itself where it was."""
        return ("pass" if passed else "FAIL") + (" (against itself)" if self.itself else "")


def compare(comparison: Comparison, *, progress: Progress = lambda _: None) -> ParityReport:
    """Judges every target against the gold; a runtime that fails to run raises.

    Raises:
        UsageError: The tolerances name an output that gold has not.
    """
    inputs, targets = comparison.inputs, comparison.targets
    progress(f"gold: {comparison.gold.description}")
    truth = gold_outputs(comparison.gold.target, inputs.gold_batches or inputs.batches, comparison.gold_key)
    results = []
    for target in targets:
        progress(target.runtime)
        results.append(run(target, inputs.batches))
        if inputs.pictures:
            for outputs, size in zip(results[-1].outputs, inputs.batches.sizes, strict=True):
                check_rows(outputs, size, who=target.source.name)
    references = _References(comparison, truth, results, progress)
    budgets = _budgets(comparison, references)
    by_name = {target.runtime: ran.outputs for target, ran in zip(targets, results, strict=True)}
    return ParityReport(
        gold=comparison.gold.description,
        pictures=len(inputs.names),
        names=list(inputs.names),
        budgets=next(iter(budgets.values())),
        outcomes=_outcomes(comparison, references, results, budgets),
        pairs={(a, b): _between(by_name[a], by_name[b]) for a, b in itertools.permutations(by_name, 2)},
        original=comparison.original.description if comparison.original is not None else "",
        notes=inputs.notes,
        itself=comparison.gold.itself,
        adversarial=inputs.adversarial,
    )


class _References:
    """What gold and the other references compute, cut into the batches of the targets and under their names."""

    def __init__(self, comparison: Comparison, truth: Records, results: Sequence[Ran], progress: Progress) -> None:
        inputs = comparison.inputs
        self._progress = progress
        self._computed = list(zip(comparison.targets, results, strict=True)) if inputs.gold_batches is None else []
        self._batches = inputs.gold_batches or inputs.batches
        self._sizes = inputs.batches.sizes if inputs.batches.sizes != self._batches.sizes else None
        other = results and inputs.gold_batches is not None
        self._names = _renaming(truth, results[0].outputs) if other else {}
        self.gold = self._as_targets(truth)

    def outputs(self, reference: Reference, role: str) -> Records:
        """Returns the outputs of a reference; one that is among the targets is not run again."""
        for target, ran in self._computed:
            if target == reference.target:
                return ran.outputs
        self._progress(f"{role}: {reference.description}")
        return self._as_targets(run(reference.target, self._batches).outputs)

    def _as_targets(self, found: Records) -> Records:
        if self._sizes is not None:
            found = Records(rebatched(found, self._sizes))
        return Records(_renamed(found, self._names)) if self._names else found


def _budgets(comparison: Comparison, references: _References) -> dict[str, dict[str, Budget]]:
    """Returns the allowance of each output by precision."""
    if comparison.quantisation is not None:
        budgets = {INT8: _quantised_budgets(comparison.quantisation, references)}
    else:
        noises = _noises(comparison.baselines, references)
        described = _listed(list(noises))
        budgets = {
            precision: {
                name: allowance(
                    statistics.median(found[name] for found in noises.values()),
                    comparison.sums,
                    baseline=described,
                    precision=precision,
                )
                for name in next(iter(noises.values()))
            }
            for precision in dict.fromkeys(comparison.arithmetic(target) for target in comparison.targets) or ["fp32"]
        }
    for allowed in budgets.values():
        allowed.update(_by_hand(comparison.tolerances, allowed))
    return budgets


def _quantised_budgets(quantisation: Quantisation, references: _References) -> dict[str, Budget]:
    if quantisation.unrounded is not None:
        noise = _noise(references.gold, references.outputs(quantisation.unrounded, "without rounding"))
    else:
        noise = dict.fromkeys(_first(references.gold), quantisation.steps)
    return {name: quantised_allowance(value, quantisation.steps) for name, value in noise.items()}


def _outcomes(
    comparison: Comparison, references: _References, results: Sequence[Ran], budgets: Mapping[str, Mapping[str, Budget]]
) -> list[Outcome]:
    """Returns the verdict on each target."""
    original = None
    if comparison.original is not None:
        original = references.outputs(comparison.original, "original")
    outcomes = []
    for target, ran in zip(comparison.targets, results, strict=True):
        outcome = judge(
            target.runtime,
            ran.outputs,
            references.gold,
            budgets[comparison.arithmetic(target)],
            names=comparison.inputs.names,
            scores=comparison.scores,
        )
        outcome = replace(outcome, version=ran.version, recorded=ran.recorded, seconds=ran.seconds)
        if comparison.gold.itself:
            outcome = replace(outcome, reason=f"{outcome.reason}; {AGAINST_ITSELF}")
        if original is not None:
            outcome = replace(outcome, original=distance_from_original(original, ran.outputs, comparison.scores))
        outcomes.append(outcome)
    return outcomes


def _noises(baselines: Sequence[Reference], references: _References) -> dict[str, dict[str, float]]:
    """Returns the noise per output of each baseline that can run the model, by its description."""
    found: dict[str, dict[str, float]] = {}
    refusal: Exception | None = None
    for baseline in baselines:
        try:
            found[baseline.description] = _noise(references.gold, references.outputs(baseline, "baseline"))
        except (UnsupportedModel, RunFailed) as error:
            refusal = error
    if refusal is not None and not found:
        raise refusal
    return found


def _noise(truth: Records, found: Records) -> dict[str, float]:
    """Returns the distance of each of gold's outputs; infinite where it is missing, misshapen or not finite."""
    sums = {name: DistanceSum() for name in _first(truth)}
    broken = set()
    for exact, rounded in zip(truth, found, strict=True):
        for name, array in exact.items():
            if name in rounded and rounded[name].shape == array.shape:
                sums[name].add(array, rounded[name])
            else:
                broken.add(name)
    return {name: float("inf") if name in broken else each.total().relative_rmse for name, each in sums.items()}


def _by_hand(tolerances: Mapping[str, float], budgets: Mapping[str, Budget]) -> dict[str, Budget]:
    for name in tolerances:
        if name not in budgets:
            raise UsageError(f"--tolerance-for {name}: the outputs are {', '.join(budgets)}")
    return {
        name: replace(
            budgets[name],
            relative_rmse=value,
            reason=f"set by hand in place of {budgets[name].relative_rmse:.1e}",
            by_hand=True,
        )
        for name, value in tolerances.items()
    }


def _between(a: Records, b: Records) -> float:
    """Returns the worst output's distance between two runtimes; infinite where outputs are missing or misshapen."""
    if _first(a).keys() != _first(b).keys():
        return float("inf")
    return max(_noise(a, b).values(), default=0.0)


def _first(records: Records) -> Outputs:
    return next(iter(records), {})


def _renaming(truth: Records, found: Records) -> dict[str, str]:
    """Returns the targets' name of gold's single output by gold's own, where both have a single one."""
    ours, theirs = list(_first(truth)), list(_first(found))
    return {ours[0]: theirs[0]} if len(ours) == len(theirs) == 1 and ours != theirs else {}


def _renamed(records: Records, names: Mapping[str, str]) -> Iterator[dict[str, NDArray[Any]]]:
    for record in records:
        yield {names.get(name, name): array for name, array in record.items()}


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "nothing"
