"""The torch form of a model, with the inputs and outputs of its ONNX form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from resnet_onnx.models.network import Network
from resnet_onnx.workflow.feeds import batch_dimension, input_spec
from resnet_onnx.workflow.request import INPUT_NAME, OUTPUT_NAME, OnnxForm
from runtimes import onnx_types
from runtimes.spec import TensorSpec, TorchProgram

Dtype = Literal["float32", "float64", "float16", "bfloat16"]
Half = Literal["float16", "bfloat16"]


def torch_program(
    *,
    network: Network,
    form: OnnxForm,
    dtype: Dtype = "float32",
    names: tuple[str, str] = (INPUT_NAME, OUTPUT_NAME),
    taken: Half | None = None,
) -> TorchProgram:
    """Builds the torch form of a model with the inputs and outputs of its ONNX form: a factory for ``ModelSource``.

    It computes in `dtype`; `names` are those of input and output, `taken` the element type of both in the file, where
    those are half too.
    """
    module = wrapped(network, form, dtype)
    inputs = (input_spec(network.preprocessing, form, names[0]),)
    half = dtype in ("float16", "bfloat16")
    element = np.dtype("float32" if half else dtype)
    if taken is not None:
        kind = onnx_types.BFLOAT16 if taken == "bfloat16" else np.dtype(taken)
        inputs = (replace(inputs[0], dtype=kind),)
        element = kind if half else element
    outputs = (TensorSpec(names[1], element, (batch_dimension(form), network.config.num_classes)),)
    if half or (form.input == "float32" and (dtype == "float64" or taken is not None)):
        from converters.input_adapters import CastInside

        module = CastInside(module, float32_out=half and taken is None)
    return TorchProgram(module=module, inputs=inputs, outputs=outputs)


def whole_picture_program(*, network: Network, dtype: Dtype = "float32") -> TorchProgram:
    """Builds the torch form of a network for pictures of any height and width: a factory for ``ModelSource``.

    Its input is normalised float32 [batch, 3, height, width], whatever the ONNX form of the model takes; scores are
    averaged over the positions of a picture.
    """
    from resnet_onnx.models.vgg import VGG

    module = wrapped(network, OnnxForm(), dtype)
    if isinstance(module, VGG):  # its pooling would shrink any picture to the features of one position
        module = module.fully_convolutional().eval()
    if dtype in ("float16", "bfloat16"):
        from converters.input_adapters import CastInside

        module = CastInside(module, float32_out=True)
    element = np.dtype(np.float32)
    return TorchProgram(
        module=module,
        inputs=(TensorSpec(INPUT_NAME, element, ("batch", 3, "height", "width")),),
        outputs=(TensorSpec(OUTPUT_NAME, element, ("batch", network.config.num_classes)),),
    )


def wrapped(network: Network, form: OnnxForm, dtype: Dtype = "float32") -> Any:
    """Loads a network as a module in eval mode, with the normalisation in front of it where the form says so."""
    import torch

    module: Any = network.load().to(getattr(torch, dtype))
    if form.input == "uint8":
        from converters.input_adapters import Uint8Input

        preprocessing = network.preprocessing
        module = Uint8Input(module, preprocessing.mean, preprocessing.std, form.layout)
    return module.eval()
