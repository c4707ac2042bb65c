"""The most arithmetic that the CPU's cores reach here: the best of products and convolutions, by each library.

No library is the fastest on every CPU, and no shape: on one AMD machine the convolutions of ResNet-50 ran at 109 to
115 % of what large products reached. So both are measured, in the precisions and by the libraries that can do them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.bench.clock import Watch
from resnet_onnx.results.document import Peaks
from runtimes import files
from runtimes.base import Prepared
from runtimes.environment import cpu_flags, highest_mhz
from runtimes.errors import ToolkitError

SECONDS_EACH = 0.1
"""Of a kernel; the least time of a run counts."""

_SLOW_S = 0.5
"""A kernel whose first run takes longer is none that a library does fast: it is not repeated."""

_COPY_BYTES = 2**27
_DISTURBED = 0.05
"""Share of the cores that others may use while a peak is measured; beyond it the peak counts as disturbed."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A product of two matrices, or a convolution, whose arithmetic is measured.

    Attributes:
        side: Of the square matrices, or of the picture.
        channels: Into and out of a convolution; None is a product.
        window: Side of the convolution's window.
        batch: Pictures of the convolution.
    """

    side: int
    channels: tuple[int, int] | None = None
    window: int = 1
    batch: int = 8

    def __str__(self) -> str:
        if self.channels is None:
            return f"product of {self.side:,}"
        taken, made = self.channels
        return f"convolution {self.window}×{self.window}, {taken} to {made} channels on {self.side}×{self.side}"

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the input and of the weights."""
        if self.channels is None:
            return (self.side, self.side), (self.side, self.side)
        taken, made = self.channels
        return (self.batch, taken, self.side, self.side), (made, taken, self.window, self.window)

    @property
    def operations(self) -> int:
        """Additions and multiplications of a run, by the definition."""
        if self.channels is None:
            return 2 * self.side**3
        return 2 * self.batch * self.side**2 * int(np.prod(self.shapes[1]))


KERNELS = (
    Kernel(side=1024),
    Kernel(side=2048),
    Kernel(side=56, channels=(256, 64)),
    Kernel(side=56, channels=(64, 64), window=3),
    Kernel(side=14, channels=(1024, 256)),
    Kernel(side=14, channels=(256, 256), window=3),
    Kernel(side=7, channels=(512, 512), window=3),
)
"""Products far beyond any cache and within it, and convolutions of ResNet-50 (arXiv:1512.03385, table 1)."""


def measure_peaks(threads: int) -> Peaks:
    """Measures the peaks in this process: the best of all kernels and libraries, and of several large copies."""
    import torch

    torch.set_num_threads(threads)
    watch = Watch()
    best: dict[str, tuple[float, str]] = {}
    for precision, rate, how in (*_torch_rates(), *_onnx_rates("fp32", threads), *_onnx_rates("int8", threads)):
        if rate > best.get(precision, (0.0, ""))[0]:
            best[precision] = rate, how
    source = torch.zeros(_COPY_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    bandwidth = 2 * _COPY_BYTES / _best(lambda: target.copy_(source)) / 1e9
    limits = arithmetic_limits(cpu_flags(), highest_mhz(), threads)
    return Peaks(
        gflops={precision: rate for precision, (rate, _) in best.items()},
        bandwidth_gbs=bandwidth,
        threads=threads,
        measured_at=time.time(),
        undisturbed=watch.stop().others_share <= _DISTURBED,
        measured_with={precision: how for precision, (_, how) in best.items()},
        arithmetic_gflops=limits,
    )


def _torch_rates() -> Iterator[tuple[str, float, str]]:
    """Yields precision, billions of operations per second, and what reached them."""
    import torch

    with torch.inference_mode():
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            for kernel in KERNELS:
                given, weights = (torch.randn(shape).to(dtype) for shape in kernel.shapes)
                pad = kernel.window // 2

                def run(
                    x: Any = given, w: Any = weights, pad: int = pad, product: bool = kernel.channels is None
                ) -> None:
                    torch.mm(x, w) if product else torch.nn.functional.conv2d(x, w, padding=pad)

                yield precision, kernel.operations / _best(run) / 1e9, f"torch, {kernel}"
        largest = KERNELS[1]
        left, right = (torch.randint(-127, 128, shape, dtype=torch.int8) for shape in largest.shapes)
        try:
            yield "int8", largest.operations / _best(lambda: torch._int_mm(left, right)) / 1e9, f"torch, {largest}"
        except (RuntimeError, NotImplementedError, AttributeError):
            return  # a private function of torch's, and not on every CPU


def _onnx_rates(precision: str, threads: int) -> Iterator[tuple[str, float, str]]:
    """Yields the same for the runtimes that open ONNX files on the CPU."""
    from runtimes.registry import conversion_runtimes, open_runtime, probe
    from runtimes.spec import ModelSource, RuntimeOptions

    available = [name for name in conversion_runtimes(precision) if probe(name).available]
    with tempfile.TemporaryDirectory() as folder:
        for index, kernel in enumerate(KERNELS):
            path = Path(folder) / f"{index}.onnx"
            files.write_bytes(path, kernel_model(kernel, precision))
            feeds = {"x": _numbers(kernel.shapes[0], precision)}
            for name in available:
                try:
                    with (
                        open_runtime(name, ModelSource(path=path), options=RuntimeOptions(threads=threads)) as runtime,
                        runtime.prepare(feeds) as prepared,
                    ):

                        def run(prepared: Prepared = prepared) -> None:
                            prepared.enqueue()
                            prepared.synchronize()

                        yield precision, kernel.operations / _best(run) / 1e9, f"{name}, {kernel}"
                except ToolkitError:
                    continue  # it has no such kernel on this CPU


def _numbers(shape: tuple[int, ...], precision: str) -> NDArray[Any]:
    if precision == "int8":
        return np.resize(np.arange(256, dtype=np.uint8), shape)
    return np.resize(np.linspace(-1, 1, 997, dtype=np.float32), shape)


def kernel_model(kernel: Kernel, precision: str) -> bytes:
    """Returns an ONNX model of a kernel; in int8 of unsigned inputs, signed weights and unsigned outputs."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    given, weights = kernel.shapes
    pads = [kernel.window // 2] * 4
    made = given if kernel.channels is None else (given[0], weights[0], *given[2:])
    quantised = precision == "int8"
    names = ["x_real", "w_real", "y_real"] if quantised else ["x", "w", "y"]
    work = (
        helper.make_node("MatMul", names[:2], names[2:])
        if kernel.channels is None
        else helper.make_node("Conv", names[:2], names[2:], pads=pads)
    )
    constants: dict[str, Any] = {"w": _numbers(weights, "fp32")}
    nodes = [work]
    if quantised:
        constants = {
            "one": np.float32(1), "wide": np.float32(2**20), "unsigned": np.uint8(0), "signed": np.int8(0),
            "w": np.resize(np.arange(-127, 128, dtype=np.int8), weights),
        }  # fmt: skip
        nodes = [
            helper.make_node("DequantizeLinear", ["x", "one", "unsigned"], ["x_real"]),
            helper.make_node("DequantizeLinear", ["w", "one", "signed"], ["w_real"]),
            work,
            helper.make_node("QuantizeLinear", ["y_real", "wide", "unsigned"], ["y"]),
        ]
    kind = TensorProto.UINT8 if quantised else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "kernel",
        [helper.make_tensor_value_info("x", kind, given)],
        [helper.make_tensor_value_info("y", kind, made)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def _best(function: Callable[[], object]) -> float:
    """Returns the shortest of the times that fit into ``SECONDS_EACH``, three at least unless they are very long."""
    times: list[float] = []
    end = time.perf_counter() + SECONDS_EACH
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
        if times[0] > _SLOW_S:
            break
    return min(times)


# ---- the limit of arithmetic -----------------------------------------------------------------------------------------

_VECTOR_OPERATIONS: tuple[tuple[str, int], ...] = (("avx512f", 64), ("avx2", 32))
"""fp32 operations a cycle and core by the widest instruction set: two fused multiply-adds of 16 or 8 numbers, two
operations each (Intel 64 and IA-32 Architectures Optimization Reference Manual, sections 2.1 to 2.6; some processors
have one such unit, so that this is an upper limit)."""

_NARROW: tuple[tuple[str, str, int, int], ...] = (
    ("bf16", "amx_bf16", 1024, 0),
    ("bf16", "avx512_bf16", 0, 2),
    ("int8", "amx_int8", 2048, 0),
    ("int8", "avx512_vnni", 0, 4),
    ("int8", "avx_vnni", 0, 4),
)
"""Precision, instruction set, operations a cycle, or times as many as in fp32; the first that is there counts."""


def arithmetic_limits(flags: frozenset[str], highest_mhz: float | None, cores: int) -> Mapping[str, float] | None:
    """Returns cores × operations a cycle × clock by precision, billions of operations per second.

    Returns:
        None where the processor tells no highest clock, or has none of the instruction sets that are known here.
    """
    wide = next((operations for flag, operations in _VECTOR_OPERATIONS if flag in flags), None)
    if wide is None or not highest_mhz:
        return None
    cycle = {"fp32": wide}
    for precision, flag, operations, times in _NARROW:
        if flag in flags:
            cycle.setdefault(precision, operations or times * wide)
    return {precision: cores * operations * highest_mhz / 1000 for precision, operations in cycle.items()}
