"""fp32 → fp16 or bf16: every node that can computes in half, and the rest stays in float32 with casts around it.

What decides is ONNX's own operator schemas, so that foreign models work too. Values that half precision does not hold
(too large, or so small that their digits are lost) are found by running the model on calibration data; the nodes that
make or read them are kept in float32 and named.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from converters.calibration import require_finite, runs
from converters.graph import (
    Graph,
    captured,
    element_types,
    is_float32,
    name_of,
    plain,
    rename_captured,
    set_metadata,
    shapes,
)
from runtimes.errors import UnsupportedModel, UsageError
from runtimes.spec import Feeds, ModelSource, RuntimeOptions

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Half = Literal["fp16", "bf16"]

BF16_OPSET = 22
"""The first operator set in which convolution and pooling take bfloat16 (ONNX changelog, version 22)."""

HEADROOM = 2.0
"""A value may come this much closer to the largest number than calibration data showed: other pictures go further."""

LOSS_MULTIPLE = 4.0
"""A tensor whose relative RMSE by rounding exceeds this many unit round-offs is losing digits to underflow: rounding
alone costs at most one."""

_NUMPY: dict[str, np.dtype[Any]] = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
_LARGEST = {"fp16": 65504.0, "bf16": float.fromhex("0x1.fep127")}
_UNIT_ROUNDOFF = {"fp16": 2.0**-11, "bf16": 2.0**-8}


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A node that stays in float32, and why, with the figure that decided."""

    node: str
    operator: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class HalfModel:
    """A model in half precision: how many nodes compute in it, which stay in float32, how many casts were added."""

    model: ModelProto
    precision: Half
    converted: int
    kept: tuple[Kept, ...]
    casts: int


def convert(
    model: ModelProto,
    precision: Half,
    batches: Iterable[Feeds],
    *,
    folder: Path,
    source: ModelSource,
    keep: Sequence[str] = (),
    half_io: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> HalfModel:
    """Converts a float32 model, which is left as it is.

    It runs on `batches` of calibration data, in a temporary copy in `folder` with all values as outputs. `keep` has
    patterns (``layer4.*``) of nodes that stay in float32, `half_io` makes inputs and outputs half too, and `source` is
    where the model came from.

    Raises:
        UnsupportedModel: No node can compute in that precision, or the operator set can't be raised.
        BadModel: The model has operators that ONNX does not know.
        UsageError: A pattern of `keep` fits no node.
        CheckFailed: The float32 model itself computes NaN or Inf on the data.
    """
    copy = plain(model, what=source.name, opset=BF16_OPSET if precision == "bf16" else 1)
    graph = Graph(copy)
    types = element_types(copy)
    able = {id(node): _able(node, graph, types, precision) for node in graph.proto.node}
    kept = [
        Kept(node=name_of(node), operator=node.op_type, reason=f"{node.op_type} has no {precision} in ONNX")
        for node in graph.proto.node
        if not able[id(node)] and any(is_float32(types, name) for name in node.input)
    ]
    kept += _asked_for(graph, keep, able)
    progress("running calibration data")
    kept += _out_of_range(graph, types, precision, batches, folder, source, able)
    if not any(able.values()):
        raise UnsupportedModel(
            f"{source.name} has no node that can compute in {precision}", fix="convert the float32 model itself"
        )
    rewriter = _Rewriter(graph, types, precision, able, half_io=half_io)
    rewriter.rewrite()
    set_metadata(copy, {"precision": precision})
    return HalfModel(
        model=copy,
        precision=precision,
        converted=sum(able.values()),
        kept=tuple({(row.node): row for row in kept}.values()),
        casts=rewriter.casts,
    )


def check_patterns(graph: Graph, patterns: Sequence[str], operators: Sequence[str] | None = None) -> list[set[str]]:
    """Returns the names of the nodes that each pattern fits.

    Raises:
        UsageError: A pattern fits none.
    """
    names = [name_of(node) for node in graph.proto.node if operators is None or node.op_type in operators]
    found = [set(fnmatch.filter(names, pattern)) for pattern in patterns]
    for pattern, fitting in zip(patterns, found, strict=True):
        if not fitting:
            some = ", ".join(names[:4])
            raise UsageError(f"--keep-fp32 '{pattern}' fits no node", fix=f"node names look like {some}")
    return found


def _asked_for(graph: Graph, keep: Sequence[str], able: dict[int, bool]) -> list[Kept]:
    names = set().union(*check_patterns(graph, keep)) if keep else set()
    rows = []
    for node in graph.proto.node:
        if name_of(node) in names and able[id(node)]:
            able[id(node)] = False
            rows.append(Kept(node=name_of(node), operator=node.op_type, reason="asked for"))
    return rows


# ---- which node can --------------------------------------------------------------------------------------------------


def _half_element(precision: Half) -> int:
    import onnx

    return int(onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.BFLOAT16)


def _schema(node: NodeProto, graph: Graph) -> Any:
    import onnx

    same = ("", "ai.onnx")
    domains = same if node.domain in same else (node.domain,)
    version = next((entry.version for entry in graph.model.opset_import if entry.domain in domains), None)
    if version is None:
        return None
    try:
        return onnx.defs.get_schema(node.op_type, version, domains[0])
    except onnx.defs.SchemaError:
        return None


def _formal(formals: Sequence[Any], place: int) -> Any:
    """Returns the declared input or output at a place; a variadic one stands for all that follow."""
    if place < len(formals):
        return formals[place]
    return formals[-1] if formals else None


def _half_places(node: NodeProto, graph: Graph, types: Mapping[str, int], precision: Half) -> set[int]:
    """Returns the places of a node's float32 inputs that take half precision by its schema."""
    schema = _schema(node, graph)
    if schema is None:
        return set()
    wanted = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}[precision]
    allowed = {c.type_param_str for c in schema.type_constraints if wanted in c.allowed_type_strs}
    return {
        place
        for place, name in enumerate(node.input)
        if is_float32(types, name) and getattr(_formal(schema.inputs, place), "type_str", "") in allowed
    }


def _able(node: NodeProto, graph: Graph, types: Mapping[str, int], precision: Half) -> bool:
    """Returns whether all float32 outputs of a node follow the type of inputs that can be half; a shape has no type."""
    schema = _schema(node, graph)
    if schema is None or captured(node):
        return False
    places = _half_places(node, graph, types, precision)
    follows = {_formal(schema.inputs, place).type_str for place in places}
    outputs = [
        _formal(schema.outputs, place).type_str for place, name in enumerate(node.output) if is_float32(types, name)
    ]
    whole = node.op_type in ("Shape", "Size")
    return bool(places) and (whole or bool(outputs)) and all(kind in follows for kind in outputs)


# ---- what half precision does not hold -------------------------------------------------------------------------------


@dataclass
class _Seen:
    largest: float = 0.0
    square: float = 0.0
    lost: float = 0.0
    widest: float = 0.0

    def add(self, array: NDArray[Any], kind: np.dtype[Any]) -> None:
        wide = array.astype(np.float64)
        self.largest = max(self.largest, float(np.max(np.abs(wide), initial=0.0)))
        with np.errstate(over="ignore", invalid="ignore"):
            difference = wide - array.astype(kind).astype(np.float64)
        difference = np.where(np.isfinite(difference), difference, 0.0)  # an overflow is told by `largest`
        self.square += float(np.sum(wide * wide))
        self.lost += float(np.sum(difference * difference))

    @property
    def relative_loss(self) -> float:
        return float(np.sqrt(self.lost / self.square)) if self.square else 0.0


_SUMMING = {"ReduceMean": True, "ReduceSum": False, "GlobalAveragePool": True, "AveragePool": False}
"""Operators that may add up in the precision of their data; True where the sum is larger than the result."""


def _out_of_range(
    graph: Graph,
    types: Mapping[str, int],
    precision: Half,
    batches: Iterable[Feeds],
    folder: Path,
    source: ModelSource,
    able: dict[int, bool],
) -> list[Kept]:
    """Marks nodes as not able whose values or weights half precision does not hold, and says why."""
    from onnx import numpy_helper

    kind, limit = _NUMPY[precision], _LARGEST[precision] / HEADROOM
    loss_limit = LOSS_MULTIPLE * _UNIT_ROUNDOFF[precision]
    shaped = shapes(graph.model)
    values = [name for name in graph.producer if is_float32(types, name) and name in shaped]
    seen, sizes = _observe(graph, [*graph.inputs, *values], batches, folder, kind, source)
    constants: dict[str, _Seen] = {}
    for name, tensor in graph.constants.items():
        if is_float32(types, name):
            constants[name] = _Seen()
            constants[name].add(numpy_helper.to_array(tensor), kind)
    rows = []
    for node in graph.proto.node:
        if not able[id(node)]:
            continue
        reason = None
        for name in (*node.input, *node.output):
            found = constants.get(name) or seen.get(name)
            if found is None:
                continue
            role = "weight" if name in constants else "input" if name in node.input else "output"
            scale = 1.0
            if node.op_type in _SUMMING and role == "output" and _SUMMING[node.op_type]:
                scale = max(1.0, sizes.get(node.input[0], 1) / max(1, sizes.get(name, 1)))
                role = "sum"
            if found.largest * scale > limit:
                reason = (
                    f"its {role} reaches {found.largest * scale:.3g}, {precision} ends at {_LARGEST[precision]:.3g}"
                )
                break
            if found.relative_loss > loss_limit:
                reason = f"its {role} loses {100 * found.relative_loss:.2g} % in {precision} (values too small)"
                break
        if reason is not None:
            able[id(node)] = False
            rows.append(Kept(node=name_of(node), operator=node.op_type, reason=reason))
    return rows


def _observe(
    graph: Graph, names: Sequence[str], batches: Iterable[Feeds], folder: Path, kind: np.dtype[Any], source: ModelSource
) -> tuple[dict[str, _Seen], dict[str, int]]:
    """Runs the float32 model and returns what its values were like, and their sizes per sample."""
    seen: dict[str, _Seen] = {}
    sizes: dict[str, int] = {}
    # Unoptimised: a fused layer would not show what lies inside it.
    options = RuntimeOptions(optimize=False)
    for found, samples in runs(graph.model, names, batches, folder=folder, source=source, options=options):
        for name, array in found.items():
            if array.dtype == np.float32:
                require_finite(name, array, what=source.name)
                seen.setdefault(name, _Seen()).add(array, kind)
                sizes[name] = array.size // samples
    return seen, sizes


# ---- the new graph ---------------------------------------------------------------------------------------------------


class _Rewriter:
    """Puts casts wherever a value is read in another type than it is made in, and counts them."""

    def __init__(
        self, graph: Graph, types: Mapping[str, int], precision: Half, able: Mapping[int, bool], *, half_io: bool
    ) -> None:
        from onnx import TensorProto

        self._graph, self._types, self._precision, self._able = graph, types, precision, able
        self._half, self._full = _half_element(precision), int(TensorProto.FLOAT)
        self._outside = self._half if half_io else self._full  # type of the float inputs and outputs
        self._outputs = set(graph.outputs)
        self._made: dict[tuple[str, int], str] = {}  # where a value is found in another type
        self._holds: dict[str, int] = {}  # the type that each float value is made in
        self._nodes: list[Any] = []
        self.casts = 0

    def rewrite(self) -> None:
        """Changes the graph in place."""
        graph = self._graph
        for value in graph.proto.input:
            if value.name in graph.inputs and is_float32(self._types, value.name):
                self._holds[value.name] = value.type.tensor_type.elem_type = self._outside
        for node in list(graph.proto.node):
            self._add(node)
        for value in graph.proto.output:
            if is_float32(self._types, value.name):
                value.type.tensor_type.elem_type = self._outside
        del graph.proto.value_info[:]
        graph.replace_nodes(self._nodes)
        graph.drop_unused_constants()

    def _add(self, node: NodeProto) -> None:
        """Adds a copy of a node that reads and makes values in the types that it computes in."""
        able = self._able[id(node)]
        places = _half_places(node, self._graph, self._types, self._precision) if able else set()
        new = deepcopy(node)
        for place, name in enumerate(node.input):
            if is_float32(self._types, name):
                new.input[place] = self._in_type(name, self._half if place in places else self._full)
        # What a branch reads from outside it reads in float32, as it was written.
        inside = sorted(name for name in captured(node) if self._holds.get(name) == self._half)
        rename_captured(new, {name: self._in_type(name, self._full) for name in inside})
        self._nodes.append(new)
        for place, name in enumerate(node.output):
            if not is_float32(self._types, name):
                continue
            element = self._half if able else self._full
            self._holds[name] = element
            if name in self._outputs and element != self._outside:
                # The output keeps its name; what is made inside gets another.
                inner = self._graph.free_name(f"{name}.{self._suffix(element)}")
                new.output[place] = inner
                self._cast(inner, name, self._outside, node_name=f"{name}.cast")
                self._made[name, element] = inner
                self._holds[name] = self._outside

    def _in_type(self, name: str, element: int) -> str:
        """Returns the name under which a value is found in a type, making it where needed."""
        if self._holds.get(name, self._full) == element:  # constants are float32
            return name
        if (name, element) not in self._made:
            if name in self._graph.constants:
                target = self._narrow_constant(name)
            else:
                target = self._graph.free_name(f"{name}.{self._suffix(element)}")
                self._cast(name, target, element, node_name=target)
            self._made[name, element] = target
        return self._made[name, element]

    def _narrow_constant(self, name: str) -> str:
        from onnx import numpy_helper

        with np.errstate(over="ignore"):  # what overflows was kept in float32, unless a user's own model has it
            narrow = numpy_helper.to_array(self._graph.constants[name]).astype(_NUMPY[self._precision])
        return self._graph.add_constant(f"{name}.{self._precision}", narrow)

    def _cast(self, source: str, target: str, element: int, *, node_name: str) -> None:
        from onnx import helper

        self._nodes.append(helper.make_node("Cast", [source], [target], name=node_name, to=element))
        self.casts += 1

    def _suffix(self, element: int) -> str:
        return self._precision if element == self._half else "fp32"
