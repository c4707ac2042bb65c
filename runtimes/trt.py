"""TensorRT and TensorRT for RTX: one adapter, parameterised on the library.

Engines come from this machine's own cache (``runtimes.engines``). Device memory and streams are torch's, which loads
when an engine is opened. Executing needs a GPU: where none was at hand the code in this file was checked against the
installed module by name, and its logic (profiles, keys, gate, errors, placement) tested apart from it, but it was
**built and parsed, not executed**.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from runtimes import engines, nvidia, trt_shim
from runtimes.base import Prepared, Runtime, close_all
from runtimes.environment import load_library
from runtimes.errors import (
    BadModel,
    OutOfMemory,
    RunFailed,
    RuntimeUnavailable,
    ToolkitError,
    UnsupportedModel,
    is_out_of_memory,
    reason,
)
from runtimes.nvidia import check_driver
from runtimes.spec import LayerTime, NodePlacement, Scope, ShapeRange, TensorSpec, check_profile


class TensorRTFamilyRuntime(Runtime):
    """What both libraries share."""

    default_device = "cuda:0"
    opens = ("engine",)
    suffixes = (engines.SUFFIX, ".plan")
    uses = frozenset({"tf32", "cuda_graph", "trust_engine"})
    precisions = frozenset({"fp32", "fp16", "int8"})
    not_bundled_because = "opens engines, for which there is no program yet that runs them without resnet-onnx"
    library_name: ClassVar[trt_shim.LibraryName]

    @classmethod
    def _installed_version(cls) -> str | None:
        return trt_shim.installed_version(cls.library_name)

    @classmethod
    def _probe(cls, device: str) -> tuple[str, tuple[str, ...]]:
        gpu = trt_shim.require_gpu(cls.library_name, device)
        major, known = trt_shim.cuda_major(cls.library_name), trt_shim.KNOWN[cls.library_name]
        check_driver(gpu, major, for_cuda12=f"'{known.for_cuda12}'")
        library = trt_shim.load(cls.library_name)
        check_capability(library, gpu)
        return library.version, tuple(nvidia.gpu_names())

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], Mapping[str, Any]]:
        path = self.source.path
        if path is None or path.suffix == ".onnx":
            raise BadModel(
                f"runtime '{self.name}' opens engines, and {self.source.name} is not one",
                fix=f"build one: resnet-onnx build … --runtime {self.name}",
            )
        plan, record = engines.load_engine(path, trust=self.options.trust_engine)
        self._library = library = trt_shim.load(self.library_name)
        self._gpu = trt_shim.require_gpu(self.library_name, self.device)
        if record is not None:
            check_record(record, library, self._gpu)
        self._torch = load_library("torch", runtime=self.name, package="resnet-onnx")
        trt = library.trt
        with self._torch.cuda.device(self.device), library.messages() as messages:
            deserializer = library.make("runtime", lambda: trt.Runtime(library.logger))
            deserializer.engine_host_code_allowed = False
            engine = deserializer.deserialize_cuda_engine(plan)
            if engine is None:
                raise trt_shim.explain(f"{self.name} can't load the engine {path}", messages)
            names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
            given = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
            count = max(1, engine.num_optimization_profiles)
            check_tensors(engine, trt, names, profiles=count, who=f"{self.name}: the engine {path}")
            self._profiles = [
                {
                    name: profile_range(engine.get_tensor_profile_shape(name, index), engine.get_tensor_shape(name))
                    for name in given
                }
                for index in range(count)
            ]
            ours = path if record is not None and engines.is_ours(path) else None
            self._kernels = _Kernels(library, self._gpu, ours)
            self._runtime_config = library.create_runtime_config(engine, self._kernels.load())
        self._deserializer, self._engine = deserializer, engine
        specs = [self._spec(name) for name in names]
        axes = record.dimensions if record is not None else {}
        inputs = engines.specs_with_names(tuple(s for s in specs if s.name in given), axes)
        outputs = engines.specs_with_names(tuple(s for s in specs if s.name not in given), axes)
        self._lane: _Lane | None = None
        return inputs, outputs, {
            "engine": record.key.digest if record is not None else "from elsewhere",
            "engine_sha256": record.sha256 if record is not None else "",
            "library": f"{library.title} {library.version}",
            "gpu": self._gpu.name,
            "target": record.key.target if record is not None else self._gpu.target,
            "shapes": {name: " or ".join(str(each[name]) for each in self._profiles) for name in given},
            "tf32": record.key.tf32 if record is not None else None,
            "cuda_graph": self.options.cuda_graph,
            "trusted_by_user": record is None or not engines.is_ours(path),
        }  # fmt: skip

    def _spec(self, name: str) -> TensorSpec:
        engine = self._engine
        shape = tuple(n if n >= 0 else f"{name}.{axis}" for axis, n in enumerate(engine.get_tensor_shape(name)))
        return TensorSpec(name, self._library.dtype(engine.get_tensor_dtype(name), name), shape)

    def _placement(self) -> tuple[NodePlacement, ...]:
        engine, trt = self._engine, self._library.trt
        inspector = engine.create_engine_inspector()
        report = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        return layer_placement(report, f"{self._library.title} engine", self.device)

    def _fitting_profile(self, feeds: Mapping[str, NDArray[Any]]) -> int:
        """Returns the number of the profile for these shapes; raises ``BadFeeds`` where the engine has none."""
        for index, profile in enumerate(self._profiles[:-1]):
            if all(accepted.accepts(feeds[name].shape) for name, accepted in profile.items()):
                return index
        check_profile(feeds, self._profiles[-1], who=self.name, others=self._profiles[:-1])
        return len(self._profiles) - 1

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self._fitting_profile(feeds)
        lane = self._lane = self._lane or _Lane(self)
        lane.bind(feeds)
        lane.copy_in(feeds)
        lane.execute()
        lane.copy_out()
        lane.synchronize()
        return lane.results()

    def _layer_times(self, feeds: dict[str, NDArray[Any]], runs: int) -> list[LayerTime]:
        self._fitting_profile(feeds)
        seconds: dict[str, float] = {}

        class Profiler(self._library.trt.IProfiler):  # type: ignore[misc, name-defined]
            def __init__(self, base: Any) -> None:
                base.__init__(self)  # pybind11 insists on its own

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                seconds[layer_name] = seconds.get(layer_name, 0.0) + ms / 1e3 / runs

        with contextlib.closing(_Lane(self)) as lane:
            lane.bind(feeds)
            lane.copy_in(feeds)
            lane.execute()
            lane.synchronize()
            lane.watch(Profiler(self._library.trt.IProfiler))
            for _ in range(runs):
                lane.execute()
                lane.synchronize()
        return [LayerTime(name, "engine layer", time) for name, time in seconds.items()]

    def _prepare(self, feeds: dict[str, NDArray[Any]], scope: Scope) -> Prepared:
        self._fitting_profile(feeds)
        return _PreparedEngine(self, feeds, scope)

    def _close(self) -> None:
        # Contexts before their engine, the engine before what deserialised it.
        lane, self._lane = self._lane, None
        close_all([*([] if lane is None else [lane.close]), self._keep_kernels, self._free])

    def _keep_kernels(self) -> None:
        if self._runtime_config is not None:
            self._kernels.store(self._library.compiled_kernels(self._runtime_config))

    def _free(self) -> None:
        del self._runtime_config
        del self._engine
        del self._deserializer
        self._torch.cuda.empty_cache()  # torch would keep the buffers' memory from other libraries and processes


class _Kernels:
    """What TensorRT for RTX compiled an engine of our cache into, kept beside it; nothing of engines from elsewhere."""

    def __init__(self, library: trt_shim.Library, gpu: nvidia.Gpu, engine: Path | None) -> None:
        self._engine, self._stored = engine, b""
        self._where = f"{library.name} {library.version}, {gpu.name}, {gpu.target}, driver {gpu.driver}"

    def load(self) -> bytes:
        """Returns what earlier processes compiled, or b""."""
        if self._engine is not None:
            self._stored = engines.load_kernels(self._engine, self._where)
        return self._stored

    def store(self, kernels: bytes) -> None:
        """Keeps what was compiled now, where it is not what was there."""
        if self._engine is not None and kernels and kernels != self._stored:
            engines.store_kernels(self._engine, self._where, kernels)
            self._stored = kernels


class _Lane:
    """One execution context with its stream and buffers; two lanes run side by side.

    Buffers are bytes, so that torch need not know the dtypes; they grow with the largest shape seen and then stay. They
    belong to the lane's own stream: torch gives freed memory away in the order of the stream that it was reserved on.
    """

    def __init__(self, runtime: TensorRTFamilyRuntime) -> None:
        self._owner, self._torch = runtime, runtime._torch
        library = runtime._library
        with self._guard("making an execution context"), library.messages() as messages:
            self.stream = self._torch.cuda.Stream(device=runtime.device)
            self._context = library.create_context(runtime._engine, runtime._runtime_config)
        if self._context is None:
            raise trt_shim.explain(f"{runtime.name} can't make an execution context", messages)
        self._running = self._guard("running")
        self._start: Any = self._context.execute_async_v3
        self._handle = self.stream.cuda_stream
        self._device: dict[str, Any] = {}
        self._host: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._profile = 0  # a new context has the first

    def close(self) -> None:
        """Waits for what was started, and frees context and buffers, also where waiting fails."""
        close_all([self.synchronize, self._free])

    def _free(self) -> None:
        self._start = None
        self._context = None
        self._device.clear()
        self._host.clear()

    def watch(self, profiler: Any) -> None:
        """Reports the time of every layer of later runs to a profiler of the library."""
        self._context.profiler = profiler

    def bind(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Tells the context the shapes of the inputs and where inputs and outputs lie."""
        runtime, context = self._owner, self._context
        shapes = {name: tuple(array.shape) for name, array in feeds.items()}
        if all(self._shapes.get(name) == shape for name, shape in shapes.items()):
            return
        self._shapes = {}  # a failure half-way must not look bound
        with self._guard("binding"), runtime._library.messages() as messages:
            profile = runtime._fitting_profile(feeds)
            if profile != self._profile:
                if not context.set_optimization_profile_async(profile, self._handle):
                    raise _run_error(runtime, f"can't choose profile {profile} of {runtime.source.name}", messages)
                self._profile = profile
            accepted = all(context.set_input_shape(name, shape) for name, shape in shapes.items())
            unknown = list(context.infer_shapes()) if accepted else sorted(shapes)
        if unknown:
            raise _run_error(runtime, f"can't settle the shapes of {', '.join(unknown)}", messages)
        with self._guard("reserving memory"):
            for spec in runtime.outputs:
                shapes[spec.name] = tuple(context.get_tensor_shape(spec.name))
                if min(shapes[spec.name], default=1) < 0:
                    raise UnsupportedModel(
                        f"{runtime.name}: the shape of output '{spec.name}' depends on the values of the inputs"
                    )
            for spec in (*runtime.inputs, *runtime.outputs):
                self._sizes[spec.name] = int(np.prod(shapes[spec.name], dtype=np.int64)) * spec.dtype.itemsize
                self._reserve(spec.name, self._sizes[spec.name])
                context.set_tensor_address(spec.name, self._device[spec.name].data_ptr())
        self._shapes = shapes

    def _reserve(self, name: str, size: int) -> None:
        held = self._device.get(name)
        if held is not None and held.numel() >= size:
            return
        torch = self._torch
        self.stream.synchronize()  # nothing may still use the smaller buffer
        with torch.cuda.stream(self.stream):
            device = torch.empty(max(size, 1), dtype=torch.uint8, device=self._owner.device)
        host = torch.empty(max(size, 1), dtype=torch.uint8, pin_memory=True)
        self._device[name], self._host[name] = device, host

    def fill(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Copies the arrays into pinned memory."""
        for name, array in feeds.items():
            self._host[name].numpy()[: array.nbytes] = array.reshape(-1).view(np.uint8)

    def upload(self) -> None:
        """Starts the copies from pinned memory to the device."""
        with self._torch.cuda.stream(self.stream):
            for spec in self._owner.inputs:
                size = self._sizes[spec.name]
                self._device[spec.name][:size].copy_(self._host[spec.name][:size], non_blocking=True)

    def copy_in(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Copies the arrays to the device."""
        with self._guard("copying to the device"):
            self.fill(feeds)
            self.upload()

    def execute(self) -> None:
        """Starts one run; nothing is made anew here, since it is inside what is measured."""
        with self._running:
            started = self._start(self._handle)
        if not started:
            raise _run_error(
                self._owner, f"running {self._owner.source.name} failed", self._owner._library.take_recent()
            )

    def copy_out(self) -> None:
        """Starts the copies of the outputs to pinned memory."""
        with self._guard("copying from the device"), self._torch.cuda.stream(self.stream):
            for spec in self._owner.outputs:
                size = self._sizes[spec.name]
                self._host[spec.name][:size].copy_(self._device[spec.name][:size], non_blocking=True)

    def synchronize(self) -> None:
        """Waits for this lane alone."""
        with self._guard("running"):
            self.stream.synchronize()

    def timed(self, steps: Mapping[str, Callable[[], None]]) -> dict[str, float]:
        """Returns the seconds that the GPU spends in each step, by CUDA events on this lane's stream."""
        torch = self._torch
        with self._guard("timing"):
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(steps) + 1)]
            marks[0].record(self.stream)
            for mark, step in zip(marks[1:], steps.values(), strict=True):
                step()
                mark.record(self.stream)
            self.stream.synchronize()
            between = itertools.pairwise(marks)
            return {name: begin.elapsed_time(end) / 1e3 for name, (begin, end) in zip(steps, between, strict=True)}

    def results(self) -> dict[str, NDArray[Any]]:
        """Returns the outputs in pinned memory as arrays of the caller's own."""
        arrays = {}
        for spec in self._owner.outputs:
            raw = self._host[spec.name].numpy()[: self._sizes[spec.name]]
            arrays[spec.name] = raw.copy().view(spec.dtype).reshape(self._shapes[spec.name])
        return arrays

    def capture(self, body: Any) -> Any:
        """Returns a CUDA graph of what `body` starts on this lane's stream, or None where it can't be captured."""
        torch = self._torch
        if not self._owner._library.can_capture(self._context, self.stream.cuda_stream):
            return None
        graph = torch.cuda.CUDAGraph()
        with self._guard("capturing a CUDA graph"), torch.cuda.graph(graph, stream=self.stream):
            body()
        return graph

    def _guard(self, doing: str) -> _Guard:
        return _Guard(self._owner, doing)


class _Guard:
    """Selects the device, and turns torch's CUDA errors into ours."""

    def __init__(self, runtime: TensorRTFamilyRuntime, doing: str) -> None:
        self._runtime, self._doing = runtime, doing
        self._selected = runtime._torch.cuda.device(runtime.device)

    def __enter__(self) -> None:
        self._selected.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: Any) -> None:
        self._selected.__exit__(kind, error, tb)
        if isinstance(error, RuntimeError) and not isinstance(error, ToolkitError):
            raise cuda_failure(f"{self._runtime.name}: {self._doing} failed", error) from error


class _PreparedEngine(Prepared):
    """A lane of its own with inputs in place; captured into a CUDA graph where the options ask for it."""

    def __init__(self, runtime: TensorRTFamilyRuntime, feeds: dict[str, NDArray[Any]], scope: Scope) -> None:
        super().__init__(scope)
        self._feeds = feeds
        self._lane = _Lane(runtime)
        self._end_to_end = scope == "end-to-end"
        self._graph: Any = None
        try:
            self._make_ready(runtime)
        except BaseException as error:
            close_all([self._close], after=error)
            raise

    def _make_ready(self, runtime: TensorRTFamilyRuntime) -> None:
        lane = self._lane
        lane.bind(self._feeds)
        lane.copy_in(self._feeds)
        lane.execute()  # allocates and compiles what the first run needs
        lane.synchronize()
        runtime._keep_kernels()  # now: a worker process is killed, not closed
        if runtime.options.cuda_graph:
            self._graph = lane.capture(self._body)
            if self._graph is None:
                raise UnsupportedModel(
                    f"{runtime.name} can't capture this engine into a CUDA graph", fix="run without CUDA graphs"
                )

    @property
    def returns_early(self) -> bool:
        """True: every step is only started."""
        return True

    def _body(self) -> None:
        if self._end_to_end:
            self._lane.upload()
        self._lane.execute()
        if self._end_to_end:
            self._lane.copy_out()

    def _enqueue(self) -> None:
        if self._end_to_end:
            self._lane.fill(self._feeds)
        if self._graph is None:
            self._body()
        else:
            with self._lane._torch.cuda.stream(self._lane.stream):
                self._graph.replay()

    def _synchronize(self) -> None:
        self._lane.synchronize()

    def _phases(self) -> Mapping[str, float] | None:
        if self._graph is not None:
            return None  # a captured run is one piece
        if not self._end_to_end:
            return self._lane.timed({"compute": self._lane.execute})
        self._lane.fill(self._feeds)
        return self._lane.timed(
            {"copy_in": self._lane.upload, "compute": self._lane.execute, "copy_out": self._lane.copy_out}
        )

    def _outputs(self) -> dict[str, NDArray[Any]]:
        if not self._end_to_end:
            self._lane.copy_out()
            self._lane.synchronize()
        return self._lane.results()

    def _close(self) -> None:
        close_all([self._lane.synchronize, self._drop_graph, self._lane.close])

    def _drop_graph(self) -> None:
        self._graph = None


def check_tensors(engine: Any, trt: Any, names: Sequence[str], *, profiles: int, who: str) -> None:
    """Raises ``UnsupportedModel`` where a tensor does not lie in the GPU's memory as plain rows of elements.

    The builder here makes no other engine; trtexec and other programs do.
    """
    for name in names:
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise UnsupportedModel(
                f"{who} wants '{name}' in the host's memory, as a tensor that decides shapes; only tensors in the "
                "GPU's memory are supported",
                fix=_FOREIGN_FIX,
            )
        for index in range(profiles):
            if engine.get_tensor_format(name, index) != trt.TensorFormat.LINEAR:
                form = engine.get_tensor_format_desc(name, index)
                raise UnsupportedModel(
                    f"{who} wants '{name}' in the format {form}; only LINEAR, rows of single elements, is supported",
                    fix=_FOREIGN_FIX,
                )


_FOREIGN_FIX = "build it from its ONNX file: resnet-onnx build"


def check_capability(library: trt_shim.Library, gpu: nvidia.Gpu) -> None:
    """Raises ``RuntimeUnavailable`` for a GPU that the library does not support."""
    major, minor = gpu.compute_capability
    known = library.targets()
    if gpu.compute_capability < trt_shim.OLDEST_CAPABILITY or (known and gpu.target not in known):
        supported = ", ".join(known) if known else "7.5 and newer"
        raise RuntimeUnavailable(
            f"{library.title} {library.version} does not support {gpu.name} (compute capability {major}.{minor}); "
            f"it supports {supported}",
            fix="use another runtime on this GPU: resnet-onnx doctor",
        )


def check_record(record: engines.Engine, library: trt_shim.Library, gpu: nvidia.Gpu) -> None:
    """Raises where an engine was built by another library or version, or for another GPU.

    Raises:
        BadModel: Another library, or another version of it.
        UnsupportedModel: Another GPU.
    """
    key = record.key
    again = f"build it again here: resnet-onnx build … --runtime {library.name}"
    if (key.library, key.library_version) != (library.name, library.version):
        raise BadModel(
            f"the engine was built by {key.library} {key.library_version}, here is {library.name} {library.version}",
            fix=again,
        )
    if key.target != gpu.target:
        raise UnsupportedModel(
            f"the engine was built for {key.target}, but {gpu.device} is {gpu.name} ({gpu.target})", fix=again
        )


def profile_range(profile: Sequence[Sequence[int]], shape: Sequence[int]) -> ShapeRange:
    """Returns what an input accepts; an engine without a profile for it accepts its one fixed shape.

    Args:
        profile: Minimum, optimum and maximum, as ``get_tensor_profile_shape`` says; empty or negative without one.
        shape: As ``get_tensor_shape`` says.
    """
    shapes = [tuple(dims) for dims in profile]
    if len(shapes) == 3 and all(len(s) == len(shape) and min(s, default=1) >= 1 for s in shapes):
        return ShapeRange(*shapes)
    return ShapeRange(*[tuple(shape)] * 3)


def layer_placement(report: str, provider: str, device: str) -> tuple[NodePlacement, ...]:
    """Returns one row per layer of an engine inspector's JSON report; one row for the engine where it names none."""
    try:
        layers = json.loads(report)["Layers"]
    except (ValueError, KeyError, TypeError):
        layers = []
    found = [row if isinstance(row, dict) else {"Name": row} for row in layers]
    rows = [NodePlacement(str(row.get("Name", "")), str(row.get("LayerType", "")), provider, device) for row in found]
    return tuple(rows) or (NodePlacement("*", "", provider, device),)


def cuda_failure(what: str, error: RuntimeError) -> RunFailed:
    """Returns the error for what torch raised: out of memory, or another failure of the device."""
    if is_out_of_memory(error):
        return OutOfMemory(f"{what}: {reason(error)}", fix="use a smaller batch")
    return RunFailed(f"{what}: {reason(error)}")


def _run_error(runtime: TensorRTFamilyRuntime, what: str, messages: list[trt_shim.Message]) -> ToolkitError:
    found = trt_shim.explain(f"{runtime.name}: {what}", messages)
    return found if isinstance(found, OutOfMemory) else RunFailed(found.message)


class TensorRTRuntime(TensorRTFamilyRuntime):
    """NVIDIA TensorRT 10.x and 11."""

    name = "tensorrt"
    title = "NVIDIA TensorRT"
    library_name = "tensorrt"


class TensorRTRTXRuntime(TensorRTFamilyRuntime):
    """NVIDIA TensorRT for RTX."""

    name = "tensorrt-rtx"
    title = "NVIDIA TensorRT for RTX"
    library_name = "tensorrt-rtx"
