"""MLPerf's LoadGen on our runtimes: its verdict, its logs, every sample really computed, failures, its absence."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.virtual_time import VirtualClock

from resnet_onnx.bench.loadgen import FEWEST_QUERIES, ServerRules, run_loadgen, verdict
from resnet_onnx.bench.serving import BatchPolicy
from runtimes.errors import RunFailed
from runtimes.fake import FakeProgram, FakeRuntime
from runtimes.spec import ModelSource, RuntimeOptions, TensorSpec

SEEN: list[np.ndarray] = []


def pause(seconds: float) -> None:
    time.sleep(seconds)


def program(fail_after: int) -> FakeProgram:
    def function(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        SEEN.append(feeds["x"].copy())
        pause(0.002)  # so that what LoadGen itself needs hardly counts
        if len(SEEN) > fail_after:
            raise ValueError("the cable was pulled")
        return {"y": feeds["x"]}

    spec = TensorSpec("x", np.dtype(np.float32), ("batch", 2))
    return FakeProgram(inputs=(spec,), outputs=(TensorSpec("y", spec.dtype, spec.shape),), function=function)


def fake(streams: int, fail_after: int = 10**9) -> FakeRuntime:
    SEEN.clear()
    source = ModelSource(factory=f"{__name__}:program", arguments={"fail_after": fail_after})
    return FakeRuntime(source, device="cpu", options=RuntimeOptions(streams=streams))


SAMPLES = {"x": np.arange(10, dtype=np.float32).reshape(5, 2)}


@pytest.fixture
def loadgen() -> Any:
    return pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed (extra: mlperf)")


@pytest.mark.usefixtures("loadgen")
def test_single_stream_computes_one_sample_a_query() -> None:
    with fake(streams=1) as runtime:
        found = run_loadgen(runtime, SAMPLES, 1, "SingleStream", 0.2, 0.1)
    assert found.reported.valid is True
    assert found.reported.scenario == "SingleStream"
    assert found.reported.queries == found.reported.samples == found.part.times_ns.size >= FEWEST_QUERIES
    assert found.reported.settings.min_duration_ms == 200
    assert found.reported.official.min_duration_ms == 600_000
    measured = SEEN[-found.reported.samples :]
    assert {tuple(array[0]) for array in measured} == {tuple(row) for row in SAMPLES["x"]}
    # LoadGen's clock starts before ours and ends after it; half of the queries, one after the other, fit into the run.
    p50_ms = found.reported.latency_ms.p50
    assert np.median(found.part.times_ns) / 1e6 <= p50_ms
    assert p50_ms * found.reported.queries / 2 <= 1e3 * found.part.spent_s


@pytest.mark.usefixtures("loadgen")
def test_offline_hands_everything_over_at_once_in_batches() -> None:
    with fake(streams=2) as runtime:
        found = run_loadgen(runtime, SAMPLES, 4, "Offline", 0.2, 0.1)
    assert found.reported.queries == found.part.times_ns.size == 1
    assert all(array.shape == (4, 2) for array in SEEN)
    runs = -(-found.reported.samples // 4)
    assert len(SEEN) >= runs
    seconds = found.part.times_ns[0] / 1e9
    assert found.warm_up.at_once * 4 == found.reported.samples
    samples, per_s = found.reported.samples, found.reported.samples_per_second
    assert samples / found.part.spent_s <= per_s <= samples / seconds
    assert "MLPerf Results Summary" in found.logs["mlperf_log_summary.txt"].decode()


@pytest.mark.usefixtures("loadgen")
def test_multi_stream_asks_eight_samples_at_once() -> None:
    with fake(streams=1) as runtime:
        found = run_loadgen(runtime, SAMPLES, 8, "MultiStream", 0.2, 0.1)
    assert found.reported.scenario == "MultiStream"
    assert found.reported.samples == 8 * (found.reported.queries or 0) == 8 * found.part.times_ns.size
    assert all(array.shape == (8, 2) for array in SEEN)


@pytest.mark.usefixtures("loadgen")
def test_a_server_batches_what_waits_and_loadgen_judges_its_limit() -> None:
    policy = BatchPolicy(max_batch=4, max_wait_s=0.005)
    with fake(streams=1) as runtime:
        rules = ServerRules(rate=800.0, limit_s=10.0, policy=policy)
        found = run_loadgen(runtime, SAMPLES, 4, "Server", 1.0, 0.1, rules)
        assert found.reported.valid
        assert found.reported.target_per_second == 800
        assert found.part.times_ns.size == found.reported.samples
        assert {len(array) for array in SEEN} <= {1, 2, 4}
        assert len(SEEN) < (found.reported.samples or 0), "several together"
        assert found.part.times_ns.max() < 10e9
        rules = ServerRules(rate=800.0, limit_s=0.001, policy=policy)
        late = run_loadgen(runtime, SAMPLES, 4, "Server", 1.0, 0.1, rules)
    assert not late.reported.valid, "a run alone takes 2 ms"


@pytest.mark.usefixtures("loadgen")
def test_a_run_that_fails_under_loadgen_is_an_error_and_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    # The warm-up makes 101 runs of 2 virtual ms; LoadGen queries 64 at least.
    now = VirtualClock()
    now.install(monkeypatch.setattr)
    monkeypatch.setattr(sys.modules[__name__], "pause", now.sleep)
    with fake(streams=1, fail_after=120) as runtime, pytest.raises(RunFailed, match="the cable was pulled"):
        run_loadgen(runtime, SAMPLES, 1, "SingleStream", 0.2, 0.05)
    assert len(SEEN) == 121, "the rest is not computed"


LINE = ':::MLLOG {"key": "%s", "value": %s, "time_ms": 1.0}\n'


def test_the_verdict_is_read_from_the_log() -> None:
    text = (
        LINE % ("result_validity", '"INVALID"')
        + LINE % ("result_invalid_reason", '"Increase expected QPS.  "')
        + LINE % ("result_samples_per_second", "12.5")
        + LINE % ("result_50.00_percentile_latency_ns", "5000000")
        + ':::MLLOG {"key": "cut'
    )
    found = verdict(text)
    assert (found["valid"], found["reason"], found["samples_per_second"]) == (False, "Increase expected QPS.", 12.5)
    assert found["latency_ms"] == {"p50": None, "p90": None, "p99": None}, "Offline has no latency of a sample"
    text = LINE % ("result_validity", '"VALID"') + LINE % ("result_90.00_percentile_latency_ns", "2500000")
    assert verdict(text)["latency_ms"]["p90"] == 2.5
    with pytest.raises(RunFailed, match="without a verdict"):
        verdict("")
    summary = "Early Stopping Result:\n * Only processed 51 queries.\n * Need 662.\n\nAdditional Stats"
    assert verdict(LINE % ("result_validity", '"INVALID"'), summary)["reason"] == "Only processed 51 queries. Need 662."
    assert verdict(LINE % ("result_validity", '"VALID"'), summary)["reason"] is None


@pytest.mark.usefixtures("loadgen")
def test_the_command_keeps_verdict_figures_and_logs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "resnet_onnx", "bench", "cifar-resnet20", "--runtime", "ort-cpu"]
    options = ["--harness", "mlperf", "--harness-logs", str(tmp_path / "logs"), "--duration", "0.3", "--batch", "4"]
    done = subprocess.run([*command, *options, "--json"], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    single, offline = json.loads(done.stdout)["results"]
    assert [row["harness"]["scenario"] for row in (single, offline)] == ["SingleStream", "Offline"]
    assert (single["scenario"], single["batch"], single["streams"]) == ("latency", 1, 1)
    assert (offline["scenario"], offline["batch"]) == ("offline", 4)
    assert offline["samples_at_once"] == offline["harness"]["samples"]
    for row in (single, offline):
        assert isinstance(row["harness"]["valid"], bool)
        assert row["includes_transfers"] is True
    assert single["latency_ms"]["p50"] <= single["harness"]["latency_ms"]["p50"] < 1e3 * single["measured_s"]
    samples = offline["harness"]["samples"]
    assert samples / offline["measured_s"] <= offline["harness"]["samples_per_second"] <= offline["images_per_second"]
    for name in ("ort-cpu-SingleStream", "ort-cpu-Offline"):
        assert (tmp_path / "logs" / name / "mlperf_log_summary.txt").stat().st_size > 100


def test_without_the_package_it_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['mlperf_loadgen'] = None; sys.argv[0] = 'resnet-onnx'\n"
        "from resnet_onnx.cli.main import entry; sys.exit(entry())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "bench", "cifar-resnet20", "--runtime", "ort-cpu", "--harness", "mlperf"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "pip install 'resnet-onnx[mlperf]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--harness", "mlperf", "--streams", "2"], "--streams was given"),
        (["--harness", "mlperf", "--scenario", "latency", "--cut-off", "5"], "--scenario, --cut-off was given"),
        (["--harness", "mlperf", "--threads", "1,2"], "several --threads was given"),
        (["--harness-logs", "logs"], "none was chosen"),
    ],
)
def test_options_that_contradict_a_harness_are_refused(options: list[str], said: str) -> None:
    command = [sys.executable, "-m", "resnet_onnx", "bench", "cifar-resnet20", "--runtime", "ort-cpu", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert said in done.stderr
