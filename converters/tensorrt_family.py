"""ONNX to an engine of TensorRT (10.x, 11) or TensorRT for RTX: one builder, parameterised on the module.

Networks are strongly typed: the precision is the ONNX graph's, and no flag changes it. TensorRT for RTX builds ahead of
time for a named compute capability and needs no GPU to do so; TensorRT itself times kernels on the GPU it builds for.
"""

from __future__ import annotations

import collections
import hashlib
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from runtimes import engines, files, nvidia, onnx_gate, trt_shim
from runtimes.environment import load_library
from runtimes.errors import BadModel, RuntimeUnavailable, UnsupportedModel, UsageError
from runtimes.spec import Profile, ShapeRange, TensorSpec, default_profile

_T = TypeVar("_T")

Progress = Callable[[str, int, int], None]
"""Called with the phase of the build, the steps done in it and the steps that it has."""

ARCHITECTURES = {
    "sm75": "Turing",
    "sm80": "Ampere A100",
    "sm86": "Ampere",
    "sm89": "Ada",
    "sm90": "Hopper",
    "sm100": "Blackwell B200",
    "sm120": "Blackwell RTX 50",
    "sm121": "Blackwell GB10",
}
"""What people call the compute capabilities (CUDA C++ Programming Guide, "Compute Capabilities")."""

_LEVELS = range(6)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine is built.

    Attributes:
        workspace_bytes: Most scratch memory a kernel may use; None leaves it to the library.
        optimization_level: 0 (builds fastest) to 5 (runs fastest); None is the library's own default, 3.
        timing_cache: Whether kernel timings of earlier builds are used; TensorRT alone times kernels.
        cuda_graph: Build for runs that are captured into a CUDA graph: one stream, nothing allocated in a run.
    """

    workspace_bytes: int | None = None
    optimization_level: int | None = None
    timing_cache: bool = True
    cuda_graph: bool = False
    tf32: bool = False

    def __post_init__(self) -> None:
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise UsageError(f"the workspace must be at least 1 byte, not {self.workspace_bytes}")
        if self.optimization_level is not None and self.optimization_level not in _LEVELS:
            raise UsageError(f"the builder's optimisation level goes from 0 to 5, not {self.optimization_level}")


# ---- shapes --------------------------------------------------------------------------------------------------------


def parse_shapes(argument: str) -> dict[str, ShapeRange]:
    """Reads ``input:1x3x224x224,8x3x224x224,32x3x224x224``: minimum, optimum and maximum per input.

    One shape in place of three fixes the input to it. Several inputs are separated by ``;``. An input's name may hold
    colons: the shapes follow the last one.

    Raises:
        UsageError: It says anything else; the message names the part.
    """
    profile: dict[str, ShapeRange] = {}
    for part in (p.strip() for p in argument.split(";")):
        if not part:
            continue
        name, colon, shapes = (piece.strip() for piece in part.rpartition(":"))
        if not colon or not name:
            raise UsageError(f"'{part}' names no input: {_SHAPES_FORM}")
        if name in profile:
            raise UsageError(f"input '{name}' is given shapes twice")
        parsed = [_parse_shape(text.strip(), name) for text in shapes.split(",")]
        if len(parsed) == 1:
            parsed *= 3
        if len(parsed) != 3:
            raise UsageError(f"input '{name}' is given {len(parsed)} shapes, expected 3 (or 1): {_SHAPES_FORM}")
        try:
            profile[name] = ShapeRange(*parsed)
        except UsageError as error:
            raise UsageError(f"input '{name}': {error.message}") from error
    if not profile:
        raise UsageError(f"no shapes given: {_SHAPES_FORM}")
    return profile


_SHAPES_FORM = "expected NAME:MIN,OPT,MAX, like input:1x3x224x224,8x3x224x224,32x3x224x224"
_MOST_EXTENT = 2**31 - 1  # an engine's dimensions are below 2**31


def _parse_shape(text: str, name: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[0-9]{1,10}(x[0-9]{1,10})*", text):
        raise UsageError(f"input '{name}': '{text}' is not a shape: {_SHAPES_FORM}")
    shape = tuple(int(n) for n in text.split("x"))
    if not all(1 <= n <= _MOST_EXTENT for n in shape):
        raise UsageError(f"input '{name}': extents must be between 1 and 2³¹ − 1, not {text}")
    return shape


def fit_profile(inputs: Sequence[TensorSpec], given: Profile | None) -> Profile:
    """Completes and checks the shapes given for a model.

    Without any it is ``default_profile``; inputs without open dimensions may be left out.

    Raises:
        UsageError: An input is unknown or missing, or the shapes do not fit it.
    """
    if given is None:
        return default_profile(inputs)
    known = {spec.name for spec in inputs}
    unknown = [name for name in given if name not in known]
    if unknown:
        raise UsageError(
            f"--shapes names {', '.join(unknown)}, but the inputs are {', '.join(str(spec) for spec in inputs)}"
        )
    profile: dict[str, ShapeRange] = {}
    extents: dict[str, tuple[tuple[int, int, int], str]] = {}
    for spec in inputs:
        accepted = given.get(spec.name) or default_profile([spec])[spec.name]
        if len(accepted.minimum) != len(spec.shape):
            raise UsageError(f"--shapes gives input {spec} {len(accepted.minimum)} axes, expected {len(spec.shape)}")
        for want, low, usual, high in zip(
            spec.shape, accepted.minimum, accepted.optimum, accepted.maximum, strict=True
        ):
            if isinstance(want, int):
                if not low == high == want:
                    given_extent = str(low) if low == high else f"{low} to {high}"
                    raise UsageError(f"--shapes gives input {spec} the extent {given_extent} where it is {want}")
                continue
            before = extents.setdefault(want, ((low, usual, high), spec.name))
            if before[0] != (low, usual, high):
                raise UsageError(
                    f"--shapes gives dimension '{want}' {before[0]} in '{before[1]}' and {(low, usual, high)} in "
                    f"'{spec.name}'; they are one dimension"
                )
        profile[spec.name] = accepted
    return profile


# ---- targets -------------------------------------------------------------------------------------------------------


def parse_target(argument: str) -> str:
    """Returns ``sm86`` from ``sm86``, ``SM_86``, ``8.6`` or ``86``; raises ``UsageError`` for anything else."""
    found = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", argument.strip().lower())
    if not found:
        raise UsageError(f"'{argument}' is not a compute capability: expected one like sm86 or 8.6")
    return f"sm{found[1]}{found[2]}"


@dataclass(frozen=True)
class _Target:
    name: str
    gpu: nvidia.Gpu | None  # the one to build on; None builds ahead of time


def _choose_target(library: trt_shim.Library, asked: str | None, device: str) -> _Target:
    wanted = None if asked is None else parse_target(asked)
    known = library.targets()
    if library.is_rtx and wanted is not None:
        if wanted not in known:
            raise UsageError(
                f"{library.title} {library.version} can't build for '{asked}': choose {_describe_targets(known)}"
            )
        return _Target(wanted, None)
    try:
        gpu = trt_shim.require_gpu(library.name, device)
    except RuntimeUnavailable as missing:
        if library.is_rtx:
            raise UsageError(
                f"{missing.message}, so that the GPU to build for must be named: {_describe_targets(known)}",
                fix="--target sm89",
            ) from missing
        raise
    if wanted is not None and wanted != gpu.target:
        raise UsageError(
            f"TensorRT builds only for the GPU that it builds on ({gpu.name}, {gpu.target}), not for {wanted}",
            fix="leave --target out, or use --runtime tensorrt-rtx, which builds for other GPUs",
        )
    if library.is_rtx and gpu.target not in known:
        raise RuntimeUnavailable(
            f"{library.title} {library.version} does not support {gpu.name} ({gpu.target}); "
            f"it builds for {_describe_targets(known)}",
            fix="--target with one of them, or --runtime tensorrt on this GPU",
        )
    return _Target(gpu.target, None if library.is_rtx else gpu)


def _capability(target: str) -> int:
    return int(target.removeprefix("sm"))


def _describe_targets(targets: Sequence[str]) -> str:
    return ", ".join(describe_target(target) for target in targets)


def describe_target(target: str) -> str:
    """Returns a compute capability with what people call it: ``sm86 (Ampere)``."""
    return f"{target} ({ARCHITECTURES[target]})" if target in ARCHITECTURES else target


# ---- building ------------------------------------------------------------------------------------------------------


def build_engine(
    model: Path | onnx_gate.CheckedModel,
    *,
    library: trt_shim.LibraryName,
    target: str | None = None,
    shapes: Profile | None = None,
    options: EngineOptions | None = None,
    device: str = "cuda:0",
    progress: Progress = lambda phase, done, steps: None,
    rebuild: bool = False,
) -> engines.Engine:
    """Builds an engine into the cache, or returns the one that is there.

    Args:
        model: An ONNX file; passed through the loading gate if it has not been.
        library: What builds.
        target: Compute capability to build for (``sm86``, ``8.6``); None is that of `device`. TensorRT builds only
            for the GPU it builds on.
        shapes: Accepted shapes by input name; None accepts batches 1 to 64 and is fastest at 8.
        options: How to build.
        device: GPU to build on or for, where `target` is None.
        progress: Called from another thread while the library works.
        rebuild: Build even where a sound engine is cached.

    Raises:
        UsageError: Shapes or target do not fit; the message lists what does.
        RuntimeUnavailable: The library is missing, or a GPU is needed and there is none.
        BadModel: The file did not pass the gate, or was changed since.
        UnsupportedModel: The library can't build this model; names the node.
        OutOfMemory: The build needs more memory than the GPU has.
    """
    options = options or EngineOptions()
    nvidia.check_tf32_override(options.tf32)
    loaded, chosen = _prepare(library, target, device)
    checked = model if isinstance(model, onnx_gate.CheckedModel) else onnx_gate.check_onnx(model)
    profile = fit_profile(checked.inputs, shapes)
    key = engine_key(checked, loaded, chosen.name, profile, options, gpu=chosen.gpu)
    job = _Job(checked, loaded, chosen, key, options, progress)
    return engines.find_or_build(key, job.build, rebuild=rebuild)


def require_builder(library: trt_shim.LibraryName, *, target: str | None = None, device: str = "cuda:0") -> str:
    """Checks what can be checked before a model is looked at; returns the compute capability that is built for.

    Raises:
        UsageError: The target is not a compute capability, or must be named; the message lists the valid ones.
        RuntimeUnavailable: The library is missing, or a GPU is needed and there is none.
    """
    return _prepare(library, target, device)[1].name


def _prepare(library: trt_shim.LibraryName, target: str | None, device: str) -> tuple[trt_shim.Library, _Target]:
    if target is not None:
        parse_target(target)
    if not trt_shim.KNOWN[library].builds_ahead:
        # Without a GPU nothing is built; and the driver is the first thing to install.
        trt_shim.require_gpu(library, device)
    loaded = trt_shim.load(library)
    return loaded, _choose_target(loaded, target, device)


def engine_key(
    checked: onnx_gate.CheckedModel,
    library: trt_shim.Library,
    target: str,
    profile: Profile,
    options: EngineOptions,
    *,
    gpu: nvidia.Gpu | None = None,
) -> engines.EngineKey:
    """Returns the cache key of an engine: everything that changes it.

    The GPU's model is part of it where the builder times kernels on it: another model of the same compute capability
    would choose others. Timing caches are not: they shorten the build.
    """
    return engines.EngineKey(
        model_sha256=checked.sha256,
        external_sha256={name: files.sha256_file(checked.path.parent / name) for name in checked.external_data},
        profile=profile,
        precision=next((v for k, v in checked.metadata.items() if k.rpartition(".")[2] == "precision"), ""),
        tf32=options.tf32,
        library=library.name,
        library_version=library.version,
        target=target,
        gpu="" if gpu is None else f"{gpu.name}, {gpu.multiprocessors} multiprocessors",
        options={
            name: "library's own" if getattr(options, name) is None else getattr(options, name)
            for name in ("workspace_bytes", "optimization_level", "cuda_graph")
        },
    )


@dataclass(frozen=True)
class _Job:
    checked: onnx_gate.CheckedModel
    library: trt_shim.Library
    target: _Target
    key: engines.EngineKey
    options: EngineOptions
    progress: Progress

    def build(self) -> tuple[bytes, engines.Engine]:
        cancelled = threading.Event()
        return _interruptible(lambda: self._build_in_thread(cancelled), cancelled)

    def _build_in_thread(self, cancelled: threading.Event) -> tuple[bytes, engines.Engine]:
        if self.target.gpu is None:
            return self._build(cancelled)
        torch = load_library("torch", runtime=self.library.name, package="resnet-onnx")
        with torch.cuda.device(self.target.gpu.device):
            return self._build(cancelled)

    def _build(self, cancelled: threading.Event) -> tuple[bytes, engines.Engine]:
        begin = time.monotonic()
        library, trt = self.library, self.library.trt
        what = f"{library.title} can't build {self.checked.path.name}"
        with library.messages() as messages:
            builder = library.make("builder", lambda: trt.Builder(library.logger))
            network = library.create_network(builder)
            parser = library.make("ONNX parser", lambda: trt.OnnxParser(network, library.logger))
            parsed = parser.parse(_read_checked(self.checked), str(self.checked.path))
            errors = [_parser_problem(parser.get_error(i)) for i in range(parser.num_errors)]
        if not parsed:
            raise UnsupportedModel(parse_failure(what, errors), fix="choose another runtime, or change the model")
        warnings = _warnings(messages)
        self._check_types(network, what)
        layers = _inspect(network)
        with library.messages() as messages:
            config = self._configure(builder, cancelled)
            timings = self._use_timings(config)
            plan = builder.build_serialized_network(network, config)
        if plan is None:
            if cancelled.is_set():
                raise _CancelledError
            raise trt_shim.explain(what, messages, fix=self._way_out(messages, layers))
        self._keep_timings(config, timings)
        engine = engines.Engine(
            key=self.key,
            seconds=round(time.monotonic() - begin, 3),
            dimensions={spec.name: spec.shape for spec in (*self.checked.inputs, *self.checked.outputs)},
            layers=layers,
            warnings=(*warnings, *_warnings(messages)),
            model=self.checked.path.name,
            dtypes={spec.name: str(spec.dtype) for spec in (*self.checked.inputs, *self.checked.outputs)},
            metadata=self.checked.metadata,
        )
        return bytes(memoryview(plan)), engine

    def _way_out(self, messages: Sequence[trt_shim.Message], layers: Sequence[Mapping[str, Any]]) -> str:
        """Returns what to try where the library did not build; it names what one architecture lacks as unsupported."""
        if not any("not supported" in message.text for message in messages):
            return "resnet-onnx doctor"
        ways = []
        if any(row["precision"] == "fp32" for row in layers):
            ways.append(f"another precision: resnet-onnx convert {self.checked.path} --to fp16")
        newer = [target for target in self.library.targets() if _capability(target) > _capability(self.target.name)]
        if self.library.is_rtx and newer:
            ways.append(f"another GPU: --target {newer[0]}")
        return ", or ".join(ways) or "choose another runtime"

    def _check_types(self, network: Any, what: str) -> None:
        """The parser narrows float64 to float32 without a word; a caller would never know."""
        tensors = [network.get_input(i) for i in range(network.num_inputs)]
        tensors += [network.get_output(i) for i in range(network.num_outputs)]
        wanted = {spec.name: spec.dtype for spec in (*self.checked.inputs, *self.checked.outputs)}
        for tensor in tensors:
            found = self.library.dtype(tensor.dtype, tensor.name)
            if wanted.get(tensor.name, found) != found:
                raise UnsupportedModel(
                    f"{what}: '{tensor.name}' is {wanted[tensor.name]}, of which it would make {found}",
                    fix="choose another runtime, or export the model in fp32",
                )

    def _configure(self, builder: Any, cancelled: threading.Event) -> Any:
        library, trt, options = self.library, self.library.trt, self.options
        config = builder.create_builder_config()
        if options.tf32:
            config.set_flag(trt.BuilderFlag.TF32)
        else:
            config.clear_flag(trt.BuilderFlag.TF32)  # both libraries set it by themselves
        if options.workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.cuda_graph:
            library.keep_capturable(config)
        if library.is_rtx:
            library.set_target(config, self.target.name)
        optimization_profile = builder.create_optimization_profile()
        for name, accepted in self.key.profile.items():
            optimization_profile.set_shape(name, accepted.minimum, accepted.optimum, accepted.maximum)
        config.add_optimization_profile(optimization_profile)
        monitor = library.progress_monitor(self.progress, cancelled.is_set)
        if monitor is not None:
            config.progress_monitor = monitor
        return config

    def _timings_name(self) -> str:
        gpu = self.target.gpu
        owner = "" if gpu is None else f"{gpu.name}-{gpu.multiprocessors}"
        digest = hashlib.sha256(owner.encode()).hexdigest()[:16]
        return f"{self.library.name}-{self.library.version}-{self.target.name}-{digest}"

    def _use_timings(self, config: Any) -> bytes | None:
        """Gives the builder the timings of earlier builds; returns them, or None where none are used."""
        if not self.options.timing_cache or self.target.gpu is None:
            return None
        before = engines.load_timings(self._timings_name())
        config.set_timing_cache(config.create_timing_cache(before), False)
        return before

    def _keep_timings(self, config: Any, before: bytes | None) -> None:
        if before is None:
            return
        timings = config.get_timing_cache()
        after = before if timings is None else bytes(memoryview(timings.serialize()))
        if after != before:
            engines.store_timings(self._timings_name(), after)


class _CancelledError(Exception):
    """The build was cancelled."""


def _interruptible(work: Callable[[], _T], cancelled: threading.Event) -> _T:
    """Runs `work` in a thread, so that Ctrl-C reaches Python while the library works, and then ends the build."""
    result: Future[_T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # raised again by the thread that waits
            result.set_exception(error)

    thread = threading.Thread(target=run, name="engine-build", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(timeout=0.1)
    except BaseException:
        cancelled.set()
        thread.join(timeout=5)
        raise
    return result.result()


def _read_checked(checked: onnx_gate.CheckedModel) -> bytes:
    """Returns the bytes that passed the gate; refuses a file that was changed since."""
    data = checked.path.read_bytes()
    if hashlib.sha256(data).hexdigest() != checked.sha256:
        raise BadModel(f"{checked.path} was changed while it was being used", fix="run the command again")
    return data


# ---- what was parsed -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParserProblem:
    """One error of the ONNX parser; `node` and `operator` are "" where it names none."""

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        where = f"node '{self.node}' ({self.operator}): " if self.node else ""
        return where + self.reason


def _parser_problem(parser_error: Any) -> ParserProblem:
    return ParserProblem(
        parser_error.node_name(),
        parser_error.node_operator(),
        plain_reason(parser_error.desc(), parser_error.code().name),
    )


def plain_reason(description: str, code: str) -> str:
    """Returns the parser's words without what only its makers need.

    For an operator that the parser does not know ``ParserError.desc`` is the bare word ``false``.
    """
    text = " ".join(description.split())
    if text in ("", "false") and code.startswith("UNSUPPORTED"):
        part = {
            "_ATTR": "an attribute of the",
            "_DATATYPE": "a data type of the",
            "_SHAPE": "a shape of the",
            "": "the",
        }
        found = part.get(code.removeprefix("UNSUPPORTED_NODE"))
        return f"{found} operator is not supported" if found else "it is not supported"
    # Without a driver every error drags the failed look for one behind it.
    before, _, _ = text.partition(" [checkMacros.cpp::catchCudaError")
    return before or text


def _warnings(messages: Sequence[trt_shim.Message]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(" ".join(m.text.split()) for m in messages if m.severity == "WARNING"))


def parse_failure(what: str, problems: Sequence[ParserProblem]) -> str:
    """Returns the message for a model that the parser refused: the first problems, and how many more."""
    shown = list(dict.fromkeys(str(problem) for problem in problems))
    if not shown:
        return f"{what}: the parser refused it and gave no reason"
    more = f"; and {len(shown) - 3} more" if len(shown) > 3 else ""
    return f"{what}: {'; '.join(shown[:3])}{more}"


def _inspect(network: Any) -> tuple[Mapping[str, Any], ...]:
    """Returns the layers of a parsed network as rows of type, precision and count; the commonest first."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        tensor = layer.get_output(0) if layer.num_outputs else None
        precision = "" if tensor is None else trt_shim.PRECISIONS.get(tensor.dtype.name, tensor.dtype.name.lower())
        counts[layer.type.name.lower().replace("_", " "), precision] += 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple({"type": kind, "precision": precision, "count": n} for (kind, precision), n in ordered)
