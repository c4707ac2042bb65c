"""Parity of a model: which gold, which yardstick, which inputs, and the form each runtime opens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnet_onnx import __version__
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.workflow.feeds import feeds_of, picture_input, sample_feeds, specs
from resnet_onnx.workflow.onnx_form import onnx_path
from resnet_onnx.workflow.opening import ENGINE_RUNTIMES, gold_source, source, tensor_names, tuned
from resnet_onnx.workflow.request import UNTUNED, Model, Request, refuse_special
from resnet_onnx.workflow.resolving import resolve
from resnet_onnx.workflow.weights import digest
from runtimes import files
from runtimes.environment import package_version
from runtimes.errors import BadData, UsageError
from runtimes.spec import Feeds, RuntimeOptions

if TYPE_CHECKING:
    from resnet_onnx.parity.compare import ParityReport
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
    from resnet_onnx.parity.compare import Contestant, compare, summation_lengths

    truth = model if gold is None else resolve(Request(model=gold, form=model.form))
    names, batches, gold_batches = _parity_feeds(model, truth, data, images, seed)
    gold_runtime, gold_form, described = gold_source(truth)
    lengths = summation_lengths(onnx_path(truth))
    if truth.network is not None:
        untuned = RuntimeOptions(threads=threads)
        yardstick = Contestant(
            runtime="torch", source=source(truth, "torch"), options=untuned, description="torch fp32"
        )
    else:
        plain = RuntimeOptions(threads=1, optimize=False)
        yardstick = Contestant(
            runtime="ort-cpu", source=source(truth, "ort-cpu"), options=plain, description="ort-cpu fp32 without fusion"
        )
    sizes = [len(array) for batch in batches for array in batch.values() if array.ndim]
    contestants = []
    for runtime in runtimes:
        options = tuned(model, runtime, replace(tuning, threads=threads), sizes)
        found = source(model, runtime, device=device, options=options, batches=sizes)
        contestants.append(Contestant(runtime=runtime, source=found, device=device, options=options))
    return compare(
        Contestant(
            runtime=gold_runtime, source=gold_form, description=described if gold is None else f"{gold}, {described}"
        ),
        yardstick,
        contestants,
        batches,
        names=names,
        summation_lengths=lengths,
        precision=model.precision if model.precision in ("fp16", "bf16") else "fp32",
        gold_batches=None if truth is model else gold_batches,
        tolerances=tolerances,
        gold_key=_gold_key(truth, gold_runtime),
        progress=progress,
    )


def _gold_key(truth: Model, runtime: str) -> str:
    """What the outputs of a gold depend on besides its inputs: weights or file, form, and who evaluates it."""
    if truth.network is not None:
        what: dict[str, Any] = {**truth.network.to_json(), "names": tensor_names(truth)}
        tool = "torch"
    else:
        what = {"onnx": files.check_onnx(onnx_path(truth)).sha256}
        tool = "onnx"
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
    truth = model if gold is None else resolve(Request(model=gold, form=model.form))
    if truth.network is not None and (truth.onnx is not None or gold is not None):
        # A fresh export of the weights that are the truth: the file in question can't be its own.
        truth = replace(truth, onnx=None, inputs=(), form=model.form)
    names, batches, gold_batches = _parity_feeds(model, truth, data, images, seed)
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
        if outcome.runtime not in ENGINE_RUNTIMES
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
        precision=model.precision if model.precision in ("fp16", "bf16") else "fp32",
    )


def _one_input(batches: Sequence[Feeds], place: int, *, alone: bool) -> Feeds:
    """Returns the feeds of one picture, or of the batch that it lies in where it can't be taken out."""
    for feeds in batches:
        size = max((len(array) for array in feeds.values() if array.ndim), default=1)
        if place < size:
            return {name: array[place : place + 1] for name, array in feeds.items()} if alone else feeds
        place -= size
    return batches[0]


def _parity_feeds(
    model: Model, truth: Model, data: str | None, images: int, seed: int
) -> tuple[list[str], list[Feeds], list[Feeds]]:
    if picture_input(specs(model)) is None or model.preprocessing is None:
        if data is not None:
            raise UsageError(f"{model.name} takes no pictures, so that --data can't be used")
        count = max(1, min(images, 4))
        feeds = [sample_feeds(model, 1 + index % 3, seed=seed + index) for index in range(count)]
        sizes = [max((len(array) for array in batch.values() if array.ndim), default=1) for batch in feeds]
        names = [f"random feeds {index}" for index, size in enumerate(sizes) for _ in range(size)]
        return names, feeds, feeds
    from resnet_onnx.parity.adversarial import adversarial_pictures, odd_batches

    preprocessing = model.preprocessing
    names, pictures = _pictures(preprocessing, data, images, seed)
    odd_names, odd = adversarial_pictures(preprocessing.image_size, seed=seed)
    names += odd_names
    pictures = np.concatenate([pictures, odd])
    fixed = model.form.batch
    if fixed:
        short = -len(pictures) % fixed
        repeats = np.arange(short) % len(pictures)
        names += [f"{names[index]} (again)" for index in repeats]
        pictures = np.concatenate([pictures, pictures[repeats]])
    sizes = [fixed] * (len(pictures) // fixed) if fixed else odd_batches(len(pictures))
    edges = np.cumsum(sizes)[:-1]
    parts = np.split(pictures, edges)
    other = parts if truth.form.batch is None else [pictures[i : i + truth.form.batch] for i in range(len(pictures))]
    return names, [feeds_of(model, part) for part in parts], [feeds_of(truth, part) for part in other]


def _pictures(
    preprocessing: Preprocessing, data: str | None, images: int, seed: int
) -> tuple[list[str], NDArray[np.uint8]]:
    if data is None:
        from resnet_onnx.data.samples import sample_pictures

        return [f"sample photo crop {index}" for index in range(images)], sample_pictures(images, preprocessing, seed)
    from resnet_onnx.data.batches import prepared_picture
    from resnet_onnx.data.datasets import open_dataset

    refuse_special(Path(data), BadData)
    dataset = open_dataset(data, split="test")
    chosen = np.arange(min(images, len(dataset))) * len(dataset) // min(images, len(dataset))
    pictures = [prepared_picture(dataset, int(index), preprocessing) for index in chosen]
    return [dataset.item_name(int(index)) for index in chosen], np.stack(pictures)
