"""From the bytes of one picture file to RGB, with nothing taken on trust.

The header is read first (format, size, mode; no pixel is decoded), and only what passes is handed to a decoder:
libjpeg through torchvision for plain JPEG, Pillow for everything else. Both give the same pixels for a JPEG.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.data.formats import HEAD_BYTES, format_of
from resnet_onnx.models.picture_tensor import FORMATS, JPEG, MAX_PIXELS, MAX_SIDE, decoded, orientation, upright
from runtimes.errors import BadPicture

if TYPE_CHECKING:
    from PIL import Image

MAX_BYTES = 512 * 1024 * 1024
"""Largest encoded picture that is read at all, in bytes."""

_TORCH_SOURCE_LINE = re.compile(r"^.*\.cpp:\d+, ")
"""What torchvision puts in front of a decoder's message."""

_MISSING = 128
_MORE_SCAN_DATA = b"\x35\x9a\xc6\x53" * 16


def decode(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decodes one picture of any size and mode.

    The rules are those of ``picture_tensor.decoded``; dropping alpha is the one that published ImageNet figures are
    measured under.

    `data` are the file's bytes, `name` is what messages call the picture.

    Returns:
        uint8 [height, width, 3], RGB.

    Raises:
        BadPicture: Empty, not one of ``FORMATS``, without pixels, larger than ``MAX_PIXELS``, truncated, damaged, or of
            a mode that has no RGB.
    """
    picture = _open(data, name)
    described = f"{picture.format or ''} picture of {picture.width}×{picture.height}"
    by_libjpeg = picture.format in JPEG and picture.mode in ("RGB", "L")
    if by_libjpeg:
        from torchvision.io import decode_jpeg  # noqa: F401  (where it can't be loaded, the picture is not at fault)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if by_libjpeg:
                pixels = upright(_decode_jpeg(data), orientation(picture))
            else:
                pixels = decoded(picture)
                if picture.format == "PNG":
                    _check_png(picture, data)
    except BadPicture:
        raise
    # What a decoder raises on hostile bytes is open-ended (OSError, SyntaxError, struct.error, MemoryError…).
    except Exception as error:
        raise BadPicture(
            f"{name}: damaged or incomplete {described} ({_first_line(error)})",
            fix="replace the file or leave it out",
        ) from error
    finally:
        picture.close()
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise BadPicture(f"{name}: decoded to shape {list(pixels.shape)}, expected [height, width, 3]")
    return pixels


def _open(data: bytes, name: str) -> Image.Image:
    """Reads the header only and refuses what should not reach a decoder."""
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise BadPicture(f"{name}: the file is empty", fix="replace the file or leave it out")
    if len(data) > MAX_BYTES:
        raise BadPicture(f"{name}: {len(data):,} bytes; pictures of up to {MAX_BYTES:,} bytes are read")
    shown = format_of(data[:HEAD_BYTES])
    if shown is not None and shown not in FORMATS:
        raise BadPicture(
            f"{name}: a {shown} picture, which can't be read; expected one of {', '.join(FORMATS)}",
            fix="convert the file, for instance to JPEG or PNG, or leave it out",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadPicture(
            f"{name}: a decompression bomb ({_first_line(error)}); pictures of up to {MAX_PIXELS:,} pixels are decoded",
            fix="scale the picture down or leave it out",
        ) from error
    except UnidentifiedImageError as error:
        raise BadPicture(
            f"{name}: not a picture of a known format; expected one of {', '.join(FORMATS)}",
            fix="convert the file, for instance to JPEG or PNG, or leave it out",
        ) from error
    # A parser fed with hostile bytes raises whatever its code happens to run into.
    except Exception as error:
        raise BadPicture(
            f"{name}: the picture's header can't be read ({_first_line(error)})", fix="replace the file or leave it out"
        ) from error
    width, height = picture.size
    if width < 1 or height < 1:
        picture.close()
        raise BadPicture(f"{name}: a picture of {width}×{height} pixels has nothing to decode")
    if max(width, height) > MAX_SIDE:
        picture.close()
        raise BadPicture(
            f"{name}: {width}×{height} pixels; pictures of up to {MAX_SIDE:,} pixels on a side are decoded",
            fix="scale the picture down or leave it out",
        )
    if width * height > MAX_PIXELS:
        picture.close()
        raise BadPicture(
            f"{name}: {width}×{height} is {width * height:,} pixels; pictures of up to {MAX_PIXELS:,} are decoded",
            fix="scale the picture down or leave it out",
        )
    return picture


def _decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    def pixels_of(encoded: bytearray) -> NDArray[np.uint8]:
        rgb = decode_jpeg(torch.frombuffer(encoded, dtype=torch.uint8), mode=ImageReadMode.RGB)
        pixels: NDArray[np.uint8] = rgb.permute(1, 2, 0).numpy()
        return pixels

    pixels = pixels_of(bytearray(data))
    # A file that was cut and then closed with an end marker decodes without complaint: libjpeg leaves what is missing
    # middle grey. Where the last corner is exactly that, more data in front of the end marker tells: a decoder that
    # has all of its picture ignores it, one that was short of data makes another picture of it.
    if (pixels[-4:, -4:] == _MISSING).all() and (end := _end_of_scan(data)) is not None:
        longer = bytearray(data[:end] + _MORE_SCAN_DATA + data[end:])
        if not np.array_equal(pixels, pixels_of(longer)):
            raise ValueError("its data ends before the picture does")
    return pixels


def _end_of_scan(data: bytes) -> int | None:
    """Returns where the end marker stands, which the first picture's scan runs up to (ITU-T T.81, annex B)."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xFF:  # fill byte
            at += 1
            continue
        is_scan = data[at + 1] == 0xDA
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if is_scan:
            found = data.find(b"\xff\xd9", at)
            return found if found >= 0 else None
    return None


def _check_png(picture: Image.Image, data: bytes) -> None:
    """Raises ``ValueError`` where a PNG's stream ends before its picture does.

    Pillow leaves the rows black that a complete but short stream does not have (seen in 12.0). A picture whose last row
    is not black had them all; of others, and of interlaced ones, the bytes are counted.
    """
    width, height = picture.size
    depth, colours, interlaced = data[24], data[25], data[28]
    if not interlaced and np.asarray(picture.crop((0, height - 1, width, height))).any():
        return
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = ((-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in passes)
    expected = sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 and rows > 0)
    if _inflated(data, expected) < expected:
        raise ValueError("its data ends before the picture does")


_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row and their steps in the seven passes of an interlaced PNG (PNG specification, 8.2)."""


def _inflated(data: bytes, enough: int) -> int:
    """Returns how many bytes the image data of a PNG holds, at most about `enough`."""
    stream, found, at = zlib.decompressobj(), 0, 8
    while at + 8 <= len(data) and found < enough and not stream.eof:
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"IDAT":
            waiting = data[at + 8 : at + 8 + size]
            while waiting and found < enough and not stream.eof:
                found += len(stream.decompress(waiting, _PIECE_BYTES))
                waiting = stream.unconsumed_tail
        at += size + 12
    return found + (len(stream.flush()) if found < enough and not stream.eof else 0)


_PIECE_BYTES = 2**20


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return _TORCH_SOURCE_LINE.sub("", text[0])[:200] if text else type(error).__name__
