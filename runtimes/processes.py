"""What Linux can be told of processes: who ends with whom, and whose children the orphans are; nothing elsewhere."""

from __future__ import annotations

import os
import signal
import sys

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
"""Of prctl(2)."""


def end_with_parent(parent: int) -> None:
    """Asks the system to kill this process when its parent ends, also while it is frozen or in native code."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if sys.platform == "linux" and os.getppid() != parent:  # it ended just before
        os._exit(0)


def adopt_orphans() -> None:
    """Makes processes below this one whose parent ended its children; only children can be found and ended."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
