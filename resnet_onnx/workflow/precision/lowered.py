"""An int8 model in the form of one runtime, as a file to deploy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resnet_onnx.version import __version__
from resnet_onnx.workflow.onnx_form import onnx_path
from resnet_onnx.workflow.request import Model
from runtimes import onnx_gate
from runtimes.errors import UsageError


def build_lowered(model: Model, runtime: str, output: Path | None, *, exact: bool = False) -> dict[str, Any]:
    """Makes the form of a portable int8 model for one runtime, in the cache or, with `output`, as a file to deploy.

    With `exact` it clips where the portable file clips. Returns what ``BuildLowered`` holds.

    Raises:
        UsageError: There is nothing to lower, or `output` is the model itself.
    """
    from converters import graph
    from converters.lowering import lowered_file
    from resnet_onnx.bench.clock import Watch

    if model.precision != "int8":
        raise UsageError(
            f"there is nothing to build for runtime '{runtime}': it loads the ONNX file itself "
            f"where that is {model.precision}",
            fix=f"make the ONNX file: resnet-onnx export, or an int8 one: resnet-onnx convert {model.name} --to int8",
        )
    checked = onnx_gate.check_onnx(onnx_path(model))
    watch = Watch()
    made = lowered_file(checked, runtime, exact=exact)
    if made is None:
        raise UsageError(
            f"{checked.path} is not in the portable int8 form (signed bytes with zero point 0), so that {runtime} "
            "loads it as it is",
            fix="convert the float32 model: resnet-onnx convert MODEL --to int8",
        )
    path = made.path
    if output is not None:
        path = output / f"{model.file_stem}-{runtime}.onnx" if output.is_dir() else output
        if path.resolve() == checked.path.resolve():
            raise UsageError(f"--output {output} is the model itself, which stays as it is", fix="name another file")
        graph.write(path, graph.load(made.checked), {"made_by": f"resnet-onnx {__version__}", "lowered_for": runtime})
    return {
        "path": str(path),
        "key": made.key,
        "seconds": watch.stop().wall_s,
        "cached": made.cached,
        "cache_path": str(made.path),
        "runtime": runtime,
        "model": model.name,
        "precision": model.precision,
        "exact": exact,
        "changes": dict(made.changes),
        "size_bytes": made.checked.size_bytes,
        "onnx": {"path": str(checked.path), "sha256": checked.sha256, "size_bytes": checked.size_bytes},
    }
