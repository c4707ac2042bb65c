"""Every runtime keeps the contract of ``runtimes.base``; those that can't run here skip with the probe's reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from support.onnx_models import small_conv

from converters.tensorrt_family import build_engine
from runtimes import trt_shim
from runtimes.base import Runtime
from runtimes.engines import Engine, described_specs, load_engine
from runtimes.fake import FakeRuntime
from runtimes.ort import OrtCpuRuntime, OrtCudaRuntime, OrtTensorRTRuntime
from runtimes.ov import OpenVINORuntime
from runtimes.pytorch import TorchRuntime
from runtimes.reference import ReferenceRuntime
from runtimes.spec import ModelSource, ShapeRange, TensorSpec, TorchProgram
from runtimes.testing import BATCHES, CASES, Case, RuntimeContract
from runtimes.trt import TensorRTRTXRuntime, TensorRTRuntime

ROOT = Path(__file__).resolve().parent.parent


class TestFake(RuntimeContract):
    runtime = FakeRuntime

    def source(self, case: Case, folder: Path) -> ModelSource:
        return ModelSource(factory="runtimes.testing:fake_program", arguments={"case": case.name}, label=case.name)


class _Function(torch.nn.Module):
    """The cases in torch; the buffer is what ``passing`` keeps."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.name = case.name
        for name, array in case.constants.items():
            self.register_buffer(name, torch.from_numpy(array.copy()))

    def forward(self, *x: torch.Tensor) -> Any:
        return {
            "convolution": lambda: torch.nn.functional.conv2d(x[0], self.weight, self.bias),
            "several": lambda: (x[0] + x[1], x[0] - x[1]),
            "fixed": lambda: x[0] * x[0],
            "integers": lambda: x[0] + x[0],
            "bytes": lambda: x[0].float() * self.scale,
            "half": lambda: x[0] + x[0],
            "scalars": lambda: (x[0] * x[1], (x[0] * x[1]).sum()),
            "passing": lambda: [x[0], self.stored],
            "fragile": lambda: x[0] @ x[1],
        }[self.name]()


def torch_program(case: str) -> TorchProgram:
    chosen = CASES[case]
    return TorchProgram(module=_Function(chosen), inputs=chosen.inputs, outputs=chosen.outputs)


class TestTorch(RuntimeContract):
    runtime = TorchRuntime

    def source(self, case: Case, folder: Path) -> ModelSource:
        return ModelSource(factory=f"{__name__}:torch_program", arguments={"case": case.name}, label=case.name)


class TestTorchCuda(TestTorch):
    device = "cuda"


class TestReference(RuntimeContract):
    runtime = ReferenceRuntime


class TestOrtCpu(RuntimeContract):
    runtime = OrtCpuRuntime


class TestOrtCuda(RuntimeContract):
    runtime = OrtCudaRuntime


class TestOrtTensorRT(RuntimeContract):
    runtime = OrtTensorRTRuntime


class TestOpenVINO(RuntimeContract):
    runtime = OpenVINORuntime


def engine(case: Case, folder: Path, library: trt_shim.LibraryName, target: str | None = None) -> Engine:
    """Builds the engine of a case, for every extent that the suite gives it."""
    profile = {spec.name: ShapeRange(*(_extents(spec, n) for n in (1, 8, max(BATCHES)))) for spec in case.inputs}
    return build_engine(case.write(folder), library=library, shapes=profile, target=target)


def _extents(spec: TensorSpec, extent: int) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else extent for d in spec.shape)


class TestTensorRT(RuntimeContract):
    runtime: ClassVar[type[Runtime]] = TensorRTRuntime
    library: ClassVar[trt_shim.LibraryName] = "tensorrt"

    def source(self, case: Case, folder: Path) -> ModelSource:
        return ModelSource(path=engine(case, folder, self.library).path, label=case.name)


class TestTensorRTRTX(TestTensorRT):
    runtime = TensorRTRTXRuntime
    library = "tensorrt-rtx"


@pytest.mark.parametrize("case", CASES)
def test_every_case_is_an_engine_too(case: str, tmp_path: Path) -> None:
    """Without a GPU the engines of the suite are built and their records read back, if not executed."""
    if trt_shim.installed_version("tensorrt-rtx") is None:
        pytest.skip("TensorRT-RTX is not installed (pip install 'resnet-onnx[tensorrt-rtx]')")
    built = engine(CASES[case], tmp_path, "tensorrt-rtx", target="sm86")
    plan, record = load_engine(built.path, trust=False)
    assert len(plan) == built.size_bytes > 0
    assert record is not None
    inputs, outputs = described_specs(record)
    assert inputs == CASES[case].inputs
    assert [(spec.name, spec.dtype) for spec in outputs] == [(spec.name, spec.dtype) for spec in CASES[case].outputs]


SIGNALS = """
import faulthandler, signal, sys, threading
from pathlib import Path
from runtimes import ModelSource, open_runtime

faulthandler.enable()
source = ModelSource(path=Path(sys.argv[1]))
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
first, second = open_runtime("openvino", source), open_runtime("openvino", source)
first.close(); del first                     # in the order of opening
thread = threading.Thread(target=second.close)  # and elsewhere
thread.start(); thread.join(); del second
for _ in range(3):
    signal.raise_signal(signal.SIGUSR1)
print(len(seen))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signal stacks are POSIX")
def test_a_signal_after_openvino_was_closed_does_not_kill_the_program(tmp_path: Path) -> None:
    path = small_conv(tmp_path / "m.onnx")
    done = subprocess.run([sys.executable, "-c", SIGNALS, str(path)], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
