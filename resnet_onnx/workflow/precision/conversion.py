"""A conversion under way: candidates written as runtimes open them, and compared with float32."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.workflow.precision.comparison import Comparison
from resnet_onnx.workflow.precision.config import ConversionConfig
from resnet_onnx.workflow.precision.pictures import Pictures
from resnet_onnx.workflow.request import Model
from runtimes import onnx_gate, registry
from runtimes.base import Runtime
from runtimes.errors import BadData
from runtimes.registry import open_runtime
from runtimes.spec import Feeds, ModelSource, RuntimeOptions

Progress = Callable[[str], None]
Split = Literal["validation", "held-out"]

_KEPT_BYTES = 2**26
"""Outputs of float32 on the validation pictures, which several steps look at; there are 1,024 pictures at most."""


@dataclass(kw_only=True)
class Conversion:
    """What the steps of a conversion share.

    Attributes:
        model: The model that is converted.
        source: Its float32 ONNX file after the gate.
        config: What the conversion should be.
        data: The pictures.
        folder: For drafts; removed when the conversion ends.
        progress: Called with what is being done.
        number: Of the last draft.
        computes_in: Precision in which `runtime` multiplied, where that is known.
    """

    model: Model
    source: onnx_gate.CheckedModel
    config: ConversionConfig
    data: Pictures
    folder: Path
    progress: Progress
    number: int = field(default=0)
    computes_in: str | None = None
    _expected: list[list[NDArray[Any]]] = field(default_factory=list)
    _mean: NDArray[np.float64] | None = None

    @property
    def runtime(self) -> str:
        """The runtime whose outputs the gate compares: the one that a user meets first, if it runs the precision."""
        return registry.judging_runtime(self.config.to)

    @property
    def original(self) -> ModelSource:
        """The float32 model as a source, which messages name."""
        return ModelSource(path=self.source.path, label=self.model.name)

    @property
    def deciding(self) -> str:
        """The output whose highest value is a decision: that with the scores, or the first where that is not known."""
        return (self.model.scores.output or self.source.outputs[0]).name

    def _ordered(self, outputs: Mapping[str, NDArray[Any]], count: int | None) -> list[NDArray[Any]]:
        """Returns the outputs of the first `count` samples, the deciding one first."""
        names = [self.deciding, *(spec.name for spec in self.source.outputs if spec.name != self.deciding)]
        return [_first(outputs[name], count) for name in names]

    def compare_one(self, candidate: Any, split: Split, most: int | None = None) -> Comparison:
        """Compares a candidate, as `runtime` opens it, with float32."""
        path = self.draft(candidate, self.runtime)
        found = self.compare({self.runtime: path}, split, most)[self.runtime]
        path.unlink()
        return found

    def draft(self, candidate: Any, runtime: str | None) -> Path:
        """Writes a candidate into the working folder, lowered for a runtime where that has a lowering."""
        import onnx

        from converters import graph
        from converters.lowering import lower

        self.number += 1
        path = self.folder / f"draft-{self.number}.onnx"
        if runtime is not None and self.config.to == "int8":
            copy = onnx.ModelProto()
            copy.CopyFrom(candidate)
            lower(copy, runtime)
            candidate = copy
        graph.draft(path, candidate)
        return path

    def mean_difference(self, path: Path, batches: Iterable[Feeds]) -> NDArray[np.float64]:
        """Returns the mean of a candidate's deciding output less that of float32, float64 [channels].

        The batches have to be the same in every call: the mean of float32 is kept.
        """
        options = RuntimeOptions(spin=False)
        sources = {path: (self.runtime, self.original.rewritten(path))}
        if self._mean is None:
            sources[self.source.path] = (registry.DEFAULT_RUNTIME, self.original)
        means: dict[Path, NDArray[np.float64]] = {}
        samples = 0
        with contextlib.ExitStack() as stack:
            opened = {
                name: stack.enter_context(open_runtime(runtime, source, options=options))
                for name, (runtime, source) in sources.items()
            }
            for feeds in batches:
                for name, runtime in opened.items():
                    found = runtime.run(feeds)[self.deciding]
                    means[name] = means.get(name, 0.0) + found.astype(np.float64).sum(axis=0)
                samples += len(found)
        if self._mean is None:
            self._mean = means[self.source.path] / samples
        return np.asarray(means[path] / samples - self._mean, np.float64)

    def compare(self, forms: Mapping[str, Path], split: Split, most: int | None = None) -> dict[str, Comparison]:
        """Runs the float32 model and some forms on the same pictures, a batch at a time.

        Args:
            forms: Files for `runtime`, by name.
            split: Which pictures.
            most: Stop after so many of them.

        Raises:
            BadData: No picture could be read.
        """
        options = RuntimeOptions(spin=False)
        found = {name: Comparison() for name in forms}
        outputs: Mapping[str, NDArray[Any]]
        batches = self.data.validation() if split == "validation" else self.data.held_out()
        with contextlib.ExitStack() as stack:

            def opened(runtime: str, source: ModelSource) -> Runtime:
                return stack.enter_context(open_runtime(runtime, source, options=options))

            gold: Runtime | None = None
            read = False
            made = {
                name: self.original.rewritten(path, label=f"{self.model.name} in {self.config.to}")
                for name, path in forms.items()
            }
            runtimes = {name: opened(self.runtime, source) for name, source in made.items()}
            self.computes_in = next(iter(runtimes.values())).recorded.get("computes_in")
            for number, (feeds, count, labels) in enumerate(batches):
                if split == "validation" and number < len(self._expected):
                    expected = self._expected[number]
                else:
                    gold = gold or opened(registry.DEFAULT_RUNTIME, self.original)
                    outputs = gold.run(feeds)
                    expected = self._ordered(outputs, count)
                    if split == "validation" and sum(a.nbytes for kept in self._expected for a in kept) < _KEPT_BYTES:
                        self._expected.append(expected)
                for name, runtime in runtimes.items():
                    cast = {spec.name: feeds[spec.name].astype(spec.dtype) for spec in runtime.inputs}
                    outputs = runtime.run(cast)
                    found[name].add(expected, self._ordered(outputs, count), labels)
                read = True
                images = next(iter(found.values())).images
                self.progress(f"comparing with fp32: {images} pictures")
                if most is not None and images >= most:
                    break
        if not read:
            raise BadData(
                "none of the held-out pictures could be read, so that nothing can be said of the result",
                fix="name other pictures: --calibration D",
            )
        return found


def _first(outputs: NDArray[Any], count: int | None) -> NDArray[Any]:
    """Returns the outputs of the first `count` samples, all where it is None; a scalar is one."""
    return np.atleast_1d(outputs)[:count]
