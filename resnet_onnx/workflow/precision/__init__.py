"""Changing a model's precision: calibration on real pictures, choices, and a gate that nothing lossy passes."""

from resnet_onnx.workflow.precision.comparison import Comparison
from resnet_onnx.workflow.precision.config import ConversionConfig
from resnet_onnx.workflow.precision.converting import convert, default_output, export_half
from resnet_onnx.workflow.precision.lowered import build_lowered

__all__ = ["Comparison", "ConversionConfig", "build_lowered", "convert", "default_output", "export_half"]
