"""A journal of finished steps: a kill at any moment loses the step that was running, and nothing is measured twice.

One JSON object a line. The first says on what it was measured (its identity); each further one is a step with its key,
its result and the clock at its end. A step is on the disk (fsync) before the next one begins. Whoever resumes asks for
the same steps by their keys and gets the recorded results, clock included, until there are no more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from runtimes import files

FORMAT = 1
"""Of the file. Another one starts anew: its steps may mean something else."""

T = TypeVar("T")


class Journal:
    """Steps of one job.

    Args:
        path: The file; None keeps no journal.
        identity: What the steps depend on: machine, libraries, model, settings. Texts that a user can read, or hashes.
        resume: Whether to go on from what is there; otherwise it is replaced.
        clock: Seconds that this process has spent on the job.

    Attributes:
        anew: Why nothing was taken over although it was to be resumed, or "".
        resumed: Steps that were taken over.

    Raises:
        FileProblem: It can't be read or written.
    """

    def __init__(
        self,
        path: Path | None,
        identity: Mapping[str, str],
        *,
        clock: Callable[[], float],
        resume: bool = False,
    ) -> None:
        self.path = path
        self._identity = {"journal": str(FORMAT), **identity}
        self._clock = clock
        self._steps: dict[str, tuple[Any, float]] = {}
        self._replayed_until: float | None = 0.0
        self.anew = ""
        lines: list[str] = []
        if path is not None and resume:
            lines, self.anew = _read(path, self._identity)
        for line in lines[1:]:
            step = json.loads(line)
            self._steps[step["step"]] = step["result"], step["clock_s"]
        self._earlier_s = max((clock_s for _, clock_s in self._steps.values()), default=0.0)
        self.resumed = len(self._steps)
        if path is not None:
            header = [json.dumps({"identity": self._identity})]
            # Written anew as a whole: a torn last line would otherwise grow together with the next one.
            files.write_text(path, "".join(f"{line}\n" for line in lines or header))

    def now(self) -> float:
        """Seconds that the job has taken up to the present step, in all processes that worked on it.

        While steps are taken over, the clock at the end of the last of them: what is decided by the time left is then
        decided as it was.
        """
        if self._replayed_until is not None and self.resumed:
            return self._replayed_until
        return self._earlier_s + self._clock()

    def once(self, key: str, measure: Callable[[], T], kind: type[T]) -> T:
        """Returns the result of a step, which is measured unless it was before.

        Args:
            key: Names it among all steps.
            measure: Does it.
            kind: Type of the result, for msgspec.

        Raises:
            FileProblem: The journal can't be written.
        """
        if key in self._steps:
            result, clock_s = self._steps[key]
            if self._replayed_until is not None:
                self._replayed_until = clock_s
            return msgspec.convert(result, kind)
        self._replayed_until = None
        found = measure()
        self._steps[key] = result, clock_s = msgspec.to_builtins(found), self.now()
        if self.path is not None:
            step = {"step": key, "clock_s": clock_s, "result": result}
            files.append_line(self.path, json.dumps(step, allow_nan=False))
        return found


def _read(path: Path, identity: Mapping[str, str]) -> tuple[list[str], str]:
    """Returns the sound lines of a journal of the same identity, or none and why."""
    lines: list[str] = []
    for line in files.read_lines(path):
        try:
            found = json.loads(line)
        except ValueError:
            break  # torn; what follows it could only be what another program wrote
        if not isinstance(found, dict) or not (
            {"step", "clock_s", "result"} <= found.keys() if lines else "identity" in found
        ):
            break
        lines.append(line)
    if not lines:
        return [], f"there is no journal in {files.printable(str(path))}"
    before = json.loads(lines[0])["identity"]
    differ = sorted(key for key in {*before, *identity} if before.get(key) != identity.get(key))
    if differ:
        said = "; ".join(f"{key}: {before.get(key, 'none')} → {identity.get(key, 'none')}" for key in differ)
        return [], f"the journal is of another {', '.join(differ)} ({said})"
    return lines, ""
