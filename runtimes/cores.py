"""How many CPU cores this process may use: its affinity, and the quota that a container gives it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

ROOT = Path("/")
"""Where Linux describes control groups: ``/proc`` and ``/sys/fs/cgroup`` below it."""


def usable_cores() -> int:
    """Returns how many CPU cores this process may use: those of its affinity, or fewer where a quota allows fewer.

    A quota of 1.5 cores is two: the rest of a third thread would only wait.
    """
    cores = allowed_cores()
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def allowed_cores() -> int:
    """Returns how many CPU cores the affinity of this process has (not the machine's total)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota() -> float | None:
    """Returns how many cores' worth of time the control groups of this process may use, or None without a limit.

    A group is limited by all that contain it. Version 2 has ``cpu.max``; version 1 ``cpu.cfs_quota_us`` and
    ``cpu.cfs_period_us`` (Documentation/admin-guide/cgroup-v2.rst, Documentation/scheduler/sched-bwc.rst).
    """
    limits: list[float] = []
    for line in _lines(ROOT / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            limits += _limits(ROOT / "sys/fs/cgroup", path, _limit_2)
        elif "cpu" in controllers.split(","):
            mounts = (ROOT / "sys/fs/cgroup" / name for name in (controllers, "cpu"))
            mount = next((folder for folder in mounts if folder.is_dir()), None)
            limits += [] if mount is None else _limits(mount, path, _limit_1)
    return min(limits, default=None)


def _limits(mount: Path, path: str, limit: Callable[[Path], float | None]) -> list[float]:
    """Returns the limits of a group and of those that contain it; inside a container the path may not be there."""
    parts = [part for part in path.split("/") if part]
    folders = [mount.joinpath(*parts[:count]) for count in range(len(parts) + 1)]
    return [found for folder in folders if (found := limit(folder)) is not None]


def _limit_2(folder: Path) -> float | None:
    words = " ".join(_lines(folder / "cpu.max")).split()
    return _quota(*words) if len(words) == 2 else None


def _limit_1(folder: Path) -> float | None:
    quota, period = ("".join(_lines(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
    return _quota(quota, period)


def _quota(quota: str, period: str) -> float | None:
    """Returns a limit in cores; "max" and −1 are none."""
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return cores if cores > 0 else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, ValueError):
        return []
