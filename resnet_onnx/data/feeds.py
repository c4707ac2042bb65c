"""From pictures to the feeds of a model: the one input that takes them, and the array that goes into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.models.picture_tensor import arrange
from resnet_onnx.models.preprocessing import Layout, Preprocessing
from runtimes.errors import BadModel
from runtimes.spec import Feeds, TensorSpec

_LAYOUTS: tuple[tuple[Layout, int, int], ...] = (("NCHW", 1, 2), ("NHWC", 3, 1))
"""Layout, axis of its channels, and first of the two axes of its sides."""
_ELEMENTS = ("uint8", "float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True, kw_only=True)
class PictureInput:
    """The input of a model that takes RGB pictures.

    Attributes:
        spec: Its spec: bytes, which the model normalises itself, or floating point.
        layout: NCHW or NHWC.
        size: Side of the square picture, pixels; None where the model takes pictures of any height and width.
    """

    spec: TensorSpec
    layout: Layout
    size: int | None

    def feeds(self, pictures: NDArray[np.uint8], preprocessing: Preprocessing) -> Feeds:
        """Turns pictures, uint8 [batch, height, width, 3], RGB, resized and cropped, into the feeds of the model.

        They are normalised by `preprocessing` for a model that does not do so itself.
        """
        array = arrange(
            pictures,
            preprocessing.mean,
            preprocessing.std,
            layout=self.layout,
            channels="RGB",
            dtype=self.spec.dtype,
        )
        return {self.spec.name: array}


def find_picture_input(inputs: Sequence[TensorSpec]) -> PictureInput | None:
    """Returns the one input of a model that takes RGB pictures, or None where the model takes something else."""
    found = _picture_input(inputs)
    return None if isinstance(found, str) else found


def picture_input(inputs: Sequence[TensorSpec], model: str) -> PictureInput:
    """Returns the one input of a model that takes RGB pictures.

    Raises:
        BadModel: The model does not take RGB pictures; the message names `model` and the reason.
    """
    found = _picture_input(inputs)
    if isinstance(found, str):
        raise BadModel(f"{model}: {found}")
    return found


def with_channels(inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Returns the inputs of a model for RGB pictures with 3 in place of an open channel axis."""
    if len(inputs) == 1 and len(shape := inputs[0].shape) == 4 and 3 not in shape[1:] and isinstance(shape[1], str):
        return (replace(inputs[0], shape=(shape[0], 3, *shape[2:])),)
    return tuple(inputs)


def filled(pictures: NDArray[np.uint8], batch: int | None) -> NDArray[np.uint8]:
    """Repeats pictures, uint8 [n, height, width, 3], until they are as many as a model with a fixed batch takes.

    Values of the batch keep their range, so that what calibrates, or quantises as it runs, sees nothing new.
    """
    if batch is None or len(pictures) >= batch:
        return pictures
    return np.resize(pictures, (batch, *pictures.shape[1:]))


def _picture_input(inputs: Sequence[TensorSpec]) -> PictureInput | str:
    """Returns the input for pictures, or why there is none."""
    if len(inputs) != 1:
        return f"has {len(inputs)} inputs ({', '.join(map(str, inputs))}), expected one for pictures"
    spec = inputs[0]
    if len(spec.shape) != 4:
        return f"input {spec} is not a batch of pictures, expected four dimensions"
    if spec.dtype.name not in _ELEMENTS:
        return f"input {spec} is neither bytes nor floating point"
    coloured = [(layout, side) for layout, channels, side in _LAYOUTS if spec.shape[channels] == 3]
    for layout, side in coloured:
        fixed = {extent for extent in spec.shape[side : side + 2] if isinstance(extent, int)}
        if len(fixed) < 2:
            return PictureInput(spec=spec, layout=layout, size=next(iter(fixed), None))
    if coloured:
        return f"input {spec} does not take square pictures"
    return f"input {spec} has no axis of three colour channels"
