"""A conversion under way: candidates written as runtimes open them, and compared with float32."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnet_onnx.workflow.precision.comparison import Comparison
from resnet_onnx.workflow.precision.pictures import Judged, Pictures
from resnet_onnx.workflow.precision.wishes import Wishes
from resnet_onnx.workflow.request import Model
from runtimes import files
from runtimes.errors import BadData
from runtimes.registry import open_runtime
from runtimes.spec import ModelSource, RuntimeOptions

Progress = Callable[[str], None]


@dataclass(kw_only=True)
class Work:
    """What the steps of a conversion share.

    Attributes:
        model: The model that is converted.
        source: Its float32 ONNX file after the gate.
        wishes: What is wanted.
        data: The pictures.
        folder: For drafts; removed when the conversion ends.
        progress: Told what is being done.
        number: Of the last draft.
    """

    model: Model
    source: files.CheckedModel
    wishes: Wishes
    data: Pictures
    folder: Path
    progress: Progress
    number: int = field(default=0)

    @property
    def judge(self) -> str:
        """The runtime whose outputs are judged: the one that a user meets first, or the one that runs bfloat16."""
        return "openvino" if self.wishes.to == "bf16" else "ort-cpu"

    def judge_on(self, candidate: Any, batches: Iterator[Judged], most: int | None = None) -> Comparison:
        """Compares a candidate, as the judging runtime opens it, with float32."""
        path = self.draft(candidate, self.judge)
        found = self.compare({self.judge: (self.judge, path)}, batches, most)[self.judge]
        path.unlink()
        return found

    def draft(self, candidate: Any, runtime: str | None) -> Path:
        """Writes a candidate into the working folder, lowered for a runtime where that has a lowering."""
        import onnx

        from converters.lowering import lower

        self.number += 1
        path = self.folder / f"draft-{self.number}.onnx"
        if runtime is not None and self.wishes.to == "int8":
            copy = onnx.ModelProto()
            copy.CopyFrom(candidate)
            lower(copy, runtime)
            candidate = copy
        path.write_bytes(candidate.SerializeToString())
        return path

    def compare(
        self,
        forms: Mapping[str, tuple[str, Path]],
        batches: Iterator[Judged],
        most: int | None = None,
    ) -> dict[str, Comparison]:
        """Runs the float32 model and some forms on the same pictures, a batch at a time."""
        options = RuntimeOptions(spin=False)
        found = {name: Comparison() for name in forms}
        with contextlib.ExitStack() as stack:
            gold = stack.enter_context(
                open_runtime("ort-cpu", ModelSource(path=self.source.path, label=self.model.name), options=options)
            )
            opened = {
                name: stack.enter_context(
                    open_runtime(runtime, ModelSource(path=path, label=f"{self.model.name} ({name})"), options=options)
                )
                for name, (runtime, path) in forms.items()
            }
            output = gold.outputs[0].name
            for feeds, count, labels in batches:
                expected = gold.run(feeds)[output][:count]
                for name, runtime in opened.items():
                    cast = {spec.name: feeds[spec.name].astype(spec.dtype) for spec in runtime.inputs}
                    found[name].add(expected, runtime.run(cast)[output][:count], labels)
                images = next(iter(found.values())).images
                self.progress(f"comparing with fp32: {images} pictures")
                if most is not None and images >= most:
                    break
        if not next(iter(found.values())).images:
            raise BadData(
                "none of the pictures held out could be read, so that nothing can be said of the result",
                fix="name other pictures: --calibration D",
            )
        return found
