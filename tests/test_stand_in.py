"""TensorRT and TensorRT for RTX on a stand-in that computes: the contract, the commands, and faults that must be seen.

The stand-in is ONNX Runtime on the CPU behind the libraries' interface (``support/fake_tensorrt.py``), over streams and
memory that obey CUDA's rules (``support/fake_cuda.py``). Nothing here runs on a GPU or in TensorRT: tests/gpu does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from support import fake_cuda, fake_tensorrt
from support.fake_cuda import VIOLATIONS, FakeTorch
from support.onnx_models import write_model
from test_runtime_contract import TestTensorRT as OnTensorRT
from test_trt import doubling

from resnet_onnx.cli.main import main
from runtimes import trt
from runtimes.spec import ModelSource, RuntimeOptions

FAMILY = ("tensorrt", "tensorrt-rtx")


class StandInContract(OnTensorRT):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _stand_in(cls) -> Iterator[None]:
        with fake_tensorrt.installed():
            yield


class TestTensorRTStandIn(StandInContract):
    pass


class TestTensorRTRTXStandIn(StandInContract):
    runtime = trt.TensorRTRTXRuntime
    library = "tensorrt-rtx"


class OnTheSecondDevice(StandInContract):
    device = "cuda:1"


del OnTensorRT, StandInContract  # pytest would collect them here


# ---- planted faults


def default_stream(lane: Any) -> fake_cuda.Stream:
    return fake_cuda._DEFAULT[lane.stream.device]


def run_on_the_default_stream(lane: Any) -> None:
    lane._start(default_stream(lane).cuda_stream)


def copy_out_before_the_run_is_done(lane: Any) -> None:
    with FakeTorch.cuda.stream(default_stream(lane)):
        for spec in lane._owner.outputs:
            size = lane._sizes[spec.name]
            lane._host[spec.name][:size].copy_(lane._device[spec.name][:size], non_blocking=False)


FAULTS: dict[str, list[tuple[Any, str, Any]]] = {
    "nothing": [],
    "missing synchronisation": [(trt._Lane, "synchronize", lambda lane: None)],
    "memory freed in flight": [
        (trt._Lane, "close", trt._Lane._free),
        (trt._PreparedEngine, "_close", lambda prepared: prepared._lane.close()),
    ],
    "wrong stream": [(trt._Lane, "execute", run_on_the_default_stream)],
    "host copy before the event": [(trt._Lane, "copy_out", copy_out_before_the_run_is_done)],
    "first profile for the second": [(trt.TensorRTFamilyRuntime, "_fitting_profile", lambda runtime, feeds: 0)],
    "wait while a graph is captured": [(trt._PreparedEngine, "_body", lambda prepared: prepared._synchronize())],
}


def promises(folder: Path) -> list[Callable[[], None]]:
    """A few of the contract's tests, and a run in each of two profiles."""
    suite = OnTheSecondDevice()
    suite._folder = folder
    gift = folder / "gift.engine"
    gift.write_bytes(doubling({"x": [[1, 3], [1, 3], [1, 3]]}, {"x": [[4, 3], [6, 3], [8, 3]]}))

    def both_profiles() -> None:
        source, options = ModelSource(path=gift), RuntimeOptions(trust_engine=True)
        with trt.TensorRTRuntime(source, device="cuda:0", options=options) as runtime:
            for count in (1, 8):
                x = np.full((count, 3), count, np.float32)
                np.testing.assert_array_equal(runtime.run({"x": x})["y"], 2 * x)

    def captured() -> None:
        source, options = ModelSource(path=gift), RuntimeOptions(trust_engine=True, cuda_graph=True)
        with trt.TensorRTRuntime(source, device="cuda:0", options=options) as runtime:
            x = np.ones((1, 3), np.float32)
            with runtime.prepare({"x": x}) as prepared:
                prepared.enqueue()
                np.testing.assert_array_equal(prepared.outputs()["y"], 2 * x)

    return [
        suite.test_batches_may_change_from_run_to_run,
        lambda: suite.test_prepared_equals_run(scope="device", case="several"),
        lambda: suite.test_prepared_equals_run(scope="end-to-end", case="several"),
        lambda: suite.test_a_prepared_run_is_closed_with_its_runtime_or_by_itself(scope="device", closed="prepared"),
        both_profiles,
        captured,
    ]


@pytest.mark.parametrize("fault", FAULTS)
def test_every_planted_fault_of_the_adapter_is_seen(fault: str, tmp_path: Path) -> None:
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        fake_tensorrt.install(patch.setattr)
        for owner, name, wrong in FAULTS[fault]:
            patch.setattr(owner, name, wrong)
        for promise in promises(tmp_path):
            try:
                promise()
            except (AssertionError, Exception) as broken:
                seen.append(f"{type(broken).__name__}: {broken}"[:200])
        seen += VIOLATIONS
    assert bool(seen) is (fault != "nothing"), seen


# ---- the commands


def call(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code = main([*arguments, "--json"])
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    assert code == 0, found
    return found


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fake_tensorrt.child_environment(monkeypatch)
    with fake_tensorrt.installed():
        yield


def classifier(path: Path) -> Path:
    """Ten scores for a picture of 16 × 16."""
    nodes = [
        helper.make_node("Conv", ["pixels", "w"], ["c"], name="conv", strides=[4, 4]),
        helper.make_node("GlobalAveragePool", ["c"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["logits"], name="flatten"),
    ]
    weight = np.random.default_rng(0).standard_normal((10, 3, 4, 4)).astype(np.float32)
    return write_model(path, nodes, {"pixels": ["batch", 3, 16, 16]}, {"w": weight})


@pytest.mark.usefixtures("stand_in")
def test_parity_evaluation_and_measurement_run_on_engines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = str(classifier(tmp_path / "net.onnx"))
    names = ",".join(FAMILY)
    judged = call(capfd, "parity", model, "--runtimes", names)
    assert [(row["runtime"], row["passed"]) for row in judged["results"]] == [(name, True) for name in FAMILY]
    counted = call(capfd, "evaluate", model, "--data", "digits", "--runtime", f"{names},ort-cpu")["results"]
    assert [row["runtime"] for row in counted] == [*FAMILY, "ort-cpu"]
    assert len({(row["top1"], row["top5"]) for row in counted}) == 1
    measured = call(capfd, "bench", model, "--runtime", names, "--batch", "8", "--streams", "2", "--duration", "0.3")
    rows = measured["results"]
    assert [(row["runtime"], row["batch"]) for row in rows] == [(name, 8) for name in FAMILY]
    for row in rows:
        assert row["error"] is None
        assert (row["device"], row["streams"]) == ("cuda:0", 2)
        assert row["images_per_second"] > 0
        assert {where.rpartition(", ")[2] for where in row["placement"]} == {"cuda:0"}
        assert row["recorded"]["gpu"] == fake_tensorrt.GPUS[0].name
