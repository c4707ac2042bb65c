"""Models for the tests of this folder, and what each runtime opens of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import tensorrt_family
from converters.tensorrt_family import EngineOptions
from resnet_onnx import workflow
from runtimes import onnx_gate, registry
from runtimes.base import Runtime
from runtimes.registry import open_runtime
from runtimes.spec import ModelSource, RuntimeOptions

DEVICE = "cuda:0"
GPU_RUNTIMES = ("torch", "ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx")
FAMILY = ("tensorrt", "tensorrt-rtx")


def available(name: str) -> str:
    """Returns `name`, or skips with the reason why that runtime can't run here."""
    answer = registry.probe(name, device=DEVICE)
    if not answer.available:
        pytest.skip(f"{name}: {answer.reason}")
    return name


class Networks:
    """Catalog networks with random weights, each resolved and exported once."""

    def __init__(self) -> None:
        self._models: dict[str, workflow.Model] = {}

    def model(self, name: str) -> workflow.Model:
        if name not in self._models:
            self._models[name] = workflow.resolve(workflow.Request(model=name))
        return self._models[name]

    def feeds(self, name: str, batch: int, seed: int = 0) -> Mapping[str, np.ndarray]:
        return workflow.sample_feeds(self.model(name), batch, seed=seed)

    def source(self, name: str, runtime: str, **build: Any) -> ModelSource:
        if runtime == "torch":
            return workflow.source(self.model(name), "torch")
        path = workflow.onnx_path(self.model(name))
        return source_of(path, runtime, **build)

    def open(self, name: str, runtime: str, **options: Any) -> Runtime:
        build = {"options": EngineOptions(cuda_graph=True)} if options.get("cuda_graph") and runtime in FAMILY else {}
        source = self.source(name, runtime, **build)
        return open_runtime(runtime, source, device=DEVICE, options=RuntimeOptions(**options))


def source_of(path: Path, runtime: str, **build: Any) -> ModelSource:
    """What a runtime opens of an ONNX file: the file, or an engine built from it."""
    onnx_gate.check_onnx(path)
    if runtime in FAMILY:
        return ModelSource(path=tensorrt_family.build_engine(path, library=runtime, device=DEVICE, **build).path)
    return ModelSource(path=path)
