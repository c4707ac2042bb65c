"""Arrays in, arrays out, for any model: one interface over every runtime.

This package knows nothing of ResNets or of converters. Importing it loads no torch, ONNX Runtime, OpenVINO or
TensorRT; each loads when its runtime is opened.
"""

from runtimes.base import Prepared, Runtime
from runtimes.registry import open_runtime, open_target, runtime_names
from runtimes.spec import ModelSource, NodePlacement, RuntimeOptions, Target, TensorSpec

__all__ = [
    "ModelSource",
    "NodePlacement",
    "Prepared",
    "Runtime",
    "RuntimeOptions",
    "Target",
    "TensorSpec",
    "open_runtime",
    "open_target",
    "runtime_names",
]
