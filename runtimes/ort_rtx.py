"""ONNX Runtime with NVIDIA's plugin provider of TensorRT for RTX, which is not part of ONNX Runtime's wheel.

The plugin (``onnxruntime-ep-nv-tensorrt-rtx``, GPUs from Ampere on) is registered with a plain ``onnxruntime`` when it
is used, brings its libraries, and does not go beside ``onnxruntime-gpu``. Names of its functions and options are those
of its wheel 0.5.0; **never executed** where no GPU was at hand.
"""

from __future__ import annotations

import functools
from typing import Any

from numpy.typing import NDArray

from runtimes import nvidia, onnx_gate, ort_gpu
from runtimes.base import HostRuns, Prepared
from runtimes.environment import load_library, package_version
from runtimes.errors import RuntimeUnavailable, UnsupportedModel, reason
from runtimes.ort import OrtRuntime
from runtimes.spec import LayerTime, RuntimeOptions, Scope, check_profile

OLDEST_CAPABILITY = (8, 0)
"""Ampere (the wheel's own requirements)."""

_MODULE, _PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx", "resnet-onnx[ort-tensorrt-rtx]"

_ALONE = (
    f"in an environment of its own: pip install '{_PACKAGE}'\n"
    "and there: pip uninstall -y onnxruntime-gpu && pip install --force-reinstall --no-deps onnxruntime"
)


class OrtTensorRTRTXRuntime(OrtRuntime):
    """What the plugin does not take is refused: it never runs on the CPU."""

    name = "ort-tensorrt-rtx"
    title = "ONNX Runtime, TensorRT for RTX plugin"
    uses = OrtRuntime.uses | {"shapes"}
    precisions = frozenset({"fp32", "fp16"})
    default_device = "cuda:0"
    build_advice = "compiles for the GPU, into the cache, when it opens the ONNX file"
    provider = "NvTensorRTRTXExecutionProvider"
    in_all = False  # it is measured end to end alone

    @classmethod
    def _installed_version(cls) -> str | None:
        return package_version(
            "onnxruntime-ep-nv-tensorrt-rtx",
            "onnxruntime-ep-nv-tensorrt-rtx-cu13",
            "onnxruntime-ep-nv-tensorrt-rtx-cu12",
        )

    @classmethod
    def _probe(cls, device: str) -> tuple[str, tuple[str, ...]]:
        gpu = nvidia.require_gpu(device, package=_PACKAGE)
        if gpu.compute_capability < OLDEST_CAPABILITY:
            raise RuntimeUnavailable(
                f"the plugin of TensorRT for RTX supports GPUs from Ampere (8.0) on, and {gpu.device} is {gpu.name}",
                fix="use another runtime on this GPU: resnet-onnx doctor",
            )
        plugin = load_library(_MODULE, runtime=cls.name, package=_PACKAGE)
        if package_version("onnxruntime-gpu"):
            raise RuntimeUnavailable(
                "the plugin of TensorRT for RTX goes with onnxruntime, and onnxruntime-gpu is installed", fix=_ALONE
            )
        register(cls._library(), plugin)
        devices_of(cls._library(), cls.provider, device)
        return str(plugin.__version__), tuple(nvidia.gpu_names())

    def _start(self, checked: onnx_gate.CheckedModel, settings: Any) -> tuple[Any, dict[str, dict[str, str]]]:
        plugin = load_library(_MODULE, runtime=self.name, package=_PACKAGE)
        register(self._ort, plugin)
        device = devices_of(self._ort, self.provider, self.device)
        options = plugin_options(self.options)
        self._key = ort_gpu.engine_key(
            checked,
            options=self.options,
            provider_options=options,
            ort_version=str(self._ort.__version__),
            tensorrt_version=f"{plugin.__version__} of the plugin",
            gpu=nvidia.require_gpu(self.device, package=_PACKAGE),
        )
        settings = self._settings()  # a provider is added to them
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        with ort_gpu.engine_folder(self._key) as self._folder:
            options = {**options, "nv_runtime_cache_path": str(self._folder)}
            settings.add_provider_for_devices([device], options)
            session = self._ort.InferenceSession(str(checked.path), settings)
        return session, {self.provider: options}

    def _recorded(self) -> dict[str, Any]:
        return {"engine": self._key, "tf32": "the library's own"}

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        check_profile(feeds, self.options.shapes, who=self.name)
        return super()._run(feeds)

    def _prepare(self, feeds: dict[str, NDArray[Any]], scope: Scope) -> Prepared:
        check_profile(feeds, self.options.shapes, who=self.name)
        if scope == "device":
            raise UnsupportedModel(
                f"{self.name} is measured from host arrays to host arrays: a plugin's own memory has not been tried",
                fix="--scope end-to-end",
            )
        return HostRuns(functools.partial(self._run_on, next(self._turns)), feeds, scope)

    def _layer_times(self, feeds: dict[str, NDArray[Any]], runs: int) -> list[LayerTime]:
        raise UnsupportedModel(f"runtime '{self.name}' has no profiler that tells the time of a layer on the GPU")

    def _close(self) -> None:
        super()._close()
        ort_gpu.seal(self._folder)


def plugin_options(options: RuntimeOptions) -> dict[str, str]:
    """Returns what the plugin is told; it separates the inputs of a profile by semicolons."""
    if not options.shapes:
        return {}
    return {
        f"nv_profile_{bound}_shapes": ";".join(
            ort_gpu.profile_text({name: accepted}, bound) for name, accepted in options.shapes.items()
        )
        for bound in ("min", "opt", "max")
    }


def register(ort: Any, plugin: Any) -> None:
    """Makes the plugin's provider known to ONNX Runtime, once a process.

    Raises:
        RuntimeUnavailable: The plugin or one of its libraries can't be loaded.
    """
    name = plugin.get_ep_name()
    if any(device.ep_name == name for device in ort.get_ep_devices()):
        return
    try:
        ort.register_execution_provider_library(name, plugin.get_library_path())
    except Exception as error:
        raise RuntimeUnavailable(
            f"ONNX Runtime {ort.__version__} can't load the plugin of TensorRT for RTX {plugin.__version__}: "
            f"{reason(error)}",
            fix=_ALONE,
        ) from error


def devices_of(ort: Any, provider: str, device: str) -> Any:
    """Returns ONNX Runtime's own device for ``cuda:N``.

    Raises:
        RuntimeUnavailable: The plugin sees fewer.
    """
    found = [each for each in ort.get_ep_devices() if each.ep_name == provider]
    index = int(device.partition(":")[2] or 0)
    if index >= len(found):
        raise RuntimeUnavailable(
            f"the plugin of TensorRT for RTX sees {len(found)} GPUs that it supports, and so no {device}",
            fix="use another runtime on this GPU: resnet-onnx doctor",
        )
    return found[index]
