"""ONNX Runtime: the CPU, CUDA and TensorRT providers behind one adapter.

The CPU provider runs in the project's tests. The CUDA and TensorRT providers need an NVIDIA driver; their code is thin
and has been built and checked for names here, but not executed where no GPU was at hand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes import files, onnx_types
from runtimes.base import Prepared, Runtime, usable_cores
from runtimes.environment import load_library, package_version
from runtimes.errors import BadModel, OutOfMemory, RunFailed, RuntimeUnavailable, UnsupportedModel
from runtimes.spec import NodePlacement, Scope, TensorSpec


class OrtRuntime(Runtime):
    """What all providers share; a provider fills the three small holes at the end."""

    provider = ""

    @classmethod
    def _installed_version(cls) -> str | None:
        return package_version("onnxruntime-gpu", "onnxruntime")

    @classmethod
    def _probe(cls, device: str) -> tuple[str, tuple[str, ...]]:
        ort = cls._library()
        if cls.provider not in ort.get_available_providers():
            raise RuntimeUnavailable(
                f"the installed ONNX Runtime {ort.__version__} was built without {cls.provider}",
                fix="pip install 'onnxruntime-gpu' in place of 'onnxruntime'",
            )
        return str(ort.__version__), (device,)

    @classmethod
    def _library(cls) -> Any:
        ort = load_library("onnxruntime", runtime=cls.name, package="resnet-onnx")
        ort.set_default_logger_severity(4)  # an error also arrives as an exception, which we report
        return ort

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], Mapping[str, Any]]:
        if self.source.path is None:
            raise BadModel(f"runtime '{self.name}' opens ONNX files, but {self.source.name} has none")
        checked = files.check_onnx(self.source.path)
        ort = self._library()
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        settings.intra_op_num_threads = self.options.threads or usable_cores()
        settings.inter_op_num_threads = 1
        level = ort.GraphOptimizationLevel
        settings.graph_optimization_level = level.ORT_ENABLE_ALL if self.options.optimize else level.ORT_DISABLE_ALL
        spinning = "1" if self.options.spin else "0"
        settings.add_session_config_entry("session.intra_op.allow_spinning", spinning)
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        provider_options = self._provider_options()
        if self.provider != "CPUExecutionProvider":
            settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            self._session = ort.InferenceSession(
                str(checked.path), settings, providers=[(self.provider, provider_options)]
            )
        except Exception as error:
            raise self._open_error(error) from error
        if self._session.get_providers()[0] != self.provider:
            raise RuntimeUnavailable(
                f"ONNX Runtime did not take {self.provider} and fell back to {self._session.get_providers()}",
                fix="resnet-onnx doctor",
            )
        self._ort = ort
        inputs = tuple(_spec(value) for value in self._session.get_inputs())
        outputs = tuple(_spec(value) for value in self._session.get_outputs())
        return inputs, outputs, {
            "provider": self.provider,
            "provider_options": provider_options,
            "threads": settings.intra_op_num_threads,
            "spin": self.options.spin,
            "graph_optimization": "all" if self.options.optimize else "none",
        }  # fmt: skip

    def _placement(self) -> tuple[NodePlacement, ...]:
        return tuple(
            NodePlacement(node.name, node.op_type, part.ep_name, self._device_of(part.ep_name))
            for part in self._session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        )

    def _device_of(self, provider: str) -> str:
        return "cpu" if provider == "CPUExecutionProvider" else self.device

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            if any(s.dtype == onnx_types.BFLOAT16 for s in (*self.inputs, *self.outputs)):
                values = {n: self._value(a, "cpu", 0) for n, a in feeds.items()}
                arrays = [v.numpy() for v in self._session.run_with_ort_values(None, values)]
            else:
                arrays = self._session.run(None, feeds)
        except Exception as error:
            raise self._run_error(error) from error
        return {s.name: np.asarray(a) for s, a in zip(self.outputs, arrays, strict=True)}

    def _prepare(self, feeds: dict[str, NDArray[Any]], scope: Scope) -> Prepared:
        return _PreparedHost(self, feeds) if scope == "end-to-end" else _PreparedDevice(self, feeds)

    def _close(self) -> None:
        del self._session

    def _value(self, array: NDArray[Any], kind: str, index: int) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(array, kind, index)

    def _open_error(self, error: Exception) -> Exception:
        text = " ".join(str(error).split())
        kind = type(error).__name__
        if _out_of_memory(text):
            return OutOfMemory(f"{self.name}: {self.source.name} does not fit into memory: {text[:200]}")
        operator = re.search(r"Could not find an implementation for (\S+?)\(", text)
        if operator or kind == "NotImplemented":
            what = f"operator {operator[1]}" if operator else "an operator or type"
            return UnsupportedModel(
                f"{self.name} has no kernel for {what} of {self.source.name}: {text[:200]}",
                fix="choose another runtime or precision",
            )
        if kind in ("InvalidGraph", "InvalidProtobuf", "InvalidArgument", "NoSuchFile"):
            return BadModel(f"{self.name} refuses {self.source.name}: {text[:300]}")
        return UnsupportedModel(f"{self.name} can't open {self.source.name}: {text[:300]}")

    def _run_error(self, error: Exception) -> Exception:
        text = " ".join(str(error).split())
        kind = OutOfMemory if _out_of_memory(text) or isinstance(error, MemoryError) else RunFailed
        return kind(f"{self.name}: running {self.source.name} failed: {text[:300]}")

    def _provider_options(self) -> dict[str, str]:
        return {}

    def _memory(self) -> tuple[str, int]:
        """Returns ONNX Runtime's name and index of the memory that the provider computes in."""
        return "cpu", 0


def _out_of_memory(text: str) -> bool:
    return any(sign in text for sign in ("Failed to allocate memory", "bad_alloc", "out of memory", "CUDA failure 2:"))


def _spec(value: Any) -> TensorSpec:
    element = re.fullmatch(r"tensor\((\w+)\)", value.type)
    if element is None:
        raise UnsupportedModel(f"'{value.name}' is a {value.type}; only tensors are supported")
    return onnx_types.spec(value.name, element[1], value.shape)


class _PreparedHost(Prepared):
    """Host arrays in, host arrays out: what a caller of ``session.run`` pays."""

    def __init__(self, runtime: OrtRuntime, feeds: dict[str, NDArray[Any]]) -> None:
        super().__init__("end-to-end")
        self._runtime, self._feeds = runtime, feeds
        self._results: dict[str, NDArray[Any]] = {}

    def _enqueue(self) -> None:
        self._results = self._runtime._run(self._feeds)

    def _synchronize(self) -> None:
        pass

    def _outputs(self) -> dict[str, NDArray[Any]]:
        return {name: array.copy() for name, array in self._results.items()}


class _PreparedDevice(Prepared):
    """Inputs and outputs bound where the provider computes: nothing is copied and nothing allocated per run."""

    def __init__(self, runtime: OrtRuntime, feeds: dict[str, NDArray[Any]]) -> None:
        super().__init__("device")
        self._runtime = runtime
        kind, index = runtime._memory()
        binding = runtime._session.io_binding()
        self._inputs = {name: runtime._value(array, kind, index) for name, array in feeds.items()}
        for name, value in self._inputs.items():
            binding.bind_ortvalue_input(name, value)
        for spec in runtime.outputs:
            binding.bind_output(spec.name, kind, index)
        try:
            # The first run finds the output shapes; its buffers then serve every later run.
            runtime._session.run_with_iobinding(binding)
        except Exception as error:
            raise runtime._run_error(error) from error
        self._results = list(binding.get_outputs())
        for spec, value in zip(runtime.outputs, self._results, strict=True):
            binding.bind_ortvalue_output(spec.name, value)
        self._binding = binding
        self._run = runtime._session.run_with_iobinding

    def _enqueue(self) -> None:
        try:
            self._run(self._binding)
        except Exception as error:
            raise self._runtime._run_error(error) from error

    def _synchronize(self) -> None:
        self._binding.synchronize_outputs()

    def _outputs(self) -> dict[str, NDArray[Any]]:
        return {
            s.name: np.array(v.numpy(), copy=True)
            for s, v in zip(self._runtime.outputs, self._results, strict=True)
        }  # fmt: skip

    def _close(self) -> None:
        del self._binding, self._results, self._inputs, self._run


class OrtCpuRuntime(OrtRuntime):
    """ONNX Runtime's own CPU kernels."""

    name = "ort-cpu"
    provider = "CPUExecutionProvider"


class OrtCudaRuntime(OrtRuntime):
    """ONNX Runtime's CUDA provider: cuDNN and cuBLAS. Built, not executed where no GPU was at hand."""

    name = "ort-cuda"
    provider = "CUDAExecutionProvider"
    default_device = "cuda:0"

    @classmethod
    def _probe(cls, device: str) -> tuple[str, tuple[str, ...]]:
        from runtimes import nvidia

        nvidia.require_gpu(device, runtime=cls.name)
        version, _ = super()._probe(device)
        return version, tuple(nvidia.gpu_names())

    @classmethod
    def _library(cls) -> Any:
        ort = super()._library()
        ort.preload_dlls()  # CUDA and cuDNN as pip installed them
        return ort

    def _provider_options(self) -> dict[str, str]:
        return {
            "device_id": self.device.partition(":")[2],
            "use_tf32": "1" if self.options.tf32 else "0",
            "cudnn_conv_algo_search": "EXHAUSTIVE",
        }

    def _memory(self) -> tuple[str, int]:
        return "cuda", int(self.device.partition(":")[2])


class OrtTensorRTRuntime(OrtCudaRuntime):
    """ONNX Runtime's TensorRT provider. Built, not executed where no GPU was at hand."""

    name = "ort-tensorrt"
    provider = "TensorrtExecutionProvider"

    @classmethod
    def _probe(cls, device: str) -> tuple[str, tuple[str, ...]]:
        answer = super()._probe(device)
        load_library("tensorrt", runtime=cls.name, package="resnet-onnx[tensorrt]")
        return answer

    def _provider_options(self) -> dict[str, str]:
        if self.source.path is None:
            raise BadModel(f"runtime '{self.name}' opens ONNX files, but {self.source.name} has none")
        # ONNX Runtime's own key is the graph's name, which collides for other shapes and weights
        # (onnxruntime#32254): a folder per file hash keeps them apart.
        key = files.check_onnx(self.source.path).sha256
        return {
            "device_id": self.device.partition(":")[2],
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(files.cache_dir("ort-tensorrt", f"{key[:32]}-{self.version}")),
            "trt_timing_cache_enable": "1",
        }
