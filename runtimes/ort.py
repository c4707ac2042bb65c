"""ONNX Runtime: the CPU, CUDA and TensorRT providers behind one adapter.

The CPU provider runs in the project's tests. The CUDA and TensorRT providers need an NVIDIA driver: what they are told
and what their refusals mean is in ``runtimes.ort_gpu`` and tested there; the few lines here that only a GPU can run
have **not been executed** where no GPU was at hand.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes import nvidia, onnx_arithmetic, onnx_gate, onnx_types, ort_gpu
from runtimes.base import HostRuns, Prepared, Runtime, close_all
from runtimes.environment import load_library, package_version
from runtimes.errors import (
    BadModel,
    NoKernel,
    OutOfMemory,
    RunFailed,
    RuntimeUnavailable,
    ToolkitError,
    UnsupportedModel,
    is_out_of_memory,
    reason,
)
from runtimes.spec import LayerTime, NodePlacement, Scope, TensorSpec, check_profile

_NEWER = re.compile(
    r"Unsupported model IR version: (\d+), max supported IR version: (\d+)"
    r"|Opset (\d+) is under development .*? till opset (\d+)"
)
"""How ONNX Runtime says that a file is newer than it is."""


class OrtRuntime(Runtime):
    """What all providers share; a provider fills the three small holes at the end."""

    provider = ""
    uses = frozenset({"threads", "streams", "spin", "optimize"})
    standalone = "runtimes.standalone.onnxruntime_engine"
    distributions = ("onnxruntime-gpu", "onnxruntime")

    @classmethod
    def _installed_version(cls) -> str | None:
        return package_version(*cls.distributions)

    @classmethod
    def _probe(cls, device: str) -> tuple[str, tuple[str, ...]]:
        ort = cls._library()
        if cls.provider not in ort.get_available_providers():
            raise RuntimeUnavailable(
                f"the installed ONNX Runtime {ort.__version__} was built without {cls.provider}",
                fix="pip install 'onnxruntime-gpu' in place of 'onnxruntime'",
            )
        return str(ort.__version__), (device,)

    @classmethod
    def _library(cls) -> Any:
        """Loads ONNX Runtime: the one place that imports it, in every process."""
        ort = load_library("onnxruntime", runtime=cls.name, package="resnet-onnx")
        ort.set_default_logger_severity(4)  # an error also arrives as an exception, which we report
        return ort

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], Mapping[str, Any]]:
        if self.source.path is None:
            raise BadModel(f"runtime '{self.name}' opens ONNX files, but {self.source.name} has none")
        checked = onnx_gate.check_onnx(self.source.path)
        self._ort = self._library()
        self._checked = checked
        settings = self._settings()
        try:
            self._session, providers = self._start(checked, settings)
            # Runs on one session share its threads and wait for each other: on the CPU in its allocator, in TensorRT's
            # provider at its lock, in CUDA's on the stream that the session was given.
            self._more_sessions = [self._start(checked, settings)[0] for _ in range(self.streams - 1)]
        except ToolkitError:
            raise
        except Exception as error:
            raise self._open_error(error) from error
        if self.provider not in self._session.get_providers():
            raise ort_gpu.not_started(self.provider, runtime=self.name)
        if self.provider != ort_gpu.CPU:
            ort_gpu.check_placement(self._placement(), self.provider, runtime=self.name, model=self.source.name)
        self._turns = itertools.cycle((self._session, *self._more_sessions))
        return checked.inputs, checked.outputs, {
            "provider": self.provider,
            "provider_options": {k: v for k, v in providers[self.provider].items() if k != ort_gpu.STREAM},
            **self._recorded(),
            **self._precision(checked),
            "threads": settings.intra_op_num_threads * self.streams,
            "sessions": 1 + len(self._more_sessions),
            "spin": self.options.spin,
            "graph_optimization": "all" if self.options.optimize else "none",
        }  # fmt: skip

    def _precision(self, checked: onnx_gate.CheckedModel) -> dict[str, Any]:
        """Returns the precision of a file below float32, and in what it is computed really."""
        precision = onnx_arithmetic.graph_precision(checked.path)
        upcast = precision == "fp16" and self.provider == ort_gpu.CPU and not _half_on_cpu(self._ort)
        return onnx_types.recorded_precision(precision, "fp32" if upcast else precision, checked.metadata)

    def _settings(self) -> Any:
        ort = self._ort
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        settings.intra_op_num_threads = self._threads_per_stream
        settings.inter_op_num_threads = 1
        level = ort.GraphOptimizationLevel
        settings.graph_optimization_level = level.ORT_ENABLE_ALL if self.options.optimize else level.ORT_DISABLE_ALL
        spinning = "1" if self.options.spin else "0"
        settings.add_session_config_entry("session.intra_op.allow_spinning", spinning)
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return settings

    def _start(self, checked: onnx_gate.CheckedModel, settings: Any) -> tuple[Any, dict[str, dict[str, str]]]:
        """Returns a session and its providers with their options, the requested one first."""
        providers: dict[str, dict[str, str]] = {self.provider: {}}
        return self._session_on(checked, settings, providers), providers

    def _session_on(self, checked: onnx_gate.CheckedModel, settings: Any, providers: dict[str, dict[str, str]]) -> Any:
        # With its own fallback on, ONNX Runtime answers a provider's error by starting again on the CPU.
        return self._ort.InferenceSession(
            str(checked.path), settings, providers=list(providers.items()), enable_fallback=0
        )

    def _placement(self) -> tuple[NodePlacement, ...]:
        return tuple(
            NodePlacement(node.name, node.op_type, part.ep_name, "cpu" if part.ep_name == ort_gpu.CPU else self.device)
            for part in self._session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        )

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return self._run_on(self._session, feeds)

    def _run_on(self, session: Any, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        names = [spec.name for spec in self.outputs]
        try:
            if any(s.dtype == onnx_types.BFLOAT16 for s in (*self.inputs, *self.outputs)):
                values = {n: self._value(a, "cpu", 0) for n, a in feeds.items()}
                arrays = [v.numpy() for v in session.run_with_ort_values(names, values, self._run_options())]
            else:
                arrays = session.run(names, feeds, self._run_options())
        except Exception as error:
            raise self._run_error(error) from error
        return {s.name: np.asarray(a) for s, a in zip(self.outputs, arrays, strict=True)}

    def _layer_times(self, feeds: dict[str, NDArray[Any]], runs: int) -> list[LayerTime]:
        with tempfile.TemporaryDirectory() as folder:
            settings = self._settings()
            settings.enable_profiling = True
            settings.profile_file_prefix = f"{folder}/profile"
            try:
                session, _ = self._start(self._checked, settings)  # a session profiles from its start or never
            except Exception as error:
                raise error if isinstance(error, ToolkitError) else self._open_error(error) from error
            for _ in range(runs + 1):
                self._run_on(session, feeds)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return node_times(events, runs)

    def _prepare(self, feeds: dict[str, NDArray[Any]], scope: Scope) -> Prepared:
        if scope == "end-to-end":  # what a caller of ``session.run`` pays
            return HostRuns(functools.partial(self._run_on, next(self._turns)), feeds, scope)
        return _PreparedDevice(self, feeds)

    def _close(self) -> None:
        del self._session, self._more_sessions, self._turns

    def _value(self, array: NDArray[Any], kind: str, index: int) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(array, kind, index)

    def _empty(self, like: Any, kind: str, index: int) -> Any:
        """Returns memory of our own for an output, of the shape and type of one that the library reserved."""
        return self._ort.OrtValue.ortvalue_from_shape_and_type(like.shape(), like.element_type(), kind, index)

    def _open_error(self, error: Exception) -> Exception:
        text = " ".join(str(error).split())
        kind = type(error).__name__
        if is_out_of_memory(error):
            return OutOfMemory(f"{self.name}: {self.source.name} does not fit into memory: {reason(error)}")
        if self.provider != ort_gpu.CPU and (cause := ort_gpu.cause(text)):
            return RuntimeUnavailable(f"runtime '{self.name}' can't run here: {cause}", fix="resnet-onnx doctor")
        if newer := _NEWER.search(text):
            what = "IR version" if newer[1] else "opset"
            return UnsupportedModel(
                f"{self.source.name} has {what} {newer[1] or newer[3]}, at most {newer[2] or newer[4]} here "
                f"({self.name} {self.version})",
                fix="export it with an older onnx, or choose another runtime",
            )
        operator = re.search(r"Could not find an implementation for (\S+?)\(", text)
        if operator and any(spec.dtype == np.float64 for spec in self._checked.inputs):
            return UnsupportedModel(
                f"{self.source.name} is in float64, for which {self.name} has no {operator[1].partition('(')[0]}",
                fix="export it in float32, as with model.float() in torch, or choose another runtime",
            )
        if operator or kind == "NotImplemented":
            what = f"operator {operator[1]}" if operator else "an operator or type"
            return NoKernel(
                f"{self.name} has no kernel for {what} of {self.source.name}: {reason(error)}",
                fix="choose another runtime or precision",
            )
        if kind in ("InvalidGraph", "InvalidProtobuf", "InvalidArgument", "NoSuchFile"):
            return BadModel(f"{self.name} refuses {self.source.name}: {reason(error)}")
        newer = re.search(r"\bopset\b|\bIR version\b", text, re.IGNORECASE)
        return UnsupportedModel(
            f"{self.name} can't open {self.source.name}: {reason(error)}",
            fix="export it again with an older opset and IR version, or choose another runtime" if newer else None,
        )

    def _run_error(self, error: Exception) -> Exception:
        kind = OutOfMemory if is_out_of_memory(error) else RunFailed
        return kind(f"{self.name}: running {self.source.name} failed: {reason(error)}")

    def _recorded(self) -> dict[str, Any]:
        """Returns what else changes numbers or speed."""
        return {}

    def _run_options(self, *, prepared: bool = False) -> Any:
        """Returns the options of a run, or None for the library's own; prepared runs may have a CUDA graph each."""
        return None

    def _stream_of(self, session: Any) -> nvidia.Stream | None:
        """Returns the stream that a session computes on where its runs return early, or None where they wait."""
        return None

    def _memory(self) -> tuple[str, int]:
        """Returns ONNX Runtime's name and index of the memory that the provider computes in."""
        return "cpu", 0


def node_times(events: Sequence[Mapping[str, Any]], runs: int) -> list[LayerTime]:
    """Returns the mean time of each node from ONNX Runtime's profile of `runs` runs and one before them."""
    found: dict[tuple[str, str], list[float]] = {}
    for event in events:
        name, mark, _ = str(event.get("name", "")).rpartition("_kernel_time")
        if mark and event.get("cat") == "Node":
            found.setdefault((name, str(event["args"]["op_name"])), []).append(float(event["dur"]) / 1e6)
    return [
        LayerTime(name, operator, sum(times[len(times) // (runs + 1) :]) / runs)
        for (name, operator), times in found.items()
    ]


@functools.cache
def _half_on_cpu(ort: Any) -> bool:
    """Returns whether the CPU provider convolves in float16 here, as it does on some processors.

    Where it has no kernel, ONNX Runtime casts to float32 around the node, so that one convolution alone has company.
    """
    import onnx
    from onnx import TensorProto, helper

    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 1, size, size]) for name, size in _PROBE.items()
    ]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "probe", values[:2], values[2:])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    with tempfile.TemporaryDirectory(prefix="resnet-onnx-") as folder:
        settings.optimized_model_filepath = f"{folder}/probe.onnx"
        ort.InferenceSession(model.SerializeToString(), settings, providers=[ort_gpu.CPU])
        return all(node.op_type != "Cast" for node in onnx.load(settings.optimized_model_filepath).graph.node)


_PROBE = {"x": 4, "w": 3, "y": 2}


class _PreparedDevice(Prepared):
    """Inputs and outputs bound where the provider computes: nothing is copied and nothing allocated per run.

    Both are ours, at addresses that stay: a captured CUDA graph writes there whenever it is replayed.
    """

    def __init__(self, runtime: OrtRuntime, feeds: dict[str, NDArray[Any]]) -> None:
        super().__init__("device")
        self._runtime = runtime
        kind, index = runtime._memory()
        session = next(runtime._turns)
        binding = session.io_binding()
        self._stream = runtime._stream_of(session)
        try:
            self._inputs = {name: runtime._value(array, kind, index) for name, array in feeds.items()}
            for name, value in self._inputs.items():
                binding.bind_ortvalue_input(name, value)
            for spec in runtime.outputs:
                binding.bind_output(spec.name, kind, index)
            # The first run finds the output shapes.
            session.run_with_iobinding(binding, runtime._run_options())
            self._results = [runtime._empty(found, kind, index) for found in binding.get_outputs()]
            if self._stream is not None:
                self._stream.wait_for_device()
        except Exception as error:
            raise runtime._run_error(error) from error
        binding.clear_binding_outputs()
        for spec, value in zip(runtime.outputs, self._results, strict=True):
            binding.bind_ortvalue_output(spec.name, value)
        self._binding = binding
        self._run = session.run_with_iobinding
        self._options = runtime._run_options(prepared=True)

    @property
    def returns_early(self) -> bool:
        """Where the run has a stream of its own, which ``synchronize`` waits for."""
        return self._stream is not None

    def _enqueue(self) -> None:
        try:
            self._run(self._binding, self._options)
        except Exception as error:
            raise self._runtime._run_error(error) from error

    def _synchronize(self) -> None:
        """A run waits for itself at its end, unless it was told not to (onnxruntime#28539)."""
        if self._stream is not None:
            try:
                self._stream.synchronize()
            except RuntimeError as error:
                raise self._runtime._run_error(error) from error

    def _outputs(self) -> dict[str, NDArray[Any]]:
        return {
            s.name: np.array(v.numpy(), copy=True)
            for s, v in zip(self._runtime.outputs, self._results, strict=True)
        }  # fmt: skip

    def _close(self) -> None:
        close_all([self._synchronize, self._free])

    def _free(self) -> None:
        del self._binding, self._results, self._inputs, self._run


class OrtCpuRuntime(OrtRuntime):
    """ONNX Runtime's own CPU kernels."""

    name = "ort-cpu"
    title = "ONNX Runtime on the CPU"
    precisions = frozenset({"fp32", "fp16", "int8"})
    lowers_int8 = True
    efficiency = 0.8
    provider = "CPUExecutionProvider"


class OrtCudaRuntime(OrtRuntime):
    """ONNX Runtime's CUDA provider: cuDNN and cuBLAS. Built, not executed where no GPU was at hand."""

    name = "ort-cuda"
    title = "ONNX Runtime, CUDA provider"
    uses = OrtRuntime.uses | {"tf32", "cuda_graph", "exhaustive_search", "channels_last"}
    precisions = frozenset({"fp32", "fp16"})
    provider = "CUDAExecutionProvider"
    default_device = "cuda:0"
    package = "resnet-onnx[cuda]"

    @classmethod
    def _probe(cls, device: str) -> tuple[str, tuple[str, ...]]:
        gpu = nvidia.require_gpu(device, package=cls.package)
        version, _ = super()._probe(device)
        ort = cls._library()
        nvidia.check_driver(gpu, ort_gpu.needed_cuda(ort), for_cuda12="'onnxruntime-gpu[cuda,cudnn]>=1.24,<1.27'")
        ort_gpu.check_libraries(ort_gpu.preload(ort), runtime=cls.name)
        return version, tuple(nvidia.gpu_names())

    def _settings(self) -> Any:
        nvidia.check_tf32_override(self.options.tf32)
        self._missing = ort_gpu.preload(self._ort)
        self._graphs = itertools.count(1)
        self._streams: list[tuple[Any, nvidia.Stream]] = []
        return super()._settings()

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], Mapping[str, Any]]:
        try:
            return super()._open()
        except BaseException as error:
            for sessions in ("_session", "_more_sessions", "_turns"):
                self.__dict__.pop(sessions, None)
            close_all([stream.close for _, stream in self.__dict__.pop("_streams", [])], after=error)
            raise

    def _start(self, checked: onnx_gate.CheckedModel, settings: Any) -> tuple[Any, dict[str, dict[str, str]]]:
        providers = self._providers(checked)
        stream = self._new_stream()
        if stream is None:
            return self._start_on_gpu(checked, settings, providers)
        providers[self.provider][ort_gpu.STREAM] = str(stream.handle)
        try:
            session, providers = self._start_on_gpu(checked, settings, providers)
        except BaseException as error:
            close_all([stream.close], after=error)
            raise
        self._streams.append((session, stream))
        return session, providers

    def _open_error(self, error: Exception) -> Exception:
        if self._missing and not is_out_of_memory(error):  # ONNX Runtime would blame the model's first convolution
            return ort_gpu.lacking(self._missing, runtime=self.name)
        return super()._open_error(error)

    def _new_stream(self) -> nvidia.Stream | None:
        """Returns a stream for a session of its own, so that streams wait for themselves and not for the device."""
        return nvidia.Stream(self.device)

    def _stream_of(self, session: Any) -> nvidia.Stream | None:
        return next((stream for each, stream in self._streams if each is session), None)

    def _close(self) -> None:
        streams = [stream for _, stream in self._streams]
        self._streams.clear()
        super()._close()  # the sessions first: they wait for their streams
        close_all([stream.close for stream in streams])

    def _start_on_gpu(
        self, checked: onnx_gate.CheckedModel, settings: Any, providers: dict[str, dict[str, str]]
    ) -> tuple[Any, dict[str, dict[str, str]]]:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            return self._session_on(checked, settings, providers), providers
        except Exception as error:
            if "fallback to CPU EP" not in str(error):
                raise
        # It does not say which nodes, or whether the provider started at all: a session that is only looked at does.
        return self._session_on(checked, super()._settings(), providers), providers

    def _providers(self, checked: onnx_gate.CheckedModel) -> dict[str, dict[str, str]]:
        if self.options.cuda_graph and self.streams > 1:  # ONNX Runtime: CUDA Execution Provider, "Using CUDA Graphs"
            raise UnsupportedModel(
                f"{self.name} replays CUDA graphs from one thread only, not in {self.streams} streams",
                fix="--streams 1, or leave out --cuda-graph",
            )
        return {self.provider: ort_gpu.cuda_options(self._index, self.options)}

    def _default_streams(self) -> int:
        return 1 if self.options.cuda_graph else super()._default_streams()

    def _prepare(self, feeds: dict[str, NDArray[Any]], scope: Scope) -> Prepared:
        if self.options.cuda_graph and scope == "end-to-end":
            raise UnsupportedModel(
                f"{self.name} replays CUDA graphs on inputs and outputs that stay on the device, not end to end",
                fix="--scope device, or leave out --cuda-graph",
            )
        return super()._prepare(feeds, scope)

    def _layer_times(self, feeds: dict[str, NDArray[Any]], runs: int) -> list[LayerTime]:
        # Its own profile has the time to hand a kernel over; the kernels' own times need a build with CUPTI.
        raise UnsupportedModel(f"runtime '{self.name}' has no profiler that tells the time of a layer on the GPU")

    def _recorded(self) -> dict[str, Any]:
        return {"tf32": self.options.tf32, "cuda_graph": self.options.cuda_graph}

    def _run_options(self, *, prepared: bool = False) -> Any:
        early = prepared and bool(self._streams)
        if not early and not self.options.cuda_graph:
            return None
        chosen = self._ort.RunOptions()
        if early:
            chosen.add_run_config_entry(ort_gpu.RETURN_EARLY, "1")
        if self.options.cuda_graph:
            chosen.add_run_config_entry(ort_gpu.GRAPH_ID, str(next(self._graphs)) if prepared else ort_gpu.NO_GRAPH)
        return chosen

    @property
    def _index(self) -> int:
        return int(self.device.partition(":")[2])

    def _memory(self) -> tuple[str, int]:
        return "cuda", self._index


class OrtTensorRTRuntime(OrtCudaRuntime):
    """ONNX Runtime's TensorRT provider; what TensorRT does not take runs on its CUDA provider, and never on the CPU.

    Built, not executed where no GPU was at hand.
    """

    name = "ort-tensorrt"
    title = "ONNX Runtime, TensorRT provider"
    uses = OrtRuntime.uses | {"tf32", "shapes"}
    build_advice = "builds its engine, into the cache, when it opens the ONNX file"
    provider = "TensorrtExecutionProvider"
    package = "resnet-onnx[cuda,tensorrt]"

    @classmethod
    def _probe(cls, device: str) -> tuple[str, tuple[str, ...]]:
        answer = super()._probe(device)
        ort = cls._library()
        ort_gpu.check_tensorrt(cls._tensorrt(), ort_gpu.needed_tensorrt(ort), ort_version=str(ort.__version__))
        return answer

    @classmethod
    def _tensorrt(cls) -> str:
        """Loads TensorRT, whose libraries the provider then finds; returns its version."""
        return str(load_library("tensorrt", runtime=cls.name, package=cls.package).__version__)

    def _settings(self) -> Any:
        if self.options.cuda_graph:
            # The provider has one graph to a session, whatever the shapes and buffers (onnxruntime#20050), and captures
            # plain runs too.
            raise UnsupportedModel(
                f"{self.name} replays one CUDA graph for every batch and buffer, which gives wrong results",
                fix="leave out --cuda-graph, or use the runtime tensorrt",
            )
        return super()._settings()

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], Mapping[str, Any]]:
        ort_gpu.settle_tf32(self.options.tf32)
        try:
            return super()._open()
        except BaseException:
            ort_gpu.release_tf32()
            raise

    def _new_stream(self) -> None:
        """Its provider has a stream of its own in each session, which a run waits for."""

    def _start(self, checked: onnx_gate.CheckedModel, settings: Any) -> tuple[Any, dict[str, dict[str, str]]]:
        self._key = ort_gpu.engine_key(
            checked,
            options=self.options,
            provider_options=self._tensorrt_options(checked, ""),
            ort_version=self.version,
            tensorrt_version=self._tensorrt(),
            gpu=nvidia.require_gpu(self.device, package=self.package),
        )
        with ort_gpu.engine_folder(self._key) as folder:
            self._folder = folder
            return super()._start(checked, settings)

    def _providers(self, checked: onnx_gate.CheckedModel) -> dict[str, dict[str, str]]:
        return {
            self.provider: self._tensorrt_options(checked, str(self._folder)),
            ort_gpu.CUDA: ort_gpu.cuda_options(self._index, self.options),
        }

    def _tensorrt_options(self, checked: onnx_gate.CheckedModel, folder: str) -> dict[str, str]:
        precisions = ort_gpu.graph_precisions(checked.path)
        return ort_gpu.tensorrt_options(self._index, self.options, folder=folder, precisions=precisions)

    def _recorded(self) -> dict[str, Any]:
        return {**super()._recorded(), "engine": self._key}

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        check_profile(feeds, self.options.shapes, who=self.name)
        return super()._run(feeds)

    def _prepare(self, feeds: dict[str, NDArray[Any]], scope: Scope) -> Prepared:
        check_profile(feeds, self.options.shapes, who=self.name)
        return super()._prepare(feeds, scope)

    def _close(self) -> None:
        close_all([super()._close, ort_gpu.release_tf32])
        ort_gpu.seal(self._folder)  # without shapes given, engines are built as shapes come
