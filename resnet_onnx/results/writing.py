"""Documents as JSON, and from it: one way for what is printed, saved and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from resnet_onnx.results.document import SCHEMA, Document, Saved
from runtimes import files
from runtimes.text import escaped_json

T = TypeVar("T")


def encode(document: Document | Saved[Any]) -> bytes:
    """Returns a document as indented JSON in UTF-8 that ends in a newline; NaN and Infinity become null.

    What a terminal would not show as text, as in names of files, is escaped.
    """
    known = ((field.name, getattr(document, field.name)) for field in fields(document))
    whole = {"schema": SCHEMA, "kind": document.kind, **{n: v for n, v in known if v is not msgspec.UNSET}}
    try:
        content = msgspec.json.encode(whole, enc_hook=_plain)
    except UnicodeEncodeError:  # names of files may be of any bytes
        content = msgspec.json.encode(_text_only(msgspec.to_builtins(whole, enc_hook=_plain)))
    return escaped_json(msgspec.json.format(content, indent=2).decode()).encode() + b"\n"


def write(path: Path, document: Document | Saved[Any]) -> None:
    """Writes a document; raises ``FileProblem`` as ``files.atomic_file``."""
    files.write_bytes(path, encode(document))


def typed(form: type[T], values: object) -> T:
    """Returns values (mappings, lists, dataclasses, NumPy's scalars, paths) as a document or a part of one.

    Raises:
        msgspec.ValidationError: They don't fit; the message names the path.
    """
    return msgspec.convert(msgspec.to_builtins(values, enc_hook=_plain), form)


def _plain(value: Any) -> Any:
    """Returns what JSON has in place of NumPy's values and of paths."""
    if isinstance(value, Mapping):
        return dict(value)
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _text_only(value: Any) -> Any:
    """Replaces what is not Unicode in texts of plain values."""
    if isinstance(value, dict):
        return {_text_only(key): _text_only(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_text_only(item) for item in value]
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
