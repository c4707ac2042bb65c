"""A runtime of a package that is not ours: ONNX Runtime's CPU session behind an adapter of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from runtimes.base import Prepared, Runtime
from runtimes.ort import OrtCpuRuntime
from runtimes.registry import ENTRY_POINTS
from runtimes.spec import NodePlacement, RuntimeOptions, Scope, TensorSpec

NAME = "made-up"


class _Inner(OrtCpuRuntime):
    name = NAME  # in messages


class MadeUpRuntime(Runtime):
    """Uses ``channels_last`` for show; what it does not declare, it inherits."""

    name = NAME
    title = "A runtime of another package"
    uses = frozenset({"threads", "streams", "channels_last"})
    precisions = frozenset({"fp32", "fp16"})
    build_advice = "reads the ONNX file as it is"

    @classmethod
    def _installed_version(cls) -> str | None:
        return "1.2.3"

    @classmethod
    def _probe(cls, device: str) -> tuple[str, tuple[str, ...]]:
        return "1.2.3", (device,)

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], Mapping[str, Any]]:
        inside = RuntimeOptions(threads=self.options.threads, streams=self.options.streams)
        self._inner = _Inner(self.source, device=self.device, options=inside)
        recorded = {"threads": self._inner.recorded["threads"], "channels_last": self.options.channels_last}
        return self._inner.inputs, self._inner.outputs, recorded

    def _placement(self) -> tuple[NodePlacement, ...]:
        return (NodePlacement("*", "", "made up", self.device),)

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return self._inner.run(feeds)

    def _prepare(self, feeds: dict[str, NDArray[Any]], scope: Scope) -> Prepared:
        return self._inner.prepare(feeds, scope=scope)

    def _close(self) -> None:
        self._inner.close()


def install(folder: Path, *, adapter: str = f"{__name__}:MadeUpRuntime", name: str = NAME) -> Path:
    """Writes the metadata of a package that declares a runtime; on the search path it is as if pip had installed it."""
    metadata = folder / "made_up-1.2.3.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up\nVersion: 1.2.3\n")
    (metadata / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\n{name} = {adapter}\n")
    return folder
