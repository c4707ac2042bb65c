"""Every runtime keeps the contract of ``runtimes.base``; those that can't run here skip with the probe's reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from runtimes.fake import FakeRuntime
from runtimes.ort import OrtCpuRuntime, OrtCudaRuntime, OrtTensorRTRuntime
from runtimes.ov import OpenVINORuntime
from runtimes.pytorch import TorchRuntime
from runtimes.reference import ReferenceRuntime
from runtimes.spec import ModelSource, TorchProgram
from runtimes.testing import CASES, Case, RuntimeContract
from runtimes.trt import TensorRTRTXRuntime, TensorRTRuntime


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
    sets_threads = False


class TestOrtCpu(RuntimeContract):
    runtime = OrtCpuRuntime


class TestOrtCuda(RuntimeContract):
    runtime = OrtCudaRuntime


class TestOrtTensorRT(RuntimeContract):
    runtime = OrtTensorRTRuntime


class TestOpenVINO(RuntimeContract):
    runtime = OpenVINORuntime


class TestTensorRT(RuntimeContract):
    runtime = TensorRTRuntime
    sets_threads = False


class TestTensorRTRTX(RuntimeContract):
    runtime = TensorRTRTXRuntime
    sets_threads = False
