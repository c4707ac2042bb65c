"""What goes into a model: the specs of its inputs, and pictures or seeded numbers as feeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.models.preprocessing import Layout, Preprocessing
from resnet_onnx.workflow.request import INPUT_NAME, Model, OnnxForm, need_network
from runtimes.errors import BadModel, UsageError
from runtimes.spec import Feeds, TensorSpec


@dataclass(frozen=True)
class PictureInput:
    """The input of a model that takes pictures.

    Attributes:
        spec: Its spec.
        layout: NCHW or NHWC.
        size: Side of the picture, or None where the model takes any.
    """

    spec: TensorSpec
    layout: Layout
    size: int | None


def picture_input(inputs: Sequence[TensorSpec]) -> PictureInput | None:
    """Returns the one input that takes RGB pictures, or None where the model takes something else."""
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].dtype.kind not in "fVu":
        return None
    spec = inputs[0]
    layouts: tuple[tuple[Layout, int, tuple[int, int]], ...] = (("NCHW", 1, (2, 3)), ("NHWC", 3, (1, 2)))
    for layout, channel, sides in layouts:
        if spec.shape[channel] == 3:
            height, width = (spec.shape[axis] for axis in sides)
            if isinstance(height, int) and isinstance(width, int):
                return PictureInput(spec, layout, height) if height == width else None
            return PictureInput(spec, layout, None)
    return None


def input_spec(preprocessing: Preprocessing, form: OnnxForm, name: str = INPUT_NAME) -> TensorSpec:
    """Returns the spec of the input that a network has in an ONNX form."""
    side = preprocessing.image_size
    shape = (3, side, side) if form.layout == "NCHW" else (side, side, 3)
    return TensorSpec(name, np.dtype(form.input), (batch_dimension(form), *shape))


def batch_dimension(form: OnnxForm) -> int | str:
    """Returns the first dimension of the input in an ONNX form: a number, or a name where it is open."""
    return form.batch or "batch"


def specs(model: Model) -> tuple[TensorSpec, ...]:
    """Returns the specs of the model's ONNX inputs, exported or not."""
    if model.inputs:
        return model.inputs
    return (input_spec(need_network(model).preprocessing, model.form),)


def feeds_of(model: Model, pictures: NDArray[np.uint8]) -> Feeds:
    """Turns prepared pictures into the model's input.

    Args:
        model: A model that takes pictures.
        pictures: uint8 [batch, height, width, 3], RGB, already of the model's size.

    Raises:
        UsageError: The model takes no pictures.
    """
    return picture_feeds(need_picture_input(model), need_preprocessing(model), pictures)


def picture_feeds(picture: PictureInput, preprocessing: Preprocessing, pictures: NDArray[np.uint8]) -> Feeds:
    """Turns prepared pictures, uint8 [batch, height, width, 3], into the one input of a model."""
    array: NDArray[Any]
    if picture.spec.dtype == np.uint8:
        array = pictures
        if picture.layout == "NCHW":
            array = pictures.transpose(0, 3, 1, 2)
    else:
        array = preprocessing.normalise(pictures)
        if picture.layout == "NHWC":
            array = array.transpose(0, 2, 3, 1)
        array = array.astype(picture.spec.dtype)
    return {picture.spec.name: np.ascontiguousarray(array)}


def sample_feeds(model: Model, batch: int, *, seed: int = 0) -> Feeds:
    """Returns feeds for a model when no data is named: crops of real photos, or seeded numbers for other inputs."""
    if picture_input(specs(model)) is not None and model.preprocessing is not None:
        from resnet_onnx.data.samples import sample_pictures

        return feeds_of(model, sample_pictures(batch, model.preprocessing, seed=seed))
    random = np.random.default_rng(seed)
    return {spec.name: _random_array(spec, batch, random, model.name) for spec in specs(model)}


def _random_array(spec: TensorSpec, batch: int, random: np.random.Generator, model: str) -> NDArray[Any]:
    first = spec.shape[0] if spec.shape else None
    shape = spec.concrete(**({first: batch} if isinstance(first, str) else {}))
    size = int(np.prod(shape, dtype=object)) * spec.dtype.itemsize
    if size > _available_memory():
        raise BadModel(
            f"{model}: input '{spec.name}' of shape {list(shape)} needs {size / 2**30:.1f} GiB, more than there is"
        )
    if spec.dtype.kind in "fV":
        return random.standard_normal(shape).astype(spec.dtype)
    if spec.dtype.kind == "b":
        return random.integers(0, 2, shape).astype(np.bool_)
    return random.integers(0, 2, shape).astype(spec.dtype)


def _available_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def need_preprocessing(model: Model) -> Preprocessing:
    """Returns how a model wants its pictures; raises ``UsageError`` where it takes none."""
    if model.preprocessing is None:
        raise _no_pictures(model)
    return model.preprocessing


def need_picture_input(model: Model) -> PictureInput:
    """Returns the input that takes a model's pictures; raises ``UsageError`` where there is none."""
    picture = picture_input(specs(model))
    if picture is None:
        raise _no_pictures(model)
    return picture


def _no_pictures(model: Model) -> UsageError:
    return UsageError(f"{model.name} takes no RGB pictures: its inputs are {', '.join(map(str, specs(model)))}")
