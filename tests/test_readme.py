"""What the README shows is true: its Python runs, its tree is complete, its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from resnet_onnx.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_library_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert (tmp_path / "net.onnx").is_file()
    assert names["scores"].shape == (4, 10)  # type: ignore[attr-defined]


def test_the_tree_names_every_file() -> None:
    tree = README.rsplit("```", 2)[1]
    section, listed = "", set()
    for line in tree.splitlines():
        if match := re.match(r"(\S+/)\s", line):
            section = match[1]
        elif match := re.match(r"  (\S+\.\w+)\s+\S", line):
            listed.add(section + match[1])
    there = {
        str(path.relative_to(ROOT))
        for package in ("resnet_onnx", "converters", "runtimes")
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".html") and path.name != "__init__.py"
    }
    assert listed == there


def test_every_command_shown_exists() -> None:
    shown = set(re.findall(r"^resnet-onnx (\w+)", README, re.M))
    assert shown <= set(COMMANDS)
    assert set(COMMANDS) <= shown
