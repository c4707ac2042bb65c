"""Runs every runtime and the gold on the same inputs and judges the difference."""

from __future__ import annotations

import hashlib
import itertools
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.parity.budget import MARGIN_MULTIPLE, Budget, allowance
from resnet_onnx.parity.metrics import Decisions, Distance, decisions, distance
from runtimes import files
from runtimes.errors import UsageError
from runtimes.registry import open_runtime
from runtimes.spec import Feeds, ModelSource, RuntimeOptions

Outputs = dict[str, NDArray[Any]]
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One side of a comparison: a model on a runtime.

    Attributes:
        runtime: Its name.
        source: The model.
        device: Where, or None for the runtime's default.
        options: Threads and precision switches.
        description: What messages call it.
    """

    runtime: str
    source: ModelSource
    device: str | None = None
    options: RuntimeOptions = field(default_factory=RuntimeOptions)
    description: str = ""


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


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """All runtimes against the gold.

    Attributes:
        gold: What served as gold, in words.
        pictures: How many inputs were compared.
        names: A name per input, for messages.
        budgets: Allowance per output.
        outcomes: One per runtime, in the order asked.
        pairs: Relative RMSE of the worst output between two runtimes, by their names; the first is taken as the truth.
    """

    gold: str
    pictures: int
    names: Sequence[str]
    budgets: Mapping[str, Budget]
    outcomes: Sequence[Outcome]
    pairs: Mapping[tuple[str, str], float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every runtime passed."""
        return all(outcome.passed for outcome in self.outcomes)


def collect(contestant: Contestant, batches: Sequence[Feeds]) -> tuple[Outputs, str, Mapping[str, Any]]:
    """Runs all batches and returns the outputs joined along the first axis, the version and the recorded options.

    An output without a first axis (a scalar) gets one, a row per batch.
    """
    with open_runtime(
        contestant.runtime, contestant.source, device=contestant.device, options=contestant.options
    ) as runtime:
        parts: dict[str, list[NDArray[Any]]] = {}
        for feeds in batches:
            for name, array in runtime.run(feeds).items():
                parts.setdefault(name, []).append(array if array.ndim else array[None])
        return {name: _join(arrays) for name, arrays in parts.items()}, runtime.version, dict(runtime.recorded)


def _join(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    if len({array.shape[1:] for array in arrays}) != 1:
        # Batches of differing shape can only be compared flat.
        return np.concatenate([array.reshape(1, -1).ravel() for array in arrays])[None]
    return np.concatenate(arrays)


def compare(
    gold: Contestant,
    yardstick: Contestant,
    contestants: Sequence[Contestant],
    batches: Sequence[Feeds],
    *,
    names: Sequence[str],
    summation_lengths: Sequence[int],
    precision: str = "fp32",
    gold_batches: Sequence[Feeds] | None = None,
    tolerances: Mapping[str, float] | None = None,
    gold_key: str | None = None,
    progress: Progress = lambda _: None,
) -> ParityReport:
    """Judges every contestant against the gold.

    Args:
        gold: The network in float64.
        yardstick: A plain float32 evaluation whose noise sets the budget.
        contestants: The runtimes.
        batches: Feeds; batch sizes may differ, so that a picture's result is seen not to depend on its neighbours.
        names: A name per picture.
        summation_lengths: Terms per output element of each layer.
        precision: Of the model.
        gold_batches: The same pictures as gold's and the yardstick's own feeds, where another model is gold; its single
            output then stands for the contestants' single output, whatever the two are called.
        tolerances: Relative RMSE allowed by output name, where the user set it in place of the derived budget.
        gold_key: What gold's outputs depend on besides the inputs; with it they are kept in the cache.
        progress: Told what is being run.

    Returns:
        The report; a runtime that fails to run raises instead.

    Raises:
        UsageError: `tolerances` name an output that gold has not.
    """
    progress(f"gold: {gold.description}")
    truth = _gold(gold, gold_batches or batches, gold_key)
    outputs: dict[str, tuple[Outputs, str, Mapping[str, Any], float]] = {}
    for contestant in contestants:
        progress(contestant.runtime)
        start = time.monotonic()
        found, version, recorded = collect(contestant, batches)
        outputs[contestant.runtime] = (found, version, recorded, time.monotonic() - start)
    if yardstick in contestants:
        measured = outputs[yardstick.runtime][0]
    else:
        progress(f"yardstick: {yardstick.description}")
        measured, _, _ = collect(yardstick, gold_batches or batches)
    if gold_batches is not None:
        theirs = next((list(found) for found, *_ in outputs.values()), [])
        if len(truth) == len(theirs) == 1:
            truth = {theirs[0]: next(iter(truth.values()))}
            measured = {theirs[0]: next(iter(measured.values()))}
    budgets = {
        name: allowance(
            distance(gold_array, measured[name]).relative_rmse
            if _comparable(gold_array, measured.get(name))
            else np.inf,
            summation_lengths,
            yardstick=yardstick.description,
            precision=precision,
        )
        for name, gold_array in truth.items()
    }
    budgets.update(_by_hand(tolerances or {}, budgets))
    outcomes = [
        judge(c.runtime, found, truth, budgets, names=names, version=version, recorded=recorded, seconds=seconds)
        for c in contestants
        for found, version, recorded, seconds in [outputs[c.runtime]]
    ]
    return ParityReport(
        gold=gold.description,
        pictures=len(names),
        names=list(names),
        budgets=budgets,
        outcomes=outcomes,
        pairs={(a, b): _between(outputs[a][0], outputs[b][0]) for a, b in itertools.permutations(outputs, 2)},
    )


def _gold(gold: Contestant, batches: Sequence[Feeds], key: str | None) -> Outputs:
    """Returns gold's outputs, from the cache where they were computed before."""
    if key is None:
        return collect(gold, batches)[0]
    digest = hashlib.sha256(key.encode())
    for feeds in batches:
        for name, array in sorted(feeds.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    path = files.cache_dir("gold") / f"{digest.hexdigest()}.npz"
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as kept:
            return {str(name): kept[f"a{index}"] for index, name in enumerate(kept["names"])}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # not there, or damaged: computed again
    truth = collect(gold, batches)[0]
    arrays: dict[str, Any] = {f"a{index}": array for index, array in enumerate(truth.values())}
    with files.atomic_file(path) as temporary, open(temporary, "wb") as target:
        np.savez(target, names=np.array(list(truth)), **arrays)
    return truth


def _by_hand(tolerances: Mapping[str, float], budgets: Mapping[str, Budget]) -> dict[str, Budget]:
    for name in tolerances:
        if name not in budgets:
            raise UsageError(f"--tolerance-for {name}: the outputs are {', '.join(budgets)}")
    return {
        name: replace(
            budgets[name], relative_rmse=value, reason=f"set by hand in place of {budgets[name].relative_rmse:.1e}"
        )
        for name, value in tolerances.items()
    }


def _between(a: Outputs, b: Outputs) -> float:
    """Returns the worst output's distance between two runtimes; infinite where outputs are missing or misshapen."""
    if a.keys() != b.keys() or any(a[name].shape != b[name].shape for name in a):
        return float("inf")
    return max((distance(a[name], b[name]).relative_rmse for name in a), default=0.0)


def _comparable(gold: NDArray[Any], found: NDArray[Any] | None) -> bool:
    return found is not None and found.shape == gold.shape


def judge(
    runtime: str,
    found: Outputs,
    gold: Outputs,
    budgets: Mapping[str, Budget],
    *,
    names: Sequence[str],
    version: str = "",
    recorded: Mapping[str, Any] | None = None,
    seconds: float = 0.0,
) -> Outcome:
    """Judges the outputs of one runtime against gold's: as sets of names, shapes, and numbers.

    A missing, extra or misshapen output fails, and so does a NaN or Inf on either side.
    """
    problems: list[str] = []
    missing = [name for name in gold if name not in found]
    extra = [name for name in found if name not in gold]
    if missing:
        problems.append(f"output {', '.join(missing)} is missing")
    if extra:
        problems.append(f"output {', '.join(extra)} is not gold's")
    distances: dict[str, Distance] = {}
    chosen: Decisions | None = None
    for name, truth in gold.items():
        if name in missing:
            continue
        array = found[name]
        if array.shape != truth.shape:
            problems.append(f"'{name}' has shape {list(array.shape)}, gold {list(truth.shape)}")
            continue
        measured = distances[name] = distance(truth, array)
        if not measured.finite:
            who = "gold" if not np.isfinite(truth.astype(np.float64)).all() else runtime
            problems.append(f"'{name}' has NaN or Inf ({who}), first in {_named(names, measured.worst_index)}")
            continue
        problems += _number_problems(name, truth, measured, budgets[name], names)
        if chosen is None and truth.ndim == 2 and truth.shape[1] > 1 and truth.dtype.kind == "f":
            chosen = decisions(truth, array, measured.max_abs_per_picture, multiple=MARGIN_MULTIPLE)
            if chosen.unexcused:
                who = ", ".join(_named(names, index) for index in chosen.unexcused[:3])
                problems.append(f"top-1 differs from gold without the excuse of a near tie in {who}")
    worst = max(distances, key=lambda n: distances[n].relative_rmse / budgets[n].relative_rmse, default=None)
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


def _number_problems(
    name: str, truth: NDArray[Any], measured: Distance, budget: Budget, names: Sequence[str]
) -> list[str]:
    if truth.dtype.kind in "iub":
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


def _named(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else f"input {index}"


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

    checked = files.check_onnx(path)
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
