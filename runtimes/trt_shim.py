"""The one place that knows how ``tensorrt`` (10.x, 11) and ``tensorrt_rtx`` differ.

Both modules have the same classes under the same names; what only one of them has is listed in ``ONLY_RTX``, and a test
compares every name that the project uses with what the installed module has. In this file and its two users a variable
named ``trt`` is the module, ``builder``, ``network``, ``config`` … are objects of its classes: the test relies on it.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from runtimes import nvidia
from runtimes.environment import load_library, package_version
from runtimes.errors import (
    BadModel,
    OutOfMemory,
    RuntimeUnavailable,
    ToolkitError,
    UnsupportedModel,
    UsageError,
    is_out_of_memory,
    reason,
)
from runtimes.onnx_types import BFLOAT16

LibraryName = Literal["tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class Known:
    """What is known of a library before it is loaded.

    Attributes:
        packages: Where it may have been installed from.
        extra: What pip installs for it.
        for_cuda12: What pip installs where the driver serves CUDA 12 only.
        builds_ahead: Whether it builds for a GPU that is named, on a machine without one.
    """

    module: str
    packages: tuple[str, ...]
    extra: str
    for_cuda12: str
    title: str
    builds_ahead: bool


_RTX_PACKAGES = ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx")

KNOWN: dict[str, Known] = {
    "tensorrt": Known(
        "tensorrt",
        ("tensorrt-cu13", "tensorrt-cu12", "tensorrt"),
        "resnet-onnx[tensorrt]",
        "tensorrt-cu12>=10.14,<11",
        "TensorRT",
        False,
    ),
    "tensorrt-rtx": Known(
        "tensorrt_rtx", _RTX_PACKAGES, "resnet-onnx[tensorrt-rtx]", "tensorrt-rtx-cu12>=1.2", "TensorRT for RTX", True
    ),
}

ONLY_RTX = frozenset(
    {
        "ComputeCapability",
        "REQUIRE_USER_ALLOCATION",
        "DynamicShapesKernelSpecializationStrategy",
        "num_compute_capabilities",
        "set_compute_capability",
        "is_stream_capturable",
        "dynamic_shapes_kernel_specialization_strategy",
        "IRuntimeCache",
        "create_runtime_cache",
        "set_runtime_cache",
        "get_runtime_cache",
    }
)
"""Names that TensorRT itself lacks; used behind ``Library.is_rtx`` alone."""

OLDEST_CAPABILITY = (7, 5)
"""Turing: the oldest GPU that TensorRT ≥ 10.14 for CUDA 13 and TensorRT for RTX support (both support matrices)."""

_KEPT_MESSAGES = 100

_DTYPES: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "BF16": BFLOAT16,
    "INT8": np.dtype(np.int8),
    "UINT8": np.dtype(np.uint8),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "BOOL": np.dtype(np.bool_),
}
"""NumPy dtypes by the names of ``DataType``."""

PRECISIONS = {"FLOAT": "fp32", "HALF": "fp16"}
"""What people call the types of ``DataType``; the others have their own names in lower case."""


@dataclass(frozen=True)
class Message:
    """One line of the library's log; severity as in ``ILogger.Severity``: ``INTERNAL_ERROR`` to ``VERBOSE``."""

    severity: str
    text: str


def installed_version(name: str) -> str | None:
    """Returns the version of the installed library without loading it, or None."""
    return package_version(*KNOWN[name].packages)


def require_gpu(name: str, device: str) -> nvidia.Gpu:
    """Returns the GPU of ``cuda:N``; ``RuntimeUnavailable`` says what a library can do without one."""
    return nvidia.require_gpu(device, package=KNOWN[name].extra, without=_WITHOUT_GPU)


_WITHOUT_GPU = {"build an engine without a GPU:": "resnet-onnx build resnet50 --runtime tensorrt-rtx --target sm89"}


def cuda_major(name: str) -> int | None:
    """Returns the CUDA version that the installed package is built for, or None where its name does not say."""
    for package in KNOWN[name].packages:
        found = re.search(r"-cu(\d+)$", package)
        if found and package_version(package):
            return int(found[1])
    return None


@functools.cache
def load(name: LibraryName) -> Library:
    """Loads ``tensorrt`` or ``tensorrt_rtx``.

    Raises:
        RuntimeUnavailable: It is not installed or can't be loaded.
    """
    return Library(name, load_library(KNOWN[name].module, runtime=name, package=KNOWN[name].extra))


class Library:
    """One of the two modules."""

    def __init__(self, name: LibraryName, trt: Any) -> None:
        self.name = name
        self.trt = trt
        self.title = KNOWN[name].title
        self.version = str(trt.__version__)
        self.is_rtx = name == "tensorrt-rtx"
        self._recent: collections.deque[Message] = collections.deque(maxlen=_KEPT_MESSAGES)
        self._collected: list[Message] | None = None
        # The one logger of this process; TensorRT ignores every later one.
        self.logger = _make_logger(trt, self._log)

    def _log(self, message: Message) -> None:
        if self._collected is not None:
            self._collected.append(message)
        else:
            self._recent.append(message)

    def take_recent(self) -> list[Message]:
        """Returns the latest messages that no ``messages`` block collected, and forgets them."""
        recent = list(self._recent)
        self._recent.clear()
        return recent

    @contextlib.contextmanager
    def messages(self) -> Iterator[list[Message]]:
        """Yields a list of what the library logs in the block."""
        before, self._collected = self._collected, []
        collected = self._collected
        try:
            yield collected
        finally:
            self._collected = before
            if before is not None:
                before.extend(collected)

    def make(self, what: str, construct: Callable[[], Any]) -> Any:
        """Returns what a constructor of the library makes.

        Where CUDA does not start (errors 2, 3, 35), the library's factories return null, which its bindings raise as a
        ``TypeError`` without a reason; that is in the log, often only as a warning.

        Raises:
            RuntimeUnavailable: It can't be made here; the message has what the library logged.
        """
        with self.messages() as messages:
            try:
                return construct()
            except TypeError as error:
                if "nullptr" not in str(error):
                    raise
                said = " | ".join(_lines(messages, "WARNING", "ERROR", "INTERNAL_ERROR")) or "it gave no reason"
                raise RuntimeUnavailable(
                    f"{self.title} {self.version} can't make its {what}: {reason(said, 400)}", fix="resnet-onnx doctor"
                ) from error

    def dtype(self, tensor_type: Any, tensor_name: str) -> np.dtype[Any]:
        """Returns the NumPy dtype of a ``DataType``.

        Raises:
            UnsupportedModel: NumPy has no such type (fp8, int4).
        """
        found = _DTYPES.get(tensor_type.name)
        if found is None:
            raise UnsupportedModel(f"tensor '{tensor_name}' has the type {tensor_type.name}, which NumPy does not have")
        return found

    def targets(self) -> tuple[str, ...]:
        """Returns the compute capabilities that can be built for without such a GPU, as ``sm86``; () for TensorRT."""
        if not self.is_rtx:
            return ()
        trt = self.trt
        return tuple(name.lower() for name in trt.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name))

    def set_target(self, config: Any, target: str) -> None:
        """Makes the builder build for `target` (``sm86``), which needs no such GPU; TensorRT for RTX alone can.

        Raises:
            UsageError: The library has no such target.
        """
        trt = self.trt
        known = trt.ComputeCapability.__members__ if self.is_rtx else {}
        config.num_compute_capabilities = 1
        if target not in self.targets() or not config.set_compute_capability(known[target.upper()], 0):
            raise UsageError(f"{self.title} {self.version} can't build for '{target}': {', '.join(self.targets())}")

    def keep_capturable(self, config: Any) -> None:
        """Makes the builder build an engine whose runs can be captured into a CUDA graph.

        Without its flag, TensorRT for RTX may allocate while it runs, which can't be captured ("CUDA stream capture",
        release notes of TensorRT for RTX 1.2).
        """
        trt = self.trt
        config.max_aux_streams = 0  # one chain
        if self.is_rtx:
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)

    def create_network(self, builder: Any) -> Any:
        """Returns an empty strongly typed network: its precision is the ONNX graph's."""
        trt = self.trt
        return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))

    def create_runtime_config(self, engine: Any, kernels: bytes) -> Any:
        """Returns what contexts of an engine are made with, or None for TensorRT, which has compiled all when it built.

        TensorRT for RTX would compile the kernels of a new shape in the background and meanwhile run slower ones; a
        measurement needs them compiled before the first run. It begins with the `kernels` of earlier processes
        (``compiled_kernels``), unless they are of another version or GPU, which it finds out itself.
        """
        if not self.is_rtx:
            return None
        trt = self.trt
        runtime_config = engine.create_runtime_config()
        runtime_config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        runtime_cache = runtime_config.create_runtime_cache()
        if kernels:
            runtime_cache.deserialize(kernels)
        runtime_config.set_runtime_cache(runtime_cache)
        return runtime_config

    def compiled_kernels(self, runtime_config: Any) -> bytes:
        """Returns the kernels that were compiled so far, for ``create_runtime_config`` of another process."""
        runtime_cache = runtime_config.get_runtime_cache()
        return bytes(memoryview(runtime_cache.serialize()))

    def create_context(self, engine: Any, runtime_config: Any) -> Any:
        """Returns an execution context, or None where the library could not make one."""
        if runtime_config is None:
            return engine.create_execution_context()
        return engine.create_execution_context(runtime_config)

    def can_capture(self, context: Any, stream: int) -> bool:
        """Returns whether a CUDA graph can be captured from the context now."""
        return bool(context.is_stream_capturable(stream)) if self.is_rtx else True

    def progress_monitor(self, report: Callable[[str, int, int], None], cancelled: Callable[[], bool]) -> Any:
        """Returns an ``IProgressMonitor``, or None where the module has none; True from `cancelled` ends the build.

        `report` gets the phase, the steps done in it and the steps that it has.
        """
        trt = self.trt
        return _make_monitor(trt, report, cancelled) if hasattr(trt, "IProgressMonitor") else None


def explain(what: str, messages: Sequence[Message], *, fix: str | None = None) -> ToolkitError:
    """Returns why `what` failed, from the library's own messages; `fix` is for where they name no known cause."""
    text = " | ".join(_lines(messages, "ERROR", "INTERNAL_ERROR")) or "the library gave no reason"
    low, said = text.lower(), reason(text, 400)
    if "any implementation" in low:  # why a kernel was passed over is only warned of
        skipped = [line for line in _lines(messages, "WARNING") if any(sign in line.lower() for sign in _MEMORY_SIGNS)]
        if skipped:
            low, said = f"{low} {_MEMORY_SIGNS[0]}", f"{said} | {reason(skipped[0], 200)}"
    if is_out_of_memory(low) or any(sign in low for sign in _MEMORY_SIGNS):
        return OutOfMemory(
            f"{what}: it needs more memory than the GPU or the workspace limit allows: {said}",
            fix="use a smaller batch, or a larger workspace",
        )
    again = "build it again here: resnet-onnx build"
    if "version tag does not match" in low or ("serialization assertion" in low and "version" in low):
        return BadModel(f"{what}: the engine was made by another version of the library: {said}", fix=again)
    if "compute capability" in low or "incompatible device" in low or "different gpu" in low:
        return UnsupportedModel(f"{what}: the engine was built for another GPU: {said}", fix=again)
    return UnsupportedModel(f"{what}: {said}", fix=fix)


def _lines(messages: Sequence[Message], *severities: str) -> list[str]:
    """Returns what was logged with these severities, each message as one line and once."""
    return list(dict.fromkeys(" ".join(m.text.split()) for m in messages if m.severity in severities))


_MEMORY_SIGNS = (
    "workspace limit",
    "insufficient workspace",
    "insufficient memory",
    "memory is insufficient",  # "Device memory is insufficient to use tactic."
    "gpu memory",  # "Requested amount of GPU memory (… bytes) could not be allocated."
    "cudamalloc",
)
"""How TensorRT says that memory or workspace is out, beside what all CUDA programs say."""


def _make_logger(trt: Any, take: Callable[[Message], None]) -> Any:
    class CollectingLogger(trt.ILogger):  # type: ignore[misc]  # the module is loaded when used
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, text: str) -> None:
            if severity.name != "VERBOSE":
                take(Message(severity.name, text))

    return CollectingLogger()


def _make_monitor(trt: Any, report: Callable[[str, int, int], None], cancelled: Callable[[], bool]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the module is loaded when used
        def __init__(self) -> None:
            super().__init__()
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            report(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            report(phase_name, step + 1, self._steps.get(phase_name, step + 1))
            return not cancelled()

        def phase_finish(self, phase_name: str) -> None:
            steps = self._steps.pop(phase_name, 0)
            report(phase_name, steps, steps)

    return Monitor()
