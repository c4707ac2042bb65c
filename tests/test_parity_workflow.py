"""The workflow file that the docs offer is run here, command by command, as a hosted CI would."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parent.parent
JOB: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "ci" / "parity.yml").read_text())["jobs"]["parity"]
AXES: dict[str, list[str]] = {k: v for k, v in JOB["strategy"]["matrix"].items() if k != "exclude"}
CELLS = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]
SMALL = [cell for cell in CELLS if cell["model"] == "cifar-resnet20"]


def steps(cell: dict[str, str]) -> list[tuple[str, bool]]:
    """Returns the commands of a cell of the matrix, and whether each runs after a failure too."""
    found = []
    for step in JOB["steps"]:
        command = step.get("run", "")
        if command and not command.startswith("pip install"):
            for name, value in cell.items():
                command = command.replace("${{ matrix." + name + " }}", value)
            assert "${{" not in command
            found.append((command, step.get("if") == "always()"))
    return found


def run_steps(commands: list[tuple[str, bool]], folder: Path) -> tuple[bool, str]:
    """Runs the commands as a CI does: after a failure only those that always run; returns success and the summary."""
    summary = folder / "page.md"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "GITHUB_STEP_SUMMARY": str(summary)}
    sound = True
    for command, always in commands:
        if sound or always:
            done = subprocess.run(["bash", "-e", "-c", command], cwd=folder, env=environment, check=False)
            sound &= done.returncode == 0
    return sound, summary.read_text()


@pytest.mark.parametrize("cell", SMALL, ids=[cell["runtimes"] for cell in SMALL])
def test_the_workflow_passes_and_posts_a_table(cell: dict[str, str], tmp_path: Path) -> None:
    sound, page = run_steps(steps(cell), tmp_path)
    assert sound
    assert "Parity of net: pass" in page
    for runtime in cell["runtimes"].split(","):
        assert f"| {runtime} |" in page
    assert (tmp_path / "parity.xml").is_file()
    assert (tmp_path / "parity.json").is_file()


def test_the_build_fails_and_still_posts_its_table_when_the_file_computes_something_else(tmp_path: Path) -> None:
    export, *rest = steps(SMALL[0])
    run_steps([export, ("touch page.md", True)], tmp_path)
    path = tmp_path / "net.onnx"
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 4)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.001, tensor.name))
    path.with_name("net.onnx.manifest.json").unlink()
    onnx.save(model, path)
    sound, page = run_steps(rest, tmp_path)
    assert not sound
    assert "**FAIL**" in page
    assert "from gold" in page
