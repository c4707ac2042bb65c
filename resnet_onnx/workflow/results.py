"""Saved results: a result with what is needed to trust and repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from resnet_onnx import __version__
from resnet_onnx.workflow.onnx_form import graph_path
from resnet_onnx.workflow.request import Model
from runtimes import files
from runtimes.environment import describe_machine

RESULT_SCHEMA = 1


def saved_result(kind: str, model: Model, result: Mapping[str, Any]) -> dict[str, Any]:
    """Wraps a result with what is needed to trust and repeat it: schema, environment, hashes, command."""
    import sys
    import time

    hashes = {"weights_sha256": model.network.weights_sha256} if model.network is not None else {}
    # What parity judged in several runtimes is the file that bench measures in them, exported or not.
    path = graph_path(model) if kind == "parity" else model.onnx
    if path is not None:
        hashes["onnx_sha256"] = files.check_onnx(path).sha256
    return {
        "schema": RESULT_SCHEMA,
        "kind": kind,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "tool": f"resnet-onnx {__version__}",
        "command": ["resnet-onnx", *sys.argv[1:]],
        "environment": describe_machine(),
        "artifacts": hashes,
        "result": _finite(result),
    }


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
