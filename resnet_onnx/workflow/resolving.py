"""From what the user named to a ``Model``: catalog names, weights, checkpoints, ONNX files, engines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from resnet_onnx.data.feeds import find_picture_input, with_channels
from resnet_onnx.data.labels import match_classes, read_labels
from resnet_onnx.data.scores import Scores, class_axis, find_scores
from resnet_onnx.models import catalog, libraries
from resnet_onnx.models.configs import check_image_size
from resnet_onnx.models.network import Network, is_non_commercial
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.workflow.feeds import input_spec
from resnet_onnx.workflow.request import (
    METADATA_PREFIX,
    NAMED_WEIGHTS,
    OUTPUT_NAME,
    Model,
    OnnxForm,
    Request,
    check_request,
    entry_of,
    kind_of,
)
from resnet_onnx.workflow.weights import (
    catalog_labels,
    fitted_weights,
    overridden,
    overridden_labels,
    overridden_preprocessing,
    published_weights,
    random_weights,
    read_network,
    source_of,
)
from runtimes import files, onnx_arithmetic, onnx_gate
from runtimes.errors import BadData, BadModel, BadWeights, UsageError, UserError
from runtimes.spec import TensorSpec


def resolve(request: Request) -> Model:
    """Finds out everything about the model that the user named.

    Raises:
        UsageError: Options contradict each other or name nothing.
        BadModel: An ONNX file did not pass the gate.
        BadWeights: Weights can't be read or don't fit.
        NetworkUnavailable: ``--weights imagenet`` or ``pretrained`` without a network.
    """
    check_request(request)
    model = _resolve(request)
    if request.labels is None or model.labels is None:
        return model
    read = read_labels(request.labels).for_outputs(len(model.labels), request.labels)
    return replace(model, label_ids=read.ids, notes=(*model.notes, *read.notes))


def _resolve(request: Request) -> Model:
    kind = kind_of(request)
    if kind == "onnx":
        return _from_onnx(request, onnx_gate.check_onnx(Path(str(request.model))))
    if kind == "engine":
        return _from_engine(request, Path(str(request.model)))
    if kind == "folder":
        if request.weights is not None:
            raise UsageError(f"{request.model} is a checkpoint and has its own weights; leave --weights out")
        return _from_network(overridden(read_network(Path(str(request.model))), request), (), request)
    if kind == "weights":
        if request.name is None:
            raise UsageError(
                f"{request.model} holds weights without an architecture",
                fix="name it: --model NAME (resnet-onnx models)",
            )
        if request.weights is not None:
            raise UsageError(f"weights were given twice: {request.model} and --weights {request.weights}")
        return _from_network(*fitted_weights(request, Path(str(request.model))), request)
    if request.weights in (None, "random"):
        return _from_network(*random_weights(request), request)
    if request.weights in NAMED_WEIGHTS:
        return _from_network(*published_weights(request), request)
    path = Path(str(request.weights))
    if path.is_dir():
        network = read_network(path)
        entry = entry_of(request)
        if replace(entry.config, num_classes=network.config.num_classes) != network.config:
            raise BadWeights(f"the checkpoint {path} holds {network.name}, not {entry.name}")
        return _from_network(overridden(network, request), (), request)
    return _from_network(*fitted_weights(request, path), request)


def _from_network(network: Network, notes: tuple[str, ...], request: Request) -> Model:
    output = TensorSpec(OUTPUT_NAME, np.dtype(np.float32), ("batch", network.config.num_classes))
    return Model(
        name=network.name,
        network=network,
        form=request.form,
        preprocessing=network.preprocessing,
        scores=find_scores([output], network.name, named=request.output_name),
        labels=network.labels,
        trained=network.trained,
        notes=(*_notes(network), *notes),
    )


def _notes(network: Network) -> tuple[str, ...]:
    if not network.trained:
        return ("random weights: good for throughput and parity, not for predictions",)
    if is_non_commercial(network.weights_license):
        return (f"the license of its weights, {network.weights_license}, allows no commercial use",)
    return ()


def _from_engine(request: Request, path: Path) -> Model:
    """An engine has no metadata of its own: that of its ONNX file lies beside it. Nothing is executed here."""
    from runtimes import engines

    record = engines.read_record(path)
    inputs, outputs = engines.described_specs(record)
    checked = onnx_gate.CheckedModel(
        path=path,
        sha256=record.key.model_sha256,
        size_bytes=record.size_bytes,
        metadata=dict(record.metadata),
        opset=0,
        inputs=inputs,
        outputs=outputs,
        external_data=(),
        has_manifest=False,
    )
    model = _from_onnx(request, checked)
    return replace(model, onnx=None, engine=path, form=replace(model.form, opset=None))


def _from_onnx(request: Request, checked: onnx_gate.CheckedModel) -> Model:
    path = checked.path
    record = checked.metadata.get(METADATA_PREFIX + "network")
    if record is None:
        return _foreign(request, checked)
    try:
        values = json.loads(record)
        form = json.loads(checked.metadata[METADATA_PREFIX + "form"])
        sha = str(values["weights_sha256"])
        onnx_form = OnnxForm(
            input=form["input"],
            layout=form["layout"],
            batch=None if form["batch"] == "dynamic" else int(form["batch"]),
            opset=checked.opset,
        )
        network = Network.from_json(values, weights=Path())
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, UserError) as error:
        reason = error.message if isinstance(error, UserError) else repr(error)
        raise BadModel(f"{path}: its resnet_onnx metadata can't be read ({reason})", fix="export it again") from error
    _check_form(checked, network, onnx_form)
    if onnx_form.input == "uint8" and (request.mean or request.std):
        raise UsageError(f"{path} has its normalisation in the graph: --mean and --std can't change it")
    side = network.preprocessing.image_size
    if request.image_size not in (None, side):
        raise UsageError(
            f"{path} takes pictures of {side}×{side}, not {request.image_size}", fix="export it with --image-size"
        )
    network = overridden(network, request)
    if request.weights is not None:
        torch_form: Network | None = _original_weights(request, network)
    else:
        kept = files.find_by_content("weights", ".safetensors", sha)
        torch_form = None if kept is None else replace(network, weights=kept)
    classes = network.config.num_classes
    scores = find_scores(checked.outputs, path.stem, named=request.output_name, fits=lambda count: count == classes)
    precision, noted = _precision(checked)
    return Model(
        name=path.stem,
        onnx=path,
        network=torch_form,
        form=onnx_form,
        inputs=checked.inputs,
        preprocessing=network.preprocessing,
        scores=scores,
        labels=network.labels,
        precision=precision,
        trained=network.trained,
        notes=(*_notes(network), *noted, *checked.notes, *_output_notes(checked, scores)),
    )


def _precision(checked: onnx_gate.CheckedModel) -> tuple[str, tuple[str, ...]]:
    """Returns what a file computes in, which its graph says, and notes; raises as ``require_true_metadata``."""
    if not checked.opset:  # an engine, whose record holds the metadata that it was built from
        return checked.metadata.get("precision", "fp32"), ()
    notes = onnx_arithmetic.require_true_metadata(checked)
    return onnx_arithmetic.graph_precision(checked.path), notes


def _check_form(checked: onnx_gate.CheckedModel, network: Network, form: OnnxForm) -> None:
    """Raises ``BadModel`` where the metadata describes another input than the graph has."""
    described = input_spec(network.preprocessing, form)
    found = checked.inputs[0]
    same = len(found.shape) == 4 and all(
        isinstance(a, str) if isinstance(b, str) else a == b for a, b in zip(found.shape, described.shape, strict=True)
    )
    if len(checked.inputs) != 1 or not same or (found.dtype == np.uint8) != (described.dtype == np.uint8):
        raise BadModel(
            f"{checked.path}: its resnet_onnx metadata describes the input {described}, "
            f"the graph has {', '.join(map(str, checked.inputs))}",
            fix="export it again",
        )


def _original_weights(request: Request, network: Network) -> Network:
    """The torch form of an ONNX file made here, from weights that the user names."""
    from resnet_onnx.models.fitting import fit
    from resnet_onnx.models.weights import store_state_dict
    from resnet_onnx.models.weights_file import read_weights_file

    if request.weights in NAMED_WEIGHTS:
        raise UsageError(f"{request.model} has its weights in it: --weights names the file that they came from")
    path = Path(str(request.weights))
    if path.is_dir():
        named = read_network(path)
        if named.config != network.config:
            raise BadWeights(f"{path} holds {named.name} with another architecture than {request.model} was made from")
        return replace(network, weights=named.weights, weights_sha256=named.weights_sha256)
    fitted = fit(network.config, read_weights_file(path), entry=request.weights_entry)
    if fitted.config != network.config:
        raise BadWeights(f"{path} does not fit the architecture that {request.model} was made from")
    stored = store_state_dict(fitted.state)
    return replace(network, weights=stored[0], weights_sha256=stored[1])


def _foreign(request: Request, checked: onnx_gate.CheckedModel) -> Model:
    """An ONNX file that was not made here: what its inputs show, and what the user adds."""
    checked = replace(checked, inputs=_with_channels(checked))
    picture = find_picture_input(checked.inputs)
    notes = list(checked.notes)
    preprocessing: Preprocessing | None = None
    form = OnnxForm(opset=checked.opset)
    if picture is not None:
        size = picture.size or request.image_size or 224
        if request.image_size not in (None, size):
            raise UsageError(f"{checked.path} takes pictures of {size}×{size}, not {request.image_size}")
        base = Preprocessing(image_size=size, resize=size if size < 64 else round(size * 256 / 224))
        preprocessing = overridden_preprocessing(base, request)
        uint8 = picture.spec.dtype == np.uint8
        batch = picture.spec.shape[0]
        form = OnnxForm(
            input="uint8" if uint8 else "float32",
            layout=picture.layout if uint8 else "NCHW",
            batch=batch if isinstance(batch, int) else None,
            opset=checked.opset,
        )
        if not uint8 and request.mean is None and request.std is None:
            notes.append(
                "the file does not say how it was normalised: ImageNet's mean and std are assumed (--mean, --std)"
            )
    network = None
    if request.weights is not None:
        if request.name is None:
            raise UsageError("--weights beside a foreign ONNX file needs its architecture", fix="add --model NAME")
        named = replace(request, model=None, labels=None, image_size=None, resize=None, output_name=None)
        found, left_out = fitted_weights(named, Path(request.weights))
        network = overridden(found, replace(request, labels=None))
        notes += left_out
        preprocessing = preprocessing and network.preprocessing
    fits = None if request.labels is None else read_labels(request.labels).fits
    scores = find_scores(checked.outputs, checked.path.stem, named=request.output_name, fits=fits)
    notes += _output_notes(checked, scores)
    classes = class_axis(scores.output) if scores.output is not None else None
    labels = overridden_labels(request, classes if isinstance(classes, int) else None, None)
    precision, noted = _precision(checked)
    return Model(
        name=checked.path.stem,
        onnx=checked.path,
        network=network,
        form=form,
        inputs=checked.inputs,
        preprocessing=preprocessing,
        scores=scores,
        labels=labels,
        precision=precision,
        notes=(*notes, *noted),
    )


def _with_channels(checked: onnx_gate.CheckedModel) -> tuple[TensorSpec, ...]:
    """Returns the inputs of a file; where one leaves its channels open and a convolution of 3 reads it, they are 3."""
    known = with_channels(checked.inputs)
    if known == checked.inputs or not checked.opset:  # an engine has no operator set
        return checked.inputs
    import onnx

    name = known[0].name
    graph = onnx.load(str(checked.path), load_external_data=False).graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    readers = [node for node in graph.node if name in node.input]
    rgb = readers and all(n.op_type == "Conv" and weights.get(n.input[1], (0, 0))[1] == 3 for n in readers)
    return known if rgb else checked.inputs


def _output_notes(checked: onnx_gate.CheckedModel, scores: Scores) -> tuple[str, ...]:
    """Returns which outputs are left aside, in words."""
    odd = "; ".join(checked.odd_outputs.values())
    return (
        *([f"not read, since it holds no numbers: output {odd}"] if odd else []),
        *([scores.note] if scores.note else []),
    )


def training_entry(
    name: str,
    *,
    image_size: int | None = None,
    resize: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> catalog.CatalogEntry:
    """Returns a network of the catalog or of a library with the preprocessing that a training requests."""
    entry = libraries.lookup(name)
    asked = Request(image_size=image_size, resize=resize, mean=mean, std=std)
    preprocessing = overridden_preprocessing(entry.preprocessing, asked)
    check_image_size(entry.config, entry.name, preprocessing.image_size)
    return replace(entry, preprocessing=preprocessing)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a training starts from.

    Attributes:
        description: For people: whose weights they are, and what became of the head.
        license: Of the weights, as their source states it; or None.
    """

    state: Mapping[str, Any]
    description: str
    license: str | None = None


def initial_state(
    entry: catalog.CatalogEntry, weights: str, classes: Sequence[str], *, seed: int, weights_entry: str | None = None
) -> Start:
    """Returns what a training starts from; the head is kept only where it answers with the same classes.

    The classes are those to train on, in the order of the outputs; the seed decides the values of a head drawn anew.

    Raises:
        BadWeights: The weights don't fit the network.
        UsageError: They are not trained, or the file holds several networks.
    """
    import torch

    from resnet_onnx.models.build import build
    from resnet_onnx.models.configs import with_classes
    from resnet_onnx.models.fitting import classifier_name, fit
    from resnet_onnx.models.stated_preprocessing import stated_license
    from resnet_onnx.models.weights_file import read_weights_file

    problem = ""
    if Path(weights).is_file():
        file = read_weights_file(Path(weights))
        fitted = fit(entry.config, file, entry=weights_entry, head=False)
        config, state, problem = fitted.config, fitted.state, fitted.head_problem
        labels, source = catalog_labels(entry, config.num_classes), source_of(Path(weights), fitted.entry)
        license = stated_license(file)
    else:
        network = resolve(Request(name=entry.name, weights=weights)).network  # a folder may have its name
        if network is None or not network.trained:
            raise UsageError(
                "--weights names trained weights to start from",
                fix="--weights imagenet (pretrained for timm:NAME and torchvision:NAME), or a file or checkpoint",
            )
        config, state, labels = network.config, network.load().state_dict(), network.labels
        source, license = network.weights_source, network.weights_license
    if not problem and config.num_classes == len(classes) and _same_classes(classes, labels):
        unknown = "" if labels else ", whose outputs are taken for the classes in their order"
        return Start(state=state, description=f"{source}, with its head{unknown}", license=license)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = build(with_classes(config, len(classes))).state_dict()
    head = f"{classifier_name(config)}."
    return Start(
        state={name: tensor if name.startswith(head) else state[name] for name, tensor in fresh.items()},
        description=f"{source}; head drawn anew (seed {seed}) for {len(classes)} classes",
        license=license,
    )


def _same_classes(classes: Sequence[str], labels: Sequence[str] | None) -> bool:
    """Whether a network with as many outputs as `classes` gives them these meanings; unknown labels may be the same."""
    if labels is None:
        return True
    try:
        match_classes(classes[:1], labels, len(labels))  # all of them also match by their order, one only by its name
        return bool((match_classes(classes, labels, len(labels)) == np.arange(len(classes))).all())
    except BadData:
        return False
