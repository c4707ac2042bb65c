"""The model's files in a bundle: what the runtime loads, and the portable ONNX beside it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resnet_onnx.workflow.onnx_form import graph_path
from resnet_onnx.workflow.request import Model
from runtimes import engines, onnx_gate

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

_WEIGHTS = "weights.bin"
_SHARED_BYTES = 1024
"""Smaller weights stay in their graph."""


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """Where a bundle has its model.

    Attributes:
        file: What the runtime loads.
        portable: The portable ONNX; `file` itself where that is one, None where only an engine is at hand.
        outputs: Names of the outputs of `file`, in its order.
    """

    file: str
    form: Literal["onnx", "lowered onnx", "engine"]
    portable: str | None
    outputs: tuple[str, ...]

    def place_of(self, output: str) -> int:
        """Returns the place of an output among all."""
        return self.outputs.index(output) if output in self.outputs else 0


def write_model(model: Model, found: Path, folder: Path) -> ModelFiles:
    """Copies what a runtime loads into a bundle, and the portable file; where both are ONNX, they share their weights.

    Args:
        model: Of which the portable file is taken.
        found: What the runtime loads of it.
        folder: The bundle.
    """
    portable = graph_path(model)
    if found.suffix != ".onnx":
        name = f"model{found.suffix}"
        shutil.copyfile(found, folder / name)
        beside = engines.record_path(found)
        outputs: tuple[str, ...] = ()
        if beside.exists():
            shutil.copyfile(beside, folder / f"{name}.json")
            outputs = tuple(spec.name for spec in engines.described_specs(engines.read_record(found))[1])
        if portable is not None:
            _write_whole(portable, folder / "portable.onnx")
        kept = "portable.onnx" if portable is not None else None
        return ModelFiles(file=name, form="engine", portable=kept, outputs=outputs)
    names = _output_names(found)
    if portable is None or portable == found:
        _write_whole(found, folder / "model.onnx")
        return ModelFiles(file="model.onnx", form="onnx", portable="model.onnx", outputs=names)
    _write_sharing([(found, "model.onnx"), (portable, "portable.onnx")], folder)
    return ModelFiles(file="model.onnx", form="lowered onnx", portable="portable.onnx", outputs=names)


def _output_names(path: Path) -> tuple[str, ...]:
    import onnx

    loaded = onnx.load(str(path), load_external_data=False)
    return tuple(value.name for value in loaded.graph.output)


def _write_whole(path: Path, target: Path) -> None:
    """Copies an ONNX file; one with external data, or in a spelling that not every library reads, is written anew."""
    checked = onnx_gate.check_onnx(path)
    if checked.external_data or checked.dialect:
        target.write_bytes(onnx_gate.load_model(checked).SerializeToString(deterministic=True))
    else:
        shutil.copyfile(path, target)
    onnx_gate.check_onnx(target)


def _write_sharing(graphs: Sequence[tuple[Path, str]], folder: Path) -> None:
    """Writes ONNX files that have their large weights in one file, each of them once."""
    import onnx

    places: dict[tuple[str, int], int] = {}
    with open(folder / _WEIGHTS, "wb") as weights:
        for path, name in graphs:
            model: ModelProto = onnx_gate.load_model(onnx_gate.check_onnx(path))
            for tensor in model.graph.initializer:
                data = _raw(tensor)
                if len(data) < _SHARED_BYTES:
                    continue
                key = hashlib.sha256(data).hexdigest(), len(data)
                if key not in places:
                    places[key] = weights.tell()
                    weights.write(data)
                tensor.ClearField("raw_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
                for entry, value in (("location", _WEIGHTS), ("offset", places[key]), ("length", len(data))):
                    tensor.external_data.add(key=entry, value=str(value))
            (folder / name).write_bytes(model.SerializeToString(deterministic=True))
    for _, name in graphs:
        onnx_gate.check_onnx(folder / name)


def _raw(tensor: TensorProto) -> bytes:
    """Returns a weight's bytes, as its tensor then has them."""
    from onnx import numpy_helper

    if not tensor.HasField("raw_data"):
        again = numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name)
        tensor.CopyFrom(again)
    return bytes(tensor.raw_data)
