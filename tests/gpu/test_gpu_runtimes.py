"""Every GPU runtime, executed: the interface's contract, parity with float64, memory, streams, graphs, engines."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper
from support.gpu_models import DEVICE, Networks, available, source_of
from support.onnx_models import save, small_conv, weight

from converters import tensorrt_family
from converters.tensorrt_family import build_engine, parse_shapes
from resnet_onnx import workflow
from resnet_onnx.parity.compare import Comparison, Inputs, Reference, compare
from resnet_onnx.parity.running import Batches
from resnet_onnx.parity.summation import sums_of
from runtimes import engines, files, nvidia
from runtimes.errors import BadFeeds, BadModel, RuntimeClosed, ToolkitError
from runtimes.registry import open_runtime
from runtimes.spec import ModelSource, RuntimeOptions, Target

SMALL = "cifar-resnet20"


# ---- the contract


def test_inputs_and_outputs_are_those_of_the_model(networks: Networks, runtime_name: str) -> None:
    with networks.open(SMALL, runtime_name) as runtime:
        (given,) = runtime.inputs
        (result,) = runtime.outputs
        assert (given.dtype, given.shape[1:]) == (np.float32, (3, 32, 32))
        assert isinstance(given.shape[0], str)
        assert (result.dtype, result.shape[1:]) == (np.float32, (10,))


def test_batches_of_any_size_agree_picture_by_picture(networks: Networks, runtime_name: str) -> None:
    feeds = networks.feeds(SMALL, 16)
    with networks.open(SMALL, runtime_name) as runtime:
        (name,) = feeds
        (output,) = (spec.name for spec in runtime.outputs)
        whole = runtime.run(feeds)[output]
        assert whole.shape == (16, 10)
        for size in (1, 3, 8):
            part = runtime.run({name: feeds[name][:size]})[output]
            np.testing.assert_allclose(part, whole[:size], rtol=1e-4, atol=1e-4 * np.abs(whole).max())


def test_wrong_feeds_are_refused_and_the_runtime_stays_usable(networks: Networks, runtime_name: str) -> None:
    feeds = networks.feeds(SMALL, 2)
    (name,) = feeds
    wrong: list[dict[str, Any]] = [
        {},
        {"other": feeds[name]},
        {name: feeds[name].astype(np.float64)},
        {name: feeds[name][:, :2]},
        {name: feeds[name][:0]},
    ]
    with networks.open(SMALL, runtime_name) as runtime:
        before = runtime.run(feeds)
        for each in wrong:
            with pytest.raises(BadFeeds):
                runtime.run(each)
        after = runtime.run(feeds)
        for output, array in before.items():
            np.testing.assert_array_equal(array, after[output])


@pytest.mark.parametrize("scope", ["device", "end-to-end"])
def test_a_prepared_run_gives_what_run_gives(networks: Networks, runtime_name: str, scope: Any) -> None:
    feeds = networks.feeds(SMALL, 4)
    with networks.open(SMALL, runtime_name) as runtime:
        expected = runtime.run(feeds)
        with runtime.prepare(feeds, scope=scope) as prepared:
            for _ in range(3):
                prepared.enqueue()
            prepared.synchronize()
            found = prepared.outputs()
        for output, array in expected.items():
            np.testing.assert_allclose(found[output], array, rtol=1e-5, atol=1e-5 * np.abs(array).max())


def test_a_closed_runtime_says_so(networks: Networks, runtime_name: str) -> None:
    runtime = networks.open(SMALL, runtime_name)
    runtime.close()
    runtime.close()
    with pytest.raises(RuntimeClosed):
        runtime.run(networks.feeds(SMALL, 1))


def test_every_layer_is_on_the_gpu(networks: Networks, runtime_name: str) -> None:
    with networks.open(SMALL, runtime_name) as runtime:
        rows = runtime.placement()
        assert rows
        assert {row.device for row in rows} == {DEVICE}


def test_pictures_as_bytes_run(tmp_path: Path, runtime_name: str) -> None:
    if runtime_name == "torch":
        pytest.skip("torch opens no ONNX file")
    nodes = [
        helper.make_node("Cast", ["x"], ["xf"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["xf", "w"], ["y"], name="conv1", pads=[1] * 4),
    ]
    path = save(
        tmp_path / "bytes.onnx", nodes, {"w": weight()}, element=TensorProto.UINT8, output_element=TensorProto.FLOAT
    )
    feeds = {"x": np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8)).astype(np.uint8)}
    with open_runtime("reference", ModelSource(path=path)) as reference:
        expected = reference.run(feeds)["y"]
    with open_runtime(runtime_name, source_of(path, runtime_name), device=DEVICE) as runtime:
        np.testing.assert_allclose(runtime.run(feeds)["y"], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


# ---- parity


@pytest.mark.parametrize("network", ["resnet18", "resnet50", "resnet152"])
def test_parity_with_float64(networks: Networks, runtime_name: str, network: str) -> None:
    model = networks.model(network)
    sizes = (1, 3, 4)
    batches = [networks.feeds(network, size, seed=size) for size in sizes]
    torch = Target(runtime="torch", source=workflow.source(model, "torch"))
    report = compare(
        Comparison(
            gold=workflow.gold_reference(model),
            baselines=[Reference(target=torch, description="torch fp32 on the CPU")],
            targets=[Target(runtime=runtime_name, source=networks.source(network, runtime_name), device=DEVICE)],
            inputs=Inputs(
                names=[f"crop {i}" for i in range(sum(sizes))], batches=Batches(lambda: iter(batches), sizes)
            ),
            sums=sums_of(workflow.onnx_path(model)),
        )
    )
    (outcome,) = report.outcomes
    print(f"{runtime_name} {network}: {outcome.relative_rmse:.1e} of {outcome.budget:.1e}")
    assert outcome.passed, outcome.reason


# ---- memory


def test_memory_stays_flat_over_a_thousand_runs(networks: Networks, runtime_name: str) -> None:
    import torch

    feeds = [networks.feeds(SMALL, size) for size in (8, 1, 5)]

    def used() -> tuple[int, int]:
        torch.cuda.synchronize(DEVICE)
        free, total = torch.cuda.mem_get_info(DEVICE)
        return total - free, psutil.Process().memory_info().rss

    with networks.open(SMALL, runtime_name) as runtime:
        for _ in range(100):
            for each in feeds:
                runtime.run(each)
        device_before, host_before = used()
        for index in range(1000):
            runtime.run(feeds[index % 3])
        device_after, host_after = used()
    assert device_after - device_before <= 2**20
    assert host_after - host_before <= 0.05 * host_before


def test_opening_and_closing_gives_the_memory_back(networks: Networks, family_name: str) -> None:
    import torch

    def cycle() -> int:
        with networks.open("resnet50", family_name) as runtime:
            runtime.run(networks.feeds("resnet50", 8))
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(DEVICE)
        return int(total - free)

    first = [cycle() for _ in range(2)][-1]
    last = [cycle() for _ in range(5)][-1]
    assert last - first <= 8 * 2**20


# ---- streams and graphs


def seconds_for(runs: int, *prepared: Any) -> float:
    for each in prepared:
        each.enqueue()
        each.synchronize()
    begin = time.perf_counter()
    for _ in range(runs):
        for each in prepared:
            each.enqueue()
    for each in prepared:
        each.synchronize()
    return time.perf_counter() - begin


def test_two_streams_overlap(networks: Networks, family_name: str) -> None:
    """A small network at batch 1 leaves most of a GPU idle: two side by side take less than one after the other."""
    feeds = networks.feeds(SMALL, 1)
    with (
        networks.open(SMALL, family_name, cuda_graph=True) as runtime,
        runtime.prepare(feeds) as first,
        runtime.prepare(feeds) as second,
    ):
        alone = min(seconds_for(500, first) + seconds_for(500, second) for _ in range(5))
        together = min(seconds_for(500, first, second) for _ in range(5))
    print(f"{family_name}: two streams take {together / alone:.2f} of one after the other")
    assert together < 0.85 * alone


@pytest.mark.parametrize("scope", ["device", "end-to-end"])
def test_a_cuda_graph_gives_the_same_bits(networks: Networks, family_name: str, scope: Any) -> None:
    feeds = networks.feeds("resnet18", 8)
    outputs = []
    for cuda_graph in (False, True):
        with (
            networks.open("resnet18", family_name, cuda_graph=cuda_graph) as runtime,
            runtime.prepare(feeds, scope=scope) as prepared,
        ):
            assert runtime.recorded["cuda_graph"] is cuda_graph
            for _ in range(20):
                prepared.enqueue()
            outputs.append(prepared.outputs())
    for name, array in outputs[0].items():
        np.testing.assert_array_equal(array, outputs[1][name])


# ---- engines


def test_a_damaged_engine_is_rebuilt_and_runs(tmp_path: Path, family_name: str) -> None:
    model = small_conv(tmp_path / "net.onnx", graph_name="damaged")
    first = build_engine(model, library=family_name, device=DEVICE)
    assert build_engine(model, library=family_name, device=DEVICE).cached
    data = bytearray(first.path.read_bytes())
    data[len(data) // 2] ^= 1
    first.path.write_bytes(data)
    with pytest.raises(BadModel, match="damaged or was changed"):
        open_runtime(family_name, ModelSource(path=first.path), device=DEVICE)
    again = build_engine(model, library=family_name, device=DEVICE)
    assert not again.cached
    assert again.replaced
    with open_runtime(family_name, ModelSource(path=again.path), device=DEVICE) as runtime:
        assert runtime.run({"x": np.zeros((1, 3, 8, 8), np.float32)})["y"].shape == (1, 4, 8, 8)


def test_shapes_outside_the_profile_are_refused(tmp_path: Path, family_name: str) -> None:
    build = build_engine(
        small_conv(tmp_path / "net.onnx"),
        library=family_name,
        device=DEVICE,
        shapes=parse_shapes("x:1x3x8x8,2x3x8x8,4x3x8x8"),
    )
    with open_runtime(family_name, ModelSource(path=build.path), device=DEVICE) as runtime:
        runtime.run({"x": np.zeros((4, 3, 8, 8), np.float32)})
        with pytest.raises(BadFeeds, match="built for 1×3×8×8 up to 4×3×8×8"):
            runtime.run({"x": np.zeros((5, 3, 8, 8), np.float32)})


def test_an_engine_for_another_gpu_is_refused(tmp_path: Path) -> None:
    name = available("tensorrt-rtx")
    here = nvidia.require_gpu(DEVICE).target
    target = "sm75" if here != "sm75" else "sm86"
    build = build_engine(small_conv(tmp_path / "net.onnx"), library="tensorrt-rtx", target=target)
    with pytest.raises(ToolkitError, match=f"built for {target}"):
        open_runtime(name, ModelSource(path=build.path), device=DEVICE)
    # Without its record the library itself must refuse it.
    copy = tmp_path / "copy.engine"
    shutil.copy(build.path, copy)
    with pytest.raises(ToolkitError):
        open_runtime(name, ModelSource(path=copy), device=DEVICE, options=RuntimeOptions(trust_engine=True))


def test_a_deployed_engine_runs_when_trusted(tmp_path: Path, family_name: str) -> None:
    build = build_engine(small_conv(tmp_path / "net.onnx"), library=family_name, device=DEVICE)
    output = engines.copy_engine(build, tmp_path / "net.engine")
    with pytest.raises(BadModel, match="not built by this machine's own cache"):
        open_runtime(family_name, ModelSource(path=output), device=DEVICE)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    trusted = RuntimeOptions(trust_engine=True)
    with (
        open_runtime(family_name, ModelSource(path=build.path), device=DEVICE) as ours,
        open_runtime(family_name, ModelSource(path=output), device=DEVICE, options=trusted) as deployed,
    ):
        np.testing.assert_array_equal(ours.run(feeds)["y"], deployed.run(feeds)["y"])


def test_tensorrt_remembers_its_timings(tmp_path: Path) -> None:
    available("tensorrt")
    build_engine(small_conv(tmp_path / "net.onnx", side=16), library="tensorrt", device=DEVICE, rebuild=True)
    timings = list(files.cache_dir("engines").glob("tensorrt-*.timings"))
    assert timings
    assert all(engines.load_timings(path.stem) for path in timings)


def test_tensorrt_builds_only_for_the_gpu_that_is_here(tmp_path: Path) -> None:
    available("tensorrt")
    here = nvidia.require_gpu(DEVICE).target
    other = next(target for target in tensorrt_family.ARCHITECTURES if target != here)
    with pytest.raises(ToolkitError, match="builds only for the GPU that it builds on"):
        build_engine(small_conv(tmp_path / "net.onnx"), library="tensorrt", target=other, device=DEVICE)


# ---- sensors


def test_the_gpu_says_its_clock_power_and_temperature() -> None:
    gpu = nvidia.require_gpu(DEVICE)
    found = dataclasses.asdict(nvidia.read_sensors(gpu))
    assert 100 < found["clock_mhz"] <= found["max_clock_mhz"]
    assert 5 < found["power_w"] < 2000
    assert 10 < found["temperature_c"] < 110
    assert gpu.driver
    assert gpu.cuda >= (12, 0)
