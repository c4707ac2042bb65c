"""Writes the tree in architecture.md, one line per file, from the first lines of the files' own docstrings.

python docs/update_tree.py
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    "resnet_onnx",
    *(
        f"resnet_onnx/{name}"
        for name in (
            "optimization",
            "deploy",
            "deploy/standalone",
            "workflow",
            "workflow/precision",
            "models",
            "data",
            "training",
            "parity",
            "bench",
            "results",
            "report",
            "reproduction",
            "cli",
        )
    ),
    "converters",
    "converters/lowering",
    "runtimes",
    "runtimes/standalone",
)
LAST = """\
tests/                      flat by subject; tests/gpu skips itself with the reason
benchmarks/                 what is timed: export's cost, evaluate's pipeline, a training's steps, bench's overhead
docs/                       architecture, methods, how to add a runtime"""


def first_line(path: Path) -> str:
    if path.suffix == ".html":
        return "The page's template"
    text = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
    text = text.rstrip(".").replace("``", "")
    return f"The command {text}" if text.startswith("resnet-onnx ") else text


def tree() -> str:
    lines = []
    for folder in FOLDERS:
        lines.append(f"{folder + '/ ':<28}{first_line(ROOT / folder / '__init__.py')}")
        lines += [
            f"  {path.name:<26}{first_line(path)}"
            for path in sorted((ROOT / folder).iterdir())
            if path.suffix in (".py", ".html") and path.name != "__init__.py"
        ]
    return "\n".join([*lines, LAST])


def updated(page: str) -> str:
    return re.sub(r"```\nresnet_onnx/ .*?```", lambda _: f"```\n{tree()}\n```", page, flags=re.S)


if __name__ == "__main__":
    path = ROOT / "docs" / "architecture.md"
    path.write_text(updated(path.read_text()))
