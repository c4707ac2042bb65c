"""A stand-in for the modules ``tensorrt`` and ``tensorrt_rtx`` that really computes, with ONNX Runtime on the CPU.

It parses, builds, loads and runs any model that ONNX Runtime opens, over the memory and streams of ``fake_cuda``, and
refuses what TensorRT refuses: shapes outside the active profile, another device, an engine of another version. So the
whole contract of a runtime, parity and measurements run on it where there is no GPU. What it can't show is that
TensorRT does what it does: tests/gpu shows that.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from converters import tensorrt_family
from runtimes import nvidia, trt, trt_shim
from runtimes.onnx_types import BFLOAT16
from support import fake_cuda
from support.fake_cuda import STREAMS, VIOLATIONS, FakeTorch, block_at
from support.gpus import A6000

GPUS = tuple(
    replace(A6000, index=index, name="stand-in for a GPU, on the CPU", uuid=str(index))
    for index in range(fake_cuda.DEVICES)
)

Mode = enum.Enum("Mode", "INPUT OUTPUT")
Location = enum.Enum("Location", "DEVICE HOST")
Format = enum.Enum("Format", "LINEAR CHW32 HWC8")
DataType = enum.Enum("DataType", "FLOAT HALF BF16 INT8 UINT8 INT32 INT64 BOOL FP8")
Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")
DTYPES = {getattr(DataType, name): dtype for name, dtype in trt_shim._DTYPES.items()}
MAGIC = b"stand-in plan\n"


def data_type(element: int) -> Any:
    dtype = BFLOAT16 if element == onnx.TensorProto.BFLOAT16 else onnx.helper.tensor_dtype_to_np_dtype(element)
    found = {known: name for name, known in DTYPES.items()}.get(dtype)
    return found or DataType.FLOAT  # the parser narrows float64 without a word


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: Any
    shape: tuple[int, ...]


def tensors(values: Any) -> list[Tensor]:
    return [
        Tensor(
            value.name,
            data_type(value.type.tensor_type.elem_type),
            tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim),
        )
        for value in values
    ]


# ---- building


class Network:
    model: Any

    @property
    def num_inputs(self) -> int:
        return len(tensors(self.model.graph.input))

    @property
    def num_outputs(self) -> int:
        return len(self.model.graph.output)

    @property
    def num_layers(self) -> int:
        return len(self.model.graph.node)

    def get_input(self, index: int) -> Tensor:
        return tensors(self.model.graph.input)[index]

    def get_output(self, index: int) -> Tensor:
        return tensors(self.model.graph.output)[index]

    def get_layer(self, index: int) -> Any:
        node = self.model.graph.node[index]
        kind = {"Conv": "CONVOLUTION"}.get(node.op_type, node.op_type.upper())
        output = SimpleNamespace(dtype=self.get_output(0).dtype)
        return SimpleNamespace(type=SimpleNamespace(name=kind), num_outputs=1, get_output=lambda index: output)


class Parser:
    """Knows no ``NonZero``."""

    def __init__(self, network: Network, logger: Any) -> None:
        self._network, self._errors = network, []

    def parse(self, data: bytes, path: str | None = None) -> bool:
        self._network.model = onnx.load_model_from_string(data)
        if path is not None:
            onnx.load_external_data_for_model(self._network.model, os.path.dirname(path))
        self._errors = [
            SimpleNamespace(
                node_name=lambda node=node: node.name,
                node_operator=lambda node=node: node.op_type,
                desc=lambda: "false",
                code=lambda: SimpleNamespace(name="UNSUPPORTED_NODE"),
            )
            for node in self._network.model.graph.node
            if node.op_type == "NonZero"
        ]
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return self._errors[index]


class Config:
    def __init__(self) -> None:
        self.flags: set[Any] = set()
        self.profiles: list[Any] = []
        self.builder_optimization_level, self.max_aux_streams, self.num_compute_capabilities = 3, 7, 0
        self.progress_monitor: Any = None
        self.timings = SimpleNamespace(serialize=lambda: b"timings")

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None: ...

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        return True

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> Any:
        return self.timings

    def set_timing_cache(self, timings: Any, ignore_mismatch: bool) -> bool:
        return True

    def get_timing_cache(self) -> Any:
        return self.timings


class OptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, low: Any, usual: Any, high: Any) -> None:
        self.shapes[name] = [list(low), list(usual), list(high)]


class Builder:
    def __init__(self, logger: Any) -> None:
        logger.owner.start()

    def create_network(self, flags: int) -> Network:
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> OptimizationProfile:
        return OptimizationProfile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes:
        return plan_of(network.model, config.profiles)


def plan_of(model: Any, profiles: Sequence[Mapping[str, Any]]) -> bytes:
    """Returns an engine of the stand-in."""
    return MAGIC + json.dumps(profiles).encode() + b"\n" + model.SerializeToString()


# ---- running


class Context:
    """One execution; its shapes are those of the profile that is active."""

    def __init__(self, engine: Engine, config: Any = None) -> None:
        self.engine, self.config = engine, config
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profiler: Any = None
        self.active, self.running = 0, [0]
        weakref.finalize(self, _check_idle, self.running)

    def _error(self, text: str) -> bool:
        self.engine.module.log(Severity.ERROR, text)
        return False

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.active = index
        return index < len(self.engine.profiles) or self._error(f"there is no profile {index}")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self.engine.refuse_shapes:
            return self._error("static dimension mismatch")
        low, _, high = self.engine.profiles[self.active].get(name, [shape] * 3)
        if not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
            return self._error(f"shape {shape} of {name} is outside profile {self.active}: {low} to {high}")
        self.shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        zeros = {i.name: np.zeros(self.shapes[i.name], DTYPES[i.dtype]) for i in self.engine.inputs}
        try:
            found = self.engine.session.run(None, zeros)
        except Exception as error:
            self._error(f"shapes do not fit: {str(error)[-80:]}")
            return [i.name for i in self.engine.inputs]
        self.shapes |= {o.name: array.shape for o, array in zip(self.engine.outputs, found, strict=True)}
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self.engine.capturable

    def execute_async_v3(self, stream: int) -> bool:
        if self.engine.fail_with:
            return self._error(self.engine.fail_with)
        if stream not in STREAMS:
            return self._error("Cuda failure: invalid resource handle")
        queue, device = STREAMS[stream], self.engine.device
        if fake_cuda._thread.device != device or queue.device != device:
            return self._error("Cuda failure: invalid resource handle (another device is selected)")
        engine, running, profiler = self.engine, self.running, self.profiler
        shapes, addresses = dict(self.shapes), dict(self.addresses)

        def memory(tensor: Tensor) -> Any:
            block_at(addresses[tensor.name], device, "a run of an engine")
            return fake_cuda.array_at(addresses[tensor.name], DTYPES[tensor.dtype], shapes[tensor.name])

        def compute() -> None:
            queue.steps += 1
            results = engine.session.run(None, {i.name: memory(i) for i in engine.inputs})
            for output, array in zip(engine.outputs, results, strict=True):
                memory(output)[...] = array
            engine.runs += 1
            running[0] -= queue.captured is None
            if profiler is not None:
                for index, layer in enumerate(engine.layers()):
                    profiler.report_layer_time(layer, 2.0 / (index + 1))

        if queue.captured is None:
            running[0] += 1
        else:  # a replay is no run of this context
            inner = compute

            def compute() -> None:
                running[0] += 1
                inner()

        queue.add(compute)
        return True


def _check_idle(running: list[int]) -> None:
    if running[0]:
        VIOLATIONS.append("an execution context was destroyed while it ran")


class RuntimeCache:
    """The names of the shapes that kernels were compiled for."""

    def __init__(self) -> None:
        self.kernels, self.loaded = b"kernels", b""

    def deserialize(self, data: bytes) -> bool:
        self.loaded = bytes(data)
        return True

    def serialize(self) -> bytes:
        return self.kernels


class RuntimeConfig:
    def __init__(self) -> None:
        self.dynamic_shapes_kernel_specialization_strategy: Any = None
        self.cache: Any = None

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, runtime_cache: RuntimeCache) -> bool:
        self.cache = runtime_cache
        return True

    def get_runtime_cache(self) -> RuntimeCache:
        return self.cache


class Engine:
    """A model in a session of ONNX Runtime on the CPU; `location` and `format` are what a test makes them."""

    def __init__(self, module: Module, plan: bytes) -> None:
        import onnxruntime

        header, _, data = plan.removeprefix(MAGIC).partition(b"\n")
        self.module, self.profiles = module, json.loads(header)
        self.model = onnx.load_model_from_string(data)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = 1, 4
        self.session = onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = tensors(self.model.graph.input), tensors(self.model.graph.output)
        self.device = fake_cuda._thread.device
        self.runs, self.contexts, self.capturable = 0, 0, True
        self.fail_with, self.refuse_shapes = "", False

    def layers(self) -> list[str]:
        return [node.name or node.op_type for node in self.model.graph.node]

    def _tensor(self, name: str) -> Tensor:
        return next(t for t in (*self.inputs, *self.outputs) if t.name == name)

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return (*self.inputs, *self.outputs)[index].name

    def get_tensor_mode(self, name: str) -> Any:
        return Mode.INPUT if name in {t.name for t in self.inputs} else Mode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._tensor(name).shape

    def get_tensor_dtype(self, name: str) -> Any:
        return self._tensor(name).dtype

    def get_tensor_location(self, name: str) -> Any:
        return self.module.locations.get(name, Location.DEVICE)

    def get_tensor_format(self, name: str, profile: int) -> Any:
        return self.module.formats.get((name, profile), Format.LINEAR)

    def get_tensor_format_desc(self, name: str, profile: int) -> str:
        return f"{self.get_tensor_format(name, profile).name}, 32 elements to a vector"

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[Any]:
        return self.profiles[profile].get(name, [])

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, config: Any = None) -> Context:
        assert (config is not None) is self.module.is_rtx
        self.contexts += 1
        return Context(self, config)

    def create_engine_inspector(self) -> Any:
        report = json.dumps({"Layers": self.layers(), "Bindings": []})
        return SimpleNamespace(get_engine_information=lambda form: report)


class Deserializer:
    def __init__(self, logger: Any) -> None:
        self.module = logger.owner
        self.module.start()

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        assert self.engine_host_code_allowed is False
        if not plan.startswith(MAGIC):
            self.module.log(Severity.ERROR, "Version tag does not match. Note: Current Version: 2, Serialized: 1")
            return None
        return Engine(self.module, plan)


class Profiler:
    """What a profiler of the user's derives from; refuses to work where it was not initialised."""

    def __init__(self) -> None:
        self.initialised = True


def _members(**values: Any) -> Any:
    return SimpleNamespace(__members__=values, **values)


@dataclass
class Module:
    """The module; `null` is what CUDA logs where its start fails, and then every factory returns null."""

    __version__: str
    is_rtx: bool
    null: tuple[tuple[Any, str], ...] = ()
    locations: dict[str, Any] = field(default_factory=dict)
    formats: dict[Any, Any] = field(default_factory=dict)
    logger: Any = None

    Builder = Builder
    OnnxParser = Parser
    Runtime = Deserializer
    IProfiler = Profiler
    DataType = DataType
    TensorIOMode = Mode
    TensorLocation = Location
    TensorFormat = Format
    BuilderFlag = enum.Enum("BuilderFlag", "TF32 REQUIRE_USER_ALLOCATION")
    MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")
    NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
    LayerInformationFormat = enum.Enum("LayerInformationFormat", "JSON")
    ComputeCapability = enum.Enum("ComputeCapability", "SM75 SM80 SM86 SM89 SM120")
    DynamicShapesKernelSpecializationStrategy = enum.Enum("Strategy", "LAZY EAGER")

    def __post_init__(self) -> None:
        owner = self

        class Logger:
            def __init__(self) -> None:
                owner.logger, self.owner = self, owner

        self.ILogger = Logger

    def log(self, severity: Any, text: str) -> None:
        self.logger.log(severity, text)

    def start(self) -> None:
        for severity, text in self.null:
            self.log(severity, text)
        if self.null:
            raise TypeError("pybind11::init(): factory function returned nullptr")


def library(name: str) -> trt_shim.Library:
    """Returns a new stand-in for one of the two libraries."""
    return trt_shim.Library(name, Module("10.99.0", name == "tensorrt-rtx"))  # type: ignore[arg-type]


def install(patch: Callable[[Any, str, Any], None]) -> dict[str, trt_shim.Library]:
    """Puts the stand-ins into this process: two devices, both libraries, torch's CUDA half for the adapter."""
    libraries = {name: library(name) for name in trt_shim.KNOWN}
    fake_cuda.reset()
    patch(nvidia, "gpus", lambda **words: GPUS)
    patch(nvidia, "driver_version", lambda: "580.65.06")
    patch(trt_shim, "load", lambda name: libraries[name])
    patch(trt_shim, "installed_version", lambda name: libraries[name].version)
    for module in (trt, tensorrt_family):
        patch(module, "load_library", lambda name, **words: FakeTorch)
    return libraries


@contextlib.contextmanager
def installed() -> Iterator[dict[str, trt_shim.Library]]:
    """The stand-ins, for as long as the block runs; fails where CUDA's rules were broken."""
    with pytest.MonkeyPatch.context() as patch:
        yield install(patch.setattr)
        assert VIOLATIONS == []


CHILD = "RESNET_ONNX_TEST_STAND_IN"
"""Where it is set, a process that finds ``tests/support/start`` on its path puts the stand-ins in at its start."""


def child_environment(patch: pytest.MonkeyPatch) -> None:
    """Lets the processes that this one starts have the stand-ins too."""
    support = os.path.dirname(os.path.abspath(__file__))
    path = [os.path.join(support, "start"), os.path.dirname(support), *sys.path]
    patch.setenv("PYTHONPATH", os.pathsep.join(path))
    patch.setenv(CHILD, "1")
