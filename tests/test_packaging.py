"""What pip installs where: exactly one ONNX Runtime on every system, of CUDA 13 where torch's is."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]
GPU, CPU = "onnxruntime-gpu", "onnxruntime"


@pytest.mark.parametrize(
    ("system", "machine", "expected"),
    [
        ("linux", "x86_64", GPU),
        ("linux", "aarch64", GPU),
        ("win32", "AMD64", GPU),
        ("win32", "ARM64", CPU),
        ("darwin", "arm64", CPU),
        ("darwin", "x86_64", CPU),
    ],
)
def test_every_system_gets_one_onnx_runtime(system: str, machine: str, expected: str) -> None:
    where = {"sys_platform": system, "platform_machine": machine}
    found = [
        wanted
        for wanted in map(Requirement, PROJECT["dependencies"])
        if wanted.name.startswith("onnxruntime") and (wanted.marker is None or wanted.marker.evaluate(where))
    ]
    assert [wanted.name for wanted in found] == [expected]
    if expected == GPU:  # releases up to 1.26 are builds for CUDA 12
        assert not [old for old in ("1.24.0", "1.26.0", "1.27.0") if Version(old) in found[0].specifier]


def test_the_two_majors_of_tensorrt_are_two_extras() -> None:
    extras = {name: [Requirement(text) for text in texts] for name, texts in PROJECT["optional-dependencies"].items()}
    for extra, ours, other in (("tensorrt", "10.16", "11.4"), ("tensorrt11", "11.4", "10.16")):
        (wanted,) = extras[extra]
        assert wanted.name == "tensorrt-cu13"
        assert Version(ours) in wanted.specifier
        assert Version(other) not in wanted.specifier
    (cuda,) = extras["cuda"]
    assert (cuda.name, cuda.extras) == (GPU, {"cuda", "cudnn"})
    assert Version("1.26.0") not in cuda.specifier
