"""``resnet-onnx bench`` as its user meets it: documents, exit codes, Ctrl-C, and a machine without memory."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from support.onnx_models import weights, write_model

COMMAND = [sys.executable, "-m", "resnet_onnx", "bench"]


def bench(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=300, check=False, **more)


def document(*arguments: str, code: int = 0, **more: Any) -> dict[str, Any]:
    done = bench(*arguments, "--json", **more)
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_document_has_what_outside_checks_read(tmp_path: Path) -> None:
    saved = tmp_path / "new" / "r.json"
    found = document(
        "cifar-resnet20", "--runtime", "ort-cpu,torch", "--duration", "0.6", "--precision-target", "0.5", "--save",
        str(saved),
    )  # fmt: skip
    assert found["settings"]["precision_target"] == 0.005
    rows = found["results"]
    assert [(r["runtime"], r["batch"], r["streams"]) for r in rows] == [
        ("ort-cpu", 1, 1), ("ort-cpu", 8, 1), ("torch", 1, 1), ("torch", 8, 1),
    ]  # fmt: skip
    for row in rows:
        raw = np.concatenate([np.array(part) for part in row["raw_ns"]]) / 1e6
        assert row["model"] == "cifar-resnet20"
        assert (row["precision"], row["scope"], row["includes_transfers"]) == ("fp32", "device", False)
        assert row["samples"] == raw.size > 0
        assert row["latency_ms"]["p50"] == pytest.approx(np.median(raw))
        assert row["images_per_second"] == pytest.approx(1e3 * row["batch"] / np.median(raw))
        assert row["latency_ms"]["min"] == pytest.approx(raw.min())
        for name, needed in (("p90", 29), ("p99", 299)):
            value = row["latency_ms"][name]
            assert value is None if raw.size < needed else value == pytest.approx(np.percentile(raw, int(name[1:])))
        assert isinstance(row["stable"], bool)
        assert row["stable"] == (row["unstable_reason"] is None)
        if row["images_per_second_ci95"]:
            low, high = row["images_per_second_ci95"]
            assert low <= row["images_per_second"] <= high
        assert row["roofline"]["peak_gflops"] > 0
        gflops = 2 * row["roofline"]["multiply_adds"] * row["images_per_second"] / 1e9
        assert row["roofline"]["fraction"] == pytest.approx(gflops / row["roofline"]["peak_gflops"])
        assert row["roofline"]["bound"] in ("compute", "memory")
        assert row["recorded"]["threads"] >= 1
        assert row["version"]
        assert row["error"] is None
    assert rows[0]["placement"].keys() == {"CPUExecutionProvider, cpu"}
    assert len(found["model"]["sha256"]) == 64
    assert found["environment"]["cpu"]["usable_cores"] >= 1
    assert found["notes"] == ["cifar-resnet20: random weights: good for throughput and parity, not for predictions"]
    assert found["command"][:3] == ["resnet-onnx", "bench", "cifar-resnet20"]
    assert (found["schema"], found["kind"]) == (1, "bench")
    kept = json.loads(saved.read_text())
    assert kept["results"][0]["raw_ns"] is not None
    assert {**kept, "results": None} == {**found, "results": None}


def test_the_text_has_the_answer_the_conditions_and_the_next_step() -> None:
    done = bench("cifar-resnet20", "--runtime", "ort-cpu", "--batch", "2", "--duration", "0.3", "--scope", "end-to-end")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cifar-resnet20 · fp32 · 32×32 · random weights (seed 0)\n")
    assert "img/s" in done.stdout
    assert "End to end, host arrays in and out, copies included, 1 stream. Stable: " in done.stdout
    assert "→ resnet-onnx parity cifar-resnet20" in done.stdout
    assert "not for predictions" in done.stderr
    assert "\x1b" not in done.stdout


def foreign(path: Path, batch: int | str) -> Path:
    from onnx import helper

    nodes = [
        helper.make_node("MatMul", ["left", "w"], ["a"]),
        helper.make_node("Add", ["a", "right"], ["out"]),
    ]
    return write_model(path, nodes, {"left": [batch, 6], "right": [batch, 5]}, {"w": weights(6, 5)})


def test_a_table_beside_the_samples_does_not_set_the_batch(tmp_path: Path) -> None:
    from onnx import helper

    nodes = [helper.make_node("MatMul", ["x", "table"], ["out"])]
    path = write_model(tmp_path / "open.onnx", nodes, {"table": [6, 5], "x": ["batch", 6]}, {})
    found = document(str(path), "--runtime", "ort-cpu", "--batch", "3", "--duration", "0.1")
    assert [row["batch"] for row in found["results"]] == [3]
    nodes = [helper.make_node("Mul", ["x", "scale"], ["out"])]
    path = write_model(tmp_path / "fixed.onnx", nodes, {"scale": [1], "x": [4, 6]}, {})
    found = document(str(path), "--runtime", "ort-cpu", "--duration", "0.1")
    assert [row["batch"] for row in found["results"]] == [4]


@pytest.mark.parametrize("option", ["--duration", "--precision-target", "--cut-off"])
def test_no_number_is_refused_before_anything_is_measured(option: str) -> None:
    done = bench("cifar-resnet20", "--runtime", "ort-cpu", option, "nan")
    assert done.returncode == 2
    assert "is not a finite number" in done.stderr


def test_nothing_measured_is_an_error_with_a_cut_off_too(tmp_path: Path) -> None:
    done = bench("cifar-resnet20", "--runtime", "ort-cpu", "--batch", f"{2**40},{2**41}", "--cut-off", "5")
    assert done.returncode == 3
    assert "GiB are free" in done.stderr


def test_a_cache_that_cannot_be_written_does_not_cost_the_rows(tmp_path: Path) -> None:
    path, cache = foreign(tmp_path / "two.onnx", 4), tmp_path / "file"
    cache.write_text("in the way")
    done = bench(str(path), "--runtime", "ort-cpu", "--duration", "0.1", "--json", "--cache-dir", str(cache))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"][0]["images_per_second"] > 0


def test_autocast_is_the_precision_of_its_row() -> None:
    found = document("cifar-resnet20", "--runtime", "torch,ort-cpu", "--autocast", "bf16", "--batch", "1",
                     "--duration", "0.1")  # fmt: skip
    assert [(row["runtime"], row["precision"]) for row in found["results"]] == [("torch", "bf16"), ("ort-cpu", "fp32")]


def test_a_foreign_model_with_two_inputs_and_a_fixed_batch_is_measured_as_it_is(tmp_path: Path) -> None:
    path = foreign(tmp_path / "two.onnx", 4)
    found = document(
        str(path), "--runtime", "ort-cpu", "--duration", "0.2", "--streams", "1,2", "--scope", "end-to-end"
    )
    assert [(r["batch"], r["streams"], r["scenario"]) for r in found["results"]] == [
        (4, 1, "latency"), (4, 2, "throughput"),
    ]  # fmt: skip
    for row in found["results"]:
        assert row["model"] == "two"
        assert row["roofline"]["multiply_adds"] == 30
        assert (row["scope"], row["includes_transfers"]) == ("end-to-end", True)
    wrong = bench(str(path), "--runtime", "ort-cpu", "--batch", "8")
    assert wrong.returncode == 2
    assert "fixed batch of 4, and --batch 8 was given" in wrong.stderr


def test_all_leaves_out_what_cannot_open_the_model_and_naming_it_is_an_error(tmp_path: Path) -> None:
    path = foreign(tmp_path / "two.onnx", "n")
    found = document(str(path), "--runtimes", "all", "--duration", "0.1", "--batch", "3")
    assert {row["runtime"] for row in found["results"]} == {"ort-cpu", "openvino"}
    named = bench(str(path), "--runtime", "torch", "--json")
    assert named.returncode == 2
    assert json.loads(named.stdout)["error"]["kind"] == "usage"


def test_a_missing_runtime_is_an_error_before_anything_heavy_is_loaded() -> None:
    script = (
        "import sys\nfrom resnet_onnx.cli.main import main\n"
        "code = main(['bench', '--runtime', 'tensorrt', '--json'])\n"
        "print(sorted({'torch', 'onnxruntime', 'openvino'} & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300)
    if done.returncode == 0:
        pytest.skip("TensorRT runs here")
    assert done.returncode == 3
    error = json.loads(done.stdout)["error"]
    assert error["kind"] == "runtime-unavailable"
    assert "runtime 'tensorrt' can't run here" in error["message"]
    assert error["fix"]
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "0"], "at least 1"),
        (["--batch", "two"], "whole numbers"),
        (["--duration", "0"], "--duration"),
        (["--duration", "inf"], "--duration"),
        (["--duration", "nan"], "--duration"),
        (["--precision-target", "0"], "--precision-target"),
        (["--precision-target", "5", "--harness", "mlperf"], "--precision-target"),
        (["--streams", "2", "--scenario", "latency"], "one request at a time"),
        (["--runtime", "ort"], "unknown runtime 'ort'"),
        (["--runtime", ","], "no runtime named"),
        (["--scope", "host"], "--scope"),
        (["resnet51"], "no ResNet of depth 51"),
        (["none.onnx", "--runtime", "ort-cpu"], "no such file"),
        (["--save", "/"], "is a directory"),
    ],
)
def test_a_mistake_is_one_message(arguments: list[str], said: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys, resnet_onnx.cli.bench\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'openvino', 'scipy', 'numpy'} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert set(json.loads(loaded.replace("'", '"'))) <= {"numpy"}


def _run_until_measuring(*arguments: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    end = time.time() + 300
    while time.time() < end and process.poll() is None:
        found = psutil.Process(process.pid).children(recursive=True)
        if found and sum(sum(child.cpu_times()[:2]) for child in found) > 2.5:
            return process, found
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"no child process started measuring: {process.communicate()}")


@pytest.mark.parametrize(
    ("whole_group", "more"),
    [(True, []), (False, []), (True, ["--scenario", "offline"]), (True, ["--harness", "mlperf"])],
)
def test_ctrl_c_ends_everything(tmp_path: Path, whole_group: bool, more: list[str]) -> None:
    if "mlperf" in more:
        pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed (extra: mlperf)")
    saved = tmp_path / "r.json"
    saved.write_text("old")
    process, found = _run_until_measuring(
        "cifar-resnet20",
        "--runtime",
        "ort-cpu,openvino",
        "--duration",
        "60",
        "--batch",
        "64",
        "--save",
        str(saved),
        *more,
    )
    start = time.perf_counter()
    if whole_group:  # as a terminal sends it
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert time.perf_counter() - start < 10
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert not [child for child in found if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert saved.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_out_of_memory_is_a_row_and_the_sweep_goes_on() -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))

    found = document(
        "cifar-resnet20", "--runtime", "ort-cpu", "--batch", "2,60000,4", "--duration", "0.3", preexec_fn=limit
    )
    small, large, after = found["results"]
    assert large["error"]["kind"] == "out-of-memory"
    assert large["images_per_second"] is None
    assert large["latency_ms"]["p50"] is None
    assert large["stable"] is False
    for row in (small, after):
        assert row["error"] is None
        assert row["images_per_second"] > 0
