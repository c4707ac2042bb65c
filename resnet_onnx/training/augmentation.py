"""Random changes to pictures: on a whole batch of bytes, or the crop of one large picture while it is loaded."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from numpy.typing import NDArray

from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.training.recipes import Recipe

ASPECT_RATIOS = (3 / 4, 4 / 3)
"""Bounds of a random resized crop's aspect ratio: arXiv:1409.4842, section 6."""
CROP_TRIES = 10
"""Boxes that are tried before the centre is taken; torchvision's published constant."""


def seed_for(seed: int, *path: object) -> int:
    """Returns a 63-bit seed for one purpose (``seed_for(0, "order", epoch)``); unlike ``seed + epoch`` none collide."""
    digest = hashlib.sha256("/".join(str(part) for part in (seed, *path)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def augment(pictures: torch.Tensor, recipe: Recipe, fill: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pads and crops, and flips, each picture of a batch by its own random numbers.

    Args:
        pictures: uint8 [batch, channel, height, width].
        recipe: Says what is done.
        fill: uint8 [channel], the colour that is padded with.
        generator: On the CPU; drawn from in the same way whatever the device.

    Returns:
        uint8 [batch, channel, height, width] on the same device.
    """
    count, channels, height, width = pictures.shape
    if recipe.crop == "pad":
        pad = recipe.pad
        top, left = torch.randint(0, 2 * pad + 1, (2, count), generator=generator).to(pictures.device)
        padded = fill.view(1, channels, 1, 1).expand(count, channels, height + 2 * pad, width + 2 * pad).clone()
        padded[:, :, pad : pad + height, pad : pad + width] = pictures
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: [batch, channel, top, left, height, width]
        pictures = windows[torch.arange(count, device=pictures.device), :, top, left]
    if recipe.flip:
        mirrored = (torch.rand(count, generator=generator) < 0.5).to(pictures.device)
        pictures = torch.where(mirrored.view(-1, 1, 1, 1), pictures.flip(3), pictures)
    return pictures


class Normaliser:
    """``Preprocessing.normalise`` for tensors: bytes to the network's range, on the batch's own device."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        mean, std = np.asarray(preprocessing.mean), np.asarray(preprocessing.std)
        self._scale = torch.tensor(1.0 / (255.0 * std), dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self._offset = torch.tensor(-mean / std, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self.mean_colour = torch.tensor(np.rint(mean * 255).clip(0, 255), dtype=torch.uint8, device=device)

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """Returns float32 of the same shape as the uint8 [batch, channel, height, width] given."""
        return pictures.to(torch.float32).mul_(self._scale).add_(self._offset)


def random_resized_crop(
    picture: NDArray[np.uint8], preprocessing: Preprocessing, smallest_area: float, seed: int
) -> torch.Tensor:
    """Cuts a random box out of a picture and scales it to the network's size (arXiv:1409.4842, section 6).

    Args:
        picture: uint8 [height, width, 3].
        preprocessing: Gives the size and the filter.
        smallest_area: Least share of the picture's area that the box covers.
        seed: Decides the box.

    Returns:
        uint8 [3, size, size].
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    height, width = picture.shape[:2]
    top, left, box_height, box_width = _random_box(height, width, smallest_area, np.random.default_rng(seed))
    cropped: torch.Tensor = functional.resized_crop(
        torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))),
        top,
        left,
        box_height,
        box_width,
        [preprocessing.image_size, preprocessing.image_size],
        InterpolationMode(preprocessing.interpolation),
        antialias=True,
    )
    return cropped


def _random_box(height: int, width: int, smallest_area: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Returns top, left, height and width in pixels."""
    low, high = ASPECT_RATIOS
    for _ in range(CROP_TRIES):
        area = height * width * rng.uniform(smallest_area, 1.0)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
            return int(top), int(left), box_height, box_width
    box_width = min(width, max(1, round(height * high)))
    box_height = min(height, max(1, round(width / low)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def pad_colour(recipe: Recipe, normaliser: Normaliser) -> torch.Tensor:
    """Returns the uint8 [channel] colour that the recipe pads with."""
    return normaliser.mean_colour if recipe.padding == "mean" else torch.zeros_like(normaliser.mean_colour)
