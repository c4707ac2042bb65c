"""What the README shows is true: its Python runs, its tree is complete, its commands exist."""

from __future__ import annotations

import re
import runpy
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


def test_the_tree_is_that_of_the_files() -> None:
    update = runpy.run_path(str(ROOT / "docs" / "update_tree.py"))
    assert update["updated"](README) == README, "run: python docs/update_tree.py"
    assert "\nresnet_onnx/workflow/" in README


def test_every_command_shown_exists() -> None:
    shown = set(re.findall(r"^resnet-onnx (\w+)", README, re.M))
    assert shown <= set(COMMANDS)
    assert set(COMMANDS) <= shown
