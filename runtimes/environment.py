"""The machine and its libraries: loading them when used, and describing both for results and ``doctor``."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from runtimes.cores import cpu_quota, usable_cores
from runtimes.errors import RuntimeUnavailable

RECORDED_PACKAGES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-ep-nv-tensorrt-rtx-cu12",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "openvino",
    "nvidia-cublas",
    "nvidia-cublas-cu12",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "tensorrt-rtx-cu12",
    "tensorrt-rtx-cu13",
    "torch",
    "torchvision",
)

SILENCED: Mapping[str, str] = MappingProxyType(
    {
        "ORT_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "DO_NOT_TRACK": "1",
    }
)
"""Variables that keep libraries from phoning home; each is read when its library loads.

ONNX Runtime otherwise looks up its maker's host, keeps a device id in the user's cache and writes into $TMPDIR (seen in
1.31).
"""

_REPORTERS = ("openvino_telemetry",)
"""Packages that only phone home, which their users do without: `import openvino` reports itself to a host of Google's
otherwise, and has no variable against it (seen in 2026.4)."""

_INTERESTING_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "bf16",
    "i8mm",
    "sve",
)
"""The instruction sets that decide how fast a convolution is, by their names in /proc/cpuinfo."""


def load_library(module: str, *, package: str, runtime: str = "", purpose: str = "") -> Any:
    """Imports a heavy library when it is used; pip installs it with `package` (``resnet-onnx[tensorrt]``).

    Messages name the `runtime` that needs it, or another `purpose`.

    Raises:
        RuntimeUnavailable: It is not installed, or is installed but can't be loaded.
    """
    _silence()
    whose = f"of runtime '{runtime}'" if runtime else f"for {purpose}"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        itself = error.name is None or error.name.partition(".")[0] == module.partition(".")[0]
        problem = "is not installed" if itself else f"needs '{error.name}', which is not installed"
        raise RuntimeUnavailable(f"the library '{module}' {whose} {problem}", fix=f"pip install '{package}'") from error
    except (ImportError, OSError) as error:
        raise RuntimeUnavailable(
            f"the library '{module}' {whose} is installed but can't be loaded: {error}",
            fix=f"pip install --force-reinstall '{package}'",
        ) from error


def _silence() -> None:
    """Keeps libraries that are loaded from here on from phoning home."""
    os.environ.update(SILENCED)
    for name in _REPORTERS:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # an import of it then fails, as if not installed


def package_version(*names: str) -> str | None:
    """Returns the version of the first installed package of `names`, without importing it."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def library_versions() -> dict[str, str]:
    """Returns the versions of all installed libraries that can change a result."""
    found = {name: package_version(name) for name in RECORDED_PACKAGES}
    return {name: version for name, version in found.items() if version}


def describe_machine() -> dict[str, Any]:
    """Returns CPU, GPUs, memory, system and library versions; loads no heavy library.

    Keys: ``cpu`` (model, usable_cores, quota_cores: of a container or None, instruction_sets, clock_mhz: now or None),
    ``gpu`` (as ``nvidia.describe``), ``memory_bytes``, ``system``, ``python``, ``libraries``.
    """
    import psutil

    from runtimes import nvidia

    model, flags = _cpu()
    return {
        "cpu": {
            "model": model,
            "usable_cores": usable_cores(),
            "quota_cores": cpu_quota(),
            "instruction_sets": [flag for flag in _INTERESTING_FLAGS if flag in flags],
            "clock_mhz": clock_mhz(),
        },
        "gpu": nvidia.describe(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": sys.version.split()[0],
        "libraries": library_versions(),
    }


def clock_mhz() -> float | None:
    """Returns the mean clock of the CPU's cores at this moment, or None where the system does not say."""
    found = _frequency()
    return float(found.current) if found else None


def highest_mhz() -> float | None:
    """Returns the processor's highest clock; None where the system does not say, as in most virtual machines."""
    found = _frequency()
    return float(found.max) if found and found.max else None


def _frequency() -> Any:
    import psutil

    try:
        return psutil.cpu_freq()
    except (OSError, NotImplementedError, AttributeError):
        return None  # virtual machines and some systems don't say


def cpu_flags() -> frozenset[str]:
    """Returns the instruction sets of the CPU by their names in /proc/cpuinfo; empty where the system has none."""
    return _cpu()[1]


def _cpu() -> tuple[str, frozenset[str]]:
    model, flags = platform.processor() or platform.machine(), frozenset[str]()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                return model, frozenset(value.split())
    return model, flags
