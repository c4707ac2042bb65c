"""Nothing heavy is loaded before it is needed, and adapters are there without their libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support.onnx_models import small_conv

from resnet_onnx.cli.main import COMMANDS
from runtimes.registry import runtime_names

HEAVY = (
    "torch",
    "torchvision",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "onnx",
    "onnxscript",
    "scipy",
    "sklearn",
    "matplotlib",
    "timm",
    "safetensors",
    "pandas",
)


def loaded_by(code: str) -> set[str]:
    """Runs `code` in a fresh interpreter and returns which heavy modules it has loaded in the end."""
    ending = f"\nimport sys as _s; print('\\n@' + ' '.join(m for m in {HEAVY} if m in _s.modules))"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code) + ending], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("@")[2].split())


def commands(*lines: list[str]) -> str:
    return f"""
from resnet_onnx.cli.main import main
for line in {json.dumps(lines)}:
    assert main(line) in (0, 2), line
"""


def test_the_check_finds_what_is_loaded() -> None:
    assert loaded_by("import scipy, onnx") >= {"scipy", "onnx"}


def test_importing_the_runtimes_loads_no_library() -> None:
    code = """
        import runtimes, runtimes.files, runtimes.environment, runtimes.nvidia, runtimes.fake
        from runtimes import registry
        for name in registry.runtime_names():
            registry.adapter(name)
        registry.parse_names("torch,ort-cpu")
    """
    assert loaded_by(code) == set()


def test_help_loads_no_library() -> None:
    lines = [["--help"], ["-h"], ["--version"], [], *[[command, "--help"] for command in COMMANDS]]
    assert loaded_by(commands(*lines)) == set()


USAGE_ERRORS = [
    "frobnicate",
    "export --frobnicate",
    "export --depth 77",
    "export --model nosuch",
    "export --depth 50 --batch 0",
    "export --depth 50 -o net.txt",
    "parity",
    "parity nowhere.onnx --runtimes nosuch",
    "bench nosuch --runtime nosuch",
    "bench resnet50 --scenario latency --streams 2",
    "predict nowhere.onnx a.png --runtime nosuch",
    "evaluate nowhere.onnx",
    "train --epochs 0",
    "train --model nosuch",
    "models nosuch",
    "doctor extra",
    "demo --seed -1",
]


def test_a_usage_error_loads_no_library() -> None:
    assert loaded_by(commands(*[line.split() for line in USAGE_ERRORS])) == set()


MISSING = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)
        return None

sys.meta_path.insert(0, Refuse())
"""


def test_adapters_are_there_without_their_libraries() -> None:
    code = MISSING.format(missing=set(HEAVY)) + textwrap.dedent(
        """
        import json
        from runtimes import registry
        print(json.dumps([[a.name, a.available, a.reason, a.fix]
                          for a in (registry.probe(name) for name in registry.runtime_names())]))
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [answer[0] for answer in answers] == list(runtime_names())
    for name, available, reason, fix in answers:
        assert not available, name
        assert reason, name
        assert fix, name
    library = {"torch": "torch", "reference": "onnx", "ort-cpu": "onnxruntime", "openvino": "openvino"}
    for name, _, reason, fix in answers:
        if name in library:
            assert f"'{library[name]}'" in reason
            assert "not installed" in reason
            assert "pip install" in fix


@pytest.mark.parametrize("library", ["openvino", "onnxruntime", "torch"])
def test_a_missing_library_is_exit_3_with_the_command_that_installs_it(library: str) -> None:
    runtime = {"openvino": "openvino", "onnxruntime": "ort-cpu", "torch": "torch"}[library]
    line = ["parity", "resnet18", "--runtimes", runtime, "--json"]
    code = (
        MISSING.format(missing={library})
        + f"""
from resnet_onnx.cli.main import main
sys.exit(main({line}))
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["kind"] == "runtime-unavailable"
    assert f"'{library}'" in error["message"]
    assert runtime in error["message"]
    assert "pip install" in error["fix"]


@pytest.mark.parametrize("setting", [None, "0"])
def test_onnx_runtime_keeps_no_device_id_and_writes_nowhere(tmp_path: Path, setting: str | None) -> None:
    folders = {name: tmp_path / name for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR")}
    for folder in folders.values():
        folder.mkdir()
    small_conv(tmp_path / "net.onnx")
    code = """
        import sys
        from pathlib import Path
        from runtimes import ModelSource, open_runtime
        with open_runtime("ort-cpu", ModelSource(path=Path(sys.argv[1]))):
            pass
    """
    environment = os.environ | {name: str(folder) for name, folder in folders.items()}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    if setting is not None:
        environment["ORT_DISABLE_TELEMETRY"] = setting
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "net.onnx")]
    subprocess.run(command, env=environment, timeout=60, check=True)
    assert {name: [*folder.rglob("*")] for name, folder in folders.items()} == {name: [] for name in folders}
