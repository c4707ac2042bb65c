"""What bench makes of a GPU's sensors, on stand-ins for the sensors."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.fake_nvml import FULL_MHZ, FULL_W, Busy, FakeNvml
from support.gpus import A6000
from support.onnx_models import small_conv
from support.virtual_time import VirtualClock

from resnet_onnx.bench import record
from resnet_onnx.bench.clock import Disturbance, Slice, breakdown, sample
from resnet_onnx.bench.energy import EnergyMeter, GpuWatch
from resnet_onnx.bench.row import Row
from resnet_onnx.bench.worker import Worker
from resnet_onnx.results.bench import Breakdown, Ends, GpuReadings
from runtimes import nvidia
from runtimes.base import Prepared
from runtimes.nvidia import Sensors
from runtimes.spec import ModelSource, RuntimeOptions, Target


def row(*sensors: Sensors | None) -> Row:
    parts = [
        Slice(
            times_ns=10_000_000 + np.arange(-10, 10) * 1000,
            runs_per_s=100.0,
            spent_s=0.2,
            disturbance=Disturbance(wall_s=0.2),
            sensors=seen,
        )
        for seen in sensors
    ]
    target = Target(runtime="ort-cuda", source=ModelSource(path=Path("net.onnx")))
    return Row(target=target, batch=1, streams=1, scope="device", slices=parts)


def seen(clock: int, *throttled: str) -> Sensors:
    return Sensors(clock_mhz=clock, power_w=200.5, temperature_c=clock // 30, throttled=throttled)


def test_readings_are_kept_as_least_and_most() -> None:
    assert record.gpu_readings(row(seen(1980), seen(1965), seen(1980, "power limit"))) == GpuReadings(
        clock_mhz=Ends(min=1965, max=1980),
        memory_clock_mhz=None,
        power_w=Ends(min=200.5, max=200.5),
        temperature_c=Ends(min=65, max=66),
        throttled=["power limit"],
    )
    assert record.gpu_readings(row(None, None)) is None


@pytest.mark.parametrize(
    ("sensors", "words"),
    [
        ([seen(1980), seen(1965, "power limit"), seen(1980)], None),
        ([seen(1980), seen(1700), seen(1980)], "the GPU's clock drifted between 1700 and 1980 MHz"),
        ([seen(1980, "thermal limit (hardware)")] * 3, "the GPU's clock was held down: thermal limit (hardware)"),
        ([Sensors()] * 3, None),
        ([None] * 3, None),
    ],
)
def test_heat_and_a_drifting_clock_make_a_row_doubtful(sensors: list[Sensors | None], words: str | None) -> None:
    assert record.unstable_reason(row(*sensors)) == words


def test_a_row_on_a_gpu_is_read_after_every_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[nvidia.Gpu] = []

    def read(gpu: nvidia.Gpu) -> Sensors:
        asked.append(gpu)
        return seen(1980)

    monkeypatch.setattr(nvidia, "gpus", lambda **words: (A6000,))
    monkeypatch.setattr(nvidia, "read_sensors", read)
    worker = Worker()
    source = ModelSource(path=small_conv(tmp_path / "net.onnx"))
    worker.open(Target(runtime="ort-cpu", source=source, options=RuntimeOptions(threads=1)))
    feeds = {"x": np.zeros((1, 3, 8, 8), np.float32)}
    worker.prepare(0, feeds, 1, "device", 0.05)
    assert worker.sample(0, 0.01, 1).sensors is None
    worker._gpu = A6000  # as open() leaves it for a runtime on cuda:0
    assert worker.sample(0, 0.01, 1).sensors == seen(1980)
    assert asked == [A6000]
    worker.release(0)


class Device(Prepared):
    """Work of which the host and the device do so many virtual seconds each, one beside the other."""

    def __init__(self, now: VirtualClock, host_s: float, device_s: float, early: bool = True) -> None:
        super().__init__("end-to-end")
        self._now = now
        self._host_s, self._device_s, self._early = host_s, device_s, early
        self._ready = 0.0

    @property
    def returns_early(self) -> bool:
        return self._early

    def _enqueue(self) -> None:
        self._ready = self._now.perf_counter() + self._device_s
        self._now.sleep(self._host_s)

    def _synchronize(self) -> None:
        self._now.sleep(max(0.0, self._ready - self._now.perf_counter()))

    def _outputs(self) -> dict[str, np.ndarray]:
        return {}

    def _phases(self) -> Mapping[str, float]:
        return {"copy_in": 0.25 * self._device_s, "compute": 0.5 * self._device_s, "copy_out": 0.25 * self._device_s}


def test_a_run_whose_handing_over_takes_it_all_is_enqueue_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    now = VirtualClock()
    now.install(monkeypatch.setattr)
    bound, free, unknown = (
        breakdown(Device(now, *times), runs=5) for times in ((0.02, 0.002), (0.002, 0.02), (0.02, 0.0, False))
    )
    assert (bound.enqueue_bound, free.enqueue_bound, unknown.enqueue_bound) == (True, False, None)
    assert unknown.enqueue_ms is None
    assert (free.run_ms, bound.run_ms) == pytest.approx((20.0, 20.0))
    assert (free.enqueue_ms, bound.enqueue_ms) == pytest.approx((2.0, 20.0))
    assert (free.copy_in_ms, free.compute_ms, free.copy_out_ms) == (5.0, 10.0, 5.0)


def test_the_breakdown_is_recorded_with_the_remedy() -> None:
    measured = row(seen(1980))
    assert record.breakdown(measured) is None
    measured.breakdown = Breakdown(run_ms=10.0, enqueue_ms=9.0, compute_ms=2.0, enqueue_bound=True)
    assert record.breakdown(measured) == Breakdown(
        run_ms=10.0, enqueue_ms=9.0, copy_in_ms=None, compute_ms=2.0, copy_out_ms=None,
        enqueue_bound=True, remedy="CUDA graphs (--cuda-graph) or a larger batch (--batch 8)",
    )  # fmt: skip
    graph = replace(measured.target, options=RuntimeOptions(cuda_graph=True))
    measured.target = graph
    found = record.breakdown(measured)
    assert found is not None
    assert found.remedy == "a larger batch (--batch 8)"
    measured.breakdown = Breakdown(run_ms=10.0, enqueue_ms=1.0, enqueue_bound=False)
    found = record.breakdown(measured)
    assert found is not None
    assert (found.enqueue_bound, found.remedy, found.compute_ms) == (False, None, None)


# ---- a driver with time


def worker_on(monkeypatch: pytest.MonkeyPatch) -> tuple[Worker, FakeNvml]:
    now = VirtualClock()
    now.install(monkeypatch.setattr)
    nvml = FakeNvml(now)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    nvidia._nvml.cache_clear()
    worker = Worker()
    worker._gpu, worker._energy = A6000, EnergyMeter(A6000)
    worker._rows[0] = [Busy(nvml, 0.01)]
    return worker, nvml


@pytest.mark.usefixtures("nvml_forgotten")
def test_a_slice_after_a_pause_is_measured_at_the_clock_that_load_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU idles while other rows have their slices: at 345 MHz its first runs take six times as long."""
    worker, nvml = worker_on(monkeypatch)
    for _ in range(3):
        nvml.idle(2.0)
        cold = sample(worker._rows[0], seconds=0.2, discard=1)
        nvml.idle(2.0)
        taken = worker.sample(0, 0.2, 1)
        assert cold.times_ns.max() > 1.5 * cold.times_ns.min()
        assert taken.times_ns.max() < 1.001 * taken.times_ns.min()
        assert taken.times_ns.min() == pytest.approx(10e6, rel=1e-3)
        nvml.idle(2.0)
        assert worker.turn(0, 0.1, 1).run_s == pytest.approx(0.01, rel=1e-3)
        nvml.idle(2.0)
        assert worker.breakdown(0).run_ms == pytest.approx(10.0, rel=1e-3)
    assert nvml.opened == 1


@pytest.mark.usefixtures("nvml_forgotten")
def test_power_and_throttling_are_those_of_the_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, nvml = worker_on(monkeypatch)
    nvml.idle(2.0)
    before = nvml._energy_j
    taken = worker.sample(0, 0.5, 1)
    assert taken.energy_j == pytest.approx(nvml._energy_j - before, abs=0.01)
    sensors = taken.sensors
    assert sensors is not None
    assert sensors.power_w == pytest.approx(taken.energy_j / taken.spent_s)
    assert sensors.power_w > 500 > 1.3 * nvml.nvmlDeviceGetPowerUsage("") / 1000  # what the driver calls power, W
    assert sensors.clock_mhz == FULL_MHZ
    assert sensors.throttled == ("hardware slowdown", "power limit")  # the second by its counter, during the slice
    assert nvidia.read_sensors(A6000).power_w == pytest.approx(FULL_W)  # of the moment
    nvml.idle(2.0)
    assert GpuWatch(A6000).stop(seconds=0.01, energy_j=None).throttled == ("hardware slowdown",)


@pytest.fixture
def nvml_forgotten() -> Iterator[None]:
    yield
    nvidia._nvml.cache_clear()
