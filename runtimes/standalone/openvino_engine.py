"""The model on OpenVINO's CPU plugin, set as it was when it was measured."""

from __future__ import annotations

import os
import queue
from collections.abc import Mapping
from typing import Any

import openvino as ov

CORE = ov.Core()
"""Kept for the life of the process: freeing a core takes away a signal stack that a later signal needs (2026.4)."""


class Engine:
    """The opened model; `settings` and `model` are those of ``bundle.json``."""

    def __init__(self, file: str, settings: Mapping[str, Any], model: Mapping[str, Any]) -> None:
        streams = settings["streams"]
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": settings["precision_hint"] or "f32",  # without it, AMX computes float32 in bf16
            "INFERENCE_NUM_THREADS": max(settings["threads"] or os.cpu_count() or 1, streams),
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
            "NUM_STREAMS": streams,
        }
        compiled = CORE.compile_model(CORE.read_model(file), "CPU", config)
        self._place = model["output"]["place"]
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(streams):
            self._free.put(compiled.create_infer_request())

    def run(self, array: Any) -> Any:
        """Returns the scores, [picture, class]."""
        request = self._free.get()
        try:
            request.set_input_tensor(0, ov.Tensor(array, shared_memory=True))
            request.start_async()  # infer() on one thread loses the error of a failed run (2026.4)
            request.wait()
            return request.get_output_tensor(self._place).data.copy()
        finally:
            self._free.put(request)
