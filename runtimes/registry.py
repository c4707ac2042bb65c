"""The names of the runtimes and how to open one. A new runtime is one line here and one file beside.

A package of somebody else adds a runtime without a line here, by an entry point in its own metadata::

    [project.entry-points."resnet_onnx.runtimes"]
    mine = "their_package.module:MyRuntime"
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from runtimes.base import Availability, Runtime
from runtimes.errors import BadModel, NoKernel, RewritingFailed, RuntimeUnavailable, UnsupportedModel, UsageError
from runtimes.spec import ModelSource, RuntimeOptions, Target

_OWN: Mapping[str, str] = MappingProxyType(
    {
        "torch": "runtimes.pytorch:TorchRuntime",
        "torch-compile": "runtimes.torch_compile:TorchCompileRuntime",
        "reference": "runtimes.reference:ReferenceRuntime",
        "ort-cpu": "runtimes.ort:OrtCpuRuntime",
        "ort-cuda": "runtimes.ort:OrtCudaRuntime",
        "ort-tensorrt": "runtimes.ort:OrtTensorRTRuntime",
        "ort-tensorrt-rtx": "runtimes.ort_rtx:OrtTensorRTRTXRuntime",
        "tensorrt": "runtimes.trt:TensorRTRuntime",
        "tensorrt-rtx": "runtimes.trt:TensorRTRTXRuntime",
        "openvino": "runtimes.ov:OpenVINORuntime",
    }
)

ENTRY_POINTS = "resnet_onnx.runtimes"
"""The group of entry points that other packages name their runtimes in; a name of our own stays ours."""

DEFAULT_RUNTIME = "ort-cpu"
TORCH_RUNTIME = "torch"
"""What evaluates the network itself: in double it is the gold, in float32 the baseline."""
GRAPH_RUNTIME = "reference"
"""What evaluates a graph in double, where there is no network."""


def runtime_names() -> tuple[str, ...]:
    """Returns the names of all runtimes, available or not: our own, then those of other packages."""
    return (*_OWN, *(name for name in _foreign(tuple(sys.path)) if name not in _OWN))


@functools.lru_cache(maxsize=4)
def _foreign(search_path: tuple[str, ...]) -> Mapping[str, importlib.metadata.EntryPoint]:
    """Returns the entry points by name; they depend on where packages are looked for, and on nothing else."""
    del search_path
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def adapter(name: str) -> type[Runtime]:
    """Returns the adapter class of a runtime; loads the adapter, not the library behind it.

    Raises:
        UsageError: No runtime has that name.
        RuntimeUnavailable: The adapter is that of another package and can't be loaded.
    """
    if name in _OWN:
        module, _, attribute = _OWN[name].partition(":")
        found: type[Runtime] = getattr(importlib.import_module(module), attribute)
        return found
    point = _foreign(tuple(sys.path)).get(name)
    if point is None:
        raise UsageError(f"unknown runtime '{name}': choose from {', '.join(runtime_names())}")
    try:
        loaded = point.load()
    except Exception as error:  # the code of somebody else
        raise RuntimeUnavailable(
            f"the adapter of runtime '{name}' ({point.value}) can't be loaded: {error}", fix=_mend(point)
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Runtime) and loaded.name == name):
        raise RuntimeUnavailable(f"{point.value} is not the adapter of a runtime named '{name}'", fix=_mend(point))
    return loaded


def _mend(point: importlib.metadata.EntryPoint) -> str:
    package = "the package that declares it" if point.dist is None else point.dist.name
    return f"install another version of {package}, or remove it"


def runtimes_that(fits: Callable[[type[Runtime]], bool]) -> tuple[str, ...]:
    """Returns the names of the runtimes whose adapter fits, available or not."""
    names = []
    for name in runtime_names():
        try:
            found = adapter(name)
        except RuntimeUnavailable:
            continue  # of another package, and broken
        if fits(found):
            names.append(name)
    return tuple(names)


def engine_suffixes() -> frozenset[str]:
    """Returns the endings of files that are engines of some runtime."""
    return frozenset(
        suffix for name in runtimes_that(lambda found: bool(found.suffixes)) for suffix in adapter(name).suffixes
    )


def judging_runtime(precision: str) -> str:
    """Returns the runtime whose outputs judge a file of a precision: the one that a user meets first, if it runs it."""
    if precision in adapter(DEFAULT_RUNTIME).precisions:
        return DEFAULT_RUNTIME
    return conversion_runtimes(precision)[0]


def conversion_runtimes(precision: str) -> tuple[str, ...]:
    """Returns the runtimes that a file is converted to a precision for, where the user names none."""
    return runtimes_that(lambda found: found.lowers_int8 and precision in found.precisions)


def probe(name: str, *, device: str | None = None) -> Availability:
    """Finds out by really trying whether a runtime can run here."""
    try:
        found = adapter(name)
    except RuntimeUnavailable as broken:
        return Availability(name=name, available=False, version=None, reason=broken.message, fix=broken.fix)
    return found.probe(device)


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
        raise UsageError(f"no runtime named: choose from {', '.join(runtime_names())}, or 'all'")
    for name in names:
        if name != "all":
            adapter(name)
    if "all" in names:
        fitting = runtimes_that(lambda found: found.in_all and found.name not in names and found.has_device(device))
        here = [name for name in fitting if probe(name, device=device).available]
        names = [n for n in names if n != "all"] + here
        if not names:
            raise RuntimeUnavailable(f"no runtime can run on '{device}' here", fix="resnet-onnx doctor")
    return names


def means_all(argument: str) -> bool:
    """Returns whether a list for ``parse_names`` takes what is here, so that what can't serve may be left out."""
    return "all" in (part.strip() for part in argument.split(","))


def require_all(names: Sequence[str], *, device: str | None = None) -> None:
    """Raises ``RuntimeUnavailable`` for the first name that can't run here, before any work is done."""
    for name in names:
        require(name, device=device)


def open_runtime(
    name: str, source: ModelSource, *, device: str | None = None, options: RuntimeOptions | None = None
) -> Runtime:
    """Opens a model on a runtime, to be used as a context manager; without `device` on the runtime's default one.

    Raises:
        UsageError: Unknown name, or a device that this runtime does not have.
        RuntimeUnavailable: Library, driver, device or provider is missing.
        BadModel: The file did not pass the loading gate.
        UnsupportedModel: The runtime can't run this model; names the operator.
        RewritingFailed: It opens what the file was made from, and refuses the file that this program made of it.
    """
    cls = adapter(name)
    require(name, device=device)
    used = cls.resolve_device(device)
    try:
        return cls(source, device=used, options=options or RuntimeOptions())
    except NoKernel:
        raise
    except (BadModel, UnsupportedModel) as refusal:
        if source.made_from is None:
            raise
        # Where it refuses the original too, that is what there is to say.
        open_runtime(name, source.made_from, device=device).close()
        raise RewritingFailed(
            f"{name} opens {source.made_from.name} and refuses the file that was made of it here: {refusal.message}"
        ) from refusal


def open_target(target: Target) -> Runtime:
    """Opens a model on a runtime, as ``open_runtime`` does and with its errors."""
    return open_runtime(target.runtime, target.source, device=target.device, options=target.options)
