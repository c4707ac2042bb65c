"""NVIDIA driver and GPUs: what is there, and how fast it is clocked.

The CUDA driver says which GPUs this process may use and in which order (``CUDA_VISIBLE_DEVICES`` counts); NVML, through
nvidia-ml-py, adds what only it knows: clocks, power, temperature. Both come with the driver, so that asking costs
nothing where there is none. Everything that needs a driver is thin; it has not been executed where no GPU was at hand.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

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


def check_driver(gpu: Gpu, needed: int | None, *, for_cuda12: str = "") -> None:
    """Raises ``RuntimeUnavailable`` for a driver that is too old for a library built for CUDA `needed`.

    `for_cuda12` is what pip installs of the library for a driver that serves CUDA 12.
    """
    if needed is not None and gpu.cuda[0] < needed:
        fix = f"install a driver for CUDA {needed} or newer (nvidia.com/drivers)"
        if gpu.cuda[0] == 12 and for_cuda12:
            fix += f"\nor, in an environment of its own, the library for CUDA 12: pip install {for_cuda12}"
        raise RuntimeUnavailable(
            f"the NVIDIA driver {gpu.driver} serves CUDA {gpu.cuda[0]}.{gpu.cuda[1]}, the installed library needs "
            f"CUDA {needed}",
            fix=fix,
        )


class Stream:
    """A CUDA stream of our own, in the context of a GPU that all CUDA libraries of this process share.

    Made with the driver alone, so that nobody needs torch for it.

    Raises:
        RuntimeUnavailable: The driver can't make one.
    """

    def __init__(self, device: str) -> None:
        self._cuda = ctypes.CDLL(CUDA_DRIVER)
        self._gpu, self._context, self._stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        _call(self._cuda, "cuInit", 0, fix=None)
        _call(self._cuda, "cuDeviceGet", ctypes.byref(self._gpu), int(device.partition(":")[2] or 0), fix=None)
        _call(self._cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._gpu, fix=None)
        self._in_context("cuStreamCreate", ctypes.byref(self._stream), _NON_BLOCKING)

    @property
    def handle(self) -> int:
        """What other libraries take for it: the address that CUDA gave it."""
        return int(self._stream.value or 0)

    def synchronize(self) -> None:
        """Waits for the work that this stream was given, and for no other; raises ``RuntimeError`` where it failed."""
        self._in_context("cuStreamSynchronize", self._stream)

    def wait_for_device(self) -> None:
        """Waits for all work on the GPU: for copies that were begun on no stream in particular."""
        self._in_context("cuCtxSynchronize")

    def close(self) -> None:
        """Gives it back, once the libraries that used it are closed."""
        if self._stream:
            self._in_context("cuStreamDestroy_v2", self._stream)
            self._stream = ctypes.c_void_p()
            self._cuda.cuDevicePrimaryCtxRelease_v2(self._gpu)

    def _in_context(self, function: str, *arguments: Any) -> None:
        cuda, before = self._cuda, ctypes.c_void_p()
        codes = [int(cuda.cuCtxPushCurrent_v2(self._context))]
        if codes == [0]:
            codes += [int(getattr(cuda, function)(*arguments)), int(cuda.cuCtxPopCurrent_v2(ctypes.byref(before)))]
        for code in codes:
            if code:
                raise RuntimeError(f"CUDA failure {code}: {_REASONS.get(code, 'see CUresult in cuda.h')} ({function})")


_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING of cuda.h: it does not wait for the default stream."""


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
    return str(_nvml().ask("nvmlSystemGetDriverVersion", ""))


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
    """NVML; every question has an answer for the case that NVML has none."""

    def __init__(self) -> None:
        self._nvml: Any = None
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception:  # any reason at all leaves us without NVML, which only adds details
            return
        self._nvml = pynvml

    def ask(self, function: str, missing: Any, *arguments: Any) -> Any:
        if self._nvml is None:
            return missing
        try:
            return getattr(self._nvml, function)(*arguments)
        except self._nvml.NVMLError:
            return missing  # this GPU does not measure it, or this user may not ask

    def constant(self, name: str) -> Any:
        return getattr(self._nvml, name, None)

    def field(self, handle: Any, name: str) -> int | None:
        """Returns a field's whole number, or None where this GPU or this nvidia-ml-py has none."""
        number = self.constant(name)
        found = None if number is None else self.ask("nvmlDeviceGetFieldValues", None, handle, [number])
        if not found or found[0].nvmlReturn != 0:
            return None
        wide = found[0].valueType == self.constant("NVML_VALUE_TYPE_UNSIGNED_LONG_LONG")
        return int(found[0].value.ullVal if wide else found[0].value.uiVal)

    def handle(self, uuid: str) -> Any:
        for kind in ("GPU-", "MIG-"):
            handle = self.ask("nvmlDeviceGetHandleByUUID", None, f"{kind}{uuid}")
            if handle is not None:
                return handle
        return None


@functools.cache
def _nvml() -> _Nvml:
    """Opens it once a process: a question to an open one takes microseconds, opening it milliseconds."""
    return _Nvml()


@dataclass(frozen=True, kw_only=True)
class Sensors:
    """What a GPU's sensors say at one moment; None where it does not measure that.

    Attributes:
        clock_mhz: Of the multiprocessors.
        power_w: Of this moment, where the GPU tells it; else the mean of about a second, as ``nvidia-smi`` shows it.
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


_HELD_COUNTERS = {
    "power limit": "NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP",
    "thermal limit (software)": "NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN",
    "thermal limit (hardware)": "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN",
    "power brake": "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN",
}
"""The counters of nvml.h, nanoseconds since the driver was loaded, by the words of ``_THROTTLE``."""


def throttle_reasons(mask: int) -> tuple[str, ...]:
    """Returns in words why a clock is held down, from NVML's bit mask."""
    return tuple(text for bit, text in _THROTTLE.items() if mask & bit)


def read_sensors(gpu: Gpu) -> Sensors:
    """Reads clocks, power and temperature of a GPU; what it does not measure stays None."""
    nvml = _nvml()
    handle = nvml.handle(gpu.uuid)
    if handle is None:
        return Sensors()
    processors, memory = nvml.constant("NVML_CLOCK_SM"), nvml.constant("NVML_CLOCK_MEM")
    power = nvml.field(handle, "NVML_FI_DEV_POWER_INSTANT")
    if power is None:
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


def throttled_s(gpu: Gpu) -> dict[str, float]:
    """Returns for how many seconds each reason has held a GPU's clock down since its driver was loaded.

    Reasons that this GPU does not count are left out.
    """
    nvml = _nvml()
    handle = nvml.handle(gpu.uuid)
    if handle is None:
        return {}
    counted = {reason: nvml.field(handle, name) for reason, name in _HELD_COUNTERS.items()}
    return {reason: nanoseconds / 1e9 for reason, nanoseconds in counted.items() if nanoseconds is not None}


def total_energy_j(gpu: Gpu) -> float | None:
    """Returns the joules that a GPU used since its driver was loaded; None where it does not count them."""
    nvml = _nvml()
    handle = nvml.handle(gpu.uuid)
    counted = None if handle is None else nvml.ask("nvmlDeviceGetTotalEnergyConsumption", None, handle)
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
