"""Pictures that nobody photographs, where runtimes that agree on photos may part."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def adversarial_pictures(size: int, *, seed: int = 0) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    """Returns names and pictures: all black, all white, grey, one white pixel, extreme checkers, noise.

    Pictures are uint8 [6, size, size, 3], RGB; the seed decides the noise and the place of the pixel.
    """
    random = np.random.default_rng(seed)
    one = np.zeros((size, size, 3), np.uint8)
    one[tuple(random.integers(0, size, 2))] = 255
    rows, columns = np.indices((size, size))
    checkers = np.where((rows + columns) % 2 == 0, 255, 0).astype(np.uint8)
    pictures = {
        "zeros": np.zeros((size, size, 3), np.uint8),
        "white": np.full((size, size, 3), 255, np.uint8),
        "grey": np.full((size, size, 3), 127, np.uint8),
        "one pixel": one,
        "checkers": np.stack([checkers, 255 - checkers, checkers], axis=-1),
        "noise": random.integers(0, 256, (size, size, 3)).astype(np.uint8),
    }
    return tuple(pictures), np.stack(list(pictures.values()))


LARGE_BATCH = 16
"""A batch beyond the 8 that engines are tuned for by default: kernels choose other paths there."""


def odd_batches(count: int, *, largest: int = LARGE_BATCH) -> list[int]:
    """Splits `count` pictures into batches of unequal, mostly odd sizes: one alone, then one of `largest`.

    A picture's result must not depend on how many neighbours it has, and kernels choose other paths for other batches.
    """
    sizes: list[int] = []
    pattern, left = (1, LARGE_BATCH, 5, 7, 3), count
    while left > 0:
        sizes.append(min(left, largest, pattern[len(sizes) % len(pattern)]))
        left -= sizes[-1]
    return sizes
