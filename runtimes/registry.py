"""The names of the runtimes and how to open one. A new runtime is one line here and one file beside."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from runtimes.base import Availability, Runtime
from runtimes.errors import RuntimeUnavailable, UsageError
from runtimes.spec import ModelSource, RuntimeOptions, Target


@dataclass(frozen=True)
class _Entry:
    module: str
    adapter: str
    title: str


_ENTRIES: Mapping[str, _Entry] = MappingProxyType(
    {
        "torch": _Entry("runtimes.pytorch", "TorchRuntime", "PyTorch, eager"),
        "reference": _Entry("runtimes.reference", "ReferenceRuntime", "ONNX reference evaluator in float64"),
        "ort-cpu": _Entry("runtimes.ort", "OrtCpuRuntime", "ONNX Runtime on the CPU"),
        "ort-cuda": _Entry("runtimes.ort", "OrtCudaRuntime", "ONNX Runtime, CUDA provider"),
        "ort-tensorrt": _Entry("runtimes.ort", "OrtTensorRTRuntime", "ONNX Runtime, TensorRT provider"),
        "tensorrt": _Entry("runtimes.trt", "TensorRTRuntime", "NVIDIA TensorRT"),
        "tensorrt-rtx": _Entry("runtimes.trt", "TensorRTRTXRuntime", "NVIDIA TensorRT for RTX"),
        "openvino": _Entry("runtimes.ov", "OpenVINORuntime", "Intel OpenVINO"),
    }
)

RUNTIME_NAMES: tuple[str, ...] = tuple(_ENTRIES)
DEFAULT_RUNTIME = "ort-cpu"

OUTSIDE_COMPARISONS = frozenset({"reference"})
"""Too slow to be measured and itself a gold: ``all`` leaves it out."""


def adapter(name: str) -> type[Runtime]:
    """Returns the adapter class of a runtime; loads the adapter, not the library behind it.

    Raises:
        UsageError: No runtime has that name.
    """
    entry = _ENTRIES.get(name)
    if entry is None:
        raise UsageError(f"unknown runtime '{name}': choose from {', '.join(RUNTIME_NAMES)}")
    found: type[Runtime] = getattr(importlib.import_module(entry.module), entry.adapter)
    return found


def title(name: str) -> str:
    """Returns the runtime's full name."""
    adapter(name)
    return _ENTRIES[name].title


def probe(name: str, *, device: str | None = None) -> Availability:
    """Finds out by really trying whether a runtime can run here."""
    return adapter(name).probe(device)


def require(name: str, *, device: str | None = None) -> Availability:
    """Returns ``probe``'s answer, or raises ``RuntimeUnavailable`` with its reason and fix."""
    answer = probe(name, device=device)
    if not answer.available:
        raise RuntimeUnavailable(f"runtime '{name}' can't run here: {answer.reason}", fix=answer.fix)
    return answer


def parse_names(argument: str, *, device: str | None = None) -> list[str]:
    """Splits a comma list of runtime names; ``all`` is every runtime that is available here, on `device` if given.

    Raises:
        UsageError: A name is unknown, the list is empty, or the device is misspelt.
        RuntimeUnavailable: No runtime is available here on `device`.
    """
    names = list(dict.fromkeys(part.strip() for part in argument.split(",") if part.strip()))
    if not names:
        raise UsageError(f"no runtime named: choose from {', '.join(RUNTIME_NAMES)}, or 'all'")
    for name in names:
        if name != "all":
            adapter(name)
    if "all" in names:
        fitting = [n for n in RUNTIME_NAMES if n not in OUTSIDE_COMPARISONS and n not in names and _has(n, device)]
        here = [n for n in fitting if probe(n, device=device).available]
        names = [n for n in names if n != "all"] + here
        if not names:
            raise RuntimeUnavailable(f"no runtime can run on '{device}' here", fix="resnet-onnx doctor")
    return names


def means_all(argument: str) -> bool:
    """Returns whether a list for ``parse_names`` takes what is here, so that what can't serve may be left out."""
    return "all" in (part.strip() for part in argument.split(","))


def _has(name: str, device: str | None) -> bool:
    """Returns whether a runtime has devices of that kind; a misspelt one is nobody's."""
    adapter("torch").resolve_device(device)  # has every kind, so that it refuses only what is misspelt
    try:
        adapter(name).resolve_device(device)
    except UsageError:
        return False
    return True


def require_all(names: Sequence[str], *, device: str | None = None) -> None:
    """Raises ``RuntimeUnavailable`` for the first name that can't run here, before any work is done."""
    for name in names:
        require(name, device=device)


def open_runtime(
    name: str, source: ModelSource, *, device: str | None = None, options: RuntimeOptions | None = None
) -> Runtime:
    """Opens a model on a runtime.

    Args:
        name: One of ``RUNTIME_NAMES``.
        source: The model.
        device: ``cpu``, ``cuda``, ``cuda:1``; None is the runtime's own default device.
        options: Threads, spinning, profiling, precision switches.

    Returns:
        The opened runtime; use it as a context manager.

    Raises:
        UsageError: Unknown name, or a device that this runtime does not have.
        RuntimeUnavailable: Library, driver, device or provider is missing.
        BadModel: The file did not pass the loading gate.
        UnsupportedModel: The runtime can't run this model; names the operator.
    """
    cls = adapter(name)
    require(name, device=device)
    return cls(source, device=cls.resolve_device(device), options=options or RuntimeOptions())


def open_target(target: Target) -> Runtime:
    """Opens a model on a runtime, as ``open_runtime`` does and with its errors."""
    return open_runtime(target.runtime, target.source, device=target.device, options=target.options)
