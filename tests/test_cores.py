"""What a container may use: the quota of its control groups counts as usable cores, and what throttling does shows."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from resnet_onnx.bench import record
from resnet_onnx.bench.clock import Disturbance, Slice, Watch
from resnet_onnx.bench.row import Row
from resnet_onnx.bench.worker import Opened
from resnet_onnx.cli.main import main
from resnet_onnx.cli.train import _hint
from resnet_onnx.report.columns import BenchTable
from resnet_onnx.results.bench import Utilization
from runtimes import cores
from runtimes.cores import cpu_quota, usable_cores
from runtimes.spec import ModelSource, RuntimeOptions, Target


def machine(root: Path, groups: str, **content: str) -> Path:
    """A machine whose control groups say so; names of files have `__` in place of slashes."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in content.items():
        path = (
            root / "sys/fs/cgroup" / name.replace("__", "/").replace("cpu_max", "cpu.max").replace("cfs_", "cpu.cfs_")
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


V2 = "0::/\n"
V1 = "4:memory:/x\n3:cpu,cpuacct:/docker/abc\n"


@pytest.mark.parametrize(("groups", "content", "expected"), [
    (V2, {"cpu_max": "30000 100000"}, 0.3),
    (V2, {"cpu_max": "max 100000"}, None),
    ("0::/pods/one\n", {"pods__one__cpu_max": "max 100000", "pods__cpu_max": "150000 100000"}, 1.5),
    ("0::/pods/one\n", {"pods__one__cpu_max": "50000 100000", "pods__cpu_max": "150000 100000"}, 0.5),
    ("0::/../not/seen/here\n", {"cpu_max": "200000 100000"}, 2.0),
    (V1, {"cpu,cpuacct__docker__abc__cfs_quota_us": "25000", "cpu,cpuacct__docker__abc__cfs_period_us": "50000"}, 0.5),
    (V1, {"cpu__cfs_quota_us": "120000", "cpu__cfs_period_us": "100000"}, 1.2),
    (V1, {"cpu__cfs_quota_us": "-1", "cpu__cfs_period_us": "100000"}, None),
    (V1, {"cpu__cfs_quota_us": "ten", "cpu__cfs_period_us": "0"}, None),
    ("", {}, None),
])  # fmt: skip
def test_the_quota_of_a_container_is_read(
    groups: str, content: dict[str, str], expected: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "ROOT", machine(tmp_path, groups, **content))
    monkeypatch.setattr(cores, "allowed_cores", lambda: 4)
    assert cpu_quota() == (None if expected is None else pytest.approx(expected))
    assert usable_cores() == {0.3: 1, 0.5: 1, 1.2: 2, 1.5: 2, 2.0: 2, None: 4}[expected]


def test_doctor_names_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cores, "ROOT", machine(tmp_path, V2, cpu_max="30000 100000"))
    assert main(["doctor"]) == 0
    assert "1 usable cores (a quota of 0.3)" in capfd.readouterr().out
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["machine"]["cpu"]["quota_cores"] == 0.3


def row(times_ns: np.ndarray, *, streams: int = 1, threads: int | None = None, **disturbance: float) -> Row:
    seen = Disturbance(wall_s=1.0, cores=2, **disturbance)  # type: ignore[arg-type]
    rate = streams * times_ns.size / times_ns.sum() * 1e9
    target = Target(runtime="x", source=ModelSource(factory="a:b"), options=RuntimeOptions(threads=threads))
    opened = Opened(version="1", device="cpu", recorded={}, placement={}, inputs=())
    slices = [
        Slice(times_ns=part, runs_per_s=rate, spent_s=1.0, disturbance=seen) for part in np.array_split(times_ns, 8)
    ]
    return Row(target=target, batch=4, streams=streams, scope="device", slices=slices, opened=opened)


def test_what_is_delivered_stands_beside_what_the_median_promises() -> None:
    """A container that is throttled: nine runs of 1 ms, then it waits for its next period."""
    throttled = np.tile(np.array([1e6] * 9 + [71e6]), 40)
    found = row(throttled)
    assert record.images_per_second(found)[0] == pytest.approx(4000)  # type: ignore[index]
    assert record.delivered_per_second(found) == pytest.approx(500)
    reason = record.unstable_reason(found)
    assert reason is not None
    assert "500 img/s were delivered, and the median promises 4,000" in reason
    even = row(np.random.default_rng(0).normal(1e6, 1e4, 400))
    assert record.delivered_per_second(even) == pytest.approx(4000, rel=0.01)
    assert record.unstable_reason(even) is None
    assert record.delivered_per_second(row(np.full(100, 2e6), streams=2)) == pytest.approx(4000)

    def headings(shown: Row) -> list[str]:
        nothing = Utilization(fraction=None, limit_fraction=None, achieved_gflops=None)
        made = record.result(shown, model="m", precision="fp32", utilization=nothing, raw=False)
        return BenchTable(rows=[made], place="terminal", reference=None, unit=lambda one: (one.batch,)).headings()

    assert "delivered" in headings(found)
    assert "delivered" not in headings(even)


@pytest.mark.parametrize(
    ("threads", "streams", "advised"), [(None, 1, True), (2, 1, True), (1, 1, False), (None, 2, False)]
)
def test_a_session_on_all_cores_of_a_disturbed_machine_is_told_of_streams(
    threads: int | None, streams: int, advised: bool
) -> None:
    reason = record.unstable_reason(row(np.full(400, 1e6), threads=threads, streams=streams, others_cpu_s=0.8))
    assert reason is not None
    assert "other programs used 0.8 of 2 cores" in reason
    assert ("--streams 2" in reason) is advised


def test_a_training_is_told_of_other_programs_and_of_threads() -> None:
    busy = Disturbance(wall_s=10.0, cores=2, others_cpu_s=9.0)
    assert _hint(busy, None) == (
        "other programs used 0.9 of 2 cores: every step waits for its slowest thread, and --threads 1 may train faster"
    )
    assert _hint(busy, 1) == "other programs used 0.9 of 2 cores"
    assert _hint(Disturbance(wall_s=10.0, cores=2, others_cpu_s=0.2), None) == ""


def test_processes_that_one_started_are_no_others() -> None:
    burn = [sys.executable, "-c", "while True: pass"]
    alone, family = Watch(), Watch(family=True)
    child = subprocess.Popen(burn)
    try:
        end = time.perf_counter() + 20
        while family.stop().wall_s < 1 or _used(child.pid) < 0.4:
            assert time.perf_counter() < end
            time.sleep(0.05)
        assert alone.stop().others_cpu_s - family.stop().others_cpu_s > 0.2
    finally:
        child.kill()
        child.wait()


def _used(pid: int) -> float:
    import psutil

    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
