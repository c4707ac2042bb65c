"""``resnet-onnx build`` for TensorRT-RTX, which needs no GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from resnet_onnx.cli.main import main
from resnet_onnx.results.commands import BuildEngine
from resnet_onnx.results.writing import encode
from runtimes import trt_shim

TARGETS = ("sm86", "sm89")


needs_rtx = pytest.mark.skipif(
    trt_shim.installed_version("tensorrt-rtx") is None,
    reason="TensorRT-RTX is not installed (pip install 'resnet-onnx[tensorrt-rtx]')",
)


def call(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Runs one command line in this process; returns its exit code and its document."""
    code = main([*arguments, "--json"])
    return code, json.loads(capfd.readouterr().out)


def build(capfd: pytest.CaptureFixture[str], model: str | Path, *arguments: str) -> dict[str, Any]:
    code, found = call(capfd, "build", str(model), "--runtime", "tensorrt-rtx", *arguments)
    assert code == 0, found
    assert json.loads(encode(msgspec.json.decode(json.dumps(found), type=BuildEngine))) == found
    return found


def count(found: dict[str, Any], kind: str, precision: str = "fp32") -> int:
    return sum(row["count"] for row in found["layers"] if (row["type"], row["precision"]) == (kind, precision))
