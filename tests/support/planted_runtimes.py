"""Runtimes of another package that compute something else than the network, each in its own way."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from runtimes.base import HostRuns, Prepared, Runtime
from runtimes.ort import OrtCpuRuntime
from runtimes.registry import ENTRY_POINTS
from runtimes.spec import ModelSource, NodePlacement, RuntimeOptions, Scope, TensorSpec

Arrays = dict[str, NDArray[Any]]


class _Inner(OrtCpuRuntime):
    name = "planted"


class PlantedRuntime(Runtime):
    """ONNX Runtime's CPU session behind an adapter that may change the file, the outputs, or both."""

    title = "A runtime with a fault"
    precisions = frozenset({"fp32", "int8"})
    lowers_int8 = False
    wrong_when_prepared: ClassVar[bool] = False

    @classmethod
    def _installed_version(cls) -> str | None:
        return "1.0"

    @classmethod
    def _probe(cls, device: str) -> tuple[str, tuple[str, ...]]:
        return "1.0", (device,)

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], Mapping[str, Any]]:
        inside = RuntimeOptions(threads=self.options.threads, streams=self.options.streams, spin=False)
        assert self.source.path is not None
        self._folder = tempfile.TemporaryDirectory()
        proto = onnx.load(self.source.path)
        self.change(proto)
        path = Path(self._folder.name) / "changed.onnx"
        onnx.save(proto, path)
        source = self.source if self.wrong_when_prepared else ModelSource(path=path, label=self.source.name)
        self._inner = _Inner(source, device=self.device, options=inside)
        self._changed = _Inner(ModelSource(path=path), device=self.device, options=inside)
        self._before: Arrays = {}
        return self._inner.inputs, self._inner.outputs, {"threads": self._inner.recorded["threads"]}

    def _placement(self) -> tuple[NodePlacement, ...]:
        return (NodePlacement("*", "", "planted", self.device),)

    def _run(self, feeds: Arrays) -> Arrays:
        return self.answer(self._inner.run(feeds), feeds)

    def _prepare(self, feeds: Arrays, scope: Scope) -> Prepared:
        run = self._changed.run if self.wrong_when_prepared else self._run
        return HostRuns(run, feeds, scope)

    def _close(self) -> None:
        self._inner.close()
        self._changed.close()
        self._folder.cleanup()

    def change(self, proto: onnx.ModelProto) -> None:
        """Changes the file."""

    def answer(self, outputs: Arrays, feeds: Arrays) -> Arrays:
        """Changes what comes out."""
        return outputs


class Sound(PlantedRuntime):
    name = "sound"


class Previous(PlantedRuntime):
    """Answers with the result of the batch before."""

    name = "previous"

    def answer(self, outputs: Arrays, feeds: Arrays) -> Arrays:
        before, self._before = self._before or outputs, outputs
        return {name: np.resize(before[name], array.shape) for name, array in outputs.items()}


class DropsRow(PlantedRuntime):
    """Leaves the last row out."""

    name = "drops-row"

    def answer(self, outputs: Arrays, feeds: Arrays) -> Arrays:
        return {name: array[: max(1, len(array) - 1)] for name, array in outputs.items()}


class OnlyBatchOne(PlantedRuntime):
    """Gives every row of a batch the first one's result."""

    name = "only-batch-1"

    def answer(self, outputs: Arrays, feeds: Arrays) -> Arrays:
        return {name: np.repeat(array[:1], len(array), axis=0) for name, array in outputs.items()}


class OnlySmallBatches(PlantedRuntime):
    """Mixes two rows up in batches of eight and more."""

    name = "only-small-batches"

    def answer(self, outputs: Arrays, feeds: Arrays) -> Arrays:
        def mixed(array: NDArray[Any]) -> NDArray[Any]:
            return array if len(array) < 8 else array[[1, 0, *range(2, len(array))]]

        return {name: mixed(array) for name, array in outputs.items()}


class OneNaN(PlantedRuntime):
    """Answers NaN for the brightest pictures."""

    name = "one-nan"

    def answer(self, outputs: Arrays, feeds: Arrays) -> Arrays:
        (pictures,) = feeds.values()
        bright = pictures.reshape(len(pictures), -1).mean(axis=1) > 1.5
        return {name: np.where(bright[:, None], np.float32(np.nan), array) for name, array in outputs.items()}


class SkipsBlock(PlantedRuntime):
    """Leaves a residual block out, and is the faster for it."""

    name = "skips-block"

    def change(self, proto: onnx.ModelProto) -> None:
        outputs = {node.name: node.output[0] for node in proto.graph.node}
        left_out, before = "layer2.1.relu_2", "layer2.0.relu_2"
        for node in proto.graph.node:
            node.input[:] = [outputs[before] if each == outputs[left_out] else each for each in node.input]


class ScalesChannel(PlantedRuntime):
    """One weight channel is 1 % too large, as among parity's mutants."""

    name = "scales-channel"

    def change(self, proto: onnx.ModelProto) -> None:
        node = next(node for node in proto.graph.node if node.name == "layer2.1.conv1")
        tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == node.input[1])
        values = numpy_helper.to_array(tensor).copy()
        values[3] *= 1.01
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


class DropsRelu(PlantedRuntime):
    """A ReLU is missing, as among parity's mutants."""

    name = "drops-relu"

    def change(self, proto: onnx.ModelProto) -> None:
        gone = next(node for node in proto.graph.node if node.name == "layer2.1.relu")
        for node in proto.graph.node:
            node.input[:] = [gone.input[0] if each == gone.output[0] else each for each in node.input]
        proto.graph.node.remove(gone)


class SkipsWhenPrepared(SkipsBlock):
    """Computes the network where it is asked once, and leaves a block out where it is timed."""

    name = "skips-when-prepared"
    wrong_when_prepared = True


class Crashes(PlantedRuntime):
    """Raises what no runtime should."""

    name = "crashes"

    def answer(self, outputs: Arrays, feeds: Arrays) -> Arrays:
        raise ValueError("nobody expects this")


FAULTY = (
    Previous, DropsRow, OnlyBatchOne, OnlySmallBatches, OneNaN, SkipsBlock, ScalesChannel, DropsRelu, Crashes,
)  # fmt: skip
ALL = (Sound, *FAULTY, SkipsWhenPrepared)


def install(folder: Path) -> Path:
    """Writes the metadata of a package that declares all of them, as if pip had installed it on the search path."""
    metadata = folder / "planted-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n")
    lines = "".join(f"{cls.name} = {__name__}:{cls.__name__}\n" for cls in ALL)
    (metadata / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\n{lines}")
    return folder
