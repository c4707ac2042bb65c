"""PyTorch, eager, on the CPU or a CUDA device.

What only a GPU can run (streams, CUDA graphs) is thin, and has **not been executed** where no GPU was at hand.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from runtimes import nvidia, onnx_types
from runtimes.base import Prepared, Runtime, close_all
from runtimes.environment import load_library, package_version
from runtimes.errors import OutOfMemory, RunFailed, RuntimeUnavailable, UnsupportedModel, is_out_of_memory, reason
from runtimes.spec import LayerTime, ModelForm, NodePlacement, RuntimeOptions, Scope, TensorSpec, TorchProgram


class TorchRuntime(Runtime):
    """Runs the ``TorchProgram`` that the source's factory builds.

    An ONNX file has no torch form of its own; one that was exported here finds its weights in the cache again, and
    any other needs its weights named.
    """

    name = "torch"
    title = "PyTorch, eager"
    opens: ClassVar[tuple[ModelForm, ...]] = ("torch",)
    uses = frozenset({"threads", "streams", "tf32", "cuda_graph", "exhaustive_search", "channels_last", "autocast"})
    precisions = frozenset({"fp32", "fp16", "bf16"})
    build_advice = "runs the network itself"
    not_bundled_because = "computes with the network's own program, which a bundle does not carry"
    efficiency = 0.35

    @classmethod
    def _device_kinds(cls) -> tuple[str, ...]:
        return ("cpu", "cuda")

    @classmethod
    def _installed_version(cls) -> str | None:
        return package_version("torch")

    @classmethod
    def _probe(cls, device: str) -> tuple[str, tuple[str, ...]]:
        gpu = None if device == "cpu" else nvidia.require_gpu(device)
        torch = load_library("torch", runtime=cls.name, package="resnet-onnx")
        if gpu is None:
            return str(torch.__version__), (device,)
        check_build(torch, gpu)
        return str(torch.__version__), tuple(nvidia.gpu_names())

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], Mapping[str, Any]]:
        self._torch = load_library("torch", runtime=self.name, package="resnet-onnx")
        if self.source.factory is None:
            raise UnsupportedModel(
                f"runtime 'torch' can't run {self.source.name}: the torch weights it came from are not at hand",
                fix="name them: --weights FILE (with --model NAME where the file does not say), or leave torch out",
            )
        program: TorchProgram = self.source.call_factory()
        self._threads = self._threads_per_stream  # torch counts them by calling thread
        options, torch = self.options, self._torch
        cuda = self.device != "cpu"
        if cuda:
            nvidia.check_tf32_override(options.tf32)
            torch.backends.cudnn.allow_tf32 = options.tf32
            torch.backends.cuda.matmul.allow_tf32 = options.tf32
            torch.backends.cudnn.benchmark = bool(options.exhaustive_search)
        module = program.module.to(self.device).eval()
        self._channels_last = options.channels_last
        self._module = module.to(memory_format=torch.channels_last) if options.channels_last else module
        self._narrow = autocast_dtype(options)
        self._dtypes = [self._to_device(np.empty(0, spec.dtype)).dtype for spec in program.outputs]
        first = next(iter(self._module.parameters()), None)
        recorded = {
            "threads": self._threads * self.streams,
            "dtype": None if first is None else str(first.dtype).removeprefix("torch."),
            "memory_format": "channels_last" if options.channels_last else "contiguous",
            "autocast": options.autocast or False,
            "tf32": options.tf32 and cuda,
            "cuda_graph": options.cuda_graph and cuda,
            "exhaustive_search": bool(options.exhaustive_search) and cuda,
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
            with torch.inference_mode(), self._precision():
                result = self._module(*inputs)
        except RuntimeError as error:
            raise (OutOfMemory if is_out_of_memory(error) else RunFailed)(
                f"torch: running {self.source.name} failed: {reason(error)}"
            ) from error
        results = list(result) if isinstance(result, tuple | list) else [result]
        if self._narrow is None:
            return results
        return [tensor.to(dtype) for tensor, dtype in zip(results, self._dtypes, strict=True)]

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self._narrow is None:
            return contextlib.nullcontext()
        kind: contextlib.AbstractContextManager[Any] = self._torch.autocast(
            self.device.partition(":")[0], self._narrow, cache_enabled=not self.options.cuda_graph
        )
        return kind

    def _to_device(self, array: NDArray[Any]) -> Any:
        if array.dtype == onnx_types.BFLOAT16:
            host = self._torch.from_numpy(array.view(np.uint16).copy()).view(self._torch.bfloat16)
        else:
            host = self._torch.from_numpy(array if array.flags.writeable else array.copy())
        tensor = host.to(self.device)
        if self._channels_last and tensor.ndim == 4:
            return tensor.contiguous(memory_format=self._torch.channels_last)
        return tensor

    def _to_host(self, tensor: Any, spec: TensorSpec) -> NDArray[Any]:
        host = tensor.detach().cpu()
        if spec.dtype == onnx_types.BFLOAT16:
            return np.array(host.view(self._torch.uint16).numpy().view(onnx_types.BFLOAT16), copy=True)
        return np.array(host.numpy(), copy=True)

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        results = self._forward([self._to_device(array) for array in feeds.values()])
        return {s.name: self._to_host(t, s) for s, t in zip(self.outputs, results, strict=True)}

    def _layer_times(self, feeds: dict[str, NDArray[Any]], runs: int) -> list[LayerTime]:
        profiler = self._torch.profiler
        inputs = [self._to_device(array) for array in feeds.values()]
        leaves = {module: name for name, module in self._module.named_modules() if not list(module.children())}
        entered: list[Any] = []

        def enter(module: Any, _: Any) -> None:
            entered.append(profiler.record_function(f"{_LAYER}{leaves[module]}"))
            entered[-1].__enter__()

        def leave(module: Any, *_: Any) -> None:
            entered.pop().__exit__(None, None, None)

        hooks = [hook for module in leaves for hook in (
            module.register_forward_pre_hook(enter), module.register_forward_hook(leave)
        )]  # fmt: skip
        cuda = self.device != "cpu"
        kinds = [profiler.ProfilerActivity.CPU, *([profiler.ProfilerActivity.CUDA] if cuda else [])]
        try:
            self._forward(inputs)
            with profiler.profile(activities=kinds) as profile:
                for _ in range(runs):
                    self._forward(inputs)
                if cuda:
                    self._torch.cuda.synchronize(self.device)
        finally:
            for hook in hooks:
                hook.remove()
        types = {name: type(module).__name__ for module, name in leaves.items()}
        found = {}
        for event in profile.key_averages():
            name = event.key.removeprefix(_LAYER)
            # On a GPU a span has a second row, of the device's clock, that counts the gaps between its kernels too.
            host = event.device_type == self._torch.autograd.DeviceType.CPU
            if host and event.key.startswith(_LAYER) and name in types:
                time_us = event.device_time_total if cuda else event.cpu_time_total
                found[name] = LayerTime(name or types[name], types[name], time_us / 1e6 / runs)
        return [found[name] for name in types if name in found]

    def _prepare(self, feeds: dict[str, NDArray[Any]], scope: Scope) -> Prepared:
        if self.device == "cpu":
            return _PreparedTensors(self, feeds, scope)
        replays = self.options.cuda_graph and "cuda_graph" in self.uses
        return (_PreparedGraph if replays else _PreparedStream)(self, feeds, scope)

    def _close(self) -> None:
        del self._module
        if self.device != "cpu":
            self._torch.cuda.empty_cache()  # torch would keep it from other libraries and processes


_LAYER = "layer: "
"""What marks a module's span among the operators in torch's profile."""


class _PreparedTensors(Prepared):
    def __init__(self, runtime: TorchRuntime, feeds: dict[str, NDArray[Any]], scope: Scope) -> None:
        super().__init__(scope)
        self._runtime, self._feeds = runtime, feeds
        self._inputs = [runtime._to_device(array) for array in feeds.values()]
        self._results: list[Any] = []
        self._host: dict[str, NDArray[Any]] = {}

    def _enqueue(self) -> None:
        if self.scope == "end-to-end":
            self._host = self._runtime._run(self._feeds)
        else:
            self._results = self._runtime._forward(self._inputs)

    def _synchronize(self) -> None:
        """On the CPU a run is done when it returns."""

    def _outputs(self) -> dict[str, NDArray[Any]]:
        if self.scope == "end-to-end":
            return {name: array.copy() for name, array in self._host.items()}
        return {
            s.name: self._runtime._to_host(t, s)
            for s, t in zip(self._runtime.outputs, self._results, strict=True)
        }  # fmt: skip

    def _close(self) -> None:
        self._results, self._inputs = [], []


class _PreparedStream(_PreparedTensors):
    """Runs on a CUDA stream of its own, so that several overlap."""

    def __init__(self, runtime: TorchRuntime, feeds: dict[str, NDArray[Any]], scope: Scope) -> None:
        cuda = runtime._torch.cuda
        self._stream = cuda.Stream(device=runtime.device)
        with cuda.stream(self._stream):  # torch gives freed memory away in the order of the stream it was reserved on
            super().__init__(runtime, feeds, scope)
        cuda.synchronize(runtime.device)  # the weights were put in place on another stream

    @property
    def returns_early(self) -> bool:
        """Unless the outputs are copied to host arrays, which waits for them."""
        return self.scope == "device"

    def _enqueue(self) -> None:
        with self._runtime._torch.cuda.stream(self._stream):
            super()._enqueue()

    def _synchronize(self) -> None:
        self._stream.synchronize()

    def _outputs(self) -> dict[str, NDArray[Any]]:
        with self._runtime._torch.cuda.stream(self._stream):
            return super()._outputs()

    def _close(self) -> None:
        close_all([self._stream.synchronize, super()._close])


class _PreparedGraph(_PreparedStream):
    """One run, captured into a CUDA graph; its inputs and outputs stay where they were captured."""

    def __init__(self, runtime: TorchRuntime, feeds: dict[str, NDArray[Any]], scope: Scope) -> None:
        super().__init__(runtime, feeds, scope)
        torch = runtime._torch
        with torch.cuda.stream(self._stream):
            for _ in range(_RUNS_BEFORE_CAPTURE):
                runtime._forward(self._inputs)
        self._stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(runtime.device), torch.cuda.graph(self._graph, stream=self._stream):
            self._results = runtime._forward(self._inputs)

    def _enqueue(self) -> None:
        runtime = self._runtime
        with runtime._torch.cuda.stream(self._stream):
            if self.scope == "end-to-end":
                for tensor, array in zip(self._inputs, self._feeds.values(), strict=True):
                    tensor.copy_(runtime._to_device(array))
            self._graph.replay()
            if self.scope == "end-to-end":
                results = zip(runtime.outputs, self._results, strict=True)
                self._host = {spec.name: runtime._to_host(tensor, spec) for spec, tensor in results}

    def _close(self) -> None:
        close_all([self._stream.synchronize, self._drop_graph, super()._close])

    def _drop_graph(self) -> None:
        del self._graph


_RUNS_BEFORE_CAPTURE = 3
"""Warm-up runs that pytorch.org's notes on CUDA graphs use: cuDNN chooses and libraries allocate in them."""


def autocast_dtype(options: RuntimeOptions) -> Any:
    """Returns what autocast narrows to, as a dtype of torch; None for nothing."""
    import torch

    return {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}[options.autocast]


def check_build(torch: Any, gpu: nvidia.Gpu) -> None:
    """Raises ``RuntimeUnavailable`` where the installed torch can't use a GPU."""
    if torch.version.cuda is None:
        raise RuntimeUnavailable(
            f"the installed torch {torch.__version__} is a build for the CPU alone",
            fix="pip install --force-reinstall torch",
        )
    nvidia.check_driver(
        gpu,
        int(str(torch.version.cuda).partition(".")[0]),
        for_cuda12="torch torchvision --index-url https://download.pytorch.org/whl/cu126",
    )
    built_for = tuple(torch.cuda.get_arch_list())
    if not has_kernels(built_for, gpu.compute_capability):
        raise RuntimeUnavailable(
            f"torch {torch.__version__} was built for {', '.join(built_for)}, and {gpu.device} is {gpu.name} "
            f"({gpu.target})",
            fix="install a build of torch for this GPU (pytorch.org/get-started)",
        )
    seen = torch.cuda.device_count()
    if gpu.index >= seen:
        raise RuntimeUnavailable(
            f"torch {torch.__version__} sees {seen} GPUs and so no {gpu.device}, where the driver has {gpu.name}",
            fix="what torch says about it: python -c 'import torch; torch.zeros(1).cuda()'",
        )


def has_kernels(built_for: Sequence[str], capability: tuple[int, int]) -> bool:
    """Returns whether a build runs on a GPU.

    Args:
        built_for: ``sm_86`` is machine code, which runs on its own major version from that minor one on;
            ``compute_90`` is PTX, which every later GPU compiles (CUDA C++ Programming Guide, "Binary Compatibility").
        capability: Compute capability of the GPU.
    """
    for name in built_for:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name)
        if found is None:
            continue
        known = int(found[2]), int(found[3])
        if capability >= known and (found[1] == "compute" or capability[0] == known[0]):
            return True
    return False
