"""Choosing a runtime's lowering, writing it, and keeping it in the cache."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converters import graph as graphs
from converters.lowering.portable import is_portable
from runtimes import files, onnx_gate, onnx_types
from runtimes.errors import BadModel
from runtimes.registry import adapter

if TYPE_CHECKING:
    from onnx import ModelProto

METADATA = onnx_types.LOWERED

_VERSION = 2
"""Goes up with every change of a lowering, so that older ones in the cache are not used."""


@dataclass(frozen=True, kw_only=True)
class Lowering:
    """A lowered model.

    Attributes:
        key: SHA-256 of what it was made from and how.
        changes: How often each change was made.
        checked: The file after the gate.
    """

    path: Path
    key: str
    cached: bool
    changes: Mapping[str, int]
    checked: onnx_gate.CheckedModel


def lower(model: ModelProto, runtime: str, *, exact: bool = False) -> dict[str, int] | None:
    """Rewrites a portable int8 ``ModelProto`` for a runtime, in place; `exact` clips where the portable file clips.

    Returns:
        How often each change was made; None where the model is not in the portable form and stays as it is.
    """
    graph = graphs.Graph(model)
    if not adapter(runtime).lowers_int8 or not is_portable(graph):
        return None
    # The lowering of a runtime is the file here that has its name.
    form = importlib.import_module(f"converters.lowering.{runtime.replace('-', '_')}")
    changes: dict[str, int] = form.lower(graph, exact=exact)
    del model.graph.value_info[:]
    return changes


def lowered_file(checked: onnx_gate.CheckedModel, runtime: str, *, exact: bool = False) -> Lowering | None:
    """Returns a portable int8 file in a runtime's form, from the cache or made now; `exact` is as for ``lower``.

    Returns:
        None where the runtime opens the file as it is: it has no lowering, or the file is not in the portable form.
    """
    from filelock import FileLock

    if not adapter(runtime).lowers_int8 or METADATA in checked.metadata:
        return None
    key = _key(checked, runtime, exact)
    folder = files.cache_dir("lowered", key)
    path = folder / f"{checked.path.stem}.{runtime}.onnx"
    with FileLock(str(folder / "lock")):
        found = _cached(path)
        if found is not None:
            changes = json.loads(found.metadata[METADATA])["changes"]
            return Lowering(path=path, key=key, cached=True, changes=changes, checked=found)
        model = graphs.load(checked)
        made = lower(model, runtime, exact=exact)
        if made is None:
            return None
        about = {"runtime": runtime, "from_sha256": checked.sha256, "exact": exact, "changes": made}
        graphs.set_metadata(model, {METADATA: json.dumps(about)})
        written = graphs.write(path, model, {"made_by": "resnet-onnx", "lowered": about})
    return Lowering(path=path, key=key, cached=False, changes=made, checked=written)


def _cached(path: Path) -> onnx_gate.CheckedModel | None:
    """Returns the file in the cache where it is sound; its manifest must be there, since only a hash finds damage."""
    try:
        checked = onnx_gate.check_onnx(path)
    except BadModel:
        return None
    return checked if checked.has_manifest and METADATA in checked.metadata else None


def _key(checked: onnx_gate.CheckedModel, runtime: str, exact: bool) -> str:
    external = [files.sha256_file(checked.path.parent / name) for name in checked.external_data]
    what = {"onnx": checked.sha256, "external": external, "runtime": runtime, "exact": exact, "version": _VERSION}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
