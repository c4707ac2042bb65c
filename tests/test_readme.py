"""What the front page shows is true: its Python runs, its commands exist; the tree of files is complete."""

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
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert update["updated"](page) == page, "run: python docs/update_tree.py"
    assert "\nresnet_onnx/workflow/" in page


def test_prose_of_the_front_page_is_narrow() -> None:
    prose = re.sub(r"```.*?```|<!--.*?-->|^\|.*$", "", README, flags=re.S | re.M)
    assert [line for line in prose.splitlines() if len(line) >= 120] == []


def test_every_command_shown_exists() -> None:
    shown = set(re.findall(r"^resnet-onnx (\w+)", README, re.M))
    assert shown <= set(COMMANDS)
    assert set(COMMANDS) <= shown
