"""A runtime that computes with a Python function: for tests, yours and ours.

It is not in the registry; make one directly::

    fake = FakeRuntime(ModelSource(factory="mytests:program"), device="cpu", options=RuntimeOptions())
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.base import Runtime
from runtimes.errors import BadModel, RunFailed, ToolkitError
from runtimes.spec import NodePlacement, TensorSpec


@dataclass(frozen=True, kw_only=True)
class FakeProgram:
    """What the source's factory returns for a ``FakeRuntime``; `function` turns arrays by name into arrays by name."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    function: Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]


class FakeRuntime(Runtime):
    """Fills the interface with a Python function."""

    name = "fake"
    title = "A Python function"
    opens = ("torch",)  # a factory makes it, too

    @classmethod
    def _installed_version(cls) -> str | None:
        return "1"

    @classmethod
    def _probe(cls, device: str) -> tuple[str, tuple[str, ...]]:
        return "1", (device,)

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], Mapping[str, Any]]:
        if self.source.factory is None:
            raise BadModel(f"the fake runtime runs a function, but {self.source.name} has none")
        program: FakeProgram = self.source.call_factory()
        self._function = program.function
        return program.inputs, program.outputs, {"threads": self.options.threads or 1}

    def _placement(self) -> tuple[NodePlacement, ...]:
        return (NodePlacement("*", "", "Python function", self.device),)

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            results = self._function(feeds)
        except ToolkitError:
            raise
        except Exception as error:
            raise RunFailed(f"{self.name}: running {self.source.name} failed: {error}") from error
        missing = [s.name for s in self.outputs if s.name not in results]
        if missing:
            raise RunFailed(f"the fake's function returned no {', '.join(missing)}")
        return {s.name: np.array(results[s.name]) for s in self.outputs}  # a function may return what it keeps

    def _close(self) -> None:
        pass
