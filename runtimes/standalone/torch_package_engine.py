"""The model as code that TorchInductor compiled ahead of time, for the processor that it was made for."""

from __future__ import annotations

import os
import queue
from collections.abc import Mapping
from typing import Any

import torch
from torch._inductor.package.package import load_package


class Engine:
    """The opened model; `settings` and `model` are those of ``bundle.json``."""

    def __init__(self, file: str, settings: Mapping[str, Any], model: Mapping[str, Any]) -> None:
        streams, device = settings["streams"], settings["device"]
        torch.set_num_threads(max(1, (settings["threads"] or os.cpu_count() or 1) // streams))
        self._device = torch.device(device)
        self._channels_last = settings["recorded"]["memory_format"] == "channels_last"
        batches = settings["recorded"]["batches"]
        names = {None: "model"} if batches == "any" else {batch: f"batch_{batch}" for batch in batches}
        index = -1 if device == "cpu" else int(device.partition(":")[2])
        self._programs = {
            batch: load_package(file, name, num_runners=streams, device_index=index) for batch, name in names.items()
        }
        self._place = model["output"]["place"]
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(streams):
            self._free.put(None)

    def run(self, array: Any) -> Any:
        """Returns the scores, [picture, class]."""
        self._free.get()
        try:
            program = self._programs.get(None) or self._programs[len(array)]
            pictures = torch.from_numpy(array).to(self._device)
            if self._channels_last:
                pictures = pictures.contiguous(memory_format=torch.channels_last)
            with torch.inference_mode():
                outputs = program(pictures)
            scores = outputs[self._place] if isinstance(outputs, tuple | list) else outputs
            return scores.float().cpu().numpy()
        finally:
            self._free.put(None)
