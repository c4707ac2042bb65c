"""What goes into a model: the specs of its inputs, and pictures or seeded numbers as feeds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.data.feeds import PictureInput, find_picture_input, picture_input
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.workflow.request import INPUT_NAME, Model, OnnxForm, need_network
from runtimes.errors import BadModel, UsageError
from runtimes.spec import Feeds, TensorSpec


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


def takes_pictures(model: Model) -> bool:
    """Returns whether a model takes RGB pictures."""
    return find_picture_input(specs(model)) is not None and model.preprocessing is not None


def feeds_of(model: Model, pictures: NDArray[np.uint8]) -> Feeds:
    """Turns prepared pictures, uint8 [batch, height, width, 3], RGB, of the model's size, into its input."""
    return need_picture_input(model).feeds(pictures, need_preprocessing(model))


def sample_feeds(model: Model, batch: int, *, seed: int = 0) -> Feeds:
    """Returns feeds for a model when no data is named: crops of real photos, or seeded numbers for other inputs."""
    if takes_pictures(model) and model.preprocessing is not None:
        from resnet_onnx.data.samples import sample_pictures

        return feeds_of(model, sample_pictures(batch, model.preprocessing, seed=seed))
    random = np.random.default_rng(seed)
    return {spec.name: _random_array(spec, batch, random, model.name) for spec in specs(model)}


def _random_array(spec: TensorSpec, batch: int, random: np.random.Generator, model: str) -> NDArray[Any]:
    import psutil

    first = spec.shape[0] if spec.shape else None
    shape = spec.concrete(**({first: batch} if isinstance(first, str) else {}))
    size = int(np.prod(shape, dtype=object)) * spec.dtype.itemsize
    if size > psutil.virtual_memory().available:
        raise BadModel(
            f"{model}: input '{spec.name}' of shape {list(shape)} needs {size / 2**30:.1f} GiB, more than there is"
        )
    if spec.dtype.kind in "fV":
        return random.standard_normal(shape).astype(spec.dtype)
    return random.integers(0, 2, shape).astype(spec.dtype)


def need_preprocessing(model: Model) -> Preprocessing:
    """Returns how a model wants its pictures; raises ``UsageError`` where it takes none."""
    if model.preprocessing is None:
        need_picture_input(model)  # names the reason
        raise UsageError(f"{model.name} does not take RGB pictures")
    return model.preprocessing


def need_picture_input(model: Model) -> PictureInput:
    """Returns the input that takes a model's pictures; raises ``UsageError`` where there is none."""
    try:
        return picture_input(specs(model), model.name)
    except BadModel as error:
        raise UsageError(error.message) from error
