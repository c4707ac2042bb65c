"""Runs every runtime and the gold on the same inputs and judges the difference."""

from __future__ import annotations

import hashlib
import itertools
import statistics
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.parity.budget import MARGIN_MULTIPLE, Budget, allowance, quantised_allowance
from resnet_onnx.parity.metrics import Decisions, DecisionSum, Distance, DistanceSum
from resnet_onnx.parity.records import Outputs, Records, rebatched
from runtimes import files, onnx_gate
from runtimes.errors import RunFailed, UnsupportedModel, UsageError
from runtimes.registry import open_runtime
from runtimes.spec import Feeds, ModelSource, RuntimeOptions

Progress = Callable[[str], None]


class Batches(Protocol):
    """Feeds that are made anew each time they are iterated over, so that they need not all be in memory."""

    def __iter__(self) -> Iterator[Feeds]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One side of a comparison: a model on a runtime.

    Attributes:
        runtime: Its name.
        source: The model.
        device: Where, or None for the runtime's default.
        options: Threads and precision switches.
        description: What messages call it.
        precision: Of its arithmetic, ``fp32``, ``fp16``, ``bf16``, ``tf32`` or ``int8``: what its budget follows.
    """

    runtime: str
    source: ModelSource
    device: str | None = None
    options: RuntimeOptions = field(default_factory=RuntimeOptions)
    description: str = ""
    precision: str = "fp32"

    def same_work(self, other: Contestant) -> bool:
        """Whether both compute the same numbers, so that one run serves for both."""
        mine = (self.runtime, self.source, self.device, self.options)
        return mine == (other.runtime, other.source, other.device, other.options)


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """What the rounding of a quantised model is held against.

    Attributes:
        unrounded: The same graph without its Quantize/Dequantize nodes, where the quantised graph itself is gold; None
            where gold is what the graph was made from.
        steps: Relative error that the step sizes of those nodes add up to, in quadrature.
    """

    unrounded: Contestant | None
    steps: float


@dataclass(frozen=True, kw_only=True)
class Original:
    """How far a runtime is from the network that a quantised model was made from.

    Attributes:
        relative_rmse: Of the first output.
        top1_agreement: Fraction of pictures decided as the original does, or None where the output is no set of scores.
    """

    relative_rmse: float
    top1_agreement: float | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one runtime came to.

    Attributes:
        runtime: Its name.
        version: Of its library.
        passed: Whether it computes the same function within the budget.
        relative_rmse: The worst output's; infinite where an output is missing, misshapen or not finite.
        budget: That output's allowance.
        top1_agreement: Fraction of pictures decided as gold does, or None where the output is no set of scores.
        reason: In words.
        distances: Per output.
        decisions: Of the first output, or None.
        recorded: Options as the runtime really set them.
        seconds: Time to open and run, for orientation only.
        original: Of a quantised model, how far it is from the network it was made from; else None.
    """

    runtime: str
    version: str
    passed: bool
    relative_rmse: float
    budget: float
    top1_agreement: float | None
    reason: str
    distances: Mapping[str, Distance]
    decisions: Decisions | None
    recorded: Mapping[str, Any]
    seconds: float
    original: Original | None = None


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """All runtimes against the gold.

    Attributes:
        gold: What served as gold, in words.
        pictures: How many inputs were compared.
        names: A name per input, for messages.
        budgets: Allowance per output, of the first runtime's precision.
        outcomes: One per runtime, in the order asked.
        pairs: Relative RMSE of the worst output between two runtimes, by their names; the first is taken as the truth.
        original: What a quantised model was made from, in words, or "".
    """

    gold: str
    pictures: int
    names: Sequence[str]
    budgets: Mapping[str, Budget]
    outcomes: Sequence[Outcome]
    pairs: Mapping[tuple[str, str], float] = field(default_factory=dict)
    original: str = ""

    @property
    def passed(self) -> bool:
        """Whether every runtime passed."""
        return all(outcome.passed for outcome in self.outcomes)


@dataclass(frozen=True)
class Ran:
    """What a contestant computed.

    Attributes:
        outputs: A record per batch.
        version: Of the library.
        recorded: Options as they were really set.
        seconds: Time to open and run.
    """

    outputs: Records
    version: str = ""
    recorded: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def run(contestant: Contestant, batches: Iterable[Feeds]) -> Ran:
    """Runs all batches and keeps the outputs on disk; a scalar output gets a first axis of one."""
    start = time.monotonic()
    kept = Records()
    with open_runtime(
        contestant.runtime, contestant.source, device=contestant.device, options=contestant.options
    ) as runtime:
        for feeds in batches:
            kept.append({name: array if array.ndim else array[None] for name, array in runtime.run(feeds).items()})
        return Ran(kept, runtime.version, dict(runtime.recorded), time.monotonic() - start)


def compare(
    gold: Contestant,
    yardsticks: Sequence[Contestant],
    contestants: Sequence[Contestant],
    batches: Batches,
    *,
    names: Sequence[str],
    summation_lengths: Sequence[int],
    gold_batches: Batches | None = None,
    sizes: Sequence[int] | None = None,
    tolerances: Mapping[str, float] | None = None,
    gold_key: str | None = None,
    quantisation: Quantisation | None = None,
    original: Contestant | None = None,
    progress: Progress = lambda _: None,
) -> ParityReport:
    """Judges every contestant against the gold.

    Args:
        gold: The network in float64.
        yardsticks: Plain float32 evaluations whose noise sets the budget, the median of it where there are several. One
            that can't run the model is left out, as long as another can.
        contestants: The runtimes.
        batches: Feeds; batch sizes may differ, so that a picture's result is seen not to depend on its neighbours.
        names: A name per picture.
        summation_lengths: Terms per output element of each layer.
        gold_batches: The same pictures as the feeds of gold, yardsticks and original, where another model is gold; its
            single output then stands for the contestants' single output, whatever the two are called.
        sizes: Pictures in each of `batches`, where those of `gold_batches` are cut otherwise.
        tolerances: Relative RMSE allowed by output name, where the user set it in place of the derived budget.
        gold_key: What gold's outputs depend on besides the inputs; with it they are kept in the cache.
        quantisation: For a quantised model, in place of `yardsticks`.
        original: The network that a quantised model was made from, in float64; its distance is reported.
        progress: Told what is being run.

    Returns:
        The report; a runtime that fails to run raises instead.

    Raises:
        UsageError: `tolerances` name an output that gold has not.
    """
    theirs = batches if gold_batches is None else gold_batches

    def aligned(found: Records) -> Records:
        return found if sizes is None else _kept(rebatched(found, sizes))

    progress(f"gold: {gold.description}")
    truth = aligned(_gold(gold, theirs, gold_key))
    results: list[Ran] = []
    for contestant in contestants:
        progress(contestant.runtime)
        results.append(run(contestant, batches))
    renamed = _renaming(truth, results[0].outputs) if results and gold_batches is not None else {}
    truth = _kept(_renamed(truth, renamed)) if renamed else truth

    def measured(contestant: Contestant, why: str) -> Records:
        done = [
            r for c, r in zip(contestants, results, strict=True) if gold_batches is None and c.same_work(contestant)
        ]
        if done:
            return done[0].outputs
        progress(f"{why}: {contestant.description}")
        found = aligned(run(contestant, theirs).outputs)
        return _kept(_renamed(found, renamed)) if renamed else found

    if quantisation is not None:
        if quantisation.unrounded is not None:
            noise = _noise(truth, measured(quantisation.unrounded, "without rounding"))
        else:
            noise = dict.fromkeys(_first(truth), quantisation.steps)
        budgets = {"int8": {name: quantised_allowance(value, quantisation.steps) for name, value in noise.items()}}
    else:
        noises = _noises(truth, yardsticks, lambda c: measured(c, "yardstick"))
        described = _listed([c.description for c in yardsticks if c.description in noises])
        budgets = {
            precision: {
                name: allowance(
                    statistics.median(found[name] for found in noises.values()),
                    summation_lengths,
                    yardstick=described,
                    precision=precision,
                )
                for name in next(iter(noises.values()))
            }
            for precision in dict.fromkeys(c.precision for c in contestants) or ["fp32"]
        }
    for allowed in budgets.values():
        allowed.update(_by_hand(tolerances or {}, allowed))
    source = measured(original, "original") if original is not None else None
    outcomes = []
    for contestant, found in zip(contestants, results, strict=True):
        outcome = judge(
            contestant.runtime,
            found.outputs,
            truth,
            budgets["int8" if quantisation is not None else contestant.precision],
            names=names,
            version=found.version,
            recorded=found.recorded,
            seconds=found.seconds,
        )
        outcomes.append(outcome if source is None else replace(outcome, original=_from(source, found.outputs)))
    by_name = {c.runtime: r.outputs for c, r in zip(contestants, results, strict=True)}
    return ParityReport(
        gold=gold.description,
        pictures=len(names),
        names=list(names),
        budgets=next(iter(budgets.values())),
        outcomes=outcomes,
        pairs={(a, b): _between(by_name[a], by_name[b]) for a, b in itertools.permutations(by_name, 2)},
        original=original.description if original is not None else "",
    )


def _kept(records: Iterable[Outputs]) -> Records:
    kept = Records()
    for record in records:
        kept.append(record)
    return kept


def _first(records: Records) -> Outputs:
    return next(iter(records), {})


def _renaming(truth: Records, found: Records) -> dict[str, str]:
    """Returns what gold's single output is called among the contestants', where both have a single one."""
    ours, theirs = list(_first(truth)), list(_first(found))
    return {ours[0]: theirs[0]} if len(ours) == len(theirs) == 1 and ours != theirs else {}


def _renamed(records: Records, names: Mapping[str, str]) -> Iterator[dict[str, NDArray[Any]]]:
    for record in records:
        yield {names.get(name, name): array for name, array in record.items()}


def _gold(gold: Contestant, batches: Batches, key: str | None) -> Records:
    """Returns gold's outputs, from the cache where they were computed before."""
    if key is None:
        return run(gold, batches).outputs
    digest = hashlib.sha256(key.encode())
    for feeds in batches:
        for name, array in sorted(feeds.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    path = files.cache_dir("gold") / f"{digest.hexdigest()}.gold"
    try:
        return _recalled(path)
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile):
        pass  # not there, or damaged: computed again
    truth = run(gold, batches).outputs
    with files.atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w") as target:
        for number, record in enumerate(truth):
            for place, (name, array) in enumerate(record.items()):
                with target.open(f"{number}.{place}.npy", "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
                with target.open(f"{number}.{place}.name", "w") as member:
                    member.write(name.encode())
        target.comment = f"{len(truth)} batches".encode()
    return truth


def _recalled(path: Path) -> Records:
    kept = Records()
    with zipfile.ZipFile(path) as source:
        members = set(source.namelist())
        for number in range(int(source.comment.split()[0])):
            record = {}
            for place in itertools.count():
                if f"{number}.{place}.npy" not in members:
                    break
                with source.open(f"{number}.{place}.npy") as member:
                    array = np.lib.format.read_array(member, allow_pickle=False)
                record[source.read(f"{number}.{place}.name").decode()] = array
            kept.append(record)
    return kept


def _noises(
    truth: Records, yardsticks: Sequence[Contestant], measured: Callable[[Contestant], Records]
) -> dict[str, dict[str, float]]:
    """Returns the noise per output of each yardstick that can run the model, by its description."""
    found: dict[str, dict[str, float]] = {}
    refusal: Exception | None = None
    for yardstick in yardsticks:
        try:
            found[yardstick.description] = _noise(truth, measured(yardstick))
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


def _from(original: Records, found: Records) -> Original:
    """Returns how far the first output is from that of the original."""
    distances, choices = DistanceSum(), DecisionSum()
    scores = False
    for exact, ours in zip(original, found, strict=True):
        a, b = next(iter(exact.values())), next(iter(ours.values()))
        if a.shape != b.shape:
            return Original(relative_rmse=float("inf"), top1_agreement=None)
        distances.add(a, b)
        scores = _are_scores(a)
        if scores:
            choices.add(a, b)
    whole = distances.total()
    return Original(
        relative_rmse=whole.relative_rmse,
        top1_agreement=choices.total(whole.max_abs_per_picture, multiple=0.0).agreement if scores else None,
    )


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
    version: str = "",
    recorded: Mapping[str, Any] | None = None,
    seconds: float = 0.0,
) -> Outcome:
    """Judges the outputs of one runtime, batch by batch, against gold's: as sets of names, shapes, and numbers.

    A missing, extra or misshapen output fails, and so does a NaN or Inf on either side.
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
        if chosen is None and tally.decisions is not None:
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
        version=version,
        passed=passed,
        relative_rmse=error,
        budget=budget.relative_rmse,
        top1_agreement=chosen.agreement if chosen else None,
        reason=_praise(runtime, error, budget, chosen) if passed else "; ".join(problems),
        distances=distances,
        decisions=chosen,
        recorded=recorded or {},
        seconds=seconds,
    )


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


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "nothing"


def _praise(runtime: str, error: float, budget: Budget, chosen: Decisions | None) -> str:
    ratio = error / budget.noise if budget.noise > 0 else float("inf")
    beside = (
        f"{ratio:.1f} × the noise of {budget.yardstick}"
        if np.isfinite(ratio)
        else f"the noise of {budget.yardstick} is 0"
    )
    text = f"{runtime} is {error:.1e} from gold; budget {budget.relative_rmse:.1e}; {beside}"
    if chosen and chosen.excused:
        text += f"; {len(chosen.excused)} near tie{'s' if len(chosen.excused) > 1 else ''} decided otherwise"
    return text


_EXACT = """
    Relu LeakyRelu MaxPool GlobalMaxPool Reshape Flatten Transpose Identity Dropout Squeeze Unsqueeze Concat Split Slice
    Gather Pad Constant ConstantOfShape Shape Expand Tile Neg Abs Clip Max Min ReduceMax ReduceMin Where Equal Greater
    Less ArgMax ArgMin TopK Not And Or Cast Size Range DepthToSpace SpaceToDepth
"""
EXACT_OPERATORS = frozenset(_EXACT.split())
"""Operators that round nothing (LeakyRelu once, in one branch): they move, choose or compare values."""

OPERATOR_ERROR = 16
"""Terms that any other operator counts as: libraries' elementary functions are right within 4 units in the last place
(OpenCL C specification, section 7.4, single precision; most are better), and errors add in quadrature."""


def summation_lengths(path: Path) -> list[int]:
    """Returns, for each operator of an ONNX file that rounds, the terms summed per output element.

    Convolutions and matrix products count with their fan-in, sums with one term, other functions with
    ``OPERATOR_ERROR``.

    Raises:
        BadModel: The file does not pass the gate.
    """
    import onnx

    checked = onnx_gate.check_onnx(path)
    model = onnx.load(str(checked.path), load_external_data=False)
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    lengths = []
    for node in model.graph.node:
        weight = shapes.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type in EXACT_OPERATORS:
            continue
        if node.op_type in ("Conv", "ConvTranspose") and weight is not None and len(weight) >= 3:
            lengths.append(int(np.prod(weight[1:])))
        elif node.op_type == "Gemm" and weight is not None and len(weight) == 2:
            transposed = next((a.i for a in node.attribute if a.name == "transB"), 0)
            lengths.append(weight[1] if transposed else weight[0])
        elif node.op_type == "MatMul" and weight is not None and len(weight) >= 2:
            lengths.append(weight[-2])
        elif node.op_type in ("Add", "Sub", "Mul", "Sum"):
            lengths.append(1)
        else:
            lengths.append(OPERATOR_ERROR)
    return lengths
