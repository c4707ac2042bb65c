"""Energy that the processor or a GPU counted: RAPL's packages (Linux powercap), or NVML's total of a GPU.

A package counts everything that runs on it, other programs and idling cores too; so does a GPU. Sources:
Documentation/power/powercap/powercap.rst; NVML API reference, ``nvmlDeviceGetTotalEnergyConsumption`` (from Volta on).
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from runtimes import nvidia

POWERCAP = Path("/sys/class/powercap")
"""Where Linux has the counters of packages, one folder each: ``intel-rapl:0`` also on AMD's processors."""

_PACKAGE = re.compile(r"intel-rapl:\d+")


class EnergyMeter:
    """The energy counters of what computes: a GPU, or all packages of the processor.

    Attributes:
        source: ``RAPL`` or ``NVML``.
        unreadable: Why they can't be read here, or "".
    """

    def __init__(self, gpu: nvidia.Gpu | None) -> None:
        self._gpu = gpu
        self._packages: list[Path] = []
        self.source = "RAPL" if gpu is None else "NVML"
        self.unreadable = self._find_packages() if gpu is None else ""
        if gpu is not None and nvidia.total_energy_j(gpu) is None:
            self.unreadable = "this GPU or its driver has no counter of its energy"

    def read(self) -> tuple[float, ...]:
        """Returns the counters, joules; () where they can't be read."""
        if self.unreadable:
            return ()
        if self._gpu is not None:
            counted = nvidia.total_energy_j(self._gpu)
            return () if counted is None else (counted,)
        try:
            return tuple(_number(folder / "energy_uj") / 1e6 for folder in self._packages)
        except (OSError, ValueError):
            return ()

    def since(self, before: tuple[float, ...]) -> float | None:
        """Returns the joules since an earlier reading, or None where one of the two is missing.

        A package's counter begins anew at its range.
        """
        now = self.read()
        if not before or len(now) != len(before):
            return None
        used = [b - a for a, b in zip(before, now, strict=True)]
        if self._gpu is None:
            used = [
                each if each >= 0 else each + _number(folder / "max_energy_range_uj") / 1e6
                for each, folder in zip(used, self._packages, strict=True)
            ]
        return sum(used)

    def _find_packages(self) -> str:
        """Finds the packages; returns why they can't be read, or ""."""
        found = sorted(path for path in POWERCAP.glob("intel-rapl:*") if _PACKAGE.fullmatch(path.name))
        if not found:
            return f"{POWERCAP} has no counters: a virtual machine, another system or a processor without RAPL"
        try:
            for folder in found:
                _number(folder / "energy_uj")
        except OSError as error:
            return f"{folder / 'energy_uj'}: {error.strerror or error}"
        except ValueError:
            return f"{folder / 'energy_uj'} holds no number"
        self._packages = found
        return ""


class GpuWatch:
    """What a GPU's sensors say of a stretch of work, from the moment that this is made."""

    def __init__(self, gpu: nvidia.Gpu) -> None:
        self._gpu = gpu
        self._before = nvidia.throttled_s(gpu)

    def stop(self, *, seconds: float, energy_j: float | None) -> nvidia.Sensors:
        """Returns the sensors now, right after the work.

        Power is that of the whole stretch by the counter of energy, where it is long enough to tell: what the GPU
        calls its power is a mean of about a second on Ampere and later, idling before the work included. Reasons that
        held the clock down are those that are counted to have done so meanwhile; those that are not counted, now.
        """
        seen = nvidia.read_sensors(self._gpu)
        after = nvidia.throttled_s(self._gpu)
        counted = self._before.keys() & after.keys()
        held = {reason for reason in counted if after[reason] - self._before[reason] > _HELD_SHARE * seconds}
        held |= {reason for reason in seen.throttled if reason not in counted}
        power = energy_j / seconds if energy_j is not None and seconds >= _LEAST_S else seen.power_w
        return replace(seen, power_w=power, throttled=tuple(sorted(held)))


_LEAST_S = 0.1
"""From here on the counter of energy, which moves some ten times a second, tells power."""

_HELD_SHARE = 0.01
"""Of the time; a clock that is held down for less changes no figure."""


def _number(path: Path) -> int:
    return int(path.read_text())
