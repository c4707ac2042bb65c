"""Files that are not a sound ONNX model, each in another way."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

FLOAT = TensorProto.FLOAT
Writer = Callable[[Path], object]


def value(name: str, shape: Sequence[int | str | None] | None, element: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    weights: Sequence[onnx.TensorProto] = (),
    opset: int = 18,
    ir_version: int = 9,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A graph from ``x`` [batch, 3, 8, 8] to ``y``, if nothing else is said."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [value("x", ["batch", 3, 8, 8])] if inputs is None else inputs,
        [value("y", [None] * 4)] if outputs is None else outputs,
        weights,
    )
    sets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=sets, ir_version=ir_version, functions=functions)


def node(operator: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), outputs.split(), name=f"{operator}_{outputs}", **attributes)


RELU = node("Relu", "x", "y")


def sound() -> onnx.ModelProto:
    """A small classifier of pictures that every runtime takes."""
    random = np.random.default_rng(0)
    return model(
        [
            node("Conv", "x w b", "c", pads=[1] * 4),
            node("Relu", "c", "r"),
            node("ReduceMean", "r axes", "m", keepdims=0),
            node("Gemm", "m v", "y"),
        ],
        outputs=[value("y", ["batch", 5])],
        weights=[
            numpy_helper.from_array(random.standard_normal((4, 3, 3, 3)).astype(np.float32), "w"),
            numpy_helper.from_array(np.zeros(4, np.float32), "b"),
            numpy_helper.from_array(np.array([2, 3]), "axes"),
            numpy_helper.from_array(random.standard_normal((4, 5)).astype(np.float32), "v"),
        ],
    )


def _bytes(data: bytes) -> Writer:
    return lambda path: path.write_bytes(data)


def _model(make: Callable[[], onnx.ModelProto]) -> Writer:
    return lambda path: path.write_bytes(make().SerializeToString())


def _png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "PNG")
    return stream.getvalue()


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model.onnx", sound().SerializeToString())
    return stream.getvalue()


def _safetensors() -> bytes:
    head = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(4)


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def nested(depth: int) -> bytes:
    """A graph in an attribute of a node of a graph … ; ``GraphProto.node`` is 1, ``NodeProto.attribute`` 5,
    ``AttributeProto.g`` 6, ``ModelProto.graph`` 7 (onnx/onnx.in.proto)."""
    graph = b""
    for _ in range(depth):
        graph = _field(1, _field(4, b"If") + _field(5, _field(1, b"then_branch") + _field(6, graph)))
    return _varint(1 << 3) + b"\x09" + _field(8, _field(1, b"") + _varint(2 << 3) + b"\x12") + _field(7, graph)


def deep_if(depth: int) -> onnx.ModelProto:
    """Branches within branches, each a complete graph."""
    branch = helper.make_graph([node("Relu", "x", "inner")], "leaf", [], [value("inner", None)])
    for level in range(depth):
        inner = node("If", "flag", f"o{level}", then_branch=branch, else_branch=branch)
        if level < 5:  # twice as large at every level: only the first few are copied twice
            branch = helper.make_graph([inner], f"g{level}", [], [value(f"o{level}", None)])
            continue
        other = helper.make_graph([node("Relu", "x", "other")], "leaf", [], [value("other", None)])
        inner = node("If", "flag", f"o{level}", then_branch=branch, else_branch=other)
        branch = helper.make_graph([inner], f"g{level}", [], [value(f"o{level}", None)])
    return model(
        [node("If", "flag", "y", then_branch=branch, else_branch=branch)],
        weights=[numpy_helper.from_array(np.array(True), "flag")],
    )


def laughing(levels: int, times: int = 10) -> onnx.ModelProto:
    """Functions that call each other: `times` to the power of `levels` nodes from a file of a few kilobytes."""
    functions = []
    for level in range(levels):
        names = ["a", *[f"t{i}" for i in range(times - 1)], "z"]
        body = [
            helper.make_node("Relu" if not level else f"f{level - 1}", [a], [b], domain="" if not level else "fun")
            for a, b in pairwise(names)
        ]
        sets = [helper.make_opsetid("", 18), helper.make_opsetid("fun", 1)]
        functions.append(helper.make_function("fun", f"f{level}", ["a"], ["z"], body, sets))
    call = helper.make_node(f"f{levels - 1}", ["x"], ["y"], domain="fun")
    return model([call], functions=functions, domains=["fun"])


def recursive() -> onnx.ModelProto:
    sets = [helper.make_opsetid("", 18), helper.make_opsetid("fun", 1)]
    body = [helper.make_node("f", ["a"], ["z"], domain="fun")]
    function = helper.make_function("fun", "f", ["a"], ["z"], body, sets)
    return model([helper.make_node("f", ["x"], ["y"], domain="fun")], functions=[function], domains=["fun"])


def _claimed(name: str, dims: Sequence[int], data: bytes, element: int = FLOAT) -> onnx.TensorProto:
    return TensorProto(name=name, dims=dims, data_type=element, raw_data=data)


def _huge_constant(extent: int) -> onnx.ModelProto:
    return model(
        [node("ConstantOfShape", "s", "c"), node("ReduceSum", "c", "t", keepdims=0), node("Add", "x t", "y")],
        weights=[numpy_helper.from_array(np.array([extent]), "s")],
    )


def _with(change: Callable[[onnx.ModelProto], object]) -> Writer:
    def write(path: Path) -> None:
        changed = sound()
        change(changed)
        path.write_bytes(changed.SerializeToString())

    return write


def _set_elem(number: int) -> Writer:
    def change(m: onnx.ModelProto) -> None:
        m.graph.input[0].type.tensor_type.elem_type = number

    return _with(change)


BAD: dict[str, tuple[Writer, str]] = {
    # what it is -> how to write it, and what the message must say
    "empty": (_bytes(b""), "is empty"),
    "text": (_bytes(b"hello, this is a model, honestly\n"), "a text file"),
    "HTML": (_bytes(b"<!DOCTYPE html><html><body>404</body></html>"), "an HTML or XML document"),
    "JSON": (_bytes(b'{"model": 1}'), "a JSON document"),
    "PNG": (_bytes(_png()), "a PNG picture"),
    "zip": (_bytes(_zip()), "a zip archive"),
    "pickle": (_bytes(pickle.dumps({"w": 1}, protocol=4)), "a Python pickle"),
    "safetensors": (_bytes(_safetensors()), "a safetensors file"),
    "gzip": (_bytes(gzip.compress(sound().SerializeToString())), "a gzip archive"),
    "Git LFS pointer": (_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"), "Git LFS"),
    "TensorRT engine": (_bytes(b"ftrt" + bytes(100)), "a TensorRT engine"),
    "folder": (lambda path: path.mkdir(), "folder"),
    "truncated": (_bytes(sound().SerializeToString()[:-7]), "truncated"),
    "cut in half": (_bytes(sound().SerializeToString()[: len(sound().SerializeToString()) // 2]), "truncated"),
    "random bytes": (_bytes(np.random.default_rng(0).bytes(4096)), "not an ONNX model"),
    "zeros": (_bytes(bytes(4096)), "not an ONNX model"),
    "random bytes after a sound start": (
        _bytes(sound().SerializeToString()[:100] + np.random.default_rng(1).bytes(500)),
        "not an ONNX model",
    ),
    "one field": (_bytes(b"\x08\x09"), "no ONNX graph"),
    "nested 60 deep": (_bytes(nested(60)), "not an ONNX model"),
    "nested 5,000 deep": (_bytes(nested(5000)), "not an ONNX model"),
    "branches 25 deep": (_model(lambda: deep_if(25)), "nest more than 8 deep"),
    "a function calling itself": (_model(recursive), "calls itself"),
    "functions that grow tenfold nine times": (_model(lambda: laughing(9)), "nodes"),
    "no graph": (_with(lambda m: m.ClearField("graph")), "no ONNX graph"),
    "no nodes": (_with(lambda m: m.graph.ClearField("node")), "0 nodes"),
    "no outputs": (_with(lambda m: m.graph.ClearField("output")), "0 outputs"),
    "no inputs": (_model(lambda: model([node("Constant", "", "y", value_float=1.0)], inputs=[])), "no inputs"),
    "no operator set": (_with(lambda m: m.ClearField("opset_import")), "no operator set"),
    "unknown operator": (_model(lambda: model([node("Frobnicate", "x", "y")])), "Frobnicate"),
    "unknown domain": (
        _model(lambda: model([helper.make_node("Frob", ["x"], ["y"], domain="org.example")], domains=["org.example"])),
        "Frob",
    ),
    "domain not imported": (
        _model(lambda: model([helper.make_node("Frob", ["x"], ["y"], domain="org.example")])),
        "org.example",
    ),
    "opset of the future": (_model(lambda: model([RELU], opset=9999)), "opset"),
    "negative opset": (_model(lambda: model([RELU], opset=-3)), "opset"),
    "IR version of the future": (_with(lambda m: setattr(m, "ir_version", 9999)), "IR version 9999, at most"),
    "negative IR version": (_with(lambda m: setattr(m, "ir_version", -1)), ""),
    "huge input": (_model(lambda: model([RELU], inputs=[value("x", [1, 3, 2**40, 2**40])])), "claims"),
    "large input": (_model(lambda: model([RELU], inputs=[value("x", [1, 3, 60_000, 60_000])])), "GiB"),
    "large dynamic input": (_model(lambda: model([RELU], inputs=[value("x", ["n", 3, 60_000, 60_000])])), "GiB"),
    "huge output": (_model(lambda: model([RELU], outputs=[value("y", [2**60])])), "claims"),
    "huge initialiser": (_with(lambda m: m.graph.initializer[0].dims.__setitem__(0, 2**50)), "claims"),
    "overflowing initialiser": (
        _model(lambda: model([node("Add", "x w", "y")], weights=[_claimed("w", [2**32, 2**32], b"")])),
        "claims",
    ),
    "huge ConstantOfShape": (_model(lambda: _huge_constant(2**45)), "claims"),
    "large ConstantOfShape": (_model(lambda: _huge_constant(2**33)), "GiB"),
    "huge ConstantOfShape as the output": (
        _model(
            lambda: model(
                [node("ConstantOfShape", "s", "c"), node("Shape", "x", "unused"), node("Identity", "c", "y")],
                weights=[numpy_helper.from_array(np.array([2**45]), "s")],
                outputs=[value("y", [None])],
            )
        ),
        "claims",
    ),
    "huge Expand": (
        _model(
            lambda: model(
                [node("Expand", "x s", "e"), node("ReduceSum", "e", "y", keepdims=0)],
                weights=[numpy_helper.from_array(np.array([2**40, 1, 1, 1, 1]), "s")],
                outputs=[value("y", [])],
            )
        ),
        "claims",
    ),
    "negative dimension in the input": (_model(lambda: model([RELU], inputs=[value("x", [-5, 3])])), "negative"),
    "negative dimension in a weight": (_with(lambda m: m.graph.initializer[0].dims.__setitem__(0, -4)), "negative"),
    "empty dimension in the input": (_model(lambda: model([RELU], inputs=[value("x", [0, 3, 8, 8])])), "of 0"),
    "too little raw data": (_with(lambda m: setattr(m.graph.initializer[0], "raw_data", bytes(8))), "8 bytes"),
    "too much raw data": (_with(lambda m: setattr(m.graph.initializer[0], "raw_data", bytes(4000))), "4000 bytes"),
    "too few floats": (
        _model(
            lambda: model(
                [node("Add", "x w", "y")], weights=[TensorProto(name="w", dims=[8], data_type=1, float_data=[1.0])]
            )
        ),
        "w",
    ),
    "weight without data": (
        _model(lambda: model([node("Add", "x w", "y")], weights=[TensorProto(name="w", dims=[8], data_type=1)])),
        "w",
    ),
    "weight of an unknown type": (_with(lambda m: setattr(m.graph.initializer[0], "data_type", 99)), "99"),
    "cyclic": (_model(lambda: model([node("Relu", "b", "a"), node("Relu", "a", "b"), node("Add", "x b", "y")])), ""),
    "not sorted": (_model(lambda: model([node("Relu", "a", "y"), node("Relu", "x", "a")])), "sorted"),
    "dangling input": (_model(lambda: model([node("Add", "x nothing", "y")])), "nothing"),
    "output that nobody makes": (_model(lambda: model([node("Relu", "x", "z")])), "y"),
    "one name made twice": (_model(lambda: model([RELU, node("Abs", "x", "y")])), "y"),
    "two inputs of one name": (_model(lambda: model([RELU], inputs=[value("x", [1, 3]), value("x", [1, 3])])), "x"),
    "types that do not fit": (
        _model(
            lambda: model(
                [node("Add", "x w", "y")], weights=[numpy_helper.from_array(np.zeros(8, np.int64), "w")]
            )
        ),
        "Add",
    ),
    "shapes that do not fit": (
        _model(
            lambda: model(
                [node("Add", "x w", "y")], weights=[numpy_helper.from_array(np.zeros(5, np.float32), "w")]
            )
        ),
        "Add",
    ),
    "output declared with another type": (
        _model(lambda: model([RELU], outputs=[value("y", ["batch", 3, 8, 8], TensorProto.INT64)])),
        "y",
    ),
    "output declared with another shape": (_model(lambda: model([RELU], outputs=[value("y", [7, 7])])), "y"),
    "sequence input": (
        _model(
            lambda: model(
                [node("ConcatFromSequence", "x", "y", axis=0)],
                inputs=[helper.make_tensor_sequence_value_info("x", FLOAT, None)],
            )
        ),
        "sequence",
    ),
    "sequence output": (
        _model(
            lambda: model(
                [node("SequenceConstruct", "x", "y")],
                outputs=[helper.make_tensor_sequence_value_info("y", FLOAT, None)],
            )
        ),
        "sequence",
    ),
    "string input": (
        _model(lambda: model([node("Identity", "x", "y")], inputs=[value("x", ["n"], TensorProto.STRING)],
                             outputs=[value("y", ["n"], TensorProto.STRING)])),
        "string",
    ),
    "complex input": (
        _model(lambda: model([node("Identity", "x", "y")], inputs=[value("x", ["n"], TensorProto.COMPLEX64)],
                             outputs=[value("y", ["n"], TensorProto.COMPLEX64)])),
        "complex64",
    ),
    "input without a type": (_with(lambda m: m.graph.input[0].ClearField("type")), "x"),
    "input of an undefined type": (_set_elem(0), "x"),
    "input of an unknown type": (_set_elem(999), "x"),
    "input without a shape": (
        _with(lambda m: m.graph.input[0].type.tensor_type.ClearField("shape")),
        "x",
    ),
    "attribute missing": (_model(lambda: model([node("Concat", "x x", "y")])), "axis"),
    "attribute of another type": (_model(lambda: model([node("Concat", "x x", "y", axis="one")])), "axis"),
    "convolution of stride 0": (
        _model(
            lambda: model(
                [node("Conv", "x w", "y", strides=[0, 0])],
                weights=[numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "w")],
            )
        ),
        "",
    ),
}  # fmt: skip


def assert_one_error(errors: str) -> str:
    """Returns the line of the one error in standard error; stages that had begun stand before it, advice behind."""
    told = errors.splitlines()
    (place,) = (index for index, text in enumerate(told) if text.startswith("error: "))
    assert all(text.endswith(" …") for text in told[:place]), errors
    assert all(text.startswith("  ") for text in told[place + 1 :]), errors
    return told[place]
