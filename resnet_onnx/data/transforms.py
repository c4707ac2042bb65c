"""From a decoded picture to the network's square or squares: shorter side resized with antialiasing, then crops."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.models.preprocessing import Preprocessing

Crops = Literal[1, 10]
"""How many crops of a picture are looked at: its centre, or four corners and the centre with their mirror images."""

CENTRE = 4
"""Which of the ten crops is the one that ``prepare`` makes."""

_MAX_ASPECT = 8
"""Longest side over shortest that is resized whole; a longer strip loses its ends first, which the crop would drop."""


def prepare(picture: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resizes and crops one picture.

    The rule is torchvision's (``Resize(resize, antialias=True)``, ``CenterCrop(image_size)``), so that published
    accuracies apply. A picture that has the target size already goes through untouched.

    Returns:
        uint8 [image_size, image_size, 3], contiguous, of uint8 [height, width, 3], RGB, any size.
    """
    return _centre_crop(whole(picture, preprocessing.resize, preprocessing.interpolation), preprocessing.image_size)


def ten_crops(picture: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resizes one picture and cuts its four corners and its centre out of it, and mirrors them.

    The ten crops are those of Krizhevsky, Sutskever and Hinton (2012), section 4.1, which arXiv:1512.03385 cites, but
    cut from the whole resized picture, as torchvision's ``TenCrop`` and fb.resnet.torch do, where that paper cut them
    from its central square. `picture` is as for ``prepare``.

    Returns:
        uint8 [10, image_size, image_size, 3]: top left, top right, bottom left, bottom right, centre, and the same
        mirrored left to right.
    """
    size = preprocessing.image_size
    resized = whole(picture, preprocessing.resize, preprocessing.interpolation)
    bottom, right = resized.shape[0] - size, resized.shape[1] - size
    corners = [resized[y : y + size, x : x + size] for y in (0, bottom) for x in (0, right)]
    five = np.stack([*corners, _centre_crop(resized, size)])
    return np.concatenate([five, five[:, :, ::-1]])


def whole(
    picture: NDArray[np.uint8], shorter_side: int, interpolation: Literal["bilinear", "bicubic"]
) -> NDArray[np.uint8]:
    """Resizes one picture and crops nothing, but for the ends of a strip that is longer than eight times its width.

    Returns:
        uint8 [height, width, 3], of `shorter_side` pixels; `picture` itself where it is a square of that size already.
    """
    height, width = picture.shape[:2]
    if height == width == shorter_side:
        return picture
    longest = _MAX_ASPECT * min(height, width)
    if max(height, width) > longest:
        top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
        picture = picture[top : top + longest, left : left + longest]

    import torch
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    tensor = torch.from_numpy(_writable(picture)).permute(2, 0, 1)
    resized = F.resize(tensor, [shorter_side], interpolation=InterpolationMode(interpolation), antialias=True)
    pixels: NDArray[np.uint8] = resized.permute(1, 2, 0).numpy()
    return pixels


def _writable(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Torch warns of arrays that it could not write to, and refuses negative strides."""
    return picture if picture.flags.writeable and min(picture.strides) >= 0 else picture.copy()


def _centre_crop(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)  # torchvision's rounding, half to even
    return np.ascontiguousarray(picture[top : top + size, left : left + size])
