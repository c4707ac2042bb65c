"""Pictures of one colour each, a model that tells them apart, and a command that is run on both."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from resnet_onnx.cli.main import main

COLOURS = [(80 * (i % 4), 80 * (i // 4), 40 * (i % 3)) for i in range(12)]
"""Twelve colours that the model of these tests tells apart."""
Files = Mapping[str, bytes]

PLAIN = ("--mean", "0", "--std", "1")
"""Options of the model: it takes fractions of 255."""


def encoded(colour: int, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    options: dict[str, Any] = {"quality": 95} if form in ("JPEG", "AVIF") else {}
    Image.new("RGB", (8, 8), COLOURS[colour]).save(out, form, **options)
    return out.getvalue()


def write_folder(root: Path, files: Files) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def classes(names: Sequence[str], prefix: str = "", count: int = 2) -> dict[str, bytes]:
    """Class folders; the colour is that of the name's place."""
    return {f"{prefix}{name}/{i}.png": encoded(place) for place, name in enumerate(names) for i in range(count)}


def colour_model(path: Path, outputs: Sequence[int], listed: Sequence[str] = ("scores",)) -> Path:
    """A classifier of 8×8 pictures: score k is highest for colour outputs[k], by the distance of the mean colour.

    Its outputs are those `listed`: ``scores``, ``probabilities``, ``mean`` (three features), ``label`` (int64),
    ``word`` (a string), ``table`` (of a ZipMap).
    """
    centres = np.asarray([COLOURS[colour] for colour in outputs], np.float32) / 255
    words = [f"w{colour}" for colour in outputs]
    nodes = {
        "pooled": helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        "mean": helper.make_node("Flatten", ["pooled"], ["mean"]),
        "scores": helper.make_node("Gemm", ["mean", "w", "b"], ["scores"], transB=1),
        "probabilities": helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        "label": helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
        "word": helper.make_node("LabelEncoder", ["label"], ["word"], domain="ai.onnx.ml",
                                 keys_int64s=range(len(outputs)), values_strings=words),
        "table": helper.make_node("ZipMap", ["scores"], ["table"], domain="ai.onnx.ml", classlabels_strings=words),
    }  # fmt: skip
    types = {
        "mean": helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["n", 3]),
        "label": helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
        "word": helper.make_tensor_value_info("word", TensorProto.STRING, ["n"]),
        "table": helper.make_value_info("table", helper.make_sequence_type_proto(helper.make_map_type_proto(
            TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])))),
    }  # fmt: skip
    scores = [len(outputs)]
    needed = {"pooled", "mean", "scores", *listed, *(["label"] if "word" in listed else [])}
    graph = helper.make_graph(
        [node for name, node in nodes.items() if name in needed],
        "colours",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [types.get(name) or helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *scores]) for name in listed],
        [
            onnx.numpy_helper.from_array(200 * centres, "w"),
            onnx.numpy_helper.from_array(-100 * (centres**2).sum(axis=1), "b"),
        ],
    )
    operators = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
    onnx.save(helper.make_model(graph, opset_imports=operators, ir_version=9), path)
    return path


class Run:
    """What a command gave."""

    def __init__(self, capfd: pytest.CaptureFixture[str], *line: object) -> None:
        self.code = main([*map(str, line), "--json"])
        out, self.stderr = capfd.readouterr()
        self.result: dict[str, Any] = json.loads(out)

    @property
    def error(self) -> str:
        return f"{self.result['error']['message']} | {self.result['error']['fix']}"
