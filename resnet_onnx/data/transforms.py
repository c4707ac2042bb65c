"""From a decoded picture to the network's square or squares: shorter side resized with antialiasing, then crops."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.models.picture_tensor import resize
from resnet_onnx.models.preprocessing import Preprocessing

Crops = Literal[1, 10]
"""How many crops of a picture are looked at: its centre, or four corners and the centre with their mirror images."""

CENTRE = 4
"""Which of the ten crops is the one that ``prepare`` makes."""


def prepare(picture: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resizes and crops one picture.

    The rule is torchvision's (``Resize(resize, antialias=True)``, ``CenterCrop(image_size)``), so that published
    accuracies apply. A picture that has the target size already goes through untouched.

    Returns:
        uint8 [image_size, image_size, 3], contiguous, of uint8 [height, width, 3], RGB, any size.
    """
    return resize(picture, preprocessing.resize, preprocessing.interpolation, preprocessing.image_size)


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
    resized = resize(picture, preprocessing.resize, preprocessing.interpolation)
    bottom, right = resized.shape[0] - size, resized.shape[1] - size
    corners = [resized[y : y + size, x : x + size] for y in (0, bottom) for x in (0, right)]
    five = np.stack([*corners, prepare(resized, preprocessing)])
    return np.concatenate([five, five[:, :, ::-1]])
