"""The torch form of a model, with the inputs and outputs of its ONNX form."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from resnet_onnx.models.network import Network
from resnet_onnx.workflow.feeds import batch_dimension, input_spec
from resnet_onnx.workflow.request import INPUT_NAME, OUTPUT_NAME, OnnxForm
from runtimes.spec import TensorSpec, TorchProgram

Dtype = Literal["float32", "float64", "float16", "bfloat16"]


def torch_program(
    *,
    network: Network,
    form: OnnxForm,
    dtype: Dtype = "float32",
    names: tuple[str, str] = (INPUT_NAME, OUTPUT_NAME),
) -> TorchProgram:
    """Builds the torch form of a model with the inputs and outputs of its ONNX form: a factory for ``ModelSource``."""
    module = wrapped(network, form, dtype)
    inputs = (input_spec(network.preprocessing, form, names[0]),)
    half = dtype in ("float16", "bfloat16")
    element = np.dtype("float32" if half else dtype)
    outputs = (TensorSpec(names[1], element, (batch_dimension(form), network.config.num_classes)),)
    if dtype == "float64" and form.input == "float32":
        from converters.input_adapters import WideInput

        module = WideInput(module)
    if half:
        from converters.input_adapters import HalfInside

        module = HalfInside(module)
    return TorchProgram(module=module, inputs=inputs, outputs=outputs)


def wrapped(network: Network, form: OnnxForm, dtype: Dtype = "float32") -> Any:
    """Loads a network as a module in eval mode, with the normalisation in front of it where the form says so."""
    import torch

    module: Any = network.load().to(getattr(torch, dtype))
    if form.input == "uint8":
        from converters.input_adapters import Uint8Input

        preprocessing = network.preprocessing
        module = Uint8Input(module, preprocessing.mean, preprocessing.std, form.layout)
    return module.eval()
