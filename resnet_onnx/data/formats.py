"""Which files are pictures: by an ending that is known, otherwise by their first bytes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from resnet_onnx.models.picture_tensor import FORMATS


def _endings(text: str) -> frozenset[str]:
    return frozenset(text.split())


SUFFIXES = _endings("""
    .jpg .jpeg .jpe .jfif .jif .pjpeg .pjp .png .apng .bmp .dib .gif .webp .tif .tiff .ppm .pgm .pbm .pnm .avif
""")
"""File name endings, in lower case, that are pictures without a look at the file."""

HEAD_BYTES = 64
"""First bytes of a file that tell its format."""

_UNREADABLE: Mapping[str, str] = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC"),
    **dict.fromkeys((".jxl",), "JPEG XL"),
    **dict.fromkeys((".jp2", ".j2k", ".jpx", ".jpf"), "JPEG 2000"),
    **dict.fromkeys((".psd", ".psb"), "Photoshop"),
    **dict.fromkeys((".svg", ".svgz"), "SVG"),
    **dict.fromkeys((".dng", ".nef", ".arw", ".cr2", ".cr3", ".orf", ".rw2", ".raf", ".pef", ".srw"), "camera raw"),
}
"""Endings of pictures that no decoder here reads, with the name of the format."""

_OTHER = _endings("""
    .txt .json .jsonl .xml .csv .tsv .yaml .yml .md .rst .html .htm .css .js .py .ipynb .sh .bat .ini .cfg .toml .log
    .lock .cache .pdf .doc .docx .xls .xlsx .ppt .pptx .zip .tar .gz .tgz .bz2 .xz .7z .rar .npy .npz .h5 .hdf5 .mat
    .pkl .pickle .pt .pth .onnx .safetensors .tfrecord .parquet .arrow .db .sqlite .mp4 .avi .mov .mkv .webm .mp3 .wav
""")
"""Endings that are not of pictures, again without a look."""

_SYSTEM = frozenset(
    ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin", "lost+found",
     "system volume information", "__pycache__")
)  # fmt: skip
_SHOWN = 6
_ENDING = re.compile(r"\.[a-z0-9_+-]{1,9}")
_PORTABLE = re.compile(rb"P[1-6]\s+(#|\d)")
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")


def is_system_file(name: str) -> bool:
    """Returns whether a file or folder is one that systems leave behind, or hidden: such are left out in silence."""
    return name.startswith(".") or name.casefold() in _SYSTEM


def ending(name: str) -> str:
    """Returns the ending of a file's name in lower case with its dot, or "" where there is none to speak of."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    found = dot + suffix.lower()
    return found if stem and _ENDING.fullmatch(found) else ""


def is_picture(name: str, head: Callable[[], bytes]) -> bool:
    """Returns whether a file is a picture that can be read.

    Args:
        name: The file's name; where its ending is known, nothing is read.
        head: Returns the file's first ``HEAD_BYTES`` bytes, or b"" where it has none or is not a regular file.
    """
    suffix = ending(name)
    if suffix in SUFFIXES:
        return True
    if suffix in _OTHER or _UNREADABLE.get(suffix) in ("SVG", "camera raw"):  # raw files begin like TIFF
        return False
    return format_of(head()) in FORMATS


def format_of(head: bytes) -> str | None:
    """Returns the format that the first bytes of a file show: one of ``FORMATS``, another one's name, or None."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "camera raw" if head[8:10] == b"CR" else "TIFF"
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if _PORTABLE.match(head):
        return "PPM"
    if head[4:8] == b"ftyp":
        return _iso_format(head)
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "JPEG XL"
    if head.startswith((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")):
        return "JPEG 2000"
    return "Photoshop" if head.startswith(b"8BPS") else None


def _iso_format(head: bytes) -> str | None:
    """Returns the format of a file of ISO/IEC 14496-12 boxes by its major and compatible brands."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))]
    if brands[0] in (b"avif", b"avis") or (brands[0] in (b"mif1", b"msf1") and b"avif" in brands):
        return "AVIF"
    return "HEIC" if brands[0] in _HEIF_BRANDS else None


def by_ending(names: Iterable[str]) -> dict[str, int]:
    """Returns how many files of each ending there are, the most first."""
    counts = Counter(ending(name) or "without an ending" for name in names)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def left_out_note(counts: Mapping[str, int], where: str = "") -> str:
    """Returns the sentence on files that were passed over: ``12 files left out: 10 .txt, 2 .heic (…)``.

    Args:
        counts: How many, by ending, the most first.
        where: The folder that they are in, where that is not plain.
    """
    total = sum(counts.values())
    shown = list(counts.items())[:_SHOWN]
    shown += [item for item in list(counts.items())[_SHOWN:] if item[0] in _UNREADABLE]
    parts = [
        f"{count} {name}" + (f" ({_UNREADABLE[name]}, which can't be read)" if name in _UNREADABLE else "")
        for name, count in shown
    ]
    rest = total - sum(count for _, count in shown)
    files = f"{total} {'file' if total == 1 else 'files'}" + (f" of {where}" if where else "")
    return f"{files} left out: {', '.join(parts)}" + (f" and {rest} others" if rest else "")
