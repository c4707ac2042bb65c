"""ONNX element types as NumPy dtypes, and the inputs and outputs of a model file as specs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from runtimes import onnx_graph
from runtimes.errors import UnsupportedModel
from runtimes.spec import Dimension, TensorSpec

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)

_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")

DTYPES: dict[str, np.dtype[Any]] = {
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": BFLOAT16,
    **{name: np.dtype(name) for name in (*_INTEGERS, "bool")},
}
"""NumPy dtypes by ONNX's names of element types in ``tensor(…)``, from onnx/onnx.in.proto."""


def spec(name: str, element: str, shape: Iterable[object]) -> TensorSpec:
    """Returns the spec of a tensor from ONNX's names; an unnamed dimension gets a name of its own.

    So does one named like another of the same tensor, as exporters write that batch, height and width are open.

    Raises:
        UnsupportedModel: The element type has no NumPy counterpart.
    """
    dtype = DTYPES.get(element)
    if dtype is None:
        raise UnsupportedModel(f"tensor '{name}' has elements of type {element}; supported are {', '.join(DTYPES)}")
    dimensions: list[Dimension] = []
    for axis, extent in enumerate(shape):
        if isinstance(extent, int) and extent >= 0:
            dimensions.append(int(extent))
            continue
        named = isinstance(extent, str) and any(sign.isalpha() for sign in extent) and extent not in dimensions
        dimensions.append(str(extent) if named else f"{name}.{axis}")
    return TensorSpec(name, dtype, tuple(dimensions))


def element_name(element: int) -> str:
    """Returns ONNX's name of an element type in ``tensor(…)``, or its number where there is none."""
    import onnx

    known = {number: name.lower() for name, number in onnx.TensorProto.DataType.items()}
    return str(known.get(element, element))


def model_specs(model: ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Returns the specs of a ``ModelProto``'s inputs (without initialisers) and of its outputs that hold numbers."""

    def one(value: ValueInfoProto) -> TensorSpec:
        tensor = value.type.tensor_type
        element = element_name(tensor.elem_type)
        shape = [d.dim_param or None if d.WhichOneof("value") != "dim_value" else d.dim_value for d in tensor.shape.dim]
        return spec(value.name, element, shape)

    inputs = tuple(one(value) for value in onnx_graph.fed(model))
    return inputs, tuple(one(value) for value in model.graph.output if odd_kind(value) is None)


def odd_kind(value: ValueInfoProto) -> str | None:
    """Returns what an input or output is that is not a tensor of numbers, in words; None for one that is."""
    if not value.type.HasField("tensor_type"):
        kind = value.type.WhichOneof("value")
        return f"a {kind.removesuffix('_type').replace('_', ' ')}" if kind else "of no type"
    element = element_name(value.type.tensor_type.elem_type)
    return None if element in DTYPES else f"a tensor of type {element}"


def recorded_precision(precision: str, computes_in: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Returns what a runtime records of a file below float32: its precision, and in what it is computed really.

    A lowered file's metadata say what it was made from.
    """
    if precision == "fp32":
        return {}
    rows: dict[str, Any] = {"precision": precision, "computes_in": computes_in}
    try:
        lowered = json.loads(metadata.get(LOWERED, "null"))
    except ValueError:
        lowered = None
    if isinstance(lowered, dict):
        rows["lowered_from"] = str(lowered.get("from_sha256", ""))
        rows["lowered_for"] = str(lowered.get("runtime", ""))
    return rows


LOWERED = "resnet_onnx.lowered"
"""Key in ``metadata_props`` of a file that was made for one runtime, with what it was made from."""
