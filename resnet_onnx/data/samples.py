"""Real pictures for when no data is named: crops of the two photos that scikit-learn ships."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.models.preprocessing import Preprocessing
from runtimes.errors import Unavailable, UsageError

_SMALLEST_CROP = 0.3
"""Side of the smallest crop as a fraction of the photo's shorter side."""

_PHOTOS = ("china.jpg", "flower.jpg")


def sample_pictures(count: int, preprocessing: Preprocessing, seed: int = 0) -> NDArray[np.uint8]:
    """Cuts distinct square crops out of two photos (a temple, a flower), alternately, some of them mirrored.

    The same seed gives the same pictures; the first ones do not depend on `count`.

    Returns:
        uint8 [count, image_size, image_size, 3], RGB.

    Raises:
        UsageError: `count` is below 1.
    """
    if count < 1:
        raise UsageError(f"the number of sample pictures must be at least 1, not {count}")
    return np.stack(list(itertools.islice(each_sample_picture(preprocessing, seed), count)))


def each_sample_picture(preprocessing: Preprocessing, seed: int = 0) -> Iterator[NDArray[np.uint8]]:
    """Yields the pictures of ``sample_pictures`` one by one, without end: uint8 [image_size, image_size, 3], RGB."""
    from PIL import Image

    photos = [Image.open(path).convert("RGB") for path in photo_files()]
    size = preprocessing.image_size
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    random = np.random.default_rng(seed)
    taken: set[tuple[int, int, int, int, bool]] = set()
    for index in itertools.count():
        which = index % len(photos)
        width, height = photos[which].size
        while True:
            side = round(min(width, height) * math.sqrt(random.uniform(_SMALLEST_CROP**2, 1.0)))
            left, top = int(random.integers(width - side + 1)), int(random.integers(height - side + 1))
            crop = (which, left, top, side, bool(random.integers(2)))
            if crop not in taken:
                break
        taken.add(crop)
        box = (left, top, left + side, top + side)
        resized = np.asarray(photos[which].resize((size, size), filters[preprocessing.interpolation], box=box))
        yield resized[:, ::-1] if crop[4] else resized


def photo_files() -> list[Path]:
    """Finds scikit-learn's photos without importing it, which would take longer than all the rest."""
    found = importlib.util.find_spec("sklearn")
    folders = found.submodule_search_locations if found is not None else None
    if not folders:
        raise Unavailable(
            "scikit-learn, whose sample photos are used, is not installed", fix="pip install scikit-learn"
        )
    files = [Path(folders[0]) / "datasets" / "images" / name for name in _PHOTOS]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise Unavailable(
            f"scikit-learn's sample photo {missing[0]} is missing", fix="pip install --force-reinstall scikit-learn"
        )
    return files
