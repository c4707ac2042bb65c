"""Parity of a model: which gold, which float32 baseline, which inputs, and the form each runtime opens."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.data.feeds import find_picture_input
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.parity.adversarial import LARGE_BATCH, adversarial_pictures, odd_batches
from resnet_onnx.parity.budget import Sum
from resnet_onnx.parity.compare import Comparison, Inputs, ParityReport, Quantisation, Reference, compare
from resnet_onnx.parity.localize import Graph, localize
from resnet_onnx.parity.quantised import (
    float32_twin,
    is_quantised,
    refuse_whole_numbers,
    step_error,
    without_rounding,
)
from resnet_onnx.parity.records import Records, rebatched
from resnet_onnx.parity.running import Batches, gold_outputs, run
from resnet_onnx.parity.summation import sums_of
from resnet_onnx.results.parity import Localisation
from resnet_onnx.version import __version__
from resnet_onnx.workflow.feeds import feeds_of, need_preprocessing, sample_feeds, specs, takes_pictures
from resnet_onnx.workflow.onnx_form import graph_path, onnx_path
from resnet_onnx.workflow.opening import gold_target, source, target, tensor_names
from resnet_onnx.workflow.request import METADATA_PREFIX, UNTUNED, Model, Request, refuse_special
from resnet_onnx.workflow.resolving import resolve
from resnet_onnx.workflow.weights import digest
from runtimes import files, onnx_gate, registry
from runtimes.environment import package_version
from runtimes.errors import BadData, BadModel, OutOfMemory, UnsupportedModel, UsageError
from runtimes.onnx_graph import TrainingMode
from runtimes.spec import Feeds, ModelSource, RuntimeOptions, Target


@dataclass(frozen=True, kw_only=True)
class ParityPlan:
    """What is to be proven of a model, on which runtimes and on which inputs.

    Attributes:
        gold: Another model or checkpoint whose float64 form is the truth; None is the model itself.
        data: Pictures; None takes crops of sample photos.
        tolerances: Relative RMSE allowed by output name, in place of the derived budget.
        batches: Sizes that batches of pictures should have among others, where the model leaves them open.
    """

    runtimes: Sequence[str]
    gold: str | None = None
    data: str | None = None
    images: int = 16
    seed: int = 0
    device: str | None = None
    options: RuntimeOptions = UNTUNED
    tolerances: Mapping[str, float] = field(default_factory=dict)
    batches: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.runtimes:
            raise UsageError("a plan needs at least one runtime")
        if self.images < 1:
            raise UsageError(f"images must be at least 1, not {self.images}")
        for name, value in self.tolerances.items():
            if not 0 <= value < float("inf"):
                raise UsageError(f"the tolerance for {name} must be a finite number of at least 0, not {value}")


def check_parity(model: Model, plan: ParityPlan, *, progress: Callable[[str], None] = lambda _: None) -> ParityReport:
    """Judges runtimes against the float64 gold on real pictures and adversarial ones.

    Where a large batch does not fit into memory, a smaller one is taken and a note says so.
    """
    sides = _sides(model, plan.gold)
    _require_known_operators(sides, plan)
    for each in (sides.model, sides.truth):
        if random := _training(each).random:
            raise BadModel(
                f"{each.name} is in training mode: {random[0]} draws random numbers, so that no two runs agree",
                fix="export it in inference mode, as with model.eval() in torch",
            )
    inputs = _inputs(sides, plan)
    try:
        return _judge(sides, plan, inputs, progress)
    except OutOfMemory:
        if max(inputs.batches.sizes) <= _SMALLER_BATCH or model.form.batch is not None:
            raise
    smaller = _inputs(sides, plan, largest=_SMALLER_BATCH)
    note = f"a batch of {max(inputs.batches.sizes)} does not fit into memory: {_SMALLER_BATCH} is the largest tried"
    return _judge(sides, plan, replace(smaller, notes=(*smaller.notes, note)), progress)


_SMALLER_BATCH = 8


def _judge(sides: _Sides, plan: ParityPlan, inputs: Inputs, progress: Callable[[str], None]) -> ParityReport:
    model, truth = sides.model, sides.truth
    gold = _gold(sides)
    gold = replace(gold, itself=_is_itself(sides, gold))
    original = None
    if sides.truth_quantised and truth.network is not None:
        original = gold_reference(truth)
        original = replace(original, description=f"{truth.network.name}, {original.description}")
    targets = [
        target(model, runtime, device=plan.device, options=plan.options, batches=inputs.batches.sizes)
        for runtime in plan.runtimes
    ]
    with tempfile.TemporaryDirectory(prefix="resnet-onnx-") as folder:
        quantisation = _quantisation(sides, plan, inputs, Path(folder))
        report = compare(
            Comparison(
                gold=replace(gold, description=", ".join(filter(None, (plan.gold, gold.description)))),
                gold_key=_gold_key(truth, gold.target.runtime),
                targets=targets,
                inputs=inputs,
                sums=_sums(sides, inputs),
                baselines=() if quantisation is not None else _baselines(truth, plan.options.threads, Path(folder)),
                quantisation=quantisation,
                precision=_budget_precision(model),
                tolerances=plan.tolerances,
                original=original,
                scores=model.scores.output.name if model.scores.output else None,
            ),
            progress=progress,
        )
    problem = model.scores.problem
    if isinstance(problem, UsageError):  # every output is compared all the same
        report = replace(report, notes=(*report.notes, f"top-1 was not compared: {problem.message} ({problem.fix})"))
    return report


@dataclass(frozen=True)
class _Sides:
    """A model and the one whose float64 form is the truth, and whether their graphs round activations to integers."""

    model: Model
    truth: Model
    quantised: bool
    truth_quantised: bool


def _sides(model: Model, gold: str | None) -> _Sides:
    truth = _truth(model, gold)
    quantised = _is_quantised(model)
    return _Sides(model, truth, quantised, quantised if truth is model else _is_quantised(truth))


def gold_reference(model: Model) -> Reference:
    """Returns the float64 gold of a model: torch in double, or the graph in double."""
    described = "torch float64" if model.network is not None else "the ONNX graph in float64"
    return Reference(target=gold_target(model), description=described)


@dataclass(frozen=True, kw_only=True, eq=False)
class ProvenPictures:
    """A runtime judged on given pictures, with the numbers that it was judged by.

    Attributes:
        gold: Scores of the float64 gold, [picture, class].
        scores: Those of the runtime.
        original: Scores of the network before its precision was changed, in float64; None where it was not.
    """

    report: ParityReport
    gold: NDArray[np.float64]
    scores: NDArray[np.float64]
    original: NDArray[np.float64] | None


def prove_pictures(
    model: Model,
    plan: ParityPlan,
    pictures: NDArray[np.uint8],
    *,
    original: Model | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> ProvenPictures:
    """Judges the plan's first runtime on prepared pictures, uint8 [n, image_size, image_size, 3], RGB.

    A batch that the model fixes is filled up with the first picture.

    Args:
        model: It has to have settled scores.
        plan: Its pictures are not looked at.
        pictures: In the order of the rows of the answer.
        original: The network before a change of precision.
        progress: Told what is being computed.
    """
    sides = _sides(model, None)
    _require_known_operators(sides, plan)
    fixed = model.form.batch
    count = len(pictures)
    sizes = (
        [fixed] * -(-count // fixed)
        if fixed
        else odd_batches(count, largest=min(_SMALLER_BATCH, _largest_batch(model)))
    )
    filled = np.concatenate([pictures, np.repeat(pictures[:1], sum(sizes) - count, axis=0)])
    parts = np.split(filled, np.cumsum(sizes)[:-1])
    names = [f"proof picture {index}" for index in range(len(filled))]
    batches = Batches(lambda: (feeds_of(model, part) for part in parts), sizes)
    report = _judge(sides, plan, Inputs(names=names, batches=batches, pictures=True), progress)
    named = model.scores.settled().name
    gold = _gold(sides).target
    ours = target(model, plan.runtimes[0], device=plan.device, options=plan.options, batches=sizes)
    before = None
    if original is not None:
        theirs = gold_reference(original).target
        fed = Batches(lambda: (feeds_of(original, part) for part in parts), sizes)
        before = _scores_of(gold_outputs(theirs, fed, _gold_key(original, theirs.runtime)), named, count)
    return ProvenPictures(
        report=report,
        gold=_scores_of(gold_outputs(gold, batches, _gold_key(model, gold.runtime)), named, count),
        scores=_scores_of(run(ours, batches).outputs, named, count),
        original=before,
    )


def _scores_of(records: Records, named: str, count: int) -> NDArray[np.float64]:
    """Returns the output that holds the scores of the first `count` pictures, [picture, class]."""
    arrays = [record.get(named, next(iter(record.values()))) for record in records]
    joined: NDArray[np.float64] = np.concatenate(arrays).astype(np.float64)[:count]
    return joined.reshape(count, -1)


def _output_names(model: Model, truth: Model) -> set[str]:
    """Returns the names by which outputs are judged: gold's, and the model's own where each has one output."""
    ours, golds = ({spec.name for spec in onnx_gate.check_onnx(onnx_path(one)).outputs} for one in (model, truth))
    return ours if len(ours) == len(golds) == 1 else golds


def _truth(model: Model, gold: str | None) -> Model:
    """Returns the model whose float64 form is the truth, for the same pictures as the model in question.

    A file without preprocessing in its metadata gets that of the model, which the user may have named; another
    operator set may be needed to export it.
    """
    if gold is None:
        return model
    truth = resolve(Request(model=gold, form=replace(model.form, opset=None)))
    if truth.onnx is None or truth.preprocessing is None or model.preprocessing is None:
        return truth
    if METADATA_PREFIX + "network" in onnx_gate.check_onnx(truth.onnx).metadata:
        return truth
    picture = find_picture_input(specs(truth))
    side = picture.size if picture is not None and picture.size else model.preprocessing.image_size
    resize = max(side, model.preprocessing.resize)
    return replace(truth, preprocessing=replace(model.preprocessing, image_size=side, resize=resize))


def _exportable(opset: int | None) -> int | None:
    """Returns an operator set where a network can be exported in it, else None: the exporter's own."""
    from converters.torch_export import OPSETS

    return opset if opset in OPSETS else None


def _training(model: Model) -> TrainingMode:
    """Returns what of a file that was brought computes as in training; an export of ours has nothing of it."""
    return TrainingMode() if model.onnx is None else onnx_gate.check_onnx(model.onnx).training


def _is_quantised(model: Model) -> bool:
    if model.engine is not None and model.precision == "int8":
        raise UsageError(
            f"{model.engine} is an engine, and what an int8 model may differ by follows from its ONNX file",
            fix="name the ONNX file that it was built from in place of the engine",
        )
    path = graph_path(model) if model.onnx is not None or model.network is None else None
    return path is not None and is_quantised(path)


def _require_known_operators(sides: _Sides, plan: ParityPlan) -> None:
    """Raises ``UnsupportedModel`` where the truth is a graph that can't be evaluated in float64, with what to type."""
    import onnx

    from runtimes.reference import unknown_operators

    truth = sides.truth
    if truth.network is not None and not sides.truth_quantised:
        return
    path = onnx_path(truth)
    unknown = unknown_operators(onnx.load(str(path), load_external_data=False))
    if not unknown:
        return
    other = f"--gold {'MODEL' if plan.gold is None else 'ANOTHER'}"
    if sides.truth_quantised and not plan.tolerances:
        refuse_whole_numbers(path, Graph(path), fix=other)
    raise UnsupportedModel(
        f"{path} has operators outside of ONNX ({', '.join(unknown[:3])}), as ONNX Runtime's optimiser writes them: "
        "its graph can't be evaluated in float64 to be its own truth",
        fix=f"take the truth from the model that it was made from: {other}",
    )


def _gold(sides: _Sides) -> Reference:
    if not sides.truth_quantised:
        return gold_reference(sides.truth)
    source = ModelSource(path=onnx_path(sides.truth), label=sides.truth.name)
    target = Target(runtime=registry.GRAPH_RUNTIME, source=source)
    return Reference(target=target, description="the quantised graph in float64")


def _is_itself(sides: _Sides, gold: Reference) -> bool:
    """Returns whether gold is the very file that is judged: a graph, and the same one byte for byte."""
    if gold.target.runtime != registry.GRAPH_RUNTIME:
        return False
    ours, golds = (onnx_gate.check_onnx(onnx_path(one)).sha256 for one in (sides.model, sides.truth))
    return ours == golds


def _budget_precision(model: Model) -> str:
    """Returns the precision of a file that is not quantised, which mixed ones count as float32 in."""
    return model.precision if model.precision in ("fp16", "bf16") else "fp32"


def _sums(sides: _Sides, inputs: Inputs) -> list[Sum]:
    """Returns the sums of the model's graph for its inputs; those of an engine all round to the engine's precision."""
    path, batches = graph_path(sides.model), inputs.batches
    if path is None:
        path, batches = onnx_path(sides.truth), inputs.gold_batches or inputs.batches
    sums = sums_of(path, {name: array.shape for name, array in next(iter(batches)).items()})
    if sides.model.engine is None:
        return sums
    precision = _budget_precision(sides.model)
    return [replace(each, precision=each.rounds_to(precision)) for each in sums]


def _baselines(truth: Model, threads: int | None, folder: Path) -> list[Reference]:
    """Returns plain float32 evaluations: torch, or for a file without it three that sum in other orders."""
    options = RuntimeOptions(threads=threads)
    if truth.network is not None:
        original = source(replace(truth, precision="fp32"), registry.TORCH_RUNTIME)
        target = Target(runtime=registry.TORCH_RUNTIME, source=original, options=options)
        return [Reference(target=target, description="torch fp32")]
    path = onnx_path(truth)
    opened = ModelSource(path=path, label=truth.name)
    if any(each.rounds_to() != "fp32" for each in sums_of(path)):
        opened = opened.rewritten(float32_twin(path, folder / "float32.onnx"))
    target = Target(runtime="ort-cpu", source=opened, options=options)
    plain = replace(target, options=RuntimeOptions(threads=1, optimize=False))
    found = [
        Reference(target=plain, description="ort-cpu without fusion"),
        Reference(target=target, description="ort-cpu"),
    ]
    if registry.probe("openvino").available:
        found.append(Reference(target=replace(target, runtime="openvino"), description="openvino"))
    return found


def _quantisation(sides: _Sides, plan: ParityPlan, inputs: Inputs, folder: Path) -> Quantisation | None:
    """Returns what the rounding of a quantised model is held against, see ``parity.quantised``; None for another one.

    Where gold is quantised too, its graph without the rounding shows what the rounding does; else its step sizes do.
    """
    if not sides.quantised and not sides.truth_quantised:
        return None
    if sides.quantised and _output_names(sides.model, sides.truth) <= set(plan.tolerances):
        return Quantisation(unrounded=None, steps=float("inf"))  # every output is judged by hand
    if not sides.truth_quantised:
        first = next(iter(inputs.batches))
        return Quantisation(unrounded=None, steps=step_error(onnx_path(sides.model), first, weights=True))
    # Float32's own error is a ten-thousandth of what rounding to 8 bits does.
    path = onnx_path(sides.truth)
    opened = ModelSource(path=path, label=sides.truth.name)
    target = Target(runtime="ort-cpu", source=opened.rewritten(without_rounding(path, folder / "unrounded.onnx")))
    unrounded = Reference(target=target, description="the graph without its rounding")
    return Quantisation(unrounded=unrounded, steps=step_error(path, next(iter(inputs.gold_batches or inputs.batches))))


def _gold_key(truth: Model, runtime: str) -> str:
    """What the outputs of a gold depend on besides its inputs: weights or file, form, and who evaluates it."""
    if truth.network is not None:
        what: dict[str, Any] = {**truth.network.to_json(), "names": tensor_names(truth)}
        tool = "torch"
    else:
        what, tool = {}, "onnx"
    if runtime == registry.GRAPH_RUNTIME:
        checked = onnx_gate.check_onnx(onnx_path(truth))
        data = [files.sha256_file(checked.path.parent / name) for name in checked.external_data]
        what, tool = {"onnx": checked.sha256, "data": data}, "onnx"
    tools = {tool: package_version(tool), "resnet-onnx": __version__}
    return digest({"gold": what, "form": truth.form.to_json(), "runtime": runtime, "tools": tools})


def localize_parity(model: Model, plan: ParityPlan, report: ParityReport) -> Localisation:
    """Finds the node where each failing runtime of a report begins to differ, on the inputs that show it most.

    Raises:
        UsageError: MODEL is an engine, which shows nothing of its inside, or no runtime opens an ONNX file.
    """
    if model.engine is not None:
        raise UsageError(f"{model.engine} is an engine, which shows nothing of its inside", fix="name the ONNX file")
    sides = _sides(model, plan.gold)
    truth = sides.truth
    if truth.network is not None and (truth.onnx is not None or plan.gold is not None) and not sides.truth_quantised:
        # A fresh export of the weights that are the truth: the file in question can't be its own.
        truth = replace(truth, onnx=None, inputs=(), form=replace(model.form, opset=_exportable(model.form.opset)))
        sides = replace(sides, truth=truth)
    inputs = _inputs(sides, plan)
    failed = [outcome for outcome in report.outcomes if not outcome.passed]
    worst = [d.worst_index for outcome in failed for d in outcome.distances.values()]
    place = worst[0] if worst and worst[0] < len(inputs.names) else 0
    targets = [
        Target(
            runtime=outcome.runtime,
            source=source(model, outcome.runtime, device=plan.device),
            device=plan.device,
            options=plan.options,
        )
        for outcome in report.outcomes
        if "engine" not in registry.adapter(outcome.runtime).opens
    ]
    if not targets:
        raise UsageError("an engine shows nothing of its inside", fix="add --runtimes ort-cpu")
    return localize(
        onnx_path(model),
        onnx_path(truth),
        targets,
        _one_input(inputs.batches, place, alone=not model.form.batch and len(specs(model)) == 1),
        _one_input(inputs.gold_batches or inputs.batches, place, alone=not truth.form.batch and len(specs(truth)) == 1),
        failed=[outcome.runtime for outcome in failed],
        precision=_budget_precision(model),
    )


def _one_input(batches: Batches, place: int, *, alone: bool) -> Feeds:
    """Returns the feeds of one picture, or of the batch that it lies in where it can't be taken out."""
    for feeds, size in zip(batches, batches.sizes, strict=True):
        if place < size:
            return {name: array[place : place + 1] for name, array in feeds.items()} if alone else feeds
        place -= size
    return next(iter(batches))


def _inputs(sides: _Sides, plan: ParityPlan, *, largest: int = LARGE_BATCH) -> Inputs:
    """Returns the inputs as feeds of the model and of gold, in batches of at most `largest` where the model allows.

    A quantised model has no adversarial pictures: they are outside of what it was calibrated for, and where its numbers
    are cut off there it does what it should and is still far from the network that it was made from. Nor has one whose
    batch norms divide by the variance of each batch, of which a picture of one colour has none.
    """
    model, truth = sides.model, sides.truth
    if not takes_pictures(model) or model.preprocessing is None:
        return _sample_inputs(model, plan)
    preprocessing = model.preprocessing
    side, gold_side = preprocessing.image_size, need_preprocessing(truth).image_size
    if gold_side != side:
        raise UsageError(
            f"{model.name} takes pictures of {side}×{side}, and gold ({truth.name}) of {gold_side}×{gold_side}",
            fix=f"take the truth from a model for the same pictures: export it with --image-size {side}",
        )
    names, pictures, notes = _pictures(preprocessing, plan.data, plan.images, plan.seed)
    odd_names, odd = adversarial_pictures(preprocessing.image_size, seed=plan.seed)
    if sides.quantised or _training(model).batch_norms:
        odd_names, odd = (), odd[:0]
    names += odd_names
    fixed = model.form.batch
    first: list[NDArray[np.uint8]] = []
    largest = min(largest, _largest_batch(model))
    short = -len(names) % fixed if fixed else max(0, largest + 1 - len(names)) if plan.images >= largest else 0
    before = len(names)
    if short:
        filling = names[: min(fixed or 1, len(names) - len(odd_names))]  # as `first` will hold them
        names += [f"{filling[index % len(filling)]} (again)" for index in range(short)]
    sizes = [fixed] * (len(names) // fixed) if fixed else odd_batches(len(names), largest=largest)
    everything: Iterator[NDArray[np.uint8]] = itertools.chain(_remembered(pictures, first, fixed or 1), odd)
    if plan.batches and not fixed:
        everything = _remembered(everything, first := [], before)
        names, sizes = _with_batches(names, before, sizes, plan.batches, largest)
    again = itertools.cycle(first) if len(names) > before else ()
    everything = itertools.chain(everything, again)
    kept = Records({"": np.stack(list(itertools.islice(everything, size)))} for size in sizes)
    batches = Batches(lambda: (feeds_of(model, record[""]) for record in kept), sizes)
    gold_batch = truth.form.batch
    if truth is model:
        gold_batches = None
    elif gold_batch is None or gold_batch == fixed:
        gold_batches = Batches(lambda: (feeds_of(truth, record[""]) for record in kept), sizes)
    else:
        other = [gold_batch] * -(-len(names) // gold_batch)

        def theirs() -> Iterator[Feeds]:
            filled = itertools.chain(kept, ({"": np.repeat(record[""][:1], gold_batch, axis=0)} for record in kept))
            return (feeds_of(truth, record[""]) for record in rebatched(filled, other))

        gold_batches = Batches(theirs, other)
    return Inputs(
        names=names, batches=batches, gold_batches=gold_batches, notes=notes, pictures=True, adversarial=len(odd_names)
    )


def _with_batches(
    names: list[str], distinct: int, sizes: list[int], batches: Sequence[int], largest: int
) -> tuple[list[str], list[int]]:
    """Adds a batch of each size that is missing, of the `distinct` pictures in turn.

    Where memory or an engine allows less than ``LARGE_BATCH``, none is larger than that.
    """
    more = [size for size in batches if size not in sizes and (size <= largest or largest >= LARGE_BATCH)]
    start = len(names)
    again = [f"{names[index % distinct]} (again)" for index in range(start, start + sum(more))]
    return [*names, *again], [*sizes, *more]


def _largest_batch(model: Model) -> int:
    """Returns the largest batch that an engine of the user's own was built for, or one that is no limit."""
    if model.engine is None:
        return LARGE_BATCH
    from runtimes import engines

    profile = engines.read_record(model.engine).key.profile
    return min((accepted.maximum[0] for accepted in profile.values() if accepted.maximum), default=LARGE_BATCH)


def _sample_inputs(model: Model, plan: ParityPlan) -> Inputs:
    """Returns the inputs of a model that does not take pictures: seeded numbers."""
    if plan.data is not None:
        raise UsageError(f"{model.name} takes no pictures, so that --data can't be used")
    count = max(1, min(plan.images, 4))
    feeds = [sample_feeds(model, 1 + index % 3, seed=plan.seed + index) for index in range(count)]
    sizes = [max((len(array) for array in batch.values() if array.ndim), default=1) for batch in feeds]
    names = [f"random feeds {index}" for index, size in enumerate(sizes) for _ in range(size)]
    batches = Batches(lambda: iter(feeds), sizes)
    return Inputs(names=names, batches=batches, gold_batches=None if plan.gold is None else batches)


def _remembered(
    pictures: Iterable[NDArray[np.uint8]], first: list[NDArray[np.uint8]], count: int
) -> Iterator[NDArray[np.uint8]]:
    """Yields the pictures and notes the first `count` of them."""
    for picture in pictures:
        if len(first) < count:
            first.append(picture)
        yield picture


def _pictures(
    preprocessing: Preprocessing, data: str | None, images: int, seed: int
) -> tuple[list[str], Iterator[NDArray[np.uint8]], tuple[str, ...]]:
    """Returns a name per picture, the pictures one by one (uint8 [image_size, image_size, 3], RGB), and notes."""
    if data is None:
        from resnet_onnx.data.samples import each_sample_picture

        names = [f"sample photo crop {index}" for index in range(images)]
        return names, itertools.islice(each_sample_picture(preprocessing, seed), images), ()
    from resnet_onnx.data.batches import prepared_picture
    from resnet_onnx.data.datasets import open_dataset

    refuse_special(Path(data), BadData)
    dataset = open_dataset(data, split="test")
    chosen = np.arange(min(images, len(dataset))) * len(dataset) // min(images, len(dataset))
    pictures = (prepared_picture(dataset, int(index), preprocessing) for index in chosen)
    return [dataset.item_name(int(index)) for index in chosen], pictures, dataset.notes
