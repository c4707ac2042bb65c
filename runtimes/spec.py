"""What a runtime is given and what it reports of itself: plain, picklable values."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from runtimes.errors import BadFeeds, BadModel, UsageError

Feeds = Mapping[str, NDArray[Any]]
"""Input arrays by input name."""

Scope = Literal["device", "end-to-end"]
"""What a prepared run covers: device memory to device memory, or host array to host array with copies."""

ModelForm = Literal["onnx", "engine", "torch"]
"""What a runtime can open: an ONNX file, an engine that was built for it, or a program that a factory makes."""

Autocast = Literal["bf16", "fp16"]
"""What torch may round the inputs of products to."""

CompileMode = Literal["default", "max-autotune"]
"""How long TorchInductor looks for fast kernels."""

Dimension = int | str
"""A fixed extent, or the name of a symbolic one (``"batch"``)."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of one input or output.

    Attributes:
        dtype: NumPy dtype; bfloat16 is ml_dtypes' extension type.
        shape: One entry per axis; a string names a symbolic dimension.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[Dimension, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(str(d) for d in self.shape)}]"

    def concrete(self, **dimensions: int) -> tuple[int, ...]:
        """Returns the shape with every symbolic dimension replaced (1 where it is not given)."""
        return tuple(d if isinstance(d, int) else dimensions.get(d, 1) for d in self.shape)


def check_feeds(feeds: Feeds, inputs: tuple[TensorSpec, ...], *, who: str) -> None:
    """Raises ``BadFeeds`` unless names, dtypes and shapes of `feeds` are what `inputs` expect.

    A symbolic dimension accepts any extent ≥ 1, but one name means one extent in all inputs.
    """
    expected = {spec.name: spec for spec in inputs}
    missing = [n for n in expected if n not in feeds]
    unknown = [n for n in feeds if n not in expected]
    if missing or unknown:
        wrong = {"missing": missing, "unknown": unknown}
        problem = "; ".join(f"{how} {', '.join(names)}" for how, names in wrong.items() if names)
        raise BadFeeds(f"{who}: {problem}; the inputs are {', '.join(str(s) for s in inputs)}")
    extents: dict[str, tuple[int, str]] = {}
    for name, spec in expected.items():
        array = np.asarray(feeds[name])
        if array.dtype != spec.dtype:
            raise BadFeeds(f"{who}: input '{name}' was given {array.dtype}, expected {spec.dtype}")
        fits = array.ndim == len(spec.shape) and all(
            not isinstance(want, int) or got == want for got, want in zip(array.shape, spec.shape, strict=True)
        )
        if not fits:
            raise BadFeeds(
                f"{who}: input '{name}' was given shape {list(array.shape)}, "
                f"expected [{', '.join(str(d) for d in spec.shape)}]"
            )
        for got, want in zip(array.shape, spec.shape, strict=True):
            if isinstance(want, int):
                continue
            if got < 1:
                raise BadFeeds(f"{who}: input '{name}' has no elements along '{want}' (shape {list(array.shape)})")
            before = extents.setdefault(want, (got, name))
            if before[0] != got:
                raise BadFeeds(
                    f"{who}: dimension '{want}' is {before[0]} in input '{before[1]}' and {got} in input '{name}'"
                )


def check_rows(outputs: Feeds, batch: int, *, who: str) -> None:
    """Raises ``BadModel`` where a batch of pictures comes back as fewer rows, so that it is not what it is counted as.

    A graph into which one batch was baked may take any and answer with that one.
    """
    rows = max((len(array) for array in outputs.values() if array.ndim), default=0)
    if 0 < rows < batch:
        raise BadModel(
            f"{who}: {batch} pictures came back as {rows} row{'s' if rows > 1 else ''} of output; its graph does not "
            "have the batch that its input promises",
            fix="export it again with an open batch, or with a fixed one",
        )


@dataclass(frozen=True)
class ShapeRange:
    """The shapes of one input that an engine accepts, and the one it is made fastest for."""

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.minimum) == len(self.optimum) == len(self.maximum):
            raise UsageError(f"the three shapes of a profile need the same number of axes, not {self}")
        ordered = zip(self.minimum, self.optimum, self.maximum, strict=True)
        if not all(1 <= low <= usual <= high for low, usual, high in ordered):
            raise UsageError(f"a profile needs 1 ≤ minimum ≤ optimum ≤ maximum on every axis, not {self}")

    def __str__(self) -> str:
        return ",".join("x".join(str(n) for n in shape) for shape in (self.minimum, self.optimum, self.maximum))

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Returns whether an array of that shape can be run."""
        return len(shape) == len(self.minimum) and all(
            low <= n <= high for low, n, high in zip(self.minimum, shape, self.maximum, strict=True)
        )


Profile = Mapping[str, ShapeRange]
"""Accepted shapes by input name."""

ENGINE_BATCHES = (1, 8, 64)
"""Smallest, usual and largest batch of an engine whose model leaves the batch open and whose user names no shapes."""


def default_profile(inputs: Sequence[TensorSpec], batches: tuple[int, int, int] = ENGINE_BATCHES) -> Profile:
    """Returns the profile of a model whose only open dimension is the batch.

    Raises:
        UsageError: Another dimension is open: nobody but the user knows its extents.
    """
    profile = {}
    for spec in inputs:
        open_axes = [axis for axis, extent in enumerate(spec.shape) if not isinstance(extent, int)]
        if [axis for axis in open_axes if axis != 0]:
            raise UsageError(
                f"input {spec} has open dimensions besides the batch; name their extents",
                fix=f"--shapes '{spec.name}:MIN,OPT,MAX', each like {'x'.join(str(d) for d in spec.concrete())}",
            )
        shapes = ((batch, *spec.concrete()[1:]) if open_axes else spec.concrete() for batch in batches)
        profile[spec.name] = ShapeRange(*shapes)
    return profile


def check_profile(feeds: Feeds, profile: Profile, *, who: str, others: Sequence[Profile] = ()) -> None:
    """Raises ``BadFeeds`` where an array lies outside the shapes that the engine was built for.

    `others` are further profiles of the engine, which do not fit either: the message names their ranges too.
    """
    for name, accepted in profile.items():
        shape = tuple(feeds[name].shape)
        if not accepted.accepts(shape):
            ranges = " or ".join(
                " up to ".join("×".join(str(n) for n in bound) for bound in (each[name].minimum, each[name].maximum))
                for each in (*others, profile)
            )
            raise BadFeeds(
                f"{who}: input '{name}' was given shape {'×'.join(str(n) for n in shape)}, "
                f"the engine was built for {ranges}",
                fix=f"build one for it: resnet-onnx build … --shapes '{name}:MIN,OPT,MAX'",
            )


def imported(name: str) -> Callable[..., Any]:
    """Imports the function named ``"module:function"``, as another process is given it."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a runtime finds the model; picklable, so that a child process can open the same thing.

    Exactly one of `path` and `factory` is needed; both may be given for a model that exists in both forms
    (an ONNX file made here and the torch network it came from): each adapter takes the one it can open.

    Attributes:
        path: A checked ONNX file or an engine.
        factory: ``"module:function"`` returning what only torch can build, a ``TorchProgram``.
        arguments: Keyword arguments of the factory; picklable.
        label: What messages call the model.
        made_from: What this program made the file from. A runtime that opens that and refuses the file shows a fault of
            ours, not of the model.
        built_in: Seconds that building the engine at `path` took just now; None where it was there already.
    """

    path: Path | None = None
    factory: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    made_from: ModelSource | None = None
    built_in: float | None = None

    def __post_init__(self) -> None:
        if self.path is None and self.factory is None:
            raise UsageError("a model source needs a path or a factory")
        if self.factory is not None and ":" not in self.factory:
            raise UsageError(f"a factory is named 'module:function', not '{self.factory}'")

    @property
    def name(self) -> str:
        """What messages call the model."""
        return self.label or (str(self.path) if self.path else str(self.factory))

    def rewritten(self, path: Path, *, label: str = "") -> ModelSource:
        """Returns the source of a file that this program made from this one."""
        return ModelSource(path=path, label=label or self.name, made_from=self)

    def call_factory(self) -> Any:
        """Imports and calls the factory."""
        if self.factory is None:
            raise UsageError(f"{self.name} has no torch form")
        return imported(self.factory)(**self.arguments)


@dataclass(frozen=True, kw_only=True)
class TorchProgram:
    """What a factory returns for the ``torch`` runtime.

    The ``torch.nn.Module`` is in eval mode; it takes the inputs in order and returns a tensor or a tuple.
    """

    module: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """Options of the runtimes; each adapter names the ones that it uses (``Runtime.uses``) and records how it set them.

    The metadata of a field say what only some runtimes use: ``flag`` is its option on the command line, and
    ``cuda_only`` says that it matters on NVIDIA devices alone.

    Attributes:
        threads: CPU threads, over all streams together; None means all cores this process may use.
        streams: Runs that will be prepared to go on at the same time. Each runtime arranges itself for as many in its
            own best way, and shares the threads out among them, at least one to each; None leaves the number to it.
        spin: Whether idle worker threads may spin (faster alone, slower beside other work).
        optimize: Whether the runtime may rewrite the graph; off only for diagnosis.
        tf32: Whether an NVIDIA device may round fp32 products to TF32.
        cuda_graph: Whether prepared runs on an NVIDIA device are captured once and replayed.
        exhaustive_search: Whether cuDNN tries every algorithm of a convolution and keeps the fastest, or asks its
            heuristics; None leaves it to the library (torch asks, ONNX Runtime tries).
        channels_last: Whether torch and ONNX Runtime's CUDA provider keep pictures as NHWC inside.
        autocast: What torch may round the inputs of products to; None leaves the precision to the model.
        compile_mode: How long torch.compile looks for fast kernels.
        shapes: Accepted shapes by input name, for a runtime that builds an engine while it opens an ONNX file; without
            them it builds for the shapes as they come.
        trust_engine: Whether an engine that this machine's own cache did not build may be executed; it is code.
    """

    threads: int | None = None
    streams: int | None = 1
    spin: bool = True
    optimize: bool = True
    tf32: bool = field(default=False, metadata={"flag": "--tf32", "cuda_only": True})
    cuda_graph: bool = field(default=False, metadata={"flag": "--cuda-graph", "cuda_only": True})
    exhaustive_search: bool | None = field(default=None, metadata={"flag": "--exhaustive-search", "cuda_only": True})
    channels_last: bool = field(default=False, metadata={"flag": "--channels-last"})
    autocast: Autocast | None = field(default=None, metadata={"flag": "--autocast"})
    compile_mode: CompileMode = field(default="default", metadata={"flag": "--compile-mode"})
    shapes: Mapping[str, ShapeRange] = field(default_factory=dict)
    trust_engine: bool = field(default=False, metadata={"flag": "--trust-engine"})

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads must be at least 1, not {self.threads}")
        if self.streams is not None and self.streams < 1:
            raise UsageError(f"streams must be at least 1, not {self.streams}")
        if self.autocast not in (None, *get_args(Autocast)):
            raise UsageError(f"autocast is bf16 or fp16, not '{self.autocast}'")
        if self.compile_mode not in get_args(CompileMode):
            raise UsageError(f"the compile mode is {' or '.join(get_args(CompileMode))}, not '{self.compile_mode}'")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A model on a runtime, ready to be opened (``registry.open_target``); picklable, as its source is.

    Attributes:
        source: The model, in the form that the runtime opens.
        device: ``cpu``, ``cuda``, ``cuda:1``; None is the runtime's own default device.
    """

    runtime: str
    source: ModelSource
    device: str | None = None
    options: RuntimeOptions = field(default_factory=RuntimeOptions)


@dataclass(frozen=True)
class NodePlacement:
    """Where one node (or a whole engine) runs.

    Attributes:
        node: Node name, or ``"*"`` for all of them.
        provider: The part of the library that executes it (``CPUExecutionProvider``, ``openvino CPU`` …).
    """

    node: str
    operator: str
    provider: str
    device: str


@dataclass(frozen=True)
class LayerTime:
    """How long one layer took, by the runtime's own profiler.

    Attributes:
        name: The layer, by the name of a node of the graph or module where the runtime keeps one.
        operator: Its type in the runtime's own words.
        seconds: Mean time in one run of the model.
    """

    name: str
    operator: str
    seconds: float
