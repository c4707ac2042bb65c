"""Progress: bars on a terminal; elsewhere a line as a stage begins and one every 30 seconds."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TimeRemainingColumn
from rich.status import Status
from rich.text import Text

from runtimes.text import shown

EVERY_S = 30.0
"""Seconds after which work without a terminal says again how far it is."""


class Lines:
    """Says what goes on in lines, in a log file or a pipe; a thread does, since work may be one long native call.

    Args:
        tell: Takes a line.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._begun: str | None = None
        self._text = ""
        self._since = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)

    def update(self, text: str, *, stage: str = "") -> None:
        """Takes what goes on now; without a name for its stage, a text that is another up to its first digit is one."""
        stage = stage or re.split(r"\d", text, maxsplit=1)[0]
        self._text = text
        if stage == self._begun:
            return
        if self._begun is None:
            self._thread.start()
        self._begun, self._since = stage, time.monotonic()
        self._tell(f"{text} …")

    def close(self) -> None:
        """Says nothing more."""
        self._done.set()

    def _repeat(self) -> None:
        while not self._done.wait(EVERY_S):
            minutes, seconds = divmod(int(time.monotonic() - self._since), 60)
            self._tell(f"{self._text} … {minutes}:{seconds:02d}")


class LineProgress(Progress):
    """A progress display that says its tasks in lines."""

    def __init__(self, lines: Lines) -> None:
        super().__init__(disable=True)
        self._lines = lines

    def add_task(self, description: str, *arguments: Any, **options: Any) -> TaskID:
        """Begins a task; see rich."""
        task = super().add_task(description, *arguments, **options)
        self._say(task)
        return task

    def update(self, task_id: TaskID, **options: Any) -> None:
        """Takes how far a task is; see rich."""
        super().update(task_id, **options)
        self._say(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Takes a step; see rich."""
        super().advance(task_id, advance)
        self._say(task_id)

    def _say(self, which: TaskID) -> None:
        task = self._tasks[which]
        if task.visible:
            far = f": {task.completed:,.0f} of {task.total:,.0f}" if task.total and task.completed else ""
            self._lines.update(f"{task.description}{far}", stage=re.split(r"\d", task.description, maxsplit=1)[0])


class _Description(ProgressColumn):
    """What a task is called, as text."""

    def render(self, task: Task) -> Text:
        return Text(shown(task.description))


def bars(console: Console, *, disable: bool) -> Progress:
    """Returns a progress display with a bar for each task."""
    columns = (_Description(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=disable)


class Spinner(Status):
    """A spinner beside a text."""

    def update(self, status: Any = None, **options: Any) -> None:
        """Takes a new text; see rich."""
        super().update(None if status is None else Text(shown(status)), **options)
