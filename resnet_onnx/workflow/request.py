"""The request for a model, as a user makes it, and what a model is once everything about it is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from resnet_onnx.data.scores import UNSETTLED, Scores
from resnet_onnx.models import catalog, libraries
from resnet_onnx.models.configs import LibraryConfig, Shortcut, Variant
from resnet_onnx.models.network import Network, file_stem
from resnet_onnx.models.preprocessing import Layout, Preprocessing
from runtimes import registry
from runtimes.errors import BadModel, BadWeights, UsageError, UserError
from runtimes.spec import RuntimeOptions, TensorSpec

METADATA_PREFIX = "resnet_onnx."
INPUT_NAME, OUTPUT_NAME = "input", "logits"
NAMED_WEIGHTS = ("random", "imagenet", "pretrained")
"""What ``--weights`` names besides files and folders."""

UNTUNED = RuntimeOptions()


@dataclass(frozen=True, kw_only=True)
class OnnxForm:
    """How a network is, or will be, written as ONNX.

    Attributes:
        input: Element type of the input; ``uint8`` has the normalisation in the graph.
        layout: Of a uint8 input; a float32 input is always NCHW.
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
    """The request for a model, as a user makes it.

    Attributes:
        model: MODEL: a name of the catalog or of a library (``timm:NAME``), an ``.onnx`` file, an engine, a checkpoint
            folder or a weights file.
        name: ``--model``: the architecture of a weights file.
        weights: ``--weights``: ``random``, ``imagenet``, ``pretrained`` or a file or folder; None is the default of the
            kind.
        weights_entry: ``--weights-entry``: which of several networks in a weights file.
        test_size: ``--image-size test``: the picture size that the library of a network states for testing.
        resize: ``--resize``: shorter side of a picture before it is cropped, pixels.
        labels: ``--labels``: a file, ``imagenet`` or ``cifar10``.
        output_name: ``--output-name``: the output that holds the scores.
    """

    model: str | None = None
    name: str | None = None
    weights: str | None = None
    weights_entry: str | None = None
    seed: int = 0
    variant: Variant | None = None
    shortcut: Shortcut | None = None
    image_size: int | None = None
    test_size: bool = False
    resize: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    labels: str | None = None
    output_name: str | None = None
    form: OnnxForm = OnnxForm()


@dataclass(frozen=True, kw_only=True)
class Model:
    """A resolved model: everything known about it, in whatever forms it has.

    Attributes:
        onnx: The user's own ONNX file, or None where one is exported into the cache when needed.
        engine: The user's own engine, which stands in for an ONNX file; or None.
        network: The torch form, or None where it is not at hand.
        form: The ONNX form: that of the file, or the one to export.
        inputs: Specs of the ONNX inputs, or () where nothing was exported yet.
        preprocessing: From a picture to the input, or None for a model that takes no pictures.
        scores: The output that holds the scores of the classes.
        label_ids: WordNet ids in the order of `labels`, where ``--labels`` has them; or None.
        trained: Whether predictions mean anything; None where it is not known.
        notes: What the user should read before the result.
    """

    name: str
    onnx: Path | None = None
    engine: Path | None = None
    network: Network | None = None
    form: OnnxForm = OnnxForm()
    inputs: tuple[TensorSpec, ...] = ()
    preprocessing: Preprocessing | None = None
    scores: Scores = UNSETTLED
    labels: tuple[str, ...] | None = None
    label_ids: tuple[str | None, ...] | None = None
    precision: str = "fp32"
    trained: bool | None = None
    notes: tuple[str, ...] = ()

    @property
    def file_stem(self) -> str:
        """The name as that of a file, without an ending."""
        return file_stem(self.name)

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


def check_request(request: Request) -> None:
    """Raises ``UsageError`` or ``BadModel`` for what can be checked before any library loads."""
    kind = kind_of(request)
    if kind == "catalog":
        entry_of(request)
    if kind in ("engine", "onnx") and request.name and not request.weights:
        what = "an engine" if kind == "engine" else "an ONNX file"
        raise UsageError(f"{request.model} is {what}: --model is for weights files and catalog names")
    if kind != "catalog" and (request.variant or request.shortcut) and not request.name:
        raise UsageError("--variant and --shortcut are for catalog names")
    if request.test_size and kind != "catalog" and not request.name:
        raise UsageError("--image-size test is for a network that is named: timm:NAME", fix="--image-size N")
    if request.weights is None or request.weights in NAMED_WEIGHTS:
        return
    if not request.weights or not Path(request.weights).exists():
        known = ", ".join(NAMED_WEIGHTS)
        raise BadWeights(f"--weights '{request.weights}': no such file or folder", fix=f"{known}, or a path")
    refuse_special(Path(request.weights), BadWeights)


def refuse_special(path: Path, error: type[UserError]) -> None:
    """Raises `error` for a pipe, socket or device: reading one may never end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise error(f"{path} is a pipe, socket or device, expected a file or folder")


def kind_of(request: Request) -> Literal["catalog", "onnx", "engine", "folder", "weights"]:
    """Returns what MODEL names; raises ``UsageError`` or ``BadModel`` where it names nothing that exists."""
    if request.model is None:
        return "catalog"
    if not request.model:
        raise UsageError("MODEL is empty", fix="name one: resnet-onnx models lists them")
    if libraries.parse(request.model) is not None:
        return "catalog"
    path = Path(request.model)
    refuse_special(path, BadModel)
    if path.is_dir():
        return "folder"
    if path.suffix.lower() == ".onnx":
        if not path.exists():
            raise BadModel(f"no such file: {path}", fix="check the path, or make one: resnet-onnx export --depth 50")
        return "onnx"
    if path.suffix.lower() in registry.engine_suffixes():
        if not path.exists():
            raise BadModel(f"no such file: {path}", fix="check the path, or build one: resnet-onnx build")
        return "engine"
    if path.exists():
        return "weights" if path.suffix.lower() in (".pth", ".th", ".pt", ".safetensors", ".bin") else _sniff(path)
    if path.suffix or len(path.parts) > 1:
        kinds = "MODEL is a catalog name, timm:NAME, an .onnx file, a checkpoint folder or a weights file"
        raise BadModel(f"no such file: {path}", fix=libraries.elsewhere(request.model) or kinds)
    return "catalog"


def _sniff(path: Path) -> Literal["onnx", "weights"]:
    with open(path, "rb") as handle:
        head = handle.read(16)
    torch_like = head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")) or head[8:9] == b"{"
    return "weights" if torch_like else "onnx"


def entry_of(request: Request) -> catalog.CatalogEntry:
    """Returns the entry of the catalog that a request names, in the variant and with the shortcut requested."""
    name = request.model if request.model is not None and kind_of(request) == "catalog" else request.name
    if request.model is not None and request.name is not None and kind_of(request) == "catalog":
        raise UsageError(f"two architectures were named: '{request.model}' and --model {request.name}")
    if name is None:
        raise UsageError("no model was named", fix="name one: resnet-onnx models lists them")
    entry = libraries.lookup(name, test_size=request.test_size)
    if isinstance(entry.config, LibraryConfig):
        if request.variant or request.shortcut:
            raise UsageError(f"--variant and --shortcut are for the catalog's own networks, not for {name}")
        return entry
    if request.variant is not None:
        entry = catalog.with_variant(entry, request.variant)
    if request.shortcut is not None:
        entry = catalog.with_shortcut(entry, request.shortcut)
    return entry


def need_network(model: Model) -> Network:
    """Returns the torch form of a model; raises ``UsageError`` where its weights are not at hand."""
    if model.network is None:
        raise UsageError(
            f"{model.name}: the torch weights it came from are not at hand",
            fix="name them: --weights FILE, with --model NAME where the file was not exported here",
        )
    return model.network


def insist_on_trained(model: Model) -> None:
    """Raises ``UsageError`` for random weights: their predictions mean nothing."""
    if model.trained is False:
        raise UsageError(
            f"{model.name} has random weights, so that what it predicts means nothing",
            fix="give trained ones: --weights FILE or --weights imagenet, or a checkpoint folder",
        )
