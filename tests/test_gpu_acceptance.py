"""``tests/gpu/acceptance.sh``, dry on the CPU: its steps are commands that exist, results are written as they come."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from resnet_onnx.cli.main import cli

HERE = Path(__file__).resolve().parent / "gpu"


@pytest.fixture(scope="module")
def acceptance() -> Any:
    spec = importlib.util.spec_from_file_location("acceptance", HERE / "acceptance.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["acceptance"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("device", ["cuda:0", "cpu"])
def test_every_command_of_a_step_is_one_that_we_take(acceptance: Any, device: str) -> None:
    steps = acceptance.steps(device)
    assert len({step.name for step in steps}) == len(steps)
    assert sum(step.limit_s for step in steps if step.runtime in ("", "torch", "ort-cuda")) < 16 * 60
    ours = [list(step.command[3:]) for step in steps if list(step.command[1:3]) == ["-m", "resnet_onnx"]]
    assert len(ours) > 10
    for name, *arguments in ours:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None, name
        command.make_context(name, arguments)  # click refuses what it does not know


def test_a_dry_run_writes_each_result_and_the_reason_of_each_step_left_out(tmp_path: Path) -> None:
    out = tmp_path / "out"
    only = "doctor,training,sensors,contract,tensorrt"
    command = ["bash", str(HERE / "acceptance.sh"), str(out), "--device", "cpu", "--only", only]
    done = subprocess.run(
        command,
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = {row["step"]: row for row in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    assert {name: row["state"] for name, row in results.items()} == {
        "doctor": "done", "training": "done", "sensors": "skipped", "contract": "skipped", "tensorrt": "skipped",
    }  # fmt: skip
    assert all(row["reason"] for row in results.values() if row["state"] == "skipped")
    assert results["training"]["figures"]["waits"] == 0
    assert results["training"]["figures"]["images_per_second"] > 0
    assert results["doctor"]["figures"]["ort-cpu"]
    assert (out / "summary.md").read_text().count("\n") == 2 + len(results)


def test_a_step_that_takes_too_long_or_fails_is_told_and_the_rest_goes_on(acceptance: Any, tmp_path: Path) -> None:
    slow = acceptance.Step(name="slow", limit_s=5, command=[sys.executable, "-c", "import time; time.sleep(60)"])
    late = acceptance.run(slow, "cpu", tmp_path, left_s=5.0)
    assert (late.state, late.reason) == ("timed out", "it took more than 5 s")
    broken = acceptance.Step(name="broken", limit_s=30, command=[sys.executable, "-c", "raise SystemExit('no GPU')"])
    failed = acceptance.run(broken, "cpu", tmp_path, left_s=100.0)
    assert (failed.state, failed.reason) == ("failed", "no GPU")
    assert "no GPU" in (tmp_path / "broken.txt").read_text()
    assert acceptance.run(slow, "cpu", tmp_path, left_s=1.0).reason == "no time is left"
