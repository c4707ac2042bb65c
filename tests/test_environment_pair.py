"""Two environments with two releases of ONNX Runtime: the question before an upgrade (`make env-pair`)."""

from __future__ import annotations

import json
import site
import subprocess
import sys
from pathlib import Path

import pytest
from test_paired import chain

from resnet_onnx.cli.main import main

RELEASES = ("1.30.0", "1.32.0")
ROOT = Path(__file__).parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.env_pair, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def pythons(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The pythons of two venvs; all but ONNX Runtime comes from this environment."""
    found = []
    rest = tmp_path_factory.mktemp("rest")
    for path in Path(site.getsitepackages()[0]).iterdir():
        if not path.name.startswith("onnxruntime"):
            (rest / path.name).symlink_to(path)
    for release in RELEASES:
        folder = tmp_path_factory.mktemp("venv") / release
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=200)
        python = folder / "bin" / "python"
        pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", f"onnxruntime=={release}"]
        answer = subprocess.run(pip, capture_output=True, text=True, timeout=600)
        if answer.returncode:
            pytest.skip(f"onnxruntime {release} can't be installed here: {answer.stderr.strip()[-200:]}")
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "rest.pth").write_text(f"{ROOT}\n{rest}\n")
        found.append(python)
    return found


def test_two_releases_of_onnx_runtime_are_compared(
    pythons: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = chain(tmp_path / "m.onnx", 20)
    words = ["compare", str(path), str(path), "--threads=1", "--batch=16", "--duration=20", "--json"]
    code = main([*words, f"--base-python={pythons[0]}", f"--new-python={pythons[1]}", "--fail-on=missing,different"])
    found = json.loads(capfd.readouterr().out)
    (row,) = found["rows"]
    assert code == 0
    assert [row[side]["version"] for side in ("base", "new")] == list(RELEASES)
    assert row["ci95"][0] < 1.5
    assert row["ci95"][1] > 0.6
    assert f"onnxruntime: {RELEASES[0]} → {RELEASES[1]}" in found["environment_differs"]
    assert not row["outputs"]["different"]
