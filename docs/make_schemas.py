"""Writes docs/result-schema.json: the JSON Schema of every document that a command prints or saves.

python docs/make_schemas.py        (a test holds the file true)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from resnet_onnx.results import commands
from resnet_onnx.results.bench import Bench
from resnet_onnx.results.bundle import Bundle, BundleResult, Proof, Verify
from resnet_onnx.results.compare import Compare
from resnet_onnx.results.convert import Convert, Export
from resnet_onnx.results.document import SCHEMA, Document, ErrorDocument, Saved
from resnet_onnx.results.evaluate import Evaluate, Predict
from resnet_onnx.results.optimize import Optimize, OptimizeDryRun
from resnet_onnx.results.parity import Parity
from resnet_onnx.results.reproduce import Degradation, Shortcuts, Table1

FILE = Path(__file__).with_name("result-schema.json")
PRINTED: tuple[type[Document], ...] = (
    Bench, Parity, Evaluate, Convert, Predict, Export, commands.Train, commands.Recipes, commands.BuildEngine,
    commands.BuildLowered, Compare, commands.Report, commands.Doctor, commands.Cache, commands.Models,
    commands.Demo, Degradation, Shortcuts, Table1, BundleResult, Verify, Bundle, Proof, Optimize, OptimizeDryRun,
    ErrorDocument,
)  # fmt: skip
SAVED: tuple[tuple[type[Document], Any], ...] = (
    (Parity, Saved[Parity]), (Evaluate, Saved[Evaluate]), (Convert, Saved[Convert]), (Compare, Saved[Compare]),
    (Optimize, Saved[Optimize]),
)  # fmt: skip


def schema() -> dict[str, Any]:
    """Returns the schema of all documents: those that ``--json`` prints, then those that ``--save`` writes."""
    forms = [*((form.kind, form) for form in PRINTED), *((body.kind, form) for body, form in SAVED)]
    references, components = msgspec.json.schema_components([form for _, form in forms], ref_template="#/$defs/{name}")
    documents = [
        {
            "allOf": [
                {
                    "type": "object",
                    "properties": {"schema": {"const": SCHEMA}, "kind": {"const": kind}},
                    "required": ["schema", "kind"],
                },
                reference,
            ]
        }
        for (kind, _), reference in zip(forms, references, strict=True)
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What resnet-onnx prints with --json and writes with --save",
        "anyOf": documents,
        "$defs": dict(sorted(components.items())),
    }


def text() -> str:
    """Returns the file's content."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
