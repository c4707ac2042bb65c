"""From a decoded picture to the network's square: shorter side resized with antialiasing, then a centre crop."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.models.preprocessing import Preprocessing

_MAX_ASPECT = 8
"""Longest side over shortest that is resized whole; a longer strip loses its ends first, which the crop would drop."""


def prepare(picture: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resizes and crops one picture.

    The rule is torchvision's (``Resize(resize, antialias=True)``, ``CenterCrop(image_size)``), so that published
    accuracies apply. A picture that has the target size already goes through untouched.

    Args:
        picture: uint8 [height, width, 3], RGB, any size.
        preprocessing: The model's sizes and filter.

    Returns:
        uint8 [image_size, image_size, 3], contiguous.
    """
    size, resize = preprocessing.image_size, preprocessing.resize
    height, width = picture.shape[:2]
    if height == width == resize:
        return _centre_crop(picture, size)
    longest = _MAX_ASPECT * min(height, width)
    if max(height, width) > longest:
        top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
        picture = picture[top : top + longest, left : left + longest]

    import torch
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    tensor = torch.from_numpy(_writable(picture)).permute(2, 0, 1)
    resized = F.resize(tensor, [resize], interpolation=InterpolationMode(preprocessing.interpolation), antialias=True)
    return _centre_crop(resized.permute(1, 2, 0).numpy(), size)


def _writable(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Torch warns of arrays that it could not write to, and refuses negative strides."""
    return picture if picture.flags.writeable and min(picture.strides) >= 0 else picture.copy()


def _centre_crop(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)  # torchvision's rounding, half to even
    return np.ascontiguousarray(picture[top : top + size, left : left + size])
