"""Files: atomic writes, SHA-256, and the cache.

Artifacts are written only from here: into a temporary file beside the target, fsync, rename, fsync of the folder; so a
full disk, a kill or a power cut leaves the old file or the new one, never half of either.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from runtimes.errors import FileProblem, ToolkitError

CACHE_VARIABLE = "RESNET_ONNX_CACHE"

_RENAME_EXCHANGE = 2  # linux/fs.h


# ---- writing ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what is written there replaces `path` in one step.

    Raises:
        FileProblem: The folder can't be written, the disk is full, a limit was hit. The old file is intact and no
            temporary file stays.
    """
    with _told_plainly(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder is in the way")
        if path.exists() and not path.is_file():
            # A rename would put a plain file where /dev/null or a pipe was.
            raise OSError(errno.EINVAL, "a device, pipe or socket is in the way")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _draft(path, lambda _: path) as temporary:
            temporary.touch(exist_ok=False)
            yield temporary


@contextlib.contextmanager
def _draft(path: Path, place: Callable[[Path], Path]) -> Iterator[Path]:
    """Yields a temporary path that is named after `path`; the file written there becomes what `place` returns."""
    _sweep(path)
    temporary = _temporary_beside(path)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, place(temporary))
        _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; it takes the place of `path` in one step.

    A kill at any moment leaves the old folder or the new one; where the system can't exchange two names at once,
    ``settle_folder`` puts the old one back.

    Raises:
        FileProblem: As ``atomic_file``.
    """
    temporary = _temporary_beside(path)
    try:
        with _told_plainly(path):
            if path.exists() and not path.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "a file is in the way")
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path)
            temporary.mkdir()
            yield temporary
            for item in sorted(temporary.rglob("*")):
                _sync(item)
            _sync(temporary)
            _take_place(temporary, path)
            _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def settle_folder(path: Path) -> None:
    """Puts back the old folder where a kill between two renames left only its parking name."""
    parked = _parked(path)
    if parked.is_dir():
        if path.exists():
            shutil.rmtree(parked, ignore_errors=True)
        else:
            parked.rename(path)


def printable(name: str) -> str:
    """Returns a file's name as text: bytes in it that are not UTF-8 become replacement characters."""
    return os.fsencode(name).decode(errors="replace")


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` atomically; raises ``FileProblem`` as ``atomic_file``."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically; raises ``FileProblem`` as ``atomic_file``.

    What is not Unicode, as parts of some old file names, becomes a question mark.
    """
    write_bytes(path, text.encode(errors="replace"))


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON (no NaN, no Infinity) atomically; raises ``FileProblem`` as ``atomic_file``."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def append_line(path: Path, line: str) -> None:
    """Appends a line to a file that only grows, such as a journal, and returns when it is on the disk.

    A kill meanwhile may leave a part of the line, which ``read_lines`` leaves out.

    Raises:
        FileProblem: As ``atomic_file``.
    """
    with _told_plainly(path), open(path, "ab") as handle:
        handle.write(line.encode(errors="replace") + b"\n")
        handle.flush()
        os.fsync(handle.fileno())


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a file that ``append_line`` wrote, none where there is no such file.

    A last line that was not finished is left out.

    Raises:
        FileProblem: It can't be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FileProblem(f"can't read {printable(str(path))}: {error.strerror or error}") from error
    return [line.decode(errors="replace") for line in data.split(b"\n")[:-1]]


_LONGEST_STEM = 40
"""Characters of a name that its temporary file repeats: four bytes each and the rest stay below the 255 of a name."""

_STALE_AFTER_S = 3600.0


def _temporary_beside(path: Path) -> Path:
    return path.parent / f".{path.name[:_LONGEST_STEM]}.{os.getpid()}.{secrets.token_hex(4)}.tmp"


def _sweep(path: Path) -> None:
    """Removes what killed processes left of earlier attempts at the same path.

    Only after an hour: on a shared disk the process may live on another machine.
    """
    import psutil

    pattern = re.compile(re.escape(f".{path.name[:_LONGEST_STEM]}.") + r"(\d+)\.[0-9a-f]{8}\.tmp")
    with contextlib.suppress(OSError):
        for item in path.parent.iterdir():
            match = pattern.fullmatch(item.name)
            if (
                match is None
                or psutil.pid_exists(int(match[1]))
                or time.time() - item.lstat().st_mtime < _STALE_AFTER_S
            ):
                continue
            if item.is_dir():
                shutil.rmtree(item, ignore_errors=True)
            else:
                item.unlink(missing_ok=True)


def _parked(path: Path) -> Path:
    return path.parent / f".{path.name}.old"


@contextlib.contextmanager
def _told_plainly(path: Path) -> Iterator[None]:
    try:
        yield
    except ToolkitError:
        raise
    except OSError as error:
        raise FileProblem(f"can't write {path}: {error.strerror or error}", fix=write_fix(error)) from error
    except Exception as error:
        # safetensors reports a failed write as its own exception, which is not an OSError.
        if type(error).__name__ == "SafetensorError":
            raise FileProblem(f"can't write {path}: {error}", fix="check free space and permissions") from error
        raise


def write_fix(error: OSError) -> str:
    """Returns what a user can do about an error of writing."""
    return {
        errno.ENOSPC: "free some disk space or write to another disk",
        errno.EFBIG: "the file-size limit of this process was hit (ulimit -f); raise it or write less",
        errno.EACCES: "choose a folder that you may write to",
        errno.EPERM: "choose a folder that you may write to",
        errno.EROFS: "this disk is read-only; choose another folder",
    }.get(error.errno or 0, "choose another path")


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows can't fsync a folder
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _take_place(new: Path, old: Path) -> None:
    if not old.exists():
        os.rename(new, old)
    elif not _exchange(new, old):
        parked = _parked(old)
        shutil.rmtree(parked, ignore_errors=True)
        os.rename(old, parked)
        os.rename(new, old)
        shutil.rmtree(parked, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two names in one step where the system can; returns whether it did."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    at_cwd = -100  # AT_FDCWD of fcntl.h
    return bool(rename(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), ctypes.c_uint(_RENAME_EXCHANGE)) == 0)


# ---- hashes and the cache ------------------------------------------------------------------------------------------


def open_regular(path: Path) -> BufferedReader:
    """Opens a file for reading, and nothing else: a pipe or a device may never end, and opening one may do something.

    Raises:
        OSError: As ``open``, and for what is not a regular file.
    """
    if stat.S_ISREG(os.stat(path).st_mode):
        handle = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  (the caller's to close)
        if stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            return handle
        handle.close()
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file: a pipe, socket or device", str(path))


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_bounded(path: Path, most: int) -> bytes:
    """Returns the bytes of a regular file of at most `most` bytes.

    Raises:
        OSError: As ``open_regular``, and for a larger file, sparse ones included.
    """
    pieces, left = [], most
    with open_regular(path) as handle:
        if os.fstat(handle.fileno()).st_size <= most:
            while left >= 0 and (piece := handle.read(min(left + 1, 2**20))):
                pieces.append(piece)
                left -= len(piece)
        else:
            left = -1
    if left < 0:
        raise OSError(errno.EFBIG, f"larger than the {most:,} bytes that are read", str(path))
    return b"".join(pieces)


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file as 64 hex digits; raises ``OSError`` as ``open_regular``."""
    with open_regular(path) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


_NAME_A_CACHE = f"name another: --cache-dir or ${CACHE_VARIABLE}"


def cache_root() -> Path:
    """Returns the cache folder: ``$RESNET_ONNX_CACHE``, or the user's cache folder of this system.

    Raises:
        FileProblem: This user has no home folder, or the variable names one that does not exist (``~nobody``).
    """
    named = os.environ.get(CACHE_VARIABLE)
    try:
        if named:
            return Path(named).expanduser().absolute()
        if sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        elif os.name == "nt":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # a user without a home folder, as in many containers
        raise FileProblem(f"can't find the cache folder: {error}", fix=_NAME_A_CACHE) from error
    return base / "resnet-onnx"


def cache_dir(*parts: str) -> Path:
    """Makes and returns a folder in the cache, open to its owner alone (mode 0700).

    The cache folder itself is closed to others only where it is made here: one that was there before may be somebody's
    working folder, or /tmp, whose mode is not ours to change.

    Raises:
        FileProblem: The folder can't be made or belongs to somebody else.
    """
    folder = cache_root()
    try:
        for step in (folder, *(folder.joinpath(*parts[: i + 1]) for i in range(len(parts)))):
            existed = step.is_dir()
            step.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.name != "nt":
                found = step.stat()
                if found.st_uid != os.getuid():
                    raise FileProblem(f"the cache folder {step} belongs to another user", fix=_NAME_A_CACHE)
                if stat.S_IMODE(found.st_mode) != 0o700 and not (existed and step == folder):
                    step.chmod(0o700)
    except OSError as error:
        reason = error.strerror or error
        raise FileProblem(f"can't use the cache folder {folder}: {reason}", fix=_NAME_A_CACHE) from error
    return folder.joinpath(*parts)


def store_by_content(kind: str, suffix: str, write: Callable[[Path], None]) -> tuple[Path, str]:
    """Has `write` make a file in a folder of the cache, named by its own SHA-256; returns path and SHA-256."""
    folder = cache_dir(kind)
    target, digest = folder, ""

    def place(draft: Path) -> Path:
        nonlocal target, digest
        digest = sha256_file(draft)
        target = folder / f"{digest}{suffix}"
        return target

    with _told_plainly(folder), _draft(folder / f"content{suffix}", place) as draft:
        write(draft)
    return target, digest


def find_by_content(kind: str, suffix: str, sha256: str) -> Path | None:
    """Returns the cached file of that hash, or None where it is absent; a damaged one is removed."""
    if len(sha256) != 64 or not all(c in "0123456789abcdef" for c in sha256):
        return None
    path = cache_root() / kind / f"{sha256}{suffix}"
    try:
        if not path.is_file():
            return None
        sound = sha256_file(path) == sha256
    except OSError:
        return None
    if not sound:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    return path if sound else None


# ---- entries that carry their own hash ---------------------------------------------------------------------------

_SEAL_BYTES = hashlib.sha256().digest_size


def seal(path: Path) -> None:
    """Appends the SHA-256 of a file to it; ``open_sealed`` compares the two."""
    with open(path, "rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").digest()
    with open(path, "ab") as handle:
        handle.write(digest)


def write_sealed(path: Path, data: bytes) -> None:
    """Writes an entry of the cache with its hash behind it, atomically; raises ``FileProblem`` as ``atomic_file``."""
    write_bytes(path, data + hashlib.sha256(data).digest())


@contextlib.contextmanager
def open_sealed(path: Path) -> Iterator[IO[bytes] | None]:
    """Opens a sealed entry of the cache for reading; the seal is the last ``seal`` wrote and follows the content.

    Yields:
        The open file, whose bytes are those that were compared; None where there is no entry, or a damaged one, which
        is removed, so that whoever asked makes it anew.
    """
    try:
        handle = open(path, "rb")  # noqa: SIM115  (closed below)
    except OSError:
        yield None
        return
    with handle:
        sound = _is_sealed(handle)
        if not sound:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        yield handle if sound else None


def read_sealed(path: Path) -> bytes | None:
    """Returns the content of a sealed entry of the cache; None where there is none, or a damaged one."""
    with open_sealed(path) as handle:
        return None if handle is None else handle.read()[:-_SEAL_BYTES]


def _is_sealed(handle: IO[bytes]) -> bool:
    """Returns whether the hash behind a file's content is that of the content, and goes back to its start."""
    left = os.fstat(handle.fileno()).st_size - _SEAL_BYTES
    digest = hashlib.sha256()
    try:
        while left > 0:
            piece = handle.read(min(left, 2**20))
            if not piece:
                return False
            digest.update(piece)
            left -= len(piece)
        sound = left == 0 and handle.read() == digest.digest()
        handle.seek(0)
    except OSError:
        return False
    return sound
