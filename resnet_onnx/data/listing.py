"""What a folder or .zip holds: its pictures, its folders, and what is passed over."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from resnet_onnx.data.formats import HEAD_BYTES, is_picture, is_system_file
from runtimes.errors import BadData

ZIP_FAULTS = (OSError, KeyError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error)
"""What the zipfile module raises on damaged archives (``NotImplementedError`` for odd methods is a RuntimeError)."""

CODE_PAGES = (
    "utf-8", "cp437", "cp866", "cp1251", "gb18030", "cp932", "cp949", "big5", "cp1252", "cp1250", "cp850", "cp852",
    "cp1253", "cp1254", "koi8_r",
)  # fmt: skip
"""What systems write the names of a .zip in where they do not say so; the second is what the format prescribes then.

A short name in another code page may pass as UTF-8: 猫 in GBK has the bytes of è.
"""

_UTF8_NAME = 0x800
_ENCRYPTED = 0x1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_UNICODE_PATH = 0x7075


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The names in a folder or .zip, relative, with forward slashes; what systems leave behind is not in it.

    Attributes:
        pictures: Sorted.
        folders: All of them, also empty ones.
        others: Files that are not pictures.
        stored: What an archive itself calls a picture, where that differs.
        raw: Names of pictures as stored, where nothing says what they are encoded in; ``pictures`` and ``folders`` have
            them in UTF-8, or where they are not all that, in code page 437.
        notes: What the user should know of how the names were read.
    """

    pictures: tuple[str, ...]
    folders: frozenset[str]
    others: tuple[str, ...] = ()
    stored: Mapping[str, str] = field(default_factory=dict)
    raw: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def list_folder(root: Path) -> Listing:
    """Lists a folder and everything below it; files whose ending says what they are, are not opened.

    Raises:
        BadData: A folder can't be listed.
    """
    pictures: list[str] = []
    others: list[str] = []
    folders: set[str] = set()

    def refuse(error: OSError) -> None:
        raise BadData(f"{error.filename}: can't be listed ({error.strerror})", fix="check the folder's permissions")

    seen: set[tuple[int, int]] = set()
    for folder, below, names in os.walk(root, onerror=refuse, followlinks=True):
        status = os.stat(folder)
        relative = Path(folder).relative_to(root).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        if (status.st_dev, status.st_ino) in seen:  # a link back up would be walked for ever
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below[:] = sorted(name for name in below if not is_system_file(name))
        folders.update(prefix + name for name in below)
        for name in names:
            if not is_system_file(name):
                path = f"{folder}/{name}"
                (pictures if is_picture(name, partial(_head, path)) else others).append(prefix + name)
    return Listing(pictures=tuple(sorted(pictures)), folders=frozenset(folders), others=tuple(others))


def _head(path: str) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe may never end
            return b""
        with open(path, "rb") as handle:
            return handle.read(HEAD_BYTES)
    except OSError:
        return b""


def list_zip(path: Path) -> Listing:
    """Lists a .zip; nothing is unpacked.

    Raises:
        BadData: It can't be read, or pictures in it are encrypted.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _list_members(path, archive)
    except ZIP_FAULTS as error:
        raise BadData(
            f"--data '{path}': can't be read as a .zip ({error}); a file given as data must be a .zip of class folders",
            fix="name a folder or an undamaged .zip",
        ) from error


def _list_members(path: Path, archive: zipfile.ZipFile) -> Listing:
    members = archive.infolist()
    backslashes = not any("/" in member.filename for member in members) and any(
        "\\" in member.filename for member in members
    )
    pictures: dict[str, str] = {}
    others: list[str] = []
    folders: set[str] = set()
    raw: dict[str, bytes] = {}
    outside = 0
    page = _page(members)
    for member in members:
        stored = _undeclared(member)
        name = stored.decode(page) if stored is not None else _declared(member)
        if backslashes:
            name, stored = name.replace("\\", "/"), stored and stored.replace(b"\\", b"/")
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts:
            outside += not member.is_dir()
            continue
        if any(is_system_file(part) for part in parts):
            continue
        folders.update(str(parent) for parent in PurePosixPath(name).parents if parent.parts)
        if name.endswith("/"):
            folders.add(str(PurePosixPath(name)))
        elif is_picture(name, partial(_member_head, archive, member)):
            if member.flag_bits & _ENCRYPTED:
                raise BadData(f"--data '{path}': {name} is encrypted", fix="make the .zip without a password")
            if member.compress_type not in _METHODS:
                raise BadData(
                    f"--data '{path}': {name} is compressed by method {member.compress_type}, which can't be read",
                    fix="make the .zip anew, with the usual Deflate",
                )
            pictures[name] = member.filename
            if stored is not None:
                raw[name] = stored
        else:
            others.append(name)
    twice = [name for name, count in Counter(member.filename for member in members).items() if count > 1]
    return Listing(
        pictures=tuple(sorted(pictures)),
        folders=frozenset(folders),
        others=tuple(others),
        stored={name: stored for name, stored in pictures.items() if stored != name},
        raw=raw,
        notes=(
            *(["names in the .zip are written with backslashes, which were read as folders"] if backslashes else []),
            *([f"{_files(outside)} of the .zip left out: their names lead outside of it"] if outside else []),
            *(
                [f"{_files(len(twice))} of the .zip left out: a later one has the same name ({twice[0]})"]
                if twice
                else []
            ),
        ),
    )


def _page(members: Sequence[zipfile.ZipInfo]) -> str:
    """Returns the code page in which names are read that do not say theirs."""
    try:
        for member in members:
            (_undeclared(member) or b"").decode("utf-8")
    except UnicodeDecodeError:
        return "cp437"
    return "utf-8"


def _undeclared(member: zipfile.ZipInfo) -> bytes | None:
    """Returns the bytes of a member's name where nothing says what they are encoded in, and that matters."""
    if member.flag_bits & _UTF8_NAME or member.filename.isascii() or _unicode_path(member) is not None:
        return None
    return member.filename.encode("cp437")  # which zipfile read it in


def _declared(member: zipfile.ZipInfo) -> str:
    return _unicode_path(member) or member.filename


def _unicode_path(member: zipfile.ZipInfo) -> str | None:
    """Returns the name in UTF-8 that archivers put beside one in a code page (APPNOTE.TXT, 4.6.9)."""
    if member.flag_bits & _UTF8_NAME:
        return None
    extra, stored = member.extra, member.filename.encode("cp437")
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        # A version, the CRC-32 of the other name, by which a stale one is told, and the name.
        if kind == _UNICODE_PATH and size > 5 and extra[5:9] == struct.pack("<I", zlib.crc32(stored)):
            return extra[9 : 4 + size].decode("utf-8", "replace")
        extra = extra[4 + size :]
    return None


def _member_head(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        if member.flag_bits & _ENCRYPTED:
            return b""
        with archive.open(member) as handle:
            return handle.read(HEAD_BYTES)
    except ZIP_FAULTS:
        return b""


def _files(count: int) -> str:
    return f"{count} {'file' if count == 1 else 'files'}"
