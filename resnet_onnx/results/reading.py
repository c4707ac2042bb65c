"""Reads saved results and refuses what is not one, in one sentence.

The form of the files is described in ``docs/result-schema.md``.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from resnet_onnx.results.bench import Bench
from resnet_onnx.results.compare import Compare
from resnet_onnx.results.convert import Convert
from resnet_onnx.results.document import SCHEMA, Document, Saved
from resnet_onnx.results.evaluate import Evaluate
from resnet_onnx.results.optimize import Optimize
from resnet_onnx.results.parity import Parity
from runtimes.errors import BadData
from runtimes.files import read_bounded

AnyResult = Bench | Saved[Any]
"""What ``--save`` writes: ``Bench``, or ``Saved`` of the document of another command."""

_FORMS: dict[str, Any] = {
    "bench": Bench, "parity": Saved[Parity], "evaluate": Saved[Evaluate], "convert": Saved[Convert],
    "compare": Saved[Compare], "optimize": Saved[Optimize],
}  # fmt: skip

KINDS = tuple(_FORMS)

LARGEST_BYTES = 2**30
"""Raw samples take some ten bytes each: this is a hundred million of them, days of measuring."""

_BAD = "not a result of resnet-onnx"
BodyT = TypeVar("BodyT", bound=Document)


class _Head(msgspec.Struct):
    """What says whether a file can be read; as lenient as JSON, so that the message is ours."""

    schema: Any = None
    kind: Any = None


def read(path: Path, *, kinds: Sequence[str] = KINDS) -> AnyResult:
    """Reads one saved result.

    Args:
        path: A file that a command wrote with ``--save``.
        kinds: What is wanted.

    Raises:
        BadData: The file is missing, damaged, not a result, of another kind, or of another version of the schema.
    """
    content = _load(path)
    try:
        head = _head(content, path, kinds)
        found: AnyResult = msgspec.json.decode(content, type=_FORMS[head])
        if odd := _impossible(msgspec.json.decode(content), "$"):
            raise BadData(f"{path}: {odd}, which no result of {head} has")
    except msgspec.ValidationError as error:
        raise BadData(f"{path}: not a complete result of {head}: {error}") from error
    except RecursionError as error:
        raise BadData(f"{path}: nested too deeply for a result") from error
    except ValueError as error:
        if not _is_text(content):
            raise BadData(f"{path}: not text in UTF-8, expected a JSON file that --save wrote") from error
        if number := _no_number(content, error):
            raise BadData(f"{path}: {number} is not a number in JSON, and --save writes none") from error
        raise BadData(f"{path}: not complete JSON: {error}", fix="it may have been cut off; make it again") from error
    if isinstance(found, Bench):
        for index, row in enumerate(found.results):
            if row.error is None and row.images_per_second is None:
                raise BadData(f"{path}: has neither a speed nor an error - at `$.results[{index}]`")
    return found


def read_bench(path: Path) -> Bench:
    """Reads one saved result of ``bench``; raises as ``read``."""
    found = read(path, kinds=("bench",))
    assert isinstance(found, Bench)
    return found


def of_kind(results: Sequence[AnyResult], body: type[BodyT]) -> list[Saved[BodyT]]:
    """Returns those results whose body is of one kind, in their order."""
    return [found for found in results if isinstance(found, Saved) and isinstance(found.result, body)]


def _head(content: bytes, path: Path, kinds: Sequence[str]) -> str:
    """Returns a result's kind.

    Raises:
        BadData: It is not wanted, or not of this schema.
        ValueError: The content is not JSON.
    """
    wanted = " or ".join(kinds)
    try:
        found = msgspec.json.decode(content, type=_Head)
    except msgspec.ValidationError as error:
        raise BadData(f"{path}: {_BAD}, expected one that {wanted} wrote", fix=_save_fix(kinds)) from error
    if found.kind not in KINDS or found.schema is None:
        raise BadData(f"{path}: {_BAD}, expected one that {wanted} wrote", fix=_save_fix(kinds))
    kind: str = found.kind
    if kind not in kinds:
        raise BadData(f"{path}: a result of {kind}, expected one of {wanted}", fix=_save_fix(kinds))
    if found.schema != SCHEMA or isinstance(found.schema, bool):
        raise BadData(
            f"{path}: a result of schema {_short(found.schema)}, and this version reads schema {SCHEMA}",
            fix="make it again with this version, or read it with the one that wrote it",
        )
    return kind


def _load(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise BadData(f"{path}: {size / 2**30:.1f} GiB, expected a result of at most 1 GiB")
        return read_bounded(path, LARGEST_BYTES).removeprefix(codecs.BOM_UTF8)
    except FileNotFoundError as error:
        raise BadData(f"{path}: no such file", fix=_save_fix(KINDS)) from error
    except OSError as error:
        raise BadData(f"{path}: can't be read: {error.strerror or error}") from error


_LONGEST_TEXT = 20_000
_LARGEST_NUMBER = 1e30
"""Larger than anything that is measured or counted, and small enough that squares and sums of it stay finite."""


def _impossible(value: Any, where: str) -> str:
    """Returns what in plain values no measurement gives and nothing can be drawn of, with its place; "" for nothing."""
    if isinstance(value, str):
        return f"a text of {len(value):,} characters at `{where}`" if len(value) > _LONGEST_TEXT else ""
    if isinstance(value, int | float):
        return f"the number {value:.3g} at `{where}`" if not abs(value) <= _LARGEST_NUMBER else ""
    if isinstance(value, dict):
        parts = ((item, f"{where}.{key[:40]}", key) for key, item in value.items())
        return next((odd for item, at, key in parts if (odd := _impossible(key, at) or _impossible(item, at))), "")
    if isinstance(value, list):
        parts_of_list = ((item, f"{where}[{index}]") for index, item in enumerate(value))
        return next((odd for item, at in parts_of_list if (odd := _impossible(item, at))), "")
    return ""


def _no_number(content: bytes, error: ValueError) -> str:
    """Returns the ``NaN`` or ``Infinity`` where JSON's reader gave up, or ""."""
    place = re.search(r"\(byte (\d+)\)", str(error))
    found = re.compile(rb"-?(NaN|Infinity)").match(content, int(place[1])) if place else None
    return found[0].decode() if found else ""


def _is_text(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _save_fix(kinds: Sequence[str]) -> str:
    return f"make one: resnet-onnx {kinds[0]} MODEL --save FILE.json"


def _short(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 40 else f"{text[:37]}…"
