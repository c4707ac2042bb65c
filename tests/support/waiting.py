"""Waiting for another process, without a verdict that depends on how fast the machine is."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HANG_S = 570
"""A process that takes longer hangs; below pytest's own timeout, so that the message names what hangs."""


def wait_for_path(path: Path, process: subprocess.Popen[Any]) -> None:
    """Waits until a path exists that a running process makes."""
    deadline = time.monotonic() + HANG_S
    while not path.exists():
        assert process.poll() is None, f"the process ended with {process.returncode} before it made {path.name}"
        assert time.monotonic() < deadline, f"the process hangs before it makes {path.name}"
        time.sleep(0.02)


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Waits until something holds."""
    deadline = time.monotonic() + HANG_S
    while not holds():
        assert time.monotonic() < deadline, f"it hangs before {what}"
        time.sleep(0.02)
