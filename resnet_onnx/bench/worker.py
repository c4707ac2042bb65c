"""What runs in the worker process of one target: opens the model, prepares rows, takes samples.

One request at a time comes as a pickle on stdin and is answered by one on the pipe that was stdout; what libraries
print goes to stderr. The worker ends when its parent does: stdin then ends, even in the middle of a run.
"""

from __future__ import annotations

import math
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.bench import serving
from resnet_onnx.bench.clock import (
    WARM_GPU_S,
    Disturbance,
    RealTime,
    Slice,
    Turn,
    Watch,
    breakdown,
    sample,
    sample_sets,
    turn,
    warm_up,
)
from resnet_onnx.bench.energy import EnergyMeter, GpuWatch
from resnet_onnx.bench.feed_factory import FedRun, FeedFactory
from resnet_onnx.results.bench import Breakdown, WarmUp
from runtimes import nvidia, onnx_types
from runtimes.base import Prepared, Runtime, close_all
from runtimes.cores import usable_cores
from runtimes.environment import describe_machine
from runtimes.errors import OutOfMemory, ToolkitError
from runtimes.processes import end_with_parent
from runtimes.registry import open_target
from runtimes.spec import Feeds, LayerTime, Scope, Target, TensorSpec, check_rows

if TYPE_CHECKING:
    from resnet_onnx.bench.loadgen import Harnessed, MLPerfScenario, ServerRules

SET_S = 0.5
"""Least time of a set in the offline scenario: its end, where streams wait for the last one, then hardly counts."""

_FEWEST_PER_STREAM = 2
_PICTURE_AXES = 4

PROTOCOL = 7
"""Version of what parent and worker send each other: the methods of ``Worker`` and the types that they take and return.
A worker may run in another environment, with another version of this package."""

Request = tuple[str, dict[str, Any]]
"""A method of ``Worker`` and its keyword arguments."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What an opened runtime reports of itself.

    Attributes:
        placement: How many nodes each provider runs on each device, ``"provider, device"`` → count.
        energy: Whose counters of energy there are to read: ``RAPL`` or ``NVML``.
        energy_unreadable: Why they can't be read, or "".
    """

    version: str
    device: str
    recorded: Mapping[str, Any]
    placement: Mapping[str, int]
    inputs: tuple[TensorSpec, ...]
    streams: int = 1
    energy: str = ""
    energy_unreadable: str = ""


class Worker:
    """The requests that a worker process answers; one method each."""

    def __init__(self) -> None:
        self._runtime: Runtime | None = None
        self._gpu: nvidia.Gpu | None = None
        self._energy: EnergyMeter | None = None
        self._rows: dict[int, list[Prepared]] = {}
        self._given: dict[int, Feeds] = {}
        self._sets: dict[int, int] = {}
        self._batches: dict[int, Prepared] = {}

    def open(self, target: Target) -> Opened:
        """Opens the model."""
        opened = open_target(target)
        self._runtime = opened
        self._gpu = None if opened.device == "cpu" else nvidia.require_gpu(opened.device)
        self._energy = EnergyMeter(self._gpu)
        counts = Counter(f"{node.provider}, {node.device}" for node in opened.placement())
        return Opened(
            version=opened.version,
            device=opened.device,
            recorded=dict(opened.recorded),
            placement=dict(counts.most_common()),
            inputs=opened.inputs,
            streams=opened.streams,
            energy=self._energy.source,
            energy_unreadable=self._energy.unreadable,
        )

    def prepare(
        self,
        row: int,
        feeds: Feeds,
        batch: int,
        scope: Scope,
        limit_s: float,
        feed_factory: FeedFactory | None = None,
        in_sets: bool = False,
        at_once: float | None = None,
    ) -> WarmUp:
        """Prepares one row, a run for each of the runtime's streams, and warms it up.

        A row may be measured in whole sets of runs, of `at_once` or as many as ``SET_S`` needs.
        """
        runtime = self._opened()
        prepared: list[Prepared] = []
        try:
            if feed_factory is None:
                whole = self._given[row] = enlarge(feeds, runtime.inputs, batch)
                prepared.extend(runtime.prepare(whole, scope=scope) for _ in range(runtime.streams))
            else:
                threads = max(1, usable_cores() // runtime.streams)
                prepared.extend(
                    FedRun(runtime, feed_factory.open(batch=batch, threads=threads)) for _ in range(runtime.streams)
                )
            warm = warm_up(prepared, limit_s=limit_s)
            if len(runtime.inputs) == 1 and len(runtime.inputs[0].shape) == _PICTURE_AXES:
                check_rows(prepared[0].outputs(), batch, who=runtime.source.name)
        except BaseException as error:
            close_all([each.close for each in prepared], after=error)
            raise
        self._rows[row] = prepared
        if not in_sets:
            return warm
        streams = len(prepared)
        runs = int(at_once or 0) or max(_FEWEST_PER_STREAM * streams, math.ceil(streams * SET_S / warm.run_s))
        self._sets[row] = runs
        return replace(warm, at_once=runs, run_s=warm.run_s * runs / streams)

    def sample(self, row: int, seconds: float, discard: int) -> Slice:
        """Takes the samples of one round of a row."""
        watch = None if self._gpu is None else GpuWatch(self._gpu)
        before = self._energy.read() if self._energy is not None else ()
        if row in self._sets:
            taken = sample_sets(self._rows[row], runs=self._sets[row], seconds=seconds, warm_s=self._warm_s)
        else:
            taken = sample(self._rows[row], seconds=seconds, discard=discard, warm_s=self._warm_s)
        used = self._energy.since(before) if self._energy is not None else None
        sensors = None if watch is None else watch.stop(seconds=taken.spent_s, energy_j=used)
        return replace(taken, energy_j=used, sensors=sensors)

    @property
    def _warm_s(self) -> float:
        return 0.0 if self._gpu is None else WARM_GPU_S

    def turn(self, row: int, seconds: float, discard: int) -> Turn:
        """Takes one turn of a row that is compared with another worker's."""
        return turn(self._rows[row], seconds=seconds, discard=discard, warm_s=self._warm_s)

    def outputs(self, row: int) -> dict[str, NDArray[Any]]:
        """Returns what the last run of a row's first stream computed."""
        return self._rows[row][0].outputs()

    def computed(self, row: int) -> list[tuple[Feeds, dict[str, NDArray[Any]]]]:
        """Returns what the last run of each stream of a row was given, and what it made of that."""
        return [
            (each.given if isinstance(each, FedRun) else self._given[row], each.outputs()) for each in self._rows[row]
        ]

    def end_with_parent(self, parent: int) -> None:
        """Ends this process with its parent; see ``processes.end_with_parent``."""
        end_with_parent(parent)

    def describe(self) -> dict[str, Any]:
        """Returns the machine and the libraries of this process, as ``describe_machine``."""
        return describe_machine()

    def breakdown(self, row: int) -> Breakdown:
        """Takes single runs of a row's first stream apart."""
        return breakdown(self._rows[row][0], warm_s=self._warm_s)

    def release(self, row: int) -> None:
        """Frees what a row holds."""
        self._sets.pop(row, None)
        self._given.pop(row, None)
        close_all([prepared.close for prepared in self._rows.pop(row, ())])

    def profile(self, feeds: Feeds, batch: int, runs: int) -> tuple[LayerTime, ...]:
        """Returns the time of each layer by the runtime's own profiler."""
        runtime = self._opened()
        return tuple(runtime.profile(enlarge(feeds, runtime.inputs, batch), runs=runs))

    def loadgen(
        self,
        feeds: Feeds,
        batch: int,
        scenario: MLPerfScenario,
        duration_s: float,
        warm_up_s: float,
        server: ServerRules | None = None,
    ) -> Harnessed:
        """Runs MLPerf's LoadGen."""
        from resnet_onnx.bench.loadgen import run_loadgen

        return run_loadgen(self._opened(), feeds, batch, scenario, duration_s, warm_up_s, server)

    def prepare_server(
        self, feeds: Feeds, largest: int, scope: Scope, limit_s: float
    ) -> dict[int, NDArray[np.float64]]:
        """Prepares batches of all sizes that a server of at most so many needs; returns seconds of their runs.

        Takes `limit_s` in all, about.
        """
        runtime, sizes = self._opened(), serving.batch_sizes(largest)
        found = {}
        for size in sizes:
            prepared = runtime.prepare(enlarge(feeds, runtime.inputs, size), scope=scope)
            self._batches[size] = prepared
            warm_up([prepared], limit_s=limit_s / 2 / len(sizes))
            found[size] = sample([prepared], seconds=limit_s / 2 / len(sizes)).times_ns / 1e9
        return found

    def serve(self, arrivals_s: list[float], policy: serving.BatchPolicy) -> tuple[NDArray[np.float64], Disturbance]:
        """Serves pictures that arrive at given moments; returns their latencies in seconds and what others did."""
        sizes = sorted(self._batches)

        def execute(count: int) -> None:
            prepared = self._batches[next(size for size in sizes if size >= count)]
            prepared.enqueue()
            prepared.synchronize()

        watch = Watch()
        latencies = serving.serve(arrivals_s, execute, RealTime(), policy)
        return latencies, watch.stop()

    def peaks(self, threads: int) -> Any:
        """Measures the machine's peaks."""
        from resnet_onnx.bench.ceiling import measure_peaks

        return measure_peaks(threads)

    def _opened(self) -> Runtime:
        if self._runtime is None:
            raise RuntimeError("open() comes before everything else")
        return self._runtime


def enlarge(feeds: Feeds, inputs: tuple[TensorSpec, ...], batch: int) -> dict[str, NDArray[Any]]:
    """Repeats samples along the first axis up to a batch, so that no large batch has to be handed between processes.

    An input whose first dimension is fixed stays as it is. Where targets take the same input in other precisions,
    float32 becomes what this one takes.

    Raises:
        OutOfMemory: The inputs alone are larger than the memory that is free.
    """
    import psutil

    symbolic = {spec.name for spec in inputs if spec.shape and isinstance(spec.shape[0], str)}
    needed = sum(a.nbytes // max(1, len(a)) * batch for name, a in feeds.items() if name in symbolic)
    free = int(psutil.virtual_memory().available)
    if needed > free:
        raise OutOfMemory(
            f"the inputs of a batch of {batch} need {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free",
            fix="use a smaller batch",
        )
    wanted = {spec.name: spec.dtype for spec in inputs}
    return {
        name: _as_taken(
            np.resize(array, (batch, *array.shape[1:])) if name in symbolic and len(array) != batch else array,
            wanted.get(name, array.dtype),
        )
        for name, array in feeds.items()
    }


def _as_taken(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    narrow = array.dtype == np.float32 and dtype in (np.dtype(np.float16), onnx_types.BFLOAT16)
    return array.astype(dtype) if narrow else array


def main() -> None:
    """Answers requests until stdin ends."""
    # Ctrl-C reaches the whole group; the parent decides what becomes of its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests: queue.SimpleQueue[Request | str] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(os.fdopen(os.dup(0), "rb"), requests), daemon=True).start()
    worker = Worker()
    while True:
        request = requests.get()
        answer = ("fault", request) if isinstance(request, str) else _answer(worker, *request)
        pickle.dump(answer, replies, protocol=pickle.HIGHEST_PROTOCOL)
        replies.flush()


def _answer(worker: Worker, method: str, arguments: dict[str, Any]) -> tuple[str, Any]:
    try:
        return "value", getattr(worker, method)(**arguments)
    except ToolkitError as error:
        return "error", error
    except MemoryError as error:
        return "error", OutOfMemory(f"not enough memory: {error}".rstrip(": "), fix="use a smaller batch or model")
    except Exception as error:  # carried to the parent, where it is reported as an internal error
        return "fault", f"{type(error).__name__}: {error}\n{traceback.format_exc()}"


def _receive(stream: BinaryIO, requests: queue.SimpleQueue[Request | str]) -> None:
    """Hands requests on; ends the process when the parent is gone, whatever the main thread is doing."""
    while True:
        try:
            requests.put(pickle.load(stream))  # from our own parent over a private pipe, never from a file
        except (EOFError, OSError):
            sys.stderr.flush()
            os._exit(0)
        except Exception as error:  # an argument whose module can't be imported here
            requests.put(f"{type(error).__name__}: {error}")
