"""The model on ONNX Runtime, set as it was when it was measured."""

from __future__ import annotations

import itertools
import os
import queue
from collections.abc import Mapping
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read at the import; it would look up its maker's host

import onnxruntime as ort

ort.set_default_logger_severity(3)


class Engine:
    """The opened model; `settings` and `model` are those of ``bundle.json``."""

    def __init__(self, file: str, settings: Mapping[str, Any], model: Mapping[str, Any]) -> None:
        streams, recorded = settings["streams"], settings.get("recorded", {})
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = max(1, settings["threads"] // streams) if settings["threads"] else 0
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if settings["spin"] else "0")
        provider = recorded.get("provider", "CPUExecutionProvider")
        wanted = [(provider, recorded.get("provider_options", {}))]
        # Runs on one session of the CPU provider share its threads; CUDA's keeps a stream for each caller.
        count = min(streams, recorded.get("sessions", streams))
        sessions = [ort.InferenceSession(file, options, providers=wanted, enable_fallback=0) for _ in range(count)]
        if provider not in sessions[0].get_providers():
            raise RuntimeError(f"ONNX Runtime could not start {provider}")
        self._input, self._outputs = model["input"]["name"], [model["output"]["name"]]
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for session in itertools.islice(itertools.cycle(sessions), streams):
            self._free.put(session)

    def run(self, array: Any) -> Any:
        """Returns the scores, [picture, class]."""
        session = self._free.get()
        try:
            return session.run(self._outputs, {self._input: array})[0]
        finally:
            self._free.put(session)
