"""Saved results: a result with what is needed to trust and repeat it."""

from __future__ import annotations

import sys
import time
from typing import TypeVar

from resnet_onnx.results.compare import Compare
from resnet_onnx.results.document import Artifacts, Document, Environment, Saved
from resnet_onnx.results.writing import typed
from resnet_onnx.version import __version__
from resnet_onnx.workflow.onnx_form import graph_path
from resnet_onnx.workflow.request import Model
from runtimes import onnx_gate
from runtimes.environment import describe_machine

BodyT = TypeVar("BodyT", bound=Document)


def saved_comparison(result: Compare) -> Saved[Compare]:
    """Wraps a comparison with the command and this machine; the hashes of two models are in its own sides."""
    return _saved(result, Artifacts())


def saved_result(model: Model, result: BodyT) -> Saved[BodyT]:
    """Wraps a result with what is needed to trust and repeat it: environment, hashes, command."""
    hashes = {"weights_sha256": model.network.weights_sha256} if model.network is not None else {}
    if model.network is not None and model.network.weights_license is not None:
        hashes["weights_license"] = model.network.weights_license
    # What parity judged in several runtimes is the file that bench measures in them, exported or not.
    path = graph_path(model) if result.kind == "parity" else model.onnx
    if path is not None:
        hashes["onnx_sha256"] = onnx_gate.check_onnx(path).sha256
    return _saved(result, Artifacts(**hashes))


def _saved(result: BodyT, artifacts: Artifacts) -> Saved[BodyT]:
    return Saved(
        made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        tool=f"resnet-onnx {__version__}",
        command=["resnet-onnx", *sys.argv[1:]],
        environment=typed(Environment, describe_machine()),
        artifacts=artifacts,
        result=result,
    )
