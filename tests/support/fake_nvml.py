"""A stand-in for NVML over virtual time: a clock that rises under load, power as the driver means it, counters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from runtimes.base import Prepared, Scope
from support.virtual_time import VirtualClock

IDLE_MHZ, FULL_MHZ = 345, 1980
RAMP_S = 0.08
"""How long a load takes to bring the clock up."""
COOL_S = 0.02
"""After so long without work the clock is down again."""
IDLE_W, FULL_W = 80.0, 600.0
MEAN_S = 1.0
"""What ``nvmlDeviceGetPowerUsage`` is the mean of, on Ampere and later."""
_STEP = 1e-3


class FakeNvml:
    """The functions of pynvml that ``runtimes.nvidia`` asks; half of the time under full load the power limit holds."""

    NVMLError = RuntimeError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    NVML_VALUE_TYPE_UNSIGNED_LONG_LONG = 3
    NVML_FI_DEV_POWER_INSTANT = 186
    NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP = 74
    NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN = 270

    def __init__(self, now: VirtualClock) -> None:
        self._now, self.opened = now, 0
        self._history = [(0.0, IDLE_W)]  # until when, how many watts
        self._clock, self._busy_until, self._energy_j, self._held_s = float(IDLE_MHZ), 0.0, 0.0, 0.0

    def _pass(self, seconds: float, watts: float) -> None:
        self._now.sleep(seconds)
        self._history.append((self._now.perf_counter(), watts))
        self._energy_j += watts * seconds

    def idle(self, seconds: float) -> None:
        """Lets time pass without work."""
        self._pass(seconds, IDLE_W)
        if seconds > COOL_S:
            self._clock = IDLE_MHZ

    def work(self, seconds_at_full_clock: float) -> None:
        """Computes; a lower clock makes it longer."""
        left = seconds_at_full_clock
        while left > 1e-12:
            share = self._clock / FULL_MHZ
            step = min(_STEP, left / share)
            self._pass(step, IDLE_W + (FULL_W - IDLE_W) * share)
            self._held_s += step / 2 if share == 1 else 0
            left -= step * share
            self._clock = min(FULL_MHZ, self._clock + (FULL_MHZ - IDLE_MHZ) * step / RAMP_S)

    # ---- as pynvml

    def nvmlInit(self) -> None:  # noqa: N802
        self.opened += 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return uuid

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int) -> int:  # noqa: N802
        return round(self._clock)

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, kind: int) -> int:  # noqa: N802
        return FULL_MHZ

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:  # noqa: N802
        end, total, until = self._now.perf_counter(), 0.0, 0.0
        for stop, watts in self._history:
            total += watts * max(0.0, stop - max(until, end - MEAN_S))
            until = stop
        return round(1000 * total / MEAN_S)

    def nvmlDeviceGetFieldValues(self, handle: Any, fields: list[int]) -> list[Any]:  # noqa: N802
        known = {
            self.NVML_FI_DEV_POWER_INSTANT: round(1000 * self._history[-1][1]),
            self.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP: round(self._held_s * 1e9),
            self.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN: 7,
        }
        return [
            SimpleNamespace(
                nvmlReturn=0,
                valueType=3,
                value=SimpleNamespace(ullVal=known[field], uiVal=known[field]),
            )
            for field in fields
        ]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:  # noqa: N802
        return round(1000 * self._energy_j)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:  # noqa: N802
        return 0x8  # a slowdown that has no counter

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any) -> int:  # noqa: N802
        return 700_000

    def nvmlDeviceGetTemperature(self, handle: Any, kind: int) -> int:  # noqa: N802
        return 60


class Busy(Prepared):
    """A run that keeps the GPU busy for so long, at its full clock."""

    def __init__(self, nvml: FakeNvml, seconds: float, scope: Scope = "device") -> None:
        super().__init__(scope)
        self._nvml, self._seconds = nvml, seconds

    def _enqueue(self) -> None:
        self._nvml.work(self._seconds)

    def _synchronize(self) -> None: ...

    def _outputs(self) -> dict[str, Any]:
        return {}
