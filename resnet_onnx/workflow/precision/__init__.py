"""Changing a model's precision: calibrating on real pictures, choosing, and a gate that nothing lossy passes."""

from resnet_onnx.workflow.precision.comparison import Comparison
from resnet_onnx.workflow.precision.conversion import convert, default_output, export_half
from resnet_onnx.workflow.precision.lowered import build_lowered
from resnet_onnx.workflow.precision.wishes import PRECISIONS, Wishes

__all__ = ["PRECISIONS", "Comparison", "Wishes", "build_lowered", "convert", "default_output", "export_half"]
