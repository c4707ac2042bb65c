"""Parity of a model: which gold, which yardstick, which inputs, and the form each runtime opens."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnet_onnx import __version__
from resnet_onnx.data.feeds import find_picture_input
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.workflow.feeds import feeds_of, need_preprocessing, sample_feeds, specs, takes_pictures
from resnet_onnx.workflow.onnx_form import graph_path, onnx_path
from resnet_onnx.workflow.opening import gold_source, source, tensor_names, tuned
from resnet_onnx.workflow.request import METADATA_PREFIX, UNTUNED, Model, Request, refuse_special
from resnet_onnx.workflow.resolving import resolve
from resnet_onnx.workflow.weights import digest
from runtimes import files, onnx_gate, registry
from runtimes.environment import package_version
from runtimes.errors import BadData, UsageError
from runtimes.spec import Feeds, ModelSource, RuntimeOptions

if TYPE_CHECKING:
    from resnet_onnx.parity.compare import Contestant, ParityReport, Quantisation
    from resnet_onnx.parity.localize import Localisation


def check_parity(
    model: Model,
    runtimes: Sequence[str],
    *,
    gold: str | None = None,
    data: str | None = None,
    images: int = 16,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
    tuning: RuntimeOptions = UNTUNED,
    tolerances: Mapping[str, float] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> ParityReport:
    """Judges runtimes against the float64 gold on real pictures and adversarial ones.

    Args:
        model: The model.
        runtimes: Names of runtimes.
        gold: Another model or checkpoint whose float64 form is the truth; None is the model itself.
        data: Pictures; None takes crops of sample photos.
        images: How many of them.
        seed: Of the crops.
        device: Of the runtimes.
        threads: Of the runtimes.
        tuning: Other options of the runtimes.
        tolerances: Relative RMSE allowed by output name, in place of the derived budget.
        progress: Told what is being run.
    """
    from resnet_onnx.parity.compare import Contestant, Quantisation, compare, summation_lengths

    truth = _truth(model, gold)
    quantised = _is_quantised(model)
    truth_quantised = quantised if truth is model else _is_quantised(truth)
    names, batches, gold_batches = _parity_feeds(model, truth, data, images, seed, adversarial=not quantised)
    gold_runtime, gold_form, described = _graph_gold(truth) if truth_quantised else gold_source(truth)
    original = None
    if truth_quantised and truth.network is not None:
        runtime, form, text = gold_source(truth)
        original = Contestant(runtime=runtime, source=form, description=f"{truth.network.name}, {text}")
    contestants = []
    precision = "int8" if quantised else _budget_precision(model)
    for runtime in runtimes:
        options = tuned(model, runtime, replace(tuning, threads=threads), batches.sizes)
        found = source(model, runtime, device=device, options=options, batches=batches.sizes)
        contestants.append(
            Contestant(
                runtime=runtime,
                source=found,
                device=device,
                options=options,
                precision=registry.adapter(runtime).arithmetic(precision, options, device),
            )
        )
    with tempfile.TemporaryDirectory(prefix="resnet-onnx-") as folder:
        quantisation = None
        if quantised and _output_names(model, truth) <= set(tolerances or ()):
            quantisation = Quantisation(unrounded=None, steps=float("inf"))  # every output is judged by hand
        elif truth_quantised:
            quantisation = _quantisation(truth, True, gold_batches, Path(folder))
        elif quantised:
            quantisation = _quantisation(model, False, batches, Path(folder))
        return compare(
            Contestant(
                runtime=gold_runtime,
                source=gold_form,
                description=described if gold is None else f"{gold}, {described}",
            ),
            [] if quantised else _yardsticks(truth, threads, Path(folder)),
            contestants,
            batches,
            names=names,
            summation_lengths=summation_lengths(onnx_path(truth)),
            gold_batches=None if truth is model else gold_batches,
            sizes=None if gold_batches.sizes == batches.sizes else batches.sizes,
            tolerances=tolerances,
            gold_key=_gold_key(truth, gold_runtime),
            quantisation=quantisation,
            original=original,
            progress=progress,
        )


def _output_names(model: Model, truth: Model) -> set[str]:
    """Returns the names by which outputs are judged: gold's, and the model's own where each has one output."""
    ours, golds = ({spec.name for spec in onnx_gate.check_onnx(onnx_path(one)).outputs} for one in (model, truth))
    return ours if len(ours) == len(golds) == 1 else golds


def _truth(model: Model, gold: str | None) -> Model:
    """Returns the model whose float64 form is the truth, for the same pictures as the model in question.

    A file that says nothing of its preprocessing gets that of the model, which the user may have named; another
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


def _is_quantised(model: Model) -> bool:
    from resnet_onnx.parity.quantised import is_quantised

    if model.engine is not None and model.precision == "int8":
        raise UsageError(
            f"{model.engine} is an engine, and what an int8 model may differ by is told from its ONNX file",
            fix="name the ONNX file that it was built from in place of the engine",
        )
    path = graph_path(model) if model.onnx is not None or model.network is None else None
    return path is not None and is_quantised(path)


def _graph_gold(model: Model) -> tuple[str, ModelSource, str]:
    return (
        registry.GRAPH_RUNTIME,
        ModelSource(path=onnx_path(model), label=model.name),
        "the quantised graph in float64",
    )


def _budget_precision(model: Model) -> str:
    """Returns the precision of a file that is not quantised, which mixed ones count as float32 in."""
    return model.precision if model.precision in ("fp16", "bf16") else "fp32"


def _yardsticks(truth: Model, threads: int | None, folder: Path) -> list[Contestant]:
    """Returns plain float32 evaluations: torch, or for a file without it three that sum in other orders."""
    from resnet_onnx.parity.compare import Contestant
    from resnet_onnx.parity.quantised import float32_twin

    if truth.network is not None:
        options = RuntimeOptions(threads=threads)
        original = source(replace(truth, precision="fp32"), registry.TORCH_RUNTIME)
        return [Contestant(runtime=registry.TORCH_RUNTIME, source=original, options=options, description="torch fp32")]
    path = onnx_path(truth)
    if truth.precision in ("fp16", "bf16"):
        path = float32_twin(path, folder / "float32.onnx")
    form = ModelSource(path=path, label=truth.name)
    plain = RuntimeOptions(threads=1, optimize=False)
    found = [
        Contestant(runtime="ort-cpu", source=form, options=plain, description="ort-cpu without fusion"),
        Contestant(runtime="ort-cpu", source=form, options=RuntimeOptions(threads=threads), description="ort-cpu"),
    ]
    if registry.probe("openvino").available:
        options = RuntimeOptions(threads=threads)
        found.append(Contestant(runtime="openvino", source=form, options=options, description="openvino"))
    return found


def _quantisation(model: Model, own_gold: bool, batches: _Batches, folder: Path) -> Quantisation:
    """Returns what the rounding of a quantised model is held against; see ``parity.quantised``."""
    from resnet_onnx.parity.compare import Contestant, Quantisation
    from resnet_onnx.parity.quantised import step_error, without_rounding

    path = onnx_path(model)
    first = next(iter(batches))
    unrounded = None
    if own_gold:
        # Float32's own error is a ten-thousandth of what rounding to 8 bits does.
        form = ModelSource(path=without_rounding(path, folder / "unrounded.onnx"))
        unrounded = Contestant(runtime="ort-cpu", source=form, description="the graph without its rounding")
    return Quantisation(
        unrounded=unrounded,
        steps=step_error(path, first, weights=not own_gold),
    )


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


def localize_parity(
    model: Model,
    report: ParityReport,
    *,
    gold: str | None = None,
    data: str | None = None,
    images: int = 16,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
    tuning: RuntimeOptions = UNTUNED,
) -> Localisation:
    """Finds the node where each failing runtime of a report begins to differ, on the inputs that show it most.

    Args:
        model: As ``check_parity``.
        report: What it returned.
        gold: As ``check_parity``, like all that follow.
        data: Pictures.
        images: How many of them.
        seed: Of the crops.
        device: Of the runtimes.
        threads: Of the runtimes.
        tuning: Other options of the runtimes.

    Raises:
        UsageError: MODEL is an engine, which shows nothing of its inside, or no runtime opens an ONNX file.
    """
    from resnet_onnx.parity.compare import Contestant
    from resnet_onnx.parity.localize import localize

    if model.engine is not None:
        raise UsageError(f"{model.engine} is an engine, which shows nothing of its inside", fix="name the ONNX file")
    truth = _truth(model, gold)
    if truth.network is not None and (truth.onnx is not None or gold is not None) and not _is_quantised(truth):
        # A fresh export of the weights that are the truth: the file in question can't be its own.
        truth = replace(truth, onnx=None, inputs=(), form=replace(model.form, opset=_exportable(model.form.opset)))
    names, batches, gold_batches = _parity_feeds(model, truth, data, images, seed, adversarial=not _is_quantised(model))
    failed = [outcome for outcome in report.outcomes if not outcome.passed]
    worst = [d.worst_index for outcome in failed for d in outcome.distances.values()]
    place = worst[0] if worst and worst[0] < len(names) else 0
    contestants = [
        Contestant(
            runtime=outcome.runtime,
            source=source(model, outcome.runtime, device=device),
            device=device,
            options=replace(tuning, threads=threads),
        )
        for outcome in report.outcomes
        if "engine" not in registry.adapter(outcome.runtime).opens
    ]
    if not contestants:
        raise UsageError("an engine shows nothing of its inside", fix="add --runtimes ort-cpu")
    return localize(
        onnx_path(model),
        onnx_path(truth),
        contestants,
        _one_input(batches, place, alone=not model.form.batch and len(specs(model)) == 1),
        _one_input(gold_batches, place, alone=not truth.form.batch and len(specs(truth)) == 1),
        failed=[outcome.runtime for outcome in failed],
        precision=_budget_precision(model),
    )


def _one_input(batches: _Batches, place: int, *, alone: bool) -> Feeds:
    """Returns the feeds of one picture, or of the batch that it lies in where it can't be taken out."""
    for feeds, size in zip(batches, batches.sizes, strict=True):
        if place < size:
            return {name: array[place : place + 1] for name, array in feeds.items()} if alone else feeds
        place -= size
    return next(iter(batches))


class _Batches:
    """Feeds of one model, made anew each time they are iterated over.

    Args:
        make: Yields the feeds.
        sizes: Samples in each of them.
    """

    def __init__(self, make: Callable[[], Iterator[Feeds]], sizes: Sequence[int]) -> None:
        self._make = make
        self.sizes = list(sizes)

    def __iter__(self) -> Iterator[Feeds]:
        return self._make()

    def __len__(self) -> int:
        return len(self.sizes)


def _parity_feeds(
    model: Model, truth: Model, data: str | None, images: int, seed: int, *, adversarial: bool = True
) -> tuple[list[str], _Batches, _Batches]:
    """Returns a name per input, and the same inputs as the feeds of the model and of gold.

    A quantised model has no adversarial pictures: they are outside of what it was calibrated for, and where its numbers
    are cut off there it does what it should and is still far from the network that it was made from.
    """
    if not takes_pictures(model) or model.preprocessing is None:
        if data is not None:
            raise UsageError(f"{model.name} takes no pictures, so that --data can't be used")
        count = max(1, min(images, 4))
        feeds = [sample_feeds(model, 1 + index % 3, seed=seed + index) for index in range(count)]
        sizes = [max((len(array) for array in batch.values() if array.ndim), default=1) for batch in feeds]
        names = [f"random feeds {index}" for index, size in enumerate(sizes) for _ in range(size)]
        return names, _Batches(lambda: iter(feeds), sizes), _Batches(lambda: iter(feeds), sizes)
    from resnet_onnx.parity.adversarial import adversarial_pictures, odd_batches
    from resnet_onnx.parity.records import Records, rebatched

    preprocessing = model.preprocessing
    side, gold_side = preprocessing.image_size, need_preprocessing(truth).image_size
    if gold_side != side:
        raise UsageError(
            f"{model.name} takes pictures of {side}×{side}, and gold ({truth.name}) of {gold_side}×{gold_side}",
            fix=f"take the truth from a model for the same pictures: export it with --image-size {side}",
        )
    names, pictures = _pictures(preprocessing, data, images, seed)
    odd_names, odd = adversarial_pictures(preprocessing.image_size, seed=seed)
    if not adversarial:
        odd_names, odd = (), odd[:0]
    names += odd_names
    fixed = model.form.batch
    first: list[NDArray[np.uint8]] = []
    if fixed:
        short = -len(names) % fixed
        filling = names[: min(fixed, len(names) - len(odd_names))]  # as `first` will hold them
        names += [f"{filling[index % len(filling)]} (again)" for index in range(short)]
    sizes = [fixed] * (len(names) // fixed) if fixed else odd_batches(len(names))
    kept = Records()
    everything = itertools.chain(_remembered(pictures, first, fixed or 0), odd, itertools.cycle(first) if fixed else ())
    for size in sizes:
        kept.append({"": np.stack(list(itertools.islice(everything, size)))})

    def ours() -> Iterator[Feeds]:
        return (feeds_of(model, record[""]) for record in kept)

    gold_batch = truth.form.batch
    if gold_batch is None or gold_batch == fixed:
        return names, _Batches(ours, sizes), _Batches(lambda: (feeds_of(truth, r[""]) for r in kept), sizes)
    other = [gold_batch] * -(-len(names) // gold_batch)

    def theirs() -> Iterator[Feeds]:
        filled = itertools.chain(kept, ({"": np.repeat(record[""][:1], gold_batch, axis=0)} for record in kept))
        return (feeds_of(truth, record[""]) for record in rebatched(filled, other))

    return names, _Batches(ours, sizes), _Batches(theirs, other)


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
) -> tuple[list[str], Iterator[NDArray[np.uint8]]]:
    """Returns a name per picture, and the pictures one by one: uint8 [image_size, image_size, 3], RGB."""
    if data is None:
        from resnet_onnx.data.samples import each_sample_picture

        names = [f"sample photo crop {index}" for index in range(images)]
        return names, itertools.islice(each_sample_picture(preprocessing, seed), images)
    from resnet_onnx.data.batches import prepared_picture
    from resnet_onnx.data.datasets import open_dataset

    refuse_special(Path(data), BadData)
    dataset = open_dataset(data, split="test")
    chosen = np.arange(min(images, len(dataset))) * len(dataset) // min(images, len(dataset))
    pictures = (prepared_picture(dataset, int(index), preprocessing) for index in chosen)
    return [dataset.item_name(int(index)) for index in chosen], pictures
