"""Work that begins before the runtime does: feeds made anew for each run by a factory that ``bench`` need not know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.base import Prepared, Runtime
from runtimes.spec import Feeds, imported

NextFeeds = Callable[[], Feeds]
"""Returns the feeds of the next run."""


@dataclass(frozen=True, kw_only=True)
class FeedFactory:
    """Where the feeds of each run come from; picklable, so that the process that measures can open it.

    Attributes:
        factory: ``"module:function"``; called with `batch`, `threads` and `arguments`, returns a ``NextFeeds``.
        includes: What of its work is timed, in words: ``decode``.
    """

    factory: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    includes: tuple[str, ...]
    label: str

    def open(self, *, batch: int, threads: int) -> NextFeeds:
        """Imports and calls the factory."""
        following: NextFeeds = imported(self.factory)(batch=batch, threads=threads, **self.arguments)
        return following


class FedRun(Prepared):
    """A run that makes its feeds first: ``enqueue`` returns when the model has begun on them.

    The feeds are copied into the arrays of a prepared run, which has a request or session of its own: several of these
    may run beside each other.
    """

    def __init__(self, runtime: Runtime, following: NextFeeds) -> None:
        super().__init__("end-to-end")
        self._next = following
        self._made: Feeds | None = following()  # for the first run, which is one of the warm-up
        self._places: dict[str, NDArray[Any]] = {name: np.array(array) for name, array in self._made.items()}
        # End to end: a run copies these arrays anew each time.
        self._prepared = runtime.prepare(self._places, scope="end-to-end")

    @property
    def given(self) -> Feeds:
        """The feeds of the last run."""
        return self._places

    def _enqueue(self) -> None:
        feeds, self._made = (self._next() if self._made is None else self._made), None
        for name, array in feeds.items():
            np.copyto(self._places[name], array)
        self._prepared.enqueue()

    def _synchronize(self) -> None:
        self._prepared.synchronize()

    def _outputs(self) -> dict[str, NDArray[Any]]:
        return self._prepared.outputs()

    def _close(self) -> None:
        self._prepared.close()
