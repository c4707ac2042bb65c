"""MLPerf's LoadGen on a runtime: its queries, its clock, its verdict.

LoadGen decides when a sample is queried, takes the time itself, and reports VALID or INVALID. Its rules: Reddi et al.,
"MLPerf Inference Benchmark", ISCA 2020 (arXiv:1911.02549), and mlcommons/inference_policies. An official run lasts 600
seconds at least and has 24,576 samples Offline; ours lasts ``duration``, so that VALID here means that LoadGen's
statistics are sound for the shorter run, and is not a submission.
"""

from __future__ import annotations

import json
import queue
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.bench.clock import Slice, Watch, warm_up
from resnet_onnx.bench.serving import BatchPolicy, batch_sizes
from resnet_onnx.results.bench import HarnessRecord, WarmUp
from resnet_onnx.results.writing import typed
from runtimes.base import Prepared, Runtime
from runtimes.environment import load_library, package_version
from runtimes.errors import RunFailed
from runtimes.spec import Feeds

MLPerfScenario = Literal["SingleStream", "MultiStream", "Offline", "Server"]

SAMPLES_PER_QUERY = 8
"""Of MultiStream (mlcommons/inference_policies)."""

FEWEST_QUERIES = 64
"""What LoadGen's early stopping needs to estimate the 90th percentile of SingleStream."""

FEWEST_SERVED = 459
"""What early stopping needs in Server where none is late: 1 − 0.99ⁿ reaches 99 %."""

OFFICIAL: Mapping[MLPerfScenario, Mapping[str, int]] = {
    "SingleStream": {"min_duration_ms": 600_000, "min_query_count": 1024},
    "MultiStream": {"min_duration_ms": 600_000},
    "Offline": {"min_duration_ms": 600_000, "samples": 24_576},
    "Server": {"min_duration_ms": 600_000},
}
"""What a submission of the resnet benchmark has to keep (mlperf.conf of LoadGen, and the Inference rules)."""

_MARGIN = 1.2
"""Samples of an Offline run over those that the warm-up promises for its duration: a run that is faster than its
warm-up must not end too early to be valid."""

_LOGS = ("mlperf_log_summary.txt", "mlperf_log_detail.txt", "mlperf_log_accuracy.json")
_DETAIL, _SUMMARY = "mlperf_log_detail.txt", "mlperf_log_summary.txt"


@dataclass(frozen=True, kw_only=True)
class Harnessed:
    """One run of LoadGen.

    Attributes:
        part: The samples as the runtime's side saw them: a time per query, from its arrival to its completion.
    """

    warm_up: WarmUp
    part: Slice
    reported: HarnessRecord
    logs: Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True)
class ServerRules:
    """What LoadGen's Server is to ask, and how the engine takes it.

    Attributes:
        rate: Queries a second, of one sample each.
        limit_s: Of the 99th percentile of their latency.
    """

    rate: float
    limit_s: float
    policy: BatchPolicy


def require_loadgen() -> Any:
    """Returns the module of LoadGen; raises ``RuntimeUnavailable`` where it is not installed."""
    return load_library("mlperf_loadgen", purpose="--harness mlperf", package="resnet-onnx[mlperf]")


def run_loadgen(
    runtime: Runtime,
    feeds: Feeds,
    batch: int,
    scenario: MLPerfScenario,
    duration_s: float,
    warm_up_s: float,
    server: ServerRules | None = None,
) -> Harnessed:
    """Runs LoadGen on a runtime opened for one stream, or as many as it does best with (Offline).

    Samples are those of `feeds` by number; each query's are copied into the input of a prepared run, so that every
    sample is really computed, end to end. LoadGen measures for `duration_s` at least.

    Raises:
        RuntimeUnavailable: LoadGen is not installed.
        RunFailed: A run failed, or LoadGen wrote no verdict.
    """
    loadgen = require_loadgen()
    sizes = (batch,) * runtime.streams if server is None else batch_sizes(server.policy.max_batch)
    lanes = [_Lane(runtime, feeds, size) for size in sizes]
    warm = warm_up([lane.prepared for lane in lanes[-runtime.streams :]], limit_s=warm_up_s)
    settings = _settings(loadgen, scenario, duration_s, batch * runtime.streams / warm.run_s, server)
    count = min(len(array) for array in feeds.values())
    system = _System(loadgen, lanes) if server is None else _ServerSystem(loadgen, lanes, server.policy)
    with tempfile.TemporaryDirectory() as folder:
        output = loadgen.LogOutputSettings()
        output.outdir = folder
        logging = loadgen.LogSettings()
        logging.log_output = output
        logging.enable_trace = False
        library = loadgen.ConstructQSL(count, count, lambda _: None, lambda _: None)
        sut = loadgen.ConstructSUT(system.issue, lambda: None)
        watch, begin = Watch(), perf_counter()
        try:
            loadgen.StartTestWithLogSettings(sut, library, settings, logging, f"{folder}/audit.config")
        finally:
            loadgen.DestroySUT(sut)
            loadgen.DestroyQSL(library)
            system.close()
        spent_s, disturbance = perf_counter() - begin, watch.stop()
        logs = {name: path.read_bytes() for name in _LOGS if (path := Path(folder) / name).exists()}
    if system.error is not None:
        raise system.error
    times = np.array(system.times_ns, np.int64)
    runs = system.samples / batch
    reported = {
        **verdict(*(logs.get(name, b"").decode(errors="replace") for name in (_DETAIL, _SUMMARY))),
        "scenario": scenario,
        "loadgen": package_version("mlcommons-loadgen"),
        "samples": system.samples,
        "target_per_second": None if server is None else server.rate,
        "settings": {"min_duration_ms": settings.min_duration_ms, "min_query_count": settings.min_query_count},
        "official": dict(OFFICIAL[scenario]),
    }
    return Harnessed(
        warm_up=replace(warm, at_once=runs if scenario == "Offline" else 1),
        part=Slice(
            times_ns=times, runs_per_s=runs / (times.sum() / 1e9), spent_s=spent_s, disturbance=disturbance
        ),
        reported=typed(HarnessRecord, reported),
        logs=logs,
    )  # fmt: skip


def _settings(
    loadgen: Any, scenario: MLPerfScenario, duration_s: float, expected_per_s: float, server: ServerRules | None
) -> Any:
    """Returns LoadGen's settings of a run."""
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, scenario)
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = int(1000 * duration_s)
    settings.min_query_count = {"SingleStream": FEWEST_QUERIES, "Server": FEWEST_SERVED}.get(scenario, 1)
    settings.offline_expected_qps = expected_per_s * _MARGIN
    settings.multi_stream_samples_per_query = SAMPLES_PER_QUERY
    # It makes up its queries beforehand, as many as such a latency lets fit into the duration.
    settings.multi_stream_expected_latency_ns = round(1e9 * SAMPLES_PER_QUERY / expected_per_s / _MARGIN)
    if server is not None:
        settings.server_target_qps = server.rate
        settings.server_target_latency_ns = round(1e9 * server.limit_s)
        settings.server_target_latency_percentile = 0.99
    return settings


class _Lane:
    """A prepared run with an input that can be filled anew before each run."""

    def __init__(self, runtime: Runtime, feeds: Feeds, batch: int) -> None:
        free = {spec.name for spec in runtime.inputs if spec.shape and isinstance(spec.shape[0], str)}
        self._samples = feeds
        self._places: dict[str, NDArray[Any]] = {
            name: np.array(np.resize(array, (batch, *array.shape[1:])) if name in free else array)
            for name, array in feeds.items()
        }
        self.batch = min(len(array) for array in self._places.values())
        # End to end: a run copies these arrays anew each time.
        self.prepared: Prepared = runtime.prepare(self._places, scope="end-to-end")

    def run(self, indices: Sequence[int]) -> None:
        """Computes so many samples; a batch that is not full computes what was in its other places before."""
        for name, place in self._places.items():
            for position, index in enumerate(indices):
                place[position] = self._samples[name][index]
        self.prepared.enqueue()
        self.prepared.synchronize()


class _System:
    """What LoadGen calls the system under test: threads that take batches of samples from a queue."""

    def __init__(self, loadgen: Any, lanes: Sequence[_Lane]) -> None:
        self._loadgen = loadgen
        self._batches: queue.SimpleQueue[tuple[_Query, list[Any]] | None] = queue.SimpleQueue()
        self._batch = lanes[0].batch
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, args=(lane,), daemon=True) for lane in lanes]
        for thread in self._threads:
            thread.start()
        self.times_ns: list[int] = []
        self.samples = 0
        self.error: Exception | None = None

    def issue(self, samples: list[Any]) -> None:
        """Called by LoadGen with the samples of one query."""
        query = _Query(arrived_ns=perf_counter_ns(), left=len(samples))
        self.samples += len(samples)
        for start in range(0, len(samples), self._batch):
            self._batches.put((query, samples[start : start + self._batch]))

    def _work(self, lane: _Lane) -> None:
        while (given := self._batches.get()) is not None:
            query, samples = given
            if self.error is None:
                try:
                    lane.run([sample.index for sample in samples])
                except Exception as error:  # LoadGen takes no errors; raised after the run
                    self.error = error
            with self._lock:
                query.left -= len(samples)
                if query.left == 0:
                    self.times_ns.append(perf_counter_ns() - query.arrived_ns)
            response = self._loadgen.QuerySampleResponse
            self._loadgen.QuerySamplesComplete([response(sample.id, 0, 0) for sample in samples])

    def close(self) -> None:
        """Ends the threads."""
        for _ in self._threads:
            self._batches.put(None)
        for thread in self._threads:
            thread.join()


class _ServerSystem:
    """A server with dynamic batching: one thread that takes what waits, as ``serving.serve`` does."""

    def __init__(self, loadgen: Any, lanes: Sequence[_Lane], policy: BatchPolicy) -> None:
        self._loadgen, self._lanes, self._policy = loadgen, lanes, policy
        self._arrived: queue.SimpleQueue[tuple[int, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        self.times_ns: list[int] = []
        self.samples = 0
        self.error: Exception | None = None

    def issue(self, samples: list[Any]) -> None:
        """Called by LoadGen with the sample of one query."""
        now = perf_counter_ns()
        self.samples += len(samples)
        for sample in samples:
            self._arrived.put((now, sample))

    def _work(self) -> None:
        while (first := self._arrived.get()) is not None:
            taken, over = self._with_others(first)
            lane = next(lane for lane in self._lanes if lane.batch >= len(taken))
            if self.error is None:
                try:
                    lane.run([sample.index for _, sample in taken])
                except Exception as error:  # LoadGen takes no errors; raised after the run
                    self.error = error
            done = perf_counter_ns()
            self.times_ns += [done - arrived for arrived, _ in taken]
            response = self._loadgen.QuerySampleResponse
            self._loadgen.QuerySamplesComplete([response(sample.id, 0, 0) for _, sample in taken])
            if over:
                return

    def _with_others(self, first: tuple[int, Any]) -> tuple[list[tuple[int, Any]], bool]:
        """Returns the first with those that wait or arrive while it may wait, and whether that was the end."""
        taken, until_ns = [first], first[0] + round(1e9 * self._policy.max_wait_s)
        while len(taken) < self._policy.max_batch:
            left_s = (until_ns - perf_counter_ns()) / 1e9
            try:
                following = self._arrived.get(timeout=left_s) if left_s > 0 else self._arrived.get_nowait()
            except queue.Empty:
                break
            if following is None:
                return taken, True
            taken.append(following)
        return taken, False

    def close(self) -> None:
        """Ends the thread."""
        self._arrived.put(None)
        self._thread.join()


@dataclass
class _Query:
    arrived_ns: int
    left: int


def verdict(detail: str, summary: str = "") -> dict[str, Any]:
    """Reads LoadGen's verdict and figures from its detailed log, as ``HarnessRecord`` has them.

    Where that gives no reason, early stopping may have one, which only the summary has.

    Raises:
        RunFailed: The log has no verdict.
    """
    found: dict[str, Any] = {}
    for line in detail.splitlines():
        _, mark, text = line.partition(":::MLLOG ")
        if mark:
            try:
                entry = json.loads(text)
                found[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError):
                continue  # a line that was cut off, or another program's
    if "result_validity" not in found:
        raise RunFailed("LoadGen ended without a verdict in its log")
    figures = (
        "result_samples_per_second",
        "result_completed_samples_per_sec",
        "result_qps_without_loadgen_overhead",
    )
    per_s = next((found[key] for key in figures if key in found), None)
    offline = "result_samples_per_second" in found
    valid = found["result_validity"] == "VALID"
    _, _, early = summary.partition("Early Stopping Result:")
    early = "" if valid else early.partition("\n\n")[0].replace("*", "")
    return {
        "valid": valid,
        "reason": " ".join(f"{found.get('result_invalid_reason', '')} {early}".split()) or None,
        "queries": found.get("result_query_count"),
        "samples_per_second": per_s,
        "latency_ms": {
            name: None if offline or key not in found else found[key] / 1e6
            for name, key in (
                ("p50", "result_50.00_percentile_latency_ns"),
                ("p90", "result_90.00_percentile_latency_ns"),
                ("p99", "result_99.00_percentile_latency_ns"),
            )
        },
    }
