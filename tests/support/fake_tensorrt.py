"""Stand-ins for the module ``tensorrt`` and for torch's CUDA half, which compute on CPU memory.

They let the adapter's own steps run where there is no GPU: shapes, addresses, sizes, copies, order, errors. What they
can't show is that TensorRT does what they do; tests/gpu shows that.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

Mode = enum.Enum("Mode", "INPUT OUTPUT")
DataType = enum.Enum("DataType", "FLOAT HALF INT8 FP8")
Severity = enum.Enum("Severity", "ERROR WARNING INFO")


class Context:
    """Doubles its one input, when its stream is synchronised and not before."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.shape, self.addresses = engine, None, {}
        self.profiler: Any = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self.engine.refuse_shapes:
            self.engine.library.logger.log(Severity.ERROR, "static dimension mismatch")
            return False
        self.shape = shape
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self.engine.fail_with:
            self.engine.library.logger.log(Severity.ERROR, self.engine.fail_with)
            return False
        count = int(np.prod(self.shape))
        source, target = self.addresses["x"], self.addresses["y"]

        def double() -> None:
            values = np.ctypeslib.as_array(ctypes.cast(source, ctypes.POINTER(ctypes.c_float)), (count,))
            np.ctypeslib.as_array(ctypes.cast(target, ctypes.POINTER(ctypes.c_float)), (count,))[:] = values * 2
            self.engine.runs += 1
            if self.profiler is not None:
                for layer, ms in (("conv1 + relu", 2.0), ("fc", 0.5)):
                    self.profiler.report_layer_time(layer, ms)

        STREAMS[stream].append(double)
        return True


class Engine:
    """One float input ``x`` [batch, 3], one float output ``y`` of the same shape; batches 1 to 4."""

    num_io_tensors = 2

    def __init__(self, library: Any) -> None:
        self.library, self.runs, self.contexts = library, 0, 0
        self.fail_with, self.refuse_shapes = "", False

    def get_tensor_name(self, index: int) -> str:
        return ("x", "y")[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == "x" else Mode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 3)

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.FLOAT

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1, 3), (2, 3), (4, 3)]

    def create_execution_context(self) -> Context:
        self.contexts += 1
        return Context(self)

    def create_engine_inspector(self) -> Any:
        report = json.dumps({"Layers": ["conv1 + relu", "fc"], "Bindings": ["x", "y"]})
        return SimpleNamespace(get_engine_information=lambda form: report)


class Deserializer:
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        assert self.engine_host_code_allowed is False
        if not plan.startswith(b"plan"):
            self.logger.log(Severity.ERROR, "Version tag does not match. Note: Current Version: 2, Serialized: 1")
            return None
        return Engine(MODULE)


class Profiler:
    """What a profiler of the user's derives from; refuses to work where it was not initialised."""

    def __init__(self) -> None:
        self.initialised = True


class Logger:
    def __init__(self) -> None:
        MODULE.logger = self


MODULE: Any = SimpleNamespace(
    __version__="10.99.0",
    ILogger=Logger,
    IProfiler=Profiler,
    Runtime=Deserializer,
    TensorIOMode=Mode,
    LayerInformationFormat=enum.Enum("LayerInformationFormat", "JSON"),
)

STREAMS: dict[int, list[Any]] = {}


class Stream:
    """Work that was queued runs in order when somebody waits."""

    def __init__(self, device: str) -> None:
        self.cuda_stream = len(STREAMS) + 1
        self.queue = STREAMS.setdefault(self.cuda_stream, [])

    def synchronize(self) -> None:
        for work in self.queue:
            work()
        self.queue.clear()


class Bytes:
    """A tensor of bytes whose copies go through the stream that is current when they are asked for."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __getitem__(self, part: slice) -> Bytes:
        return Bytes(self.tensor[part])

    def numel(self) -> int:
        return self.tensor.numel()

    def data_ptr(self) -> int:
        return self.tensor.data_ptr()

    def numpy(self) -> Any:
        return self.tensor.numpy()

    def copy_(self, other: Bytes, *, non_blocking: bool) -> None:
        assert non_blocking
        FakeTorch.current.queue.append(lambda: self.tensor.copy_(other.tensor))


class Graph:
    def replay(self) -> None:
        FakeTorch.current.queue.extend(self.work)


class Event:
    """Reads, when its stream comes to it, a clock that each step of work moves on by a millisecond."""

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: Stream) -> None:
        before = len(stream.queue)
        stream.queue.append(lambda: setattr(self, "at_ms", float(before)))

    def elapsed_time(self, other: Event) -> float:
        # Between two marks lie the steps in between and the first mark itself.
        return other.at_ms - self.at_ms - 1


class FakeTorch:
    """What the adapter uses of torch."""

    uint8 = torch.uint8
    current: Any = None
    allocated: list[int] = []  # noqa: RUF012  (one list for the whole test, reset by it)
    out_of_memory = False

    @classmethod
    def empty(cls, size: int, *, dtype: Any, device: str | None = None, pin_memory: bool = False) -> Bytes:
        if cls.out_of_memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        cls.allocated.append(size)
        return Bytes(torch.full((size,), 0xAB, dtype=dtype))

    class cuda:  # noqa: N801  (torch's own name)
        Stream = Stream
        CUDAGraph = Graph
        Event = Event

        @staticmethod
        def device(name: str) -> Any:
            return contextlib.nullcontext()

        @staticmethod
        @contextlib.contextmanager
        def stream(stream: Stream) -> Any:
            before, FakeTorch.current = FakeTorch.current, stream
            yield
            FakeTorch.current = before

        @staticmethod
        @contextlib.contextmanager
        def graph(graph: Graph, *, stream: Stream) -> Any:
            waiting = len(stream.queue)
            assert not waiting, "nothing may be in flight when a capture begins"
            with FakeTorch.cuda.stream(stream):
                yield
            graph.work = list(stream.queue)
            stream.queue.clear()
