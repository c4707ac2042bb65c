"""The only joiner: catalog name → checkpoint → ONNX → precision → engine → open runtime.

Everything a command needs to know about MODEL is settled here once: ``resolve`` turns what the user named into a
``Model``; ``source`` gives the form of it that a runtime opens, exporting or building into the cache where needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from resnet_onnx import __version__
from resnet_onnx.models import catalog
from resnet_onnx.models.configs import NetworkConfig, Shortcut, Variant, config_to_json
from resnet_onnx.models.network import Network
from resnet_onnx.models.preprocessing import Layout, Preprocessing
from runtimes import files
from runtimes.base import Runtime
from runtimes.environment import describe_machine, package_version
from runtimes.errors import BadData, BadModel, BadPicture, BadWeights, RuntimeUnavailable, UsageError, UserError
from runtimes.registry import open_runtime
from runtimes.spec import Feeds, ModelSource, RuntimeOptions, TensorSpec, TorchProgram

if TYPE_CHECKING:
    from resnet_onnx.evaluation import Evaluation
    from resnet_onnx.parity.compare import ParityReport
    from resnet_onnx.parity.localize import Localisation
    from resnet_onnx.prediction import Predictions
    from runtimes.engines import Profile

METADATA_PREFIX = "resnet_onnx."
ENGINE_SUFFIXES = (".engine", ".plan")
ENGINE_RUNTIMES = ("tensorrt", "tensorrt-rtx")
INPUT_NAME, OUTPUT_NAME = "input", "logits"
RANDOM_PICTURES = 8
"""Pictures that set the batch-norm statistics of random weights: enough that deep activations stay sane, few enough
that they cost less than the export."""

_IMAGE_SIDES = (8, 4096)
_UNTUNED = RuntimeOptions()


@dataclass(frozen=True, kw_only=True)
class OnnxForm:
    """How a network is, or will be, written as ONNX.

    Attributes:
        input: Element type of the input; ``uint8`` has the normalisation in the graph.
        layout: Of a uint8 input; a float32 input is always NCHW.
        batch: Fixed batch, or None for a dynamic one.
        opset: Operator set; None is the exporter's default.
    """

    input: Literal["float32", "uint8"] = "float32"
    layout: Layout = "NCHW"
    batch: int | None = None
    opset: int | None = None

    def __post_init__(self) -> None:
        if self.input not in ("float32", "uint8"):
            raise UsageError(f"input is float32 or uint8, not '{self.input}'")
        if self.layout not in get_args(Layout):
            raise UsageError(f"layout is NCHW or NHWC, not '{self.layout}'")
        if self.input == "float32" and self.layout != "NCHW":
            raise UsageError("the NHWC layout is for --input uint8; a float32 input is NCHW")

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return {"input": self.input, "layout": self.layout, "batch": self.batch or "dynamic"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user said about a model.

    Attributes:
        model: MODEL: a catalog name, an ``.onnx`` file, an engine, a checkpoint folder or a weights file.
        name: ``--model``: the architecture of a weights file.
        weights: ``--weights``: ``random``, ``imagenet`` or a file or folder; None is the default of the kind.
        seed: Of random weights.
        variant: ``v1`` or ``v1.5``.
        shortcut: The paper's option A, B or C.
        image_size: Overrides the catalog's.
        mean: Overrides the model's own.
        std: Overrides the model's own.
        labels: ``--labels``: a file, ``imagenet`` or ``cifar10``.
        form: How it should be exported.
    """

    model: str | None = None
    name: str | None = None
    weights: str | None = None
    seed: int = 0
    variant: Variant | None = None
    shortcut: Shortcut | None = None
    image_size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    labels: str | None = None
    form: OnnxForm = OnnxForm()


@dataclass(frozen=True, kw_only=True)
class Model:
    """A resolved model: everything known about it, in whatever forms it has.

    Attributes:
        name: Short name for result rows.
        onnx: The user's own ONNX file, or None where one is exported into the cache when needed.
        engine: The user's own engine, which stands in for an ONNX file; or None.
        network: The torch form, or None where it is not at hand.
        form: The ONNX form: that of the file, or the one to export.
        inputs: Specs of the ONNX inputs, or () where nothing was exported yet.
        preprocessing: From a picture to the input, or None for a model that takes no pictures.
        labels: One name per output, or None.
        precision: Of the arithmetic in the file.
        trained: Whether predictions mean anything; None where nobody said.
        notes: What the user should read before the result.
    """

    name: str
    onnx: Path | None = None
    engine: Path | None = None
    network: Network | None = None
    form: OnnxForm = OnnxForm()
    inputs: tuple[TensorSpec, ...] = ()
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] | None = None
    precision: str = "fp32"
    trained: bool | None = None
    notes: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """One line for people."""
        parts = [self.name]
        config = self.network.config if self.network else None
        if self.onnx is None and config is not None and getattr(config, "block", "") == "bottleneck":
            parts[0] += f" {getattr(config, 'variant', '')}"
        parts.append(self.precision)
        if self.preprocessing is not None:
            parts.append(f"{self.preprocessing.image_size}×{self.preprocessing.image_size}")
        if self.network is not None:
            parts.append(self.network.weights_source)
        return " · ".join(parts)


# ---- what the user named --------------------------------------------------------------------------------------------


def check_request(request: Request) -> None:
    """Raises ``UsageError`` or ``BadModel`` for what can be told before any library loads."""
    kind = _kind(request)
    if kind == "catalog":
        _entry(request)
    if kind == "engine" and request.name and not request.weights:
        raise UsageError(f"{request.model} is an engine: --model is for weights files and catalog names")
    if kind == "onnx" and request.name and not request.weights:
        raise UsageError(f"{request.model} is an ONNX file: --model is for weights files and catalog names")
    if kind != "catalog" and (request.variant or request.shortcut) and not request.name:
        raise UsageError("--variant and --shortcut are for catalog names")
    if request.weights is None or request.weights in ("random", "imagenet"):
        return
    if not request.weights or not Path(request.weights).exists():
        raise BadWeights(f"--weights '{request.weights}': no such file or folder", fix="random, imagenet, or a path")
    _refuse_special(Path(request.weights), BadWeights)


def _refuse_special(path: Path, error: type[UserError]) -> None:
    """Raises `error` for a pipe, socket or device: reading one may never end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise error(f"{path} is a pipe, socket or device, expected a file or folder")


def _kind(request: Request) -> Literal["catalog", "onnx", "engine", "folder", "weights"]:
    if request.model is None:
        return "catalog"
    if not request.model:
        raise UsageError("MODEL is empty", fix="name one: resnet-onnx models lists them")
    path = Path(request.model)
    _refuse_special(path, BadModel)
    if path.is_dir():
        return "folder"
    if path.suffix.lower() == ".onnx":
        if not path.exists():
            raise BadModel(f"no such file: {path}", fix="check the path, or make one: resnet-onnx export --depth 50")
        return "onnx"
    if path.suffix.lower() in ENGINE_SUFFIXES:
        if not path.exists():
            raise BadModel(f"no such file: {path}", fix="check the path, or build one: resnet-onnx build")
        return "engine"
    if path.exists():
        return "weights" if path.suffix.lower() in (".pth", ".th", ".pt", ".safetensors", ".bin") else _sniff(path)
    if path.suffix or len(path.parts) > 1:
        raise BadModel(
            f"no such file: {path}", fix="MODEL is a catalog name, an .onnx file, a checkpoint folder or a weights file"
        )
    return "catalog"


def _sniff(path: Path) -> Literal["onnx", "weights"]:
    with open(path, "rb") as handle:
        head = handle.read(16)
    torch_like = head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")) or head[8:9] == b"{"
    return "weights" if torch_like else "onnx"


def _entry(request: Request) -> catalog.CatalogEntry:
    name = request.model if request.model is not None and _kind(request) == "catalog" else request.name
    if request.model is not None and request.name is not None and _kind(request) == "catalog":
        raise UsageError(f"two architectures were named: '{request.model}' and --model {request.name}")
    if name is None:
        raise UsageError("no model was named", fix="name one: resnet-onnx models lists them")
    entry = catalog.lookup(name)
    if request.variant == "v1" and entry.variant == "v1.5":
        entry = catalog.by_depth(entry.depth, "v1")
    elif request.variant == "v1.5" and entry.variant == "v1" and name.endswith("-v1"):
        raise UsageError(f"'{name}' is the v1 network, --variant v1.5 is another", fix=f"use {name[:-3]}")
    if request.shortcut is not None:
        entry = catalog.with_shortcut(entry, request.shortcut)
    return entry


def resolve(request: Request) -> Model:
    """Finds out everything about the model that the user named.

    Raises:
        UsageError: Options contradict each other or name nothing.
        BadModel: An ONNX file did not pass the gate.
        BadWeights: Weights can't be read or don't fit.
        NetworkUnavailable: ``--weights imagenet`` without a network.
    """
    check_request(request)
    kind = _kind(request)
    if kind == "onnx":
        return _from_onnx(request, files.check_onnx(Path(str(request.model))))
    if kind == "engine":
        return _from_engine(request, Path(str(request.model)))
    if kind == "folder":
        if request.weights is not None:
            raise UsageError(f"{request.model} is a checkpoint and has its own weights; leave --weights out")
        return _from_network(_overridden(_checkpoint(Path(str(request.model))), request), request)
    if kind == "weights":
        if request.name is None:
            raise UsageError(
                f"{request.model} holds weights without an architecture",
                fix="name it: --model NAME (resnet-onnx models)",
            )
        if request.weights is not None:
            raise UsageError(f"weights were given twice: {request.model} and --weights {request.weights}")
        return _from_network(_fitted(request, Path(str(request.model))), request)
    if request.weights in (None, "random"):
        return _from_network(_random(request), request)
    if request.weights == "imagenet":
        return _from_network(_imagenet(request), request)
    path = Path(str(request.weights))
    if path.is_dir():
        network = _checkpoint(path)
        entry = _entry(request)
        if replace(entry.config, num_classes=network.config.num_classes) != network.config:
            raise BadWeights(f"the checkpoint {path} holds {network.name}, not {entry.name}")
        return _from_network(_overridden(network, request), request)
    return _from_network(_fitted(request, path), request)


def _from_network(network: Network, request: Request) -> Model:
    notes: tuple[str, ...] = ()
    if not network.trained:
        notes = ("random weights: good for throughput and parity, not for predictions",)
    return Model(
        name=network.name,
        network=network,
        form=request.form,
        preprocessing=network.preprocessing,
        labels=network.labels,
        trained=network.trained,
        notes=notes,
    )


def _checkpoint(path: Path) -> Network:
    from resnet_onnx.training.checkpoint import find_checkpoint, read_checkpoint

    return read_checkpoint(find_checkpoint(path)).network()


def _preprocessing(base: Preprocessing, request: Request) -> Preprocessing:
    changes: dict[str, Any] = {}
    if request.image_size is not None and request.image_size != base.image_size:
        low, high = _IMAGE_SIDES
        if not low <= request.image_size <= high:
            raise UsageError(f"image size {request.image_size} is out of range: {low} to {high} pixels")
        changes["image_size"] = request.image_size
        changes["resize"] = max(request.image_size, round(base.resize * request.image_size / base.image_size))
    if request.mean is not None:
        changes["mean"] = request.mean
    if request.std is not None:
        changes["std"] = request.std
    return replace(base, **changes)


def _labels(request: Request, classes: int | None, default: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if request.labels is None:
        return default
    from resnet_onnx.data.labels import read_labels

    labels = read_labels(request.labels)
    if classes is not None and len(labels) != classes:
        raise UsageError(f"--labels {request.labels} has {len(labels)} labels, the model {classes} outputs")
    return labels


def _catalog_labels(entry: catalog.CatalogEntry, classes: int) -> tuple[str, ...] | None:
    from resnet_onnx.data import labels

    known = labels.imagenet_labels() if entry.dataset == "imagenet" else labels.cifar10_labels()
    return known if len(known) == classes else None


def _overridden(network: Network, request: Request) -> Network:
    return replace(
        network,
        preprocessing=_preprocessing(network.preprocessing, request),
        labels=_labels(request, network.config.num_classes, network.labels),
    )


def _as_network(
    request: Request,
    entry: catalog.CatalogEntry,
    config: NetworkConfig,
    stored: tuple[Path, str],
    source: str,
    trained: bool,
) -> Network:
    return Network(
        name=entry.name,
        config=config,
        preprocessing=_preprocessing(entry.preprocessing, request),
        labels=_labels(request, config.num_classes, _catalog_labels(entry, config.num_classes)),
        weights=stored[0],
        weights_sha256=stored[1],
        weights_source=source,
        trained=trained,
    )


def _fitted(request: Request, path: Path) -> Network:
    from resnet_onnx.models.weights import fit_state_dict, read_state_dict, store_state_dict

    entry = _entry(replace(request, model=request.name or request.model, name=None))
    config, state = fit_state_dict(entry.config, read_state_dict(path), origin=str(path))
    return _as_network(request, entry, config, store_state_dict(state), path.name, True)


def _imagenet(request: Request) -> Network:
    from resnet_onnx.models.weights import fit_state_dict, imagenet_state_dict, store_state_dict

    entry = _entry(request)
    config, state = fit_state_dict(entry.config, imagenet_state_dict(entry), origin=f"ImageNet weights of {entry.name}")
    enum = entry.pretrained.enum_name if entry.pretrained else ""
    return _as_network(request, entry, config, store_state_dict(state), f"torchvision {enum}", True)


def _random(request: Request) -> Network:
    """Random weights are made once per seed and kept: the same command gives the same numbers."""
    entry = _entry(request)
    preprocessing = _preprocessing(entry.preprocessing, request)
    made_from = {
        "config": config_to_json(entry.config),
        "preprocessing": preprocessing.to_json(),
        "seed": request.seed,
        "pictures": RANDOM_PICTURES,
        "torch": package_version("torch"),
        "recipe": 3,
    }
    note = files.cache_dir("random") / f"{_digest(made_from)}.json"
    stored = _recall(note)
    if stored is None:
        from resnet_onnx.data.samples import sample_pictures
        from resnet_onnx.models.weights import random_state_dict, store_state_dict

        pictures = sample_pictures(RANDOM_PICTURES, preprocessing, seed=0)
        state = random_state_dict(entry.config, preprocessing, seed=request.seed, pictures=pictures)
        stored = store_state_dict(state)
        files.write_json(note, {"weights_sha256": stored[1], "made_from": made_from})
    return _as_network(request, entry, entry.config, stored, f"random weights (seed {request.seed})", False)


def _recall(note: Path) -> tuple[Path, str] | None:
    try:
        sha = json.loads(note.read_text())["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    path = files.find_by_content("weights", ".safetensors", str(sha))
    return (path, str(sha)) if path else None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def training_entry(
    name: str,
    *,
    image_size: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> catalog.CatalogEntry:
    """Returns a network of the catalog with the preprocessing that a training asked for."""
    entry = catalog.lookup(name)
    asked = Request(image_size=image_size, mean=mean, std=std)
    return replace(entry, preprocessing=_preprocessing(entry.preprocessing, asked))


def initial_state(entry: catalog.CatalogEntry, weights: str, classes: int) -> Mapping[str, Any]:
    """Returns a state dict to start a training from; a head of another number of classes is drawn anew.

    Raises:
        BadWeights: The weights don't fit the network.
    """
    from resnet_onnx.models.build import build
    from resnet_onnx.models.configs import with_classes

    network = resolve(Request(model=entry.name, weights=weights)).network
    if network is None or not network.trained:
        raise UsageError(
            "--weights names trained weights to start from", fix="--weights imagenet, or a file or checkpoint"
        )
    state = network.load().state_dict()
    if network.config.num_classes == classes:
        return state
    fresh = build(with_classes(network.config, classes)).state_dict()
    return {name: state[name] if state[name].shape == tensor.shape else tensor for name, tensor in fresh.items()}


# ---- ONNX files ------------------------------------------------------------------------------------------------------


def _from_engine(request: Request, path: Path) -> Model:
    """An engine has no metadata of its own: what its ONNX file said lies beside it. Nothing is executed here."""
    from runtimes import engines

    record = engines.read_record(path)
    inputs, outputs = engines.described_specs(record)
    checked = files.CheckedModel(
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


def _from_onnx(request: Request, checked: files.CheckedModel) -> Model:
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
    notes = [] if network.trained else ["random weights: good for throughput and parity, not for predictions"]
    if onnx_form.input == "uint8" and (request.mean or request.std):
        raise UsageError(f"{path} has its normalisation in the graph: --mean and --std can't change it")
    side = network.preprocessing.image_size
    if request.image_size not in (None, side):
        raise UsageError(
            f"{path} takes pictures of {side}×{side}, not {request.image_size}", fix="export it with --image-size"
        )
    network = _overridden(network, request)
    torch_form: Network | None = None
    if request.weights is not None:
        torch_form = _original_weights(request, network)
    else:
        kept = files.find_by_content("weights", ".safetensors", sha)
        if kept is not None:
            torch_form = replace(network, weights=kept)
    return Model(
        name=path.stem,
        onnx=path,
        network=torch_form,
        form=onnx_form,
        inputs=checked.inputs,
        preprocessing=network.preprocessing,
        labels=network.labels,
        precision=checked.metadata.get("precision", "fp32"),
        trained=network.trained,
        notes=tuple(notes),
    )


def _check_form(checked: files.CheckedModel, network: Network, form: OnnxForm) -> None:
    """Raises ``BadModel`` where the metadata describes another input than the graph has."""
    told = input_spec(network.preprocessing, form)
    found = checked.inputs[0]
    same = len(found.shape) == 4 and all(
        isinstance(a, str) if isinstance(b, str) else a == b for a, b in zip(found.shape, told.shape, strict=True)
    )
    if len(checked.inputs) != 1 or not same or (found.dtype == np.uint8) != (told.dtype == np.uint8):
        raise BadModel(
            f"{checked.path}: its resnet_onnx metadata tells of the input {told}, "
            f"the graph has {', '.join(map(str, checked.inputs))}",
            fix="export it again",
        )


def _original_weights(request: Request, network: Network) -> Network:
    """The torch form of an ONNX file made here, from weights that the user names."""
    from resnet_onnx.models.weights import fit_state_dict, read_state_dict, store_state_dict

    if request.weights in ("random", "imagenet"):
        raise UsageError(f"{request.model} has its weights in it: --weights names the file that they came from")
    path = Path(str(request.weights))
    if path.is_dir():
        named = _checkpoint(path)
        if named.config != network.config:
            raise BadWeights(f"{path} holds {named.name} with another architecture than {request.model} was made from")
        return replace(network, weights=named.weights, weights_sha256=named.weights_sha256)
    config, state = fit_state_dict(network.config, read_state_dict(path), origin=str(path))
    if config != network.config:
        raise BadWeights(f"{path} does not fit the architecture that {request.model} was made from")
    stored = store_state_dict(state)
    return replace(network, weights=stored[0], weights_sha256=stored[1])


def _foreign(request: Request, checked: files.CheckedModel) -> Model:
    """An ONNX file that was not made here: what can be told from its inputs, and what the user says."""
    picture = picture_input(checked.inputs)
    notes: list[str] = []
    preprocessing: Preprocessing | None = None
    form = OnnxForm(opset=checked.opset)
    if picture is not None:
        size = picture.size or request.image_size or 224
        if request.image_size not in (None, size):
            raise UsageError(f"{checked.path} takes pictures of {size}×{size}, not {request.image_size}")
        base = Preprocessing(image_size=size, resize=size if size < 64 else round(size * 256 / 224))
        preprocessing = _preprocessing(base, request)
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
        named = replace(request, model=None, labels=None, image_size=None)
        network = _overridden(_fitted(named, Path(request.weights)), replace(request, labels=None))
        preprocessing = preprocessing and network.preprocessing
    labels = _labels(request, _classes(checked.outputs), None)
    return Model(
        name=checked.path.stem,
        onnx=checked.path,
        network=network,
        form=form,
        inputs=checked.inputs,
        preprocessing=preprocessing,
        labels=labels,
        precision=_float_precision(checked.inputs),
        notes=tuple(notes),
    )


def _classes(outputs: Sequence[TensorSpec]) -> int | None:
    """Returns how many scores the first output has per picture, or None where the model leaves it open.

    Scores may come as [batch, class] or, from networks that end in a pooling, as [batch, class, 1, 1].
    """
    shape = outputs[0].shape
    if len(shape) < 2 or not isinstance(shape[1], int) or any(extent != 1 for extent in shape[2:]):
        return None
    return shape[1]


def _float_precision(inputs: Sequence[TensorSpec]) -> str:
    names = {"float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}
    return next((names[str(spec.dtype)] for spec in inputs if str(spec.dtype) in names), "fp32")


@dataclass(frozen=True)
class PictureInput:
    """The input of a model that takes pictures.

    Attributes:
        spec: Its spec.
        layout: NCHW or NHWC.
        size: Side of the picture, or None where the model takes any.
    """

    spec: TensorSpec
    layout: Layout
    size: int | None


def picture_input(inputs: Sequence[TensorSpec]) -> PictureInput | None:
    """Returns the one input that takes RGB pictures, or None where the model takes something else."""
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].dtype.kind not in "fVu":
        return None
    spec = inputs[0]
    layouts: tuple[tuple[Layout, int, tuple[int, int]], ...] = (("NCHW", 1, (2, 3)), ("NHWC", 3, (1, 2)))
    for layout, channel, sides in layouts:
        if spec.shape[channel] == 3:
            height, width = (spec.shape[axis] for axis in sides)
            if isinstance(height, int) and isinstance(width, int):
                return PictureInput(spec, layout, height) if height == width else None
            return PictureInput(spec, layout, None)
    return None


# ---- torch programs --------------------------------------------------------------------------------------------------


def torch_program(
    *,
    network: Network,
    form: OnnxForm,
    dtype: Literal["float32", "float64"] = "float32",
    names: tuple[str, str] = (INPUT_NAME, OUTPUT_NAME),
) -> TorchProgram:
    """Builds the torch form of a model with the inputs and outputs of its ONNX form: a factory for ``ModelSource``."""
    module = wrapped(network, form, dtype)
    inputs = (input_spec(network.preprocessing, form, names[0]),)
    outputs = (TensorSpec(names[1], np.dtype(dtype), (_batch(form), network.config.num_classes)),)
    if dtype == "float64" and form.input == "float32":
        from converters.input_adapters import WideInput

        module = WideInput(module)
    return TorchProgram(module=module, inputs=inputs, outputs=outputs)


def wrapped(network: Network, form: OnnxForm, dtype: Literal["float32", "float64"] = "float32") -> Any:
    """Loads a network as a module in eval mode, with the normalisation in front of it where the form says so."""
    import torch

    module: Any = network.load().to(getattr(torch, dtype))
    if form.input == "uint8":
        from converters.input_adapters import Uint8Input

        preprocessing = network.preprocessing
        module = Uint8Input(module, preprocessing.mean, preprocessing.std, form.layout)
    return module.eval()


def _batch(form: OnnxForm) -> int | str:
    return form.batch or "batch"


def input_spec(preprocessing: Preprocessing, form: OnnxForm, name: str = INPUT_NAME) -> TensorSpec:
    """Returns the spec of the input that a network has in an ONNX form."""
    side = preprocessing.image_size
    shape = (3, side, side) if form.layout == "NCHW" else (side, side, 3)
    return TensorSpec(name, np.dtype(form.input), (_batch(form), *shape))


# ---- export ----------------------------------------------------------------------------------------------------------


def export(model: Model, path: Path) -> dict[str, Any]:
    """Exports a model's torch form, verified before it is kept.

    Returns:
        ``path, sha256, precision, verified{batches, relative_rmse, runtime}, size_bytes, opset``.

    Raises:
        CheckFailed: The file does not compute what torch computes; nothing was written.
        FileProblem: The file can't be written.
    """
    from converters import torch_export
    from resnet_onnx.parity.budget import SAME_FUNCTION

    network = _need_network(model)
    form = model.form
    import torch

    options = torch_export.ExportOptions(
        input_names=(INPUT_NAME,),
        output_names=(OUTPUT_NAME,),
        batch=form.batch,
        opset=form.opset or torch_export.DEFAULT_OPSET,
    )
    module = wrapped(network, form)
    batches = [torch.from_numpy(feeds[INPUT_NAME]) for feeds in _verification_feeds(model)]
    verification = torch_export.write_verified(
        path,
        module,
        (batches[1],),
        [(batch,) for batch in batches],
        options=options,
        metadata=_metadata(network, form, options.opset),
        evaluate=_evaluate_on_ort,
        runtime="ort-cpu",
        bound=SAME_FUNCTION,
        manifest={"made_by": f"resnet-onnx {__version__}", "network": network.name},
    )
    _keep_weights(network)
    checked = files.check_onnx(path)
    return {
        "path": str(path),
        "sha256": checked.sha256,
        "precision": "fp32",
        "verified": {
            "batches": list(verification.batches),
            "relative_rmse": verification.relative_rmse,
            "runtime": verification.runtime,
        },
        "size_bytes": checked.size_bytes,
        "opset": checked.opset,
        "model": network.name,
        "weights": network.weights_source,
        "weights_sha256": network.weights_sha256,
        "input": {**form.to_json(), "image_size": network.preprocessing.image_size},
    }


def _keep_weights(network: Network) -> None:
    """Keeps the source weights in the cache, so that torch and the gold can be rebuilt from the ONNX file alone."""
    import shutil

    if files.find_by_content("weights", ".safetensors", network.weights_sha256) is None:

        def copy(path: Path) -> None:
            shutil.copyfile(network.weights, path)

        files.store_by_content("weights", ".safetensors", copy)


def _need_network(model: Model) -> Network:
    if model.network is None:
        raise UsageError(
            f"{model.name}: the torch weights it came from are not at hand",
            fix="name them: --weights FILE, with --model NAME where the file was not exported here",
        )
    return model.network


def _verification_feeds(model: Model) -> list[Feeds]:
    """Batches of 1, an odd number and a large one; with a fixed batch, three different ones of it."""
    from resnet_onnx.data.samples import sample_pictures

    network = _need_network(model)
    small = network.preprocessing.image_size < 64
    sizes = (model.form.batch,) * 3 if model.form.batch else (1, 3, 64 if small else 8)
    return [feeds_of(model, sample_pictures(n, network.preprocessing, seed=seed)) for seed, n in enumerate(sizes)]


def _evaluate_on_ort(path: Path, feeds: Sequence[Feeds]) -> list[dict[str, NDArray[Any]]]:
    with open_runtime("ort-cpu", ModelSource(path=path)) as runtime:
        return [runtime.run(batch) for batch in feeds]


def _metadata(network: Network, form: OnnxForm, opset: int) -> dict[str, str]:
    tools = {name: package_version(name) for name in ("torch", "onnx", "onnxscript")}
    return {
        METADATA_PREFIX + "network": json.dumps(network.to_json(), ensure_ascii=False),
        METADATA_PREFIX + "form": json.dumps(form.to_json()),
        METADATA_PREFIX + "tools": json.dumps({"resnet-onnx": __version__, "opset": opset, **tools}),
        "precision": "fp32",
    }


def onnx_path(model: Model) -> Path:
    """Returns the model as an ONNX file: the user's own, or an export in the cache, made once."""
    if model.onnx is not None:
        return model.onnx
    if model.engine is not None and model.network is None:
        raise UsageError(
            f"{model.engine} is an engine, and the network in it is needed too",
            fix="name the ONNX file that it was built from in place of the engine",
        )
    from filelock import FileLock

    from converters.torch_export import DEFAULT_OPSET

    network = _need_network(model)
    form = replace(model.form, opset=model.form.opset or DEFAULT_OPSET)
    key = _digest(
        {
            "network": {**network.to_json(), "weights_source": ""},
            "form": form.to_json(),
            "opset": form.opset,
            "tools": [package_version("torch"), package_version("onnxscript"), __version__],
        }
    )
    folder = files.cache_dir("onnx", key)
    path = folder / f"{network.name}.onnx"
    with FileLock(str(folder / "lock")):
        if not (path.is_file() and files.manifest_path(path).is_file() and _still_sound(path)):
            export(replace(model, form=form), path)
    return path


def graph_path(model: Model) -> Path | None:
    """Returns the model as an ONNX file, or None for an engine whose network is not at hand."""
    return None if model.engine is not None and model.network is None else onnx_path(model)


def _still_sound(path: Path) -> bool:
    try:
        files.check_onnx(path)
    except BadModel:
        return False
    return True


# ---- opening ---------------------------------------------------------------------------------------------------------


def source(
    model: Model,
    runtime: str,
    *,
    device: str | None = None,
    options: RuntimeOptions | None = None,
    batches: Sequence[int] = (),
) -> ModelSource:
    """Returns the form of a model that a runtime opens; an engine is found in the cache, or built.

    Args:
        model: The model.
        runtime: Name of a runtime.
        device: GPU that an engine is built for.
        options: What it will be opened with: TF32 and CUDA graphs are settled when an engine is built.
        batches: Batches that it will be run at; an engine accepts 1 to 64 anyway.

    Raises:
        UsageError: ``torch`` was asked for and the weights are not at hand; or MODEL is another runtime's engine.
        UnsupportedModel: The engine can't be built; names the node.
    """
    if model.engine is not None and runtime != "torch":
        _check_engine_of(model.engine, runtime)
        return ModelSource(path=model.engine, label=model.name)
    if runtime == "torch":
        network = _need_network(model)
        return ModelSource(
            factory="resnet_onnx.workflow:torch_program",
            arguments={"network": network, "form": model.form, "names": _names(model)},
            label=model.name,
        )
    if runtime in ENGINE_RUNTIMES:
        return ModelSource(path=_engine(model, runtime, device, options or RuntimeOptions(), batches), label=model.name)
    return ModelSource(path=onnx_path(model), label=model.name)


def _check_engine_of(engine: Path, runtime: str) -> None:
    from runtimes import engines

    library = engines.read_record(engine).key.library
    if runtime != library:
        raise UsageError(f"{engine} is an engine of {library}, not of {runtime}", fix=f"--runtime {library}")


def _engine(model: Model, runtime: Any, device: str | None, options: RuntimeOptions, batches: Sequence[int]) -> Path:
    from converters.tensorrt_family import EngineOptions, build_engine

    path = onnx_path(model)
    try:
        shapes = profile(files.check_onnx(path).inputs, batches)
    except UsageError as problem:
        raise UsageError(
            problem.message,
            fix=f"build an engine and give it as MODEL: resnet-onnx build {path} --runtime {runtime} --shapes …",
        ) from problem
    how = EngineOptions(tf32=options.tf32, cuda_graph=options.cuda_graph)
    return build_engine(path, library=runtime, shapes=shapes, options=how, device=device or "cuda:0").path


def profile(inputs: Sequence[TensorSpec], batches: Sequence[int]) -> Profile:
    """Returns the shapes that an engine should accept: batches 1 to 64, fastest at 8, or up to a larger one asked for.

    Raises:
        UsageError: The model has open dimensions besides the batch.
    """
    from converters.tensorrt_family import DEFAULT_BATCHES, default_profile

    largest = max(batches, default=1)
    return default_profile(inputs, DEFAULT_BATCHES if largest <= DEFAULT_BATCHES[2] else (1, largest, largest))


def tuned(model: Model, runtime: str, options: RuntimeOptions, batches: Sequence[int]) -> RuntimeOptions:
    """Adds the shapes that a runtime builds for which builds its engine itself; without them it builds as they come."""
    if runtime != "ort-tensorrt":
        return options
    try:
        return replace(options, shapes=profile(specs(model), batches))
    except UsageError:
        return options


def gold_source(model: Model) -> tuple[str, ModelSource, str]:
    """Returns runtime, source and description of the float64 gold: torch in double, or the graph in double."""
    if model.network is not None:
        arguments = {"network": model.network, "form": model.form, "dtype": "float64", "names": _names(model)}
        factory = ModelSource(factory="resnet_onnx.workflow:torch_program", arguments=arguments, label=model.name)
        return "torch", factory, "torch float64"
    return "reference", ModelSource(path=onnx_path(model), label=model.name), "the ONNX graph in float64"


def _names(model: Model) -> tuple[str, str]:
    if model.onnx is None:
        return INPUT_NAME, OUTPUT_NAME
    checked = files.check_onnx(model.onnx)
    return checked.inputs[0].name, checked.outputs[0].name


def runnable(model: Model, names: Sequence[str], *, chosen_by_all: bool) -> tuple[list[str], list[str]]:
    """Splits runtime names into those that can open the model and, for ``all`` only, those left out.

    Raises:
        UsageError: A runtime was asked for by name and needs weights that are not at hand.
    """
    if "torch" not in names or model.network is not None:
        return list(names), []
    if not chosen_by_all:
        _need_network(model)
    rest = [name for name in names if name != "torch"]
    if not rest:
        raise RuntimeUnavailable("no runtime is left that can open this model", fix="resnet-onnx doctor")
    return rest, ["torch"]


# ---- feeds -----------------------------------------------------------------------------------------------------------


def specs(model: Model) -> tuple[TensorSpec, ...]:
    """Returns the specs of the model's ONNX inputs, exported or not."""
    if model.inputs:
        return model.inputs
    return (input_spec(_need_network(model).preprocessing, model.form),)


def feeds_of(model: Model, pictures: NDArray[np.uint8]) -> Feeds:
    """Turns prepared pictures into the model's input.

    Args:
        model: A model that takes pictures.
        pictures: uint8 [batch, height, width, 3], RGB, already of the model's size.

    Raises:
        UsageError: The model takes no pictures.
    """
    picture = picture_input(specs(model))
    if picture is None or model.preprocessing is None:
        raise UsageError(f"{model.name} takes no RGB pictures: its inputs are {', '.join(map(str, specs(model)))}")
    array: NDArray[Any]
    if picture.spec.dtype == np.uint8:
        array = pictures
        if picture.layout == "NCHW":
            array = pictures.transpose(0, 3, 1, 2)
    else:
        array = model.preprocessing.normalise(pictures)
        if picture.layout == "NHWC":
            array = array.transpose(0, 2, 3, 1)
        array = array.astype(picture.spec.dtype)
    return {picture.spec.name: np.ascontiguousarray(array)}


def sample_feeds(model: Model, batch: int, *, seed: int = 0) -> Feeds:
    """Returns feeds for a model when no data is named: crops of real photos, or seeded numbers for other inputs."""
    if picture_input(specs(model)) is not None and model.preprocessing is not None:
        from resnet_onnx.data.samples import sample_pictures

        return feeds_of(model, sample_pictures(batch, model.preprocessing, seed=seed))
    random = np.random.default_rng(seed)
    return {spec.name: _random_array(spec, batch, random, model.name) for spec in specs(model)}


def _random_array(spec: TensorSpec, batch: int, random: np.random.Generator, model: str) -> NDArray[Any]:
    first = spec.shape[0] if spec.shape else None
    shape = spec.concrete(**({first: batch} if isinstance(first, str) else {}))
    size = int(np.prod(shape, dtype=object)) * spec.dtype.itemsize
    if size > _available_memory():
        raise BadModel(
            f"{model}: input '{spec.name}' of shape {list(shape)} needs {size / 2**30:.1f} GiB, more than there is"
        )
    if spec.dtype.kind in "fV":
        return random.standard_normal(shape).astype(spec.dtype)
    if spec.dtype.kind == "b":
        return random.integers(0, 2, shape).astype(np.bool_)
    return random.integers(0, 2, shape).astype(spec.dtype)


def _available_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


# ---- what commands do with a model -----------------------------------------------------------------------------------


def insist_on_trained(model: Model) -> None:
    """Raises ``UsageError`` for random weights: their predictions mean nothing."""
    if model.trained is False:
        raise UsageError(
            f"{model.name} has random weights, so that what it predicts means nothing",
            fix="give trained ones: --weights FILE or --weights imagenet, or a checkpoint folder",
        )


def _need_preprocessing(model: Model) -> Preprocessing:
    if model.preprocessing is None:
        raise UsageError(f"{model.name} takes no RGB pictures: its inputs are {', '.join(map(str, specs(model)))}")
    return model.preprocessing


def _open_for_pictures(
    model: Model, runtime: str, device: str | None, threads: int | None, tuning: RuntimeOptions, batch: int
) -> Runtime:
    # Spinning threads would take the cores from the workers that decode.
    options = tuned(model, runtime, replace(tuning, threads=threads, spin=False), (batch,))
    found = source(model, runtime, device=device, options=options, batches=(batch,))
    return open_runtime(runtime, found, device=device, options=options)


def evaluate_on(
    model: Model,
    runtime: str,
    data: str,
    *,
    batch_size: int = 32,
    limit: int | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    device: str | None = None,
    threads: int | None = None,
    tuning: RuntimeOptions = _UNTUNED,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measures a model's accuracy on a data set's test split; see ``evaluation.evaluate``."""
    from resnet_onnx.data.batches import default_workers, start_worker_server
    from resnet_onnx.data.datasets import open_dataset
    from resnet_onnx.data.labels import match_classes
    from resnet_onnx.evaluation import evaluate

    preprocessing = _need_preprocessing(model)
    _refuse_special(Path(data), BadData)
    dataset = open_dataset(data, split="test")
    few = min(len(dataset), limit or len(dataset)) < _WORTH_WORKERS
    count = (0 if few or dataset.in_memory else default_workers()) if workers is None else workers
    if count:
        start_worker_server()
    with _open_for_pictures(model, runtime, device, threads, tuning, batch_size) as opened:
        classes = _classes(opened.outputs)
        class_map = match_classes(
            dataset.classes, model.labels, len(model.labels or dataset.classes) if classes is None else classes
        )
        return evaluate(
            opened,
            dataset,
            preprocessing,
            class_map=class_map,
            batch_size=batch_size,
            workers=count,
            skip_bad=skip_bad,
            progress=progress,
            limit=limit,
        )


_WORTH_WORKERS = 200
"""Below so many pictures, decoding in this process is done before worker processes have started."""


def predict_on(
    model: Model,
    runtime: str,
    images: Sequence[Path],
    *,
    top: int = 5,
    skip_bad: bool = False,
    device: str | None = None,
    threads: int | None = None,
    tuning: RuntimeOptions = _UNTUNED,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Says what pictures show; see ``prediction.predict``."""
    from resnet_onnx.prediction import predict

    preprocessing = _need_preprocessing(model)
    for image in images:
        _refuse_special(image, BadPicture)
    with _open_for_pictures(model, runtime, device, threads, tuning, 1) as opened:
        return predict(
            opened, images, preprocessing, labels=model.labels, top_k=top, skip_bad=skip_bad, progress=progress
        )


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
    tuning: RuntimeOptions = _UNTUNED,
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
        what: dict[str, Any] = {**truth.network.to_json(), "names": _names(truth)}
        tool = "torch"
    else:
        what = {"onnx": files.check_onnx(onnx_path(truth)).sha256}
        tool = "onnx"
    tools = {tool: package_version(tool), "resnet-onnx": __version__}
    return _digest({"gold": what, "form": truth.form.to_json(), "runtime": runtime, "tools": tools})


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
    tuning: RuntimeOptions = _UNTUNED,
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

    _refuse_special(Path(data), BadData)
    dataset = open_dataset(data, split="test")
    chosen = np.arange(min(images, len(dataset))) * len(dataset) // min(images, len(dataset))
    pictures = [prepared_picture(dataset, int(index), preprocessing) for index in chosen]
    return [dataset.item_name(int(index)) for index in chosen], np.stack(pictures)


def saved_result(kind: str, model: Model, result: Mapping[str, Any]) -> dict[str, Any]:
    """Wraps a result with what is needed to trust and repeat it: schema, environment, hashes, command."""
    import sys
    import time

    hashes = {"weights_sha256": model.network.weights_sha256} if model.network is not None else {}
    if model.onnx is not None:
        hashes["onnx_sha256"] = files.check_onnx(model.onnx).sha256
    return {
        "schema": RESULT_SCHEMA,
        "kind": kind,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "tool": f"resnet-onnx {__version__}",
        "command": sys.argv[1:],
        "environment": describe_machine(),
        "artifacts": hashes,
        "result": _finite(result),
    }


RESULT_SCHEMA = 1


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
