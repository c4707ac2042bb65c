"""A user's own test suite says parity in one line, in Python and through the fixture that the package registers."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from resnet_onnx import workflow
from resnet_onnx.testing import assert_parity
from resnet_onnx.workflow import Request

pytest_plugins = ["pytester"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A sound file, and one with a channel off by 1 %."""
    folder = tmp_path_factory.mktemp("plugin")
    sound, broken = folder / "sound.onnx", folder / "broken.onnx"
    workflow.export(workflow.resolve(Request(model="cifar-resnet20", seed=3)), sound)
    proto = onnx.load(sound)
    tensor = next(t for t in proto.graph.initializer if list(t.dims) == [32, 32, 3, 3])
    values = numpy_helper.to_array(tensor).copy()
    values[3] *= 1.01
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, broken)
    return sound, broken


def test_one_line_of_python(pair: tuple[Path, Path]) -> None:
    sound, broken = pair
    report = assert_parity(sound, runtimes="ort-cpu,openvino", images=2)
    assert [outcome.passed for outcome in report.outcomes] == [True, True]
    with pytest.raises(AssertionError, match=r"(?s)broken does not compute.*ort-cpu: .* from gold, budget"):
        assert_parity(broken, sound, images=2)


def test_the_fixture_in_a_users_own_suite(pytester: pytest.Pytester, pair: tuple[Path, Path]) -> None:
    assert [e.value for e in entry_points(group="pytest11", name="resnet-onnx")] == ["resnet_onnx.pytest_plugin"]
    sound, broken = pair
    pytester.makepyfile(f"""
        def test_sound(assert_parity):
            assert_parity({str(sound)!r}, images=1)

        def test_broken(assert_parity):
            assert_parity({str(broken)!r}, {str(sound)!r}, images=1)
    """)
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*AssertionError: broken does not compute what gold*", "*ort-cpu: * from gold, budget*"]
    )


def test_the_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys, resnet_onnx.pytest_plugin as p; print([m for m in ('torch', 'onnx', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
