"""``resnet-onnx build`` as its user meets it, and what becomes of a GPU runtime on a machine without a GPU."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.gpus import A6000
from support.onnx_models import save, small_conv
from support.rtx import TARGETS, build, call, count, needs_rtx

from converters import tensorrt_family
from resnet_onnx import workflow
from resnet_onnx.cli.gpu_options import Size, check_tuning, size_text
from resnet_onnx.cli.main import main
from runtimes import engines, files, nvidia, registry, trt_shim
from runtimes.base import Availability
from runtimes.errors import BadModel, RuntimeUnavailable, UsageError
from runtimes.spec import RuntimeOptions, ShapeRange

FOREIGN = Path(onnx.__file__).parent / "backend/test/data/light/light_squeezenet.onnx"


def has_driver() -> bool:
    try:
        nvidia.gpus()
    except RuntimeUnavailable:
        return False
    return True


without_gpu = pytest.mark.skipif(has_driver(), reason="this machine has a GPU")


# ---- real builds, without a GPU


@needs_rtx
@pytest.mark.parametrize(
    ("model", "side", "convolutions"),
    [("resnet18", 224, 20), ("resnet50", 224, 53), ("cifar-resnet20", 32, 19), (FOREIGN, 224, 26)],
    ids=["resnet18", "resnet50", "cifar-resnet20", "foreign"],
)
def test_networks_are_built_for_two_targets(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, model: str | Path, side: int, convolutions: int
) -> None:
    keys, said = set(), []
    for target in TARGETS:
        output = tmp_path / f"{target}.engine"
        found = build(capfd, model, "--target", target, "--output", str(output))
        assert (found["path"], found["target"], found["library"], found["precision"]) == (
            str(output), target, "tensorrt-rtx", "fp32",
        )  # fmt: skip
        assert found["cached"] is False
        assert 0 < found["seconds"] < 300
        assert found["library_version"] == trt_shim.installed_version("tensorrt-rtx")
        assert found["size_bytes"] == output.stat().st_size > 0.9 * found["onnx"]["size_bytes"]
        assert found["sha256"] == files.sha256_file(output) == files.sha256_file(Path(found["cache_path"]))
        assert count(found, "convolution") == convolutions
        assert {row["precision"] for row in found["layers"]} - {"int64", "bool"} == {"fp32"}
        ((name, shapes),) = found["shapes"].items()
        batches = (1, 1, 1) if model == FOREIGN else (1, 8, 64)
        assert shapes == ",".join(f"{batch}x3x{side}x{side}" for batch in batches)
        assert found["tf32"] is False
        keys.add(found["key"])
        said.append(f"{Path(model).stem} {target}: {found['size_bytes'] / 1e6:.1f} MB in {found['seconds']} s, {name}")
    assert len(keys) == 2
    again = build(capfd, model, "--target", "8.9")
    assert (again["cached"], again["key"] in keys) == (True, True)
    assert again["path"] == again["cache_path"]
    print("\n".join(said))


@needs_rtx
def test_options_and_shapes_change_the_engine_and_rebuild_builds_again(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = small_conv(tmp_path / "net.onnx", graph_name="options")
    plain = build(capfd, model, "--target", "sm86")
    changed = [
        build(capfd, model, "--target", "sm86", *more)
        for more in (
            ["--shapes", "x:1x3x8x8,8x3x8x8,32x3x8x8"],
            ["--tf32"],
            ["--optimization-level", "1"],
            ["--workspace", "64MiB"],
            ["--cuda-graph"],
        )
    ]
    assert len({plain["key"], *(found["key"] for found in changed)}) == 6
    assert changed[0]["shapes"] == {"x": "1x3x8x8,8x3x8x8,32x3x8x8"}
    assert changed[1]["tf32"] is True
    record = engines.read_record(Path(changed[3]["cache_path"]))
    assert record.key.options["workspace_bytes"] == 64 * 2**20
    assert build(capfd, model, "--target", "sm86", "--no-timing-cache")["cached"] is True  # it changes no engine
    assert build(capfd, model, "--target", "sm86", "--rebuild")["cached"] is False


@needs_rtx
def test_a_damaged_engine_in_the_cache_is_built_again(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = small_conv(tmp_path / "net.onnx", graph_name="damaged")
    first = Path(build(capfd, model, "--target", "sm86")["path"])
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    found = build(capfd, model, "--target", "sm86")
    assert found["cached"] is False
    assert "damaged or was changed" in found["replaced"]
    assert build(capfd, model, "--target", "sm86")["cached"] is True


@needs_rtx
def test_the_text_says_what_was_built_and_what_is_next(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = small_conv(tmp_path / "net.onnx", graph_name="text")
    folder = tmp_path / "engines"
    folder.mkdir()
    assert main(["build", str(model), "--runtime", "tensorrt-rtx", "--target", "sm86", "--output", str(folder)]) == 0
    said = capfd.readouterr()
    lines = said.out.splitlines()
    path = folder / "net-sm86.engine"
    assert lines[0].startswith(f"{path}  ")
    assert "for sm86 (Ampere)" in lines[1]
    assert lines[2] == "Accepts x 1×3×8×8 to 64×3×8×8, fastest at 8×3×8×8"
    assert "(built now)" in lines[3]
    assert any(line.split() == ["convolution", "fp32", "1"] for line in lines)
    assert lines[-1].endswith(f"resnet-onnx bench {path} --runtime tensorrt-rtx --trust-engine")
    assert engines.record_path(path).is_file()


@needs_rtx
def test_a_node_that_the_library_does_not_know_is_named(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    node = helper.make_node("Det", ["x"], ["y"], name="determinant")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"])],
    )
    path = tmp_path / "det.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    code, found = call(capfd, "build", str(path), "--runtime", "tensorrt-rtx", "--target", "sm86")
    assert code == 3
    assert found["error"]["kind"] == "unsupported-model"
    assert "'determinant' (Det)" in found["error"]["message"]


@needs_rtx
def test_what_one_architecture_lacks_is_answered_by_what_builds(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path, half = tmp_path / "net.onnx", tmp_path / "half.onnx"
    assert main(["export", "--model", "cifar-resnet8", "-o", str(path), "--quiet"]) == 0
    capfd.readouterr()
    code, found = call(capfd, "build", str(path), "--runtime", "tensorrt-rtx", "--target", "sm75")
    assert code == 3
    assert "FP32 GEMM is not supported" in found["error"]["message"]
    fix = found["error"]["fix"]
    assert fix == f"another precision: resnet-onnx convert {path} --to fp16, or another GPU: --target sm80"
    assert main(["convert", str(path), "--to", "fp16", "-o", str(half), "--quiet"]) == 0
    capfd.readouterr()
    for model, target in ((half, "sm75"), (path, "sm80")):
        assert call(capfd, "build", str(model), "--runtime", "tensorrt-rtx", "--target", target)[0] == 0


# ---- usage, then runtime, then model


MISTAKES = [
    (["resnet18"], 2, "Missing option '--runtime'"),
    (["resnet18", "--runtime", "tensorflow"], 2, "unknown runtime 'tensorflow'"),
    (["resnet18", "--runtime", "ort-cpu"], 2, "nothing to build for runtime 'ort-cpu': it loads the ONNX file itself"),
    (["resnet18", "--runtime", "openvino"], 2, "nothing to build for runtime 'openvino': it loads the ONNX file"),
    (["resnet18", "--runtime", "torch"], 2, "nothing to build for runtime 'torch': it runs the network itself"),
    (["resnet18", "--runtime", "ort-tensorrt"], 2, "it builds its engine, into the cache, when it opens the ONNX file"),
    (["resnet19", "--runtime", "tensorrt"], 2, "no ResNet of depth 19"),
    (["resnet18", "--runtime", "tensorrt", "--device", "cpu"], 2, "runs on cuda, not on 'cpu'"),
    (["resnet18", "--runtime", "tensorrt", "--target", "ampere"], 2, "'ampere' is not a compute capability"),
    (["resnet18", "--runtime", "tensorrt", "--shapes", "1x3"], 2, "names no input"),
    (["resnet18", "--runtime", "tensorrt", "--workspace", "lots"], 2, "not a size like 500MB"),
    (["resnet18", "--runtime", "tensorrt", "--workspace", "0"], 2, "the workspace must be at least 1 byte"),
    (["resnet18", "--runtime", "tensorrt", "--optimization-level", "6"], 2, "6 is not in the range"),
    (["resnet18", "--runtime", "tensorrt", "--output", "resnet18.onnx"], 2, "an engine ends in .engine or .plan"),
    (["old.engine", "--runtime", "tensorrt"], 2, "is an engine already"),
]


@pytest.mark.parametrize(("arguments", "exit_code", "words"), MISTAKES)
def test_mistakes_are_told_before_the_runtime_is_looked_for(
    capfd: pytest.CaptureFixture[str], arguments: list[str], exit_code: int, words: str
) -> None:
    code, found = call(capfd, "build", *arguments)
    assert code == exit_code
    assert words in found["error"]["message"]


@without_gpu
def test_a_missing_gpu_is_told_before_a_missing_model(capfd: pytest.CaptureFixture[str]) -> None:
    code, found = call(capfd, "build", "nowhere.onnx", "--runtime", "tensorrt")
    assert code == 3
    assert "no NVIDIA driver was found" in found["error"]["message"]
    assert "--runtime tensorrt-rtx --target" in found["error"]["fix"]


@needs_rtx
@without_gpu
def test_without_a_gpu_the_valid_targets_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    code, found = call(capfd, "build", "resnet18", "--runtime", "tensorrt-rtx")
    assert code == 2
    assert "the GPU to build for must be named: sm75 (Turing)" in found["error"]["message"]
    assert found["error"]["fix"] == "--target sm89"
    code, found = call(capfd, "build", "resnet18", "--runtime", "tensorrt-rtx", "--target", "sm61")
    assert code == 2
    assert "can't build for 'sm61': choose sm75 (Turing)" in found["error"]["message"]
    code, found = call(capfd, "build", "nowhere.onnx", "--runtime", "tensorrt-rtx", "--target", "sm86")
    assert (code, found["error"]["kind"]) == (2, "bad-model")


def test_without_the_library_the_extra_is_named(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(module: str, **words: Any) -> Any:
        raise RuntimeUnavailable(f"the library '{module}' is not installed", fix=f"pip install '{words['package']}'")

    trt_shim.load.cache_clear()
    monkeypatch.setattr(trt_shim, "load_library", missing)
    try:
        code, found = call(capfd, "build", "nowhere.onnx", "--runtime", "tensorrt-rtx", "--target", "sm86")
    finally:
        trt_shim.load.cache_clear()
    assert code == 3
    assert found["error"]["fix"] == "pip install 'resnet-onnx[tensorrt-rtx]'"


@without_gpu
@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx", "ort-cuda", "ort-tensorrt"])
def test_bench_without_a_gpu_ends_at_once_and_measures_nothing(runtime: str, tmp_path: Path) -> None:
    saved = tmp_path / "result.json"
    command = [sys.executable, "-m", "resnet_onnx", "bench", "--runtime", runtime, "--save", str(saved)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: runtime '{runtime}' can't run here: no NVIDIA driver was found")
    assert "pip install 'resnet-onnx[" in done.stderr
    assert not saved.exists()


@needs_rtx
def test_control_c_ends_a_build_and_leaves_no_half_engine(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "resnet_onnx", "build", "resnet50", "--runtime", "tensorrt-rtx"]
    cache = tmp_path / "cache"
    if (files.cache_root() / "onnx").is_dir():  # spares the export
        shutil.copytree(files.cache_root(), cache, ignore=shutil.ignore_patterns("engines"))
    process = subprocess.Popen(
        [*command, "--target", "sm86", "--cache-dir", str(cache)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    # The lock of the engine is made when its build begins.
    while time.monotonic() < deadline and process.poll() is None and not list(cache.glob("engines/*.lock")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    begin = time.monotonic()
    try:
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert time.monotonic() - begin < 15
    assert process.returncode == 130, said
    assert not list(cache.glob("engines/*.engine"))
    assert not list(cache.glob("engines/.*.tmp"))


# ---- what the other commands open


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> nvidia.Gpu:
    monkeypatch.setattr(nvidia, "gpus", lambda **words: (A6000,))
    return A6000


@needs_rtx
@pytest.mark.usefixtures("one_gpu")
def test_the_engine_of_a_model_is_built_into_the_cache_and_found_again(tmp_path: Path) -> None:
    model = workflow.resolve(workflow.Request(model=str(small_conv(tmp_path / "net.onnx", graph_name="found"))))
    first = workflow.source(model, "tensorrt-rtx", batches=(1, 8))
    assert first.path is not None
    assert engines.is_ours(first.path)
    record = engines.read_record(first.path)
    assert record.key.target == "sm86"
    assert record.key.profile["x"] == ShapeRange((1, 3, 8, 8), (8, 3, 8, 8), (64, 3, 8, 8))
    stamp = first.path.stat().st_ino
    assert workflow.source(model, "tensorrt-rtx").path == first.path
    assert first.path.stat().st_ino == stamp
    large = workflow.source(model, "tensorrt-rtx", batches=(1, 128))
    assert large.path is not None
    assert engines.read_record(large.path).key.profile["x"].maximum[0] == 128
    tf32 = workflow.source(model, "tensorrt-rtx", options=RuntimeOptions(tf32=True))
    assert tf32.path not in (first.path, large.path)


def test_onnx_runtime_is_told_the_shapes_that_it_builds_for(tmp_path: Path) -> None:
    model = workflow.resolve(workflow.Request(model=str(small_conv(tmp_path / "net.onnx"))))
    told = workflow.tuned(model, "ort-tensorrt", RuntimeOptions(tf32=True), (100,))
    assert told.shapes["x"] == ShapeRange((1, 3, 8, 8), (100, 3, 8, 8), (100, 3, 8, 8))
    assert told.tf32
    assert not workflow.tuned(model, "ort-cuda", RuntimeOptions(), (100,)).shapes


@needs_rtx
def test_a_deployed_engine_stands_for_its_model(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without its ONNX file it still knows its pictures, labels and shapes; other runtimes can't open it."""
    onnx_file = workflow.onnx_path(workflow.resolve(workflow.Request(model="cifar-resnet20")))
    output = tmp_path / "deployed.plan"
    build(capfd, onnx_file, "--target", "sm89", "--output", str(output))
    from_onnx = workflow.resolve(workflow.Request(model=str(onnx_file)))
    model = workflow.resolve(workflow.Request(model=str(output)))
    assert (model.engine, model.onnx) == (output, None)
    assert model.preprocessing == from_onnx.preprocessing
    assert model.labels == from_onnx.labels
    assert model.trained is False
    assert workflow.specs(model) == from_onnx.inputs
    assert workflow.sample_feeds(model, 2)["input"].shape == (2, 3, 32, 32)
    assert workflow.source(model, "tensorrt-rtx").path == output
    with pytest.raises(UsageError, match="is an engine of tensorrt-rtx, not of ort-cpu"):
        workflow.source(model, "ort-cpu")
    with pytest.raises(BadModel, match="was not built by this machine's own cache") as refusal:
        engines.load_engine(output, trust=False)
    assert "--trust-engine" in (refusal.value.fix or "")
    assert engines.load_engine(output, trust=True)[0] == output.read_bytes()
    engines.record_path(output).unlink()
    with pytest.raises(BadModel, match="has no record"):
        workflow.resolve(workflow.Request(model=str(output)))
    with pytest.raises(BadModel, match="no such file"):
        workflow.resolve(workflow.Request(model=str(tmp_path / "gone.engine")))


@needs_rtx
def test_the_engine_of_a_foreign_model_is_benched_without_its_graph(tmp_path: Path) -> None:
    path = small_conv(tmp_path / "net.onnx", graph_name="foreign engine")
    built = tensorrt_family.build_engine(path, library="tensorrt-rtx", target="sm86")
    model = workflow.resolve(workflow.Request(model=str(built.path)))
    assert workflow.graph_path(model) is None
    assert [str(spec) for spec in workflow.specs(model)] == ["x: float32[batch, 3, 8, 8]"]
    with pytest.raises(UsageError, match="is an engine, and the network in it is needed too"):
        workflow.onnx_path(model)


@needs_rtx
@pytest.mark.usefixtures("one_gpu")
def test_open_dimensions_besides_the_batch_point_to_build(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    path = save(tmp_path / "net.onnx", [node], {}, channels=3)
    proto = onnx.load(path)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(proto, path)
    model = workflow.resolve(workflow.Request(model=str(path)))
    with pytest.raises(UsageError, match="has open dimensions besides the batch") as refusal:
        workflow.source(model, "tensorrt-rtx")
    assert "resnet-onnx build" in (refusal.value.fix or "")
    assert not workflow.tuned(model, "ort-tensorrt", RuntimeOptions(), (4,)).shapes


# ---- options


@pytest.mark.parametrize(
    ("text", "expected"), [("0", 0), ("500MB", 500_000_000), ("4GiB", 2**32), ("1.5k", 1500), ("2 mib", 2**21), (7, 7)]
)
def test_sizes_are_read(text: str | int, expected: int) -> None:
    assert Size().convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["", "many", "-1", "1iB", "1 PB", "1e3"])
def test_nonsense_sizes_are_refused(text: str) -> None:
    with pytest.raises(Exception, match="is not a size like"):
        Size().convert(text, None, None)


def test_sizes_are_written_for_people() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 47_228_276, 1_234_000_000)] == [
        "0 B", "999 B", "1.0 kB", "47.2 MB", "1.23 GB",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "names", "device", "used"),
    [
        ({"tf32": True}, ["ort-cpu", "openvino"], None, False),
        ({"tf32": True}, ["torch"], None, False),
        ({"tf32": True}, ["torch"], "cuda:1", True),
        ({"tf32": True}, ["ort-cpu", "ort-cuda"], None, True),
        ({"cuda_graph": True}, ["tensorrt"], None, True),
        ({"exhaustive_search": True}, ["tensorrt"], None, False),
        ({"channels_last": True}, ["torch"], None, True),
        ({"autocast": "bf16"}, ["ort-cuda"], None, False),
        ({"trust_engine": True}, ["ort-tensorrt"], None, False),
        ({}, ["ort-cpu"], None, True),
    ],
)
def test_an_option_that_nobody_would_use_is_a_usage_error(
    options: dict[str, Any], names: list[str], device: str | None, used: bool
) -> None:
    tuning = RuntimeOptions(**options)
    if used:
        check_tuning(tuning, names, device=device)
    else:
        with pytest.raises(UsageError, match="would not use it"):
            check_tuning(tuning, names, device=device)


@pytest.mark.parametrize("command", [["bench"], ["evaluate", "--data", "digits"], ["parity"]])
def test_commands_refuse_such_an_option_before_anything_else(
    capfd: pytest.CaptureFixture[str], command: list[str]
) -> None:
    code, found = call(capfd, command[0], "nowhere.onnx", *command[1:], "--runtime", "ort-cpu", "--tf32")
    assert code == 2
    assert found["error"]["message"].startswith("--tf32 is for torch, torch-compile, ort-cuda")


def test_a_tuned_measurement_records_what_was_set(capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--runtime", "torch", "--channels-last", "--autocast", "bf16", "--batch", "2", "--duration", "0.2"]
    code, found = call(capfd, "bench", "cifar-resnet20", *arguments)
    assert code == 0, found
    (row,) = found["results"]
    assert (row["recorded"]["memory_format"], row["recorded"]["autocast"]) == ("channels_last", "bf16")
    assert np.isfinite(row["images_per_second"])


@without_gpu
def test_all_means_what_has_such_a_device(capfd: pytest.CaptureFixture[str]) -> None:
    assert registry.parse_names("all", device="cpu") == ["torch", "ort-cpu", "openvino"]
    code, found = call(capfd, "bench", "--runtime", "all", "--device", "cuda:1")
    assert (code, found["error"]["message"]) == (3, "no runtime can run on 'cuda:1' here")
    code, found = call(capfd, "bench", "--runtime", "all", "--device", "gpu")
    assert (code, found["error"]["kind"]) == (2, "usage")
    assert "unknown device 'gpu'" in found["error"]["message"]


def test_all_on_a_gpu_leaves_the_cpu_runtimes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(name: str, *, device: str | None = None) -> Availability:
        return Availability(name=name, available=name != "ort-tensorrt", version="1")

    monkeypatch.setattr(registry, "probe", probe)
    assert registry.parse_names("all", device="cuda") == ["torch", "ort-cuda", "tensorrt", "tensorrt-rtx"]
    assert registry.parse_names("ort-cuda,all", device="cuda:0")[0] == "ort-cuda"
