"""The gate that every ONNX file passes before a library opens it, and the manifest that lies beside a model."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtimes import onnx_graph, onnx_types
from runtimes.doing import doing
from runtimes.errors import BadModel, reason
from runtimes.files import atomic_file, read_bounded, sha256_file, write_json
from runtimes.spec import TensorSpec

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

MANIFEST_SUFFIX = ".manifest.json"
MANIFEST_SCHEMA = 1
_LARGEST_MANIFEST_BYTES = 2**24

MAX_PROTO_BYTES = 2**31 - 1
"""Protobuf's own limit for one message (protobuf.dev, "Proto Limits"); larger models keep tensors in external data."""

MAX_TENSOR_ELEMENTS = 2**34
"""No tensor of a network that runs on one machine has more elements (64 GiB in fp32); a larger one is a damaged or
hostile size that would only end in an allocation failure somewhere deep."""

MAX_EXPANDED_NODES = 1_000_000
"""Hundreds of times the nodes of the largest networks; more only come from functions that call each other."""

MAX_GRAPH_DEPTH = 8
"""Graphs within graphs (If, Loop, Scan); exported networks have two or three."""

_DEEPEST_CALLS = 64


def manifest_path(model: Path) -> Path:
    """Returns where the manifest of a model lies: beside it, with ``.manifest.json`` appended."""
    return model.with_name(model.name + MANIFEST_SUFFIX)


@contextlib.contextmanager
def atomic_model(path: Path, manifest: Mapping[str, Any]) -> Iterator[Path]:
    """Gives a temporary file that becomes the model `path` when the block is through, with its manifest beside it.

    Raises:
        FileProblem: The file can't be written; what was there before is untouched.
    """
    with atomic_file(path) as temporary:
        yield temporary
        # A kill between the two renames must not leave the old manifest beside the new file.
        manifest_path(path).unlink(missing_ok=True)
    write_manifest(path, extra=manifest)


def write_manifest(model: Path, *, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Writes and returns the manifest of a model file: SHA-256 and size of the file and of its external data."""
    external = [] if model.suffix != ".onnx" else sorted({t.location for t in _external_tensors(model, _parse(model))})

    def row(name: str) -> dict[str, Any]:
        path = model.parent / name
        return {"file": name, "sha256": sha256_file(path), "size_bytes": path.stat().st_size}

    manifest = {
        "schema": MANIFEST_SCHEMA,
        "model": row(model.name),
        "external_data": [row(name) for name in external],
        **(extra or {}),
    }
    write_json(manifest_path(model), manifest)
    return manifest


@dataclass(frozen=True)
class CheckedModel:
    """An ONNX file that passed the gate.

    Attributes:
        sha256: Of the model file alone.
        size_bytes: Of the model file alone.
        metadata: Its ``metadata_props``.
        opset: Version of the default operator set.
        inputs: Without initialisers. Where the graph is bound to a batch that its input leaves open, they have that.
        outputs: Those that are tensors of numbers.
        odd_outputs: What the other outputs are, in words, by their places among all; no runtime computes them here.
        external_data: Names of its external data files, relative to its folder.
        has_manifest: Whether a manifest lay beside it and agreed.
        dialect: Whether weights are sparse or nodes write out ONNX's own domain, which not every library reads.
        training: What in it computes as in training.
        notes: What the user should know of the graph, one sentence each.
    """

    path: Path
    sha256: str
    size_bytes: int
    metadata: Mapping[str, str]
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    external_data: tuple[str, ...]
    has_manifest: bool
    odd_outputs: Mapping[int, str] = field(default_factory=dict)
    dialect: bool = False
    training: onnx_graph.TrainingMode = field(default_factory=onnx_graph.TrainingMode)
    notes: tuple[str, ...] = ()


def check_onnx(path: Path) -> CheckedModel:
    """Passes an ONNX file through the gate; every library opens only what came through here.

    In this order: it is a file of a possible size; it is not of another known format; its manifest, where there is one,
    agrees with every byte; it parses; its external data stays inside its folder; no tensor claims a size that its
    data does not have; ONNX's own checker passes it.

    Raises:
        BadModel: Any of these fails; the message says which.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise BadModel(f"can't read the model {path}: {error.strerror}", fix="check the path") from error
    if stat.S_ISDIR(found.st_mode):
        raise BadModel(f"{path} is a folder, expected an .onnx file")
    if not stat.S_ISREG(found.st_mode):
        raise BadModel(f"{path} is not a regular file, expected an .onnx file")
    path = path.absolute()
    stamp = tuple(_stamp(p, follow=True) for p in (path, manifest_path(path)))
    with doing(f"checking {path}", checking=True):
        return _check_twice(path, stamp)


def _check_twice(path: Path, stamp: tuple[Any, ...]) -> CheckedModel:
    """Checks a file, and again where its external data changed since it was checked last."""
    checked, external = _check_onnx(path, stamp)
    if any(_stamp(path.parent / name, follow=False) != before for name, before in external.items()):
        _check_onnx.cache_clear()
        checked, _ = _check_onnx(path, stamp)
    return checked


def _stamp(path: Path, *, follow: bool) -> tuple[int, ...] | None:
    try:
        found = path.stat(follow_symlinks=follow)
    except OSError:
        return None
    return found.st_ino, found.st_mode, found.st_nlink, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@functools.lru_cache(maxsize=32)
def _check_onnx(path: Path, stamp: tuple[Any, ...]) -> tuple[CheckedModel, dict[str, tuple[int, ...] | None]]:
    size, head, digest = _read_head(path)
    manifest = _read_manifest(path)
    if manifest is not None:
        _compare(path, manifest["model"], digest, path)
    foreign = _foreign_format(head)
    if foreign:
        raise BadModel(f"{path} is {foreign}, expected an ONNX model", fix=_FOREIGN_FIX.get(foreign))
    model = _parse(path)
    dialect = onnx_graph.is_dialect(model)
    if model.HasField("graph"):
        onnx_graph.respell(model)
    _check_graph(path, model)
    external = _check_external_data(path, model)
    stamps = {name: _stamp(path.parent / name, follow=False) for name in external}
    if manifest is not None:
        listed = {str(row["file"]): row for row in manifest.get("external_data", [])}
        for name in external:
            if name not in listed:
                raise BadModel(f"{path} refers to external data '{name}' that its manifest does not list")
            _compare(path.parent / name, listed[name], sha256_file(path.parent / name), path)
    _check_sizes(path, model)
    _run_checker(path, model, bool(external))
    inputs, outputs = onnx_types.model_specs(model)
    training = onnx_graph.training_mode(model)
    notes = training.notes
    batch = onnx_graph.baked_batch(model)
    if batch is not None:
        inputs, outputs = (tuple(_with_batch(spec, batch) for spec in specs) for specs in (inputs, outputs))
        notes += (
            f"its input leaves the batch open, and its graph is bound to {batch} (a reshape to a fixed size, most "
            f"likely): it runs in batches of {batch}",
        )
    checked = CheckedModel(
        path=path,
        sha256=digest,
        size_bytes=size,
        metadata={p.key: p.value for p in model.metadata_props},
        opset=onnx_graph.opset_of(model),
        inputs=inputs,
        outputs=outputs,
        external_data=tuple(external),
        has_manifest=manifest is not None,
        odd_outputs={
            place: f"'{value.name}' is {kind}"
            for place, value in enumerate(model.graph.output)
            if (kind := onnx_types.odd_kind(value)) is not None
        },
        dialect=dialect,
        training=training,
        notes=notes,
    )
    return checked, stamps


def _read_head(path: Path) -> tuple[int, bytes, str]:
    """Returns the size of a file, its first bytes and its SHA-256."""
    size = path.stat().st_size
    if size == 0:
        raise BadModel(f"{path} is empty, expected an ONNX model", fix="export or download it again")
    if size > MAX_PROTO_BYTES:
        raise BadModel(
            f"{path} has {size} bytes, but one ONNX file holds less than 2 GiB", fix="save the tensors as external data"
        )
    try:
        with open(path, "rb") as handle:
            head = handle.read(512)
        digest = sha256_file(path)
    except OSError as error:
        raise BadModel(f"can't read the model {path}: {error.strerror}", fix="check its permissions") from error
    return size, head, digest


def _with_batch(spec: TensorSpec, batch: int) -> TensorSpec:
    opened = bool(spec.shape) and isinstance(spec.shape[0], str)
    return replace(spec, shape=(batch, *spec.shape[1:])) if opened else spec


def load_model(checked: CheckedModel) -> ModelProto:
    """Reads a model that passed the gate, its external data included, in ONNX's own spelling (``respell``)."""
    import onnx

    model = onnx.load(str(checked.path))
    onnx_graph.respell(model)
    onnx_graph.fill_in(model)
    return model


def _read_manifest(model: Path) -> dict[str, Any] | None:
    path = manifest_path(model)
    if not os.path.lexists(path):
        return None
    try:
        manifest = json.loads(read_bounded(path, _LARGEST_MANIFEST_BYTES))
        if not isinstance(manifest, dict) or manifest.get("schema") != MANIFEST_SCHEMA:
            raise ValueError(f"schema {MANIFEST_SCHEMA} expected")
        str(manifest["model"]["sha256"])
        [str(row["file"]) + str(row["sha256"]) for row in manifest.get("external_data", [])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadModel(
            f"the manifest {path} can't be read ({_said(error)})",
            fix="export the model again, or delete the manifest to go without",
        ) from error
    return manifest


def _said(error: Exception) -> object:
    return (error.strerror or error) if isinstance(error, OSError) else error


def _compare(path: Path, row: Mapping[str, Any], digest: str, model: Path) -> None:
    if digest != row["sha256"]:
        raise BadModel(
            f"{path} is damaged or was changed: SHA-256 {digest[:12]}…, its manifest says {str(row['sha256'])[:12]}…",
            fix=f"export or copy it again; if the change was meant, delete {manifest_path(model).name}",
        )


_MAGIC = (
    (b"PK\x03\x04", "a zip archive or a torch checkpoint"),
    *((bytes([0x80, protocol]), "a Python pickle") for protocol in range(2, 6)),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7-zip archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x7fELF", "a program or shared library"),
    (b"ftrt", "a TensorRT engine"),
    (b"vtrt", "a TensorRT-RTX engine"),
    (b"\x1c\x00\x00\x00TFL3", "a TensorFlow Lite model"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"<", "an HTML or XML document"),
    (b"{", "a JSON document"),
)
_WEIGHTS_FIX = "give the weights together with their architecture: --model NAME"
_FOREIGN_FIX = {
    "a zip archive or a torch checkpoint": _WEIGHTS_FIX,
    "a Python pickle": _WEIGHTS_FIX,
    "a Git LFS pointer, not the file itself": "run: git lfs pull",
}


def _foreign_format(head: bytes) -> str | None:
    for magic, what in _MAGIC:
        if head.startswith(magic):
            return what
    if len(head) > 16 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return "a safetensors file"
    with contextlib.suppress(UnicodeDecodeError):
        text = head.decode("ascii")
        if all(c.isprintable() or c in "\r\n\t" for c in text):
            return "a text file"
    return None


def _parse(path: Path) -> ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(path), format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise BadModel(
            f"{path} is not an ONNX model, or is truncated ({error})", fix="export or download it again"
        ) from error


def _check_graph(path: Path, model: ModelProto) -> None:
    import onnx

    graph = model.graph
    if model.ir_version <= 0 or not model.HasField("graph"):
        raise BadModel(f"{path} parses, but holds no ONNX graph", fix="export or download it again")
    if model.ir_version > onnx.IR_VERSION:
        raise BadModel(
            f"{path} has IR version {model.ir_version}, at most {onnx.IR_VERSION} here (onnx {onnx.__version__})",
            fix="export it with an older IR version, or install a newer onnx",
        )
    if not model.opset_import:
        raise BadModel(f"{path} names no operator set")
    for used in model.opset_import:
        known = onnx.defs.onnx_opset_version()
        if used.domain in ("", "ai.onnx") and not 1 <= used.version <= known:
            raise BadModel(
                f"{path} uses opset {used.version}; the installed onnx {onnx.__version__} knows 1 to {known}",
                fix="export it with an older opset, or install a newer onnx",
            )
    if not graph.node or not graph.output:
        raise BadModel(
            f"{path} holds a graph with {len(graph.node)} nodes and {len(graph.output)} outputs, expected some"
        )
    if not onnx_graph.fed(model):
        raise BadModel(f"{path} has no inputs: there is nothing to run it on")
    odd = {value.name: kind for value in graph.output if (kind := onnx_types.odd_kind(value)) is not None}
    inputs = [(value.name, kind) for value in graph.input if (kind := onnx_types.odd_kind(value)) is not None]
    for name, kind in inputs or (odd.items() if len(odd) == len(graph.output) else ()):
        raise BadModel(
            f"{path}: the {'input' if inputs else 'output'} '{name}' is {kind}, expected a tensor of numbers"
            + ("" if inputs else ", and so is no other output"),
            fix="export it without ZipMap" if any(node.op_type == "ZipMap" for node in graph.node) else None,
        )
    for value in (*graph.input, *graph.output):
        if value.name not in odd:
            _check_value(path, value)
    for value in graph.input:
        if any(d.WhichOneof("value") == "dim_value" and d.dim_value == 0 for d in value.type.tensor_type.shape.dim):
            raise BadModel(f"{path}: the input '{value.name}' has a dimension of 0: there is nothing to run on")
    _check_depth(path, model)
    _check_functions(path, model)


def _check_depth(path: Path, model: ModelProto) -> None:
    """Branches within branches: OpenVINO takes twice as long for every level (seen in 2026.4)."""
    waiting = [(node, 0) for nodes in (model.graph.node, *(f.node for f in model.functions)) for node in nodes]
    while waiting:
        node, depth = waiting.pop()
        graphs = onnx_graph.subgraphs(node)
        if graphs and depth == MAX_GRAPH_DEPTH:
            raise BadModel(f"{path}: its graphs nest more than {MAX_GRAPH_DEPTH} deep, at node '{node.name}'")
        waiting.extend((inner, depth + 1) for graph in graphs for inner in graph.node)


def _check_functions(path: Path, model: ModelProto) -> None:
    """Functions that call functions may grow tenfold with every level, and libraries expand them all."""
    bodies = {(f.domain, f.name, f.overload): list(onnx_graph.all_nodes(f.node)) for f in model.functions}
    sizes: dict[tuple[str, str, str], int] = {}

    def size(nodes: list[NodeProto], callers: tuple[tuple[str, str, str], ...]) -> int:
        total = 0
        for node in nodes:
            called = (node.domain, node.op_type, node.overload)
            if called not in bodies:
                total += 1
                continue
            if called in callers or len(callers) > _DEEPEST_CALLS:
                raise BadModel(f"{path}: the function '{node.op_type}' calls itself, or calls nest too deep")
            if called not in sizes:
                sizes[called] = size(bodies[called], (*callers, called))
            total += sizes[called]
        return total

    if bodies:
        total = size(list(onnx_graph.all_nodes(model.graph.node)), ())
        if total > MAX_EXPANDED_NODES:
            raise BadModel(f"{path}: its functions expand to {total} nodes, at most {MAX_EXPANDED_NODES} are accepted")


def _check_value(path: Path, value: ValueInfoProto) -> None:
    tensor = value.type.tensor_type
    dims = [d.dim_value for d in tensor.shape.dim if d.WhichOneof("value") == "dim_value"]
    _check_dims(path, value.name, dims, bits=_BITS.get(tensor.elem_type, 8))


@functools.cache
def _memory_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _check_dims(path: Path, name: str, dims: list[int], *, bits: int) -> int:
    """Returns the number of elements; an unknown dimension may be left out of `dims`."""
    count = 1
    for extent in dims:
        if extent < 0:
            raise BadModel(f"{path}: '{name}' has the negative dimension {extent} in {dims}")
        count *= extent
    if count > MAX_TENSOR_ELEMENTS:
        raise BadModel(
            f"{path}: '{name}' claims {count} elements ({dims}), more than any machine holds; the file is damaged"
        )
    if count * bits // 8 > _memory_bytes():
        raise BadModel(
            f"{path}: '{name}' of shape {dims} needs {count * bits / 2**33:.1f} GiB, "
            f"this machine has {_memory_bytes() / 2**30:.1f} GiB of memory"
        )
    return count


@dataclass(frozen=True)
class _External:
    tensor: str
    location: str
    offset: int
    length: int | None
    expected: int


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yields every TensorProto: initialisers and attributes of the graph, its subgraphs and its functions."""
    nodes = list(
        onnx_graph.all_nodes([*model.graph.node, *(node for function in model.functions for node in function.node)])
    )
    for graph in (model.graph, *(inner for node in nodes for inner in onnx_graph.subgraphs(node))):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for attribute in (item for node in nodes for item in node.attribute):
        yield from ([attribute.t] if attribute.HasField("t") else [])
        yield from attribute.tensors
        single = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for sparse in (*attribute.sparse_tensors, *single):
            yield from (sparse.values, sparse.indices)


def _external_tensors(path: Path, model: ModelProto) -> list[_External]:
    found = []
    for tensor in _tensors(model):
        if not tensor.external_data and tensor.data_location != tensor.EXTERNAL:
            continue
        entries = {e.key: e.value for e in tensor.external_data}
        if len(entries) != len(tensor.external_data):
            # Libraries differ in which of the two they take.
            raise BadModel(f"{path}: external data of tensor '{tensor.name}' says something twice")
        try:
            offset = int(entries.get("offset", "0") or 0)
            length = int(entries["length"]) if entries.get("length") else None
        except ValueError as error:
            raise BadModel(
                f"{path}: external data of tensor '{tensor.name}' has no numeric offset or length"
            ) from error
        location = entries.get("location", "")
        found.append(_External(tensor.name, location, offset, length, _tensor_bytes(path, tensor)))
    return found


def _check_external_data(path: Path, model: ModelProto) -> list[str]:
    names: dict[str, int] = {}
    for tensor in _external_tensors(path, model):
        name = tensor.location
        what = f"{path}: external data '{name[:100]}' of tensor '{tensor.tensor}'"
        if not name:
            raise BadModel(f"{path}: tensor '{tensor.tensor}' has external data without a location")
        if name not in names:
            names[name] = _contained_size(path, name, what)
        size = names[name]
        length = tensor.expected if tensor.length is None else tensor.length
        if tensor.offset < 0 or length < 0 or tensor.offset + length > size:
            raise BadModel(f"{what} ends at byte {tensor.offset + length}, but the file has {size}; it is truncated")
        if length != tensor.expected:
            raise BadModel(f"{what} has {length} bytes, its shape needs {tensor.expected}")
    return list(names)


def _contained_size(path: Path, name: str, what: str) -> int:
    """Returns the size of an external-data file that provably lies inside the model's folder."""
    parts = name.split("/")
    # "*" begins ONNX Runtime's own names for addresses in memory.
    if name.startswith("/") or ".." in parts or any(sign in name for sign in "\\:\0*"):
        raise BadModel(f"{what} points outside the model's folder; refused")
    step = path.parent
    found = step.stat()
    for part in parts:
        if part in ("", "."):
            continue
        step = step / part
        try:
            found = step.lstat()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise BadModel(f"{what} is missing: it can't be read ({reason})") from error
        if stat.S_ISLNK(found.st_mode):
            raise BadModel(
                f"{what} goes through the symbolic link {step}; refused", fix="copy the data beside the model"
            )
    if not stat.S_ISREG(found.st_mode):
        raise BadModel(f"{what} is not a regular file; refused")
    if found.st_nlink > 1:
        raise BadModel(f"{what} is a hard link to a file elsewhere; refused", fix="copy the data beside the model")
    return found.st_size


def _tensor_bytes(path: Path, tensor: TensorProto) -> int:
    import onnx

    bits = _BITS.get(tensor.data_type)
    if bits is None:
        if tensor.data_type == onnx.TensorProto.STRING:
            raise BadModel(f"{path}: tensor '{tensor.name}' holds strings as raw bytes, which ONNX does not allow")
        raise BadModel(f"{path}: tensor '{tensor.name}' has the unknown data type {tensor.data_type}")
    count = _check_dims(path, tensor.name, list(tensor.dims), bits=bits)
    return (count * bits + 7) // 8


# Bits per element by onnx.TensorProto.DataType, from onnx/onnx.in.proto.
_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip


def _check_sizes(path: Path, model: ModelProto) -> None:
    """Every tensor kept in the file has as many elements as its shape says, and no sparse one claims too many."""
    for sparse in model.graph.sparse_initializer:
        _check_dims(path, sparse.values.name, list(sparse.dims), bits=_BITS.get(sparse.values.data_type, 8))
    for tensor in _tensors(model):
        count = _check_dims(path, tensor.name, list(tensor.dims), bits=_BITS.get(tensor.data_type, 8))
        if tensor.external_data or tensor.data_location == tensor.EXTERNAL:
            continue
        if tensor.HasField("raw_data"):
            given, expected = len(tensor.raw_data), _tensor_bytes(path, tensor)
        elif tensor.string_data:
            given, expected = len(tensor.string_data), count
        else:
            continue  # typed fields: the checker compares their counts
        if given != expected:
            raise BadModel(
                f"{path}: tensor '{tensor.name}' holds {given} bytes, its shape {list(tensor.dims)} needs {expected}"
            )


def _run_checker(path: Path, model: ModelProto, external: bool) -> None:
    import onnx

    shapeless = [
        value
        for value in model.graph.output
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")
    ]
    for value in shapeless:  # the checker insists on what shape inference finds anyway
        value.type.tensor_type.shape.SetInParent()
    try:
        # Weights outside the file were looked at already, and the checker would look for them in this folder.
        onnx.checker.check_model(onnx_graph.without_weights(model) if external else model)
        for value in shapeless:
            value.type.tensor_type.ClearField("shape")
        inferred = onnx_graph.inferred(onnx_graph.without_weights(model), strict=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise BadModel(
            f"{path} is not a valid ONNX model: {reason(error)}", fix="export it again, or report it to its maker"
        ) from error
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        _check_value(path, value)
    for value, found in zip(model.graph.output, inferred.graph.output, strict=True):
        if value.type.HasField("tensor_type"):
            _complete(value, found)


def _complete(value: ValueInfoProto, found: ValueInfoProto) -> None:
    """Gives an output the extents that it does not say and that shape inference finds."""
    tensor, better = value.type.tensor_type, found.type.tensor_type
    if not tensor.HasField("shape"):
        tensor.shape.CopyFrom(better.shape)
        return
    for mine, theirs in zip(tensor.shape.dim, better.shape.dim, strict=False):
        if mine.WhichOneof("value") is None and theirs.WhichOneof("value") == "dim_value":
            mine.dim_value = theirs.dim_value
