"""From a picture to a model's tensor, with NumPy, Pillow and cykooz-resizer alone.

Nothing of this project is imported here, so that the file also works by itself: a bundle carries a copy of it, and both
give the same tensors from the same bytes.

The resize is torchvision's of bytes (``Resize(n, antialias=True)``), bit for bit: filters that widen with the scale,
weights rounded to 16 bits, rows first, then columns, each rounded to bytes. cykooz-resizer computes it; where that
package has no wheel, NumPy computes the same integers, some ten times slower.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF")
"""Formats that are opened, by Pillow's names; the name of a file plays no part."""

MAX_PIXELS = 89_478_485
"""Largest picture that is decoded: Pillow's own bound for a decompression bomb, a quarter GiB of RGB."""

MAX_SIDE = 2**20
"""Longest side of a picture that is decoded, pixels: Pillow keeps eight bytes for every row beside the pixels."""

JPEG = ("JPEG", "MPO")
"""Pillow's names of JPEG; an MPO is one with further pictures behind it."""

_MAX_ASPECT = 8
"""Longest side over shortest that is resized whole; a longer strip loses its ends first, which the crop would drop."""

_FILTERS = {"bilinear": ("bilinear", 1.0), "bicubic": ("catmull_rom", 2.0)}
"""Interpolation, its filter's name in cykooz-resizer, and the filter's radius in pixels."""

_ORIENTATION_TAG = 0x0112
_UPRIGHT = 1


def tensor(
    pictures: Sequence[str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]],
    preprocessing: Mapping[str, Any],
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """Makes a model's input of pictures.

    Args:
        pictures: Each a path, a file's bytes, a Pillow image, or uint8 [height, width, 3] in RGB.
        preprocessing: `resize` and `crop` in pixels, `interpolation` (bilinear or bicubic), `mean` and `std` as
            fractions of 1 in RGB order, `layout` (NCHW or NHWC), `channels` (RGB or BGR).
        dtype: Of the model's input; one that takes uint8 normalises by itself.

    Returns:
        [n, 3, crop, crop] or [n, crop, crop, 3], by `layout`.

    Raises:
        ValueError: An array is not a picture, a picture is too large, or `preprocessing` has another value.
        OSError: A file can't be read or decoded.
    """
    wanted = preprocessing
    cut = [resize(pixels(each), wanted["resize"], wanted["interpolation"], wanted["crop"]) for each in pictures]
    return arrange(
        np.stack(cut), wanted["mean"], wanted["std"], layout=wanted["layout"], channels=wanted["channels"], dtype=dtype
    )


def pixels(picture: str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns uint8 [height, width, 3], RGB, of a path, a file's bytes, a Pillow image or such an array."""
    from PIL import Image

    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise ValueError(f"expected uint8 [height, width, 3], not {picture.dtype} {list(picture.shape)}")
        return picture
    if isinstance(picture, Image.Image):
        return decoded(picture)
    with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture, formats=FORMATS) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(f"{opened.width}×{opened.height}: pictures of up to {MAX_PIXELS:,} pixels are decoded")
        if max(opened.size) > MAX_SIDE:
            raise ValueError(f"{opened.width}×{opened.height}: pictures of up to {MAX_SIDE:,} on a side are decoded")
        return decoded(opened)


def decoded(picture: Image.Image) -> NDArray[np.uint8]:
    """Decodes what Pillow has opened.

    Grey is repeated over the channels, alpha is dropped (as ``Image.convert("RGB")`` does), CMYK and palettes are
    converted, 16-bit samples are scaled to 8, the EXIF orientation is applied, and of several frames the first is
    taken.

    Returns:
        uint8 [height, width, 3], RGB.
    """
    picture.load()  # some formats have their orientation behind their pixels
    turned = orientation(picture)
    if picture.mode.startswith(("I", "F")):
        grey = _to_eight_bits(np.asarray(picture), picture.mode)
        return upright(np.repeat(grey[:, :, None], 3, axis=2), turned)
    if picture.mode in ("P", "PA", "LA", "La"):
        picture = picture.convert("RGBA")
    return upright(np.array(picture if picture.mode == "RGB" else picture.convert("RGB")), turned)


def orientation(picture: Image.Image) -> int:
    """Returns the orientation of TIFF 6.0's tag 274; upright where it is missing or nonsense, as viewers do."""
    if picture.format in JPEG and "exif" not in picture.info:
        return _UPRIGHT
    try:
        value = picture.getexif().get(_ORIENTATION_TAG, _UPRIGHT)
    except Exception:  # the block is free-form bytes from outside; nothing in it may stop a good picture
        return _UPRIGHT
    return value if isinstance(value, int) and 1 <= value <= 8 else _UPRIGHT


def upright(stored: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turns stored pixels, uint8 [height, width, 3], upright; the eight cases of TIFF 6.0, tag 274."""
    if orientation == _UPRIGHT:
        return stored
    if orientation >= 5:  # stored with rows and columns exchanged
        stored = stored.transpose(1, 0, 2)
    flip_rows = orientation in (3, 4, 7, 8)
    flip_columns = orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(stored[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])


def resize(
    picture: NDArray[np.uint8], shorter_side: int, interpolation: str, crop: int | None = None
) -> NDArray[np.uint8]:
    """Scales a picture so that its shorter side has a given length, and cuts the square in its centre out of it.

    `picture` is uint8 [height, width, 3]; `crop` is the square's side in pixels, or None to keep everything but the
    ends of a strip that is longer than eight times its width.

    Returns:
        uint8 [height, width, 3]; where nothing is to be scaled or cut, `picture` itself.

    Raises:
        ValueError: `interpolation` is none of ours, or `crop` does not lie between 1 and `shorter_side`.
    """
    if interpolation not in _FILTERS:
        raise ValueError(f"interpolation is {' or '.join(_FILTERS)}, not {interpolation!r}")
    if not 1 <= (shorter_side if crop is None else crop) <= shorter_side:
        raise ValueError(f"resize {shorter_side} and crop {crop} must satisfy 1 ≤ crop ≤ resize")
    height, width = picture.shape[:2]
    longest = _MAX_ASPECT * min(height, width)
    if max(height, width) > longest:
        top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
        picture = picture[top : top + longest, left : left + longest]
        height, width = picture.shape[:2]
    shorter = min(height, width)
    tall, wide = (int(shorter_side * side / shorter) for side in (height, width))
    rows, columns = slice(0, tall), slice(0, wide)
    if crop is not None:
        top, left = round((tall - crop) / 2.0), round((wide - crop) / 2.0)  # torchvision's rounding, half to even
        rows, columns = slice(top, top + crop), slice(left, left + crop)
    if (tall, wide) == (height, width):
        return picture if crop is None else np.ascontiguousarray(picture[rows, columns])
    scale = _by_wheel if _wheel() is not None else _by_numpy
    return scale(picture, tall, wide, columns, interpolation)[rows]


def _by_wheel(
    picture: NDArray[np.uint8], tall: int, wide: int, columns: slice, interpolation: str
) -> NDArray[np.uint8]:
    """Scales to [tall, wide] and keeps some columns; one call would do columns first and round otherwise."""
    wheel: Any = _wheel()
    height, width = picture.shape[:2]
    algorithm = wheel.ResizeAlg.convolution(wheel.FilterType[_FILTERS[interpolation][0]])
    kept = columns.stop - columns.start
    box = wheel.CropBox(columns.start, 0, kept, height)
    source = wheel.ImageData(width, height, wheel.PixelType.U8x3, picture.tobytes())
    widened = wheel.ImageData(wide, height, wheel.PixelType.U8x3)
    scaled = wheel.ImageData(kept, tall, wheel.PixelType.U8x3)
    resizer = wheel.Resizer()  # of one thread at a time; making one costs nothing
    resizer.resize(source, widened, wheel.ResizeOptions(algorithm))
    resizer.resize(widened, scaled, wheel.ResizeOptions(algorithm, crop_box=box))
    return np.frombuffer(bytearray(scaled.get_buffer()), np.uint8).reshape(tall, kept, 3)


@functools.cache
def _wheel() -> ModuleType | None:
    try:
        import cykooz_resizer
    except ImportError:
        return None
    found: ModuleType = cykooz_resizer
    return found


def _by_numpy(
    picture: NDArray[np.uint8], tall: int, wide: int, columns: slice, interpolation: str
) -> NDArray[np.uint8]:
    widened = _scale_rows(picture.transpose(1, 0, 2), wide, interpolation)[columns]
    return _scale_rows(widened.transpose(1, 0, 2), tall, interpolation)


def _scale_rows(picture: NDArray[np.uint8], count: int, interpolation: str) -> NDArray[np.uint8]:
    """Scales the first axis, as fast_image_resize 6 does (src/convolution): sums of bytes times 16-bit weights.

    They are sums of whole numbers below 2**53, so that float64 holds them exactly in any order of summation.
    """
    size = len(picture)
    if size == count:
        return picture
    scale = size / count
    widened = max(scale, 1.0)
    radius = _FILTERS[interpolation][1] * widened
    centre = (np.arange(count) + 0.5) * scale
    first = np.maximum(np.floor(centre - radius), 0).astype(int)
    end = np.minimum(np.ceil(centre + radius), size).astype(int)
    place = first + np.arange((end - first).max())[:, None]
    weights = np.where(place < end, _filter((place - (centre - 0.5)) * (1 / widened), interpolation), 0)
    weights /= weights.sum(axis=0)
    # The most bits with which the largest weight stays below 2**15.
    bits = next((bits for bits in range(22) if np.floor(weights.max() * 2 ** (bits + 1) + 0.5) >= 2**15), 21)
    weights = np.trunc(weights * 2**bits + np.copysign(0.5, weights)).T.copy()
    values = picture.reshape(size, -1).astype(np.float64)
    sums = np.empty((count, values.shape[1]))
    for row, weight, start, stop in zip(sums, weights, first, end, strict=True):
        np.dot(weight[: stop - start], values[start:stop], out=row)
    scaled: NDArray[np.uint8] = np.floor((sums + 2 ** (bits - 1)) / 2**bits).clip(0, 255).astype(np.uint8)
    return scaled.reshape((count, *picture.shape[1:]))


def _filter(x: NDArray[np.float64], interpolation: str) -> NDArray[np.float64]:
    """The triangle, or Keys' cubic with a = −1/2 (Keys 1981, equation 4), of a distance in pixels."""
    x = np.abs(x)
    if interpolation == "bilinear":
        return np.where(x < 1, 1 - x, 0)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))


def normalise(pictures: NDArray[np.uint8], mean: ArrayLike, std: ArrayLike) -> NDArray[np.float32]:
    """Scales bytes to the network's range.

    Args:
        pictures: uint8 [batch, height, width, channel], RGB.
        mean: Per-channel mean in RGB, as fractions of 255.
        std: Per-channel standard deviation in RGB, as fractions of 255.

    Returns:
        float32 [batch, channel, height, width], (x/255 − mean)/std, computed as one multiply and one add.
    """
    scale = (1.0 / (255.0 * np.asarray(std))).astype(np.float32)
    offset = (-np.asarray(mean) / np.asarray(std)).astype(np.float32)
    batch, height, width, channels = pictures.shape
    scaled = np.empty((batch, channels, height, width), np.float32)
    # Plane by plane stays in the cache: six times faster.
    for picture, planes in zip(pictures, scaled, strict=True):
        for channel, plane in enumerate(planes):
            plane[...] = picture[..., channel]
            plane *= scale[channel]
            plane += offset[channel]
    return scaled


def arrange(
    pictures: NDArray[np.uint8], mean: ArrayLike, std: ArrayLike, *, layout: str, channels: str, dtype: DTypeLike
) -> NDArray[Any]:
    """Makes a model's input of pictures that have its size: uint8 [batch, height, width, 3], RGB.

    `mean` and `std` are as for ``normalise``; a model whose input is uint8 normalises by itself.

    Raises:
        ValueError: `layout` is neither NCHW nor NHWC, or `channels` are neither RGB nor BGR.
    """
    if layout not in ("NCHW", "NHWC") or channels not in ("RGB", "BGR"):
        raise ValueError(f"layout is NCHW or NHWC and channels are RGB or BGR, not {layout!r} and {channels!r}")
    is_bytes = np.dtype(dtype) == np.uint8
    array: NDArray[Any] = pictures.transpose(0, 3, 1, 2) if is_bytes else normalise(pictures, mean, std)
    if channels == "BGR":
        array = array[:, ::-1]
    return np.ascontiguousarray(array if layout == "NCHW" else array.transpose(0, 2, 3, 1), dtype=dtype)


_PIECE_SAMPLES = 2**22
"""Samples that are scaled at once: in double they take eight bytes each."""


def _to_eight_bits(samples: NDArray[Any], mode: str) -> NDArray[np.uint8]:
    """Scales wide grey samples to bytes: 16-bit by 257 (65535 → 255), floats in [0, 1] by 255; bytes stay."""
    low, high = float(samples.min()), float(samples.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 65535:
        raise ValueError(f"grey samples of mode {mode} run from {low:g} to {high:g}, expected 0 to 65535")
    scale = 1.0
    if mode.startswith("I;16") or (mode == "I" and high > 255):
        scale = 1 / 257
    elif mode == "F":
        if high > 255:
            raise ValueError(f"grey samples of mode F run up to {high:g}, expected 0 to 1 or 0 to 255")
        scale = 255.0 if high <= 1 else 1.0
    eight = np.empty(samples.shape, np.uint8)
    rows = max(1, _PIECE_SAMPLES // samples.shape[1])
    for top in range(0, len(samples), rows):
        piece = samples[top : top + rows].astype(np.float64)
        eight[top : top + rows] = np.rint(piece / 257.0 if scale < 1 else piece * scale)
    return eight
