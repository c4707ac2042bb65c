"""What this process is at, kept where its parent can read it: a library that crashes takes its own words with it."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from dataclasses import dataclass

_SIZE, _HEAD = 4096, 4
_RUNNING = 255

_board: mmap.mmap | None = None


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a process was at when it ended.

    Attributes:
        what: In words, as "opening net.onnx on ort-cpu"; or "".
        checking: Whether it was checking a file that was brought.
        exit_code: The one that it meant to end with, or None.
    """

    what: str
    checking: bool
    exit_code: int | None


class Board:
    """Memory that a process shares with the child that it forks."""

    def __init__(self) -> None:
        global _board  # the child, which is the same program, notes from anywhere in it
        self._memory = _board = mmap.mmap(-1, _SIZE)
        self._memory[0] = _RUNNING

    def read(self) -> Note:
        """Returns what the child noted last."""
        code, checking, *length = self._memory[:_HEAD]
        text = self._memory[_HEAD : _HEAD + int.from_bytes(bytes(length), "little")]
        return Note(
            what=text.decode(errors="replace"), checking=bool(checking), exit_code=None if code == _RUNNING else code
        )


def ended(exit_code: int) -> None:
    """Notes that all is done: what still crashes while Python takes itself apart changes nothing."""
    if _board is not None:
        _board[0] = exit_code


@contextlib.contextmanager
def doing(what: str, *, checking: bool = False) -> Iterator[None]:
    """Notes what goes on in the block; `checking` is that of a file that was brought, before any runtime opens it."""
    if _board is None:
        yield
        return
    before = _board[1:]
    text = what.encode(errors="replace")[: _SIZE - _HEAD]
    _board[1 : _HEAD + len(text)] = bytes([checking]) + len(text).to_bytes(2, "little") + text
    try:
        yield
    finally:
        _board[1:] = before
