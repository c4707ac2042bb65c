"""What options do on a GPU, ONNX Runtime's engine cache, and the commands from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gpu_models import DEVICE, GPU_RUNTIMES, Networks, available

from resnet_onnx import workflow
from runtimes import files, nvidia, ort_gpu
from runtimes.errors import BadFeeds
from runtimes.registry import open_runtime
from runtimes.spec import RuntimeOptions

SMALL = "cifar-resnet20"


def relative_rmse(found: dict[str, Any], gold: dict[str, Any]) -> float:
    (name,) = gold
    return float(np.sqrt(np.mean((found[name] - gold[name]) ** 2) / np.mean(gold[name] ** 2)))


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "resnet_onnx", *arguments, "--json"]
    return subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.parametrize(("name", "scope"), [("torch", "device"), ("torch", "end-to-end"), ("ort-cuda", "device")])
def test_a_cuda_graph_gives_the_same_numbers(networks: Networks, name: str, scope: Any) -> None:
    feeds = networks.feeds("resnet18", 8)
    outputs = []
    for cuda_graph in (False, True):
        with (
            networks.open("resnet18", available(name), cuda_graph=cuda_graph) as runtime,
            runtime.prepare(feeds, scope=scope) as prepared,
        ):
            assert runtime.recorded["cuda_graph"] is cuda_graph
            plain = runtime.run(feeds)
            for _ in range(20):
                prepared.enqueue()
            outputs.append(prepared.outputs())
            assert relative_rmse(outputs[-1], plain) < 1e-6
    assert relative_rmse(outputs[1], outputs[0]) < 1e-6


@pytest.mark.parametrize("name", ["torch", "ort-cuda"])
@pytest.mark.parametrize("option", ["channels_last", "exhaustive_search"])
def test_layout_and_search_keep_the_numbers(networks: Networks, name: str, option: str) -> None:
    feeds = networks.feeds("resnet50", 4)
    with networks.open("resnet50", available(name)) as runtime:
        plain = runtime.run(feeds)
    with networks.open("resnet50", name, **{option: True}) as runtime:
        assert relative_rmse(runtime.run(feeds), plain) < 1e-5


@pytest.mark.parametrize("name", GPU_RUNTIMES)
def test_tf32_rounds_only_where_it_was_asked_for(name: str) -> None:
    """Each in a process of its own: NVIDIA's libraries may be told about TF32 once a process."""
    available(name)
    if nvidia.require_gpu(DEVICE).compute_capability < (8, 0):
        pytest.skip("GPUs before Ampere have no TF32")
    errors = []
    for more in ([], ["--tf32"]):
        done = command("parity", "resnet50", "--runtime", name, "--device", DEVICE, *more)
        assert done.returncode in (0, 1), done.stderr
        (row,) = json.loads(done.stdout)["results"]
        errors.append(row["relative_rmse"])
    print(f"{name}: {errors[0]:.1e} without TF32, {errors[1]:.1e} with it")
    assert errors[0] < 1e-5
    assert 1e-5 < errors[1] < 1e-1  # TF32 has 10 bits of mantissa: a product is off by up to 2⁻¹¹ = 4.9e-4


def test_the_tensorrt_provider_builds_once_and_rounds_nothing(networks: Networks) -> None:
    """A second opening takes the engine from the cache."""
    name = available("ort-tensorrt")
    model = networks.model(SMALL)
    options = workflow.tuned(model, name, RuntimeOptions(), (1, 8))
    source = workflow.source(model, name)
    feeds = networks.feeds(SMALL, 8)
    with open_runtime(name, source, device=DEVICE, options=options) as first:
        folder = files.cache_root() / "ort-tensorrt" / first.recorded["engine"]
        expected = first.run(feeds)
    engines = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.engine")}
    assert engines
    assert ort_gpu.is_sealed(folder)
    with open_runtime(name, source, device=DEVICE, options=options) as second:
        for output, array in second.run(feeds).items():
            np.testing.assert_array_equal(array, expected[output])
        with pytest.raises(BadFeeds, match="the engine was built for"):
            second.run(networks.feeds(SMALL, 65))
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.engine")} == engines
    with open_runtime("ort-cpu", source) as cpu:
        assert relative_rmse(expected, cpu.run(feeds)) < 1e-5


def test_streams_of_torch_and_onnx_runtime_give_the_same(networks: Networks) -> None:
    feeds = networks.feeds(SMALL, 8)
    for name in ("torch", "ort-cuda"):
        with networks.open(SMALL, available(name)) as runtime:
            expected = runtime.run(feeds)
            with runtime.prepare(feeds) as one, runtime.prepare(feeds) as two:
                for _ in range(50):
                    one.enqueue()
                    two.enqueue()
                for prepared in (one, two):
                    assert relative_rmse(prepared.outputs(), expected) < 1e-6


def test_bench_and_parity_run_on_every_gpu_runtime(tmp_path: Path) -> None:
    here = [name for name in GPU_RUNTIMES if _runs(name)]
    saved = tmp_path / "result.json"
    options = ["--runtime", ",".join(here), "--device", DEVICE]
    done = command("bench", SMALL, *options, "--batch", "1,8", "--duration", "1", "--save", str(saved))
    assert done.returncode == 0, done.stderr
    for row in json.loads(done.stdout)["results"]:
        assert row["device"] == DEVICE
        assert {where.rpartition(", ")[2] for where in row["placement"]} == {DEVICE}
        assert row["gpu"]["clock_mhz"]["max"] > 100
        print(f"{row['runtime']} batch {row['batch']}: {row['images_per_second']:.0f} img/s")
    done = command("parity", SMALL, *options)
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["passed"] is True


def _runs(name: str) -> bool:
    from runtimes import registry

    return registry.probe(name, device=DEVICE).available
