"""What kills a process or never ends costs one sentence: the work is done in a child."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from resnet_onnx.cli.guard import GRACE_S

GUARDED = """
import ctypes, json, os, signal, subprocess, sys, time
from itertools import repeat
from resnet_onnx.cli import guard
from resnet_onnx.cli.terminal import Terminal
from runtimes.doing import doing, ended
guard.GRACE_S = 1.5
guard.work_in_child(Terminal(as_json="--json" in sys.argv))
"""
"""A program that works in a child; what it does there follows."""


def guarded(code: str, *line: str) -> subprocess.Popen[str]:
    program = GUARDED + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", program, *line], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def of_session(leader: int) -> list[int]:
    """Returns the processes of a session that are still there."""
    found = []
    for process in psutil.process_iter(["pid", "status"]):
        try:
            if os.getsid(process.pid) == leader and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except OSError:
            continue
    return found


def gone(leader: int, within_s: float = 10) -> bool:
    end = time.monotonic() + within_s
    while of_session(leader) and time.monotonic() < end:
        time.sleep(0.05)
    return not of_session(leader)


@pytest.mark.parametrize(
    ("code", "words", "exit_code"),
    [
        ('with doing("opening a on b"): ctypes.string_at(0)', "opening a on b was ended by SIGSEGV (an inv", 3),
        ('with doing("checking a", checking=True): os.kill(os.getpid(), 8)', "checking a was ended by SIGFPE", 2),
        ("os.abort()", "the work was ended by SIGABRT (a library gave up)", 3),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL (the system does that where memory runs out)", 3),
    ],
)  # fmt: skip
def test_a_signal_is_one_sentence(code: str, words: str, exit_code: int) -> None:
    # What the work started goes with it.
    process = guarded(f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n{code}", "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == exit_code, err
    assert words in err
    assert len(err.splitlines()) == 2, err
    assert words in json.loads(out)["error"]["message"]
    assert gone(process.pid)


def test_the_exit_code_that_the_work_ended_with_counts() -> None:
    process = guarded("sys.exit(1)")
    process.communicate(timeout=60)
    assert process.returncode == 1
    # Libraries that crash while Python takes itself apart change nothing.
    process = guarded("print('done'); sys.stdout.flush(); ended(1); ctypes.string_at(0)")
    assert process.communicate(timeout=60) == ("done\n", "")
    assert process.returncode == 1


LOOP = "print('at work', flush=True); sum(repeat(1, 10**12)) if '--native' in sys.argv else time.sleep(60)"
"""One native call, in which no handler of Python runs."""


@pytest.mark.parametrize("whole_group", [True, False])
@pytest.mark.parametrize("native", [True, False])
def test_ctrl_c_ends_work_that_does_not_hear_it(whole_group: bool, native: bool) -> None:
    code = f"""try:
    {LOOP}
except KeyboardInterrupt:
    print("cleaned up", flush=True)
    sys.exit(130)
"""
    process = guarded(code, *(["--native"] if native else []))
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    time.sleep(0.5)  # in the call
    sent = time.monotonic()
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - sent < 10
    if native:
        assert err == "error: interrupted; what was complete is kept\n"
    else:
        assert out == "cleaned up\n"
        assert err == ""
    assert gone(process.pid)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_work_ends_with_its_parent(how: signal.Signals) -> None:
    process = guarded(LOOP)
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    assert len(of_session(process.pid)) == 2
    os.kill(process.pid, how)
    assert gone(process.pid)
    process.communicate(timeout=60)
    assert process.returncode == -how


# ---- graphs ----------------------------------------------------------------------------------------------------------


def hostile(path: Path, *, kind: str) -> Path:
    """Writes a classifier of 8×8 pictures that divides the smallest integer by -1, or never ends."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
    ]
    constants = {
        "least": np.array([-(2**63)], np.int64), "minus": np.array([-1], np.int64), "yes": np.array(True),
        "many": np.array(2**62, np.int64), "w": np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1),
    }  # fmt: skip
    if kind == "SIGFPE":
        nodes += [
            helper.make_node("Div", ["least", "minus"], ["quotient"]),
            helper.make_node("Cast", ["quotient"], ["scale"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["flat", "scale"], ["y"]),
        ]
    else:
        body = helper.make_graph(
            [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Neg", ["held"], ["next"])],
            "body",
            [
                helper.make_tensor_value_info("step", TensorProto.INT64, []),
                helper.make_tensor_value_info("go", TensorProto.BOOL, []),
                helper.make_tensor_value_info("held", TensorProto.FLOAT, None),
            ],
            [
                helper.make_tensor_value_info("on", TensorProto.BOOL, []),
                helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
            ],
        )
        nodes.append(helper.make_node("Loop", ["many", "yes", "flat"], ["y"], body=body))
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "hostile",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(array, name) for name, array in constants.items() if name in used],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def command(*line: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "resnet_onnx", *line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def lines(folder: Path, net: Path) -> dict[str, list[str]]:
    for split in ("train", "test"):
        for index in range(3):
            (folder / "data" / split / str(index)).mkdir(parents=True)
            Image.new("RGB", (8, 8), (80 * index, 0, 0)).save(folder / "data" / split / str(index) / "a.png")
    data = str(folder / "data")
    return {
        "predict": ["predict", str(net), f"{data}/test/0/a.png"],
        "evaluate": ["evaluate", str(net), "--data", data, "--class-order", "number"],
        "parity": ["parity", str(net), "--runtimes", "ort-cpu"],
        "convert": ["convert", str(net), "--to", "int8", "--calibration", data, "-o", str(folder / "int8.onnx")],
    }


@pytest.mark.parametrize(
    "name",
    ["predict", *(pytest.param(name, marks=pytest.mark.slow) for name in ("evaluate", "parity", "convert"))],
)
def test_a_graph_that_kills_its_runtime_is_one_sentence(name: str, tmp_path: Path) -> None:
    net = hostile(tmp_path / "net.onnx", kind="SIGFPE")
    process = command(*lines(tmp_path, net)[name])
    _, err = process.communicate(timeout=300)
    assert process.returncode in (2, 3), err
    assert "Traceback" not in err
    told = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1, err
    assert "SIGFPE" in told[0]
    assert str(net) in told[0] or "net on" in told[0]
    assert gone(process.pid)


@pytest.mark.parametrize(
    "name",
    ["evaluate", *(pytest.param(name, marks=pytest.mark.slow) for name in ("predict", "parity", "convert"))],
)
def test_a_graph_that_never_ends_is_ended_by_ctrl_c(name: str, tmp_path: Path) -> None:
    process = command(*lines(tmp_path, hostile(tmp_path / "net.onnx", kind="endless"))[name])
    try:
        before, at_rest = -1.0, 0.0
        while at_rest < 3:  # past its imports, in the graph: it computes and opens nothing more
            assert process.poll() is None, process.communicate()
            tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            used = sum(sum(each.cpu_times()[:2]) for each in tree)
            libraries = sum("onnxruntime_pybind" in part.path for each in tree for part in each.memory_maps())
            at_rest += 0.5 if libraries and used > before else 0.0
            before = used
            time.sleep(0.5)
        sent = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - sent < 10
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "error: interrupted; what was complete is kept"
    assert gone(process.pid)
    assert GRACE_S < 10
