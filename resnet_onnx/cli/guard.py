"""A command's work in a process of its own: what crashes or never ends there is one sentence here.

Graphs, pictures and drivers run in native code, where a division that the processor refuses ends the process and an
endless loop hears no Ctrl-C. So the program forks before it loads anything: the child works, and the parent, which
touches nothing that was brought, waits for it and says how it ended. Arrays never cross a boundary, so that nothing is
slower for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from types import FrameType

from resnet_onnx.cli.terminal import Terminal
from runtimes.doing import Board, Note
from runtimes.errors import BadModel, OutOfMemory, RunFailed, ToolkitError
from runtimes.processes import adopt_orphans, end_with_parent

INTERRUPTED = 130
GRACE_S = 6.0
"""Seconds that work has to end by itself after Ctrl-C; then it is ended."""

_TWICE_S = 1.0
"""Seconds after which another Ctrl-C means that somebody does not want to wait."""

_FIRST_TO_GO = b"500"
"""Where memory runs out, the system ends this process rather than somebody else's (proc(5), oom_score_adj)."""

_MEANINGS = {
    signal.SIGFPE: "a division that the processor refuses",
    signal.SIGSEGV: "an invalid access to memory",
    signal.SIGABRT: "a library gave up",
    signal.SIGILL: "an instruction that this processor does not have",
    signal.SIGKILL: "the system does that where memory runs out",
}
if hasattr(signal, "SIGBUS"):
    _MEANINGS[signal.SIGBUS] = "the memory or file behind an address is gone"
_ENDINGS = {"SIGTERM", "SIGHUP", "SIGQUIT", "SIGPIPE"}
"""By which somebody ends a program on purpose."""


def work_in_child(terminal: Terminal) -> None:
    """Forks where the system can: returns in the child, and in the parent ends the program as the child ended."""
    if not hasattr(os, "fork"):
        return
    board = Board()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    adopt_orphans()
    parent = os.getpid()
    heeded = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    child = os.fork()
    if child == 0:
        end_with_parent(parent)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb") as score:
            score.write(_FIRST_TO_GO)
        if heeded:
            signal.signal(signal.SIGINT, _interrupted_once)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return
    watch = _Watch(child, heeded)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    code = watch.wait(board, terminal)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _interrupted_once(number: int, frame: FrameType | None) -> None:
    """Raises ``KeyboardInterrupt``, once: the same Ctrl-C comes from the terminal and from the parent.

    The mask is of this thread alone, and the system hands a signal to any thread that takes it; the handler is gone
    when Python takes itself apart.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, _not_again)
    raise KeyboardInterrupt


def _not_again(number: int, frame: FrameType | None) -> None:
    """Does nothing. ``SIG_IGN`` would complain of a signal that is on its way."""


class _Watch:
    """The parent's side: passes signals on, and waits."""

    def __init__(self, child: int, heeded: bool) -> None:
        self._child = child
        self._interrupted: float | None = None
        if heeded:
            signal.signal(signal.SIGINT, self._interrupt)
        for name in ("SIGTERM", "SIGHUP"):
            if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
                signal.signal(getattr(signal, name), self._pass_on)
        signal.signal(signal.SIGALRM, self._end)

    def wait(self, board: Board, terminal: Terminal) -> int:
        """Returns the exit code, after saying what the child could not say itself."""
        _, status = os.waitpid(self._child, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if os.WIFEXITED(status):
            code = os.WEXITSTATUS(status)
            if self._interrupted is None or code == INTERRUPTED or board.read().exit_code is not None:
                return code
            return self._say_interrupted(terminal)  # a library ended the process over the interrupt
        by = os.WTERMSIG(status)
        end_descendants()
        note = board.read()
        if note.exit_code is not None:
            return note.exit_code
        if self._interrupted is not None or by == signal.SIGINT:
            return self._say_interrupted(terminal)
        name = signal.Signals(by).name if by in set(signal.Signals) else f"signal {by}"
        if name in _ENDINGS:
            signal.signal(by, signal.SIG_DFL)
            os.kill(os.getpid(), by)
        told = death(note, by, name)
        terminal.error(told.kind, told.message, told.fix)
        return told.exit_code

    def _say_interrupted(self, terminal: Terminal) -> int:
        terminal.error("interrupted", "interrupted; what was complete is kept", None)
        return INTERRUPTED

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._interrupted is None:
            self._interrupted = now
            signal.setitimer(signal.ITIMER_REAL, GRACE_S)
            self._pass_on(number, frame)
        elif now - self._interrupted > _TWICE_S:
            self._end(number, frame)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, number)

    def _end(self, number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGKILL)


def death(note: Note, by: int, name: str) -> ToolkitError:
    """Returns what there is to say of work that was ended by a signal."""
    kind: type[ToolkitError] = OutOfMemory if name == "SIGKILL" else BadModel if note.checking else RunFailed
    meaning = f" ({_MEANINGS[signal.Signals(by)]})" if by in _MEANINGS else ""
    fix = "choose another runtime, or a model from a source that you trust; --verbose shows what the library printed"
    if kind is OutOfMemory:
        fix = "use a smaller batch or model, or a machine with more memory"
    return kind(f"{note.what or 'the work'} was ended by {name}{meaning}", fix=fix)


def end_descendants() -> None:
    """Kills every process below this one."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            # The tracker removes what the others shared in memory, and then ends by itself.
            if "multiprocessing.resource_tracker" not in " ".join(child.cmdline()):
                child.kill()
