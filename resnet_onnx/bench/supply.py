"""Work that begins before the runtime does: feeds made anew for each run by a factory that ``bench`` need not know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.base import Prepared, Runtime
from runtimes.spec import Feeds, imported

Next = Callable[[], Feeds]
"""Returns the feeds of the next run."""


@dataclass(frozen=True, kw_only=True)
class Supply:
    """Where the feeds of each run come from; picklable, so that the process that measures can open it.

    Attributes:
        factory: ``"module:function"``; called with `batch`, `threads` and `arguments`, returns a ``Next``.
        arguments: Its further keyword arguments.
        includes: What of its work is timed, in words: ``decode``.
        label: What it supplies, for the record.
    """

    factory: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    includes: tuple[str, ...]
    label: str

    def open(self, *, batch: int, threads: int) -> Next:
        """Imports and calls the factory."""
        supplied: Next = imported(self.factory)(batch=batch, threads=threads, **self.arguments)
        return supplied


class Supplied(Prepared):
    """A run that makes its feeds first: ``enqueue`` returns when the outputs are in host arrays.

    Args:
        runtime: The opened model.
        supply: Makes the feeds.
    """

    def __init__(self, runtime: Runtime, supply: Next) -> None:
        super().__init__("end-to-end")
        self._runtime, self._next = runtime, supply
        self._results: dict[str, NDArray[np.generic]] = {}

    def _enqueue(self) -> None:
        self._results = self._runtime.run(self._next())

    def _synchronize(self) -> None:
        """There is nothing to wait for."""

    def _outputs(self) -> dict[str, NDArray[Any]]:
        return self._results
