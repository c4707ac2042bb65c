"""The interface that every runtime fills: arrays in, arrays out, for any model.

A new runtime subclasses ``Runtime`` and ``Prepared`` and fills the underscore methods; validation, closing twice and
use after close are settled here. ``docs/adding-a-runtime.md`` walks through it.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from runtimes.cores import usable_cores
from runtimes.doing import doing
from runtimes.errors import RuntimeClosed, RuntimeUnavailable, UnsupportedModel, UsageError
from runtimes.spec import (
    Feeds,
    LayerTime,
    ModelForm,
    ModelSource,
    NodePlacement,
    RuntimeOptions,
    Scope,
    TensorSpec,
    check_feeds,
)


@dataclass(frozen=True, kw_only=True)
class Availability:
    """Whether a runtime can run here, found by trying.

    Attributes:
        available: Whether a model can be opened on it now.
        version: Of the library, or None where it is not installed.
        devices: What it can compute on, in words.
        reason: Why it can't run, or None.
        fix: The command or step that makes it run, or None.
    """

    name: str
    available: bool
    version: str | None
    devices: tuple[str, ...] = ()
    reason: str | None = None
    fix: str | None = None


class Prepared(ABC):
    """One set of inputs made ready to run again and again, for measuring.

    With scope ``device`` inputs and outputs stay where the runtime computes and nothing is copied; with
    ``end-to-end`` every ``enqueue`` copies host arrays in and ``synchronize`` has the results back in host arrays.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self._closed = False

    @property
    def returns_early(self) -> bool:
        """Whether ``enqueue`` returns before the run is done, so that its own time tells what the host needs."""
        return False

    def enqueue(self) -> None:
        """Starts one run; may return before it is done."""
        self._check_open()
        self._enqueue()

    def synchronize(self) -> None:
        """Waits until everything that was enqueued is done."""
        self._check_open()
        self._synchronize()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeClosed("this prepared run was closed; prepare() makes a new one")

    def phases(self) -> Mapping[str, float] | None:
        """Makes one run and returns the seconds of its parts by the device's own clock.

        Returns:
            ``copy_in``, ``compute`` and ``copy_out`` (with scope ``device`` ``compute`` alone); None where the device
            does not tell them apart.
        """
        self.synchronize()
        return self._phases()

    def outputs(self) -> dict[str, NDArray[Any]]:
        """Copies the outputs of the last finished run to host arrays."""
        self.synchronize()
        return self._outputs()

    def close(self) -> None:
        """Frees the buffers; closing twice is fine."""
        if not self._closed:
            self._closed = True
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        close_all([self.close], after=error)

    @abstractmethod
    def _enqueue(self) -> None: ...

    @abstractmethod
    def _synchronize(self) -> None: ...

    @abstractmethod
    def _outputs(self) -> dict[str, NDArray[Any]]: ...

    def _phases(self) -> Mapping[str, float] | None:
        return None

    def _close(self) -> None:  # noqa: B027  (most adapters have nothing to free)
        """Frees what garbage collection would not."""


class HostRuns(Prepared):
    """Runs from host arrays to host arrays that are done when ``enqueue`` returns, with either scope."""

    def __init__(
        self,
        run: Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]],
        feeds: dict[str, NDArray[Any]],
        scope: Scope,
    ) -> None:
        super().__init__(scope)
        self._run, self._feeds = run, feeds
        self._results: dict[str, NDArray[Any]] = {}

    def _enqueue(self) -> None:
        self._results = self._run(self._feeds)

    def _synchronize(self) -> None:
        pass

    def _outputs(self) -> dict[str, NDArray[Any]]:
        return {name: array.copy() for name, array in self._results.items()}

    def _close(self) -> None:
        del self._run


class Runtime(ABC):
    """An opened model on one runtime and device; use it as a context manager.

    Attributes:
        name: What ``--runtime`` takes.
        default_device: Where it computes unless another device is requested.
        opens: The forms of a model that it opens, the preferred one first.
        suffixes: Endings of files in a format of its own.
        uses: Names of the fields of ``RuntimeOptions`` that it uses.
        precisions: Precisions of files that it computes on every machine.
        lowers_int8: Whether it opens a portable int8 file in a form of its own, which ``converters.lowering`` makes.
        built_from: What its engines are built from, where it opens engines: an ONNX file, or a network in torch.
        in_all: Whether ``all`` includes it; False where it, or making what it opens, is too slow for that.
        left_out_because: What a user is told where ``all`` leaves it out, and "" for nothing.
        standalone: The module that runs its models without this program, see ``runtimes.standalone``; "" for none.
        not_bundled_because: Where there is none: why, as the end of a sentence that begins with "it".
        distributions: What pip installs its library as, the first that is installed.
        efficiency: Share of a processor's peak that it usually reaches; a guess, for what is tried first.
        build_advice: What it does where an engine would be built, as the end of a sentence that begins with "it".
        inputs: Specs of the model's inputs, in the model's order.
        outputs: Specs of the model's outputs, in the model's order.
        recorded: Every option that can change numbers or speed, as it was really set; goes into results.
        streams: How many prepared runs it is arranged for to go on at the same time.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    default_device: ClassVar[str] = "cpu"
    opens: ClassVar[tuple[ModelForm, ...]] = ("onnx",)
    suffixes: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[frozenset[str]] = frozenset({"threads", "streams"})
    precisions: ClassVar[frozenset[str]] = frozenset({"fp32"})
    lowers_int8: ClassVar[bool] = False
    built_from: ClassVar[Literal["onnx", "torch"]] = "onnx"
    in_all: ClassVar[bool] = True
    left_out_because: ClassVar[str] = ""
    standalone: ClassVar[str] = ""
    not_bundled_because: ClassVar[str] = "has no program that runs it without resnet-onnx"
    distributions: ClassVar[tuple[str, ...]] = ()
    efficiency: ClassVar[float] = 0.6
    build_advice: ClassVar[str] = "loads the ONNX file itself"

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    recorded: Mapping[str, Any]
    streams: int

    def __init__(self, source: ModelSource, *, device: str, options: RuntimeOptions) -> None:
        self.source = source
        self.device = device
        self.options = options
        self.streams = options.streams or self._default_streams()
        self._prepared: weakref.WeakSet[Prepared] = weakref.WeakSet()
        self._closed = True  # until _open is through, so that close() after a failed open does nothing
        self._running = f"running {source.name} on {self.name}"
        with doing(f"opening {source.name} on {self.name}"):
            self.inputs, self.outputs, self.recorded = self._open()
        self._closed = False

    @classmethod
    def probe(cls, device: str | None = None) -> Availability:
        """Finds out by really trying whether this runtime can run here, on `device` or its default one."""
        try:
            version, devices = cls._probe(cls.resolve_device(device))
        except RuntimeUnavailable as missing:
            installed = cls._installed_version()
            return Availability(
                name=cls.name, available=False, version=installed, reason=missing.message, fix=missing.fix
            )
        return Availability(name=cls.name, available=True, version=version, devices=devices)

    @classmethod
    def resolve_device(cls, device: str | None) -> str:
        """Returns the full name of the requested device (``cuda`` → ``cuda:0``).

        Raises:
            UsageError: The device is misspelt, or of a kind that this runtime does not have.
        """
        if device is None:
            return cls.default_device
        kind, index = parse_device(device)
        if kind not in cls._device_kinds():
            raise UsageError(f"runtime '{cls.name}' runs on {' or '.join(cls._device_kinds())}, not on '{device}'")
        return "cpu" if kind == "cpu" else f"cuda:{index or 0}"

    @classmethod
    def has_device(cls, device: str | None) -> bool:
        """Returns whether this runtime has devices of that kind; raises ``UsageError`` for a misspelt one."""
        return device is None or parse_device(device)[0] in cls._device_kinds()

    @classmethod
    def arithmetic(cls, precision: str, options: RuntimeOptions, device: str | None = None) -> str:
        """Returns the precision that products are computed in, which is what an error budget follows.

        It is `precision`, that of the file (``fp32``, ``fp16``, ``bf16`` or ``int8``); or the one that autocast narrows
        to; or ``tf32`` for a float32 file where the options allow it and both runtime and device have it.
        """
        if "autocast" in cls.uses and options.autocast is not None:
            return options.autocast
        if precision == "fp32" and options.tf32 and "tf32" in cls.uses and cls.resolve_device(device) != "cpu":
            return "tf32"
        return precision

    @classmethod
    def _device_kinds(cls) -> tuple[str, ...]:
        return (cls.default_device.partition(":")[0],)

    @classmethod
    @abstractmethod
    def _probe(cls, device: str) -> tuple[str, tuple[str, ...]]:
        """Returns version and devices, or raises ``RuntimeUnavailable`` with the reason and the fix."""

    @classmethod
    @abstractmethod
    def _installed_version(cls) -> str | None:
        """Returns the version of the installed library without loading it, or None."""

    @property
    def version(self) -> str:
        """Version of the library behind this runtime."""
        return self._installed_version() or "unknown"

    def placement(self) -> tuple[NodePlacement, ...]:
        """Returns device and provider per node, or one row for a whole engine."""
        self._check_open()
        return self._placement()

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Runs the model once.

        Args:
            feeds: Arrays by input name; names, dtypes and shapes must be those of ``inputs``.

        Returns:
            Arrays by output name, owned by the caller.

        Raises:
            BadFeeds: A name, dtype or shape differs from ``inputs``.
            RuntimeClosed: The runtime was closed.
        """
        accepted = self._accepted(feeds)
        with doing(self._running):
            return self._run(accepted)

    def prepare(self, feeds: Feeds, *, scope: Scope = "device") -> Prepared:
        """Places `feeds` for repeated runs; see ``Prepared``. Closing the runtime closes it too. Raises as ``run``."""
        accepted = self._accepted(feeds)
        with doing(self._running):
            prepared = self._prepare(accepted, scope)
        self._prepared.add(prepared)
        return prepared

    def profile(self, feeds: Feeds, *, runs: int = 10) -> Sequence[LayerTime]:
        """Returns the time of each layer, in the order of their first run, by the library's own profiler.

        It is the mean of `runs` runs; one more before them does not count. Profiling slows a run, so that the layers'
        sum is more than a run takes otherwise.

        Raises:
            UnsupportedModel: This runtime has no profiler by layer; otherwise as ``run``.
        """
        ordered = self._accepted(feeds)
        if runs < 1:
            raise UsageError(f"runs must be at least 1, not {runs}")
        return self._layer_times(ordered, runs)

    def _accepted(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        self._check_open()
        check_feeds(feeds, self.inputs, who=self.name)
        # np.ascontiguousarray would turn a scalar into a vector of one.
        return {spec.name: np.asarray(feeds[spec.name], order="C") for spec in self.inputs}

    def close(self) -> None:
        """Frees the model and every prepared run of it; closing twice is fine."""
        if not self._closed:
            self._closed = True
            close_all([*(prepared.close for prepared in list(self._prepared)), self._close])

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        close_all([self.close], after=error)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeClosed(f"{self.name}: this runtime was closed; open_runtime() makes a new one")

    @abstractmethod
    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], Mapping[str, Any]]:
        """Loads ``self.source`` and returns inputs, outputs and the recorded options."""

    def _layer_times(self, feeds: dict[str, NDArray[Any]], runs: int) -> Sequence[LayerTime]:
        raise UnsupportedModel(f"runtime '{self.name}' has no profiler that tells the time of a layer")

    def _default_streams(self) -> int:
        """Returns how many streams give the most throughput where nobody said: one thread to each, or two on a GPU.

        On a CPU runs beside each other need no barriers between their layers; on a GPU one run's copies and gaps are
        filled by another's work. ``_open`` may set ``streams`` to what the library itself finds best.
        """
        return default_streams(self.options, self.device)

    @property
    def _threads_per_stream(self) -> int:
        """CPU threads of one stream."""
        return threads_per_stream(self.options, self.streams)

    @abstractmethod
    def _placement(self) -> tuple[NodePlacement, ...]: ...

    @abstractmethod
    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]: ...

    def _prepare(self, feeds: dict[str, NDArray[Any]], scope: Scope) -> Prepared:
        return HostRuns(self._run, feeds, scope)

    @abstractmethod
    def _close(self) -> None: ...


def close_all(closers: Iterable[Callable[[], None]], *, after: BaseException | None = None) -> None:
    """Calls every one, also where another fails, and then raises the first failure.

    An error that was raised before (`after`) is the one that matters: failures are then notes on it.
    """
    first = after
    for close in closers:
        try:
            close()
        except Exception as error:
            if first is None:
                first = error
            else:
                first.add_note(f"closing failed too: {error}")
    if first is not None and after is None:
        raise first


def default_streams(options: RuntimeOptions, device: str) -> int:
    """Returns how many streams a runtime has where neither the user nor the library says."""
    return (options.threads or usable_cores()) if device == "cpu" else 2


def threads_per_stream(options: RuntimeOptions, streams: int) -> int:
    """Returns the CPU threads of each of so many streams."""
    return max(1, (options.threads or usable_cores()) // streams)


def parse_device(device: str) -> tuple[str, str]:
    """Returns the kind and the number of a device; raises ``UsageError`` where it is misspelt."""
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise UsageError(f"unknown device '{device}': expected cpu, cuda or cuda:N")
    return kind, index
