"""What a parent and a worker process send each other; `python tests/support/protocol.py` writes it anew."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from resnet_onnx.bench import loadgen, worker

FILE = Path(__file__).with_suffix(".json")


def _sent_types() -> Iterator[type]:
    """Every dataclass that goes between parent and worker, by the annotations of the worker's methods."""
    seen: set[type] = set()

    def walk(annotation: Any) -> Iterator[type]:
        for part in typing.get_args(annotation):
            yield from walk(part)
        if isinstance(annotation, type) and is_dataclass(annotation) and annotation not in seen:
            seen.add(annotation)
            yield annotation
            for hint in typing.get_type_hints(annotation).values():
                yield from walk(hint)

    names = {**vars(loadgen), **vars(worker)}
    for name, method in vars(worker.Worker).items():
        if not name.startswith("_"):
            for hint in typing.get_type_hints(method, globalns=names).values():
                yield from walk(hint)


def described() -> dict[str, Any]:
    """Returns the version of the protocol, and the methods and the fields of the types that it is about."""
    methods = sorted(name for name in vars(worker.Worker) if not name.startswith("_"))
    sent = {kind.__name__: [field.name for field in fields(kind)] for kind in _sent_types()}
    return {"protocol": worker.PROTOCOL, "sent": [methods, dict(sorted(sent.items()))]}


if __name__ == "__main__":
    FILE.write_text(json.dumps(described(), indent=1) + "\n")
