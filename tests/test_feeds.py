"""From picture to feed: one rule for what takes pictures, in which layout, and for what goes in."""

from __future__ import annotations

import numpy as np
import pytest

from resnet_onnx.data.feeds import filled, find_picture_input, picture_input, with_channels
from resnet_onnx.models.preprocessing import Preprocessing
from runtimes.errors import BadModel
from runtimes.onnx_types import BFLOAT16
from runtimes.spec import Dimension, TensorSpec

SMALL = Preprocessing(image_size=8, resize=8, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
PICTURES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


def spec(shape: tuple[Dimension, ...], dtype: object = np.float32) -> TensorSpec:
    return TensorSpec("pixels", np.dtype(dtype), shape)  # type: ignore[call-overload]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float16, BFLOAT16, np.float64])
@pytest.mark.parametrize("shape", [("n", 3, 8, 8), ("n", 8, 8, 3), (5, 3, "h", "w"), (5, "h", "w", 3)])
def test_pictures_arrive_in_the_layout_and_the_elements_of_the_input(
    shape: tuple[Dimension, ...], dtype: object
) -> None:
    found = picture_input([spec(shape, dtype)], "mine")
    ((name, array),) = found.feeds(PICTURES, SMALL).items()
    assert (name, array.dtype, array.flags.c_contiguous) == ("pixels", np.dtype(dtype), True)  # type: ignore[call-overload]
    first = PICTURES.transpose(0, 3, 1, 2) if dtype is np.uint8 else SMALL.normalise(PICTURES)
    expected = first if shape[1] == 3 else first.transpose(0, 2, 3, 1)
    assert np.array_equal(array, expected.astype(dtype))
    assert array.shape == ((5, 3, 8, 8) if shape[1] == 3 else (5, 8, 8, 3))


@pytest.mark.parametrize(
    ("shape", "layout", "size"),
    [
        (("n", 3, 224, 224), "NCHW", 224),
        (("n", 224, 224, 3), "NHWC", 224),
        ((8, 3, "h", "w"), "NCHW", None),
        (("n", 3, 224, "w"), "NCHW", 224),
        (("n", 3, 3, 3), "NCHW", 3),
    ],
)
def test_layout_and_size_are_told_by_the_shape(shape: tuple[Dimension, ...], layout: str, size: int | None) -> None:
    found = picture_input([spec(shape)], "mine")
    assert (found.layout, found.size) == (layout, size)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ([], "has 0 inputs"),
        ([spec(("n", 3, 8, 8)), spec(("n",))], r"has 2 inputs \(pixels: .*\), expected one for pictures"),
        ([spec(("n", 192))], "is not a batch of pictures, expected four dimensions"),
        ([spec(("n", 3, 8, 8), np.int64)], "neither bytes nor floating point"),
        ([spec(("n", 1, 8, 8))], "no axis of three colour channels"),
        ([spec(("n", "c", 8, 8))], "no axis of three colour channels"),
        ([spec(("n", 3, 8, 16))], "does not take square pictures"),
    ],
)
def test_what_is_not_a_model_of_pictures_is_said(inputs: list[TensorSpec], reason: str) -> None:
    assert find_picture_input(inputs) is None
    with pytest.raises(BadModel, match=f"^mine: .*{reason}"):
        picture_input(inputs, "mine")


def test_an_open_channel_axis_of_pictures_is_3() -> None:
    assert with_channels([spec(("n", "c", "h", "w"))]) == (spec(("n", 3, "h", "w")),)
    assert with_channels([spec((3, "c", 8, 8))]) == (spec((3, 3, 8, 8)),)
    for given in (
        [],
        [spec(("n", "h", "w", 3))],
        [spec(("n", 1, 8, 8))],
        [spec(("n", "c"))],
        [spec(("n", "c", 8, 8))] * 2,
    ):
        assert with_channels(given) == tuple(given)


def test_a_fixed_batch_is_filled_with_the_pictures_themselves() -> None:
    assert np.array_equal(filled(PICTURES, 12), PICTURES[[0, 1, 2, 3, 4] * 2 + [0, 1]])
    for batch in (None, 3, 5):
        assert filled(PICTURES, batch) is PICTURES
