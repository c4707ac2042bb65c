"""OpenVINO on the CPU, in the precision that the model file says."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes import onnx_arithmetic, onnx_gate, onnx_types
from runtimes.base import Prepared, Runtime
from runtimes.cores import usable_cores
from runtimes.environment import load_library, package_version
from runtimes.errors import BadModel, OutOfMemory, RunFailed, UnsupportedModel, is_out_of_memory, reason
from runtimes.spec import LayerTime, NodePlacement, Scope, TensorSpec


@functools.cache
def _core(ov: Any) -> Any:
    """Returns the process's one OpenVINO core, which is never freed.

    The CPU plugin of a core gives the thread that first compiles a model a signal stack of its own (for AMX's large
    registers), and takes it away when the core is freed, in whichever thread that happens and whatever came after (seen
    in 2026.4). The next signal, be it Ctrl-C or the end of a child process, then kills the program.
    """
    return ov.Core()


class OpenVINORuntime(Runtime):
    """OpenVINO's CPU plugin.

    Its default inference precision on a CPU with AMX is bf16 even for an fp32 file, so the precision is always set
    and recorded: f32 unless the file itself computes in bfloat16, or in float16 on a CPU that has it. Asked for float16
    on a CPU without, OpenVINO computes in bfloat16 (seen in 2026.4), which is neither the file's precision nor better.
    """

    name = "openvino"
    title = "Intel OpenVINO"
    precisions = frozenset({"fp32", "fp16", "bf16", "int8"})
    lowers_int8 = True
    standalone = "runtimes.standalone.openvino_engine"
    distributions = ("openvino",)
    efficiency = 0.85

    @classmethod
    def _installed_version(cls) -> str | None:
        return package_version(*cls.distributions)

    @classmethod
    def _probe(cls, device: str) -> tuple[str, tuple[str, ...]]:
        ov = load_library("openvino", runtime=cls.name, package="resnet-onnx")
        return str(ov.__version__).partition("-")[0], (device,)

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], Mapping[str, Any]]:
        if self.source.path is None:
            raise BadModel(f"runtime '{self.name}' opens ONNX files, but {self.source.name} has none")
        checked = onnx_gate.check_onnx(self.source.path)
        self._ov = load_library("openvino", runtime=self.name, package="resnet-onnx")
        self._checked = checked
        count = len(checked.outputs) + len(checked.odd_outputs)
        self._places = [place for place in range(count) if place not in checked.odd_outputs]
        precision = onnx_arithmetic.graph_precision(checked.path)
        self._settings = {
            "INFERENCE_PRECISION_HINT": self._hint(precision),
            "INFERENCE_NUM_THREADS": max(self.options.threads or usable_cores(), self.options.streams or 1),
        }
        if self.options.streams == 1:
            self._settings |= {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        else:
            self._settings["PERFORMANCE_HINT"] = "THROUGHPUT"
            if self.options.streams is not None:
                self._settings["NUM_STREAMS"] = self.options.streams
        self._compile()
        if self.options.streams is None:
            self.streams = int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        used = str(self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        computes_in = "int8" if precision == "int8" else {"f32": "fp32", "f16": "fp16"}.get(used, used)
        recorded = {
            "inference_precision": used,
            **onnx_types.recorded_precision(precision, computes_in, checked.metadata),
            "threads": int(self._compiled.get_property("INFERENCE_NUM_THREADS")),
            "streams": int(self._compiled.get_property("NUM_STREAMS")),
        }
        return checked.inputs, checked.outputs, recorded

    def _hint(self, precision: str) -> str:
        """Returns the precision to set for floating point: float16 only on a CPU that has it, see the class."""
        if precision == "bf16":
            return "bf16"
        if precision != "fp16":
            return "f32"
        return "f16" if "FP16" in _core(self._ov).get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"

    def _compile(self) -> None:
        self._compiled = self._compiled_with({})
        self._request = self._compiled.create_infer_request()

    def _compiled_with(self, more: Mapping[str, Any]) -> Any:
        core = _core(self._ov)
        try:
            return core.compile_model(core.read_model(self._readable()), "CPU", {**self._settings, **more})
        except RuntimeError as error:
            raise UnsupportedModel(
                f"{self.name} can't open {self.source.name}: {reason(error)}",
                fix="choose another runtime or precision",
            ) from error

    def _readable(self) -> str | bytes:
        """Returns the file, or its bytes in ONNX's own spelling where OpenVINO would not read it."""
        if not self._checked.dialect:
            return str(self._checked.path)
        return onnx_gate.load_model(self._checked).SerializeToString()

    def _placement(self) -> tuple[NodePlacement, ...]:
        rows = []
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            info = node.get_rt_info()
            kind = info["layerType"].astype(str) if "layerType" in info else node.get_type_name()
            kernel = info["primitiveType"].astype(str) if "primitiveType" in info else ""
            rows.append(NodePlacement(node.get_friendly_name(), kind, f"OpenVINO CPU {kernel}".strip(), "cpu"))
        return tuple(rows)

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        with self._explained():
            self._bind(self._request, feeds, shared=False)
            # infer() on one thread loses the error of a failed run and leaves the old outputs (seen in 2026.4).
            self._request.start_async()
            self._request.wait()
        return self._results(self._request)

    def _layer_times(self, feeds: dict[str, NDArray[Any]], runs: int) -> list[LayerTime]:
        compiled = self._compiled_with({"PERF_COUNT": True})
        request = compiled.create_infer_request()
        seconds: dict[tuple[str, str], float] = {}
        with self._explained():
            self._bind(request, feeds, shared=True)
            for run in range(runs + 1):
                request.start_async()
                request.wait()
                if run == 0:
                    continue
                for layer in request.get_profiling_info():
                    if layer.status == layer.EXECUTED:
                        key = layer.node_name, layer.node_type
                        seconds[key] = seconds.get(key, 0.0) + layer.real_time.total_seconds() / runs
        return [LayerTime(name, operator, time) for (name, operator), time in seconds.items()]

    def _bind(self, request: Any, feeds: dict[str, NDArray[Any]], *, shared: bool) -> None:
        for index, spec in enumerate(self.inputs):
            request.set_input_tensor(index, self._tensor(feeds[spec.name], spec, shared=shared))

    def _tensor(self, array: NDArray[Any], spec: TensorSpec, *, shared: bool) -> Any:
        if spec.dtype == onnx_types.BFLOAT16:
            return self._ov.Tensor(array.view(np.uint16), list(array.shape), self._ov.Type.bf16)
        return self._ov.Tensor(array, shared_memory=shared)

    def _results(self, request: Any) -> dict[str, NDArray[Any]]:
        arrays = {}
        for place, spec in zip(self._places, self.outputs, strict=True):
            tensor = request.get_output_tensor(place)
            data = tensor.data.view(onnx_types.BFLOAT16) if spec.dtype == onnx_types.BFLOAT16 else tensor.data
            arrays[spec.name] = np.array(data, copy=True)
        return arrays

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns OpenVINO's bare RuntimeError into ours."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            full = is_out_of_memory(error) or "allocate" in str(error)
            self._compile()  # after one failed run every later one of the same model fails (seen in 2026.4)
            raise (OutOfMemory if full else RunFailed)(
                f"{self.name}: running {self.source.name} failed: {reason(error)}"
            ) from error

    def _prepare(self, feeds: dict[str, NDArray[Any]], scope: Scope) -> Prepared:
        return _PreparedRequest(self, feeds, scope)

    def _close(self) -> None:
        del self._request, self._compiled


class _PreparedRequest(Prepared):
    """An infer request of its own; with scope ``device`` its input tensors are bound once and shared."""

    def __init__(self, runtime: OpenVINORuntime, feeds: dict[str, NDArray[Any]], scope: Scope) -> None:
        super().__init__(scope)
        self._runtime, self._feeds = runtime, feeds
        self._request = runtime._compiled.create_infer_request()
        self._host: dict[str, NDArray[Any]] = {}
        self._running = False
        with runtime._explained():
            runtime._bind(self._request, feeds, shared=True)
            self._request.start_async()
            self._request.wait()

    def _enqueue(self) -> None:
        self._synchronize()
        with self._runtime._explained():
            if self.scope == "end-to-end":
                self._runtime._bind(self._request, self._feeds, shared=False)
            self._request.start_async()
        self._running = True

    def _synchronize(self) -> None:
        if not self._running:
            return
        with self._runtime._explained():
            self._request.wait()
        self._running = False
        if self.scope == "end-to-end":
            self._host = self._runtime._results(self._request)

    def _outputs(self) -> dict[str, NDArray[Any]]:
        return {n: a.copy() for n, a in self._host.items()} if self._host else self._runtime._results(self._request)

    def _close(self) -> None:
        del self._request
