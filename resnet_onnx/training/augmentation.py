"""Random changes to pictures: on a whole batch of bytes, or the crop of one large picture while it is loaded."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resnet_onnx.data.transforms import prepare
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.training.device import to_device
from resnet_onnx.training.recipes import Recipe

ASPECT_RATIOS = (3 / 4, 4 / 3)
"""Bounds of a random resized crop's aspect ratio: arXiv:1409.4842, section 6."""
COLOUR_VALUES = (0.2175, 0.0188, 0.0045)
"""Standard deviations of ImageNet's colours along their principal components, RGB from 0 to 1; the published constants
of facebookarchive/fb.resnet.torch, ``datasets/imagenet.lua``."""
COLOUR_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
"""Those components, one a column, rows in RGB; the same source."""
CROP_TRIES = 10
"""Boxes that are tried before the centre is taken; torchvision's published constant."""


def seed_for(seed: int, *path: object) -> int:
    """Returns a 63-bit seed for one purpose (``seed_for(0, "order", epoch)``); unlike ``seed + epoch`` none collide."""
    digest = hashlib.sha256("/".join(str(part) for part in (seed, *path)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The part of a step's batch of `total` pictures that this process trains on, from index `first` on."""

    first: int
    total: int

    def of(self, drawn: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        """Returns the numbers of `pictures` out of those [..., total] drawn for the batch, on their device."""
        return to_device(drawn[..., self.first : self.first + len(pictures)].contiguous(), pictures.device)


def augment(
    pictures: torch.Tensor, recipe: Recipe, fill: torch.Tensor, generator: torch.Generator, shard: Shard | None = None
) -> torch.Tensor:
    """Pads and crops, and flips, each picture of a batch by its own random numbers.

    The generator, on the CPU, is drawn from in the same way whatever the device and the number of processes.

    Args:
        pictures: uint8 [batch, channel, height, width].
        recipe: Decides what is done.
        fill: uint8 [channel], the colour that is padded with.
        generator: Draws them.
        shard: None where `pictures` are all of the step's batch.

    Returns:
        As `pictures`, on the same device.
    """
    count, channels, height, width = pictures.shape
    shard = shard or Shard(first=0, total=count)
    if recipe.crop == "pad":
        pad = recipe.pad
        top, left = shard.of(torch.randint(0, 2 * pad + 1, (2, shard.total), generator=generator), pictures)
        padded = fill.view(1, channels, 1, 1).expand(count, channels, height + 2 * pad, width + 2 * pad).clone()
        padded[:, :, pad : pad + height, pad : pad + width] = pictures
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: [batch, channel, top, left, height, width]
        pictures = windows[torch.arange(count, device=pictures.device), :, top, left]
    if recipe.flip:
        mirrored = shard.of(torch.rand(shard.total, generator=generator) < 0.5, pictures)
        pictures = torch.where(mirrored.view(-1, 1, 1, 1), pictures.flip(3), pictures)
    return pictures


def colour_shift(pictures: torch.Tensor, recipe: Recipe, generator: torch.Generator, shard: Shard) -> torch.Tensor:
    """Returns what each picture's colour is shifted by (Krizhevsky, Sutskever, Hinton 2012, section 4.1).

    Returns:
        float32 [batch, channel, 1, 1], in shares of white, on the device of the `pictures`.
    """
    strength = recipe.colour * torch.randn(3, shard.total, generator=generator)
    shift = torch.tensor(COLOUR_VECTORS) @ (torch.tensor(COLOUR_VALUES).view(3, 1) * strength)
    return shard.of(shift, pictures).T.view(-1, 3, 1, 1)


def mix(
    inputs: torch.Tensor, labels: torch.Tensor, *, classes: int, recipe: Recipe, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixes the pictures of a batch by mixup or CutMix, one of them drawn where the recipe has both.

    Args:
        inputs: float32 [batch, channel, height, width].
        labels: int64 [batch].
        classes: Of the data set.
        recipe: Has the α of each.
        seed: Decides which, and how much.

    Returns:
        Mixed inputs of the same shape, and the share of every class, float32 [batch, classes].
    """
    from torchvision.transforms import v2

    kinds: tuple[tuple[Any, float], ...] = ((v2.MixUp, recipe.mixup), (v2.CutMix, recipe.cutmix))
    transforms = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha]
    with _seeded(seed):
        transform = transforms[int(torch.randint(len(transforms), ()))]
        mixed: tuple[torch.Tensor, torch.Tensor] = transform(inputs, labels)
    return mixed


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds torch's generator on the CPU, which torchvision draws from, while the block runs; GPUs' are unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class Normaliser:
    """``Preprocessing.normalise`` for tensors: bytes to the network's range, on the batch's own device."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        mean, std = np.asarray(preprocessing.mean), np.asarray(preprocessing.std)
        self._scale = torch.tensor(1.0 / (255.0 * std), dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self._offset = torch.tensor(-mean / std, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self.per_white = torch.tensor(1.0 / std, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self.mean_colour = torch.tensor(np.rint(mean * 255).clip(0, 255), dtype=torch.uint8, device=device)

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """Returns float32 of the same shape as the uint8 [batch, channel, height, width] given."""
        return pictures.to(torch.float32).mul_(self._scale).add_(self._offset)


class BatchAugmentation:
    """What a recipe changes in the batches of one epoch: crop and flip, normalisation, colour, mixing."""

    def __init__(
        self, recipe: Recipe, normaliser: Normaliser, classes: int, generator: torch.Generator, shard: Shard
    ) -> None:
        self._recipe, self._normaliser, self._classes = recipe, normaliser, classes
        self._generator, self._shard = generator, shard
        self._fill = pad_colour(recipe, normaliser)

    def __call__(
        self, pictures: torch.Tensor, labels: torch.Tensor, *, mix_seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the network's inputs and targets for uint8 [batch, channel, height, width] and int64 [batch].

        Returns:
            float32 [batch, channel, height, width], and `labels`, or float32 [batch, classes] where pictures are mixed.
        """
        recipe, generator, shard = self._recipe, self._generator, self._shard
        inputs = self._normaliser(augment(pictures, recipe, self._fill, generator, shard))
        if recipe.colour:
            inputs += colour_shift(inputs, recipe, generator, shard) * self._normaliser.per_white
        if recipe.mixup or recipe.cutmix:
            return mix(inputs, labels, classes=self._classes, recipe=recipe, seed=mix_seed)
        return inputs, labels


def augmented_picture(
    picture: NDArray[np.uint8], preprocessing: Preprocessing, recipe: Recipe, seed: int
) -> torch.Tensor:
    """Applies what a recipe changes in a picture while it is loaded: crops that need all of it, and RandAugment.

    Returns:
        uint8 [3, size, size] for uint8 [height, width, 3], as the two crops below.
    """
    if recipe.crop == "resized":
        cut = random_resized_crop(picture, preprocessing, recipe.smallest_area, seed)
    elif recipe.crop == "scaled":
        cut = random_scaled_crop(picture, preprocessing, recipe.shorter_side, seed)
    else:
        cut = torch.from_numpy(np.ascontiguousarray(prepare(picture, preprocessing).transpose(2, 0, 1)))
    if recipe.randaugment:
        from torchvision.transforms import v2

        with _seeded(seed):
            cut = v2.RandAugment(recipe.randaugment, recipe.randaugment_magnitude)(cut)
    return cut


def random_resized_crop(
    picture: NDArray[np.uint8], preprocessing: Preprocessing, smallest_area: float, seed: int
) -> torch.Tensor:
    """Cuts a random box out of a picture and scales it to the network's size (arXiv:1409.4842, section 6).

    The box covers at least a share of `smallest_area` of the picture.
    """
    height, width = picture.shape[:2]
    box = _random_box(height, width, smallest_area, np.random.default_rng(seed))
    return _resized(picture, box, (preprocessing.image_size, preprocessing.image_size), preprocessing)


def random_scaled_crop(
    picture: NDArray[np.uint8], preprocessing: Preprocessing, shorter_side: tuple[int, ...], seed: int
) -> torch.Tensor:
    """Scales a picture so that its shorter side has a random length, and cuts a random square (arXiv:1512.03385, 3.4).

    `shorter_side` has the bounds of that length in pixels, both included; at least the network's size.
    """
    rng, size = np.random.default_rng(seed), preprocessing.image_size
    height, width = picture.shape[:2]
    scale = int(rng.integers(shorter_side[0], shorter_side[1] + 1)) / min(height, width)
    tall, wide = max(size, round(height * scale)), max(size, round(width * scale))
    top, left = int(rng.integers(tall - size + 1)), int(rng.integers(wide - size + 1))
    scaled = _resized(picture, (0, 0, height, width), (tall, wide), preprocessing)
    return scaled[:, top : top + size, left : left + size].contiguous()


def _resized(
    picture: NDArray[np.uint8], box: tuple[int, int, int, int], size: tuple[int, int], preprocessing: Preprocessing
) -> torch.Tensor:
    """Returns uint8 [3, *size] of the box (top, left, height, width) of a picture."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    cropped: torch.Tensor = functional.resized_crop(
        torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))),
        *box,
        list(size),
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
