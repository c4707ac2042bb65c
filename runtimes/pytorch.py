"""PyTorch, eager, on the CPU or a CUDA device.

On CUDA the code was built, not executed where no GPU was at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes import onnx_types
from runtimes.base import Prepared, Runtime, usable_cores
from runtimes.environment import load_library, package_version
from runtimes.errors import OutOfMemory, RunFailed, UnsupportedModel
from runtimes.spec import NodePlacement, Scope, TensorSpec, TorchProgram


class TorchRuntime(Runtime):
    """Runs the ``TorchProgram`` that the source's factory builds.

    An ONNX file has no torch form of its own; one that was exported here finds its weights in the cache again, and
    any other needs its weights named.
    """

    name = "torch"

    @classmethod
    def _device_kinds(cls) -> tuple[str, ...]:
        return ("cpu", "cuda")

    @classmethod
    def _installed_version(cls) -> str | None:
        return package_version("torch")

    @classmethod
    def _probe(cls, device: str) -> tuple[str, tuple[str, ...]]:
        if device != "cpu":
            from runtimes import nvidia

            nvidia.require_gpu(device, runtime=cls.name)
        torch = load_library("torch", runtime=cls.name, package="resnet-onnx")
        return str(torch.__version__), (device,)

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], Mapping[str, Any]]:
        self._torch = load_library("torch", runtime=self.name, package="resnet-onnx")
        if self.source.factory is None:
            raise UnsupportedModel(
                f"runtime 'torch' can't run {self.source.name}: the torch weights it came from are not at hand",
                fix="name them: --weights FILE (with --model NAME where the file does not say), or leave torch out",
            )
        program: TorchProgram = self.source.call_factory()
        self._threads = self.options.threads or usable_cores()
        cuda = self.device != "cpu"
        if cuda:
            self._torch.backends.cudnn.allow_tf32 = self.options.tf32
            self._torch.backends.cuda.matmul.allow_tf32 = self.options.tf32
        self._module = program.module.to(self.device).eval()
        recorded = {
            "threads": self._threads,
            "dtype": _dtype(self._module),
            "memory_format": "contiguous",
            "autocast": False,
            "tf32": self.options.tf32 if cuda else False,
        }
        return program.inputs, program.outputs, recorded

    def _placement(self) -> tuple[NodePlacement, ...]:
        return (NodePlacement("*", "", "PyTorch eager", self.device),)

    def _forward(self, inputs: list[Any]) -> list[Any]:
        """Runs tensors that are already on the device; returns the outputs, on the device."""
        torch = self._torch
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                result = self._module(*inputs)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(f"torch: {self.source.name} does not fit into memory: {error}") from error
        except RuntimeError as error:
            text = " ".join(str(error).split())
            full = "allocate memory" in text or "out of memory" in text
            raise (OutOfMemory if full else RunFailed)(
                f"torch: running {self.source.name} failed: {text[:300]}"
            ) from error
        return list(result) if isinstance(result, tuple | list) else [result]

    def _to_device(self, array: NDArray[Any]) -> Any:
        if array.dtype == onnx_types.BFLOAT16:
            host = self._torch.from_numpy(array.view(np.uint16).copy()).view(self._torch.bfloat16)
        else:
            host = self._torch.from_numpy(array if array.flags.writeable else array.copy())
        return host.to(self.device)

    def _to_host(self, tensor: Any, spec: TensorSpec) -> NDArray[Any]:
        host = tensor.detach().cpu()
        if spec.dtype == onnx_types.BFLOAT16:
            return np.array(host.view(self._torch.uint16).numpy().view(onnx_types.BFLOAT16), copy=True)
        return np.array(host.numpy(), copy=True)

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        results = self._forward([self._to_device(array) for array in feeds.values()])
        return {s.name: self._to_host(t, s) for s, t in zip(self.outputs, results, strict=True)}

    def _prepare(self, feeds: dict[str, NDArray[Any]], scope: Scope) -> Prepared:
        return _PreparedTensors(self, feeds, scope)

    def _close(self) -> None:
        del self._module


def _dtype(module: Any) -> str | None:
    """Returns what the module computes in by its parameters; None for one without any."""
    first = next(iter(module.parameters()), None)
    return None if first is None else str(first.dtype).removeprefix("torch.")


class _PreparedTensors(Prepared):
    def __init__(self, runtime: TorchRuntime, feeds: dict[str, NDArray[Any]], scope: Scope) -> None:
        super().__init__(scope)
        self._runtime, self._feeds = runtime, feeds
        self._inputs = [runtime._to_device(array) for array in feeds.values()]
        self._results: list[Any] = []
        self._host: dict[str, NDArray[Any]] = {}
        self._cuda = runtime.device != "cpu"

    def _enqueue(self) -> None:
        if self.scope == "end-to-end":
            self._host = self._runtime._run(self._feeds)
        else:
            self._results = self._runtime._forward(self._inputs)

    def _synchronize(self) -> None:
        if self._cuda:
            self._runtime._torch.cuda.synchronize(self._runtime.device)

    def _outputs(self) -> dict[str, NDArray[Any]]:
        if self.scope == "end-to-end":
            return {name: array.copy() for name, array in self._host.items()}
        return {
            s.name: self._runtime._to_host(t, s)
            for s, t in zip(self._runtime.outputs, self._results, strict=True)
        }  # fmt: skip

    def _close(self) -> None:
        self._results, self._inputs = [], []
