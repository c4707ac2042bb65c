"""Measuring in worker processes: turns, deaths, neighbours, memory; and the work of a graph beside the peaks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from onnx import helper
from support import saved_results
from support.onnx_models import weights, write_model
from support.virtual_time import VirtualClock

from resnet_onnx.bench import ceiling, clock, record, roofline, worker_process
from resnet_onnx.bench.clock import Disturbance, Slice, Watch, sample, sample_sets
from resnet_onnx.bench.measure import measure
from resnet_onnx.bench.plan import BenchPlan
from resnet_onnx.bench.row import Row
from resnet_onnx.bench.worker import Worker, enlarge
from resnet_onnx.bench.worker_process import WorkerDied, WorkerProcess
from resnet_onnx.results.bench import BenchRow
from resnet_onnx.results.writing import typed
from resnet_onnx.workflow import MeasuringPlan
from runtimes import files
from runtimes.errors import BadModel, OutOfMemory, RunFailed, UsageError
from runtimes.fake import FakeProgram, FakeRuntime
from runtimes.registry import open_runtime
from runtimes.spec import ModelSource, RuntimeOptions, Target, TensorSpec


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A convolution 3→8, 3×3, on 16×16, dynamic batch: some tens of microseconds."""
    weight = np.random.default_rng(0).standard_normal((8, 3, 3, 3), np.float32)
    node = helper.make_node("Conv", ["input", "w"], ["output"], pads=[1, 1, 1, 1])
    return write_model(tmp_path / "tiny.onnx", [node], {"input": ["batch", 3, 16, 16]}, {"w": weight})


FEEDS = {"input": np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)}


ONE = {"x": np.ones((1, 1), np.float32)}


def waiting(fixed_s: float, each_s: float = 0.0) -> Target:
    """Work that takes a virtual time, so that what is measured does not depend on the machine."""
    arguments = {"fixed_s": fixed_s, "each_s": each_s}
    return Target(
        runtime="torch", source=ModelSource(factory="support.virtual_time:waiting_program", arguments=arguments)
    )


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    """The clock of this process's bench."""
    made = VirtualClock()
    made.install(monkeypatch.setattr)
    return made


def ort(path: Path) -> Target:
    return Target(runtime="ort-cpu", source=ModelSource(path=path), options=RuntimeOptions(threads=1))


def workers() -> list[psutil.Process]:
    return [c for c in psutil.Process().children() if "resnet_onnx.bench.worker" in " ".join(c.cmdline())]


# ---- rows --------------------------------------------------------------------------------------------------------


def test_every_target_is_measured_at_every_batch_and_number_of_streams(tiny: Path) -> None:
    reference = Target(runtime="reference", source=ModelSource(path=tiny))
    plan = BenchPlan(batches=(1, 3), streams=(1, 2), duration_s=0.4)
    rows = measure([ort(tiny), reference], FEEDS, plan)
    assert [(r.target.runtime, r.batch, r.streams) for r in rows] == [
        (name, batch, streams) for name in ("ort-cpu", "reference") for batch in (1, 3) for streams in (1, 2)
    ]
    assert [row.error for row in rows] == [None] * 8
    assert all(row.times_ns.size > 0 and row.times_ns.min() > 0 for row in rows)
    assert all(row.opened is not None and row.opened.version for row in rows)
    assert not workers(), "the worker processes must be gone"
    first = rows[0]
    assert first.opened is not None
    assert first.opened.recorded["threads"] == 1
    assert first.opened.placement == {"CPUExecutionProvider, cpu": 1}
    speed = record.images_per_second(rows[2])
    assert speed is not None
    assert speed[0] == pytest.approx(3 / (np.median(rows[2].times_ns) / 1e9))


def test_streams_and_threads_are_arranged_by_the_runtime_itself(tiny: Path) -> None:
    targets = [Target(runtime=name, source=ModelSource(path=tiny), device="cpu") for name in ("ort-cpu", "openvino")]
    plan = BenchPlan(batches=(1,), streams=(1, 2, None), threads=(1, 2), duration_s=0.1)
    rows = measure(targets, FEEDS, plan)
    assert [row.error for row in rows] == [None] * 12
    found = {(r.target.runtime, r.target.options.streams, r.target.options.threads): r for r in rows}
    assert len(found) == 12
    arranged = {key: (row.opened.recorded if row.opened else {}) for key, row in found.items()}
    for threads in (1, 2):
        assert arranged["ort-cpu", 1, threads]["sessions"] == 1
        assert arranged["ort-cpu", 2, threads]["sessions"] == 2
        assert arranged["openvino", 2, threads]["streams"] == 2
        assert arranged["ort-cpu", 2, threads]["threads"] == 2, "each stream has one at least"
        assert found["ort-cpu", None, threads].streams == threads, "a thread to each"
        assert found["openvino", None, threads].streams == arranged["openvino", None, threads]["streams"]
    assert (arranged["ort-cpu", 1, 1]["threads"], arranged["ort-cpu", 1, 2]["threads"]) == (1, 2)


def test_torch_shares_its_threads_out_among_the_streams() -> None:
    source = ModelSource(factory=f"{__name__}:counting_program")
    target = Target(runtime="torch", source=source, device="cpu", options=RuntimeOptions(threads=4))
    with WorkerProcess("torch") as worker:
        for streams, each in ((1, 4), (2, 2), (8, 1)):
            arranged = replace(target, options=replace(target.options, streams=streams))
            opened = worker.call("open", target=arranged)
            assert (opened.streams, opened.recorded["threads"]) == (streams, streams * each)
            worker.call(
                "prepare", row=0, feeds={"x": np.array([[each]], np.float32)}, batch=1, scope="device", limit_s=0.1
            )
            worker.call("sample", row=0, seconds=0.01, discard=0)
            worker.call("release", row=0)


def counting_program() -> Any:
    """Fails where torch may use another number of threads than its input says."""
    import torch

    from runtimes.spec import TorchProgram

    class Counting(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.get_num_threads() != int(x[0, 0]):
                raise RuntimeError(f"{torch.get_num_threads()} threads")
            return x

    spec = TensorSpec("x", np.dtype(np.float32), ("batch", 1))
    return TorchProgram(module=Counting(), inputs=(spec,), outputs=(replace(spec, name="y"),))


def test_rows_take_turns() -> None:
    reported: list[str] = []
    plan = BenchPlan(batches=(1, 2), duration_s=0.3, precision_target=-1.0)
    measure([waiting(0.001), waiting(0.002)], ONE, plan, progress=reported.append)
    first = [text for text in reported if text.startswith("round 1:")]
    assert len(first) == 4
    assert reported.index(first[-1]) < next(i for i, text in enumerate(reported) if text.startswith("round 2:"))


def test_duration_bounds_a_row_and_a_precise_row_ends_early() -> None:
    never, soon = (
        measure([waiting(0.01)], ONE, BenchPlan(batches=(1,), duration_s=2.0, precision_target=target))[0]
        for target in (-1.0, 0.0)  # a median of equal ticks has an interval of no width
    )
    assert 2.0 - 2 * 0.01 < never.spent_s <= 2.0  # until no further run fits, with the discarded one before it
    assert len(never.slices) == 8
    assert len(soon.slices) == 3
    assert soon.times_ns.tolist() == [10_000_000] * 72


def test_several_streams_are_rated_by_what_they_complete_together() -> None:
    slices = [
        Slice(times_ns=np.full(20, 10_000_000), runs_per_s=200.0, spent_s=0.1, disturbance=Disturbance(wall_s=0.1))
        for _ in range(6)
    ]
    source = ModelSource(factory="a:b")
    row = Row(target=Target(runtime="x", source=source), batch=4, streams=2, scope="device", slices=slices)
    assert record.images_per_second(row) == (800.0, (800.0, 800.0))
    assert record.latency_ms(row).p50 == 10.0


def test_an_offline_row_is_rated_by_whole_sets(tiny: Path) -> None:
    plan = BenchPlan(batches=(3,), streams=(2,), scenario="offline", duration_s=1.5)
    (row,) = measure([ort(tiny)], FEEDS, plan)
    assert row.error is None
    assert row.at_once >= 4, "two runs a stream at least"
    speed = record.images_per_second(row)
    assert speed is not None
    assert speed[0] == pytest.approx(3 * row.at_once / (np.median(row.times_ns) / 1e9))
    found = record.result(
        row,
        model="tiny",
        precision="fp32",
        utilization=roofline.utilization(None, None, None, "fp32"),
        raw=True,
    )
    assert (found.scenario, found.samples_at_once) == ("offline", 3 * row.at_once)


def test_a_set_is_as_large_as_half_a_second_needs(sleeper: Callable[[float], Any]) -> None:
    worker = Worker()
    worker._runtime = runtime_of(sleeper(0.002))
    worker._runtime.streams = 2
    warm = worker.prepare(0, {"x": np.ones(1, np.float32)}, 1, "device", 5.0, in_sets=True)
    assert warm.at_once == 500
    assert warm.run_s == pytest.approx(0.5)


def test_a_cut_off_ends_the_larger_batches_of_a_runtime_and_of_no_other() -> None:
    plan = BenchPlan(batches=(8, 1, 2, 4), duration_s=0.4, cut_off=0.2)
    saturated, growing = waiting(0.0, 0.02), waiting(0.05, 0.001)
    rows = measure([saturated, growing], ONE, plan)
    first = {row.batch: row for row in rows[:4]}
    assert [batch for batch, row in sorted(first.items()) if row.slices] == [1, 2]
    assert first[4].cut_off == first[8].cut_off
    assert first[4].cut_off.startswith("batch 2 brought ")
    assert all(row.slices and not row.cut_off and row.error is None for row in rows[4:])
    assert all(row.slices for row in measure([saturated], ONE, replace(plan, cut_off=None)))


def test_a_cut_off_ends_with_the_batch_that_fails(tiny: Path) -> None:
    rows = measure([ort(tiny)], FEEDS, BenchPlan(batches=(1, 2**40, 2**41), duration_s=0.1, cut_off=0.01))
    assert isinstance(rows[1].error, OutOfMemory)
    assert (rows[2].error, rows[2].cut_off) == (None, "batch 1099511627776 failed already")


def test_the_front_has_what_no_other_row_beats() -> None:
    def one(speed: float | None, p50: float | None, scenario: str = "throughput", **changes: Any) -> BenchRow:
        known: dict[str, Any] = {"images_per_second": speed, "images_per_second_ci95": None, "scenario": scenario}
        return typed(
            BenchRow,
            saved_results.row(
                saved_results.noisy(1), **known, latency_ms={"p50": p50, "p90": None, "p99": None}, **changes
            ),
        )

    found = record.mark(
        [one(10, 100), one(20, 200), one(15, 250), one(20, 210), one(None, None), one(25, 9, "offline"), one(10, 100)]
    )
    assert [row.pareto for row in found] == [True, True, False, False, False, False, True]
    assert [row.best for row in found] == [False, False, False, False, False, True, False]
    assert [row.best for row in record.mark([one(None, None)])] == [False]
    (died, whole) = record.mark([one(90, 9, error={"kind": "run-failed", "message": "died"}), one(10, 100)])
    assert (died.best, died.pareto, whole.best, whole.pareto) == (False, False, True, True)


def test_slow_runs_fill_a_row_and_do_not_overrun_it() -> None:
    (row,) = measure([waiting(0.3)], ONE, BenchPlan(batches=(1,), duration_s=2.5))
    assert row.error is None
    assert row.times_ns.tolist() == [300_000_000] * 8
    assert row.spent_s == pytest.approx(2.4)


def test_slow_runs_beside_each_other_still_give_enough_rounds_for_an_interval() -> None:
    (row,) = measure([waiting(0.3)], ONE, BenchPlan(batches=(1,), duration_s=5.0, streams=(2,)))
    assert row.error is None
    assert len(row.slices) >= 6
    interval = row.seconds_per_run()
    assert interval is not None
    assert interval.low is not None
    assert interval.median == pytest.approx(0.15)


@pytest.mark.parametrize(
    "wrong", [{"batches": (0,)}, {"batches": ()}, {"streams": (0,)}, {"threads": (0,)}, {"duration_s": 0.0}]
)
def test_a_plan_that_measures_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        BenchPlan(**wrong)


def test_a_plan_that_contradicts_its_harness_is_refused() -> None:
    with pytest.raises(UsageError, match="copies every sample in and out, and the scope is device"):
        MeasuringPlan(bench=BenchPlan(), runtimes=("ort-cpu",), harness=True)
    with pytest.raises(UsageError, match="at least one runtime"):
        MeasuringPlan(bench=BenchPlan(), runtimes=())


def test_a_model_that_no_runtime_opens_is_an_error_in_its_rows(tmp_path: Path, tiny: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"")
    broken, sound = measure([ort(bad), ort(tiny)], FEEDS, BenchPlan(batches=(1,), duration_s=0.2))
    assert isinstance(broken.error, BadModel)
    assert "empty" in broken.error.message
    assert sound.error is None
    assert sound.times_ns.size > 0


# ---- deaths ------------------------------------------------------------------------------------------------------


def test_a_killed_worker_takes_one_row_with_it_and_the_others_go_on() -> None:
    victims: list[int] = []

    def kill_once(text: str) -> None:
        if text.startswith("round 2: torch batch 2") and not victims:
            victims.extend(worker.pid for worker in workers())
            os.kill(victims[0], signal.SIGKILL)

    rows = measure(
        [waiting(0.001)], ONE, BenchPlan(batches=(1, 2, 4), duration_s=0.5, precision_target=-1.0), progress=kill_once
    )
    assert len(victims) == 1, "the test must have killed the one worker"
    killed = next(row for row in rows if row.batch == 2)
    assert isinstance(killed.error, WorkerDied)
    assert "SIGKILL; the system does that where memory runs out" in killed.error.message
    assert len(killed.slices) == 1
    for row in rows:
        if row is not killed:
            assert row.error is None
            assert len(row.slices) >= 3


def test_a_worker_killed_while_it_profiles_leaves_what_was_measured_and_the_next_row_is_profiled(tiny: Path) -> None:
    victims: list[int] = []

    def kill_once(text: str) -> None:
        if text.startswith("profiling") and not victims:
            victims.extend(worker.pid for worker in workers())
            os.kill(victims[0], signal.SIGKILL)

    plan = BenchPlan(batches=(1, 2), duration_s=0.3, profile=True)
    first, second = measure([ort(tiny)], FEEDS, plan, progress=kill_once)
    assert victims
    assert first.error is None
    assert first.slices
    assert "SIGKILL" in (first.unprofiled or "")
    assert second.layers


def test_a_dead_worker_is_an_error_of_every_call() -> None:
    with WorkerProcess("x") as worker:
        os.kill(next(iter(workers())).pid, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(WorkerDied):
                worker.call("release", row=0)


def test_a_duration_without_end_is_refused() -> None:
    for duration in (float("inf"), float("nan"), 0.0):
        with pytest.raises(UsageError, match="duration"):
            BenchPlan(duration_s=duration)


def test_a_worker_that_dies_while_it_opens_is_an_error_in_all_its_rows(tiny: Path) -> None:
    source = ModelSource(factory="os:_exit", arguments={"status": 7})
    rows = measure(
        [Target(runtime="torch", source=source), ort(tiny)], FEEDS, BenchPlan(batches=(1, 2), duration_s=0.2)
    )
    assert [str(row.error) for row in rows[:2]] == ["the process that ran torch ended with exit code 7"] * 2
    assert all(row.error is None for row in rows[2:])


def test_a_fault_in_a_worker_is_raised_with_its_traceback() -> None:
    with WorkerProcess("x") as worker, pytest.raises(RuntimeError, match=r"(?s)AttributeError.*Traceback"):
        worker.call("no_such_request")


class _Unknown:
    """Unpickles as something that is in no module."""

    def __reduce__(self) -> tuple[Any, ...]:
        return __import__, ("no_such_module",)


def test_a_request_that_a_worker_cannot_read_is_a_fault_and_no_hang() -> None:
    with WorkerProcess("x") as worker, pytest.raises(RuntimeError, match="No module named 'no_such_module'"):
        worker.call("release", row=_Unknown())


def test_an_error_of_a_worker_arrives_with_its_fix(tmp_path: Path) -> None:
    with WorkerProcess("x") as worker, pytest.raises(BadModel) as caught:
        worker.call("open", target=ort(tmp_path / "none.onnx"))
    assert caught.value.fix == "check the path"


def long_program(started: str) -> None:
    """A factory in which a worker stays for a long time, as in a run that takes minutes."""
    Path(started).touch()
    time.sleep(120)


def test_workers_end_when_their_parent_is_killed_even_in_the_middle_of_a_run(tmp_path: Path) -> None:
    started = tmp_path / "started"
    script = f"""
import sys
import numpy as np
from resnet_onnx.bench.measure import measure
from resnet_onnx.bench.plan import BenchPlan
from runtimes.spec import ModelSource, Target
sys.path.append({str(Path(__file__).parent)!r})
source = ModelSource(factory="test_bench:long_program", arguments={{"started": {str(started)!r}}})
measure([Target(runtime="torch", source=source)], {{"x": np.zeros(1)}}, BenchPlan(batches=(1,)))
"""
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        end = time.time() + 60
        while not started.exists() and time.time() < end:
            time.sleep(0.05)
        found = psutil.Process(parent.pid).children(recursive=True)
        assert found, "there must be a worker to be left behind"
        parent.kill()
    _, alive = psutil.wait_procs(found, timeout=10)
    left = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    for process in left:
        process.kill()
    assert not left


def test_a_module_in_the_current_folder_does_not_stand_in_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json.py", "runtimes.py"):
        (tmp_path / name).write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    with WorkerProcess("x") as worker:
        assert worker.call("release", row=0) is None


# ---- memory ------------------------------------------------------------------------------------------------------


def test_a_batch_larger_than_memory_is_a_recorded_row(tiny: Path) -> None:
    rows = measure([ort(tiny)], FEEDS, BenchPlan(batches=(1, 2**40, 2), duration_s=0.2))
    assert isinstance(rows[1].error, OutOfMemory)
    assert "a batch of 1099511627776" in rows[1].error.message
    assert [row.error for row in (rows[0], rows[2])] == [None, None]
    assert rows[2].times_ns.size > 0


def test_enlarge_repeats_samples_and_leaves_fixed_inputs_alone() -> None:
    inputs = (
        TensorSpec("x", np.dtype(np.float32), ("batch", 2)),
        TensorSpec("table", np.dtype(np.float32), (3,)),
    )
    feeds = {"x": np.arange(4, dtype=np.float32).reshape(2, 2), "table": np.arange(3, dtype=np.float32)}
    found = enlarge(feeds, inputs, 5)
    assert found["x"].tolist() == [[0, 1], [2, 3], [0, 1], [2, 3], [0, 1]]
    assert found["table"].tolist() == [0, 1, 2]
    assert enlarge(feeds, inputs, 1)["x"].tolist() == [[0, 1]]


def test_memory_does_not_grow_with_the_number_of_rounds(tiny: Path) -> None:
    worker = Worker()
    worker.open(ort(tiny))
    worker.prepare(0, FEEDS, 2, "device", 0.2)

    def rounds(count: int) -> int:
        for _ in range(count):
            worker.sample(0, 0.005, 1)
        return psutil.Process().memory_info().rss

    before = rounds(30)
    after = rounds(300)
    worker.release(0)
    assert after <= before * 1.05


# ---- the clock and the neighbours --------------------------------------------------------------------------------


def runnable(function: Callable[[], object]) -> Any:
    """Prepared work that does what a function does."""
    spec = TensorSpec("x", np.dtype(np.float32), (1,))

    def run(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        function()
        return {"x": feeds["x"]}

    source = ModelSource(
        factory=f"{__name__}:given", arguments={"program": FakeProgram(inputs=(spec,), outputs=(spec,), function=run)}
    )
    return FakeRuntime(source, device="cpu", options=RuntimeOptions()).prepare({"x": np.ones(1, np.float32)})


def given(program: FakeProgram) -> FakeProgram:
    return program


@pytest.fixture
def sleeper(virtual: VirtualClock) -> Callable[[float], Any]:
    """Prepared work that takes a given virtual time."""
    return lambda seconds: runnable(lambda: virtual.sleep(seconds))


def runtime_of(prepared: Any) -> Any:
    """The fake runtime behind prepared work."""
    return prepared._run.__self__


def test_a_sample_is_the_time_of_one_run(sleeper: Callable[[float], Any]) -> None:
    found = sample([sleeper(0.02)], seconds=0.2)
    assert found.times_ns.tolist() == [20_000_000] * 9
    assert found.runs_per_s == pytest.approx(50)
    assert found.spent_s == pytest.approx(0.2), "the discarded run counts as spent"


def test_two_streams_complete_twice_as_much_of_what_only_waits(virtual: VirtualClock) -> None:
    both = threading.Barrier(2, timeout=60)

    def run() -> None:
        both.wait()  # breaks where the streams do not run beside each other
        virtual.sleep(0.02)

    found = sample([runnable(run), runnable(run)], seconds=0.3)
    assert found.runs_per_s == pytest.approx(100)
    assert found.times_ns.tolist() == [20_000_000] * 28


def test_a_set_is_timed_until_its_last_run_is_done() -> None:
    both, ends = threading.Barrier(2, timeout=60), list[int]()

    def run() -> None:
        both.wait()  # breaks where the streams do not run beside each other
        ends.append(time.perf_counter_ns())

    begin = time.perf_counter_ns()
    found = sample_sets([runnable(run), runnable(run)], runs=4, seconds=0)
    assert found.times_ns.size == 1
    assert len(ends) == 4
    assert ends[-1] - ends[0] <= found.times_ns[0] <= time.perf_counter_ns() - begin
    assert found.runs_per_s == pytest.approx(4 / (found.times_ns[0] / 1e9))


def test_a_slow_stream_leaves_the_set_to_the_others() -> None:
    quick, enough = list[int](), threading.Event()

    def run_quickly() -> None:
        quick.append(1)
        if len(quick) == 10:
            enough.set()

    def run_slowly() -> None:
        assert enough.wait(timeout=60), "shared out evenly, the quick one would have no more than six"

    sample_sets([runnable(run_quickly), runnable(run_slowly)], runs=11, seconds=0)
    assert len(quick) >= 10


def test_a_stream_keeps_its_thread(sleeper: Callable[[float], Any]) -> None:
    """Libraries plan and cache for each thread that calls them."""
    streams, seen = [sleeper(0.001), sleeper(0.001)], [set[int](), set[int]()]
    for stream, threads in zip(streams, seen, strict=True):
        function = runtime_of(stream)._function

        def noted(feeds: Any, *, function: Any = function, threads: set[int] = threads) -> Any:
            threads.add(threading.get_ident())
            return function(feeds)

        runtime_of(stream)._function = noted
    clock.warm_up(streams, limit_s=0.05)
    for _ in range(3):
        sample(streams, seconds=0.01)
        sample_sets(streams, runs=4, seconds=0.01)
    assert [len(threads) for threads in seen] == [1, 1]
    assert not seen[0] & seen[1]


def test_an_error_in_one_of_several_streams_is_raised(sleeper: Callable[[float], Any]) -> None:
    broken = sleeper(0.0)
    runtime_of(broken)._function = lambda feeds: {}
    with pytest.raises(RunFailed, match="returned no x"):
        sample([sleeper(0.001), broken], seconds=0.05)


BURN = "import time\nend = time.time() + 60\nwhile time.time() < end: pass"


@pytest.fixture
def busy_neighbour() -> Iterator[Callable[[], None]]:
    """Starts, when called, a process per core that does nothing but burn time."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        started.extend(subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(os.cpu_count() or 1))

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_busy_neighbour_makes_a_row_unstable(tiny: Path, busy_neighbour: Callable[[], None]) -> None:
    started: list[str] = []

    def start_once(text: str) -> None:
        if text.startswith("round 2") and not started:
            started.append(text)
            busy_neighbour()

    rows = measure(
        [ort(tiny)], FEEDS, BenchPlan(batches=(1,), duration_s=3.0, precision_target=1e-9), progress=start_once
    )
    assert started
    reason = record.unstable_reason(rows[0])
    assert reason is not None
    assert "other programs used" in reason


def test_the_watch_does_not_count_our_own_work(busy_neighbour: Callable[[], None]) -> None:
    busy_neighbour()
    time.sleep(0.3)
    own, watch, end = time.process_time(), Watch(), time.perf_counter() + 2.0
    while time.perf_counter() < end or time.process_time() < own + 0.4:
        pass
    own, seen = time.process_time() - own, watch.stop()
    assert seen.others_cpu_s > 0.3 * seen.wall_s
    assert own + seen.others_cpu_s <= seen.wall_s * seen.cores * 1.1


def _row(**disturbance: Any) -> Row:
    times = np.random.default_rng(0).normal(1e7, 1e5, 40).astype(np.int64)
    one = Slice(
        times_ns=times, runs_per_s=100.0, spent_s=1.0, disturbance=Disturbance(wall_s=1.0, cores=2, **disturbance)
    )
    target = Target(runtime="x", source=ModelSource(factory="a:b"))
    return Row(target=target, batch=1, streams=1, scope="device", slices=[one])


def test_a_quiet_row_is_stable_and_every_disturbance_is_named() -> None:
    assert record.unstable_reason(_row(others_cpu_s=0.05, stolen_cpu_s=0.01, involuntary_switches=40)) is None
    assert record.unstable_reason(_row(others_cpu_s=-0.02)) is None
    assert record.unstable_reason(_row(others_cpu_s=0.8)) == "other programs used 0.8 of 2 cores"
    assert record.unstable_reason(_row(stolen_cpu_s=0.5)) == "the hypervisor took 0.5 of 2 cores away"
    assert record.unstable_reason(_row(stolen_cpu_s=0.045)) == "the hypervisor took 0.045 of 2 cores away"  # not 0.0
    assert record.unstable_reason(_row(involuntary_switches=900)) == "the threads lost their core 450 times a second"
    assert record.unstable_reason(_row(throttled=3)) == "the processor lowered its clock 3 times for heat"
    failed = _row()
    failed.error = OutOfMemory("full")
    assert record.unstable_reason(failed) == "it was not measured to its end"


def test_throttling_is_counted_where_the_system_counts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counters = []
    for core in os.sched_getaffinity(0):
        counters.append(tmp_path / f"cpu{core}" / "thermal_throttle" / "core_throttle_count")
        counters[-1].parent.mkdir(parents=True)
        counters[-1].write_text("7\n")
    monkeypatch.setattr(clock, "CPUS", tmp_path)
    watch = Watch()
    counters[0].write_text("9\n")
    assert watch.stop().throttled == 2
    for counter in counters:  # two threads of one core count the same events
        (counter.parents[1] / "topology").mkdir()
        (counter.parents[1] / "topology" / "thread_siblings_list").write_text("0-1\n")
    watch = Watch()
    for counter in counters:
        counter.write_text("12\n")
    assert watch.stop().throttled == 3
    counters[-1].unlink()
    assert Watch().stop().throttled == 0


def test_the_moments_clock_does_not_make_the_peaks_another_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESNET_ONNX_CACHE", str(tmp_path))
    machine = roofline.describe_machine()
    measured: list[int] = []

    class Measured:
        def __init__(self, name: str) -> None: ...
        def __enter__(self) -> Measured:
            return self

        def __exit__(self, *error: object) -> None: ...
        def call(self, method: str, *, threads: int) -> roofline.Peaks:
            measured.append(threads)
            return roofline.Peaks(
                gflops={"fp32": 1.0}, bandwidth_gbs=1.0, threads=threads, measured_at=time.time(), undisturbed=True
            )

    monkeypatch.setattr(worker_process, "WorkerProcess", Measured)
    for clock_mhz in (None, 2100.0, 3400.0):
        now = {**machine, "cpu": {**machine["cpu"], "clock_mhz": clock_mhz}}
        monkeypatch.setattr(roofline, "describe_machine", lambda now=now: now)
        assert roofline.peaks(1) is not None
    assert measured == [1]


def test_wide_and_missing_intervals_are_reasons() -> None:
    wide = _row()
    wide.slices = [replace(wide.slices[0], times_ns=np.array([10, 20, 30, 11, 19, 33, 12, 22] * 2) * 10**6)]
    assert str(record.unstable_reason(wide)).startswith("the 95 % interval is ±")
    few = _row()
    few.slices = [replace(few.slices[0], times_ns=few.times_ns[:4])]
    assert record.unstable_reason(few) == "4 independent samples are too few for a 95 % interval"


# ---- work and peaks ----------------------------------------------------------------------------------------------


def count(path: Path, **shapes: tuple[int, ...]) -> tuple[int, int] | None:
    found = roofline.count_work(path, shapes)
    return (found.multiply_adds, found.elements) if found else None


def test_multiply_adds_of_a_convolution(tiny: Path) -> None:
    per_image = 8 * 16 * 16 * 3 * 9
    assert count(tiny, input=(1, 3, 16, 16)) == (per_image, 3 * 256 + 8 * 27 + 8 * 256)
    assert count(tiny, input=(5, 3, 16, 16)) == (5 * per_image, 5 * 3 * 256 + 8 * 27 + 5 * 8 * 256)


def test_multiply_adds_of_groups_strides_products_and_transposes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], group=2, strides=[2, 2]),  # 4→6 in 2 groups, 1×1, 4×4 → 2×2
        helper.make_node("ConvTranspose", ["a", "w2"], ["b"], strides=[2, 2]),  # 6→3, 2×2, 2×2 → 4×4
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "w3"], ["d"], transB=1),  # 48→10
        helper.make_node("MatMul", ["d", "w4"], ["e"]),  # 10→7
    ]
    path = write_model(
        tmp_path / "m.onnx", nodes, {"x": ["n", 4, 4, 4]},
        {"w1": weights(6, 2, 1, 1), "w2": weights(6, 3, 2, 2), "w3": weights(10, 48), "w4": weights(10, 7)},
    )  # fmt: skip
    found = count(path, x=(2, 4, 4, 4))
    assert found is not None
    assert found[0] == 2 * (6 * 4 * 2 + 6 * 4 * 3 * 4 + 48 * 10 + 10 * 7)


def test_work_is_unknown_rather_than_wrong(tmp_path: Path, tiny: Path) -> None:
    assert count(tiny) is None, "the input's shape is not known"
    relu = write_model(tmp_path / "r.onnx", [helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 4]}, {})
    assert count(relu, x=(1, 4)) is None
    einsum = helper.make_node("Einsum", ["x", "w"], ["y"], equation="ij,jk->ik")
    path = write_model(tmp_path / "e.onnx", [einsum], {"x": ["n", 4]}, {"w": weights(4, 4)})
    assert count(path, x=(1, 4)) is None


def test_work_of_a_real_network_is_what_the_catalog_counts() -> None:
    from resnet_onnx import workflow
    from resnet_onnx.models.catalog import lookup
    from resnet_onnx.models.counting import count as count_network

    path = workflow.onnx_path(workflow.resolve(workflow.Request(model="cifar-resnet20")))
    found = roofline.count_work(path, {"input": (1, 3, 32, 32)})
    assert found is not None
    assert found.multiply_adds == count_network(lookup("cifar-resnet20").config, 32).multiply_adds


PEAKS = roofline.Peaks(gflops={"fp32": 100.0}, bandwidth_gbs=10.0, threads=2, measured_at=time.time(), undisturbed=True)


def test_the_share_names_what_binds() -> None:
    dense = roofline.Work(multiply_adds=500_000_000, elements=1_000_000)  # 10 ms of products, 0.4 ms of copies
    found = roofline.utilization(dense, 50.0, PEAKS, "fp32")
    assert (found.bound, found.achieved_gflops, found.peak_gflops) == ("compute", 50.0, 100.0)
    assert found.fraction == pytest.approx(0.5)
    assert found.limit_fraction == pytest.approx(0.5)
    thin = roofline.Work(multiply_adds=5_000_000, elements=25_000_000)  # 0.1 ms of products, 10 ms of copies
    found = roofline.utilization(thin, 50.0, PEAKS, "fp32")
    assert found.bound == "memory"
    assert found.fraction == pytest.approx(0.005)
    assert found.limit_fraction == pytest.approx(0.5)


def test_a_share_of_something_unknown_is_unknown() -> None:
    work = roofline.Work(multiply_adds=1, elements=1)
    assert roofline.utilization(None, 5.0, PEAKS, "fp32").fraction is None
    assert roofline.utilization(work, None, PEAKS, "fp32").fraction is None
    assert roofline.utilization(work, 5.0, None, "fp32").fraction is None
    assert roofline.utilization(work, 5.0, PEAKS, "int8").fraction is None
    assert roofline.utilization(work, 5.0, PEAKS, "int8").bound is None


def test_an_int8_model_is_set_beside_the_int8_peak() -> None:
    peaks = replace(PEAKS, gflops={"fp32": 100.0, "int8": 400.0})
    dense = roofline.Work(multiply_adds=500_000_000, elements=1_000_000)
    found = roofline.utilization(dense, 100.0, peaks, "int8")
    assert (found.peak_gflops, found.fraction, found.bound) == (400.0, 0.25, "compute")
    thin = roofline.Work(multiply_adds=5_000_000, elements=25_000_000)  # 2.5 ms: an element is a byte
    assert roofline.utilization(thin, 100.0, peaks, "int8").limit_fraction == pytest.approx(0.25)


@pytest.mark.parametrize("kernel", [ceiling.Kernel(side=64), ceiling.Kernel(side=8, channels=(64, 64), window=3)])
def test_an_int8_kernel_is_computed_with_integers(kernel: ceiling.Kernel, tmp_path: Path) -> None:
    path = tmp_path / "kernel.onnx"
    path.write_bytes(ceiling.kernel_model(kernel, "int8"))
    feeds = {"x": np.full(kernel.shapes[0], 2, np.uint8)}
    for name in ("openvino", "ort-cpu"):
        with open_runtime(name, ModelSource(path=path), options=RuntimeOptions(threads=1)) as runtime:
            assert runtime.run(feeds)["y"].shape == kernel.shapes[0]
            if name == "openvino":
                operators = ("FullyConnected", "MatMul", "Convolution")
                (product,) = [node for node in runtime.placement() if node.operator in operators]
                assert product.provider.endswith("I8"), product.provider


def test_a_kernel_counts_the_operations_that_the_graph_has(tmp_path: Path) -> None:
    for kernel in ceiling.KERNELS:
        path = tmp_path / "kernel.onnx"
        path.write_bytes(ceiling.kernel_model(kernel, "fp32"))
        work = roofline.count_work(path, {"x": kernel.shapes[0]})
        assert work is not None
        assert kernel.operations == 2 * work.multiply_adds


def test_the_limit_of_arithmetic_follows_from_cores_width_and_clock() -> None:
    limits = ceiling.arithmetic_limits
    assert limits(frozenset({"avx2"}), 3000.0, 4) == {"fp32": 384.0}
    assert limits(frozenset({"avx2", "avx512f", "avx512_vnni"}), 2000.0, 1) == {"fp32": 128.0, "int8": 512.0}
    assert limits(frozenset({"avx512f", "amx_int8", "amx_bf16", "avx512_bf16"}), 2000.0, 2) == {
        "fp32": 256.0, "int8": 8192.0, "bf16": 4096.0,
    }  # fmt: skip
    assert limits(frozenset({"avx2"}), None, 4) is None
    assert limits(frozenset({"asimd"}), 3000.0, 4) is None


def test_no_row_is_above_its_ceiling() -> None:
    """What a row achieved is possible: a measured peak below it was no peak, and the result says what raised it."""
    low = replace(PEAKS, gflops={"fp32": 10.0}, measured_with={"fp32": "torch, product of 2,048"})
    assert roofline.raised(low, "fp32", 9.0, "a row") is low
    found = roofline.raised(low, "fp32", 12.0, "a row")
    assert found is not None
    assert (found.gflops, found.measured_with) == ({"fp32": 12.0}, {"fp32": "a row"})
    assert roofline.raised(None, "fp32", 12.0, "a row") is None
    cached = roofline.Work(multiply_adds=5_000_000, elements=25_000_000)  # 100 MB a run, from memory 10 ms at least
    peaks = replace(PEAKS, gflops={"fp32": 100.0}, bandwidth_gbs=10.0)
    slow, fast = (roofline.utilization(cached, rate, peaks, "fp32") for rate in (50.0, 200.0))
    assert (slow.bound, slow.limit_fraction) == ("memory", pytest.approx(0.5))
    assert (fast.bound, fast.limit_fraction) == ("compute", pytest.approx(0.02))
    assert roofline.raised(low, "fp16", 12.0, "a row") is low


def test_peaks_are_measured_once_and_again_when_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    for old in files.cache_dir("peaks").glob("*.json"):
        old.unlink()
    first = roofline.peaks(1)
    assert first is not None
    assert first.gflops["fp32"] > 0.5
    assert first.bandwidth_gbs > 0.1
    assert first.gflops["int8"] > 0.5
    for precision in ("fp32", "int8"):
        library, kernel = first.measured_with[precision].split(", ", 1)
        assert library in ("torch", "openvino", "ort-cpu")
        assert kernel in map(str, ceiling.KERNELS)

    class Again:
        """Measuring takes its time: once is enough to see that it can be done."""

        def __init__(self, name: str) -> None: ...
        def __enter__(self) -> Again:
            return self

        def __exit__(self, *error: object) -> None: ...
        def call(self, method: str, *, threads: int) -> roofline.Peaks:
            return replace(first, measured_at=time.time())

    monkeypatch.setattr(worker_process, "WorkerProcess", Again)
    (note,) = files.cache_dir("peaks").glob("*.json")
    kept = json.loads(files.read_sealed(note) or b"")
    files.write_sealed(note, json.dumps({**kept, "undisturbed": True, "gflops": {"fp32": 123.0}}).encode())
    assert roofline.peaks(1).gflops == {"fp32": 123.0}  # type: ignore[union-attr]
    stale = {**kept, "undisturbed": True, "measured_at": time.time() - roofline.FRESH_S - 1, "gflops": {"fp32": 123.0}}
    files.write_sealed(note, json.dumps(stale).encode())
    again = roofline.peaks(1)
    assert again is not None
    assert again.measured_at > kept["measured_at"]
    note.write_text("{")
    assert roofline.peaks(1) is not None


# ---- a percentile that was asked for -------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "done"), [(298, False), (299, True)])
def test_a_row_goes_on_until_it_has_the_percentile(samples: int, done: bool) -> None:
    plan = BenchPlan(duration_s=1, percentile=99)
    target = Target(runtime="ort-cpu", source=ModelSource(path=Path("net.onnx")))
    part = Slice(
        times_ns=np.full(samples, 10**8), runs_per_s=10, spent_s=samples / 10, disturbance=Disturbance(wall_s=1.0)
    )
    row = Row(target=target, batch=1, streams=1, scope="device", slices=[part])
    assert row.is_done(plan) == done
    assert (row.slice_seconds(plan) > 0) == (not done)
    assert row.is_done(BenchPlan(duration_s=1))
