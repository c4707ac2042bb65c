"""How long an experiment will take and how much memory it needs, from the epochs that it has done."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from resnet_onnx.models.catalog import CatalogEntry
from resnet_onnx.models.counting import layer_table
from resnet_onnx.training.history import EpochRow


@dataclass(kw_only=True)
class Forecast:
    """Seconds and bytes still to come, scaled from the epochs done by what each network computes and keeps.

    Attributes:
        entries: The networks, in the order of their training.
        epochs: Of each.
    """

    entries: Sequence[CatalogEntry]
    epochs: int
    _seconds: dict[str, float] = field(default_factory=dict)
    _done: dict[str, int] = field(default_factory=dict)
    _idle_bytes: int | None = None
    _peak: tuple[str, int] | None = None

    def record_start(self) -> None:
        """Records that the pictures are loaded and a network's first step is done; the first call counts."""
        if self._idle_bytes is None:
            self._idle_bytes = _resident_bytes()

    def record_epoch(self, name: str, epoch: EpochRow) -> None:
        """Records the last finished epoch of a network, which gives its speed."""
        self._done[name] = epoch["epoch"]
        self._seconds[name] = epoch["seconds"] + epoch["test_seconds"]
        if self._idle_bytes is not None and self._peak is None and (peak := _peak_bytes()) is not None:
            self._peak = (name, peak)

    def seconds_left(self) -> float | None:
        """Returns the training time still to come; None before the first epoch."""
        if not self._seconds:
            return None
        work = {entry.name: _activity(entry)[0] for entry in self.entries}
        left = 0.0
        for entry in self.entries:
            near = min(self._seconds, key=lambda seen: abs(math.log(work[seen] / work[entry.name])))
            pace = self._seconds[near] * work[entry.name] / work[near]
            left += pace * (self.epochs - self._done.get(entry.name, 0))
        return left

    def peak_bytes(self) -> int | None:
        """Returns the memory that the largest network will need at its peak; None where it is not known."""
        if self._peak is None or self._idle_bytes is None:
            return None
        name, peak = self._peak
        kept = {entry.name: _activity(entry)[1] for entry in self.entries}
        return self._idle_bytes + round(max(0, peak - self._idle_bytes) * max(kept.values()) / kept[name])

    def line(self) -> str:
        """Returns both in words; "" where neither is known."""
        seconds, peak = self.seconds_left(), self.peak_bytes()
        parts = [f"still about {duration(seconds)} of training, all networks together" if seconds else ""]
        if peak is not None:
            parts.append(f"memory at its peak about {peak / 2**30:.1f} GiB")
        return " · ".join(filter(None, parts))


def _activity(entry: CatalogEntry) -> tuple[int, int]:
    """Returns multiply-adds, and values that layers hand on and training keeps, for one picture."""
    rows = layer_table(entry.config, entry.image_size)
    return sum(row.multiply_adds for row in rows), sum(math.prod(row.output) for row in rows)


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _peak_bytes() -> int | None:
    """Returns the most memory that this process ever held, where the system counts it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def duration(seconds: float) -> str:
    """Returns a time in words: ``40 s``, ``12 min``, ``1 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
