"""Arrays in, arrays out, for any model: one interface over every runtime.

This package knows nothing of ResNets or of converters. Importing it loads no torch, ONNX Runtime, OpenVINO or
TensorRT; each loads when its runtime is opened.
"""

from runtimes.base import Prepared, Runtime
from runtimes.registry import RUNTIME_NAMES, open_runtime, open_target
from runtimes.spec import ModelSource, NodePlacement, RuntimeOptions, Target, TensorSpec

__all__ = [
    "RUNTIME_NAMES",
    "ModelSource",
    "NodePlacement",
    "Prepared",
    "Runtime",
    "RuntimeOptions",
    "Target",
    "TensorSpec",
    "open_runtime",
    "open_target",
]
