"""NVIDIA driver and GPUs: what is there, and how fast it is clocked.

The CUDA driver says which GPUs this process may use and in which order (``CUDA_VISIBLE_DEVICES`` counts); NVML, through
nvidia-ml-py, adds what only it knows: clocks, power, temperature. Both come with the driver, so that asking costs
nothing where there is none. Everything that needs a driver is thin; it has not been executed where no GPU was at hand.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Self

from runtimes.errors import RuntimeUnavailable, UsageError

CUDA_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

# cuda.h: CUdevice_attribute and the CUresult values whose cause a user can mend.
_ATTRIBUTE_MAJOR, _ATTRIBUTE_MINOR, _ATTRIBUTE_PROCESSORS = 75, 76, 16
_NO_DEVICE = 100
_REASONS = {
    2: "the GPU is out of memory",
    3: "the driver was already shut down, or this process was forked after using it",
    34: "the loaded libcuda is a stub for linking, not a driver",
    35: "the driver is older than the CUDA libraries",
    46: "the GPU is in use by another process or its state forbids use",
    100: "the driver finds no GPU",
    101: "the device number is not valid",
    802: "the system is not ready yet (the NVSwitch fabric manager may not run)",
    803: "driver and kernel module are of different versions; restart the machine",
    804: "the compatibility libraries of CUDA do not fit this GPU",
    999: "unknown error; the kernel module may not be loaded",
}


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU that this process may use.

    Attributes:
        uuid: ``GPU-…`` or ``MIG-…``.
        compute_capability: Major and minor, (8, 6).
        driver: Version of the driver (``580.65.06``), or "" where NVML is silent.
        cuda: Newest CUDA that the driver serves, (13, 0).
    """

    index: int
    name: str
    uuid: str
    compute_capability: tuple[int, int]
    memory_bytes: int
    multiprocessors: int
    driver: str
    cuda: tuple[int, int]

    @property
    def device(self) -> str:
        """``cuda:N``."""
        return f"cuda:{self.index}"

    @property
    def target(self) -> str:
        """The compute capability as a build target: ``sm86``."""
        major, minor = self.compute_capability
        return f"sm{major}{minor}"

    def __str__(self) -> str:
        major, minor = self.compute_capability
        return f"{self.device} {self.name} (compute capability {major}.{minor}, {self.memory_bytes / 2**30:.0f} GiB)"


def no_gpu_fix(package: str = "resnet-onnx", without: Mapping[str, str] = MappingProxyType({})) -> str:
    """Returns what to do where there is no GPU, in lines: where it would run, what can be done here.

    `package` is what pip installs on a machine that has one; `without` has commands that help without, by what they do.
    """
    lines = {
        "on a machine with an NVIDIA GPU:": f"pip install '{package}'",
        **without,
        "what runs here:": "resnet-onnx doctor",
    }
    width = max(map(len, lines))
    return "\n".join(f"{what:{width}} {how}" for what, how in lines.items())


def require_gpu(device: str, *, package: str = "resnet-onnx", without: Mapping[str, str] = MappingProxyType({})) -> Gpu:
    """Returns the GPU of ``cuda:N``; the other arguments are those of ``no_gpu_fix``.

    Raises:
        RuntimeUnavailable: No driver, no GPU, or not so many of them.
    """
    fix = no_gpu_fix(package, without)
    found = gpus(fix=fix)
    index = int(device.partition(":")[2] or 0)
    if index >= len(found):
        raise RuntimeUnavailable(
            f"there is no device cuda:{index}; this machine has {'; '.join(str(g) for g in found)}",
            fix=f"--device {' or '.join(g.device for g in found)}; CUDA_VISIBLE_DEVICES may hide others",
        )
    return found[index]


def check_driver(gpu: Gpu, needed: int | None) -> None:
    """Raises ``RuntimeUnavailable`` for a driver that is too old for a library built for CUDA `needed`."""
    if needed is not None and gpu.cuda[0] < needed:
        raise RuntimeUnavailable(
            f"the NVIDIA driver {gpu.driver} serves CUDA {gpu.cuda[0]}.{gpu.cuda[1]}, the installed library needs "
            f"CUDA {needed}",
            fix=f"install a driver for CUDA {needed} or newer (nvidia.com/drivers)",
        )


TF32_VARIABLE = "NVIDIA_TF32_OVERRIDE"
"""NVIDIA's libraries obey it over whatever a program sets (cuBLAS and cuDNN documentation)."""


def check_tf32_override(tf32: bool) -> None:
    """Raises ``UsageError`` where the environment would overrule what is recorded as the TF32 setting."""
    value = os.environ.get(TF32_VARIABLE)
    if value is not None and (value != "0") != tf32:
        asked = "allowed" if tf32 else "off"
        raise UsageError(
            f"{TF32_VARIABLE}={value} in the environment overrules the libraries, and TF32 was asked to be {asked}",
            fix=f"unset {TF32_VARIABLE}, or {'leave --tf32 out' if tf32 else 'use --tf32'}",
        )


def gpu_names() -> list[str]:
    """Returns one line for each GPU that this process may use; empty where there is none."""
    try:
        return [str(gpu) for gpu in gpus()]
    except RuntimeUnavailable:
        return []


def gpus(*, fix: str | None = None) -> tuple[Gpu, ...]:
    """Returns the GPUs that this process may use, in the order of ``cuda:N``; never an empty tuple.

    Raises:
        RuntimeUnavailable: No driver, a driver that does not start, or no GPU; carries `fix`.
    """
    try:
        cuda = ctypes.CDLL(CUDA_DRIVER)
    except OSError as error:
        raise RuntimeUnavailable(f"no NVIDIA driver was found ({CUDA_DRIVER})", fix=fix) from error
    _call(cuda, "cuInit", 0, fix=fix)
    count = ctypes.c_int()
    _call(cuda, "cuDeviceGetCount", ctypes.byref(count), fix=fix)
    if count.value == 0:
        raise RuntimeUnavailable(driver_problem(_NO_DEVICE), fix=fix)
    version = ctypes.c_int()
    _call(cuda, "cuDriverGetVersion", ctypes.byref(version), fix=fix)
    served = (version.value // 1000, version.value % 1000 // 10)
    driver = driver_version()
    return tuple(_describe(cuda, index, driver, served, fix) for index in range(count.value))


def driver_problem(code: int) -> str:
    """Returns in words why the driver answered with error `code` (CUresult of cuda.h)."""
    reason = _REASONS.get(code, "see CUresult in cuda.h")
    return f"the NVIDIA driver is there ({CUDA_DRIVER}), but can't be used: {reason} (CUDA error {code})"


def driver_version() -> str:
    """Returns the version of the driver as NVML says it, or "" where there is no NVML."""
    with _Nvml() as nvml:
        return str(nvml.ask("nvmlSystemGetDriverVersion", ""))


def _call(cuda: Any, function: str, *arguments: Any, fix: str | None) -> None:
    code = int(getattr(cuda, function)(*arguments))
    if code != 0:
        raise RuntimeUnavailable(driver_problem(code), fix=fix)


def _describe(cuda: Any, index: int, driver: str, served: tuple[int, int], fix: str | None) -> Gpu:
    handle, number, size = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name, uuid = ctypes.create_string_buffer(256), (ctypes.c_ubyte * 16)()
    _call(cuda, "cuDeviceGet", ctypes.byref(handle), index, fix=fix)
    _call(cuda, "cuDeviceGetName", name, 256, handle, fix=fix)
    _call(cuda, "cuDeviceTotalMem_v2", ctypes.byref(size), handle, fix=fix)
    with_mig = hasattr(cuda, "cuDeviceGetUuid_v2")
    _call(cuda, "cuDeviceGetUuid_v2" if with_mig else "cuDeviceGetUuid", uuid, handle, fix=fix)
    attributes = []
    for attribute in (_ATTRIBUTE_MAJOR, _ATTRIBUTE_MINOR, _ATTRIBUTE_PROCESSORS):
        _call(cuda, "cuDeviceGetAttribute", ctypes.byref(number), attribute, handle, fix=fix)
        attributes.append(number.value)
    return Gpu(
        index=index,
        name=name.value.decode(errors="replace"),
        uuid=uuid_text(bytes(uuid)),
        compute_capability=(attributes[0], attributes[1]),
        memory_bytes=size.value,
        multiprocessors=attributes[2],
        driver=driver,
        cuda=served,
    )


def uuid_text(raw: bytes) -> str:
    """Returns the 16 bytes of a GPU's UUID as NVML and CUDA_VISIBLE_DEVICES write it, without its kind."""
    digits = raw.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


class _Nvml:
    """NVML, opened for one question; every question has an answer for the case that NVML has none."""

    def __enter__(self) -> Self:
        self._nvml: Any = None
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception:  # any reason at all leaves us without NVML, which only adds details
            return self
        self._nvml = pynvml
        return self

    def __exit__(self, *error: object) -> None:
        if self._nvml is not None:
            self._nvml.nvmlShutdown()

    def ask(self, function: str, missing: Any, *arguments: Any) -> Any:
        if self._nvml is None:
            return missing
        try:
            return getattr(self._nvml, function)(*arguments)
        except self._nvml.NVMLError:
            return missing  # this GPU does not measure it, or this user may not ask

    def constant(self, name: str) -> Any:
        return getattr(self._nvml, name, None)

    def handle(self, uuid: str) -> Any:
        for kind in ("GPU-", "MIG-"):
            handle = self.ask("nvmlDeviceGetHandleByUUID", None, f"{kind}{uuid}")
            if handle is not None:
                return handle
        return None


@dataclass(frozen=True, kw_only=True)
class Sensors:
    """What a GPU's sensors say at one moment; None where it does not measure that.

    Attributes:
        clock_mhz: Of the multiprocessors.
        power_limit_w: Enforced limit.
        throttled: Why the clock is held down, empty where it is not.
    """

    clock_mhz: int | None = None
    max_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: int | None = None
    throttled: tuple[str, ...] = ()


# nvml.h, nvmlClocksEventReasons: those that slow a busy GPU down (idle and application settings are not among them).
_THROTTLE = {
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x20: "thermal limit (software)",
    0x40: "thermal limit (hardware)",
    0x80: "power brake",
}


def throttle_reasons(mask: int) -> tuple[str, ...]:
    """Returns in words why a clock is held down, from NVML's bit mask."""
    return tuple(text for bit, text in _THROTTLE.items() if mask & bit)


def read_sensors(gpu: Gpu) -> Sensors:
    """Reads clocks, power and temperature of a GPU; what it does not measure stays None."""
    with _Nvml() as nvml:
        handle = nvml.handle(gpu.uuid)
        if handle is None:
            return Sensors()
        processors, memory = nvml.constant("NVML_CLOCK_SM"), nvml.constant("NVML_CLOCK_MEM")
        power = nvml.ask("nvmlDeviceGetPowerUsage", None, handle)
        limit = nvml.ask("nvmlDeviceGetEnforcedPowerLimit", None, handle)
        return Sensors(
            clock_mhz=nvml.ask("nvmlDeviceGetClockInfo", None, handle, processors),
            max_clock_mhz=nvml.ask("nvmlDeviceGetMaxClockInfo", None, handle, processors),
            memory_clock_mhz=nvml.ask("nvmlDeviceGetClockInfo", None, handle, memory),
            power_w=None if power is None else power / 1000,
            power_limit_w=None if limit is None else limit / 1000,
            temperature_c=nvml.ask("nvmlDeviceGetTemperature", None, handle, nvml.constant("NVML_TEMPERATURE_GPU")),
            throttled=throttle_reasons(int(nvml.ask("nvmlDeviceGetCurrentClocksEventReasons", 0, handle))),
        )


def total_energy_j(gpu: Gpu) -> float | None:
    """Returns the joules that a GPU used since its driver was loaded; None where it does not count them."""
    with _Nvml() as nvml:
        handle = nvml.handle(gpu.uuid)
        if handle is None:
            return None
        counted = nvml.ask("nvmlDeviceGetTotalEnergyConsumption", None, handle)
        return None if counted is None else counted / 1000


def describe() -> dict[str, Any]:
    """Returns driver and GPUs for results and ``doctor``; never raises for a machine without them.

    Keys: ``driver``, ``cuda`` (newest that it serves), ``reason`` (why there are no GPUs, or ""), ``gpus`` (name,
    device, memory, clocks …).
    """
    try:
        found = gpus()
    except RuntimeUnavailable as missing:
        return {"driver": driver_version(), "cuda": "", "reason": missing.message, "gpus": []}
    rows = []
    for gpu in found:
        about = {name: getattr(gpu, name) for name in ("device", "name", "uuid", "memory_bytes", "multiprocessors")}
        sensors = asdict(read_sensors(gpu))
        del sensors["power_w"]  # of one moment, unlike the limit
        capability = ".".join(str(n) for n in gpu.compute_capability)
        rows.append({**about, "compute_capability": capability, **sensors, "throttled": list(sensors["throttled"])})
    cuda = ".".join(str(n) for n in found[0].cuda)
    return {"driver": found[0].driver, "cuda": cuda, "reason": "", "gpus": rows}
