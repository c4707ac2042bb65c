"""TensorRT and TensorRT-RTX without a GPU: probing, the shim, shapes, real ahead-of-time builds, the adapter's steps.

What only a GPU can show is in tests/gpu.
"""

from __future__ import annotations

import ast
import ctypes
import functools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from support import fake_tensorrt
from support.bindings import SOURCES, USES, compile_stubs, problems, uses
from support.fake_cuda import DEVICES, STREAMS, FakeTorch
from support.gpus import A6000
from support.onnx_models import save, small_conv, weight
from support.rtx import TARGETS

from converters import tensorrt_family
from converters.tensorrt_family import EngineOptions, build_engine, fit_profile, parse_shapes
from runtimes import engines, nvidia, onnx_gate, registry, trt, trt_shim
from runtimes.errors import (
    BadFeeds,
    BadModel,
    OutOfMemory,
    RunFailed,
    RuntimeUnavailable,
    UnsupportedModel,
    UsageError,
)
from runtimes.spec import ModelSource, RuntimeOptions, ShapeRange, TensorSpec, default_profile

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESNET_ONNX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(nvidia.ctypes, "CDLL", load)


@pytest.fixture(scope="session")
def rtx() -> trt_shim.Library:
    """TensorRT-RTX, which builds without a GPU; skips where it is not installed."""
    if trt_shim.installed_version("tensorrt-rtx") is None:
        pytest.skip("TensorRT-RTX is not installed (pip install 'resnet-onnx[tensorrt-rtx]')")
    return trt_shim.load("tensorrt-rtx")


# ---- probing


@pytest.mark.usefixtures("no_driver")
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_without_a_driver_the_answer_names_it_and_what_to_do(name: str) -> None:
    answer = registry.probe(name)
    assert not answer.available
    assert answer.reason == f"no NVIDIA driver was found ({nvidia.CUDA_DRIVER})"
    assert answer.fix.splitlines() == [
        f"on a machine with an NVIDIA GPU: pip install 'resnet-onnx[{name}]'",
        "build an engine without a GPU:   resnet-onnx build resnet50 --runtime tensorrt-rtx --target sm89",
        "what runs here:                  resnet-onnx doctor",
    ]
    with pytest.raises(RuntimeUnavailable, match=f"runtime '{name}' can't run here: no NVIDIA driver") as refusal:
        registry.require(name)
    assert refusal.value.exit_code == 3


PROBE = """
import json, sys
from runtimes import nvidia, registry
nvidia.CUDA_DRIVER = "libno-such-driver.so.1"
answers = [registry.probe(name).reason for name in ("tensorrt", "tensorrt-rtx")]
heavy = [m for m in ("torch", "tensorrt", "tensorrt_rtx", "onnx", "onnxruntime", "openvino") if m in sys.modules]
print(json.dumps([heavy, answers]))
"""


def test_probing_without_a_driver_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=ROOT, check=True)
    heavy, answers = json.loads(done.stdout)
    assert heavy == []
    assert answers == ["no NVIDIA driver was found (libno-such-driver.so.1)"] * 2


class FakeDriver:
    """libcuda with two GPUs, or one that answers every call with an error."""

    def __init__(self, error: int = 0, count: int = 2, cuda: int = 13000) -> None:
        self.error, self.count, self.cuda = error, count, cuda

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.error

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.count
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = self.cuda
        return 0

    def cuDeviceGet(self, handle: Any, index: int) -> int:  # noqa: N802
        handle._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, handle: Any) -> int:  # noqa: N802
        name.value = (b"NVIDIA RTX A6000", b"NVIDIA GeForce GTX 1080")[handle.value]
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, handle: Any) -> int:  # noqa: N802
        size._obj.value = 48 * 2**30
        return 0

    def cuDeviceGetUuid_v2(self, uuid: Any, handle: Any) -> int:  # noqa: N802
        uuid[:] = bytes(range(16))
        return 0

    def cuDeviceGetAttribute(self, number: Any, attribute: int, handle: Any) -> int:  # noqa: N802
        # By CUdevice_attribute of cuda.h: major and minor number of the compute capability, multiprocessors.
        number._obj.value = {75: (8, 6), 76: (6, 1), 16: (84, 20)}[attribute][handle.value]
        return 0


def drive(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver) -> None:
    monkeypatch.setattr(nvidia.ctypes, "CDLL", lambda name: driver)


class StreamDriver(FakeDriver):
    """Notes what is asked of contexts and streams, and with which context current; one call may fail."""

    def __init__(self, failing: str = "") -> None:
        super().__init__()
        self.calls: list[str] = []
        self.current: list[int] = []
        self.failing = failing

    def cuDevicePrimaryCtxRetain(self, context: Any, gpu: Any) -> int:  # noqa: N802
        context._obj.value = 100 + gpu.value
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:  # noqa: N802
        self.current.append(context.value)
        return 0

    def cuCtxPopCurrent_v2(self, context: Any) -> int:  # noqa: N802
        self.current.pop()
        return 0

    def cuStreamCreate(self, stream: Any, flags: int) -> int:  # noqa: N802
        stream._obj.value = 2**47 + flags
        return self._note("create")

    def cuStreamSynchronize(self, stream: Any) -> int:  # noqa: N802
        assert stream.value == 2**47 + 1
        return self._note("synchronize")

    def cuCtxSynchronize(self) -> int:  # noqa: N802
        return self._note("device")

    def cuStreamDestroy_v2(self, stream: Any) -> int:  # noqa: N802
        return self._note("destroy")

    def cuDevicePrimaryCtxRelease_v2(self, gpu: Any) -> int:  # noqa: N802
        self.calls.append("release")
        return 0

    def _note(self, call: str) -> int:
        self.calls.append(f"{call} {self.current[-1]}")
        return 700 if call == self.failing else 0


def test_a_stream_of_our_own_lives_in_the_context_that_all_libraries_share(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = StreamDriver()
    drive(monkeypatch, driver)
    stream = nvidia.Stream("cuda:1")
    assert stream.handle == 2**47 + 1
    stream.synchronize()
    stream.wait_for_device()
    stream.close()
    stream.close()
    assert driver.calls == ["create 101", "synchronize 101", "device 101", "destroy 101", "release"]
    failing = StreamDriver("synchronize")
    drive(monkeypatch, failing)
    with pytest.raises(RuntimeError, match=r"CUDA failure 700: see CUresult in cuda.h \(cuStreamSynchronize\)"):
        nvidia.Stream("cuda:0").synchronize()
    assert failing.current == []


def test_gpus_are_listed_as_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    drive(monkeypatch, FakeDriver())
    first, second = nvidia.gpus()
    assert (first.device, first.name, first.compute_capability, first.target) == (
        "cuda:0",
        "NVIDIA RTX A6000",
        (8, 6),
        "sm86",
    )
    assert (second.device, second.compute_capability) == ("cuda:1", (6, 1))
    assert (first.cuda, first.multiprocessors, first.memory_bytes) == ((13, 0), 84, 48 * 2**30)
    assert first.uuid == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert nvidia.gpu_names()[0] == "cuda:0 NVIDIA RTX A6000 (compute capability 8.6, 48 GiB)"
    with pytest.raises(RuntimeUnavailable, match="there is no device cuda:2; this machine has cuda:0 NVIDIA RTX A6000"):
        nvidia.require_gpu("cuda:2")
    described = nvidia.describe()
    assert [row["compute_capability"] for row in described["gpus"]] == ["8.6", "6.1"]
    assert described["cuda"] == "13.0"
    assert described["gpus"][0]["clock_mhz"] is None  # no NVML here, or no such GPU


@pytest.mark.parametrize(
    ("code", "words"),
    [(35, "older than the CUDA libraries"), (100, "finds no GPU"), (803, "restart the machine"), (12345, "CUresult")],
)
def test_a_driver_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    drive(monkeypatch, FakeDriver(error=code))
    with pytest.raises(RuntimeUnavailable, match=rf"{words}.*\(CUDA error {code}\)"):
        nvidia.gpus()


def test_a_driver_without_gpus_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    drive(monkeypatch, FakeDriver(count=0))
    with pytest.raises(RuntimeUnavailable, match="finds no GPU"):
        nvidia.gpus()


def test_an_old_driver_or_gpu_is_named(rtx: trt_shim.Library) -> None:
    from dataclasses import replace

    trt.check_driver(A6000, 13)
    with pytest.raises(RuntimeUnavailable, match=r"driver 580\.65\.06 serves CUDA 12\.8, the .* needs CUDA 13") as old:
        trt.check_driver(replace(A6000, cuda=(12, 8)), 13, for_cuda12="'tensorrt-rtx-cu12'")
    assert "in an environment of its own, the library for CUDA 12: pip install 'tensorrt-rtx-cu12'" in str(
        old.value.fix
    )
    with pytest.raises(RuntimeUnavailable) as older:
        trt.check_driver(replace(A6000, cuda=(11, 8)), 13, for_cuda12="'tensorrt-rtx-cu12'")
    assert "CUDA 12" not in str(older.value.fix)
    trt.check_capability(rtx, A6000)
    for capability in ((6, 1), (9, 0)):
        with pytest.raises(RuntimeUnavailable, match=rf"does not support .*compute capability {capability[0]}\."):
            trt.check_capability(rtx, replace(A6000, compute_capability=capability))


def test_the_installed_package_says_its_cuda_version(rtx: trt_shim.Library) -> None:
    assert trt_shim.cuda_major("tensorrt-rtx") in (12, 13)


def test_a_throttled_clock_is_told_in_words() -> None:
    assert nvidia.throttle_reasons(0x1 | 0x4 | 0x40) == ("power limit", "thermal limit (hardware)")
    assert nvidia.throttle_reasons(0x1 | 0x2) == ()


# ---- names


def test_every_name_that_we_use_is_in_the_installed_module(rtx: trt_shim.Library) -> None:
    assert len(USES) > 50
    assert problems(rtx.trt, USES) == []


def test_a_use_that_the_module_does_not_allow_is_found(rtx: trt_shim.Library) -> None:
    wrong = """
builder.build_serialised_network(network)
self._engine.max_batch_size
trt.BuilderFlag.FP16
engine.get_tensor_format(name, 0, 1)
engine.num_io_tensors = 3
context.set_input_shape = 3
config.max_aux_streams = 0
deserializer.deserialize_cuda_engine()
"""
    assert [found.partition(": ")[0] for found in problems(rtx.trt, uses(wrong))] == [
        "Builder.build_serialised_network is missing",
        "BuilderFlag.FP16 is missing",
        "ICudaEngine.get_tensor_format takes no 3 arguments",
        "ICudaEngine.max_batch_size is missing",
        "ICudaEngine.num_io_tensors can't be set",
        "IExecutionContext.set_input_shape is no property, and is set",
        "Runtime.deserialize_cuda_engine takes no 0 arguments",
    ]


def test_names_that_only_rtx_has_are_used_by_the_shim_alone() -> None:
    for path in SOURCES:
        used = {part for use in uses((ROOT / path).read_text()) for part in (use.owner, use.name)}
        assert (used & trt_shim.ONLY_RTX == trt_shim.ONLY_RTX) is (path == "runtimes/trt_shim.py"), path
        assert path == "runtimes/trt_shim.py" or not used & trt_shim.ONLY_RTX


BINDINGS = ("10.16.1.11", "11.4.0.106")
"""Wheels of ``tensorrt-cu13-bindings``, 1.3 MB each; what they bind, some 3 GB, comes from NVIDIA and needs a GPU."""


@pytest.fixture(scope="session", params=BINDINGS)
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real bindings of one release beside stub libraries, in a folder; the wheel stays in pytest's cache."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler on Linux, to make stand-ins for TensorRT's libraries")
    assert request.config.cache is not None
    wheels = request.config.cache.mkdir(f"tensorrt-bindings-{sys.version_info[1]}")
    version = request.param
    if not (found := list(wheels.glob(f"*-{version}-*.whl"))):
        wanted = f"tensorrt-cu13-bindings=={version}"
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(wheels)]
        done = subprocess.run([*command, wanted], capture_output=True, text=True, timeout=120, check=False)
        if not (found := list(wheels.glob(f"*-{version}-*.whl"))):
            pytest.skip(f"can't download {wanted}: {(done.stderr.strip().splitlines() or [''])[-1]}")
    folder = tmp_path_factory.mktemp("bindings")
    with zipfile.ZipFile(found[0]) as wheel:
        wheel.extractall(folder)
    compile_stubs(folder, version.partition(".")[0], compiler)
    return folder


def test_both_releases_of_tensorrt_have_what_we_use_and_say_why_they_do_not_start(bindings: Path) -> None:
    """The real modules, without the libraries behind them: names, arguments, properties, subclasses, refusals."""
    done = subprocess.run(
        [sys.executable, "-m", "support.bindings", str(bindings)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "tests"), str(ROOT)))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["version"] in BINDINGS
    assert found["problems"] == []
    for what in ("builder", "runtime"):
        assert found["refusals"][what] == (
            f"TensorRT {found['version']} can't make its {what}: CUDA lib is a stub for tests | "
            "CUDA initialization failure with error: 35"
        )
    assert found["steps"] == [["phase", 0, 3], ["phase", 1, 3], ["phase", 3, 3]]
    assert (found["cancelled"], found["profiler"], found["dtypes"], found["targets"]) == (True, True, [], [])


def test_every_nvml_function_that_we_ask_exists() -> None:
    import pynvml

    asked = {
        node.value
        for node in ast.walk(ast.parse((ROOT / "runtimes/nvidia.py").read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(("nvml", "NVML_"))
    }
    assert len(asked) > 8
    assert [name for name in asked if not hasattr(pynvml, name)] == []


def test_the_rtx_precisions_and_dtypes_are_known(rtx: trt_shim.Library) -> None:
    members = rtx.trt.DataType.__members__
    assert set(trt_shim._DTYPES) <= set(members)
    assert rtx.dtype(members["BF16"], "x").itemsize == 2
    with pytest.raises(UnsupportedModel, match="tensor 'x' has the type FP8"):
        rtx.dtype(members["FP8"], "x")


# ---- the library's own words


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Error Code 2: OutOfMemory (Requested size was 315155104 bytes.)", OutOfMemory),
        ("Version tag does not match. Note: Current Version: 205, Serialized Engine Version: 0", BadModel),
        (
            "The engine plan file is generated on an incompatible device, expecting compute 8.6 got 8.9",
            UnsupportedModel,
        ),
        ("Engine compute capability 86 does not match", UnsupportedModel),
        ("Could not find any implementation for node conv1", UnsupportedModel),
    ],
)
def test_the_librarys_errors_become_ours(text: str, kind: type[Exception]) -> None:
    messages = [trt_shim.Message("WARNING", "out of memory soon"), trt_shim.Message("ERROR", text)]
    found = trt_shim.explain("opening", messages)
    assert type(found) is kind
    assert text[:30] in found.message
    assert "soon" not in found.message


def test_a_library_that_gives_no_reason_is_quoted_so() -> None:
    assert trt_shim.explain("opening", []).message == "opening: the library gave no reason"


# ---- shapes and targets


def test_shapes_are_read() -> None:
    assert parse_shapes("input:1x3x224x224,8x3x224x224,32x3x224x224; tokens:0:4x7") == {
        "input": ShapeRange((1, 3, 224, 224), (8, 3, 224, 224), (32, 3, 224, 224)),
        "tokens:0": ShapeRange((4, 7), (4, 7), (4, 7)),
    }


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("", "no shapes given"),
        ("1x3x8x8", "names no input"),
        (":1x3", "names no input"),
        ("x:", "'' is not a shape"),
        ("x:1x3,2x3", "given 2 shapes, expected 3"),
        ("x:1x3,2x3,3x3,4x3", "given 4 shapes"),
        ("x:1xa,2x3,3x3", "'1xa' is not a shape"),
        ("x:1x-3,2x3,3x3", "'1x-3' is not a shape"),
        ("x:0x3,2x3,3x3", "between 1 and"),
        ("x:1x99999999999", "is not a shape"),
        ("x:4x3,2x3,8x3", "minimum ≤ optimum"),
        ("x:1x3,2x3,3x3x3", "same number of axes"),
        ("x:1x3;x:2x3", "given shapes twice"),
    ],
)
def test_nonsense_shapes_are_usage_errors(argument: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_shapes(argument)


@given(
    st.dictionaries(
        st.text(st.characters(categories=("L", "N"), include_characters=":._/"), min_size=1).filter(
            lambda name: name == name.strip()
        ),
        st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4),
        min_size=1,
        max_size=3,
    )
)
def test_written_shapes_are_read_back(inputs: dict[str, list[tuple[int, int, int]]]) -> None:
    profile = {
        name: ShapeRange(
            tuple(a for a, _, _ in axes), tuple(a + b for a, b, _ in axes), tuple(a + b + c for a, b, c in axes)
        )
        for name, axes in inputs.items()
    }
    assert parse_shapes(";".join(f"{name}:{accepted}" for name, accepted in profile.items())) == profile


FLOAT = np.dtype(np.float32)
PICTURES = TensorSpec("input", FLOAT, ("batch", 3, 8, 8))


def test_the_default_profile_opens_the_batch() -> None:
    fixed = TensorSpec("scale", FLOAT, (2, 2))
    assert default_profile([PICTURES, fixed]) == {
        "input": ShapeRange((1, 3, 8, 8), (8, 3, 8, 8), (64, 3, 8, 8)),
        "scale": ShapeRange((2, 2), (2, 2), (2, 2)),
    }
    with pytest.raises(UsageError, match="open dimensions besides the batch") as refusal:
        default_profile([TensorSpec("input", FLOAT, ("batch", 3, "height", "width"))])
    assert "--shapes 'input:" in (refusal.value.fix or "")


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ("other:1x3x8x8", "names other, but the inputs are input: float32"),
        ("input:1x3x8", "3 axes, expected 4"),
        ("input:1x3x9x9", "the extent 9 where it is 8"),
        ("input:1x1x8x8,1x3x8x8,1x3x8x8", "the extent 1 to 3 where it is 3"),
    ],
)
def test_shapes_that_do_not_fit_the_model_are_usage_errors(shapes: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        fit_profile([PICTURES], parse_shapes(shapes))


def test_one_dimension_has_one_range_in_all_inputs() -> None:
    both = [PICTURES, TensorSpec("mask", FLOAT, ("batch", 8))]
    assert set(fit_profile(both, parse_shapes("input:1x3x8x8,8x3x8x8,64x3x8x8"))) == {"input", "mask"}
    with pytest.raises(UsageError, match="dimension 'batch'"):
        fit_profile(both, parse_shapes("input:1x3x8x8,2x3x8x8,4x3x8x8"))


@pytest.mark.parametrize("argument", ["sm86", "SM86", "sm_86", "8.6", "86"])
def test_a_target_is_read_in_every_common_form(argument: str) -> None:
    assert tensorrt_family.parse_target(argument) == "sm86"


def test_two_digit_architectures_are_read() -> None:
    assert [tensorrt_family.parse_target(a) for a in ("12.0", "sm121")] == ["sm120", "sm121"]


def test_targets_of_rtx_are_those_of_its_enum(rtx: trt_shim.Library) -> None:
    assert {"sm75", "sm80", "sm86", "sm89", "sm120"} <= set(rtx.targets())
    assert set(rtx.targets()) <= set(tensorrt_family.ARCHITECTURES)


@pytest.mark.usefixtures("rtx", "cache")
@pytest.mark.parametrize("target", ["sm61", "sm90", "9.0"])
def test_an_unknown_target_lists_the_known_ones(tmp_path: Path, target: str) -> None:
    model = small_conv(tmp_path / "net.onnx")
    with pytest.raises(UsageError, match=rf"can't build for '{target}': choose sm75 \(Turing\), .*sm89 \(Ada\)"):
        build_engine(model, library="tensorrt-rtx", target=target)
    with pytest.raises(UsageError, match="'ada' is not a compute capability"):
        build_engine(model, library="tensorrt-rtx", target="ada")


@pytest.mark.usefixtures("rtx", "cache", "no_driver")
def test_without_a_gpu_the_target_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the GPU to build for must be named: sm75") as refusal:
        build_engine(small_conv(tmp_path / "net.onnx"), library="tensorrt-rtx")
    assert refusal.value.fix == "--target sm89"


@pytest.mark.usefixtures("cache", "no_driver")
def test_tensorrt_itself_does_not_build_without_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="no NVIDIA driver was found") as refusal:
        build_engine(small_conv(tmp_path / "net.onnx"), library="tensorrt")
    assert "--runtime tensorrt-rtx --target" in (refusal.value.fix or "")


# ---- real builds


def layer_count(build: engines.Engine, kind: str, precision: str) -> int:
    return sum(row["count"] for row in build.layers if (row["type"], row["precision"]) == (kind, precision))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """Exports a catalog network with random weights, once."""
    folder = tmp_path_factory.mktemp("exported")

    @functools.cache
    def export(name: str, side: int) -> Path:
        import torch

        from converters import torch_export
        from resnet_onnx.models import catalog
        from resnet_onnx.models.build import build

        module = build(catalog.lookup(name).config, generator=torch.Generator().manual_seed(0)).eval()
        path = folder / f"{name}.onnx"
        torch_export.export(module, (torch.zeros(2, 3, side, side),), path, torch_export.ExportOptions(), {})
        return path

    return export


@pytest.mark.usefixtures("rtx", "cache")
@pytest.mark.parametrize(
    ("name", "side", "convolutions"), [("resnet18", 224, 20), ("resnet50", 224, 53), ("cifar-resnet20", 32, 19)]
)
def test_residual_networks_build_for_two_targets_without_a_gpu(
    exported: Callable[[str, int], Path], name: str, side: int, convolutions: int
) -> None:
    model = exported(name, side)
    builds = [build_engine(model, library="tensorrt-rtx", target=target) for target in TARGETS]
    for target, build in zip(TARGETS, builds, strict=True):
        assert (build.key.target, build.cached) == (target, False)
        assert build.size_bytes == build.path.stat().st_size > 0.9 * model.stat().st_size
        assert layer_count(build, "convolution", "fp32") == convolutions
        assert {row["precision"] for row in build.layers} - {"int64"} == {"fp32"}  # int64: computing with shapes
        assert build.key.profile["input"].maximum == (64, 3, side, side)
        print(f"{name} {target}: {build.size_bytes / 1e6:.1f} MB in {build.seconds:.2f} s")
    assert builds[0].key != builds[1].key
    assert build_engine(model, library="tensorrt-rtx", target=TARGETS[0]).cached


@pytest.mark.usefixtures("rtx", "cache")
@pytest.mark.parametrize("name", ["light_resnet50", "light_squeezenet", "light_vgg19"])
def test_foreign_models_build_for_two_targets_without_a_gpu(name: str) -> None:
    model = Path(onnx.__file__).parent / "backend/test/data/light" / f"{name}.onnx"
    for target in TARGETS:
        build = build_engine(model, library="tensorrt-rtx", target=target)
        assert not build.cached
        assert build.size_bytes > 1_000_000
        assert layer_count(build, "convolution", "fp32") == sum(
            n.op_type == "Conv" for n in onnx.load(model).graph.node
        )


def halves(model: Path, target: Path) -> Path:
    """The convolution in fp16 between casts."""
    nodes = [
        helper.make_node("Cast", ["x"], ["xh"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["xh", "w"], ["yh"], name="conv1", pads=[1] * 4),
        helper.make_node("Cast", ["yh"], ["y"], to=TensorProto.FLOAT),
    ]
    return save(target, nodes, {"w": weight(np.float16)})


def quantised(target: Path, zero_point: type = np.int8) -> Path:
    """The convolution in int8: Q/DQ on the input, DQ on the weight."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantise"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["xd"], name="dequantise"),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], name="dequantise_weight", axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["y"], name="conv1", pads=[1] * 4),
    ]
    arrays = {
        "s": np.array(0.1, np.float32),
        "z": np.array(128 if zero_point is np.uint8 else 0, zero_point),
        "wq": np.ones((4, 3, 3, 3), np.int8),
        "ws": np.full(4, 0.1, np.float32),
        "wz": np.zeros(4, np.int8),
    }
    return save(target, nodes, arrays)


@pytest.mark.usefixtures("rtx", "cache")
def test_precision_is_the_graphs(tmp_path: Path) -> None:
    half = build_engine(halves(tmp_path, tmp_path / "half.onnx"), library="tensorrt-rtx", target="sm86")
    assert layer_count(half, "convolution", "fp16") == 1
    quant = build_engine(quantised(tmp_path / "int8.onnx"), library="tensorrt-rtx", target="sm86")
    assert layer_count(quant, "quantize", "int8") == 1
    assert layer_count(quant, "convolution", "fp32") == 1  # fused with its Q/DQ only inside the engine


@pytest.mark.usefixtures("rtx", "cache")
def test_pictures_as_bytes_are_accepted(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["xf"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["xf", "w"], ["y"], name="conv1", pads=[1] * 4),
    ]
    model = save(
        tmp_path / "bytes.onnx",
        nodes,
        {"w": weight()},
        element=TensorProto.UINT8,
        output_element=TensorProto.FLOAT,
    )
    assert not build_engine(model, library="tensorrt-rtx", target="sm86").cached


@pytest.mark.usefixtures("rtx", "cache")
def test_the_parsers_refusal_names_the_node(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["d"], name="strange"),
        helper.make_node("ReduceSum", ["d"], ["total"], keepdims=0),
        helper.make_node("Add", ["x", "total"], ["y"]),
    ]
    det = save(tmp_path / "det.onnx", nodes, {}, channels=3)
    with pytest.raises(
        UnsupportedModel, match=r"can't build u8\.onnx: node 'quantise' \(QuantizeLinear\): .*zero point"
    ):
        build_engine(quantised(tmp_path / "u8.onnx", np.uint8), library="tensorrt-rtx", target="sm86")
    with pytest.raises(UnsupportedModel, match=r"node 'strange' \(Det\): the operator is not supported$") as refusal:
        build_engine(det, library="tensorrt-rtx", target="sm86")
    assert refusal.value.exit_code == 3
    assert engines.list_engines() == []


@pytest.mark.usefixtures("rtx", "cache")
def test_float64_is_not_narrowed_in_silence(tmp_path: Path) -> None:
    model = save(
        tmp_path / "double.onnx",
        [helper.make_node("Relu", ["x"], ["y"], name="relu")],
        {},
        element=TensorProto.DOUBLE,
        channels=3,
    )
    with pytest.raises(UnsupportedModel, match="'x' is float64, of which it would make float32"):
        build_engine(model, library="tensorrt-rtx", target="sm86")


def test_many_parser_errors_become_three_and_a_count() -> None:
    problems = [tensorrt_family.ParserProblem(f"n{i}", "Det", "no") for i in range(5)]
    assert tensorrt_family.parse_failure("X can't build y", [*problems, problems[0]]) == (
        "X can't build y: node 'n0' (Det): no; node 'n1' (Det): no; node 'n2' (Det): no; and 2 more"
    )
    assert tensorrt_family.parse_failure("X", []) == "X: the parser refused it and gave no reason"
    noise = "type Int32 [checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (cudaError 35)"
    assert tensorrt_family.plain_reason(noise, "INVALID_NODE") == "type Int32"


@pytest.mark.usefixtures("rtx", "cache")
def test_equal_graph_names_with_other_shapes_do_not_collide(tmp_path: Path) -> None:
    """onnxruntime#32254: a cache keyed on the graph's name hands out the engine of another shape."""
    small = small_conv(tmp_path / "small.onnx", side=8, graph_name="main_graph")
    large = small_conv(tmp_path / "large.onnx", side=16, graph_name="main_graph")
    keys = {build_engine(model, library="tensorrt-rtx", target="sm86").key.digest for model in (small, large)}
    profiles = [parse_shapes(f"x:1x3x8x8,{n}x3x8x8,{n}x3x8x8") for n in (2, 4)]
    builds = [build_engine(small, library="tensorrt-rtx", target="sm86", shapes=shapes) for shapes in profiles]
    assert [build.cached for build in builds] == [False, False]
    assert len(keys | {build.key.digest for build in builds}) == 4


@pytest.mark.usefixtures("rtx", "cache")
def test_options_reach_the_builder_and_the_key(tmp_path: Path) -> None:
    model = small_conv(tmp_path / "net.onnx")
    choices = [
        EngineOptions(),
        EngineOptions(tf32=True),
        EngineOptions(optimization_level=0),
        EngineOptions(workspace_bytes=2**28),
        EngineOptions(cuda_graph=True),
    ]
    builds = [build_engine(model, library="tensorrt-rtx", target="sm86", options=options) for options in choices]
    assert len({build.key.digest for build in builds}) == len(choices)
    without = EngineOptions(timing_cache=False)
    assert build_engine(model, library="tensorrt-rtx", target="sm86", options=without).key == builds[0].key
    with pytest.raises(OutOfMemory, match="workspace"):
        build_engine(model, library="tensorrt-rtx", target="sm86", options=EngineOptions(workspace_bytes=1))


def test_tf32_is_off_unless_asked(rtx: trt_shim.Library, cache: Path, tmp_path: Path) -> None:
    checked = onnx_gate.check_onnx(small_conv(tmp_path / "net.onnx"))
    profile = default_profile(checked.inputs)
    builder = rtx.trt.Builder(rtx.logger)
    for tf32 in (False, True):
        options = EngineOptions(tf32=tf32, workspace_bytes=2**28, optimization_level=2, cuda_graph=True)
        key = tensorrt_family.engine_key(checked, rtx, "sm86", profile, options)
        target = tensorrt_family._Target("sm86", None)
        job = tensorrt_family._Job(checked, rtx, target, key, options, lambda *step: None)
        config = job._configure(builder, threading.Event())
        assert config.get_flag(rtx.trt.BuilderFlag.TF32) is tf32
        assert config.get_memory_pool_limit(rtx.trt.MemoryPoolType.WORKSPACE) == 2**28
        assert (config.builder_optimization_level, config.max_aux_streams) == (2, 0)
        assert config.get_flag(rtx.trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        assert config.get_compute_capability(0) == rtx.trt.ComputeCapability.SM86


@pytest.mark.parametrize("wrong", [{"workspace_bytes": 0}, {"optimization_level": 6}, {"optimization_level": -1}])
def test_impossible_options_are_usage_errors(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        EngineOptions(**wrong)


@pytest.mark.usefixtures("rtx", "cache")
def test_progress_goes_from_nothing_to_everything(tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    build_engine(
        small_conv(tmp_path / "net.onnx"),
        library="tensorrt-rtx",
        target="sm86",
        progress=lambda *step: steps.append(step),
    )
    phase, done, total = steps[0]
    assert done == 0 < total
    assert steps[-1] == (phase, total, total)
    assert all(0 <= done <= total for _, done, total in steps)


@pytest.mark.usefixtures("rtx", "cache")
def test_an_interrupted_build_stops_at_its_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C arrives in the thread that waits; the library must not go on to the end."""
    model = small_conv(tmp_path / "net.onnx")
    whole: list[str] = []
    build_engine(model, library="tensorrt-rtx", target="sm89", progress=lambda *step: whole.append(step[0]))
    steps: list[str] = []
    at_interrupt: list[int] = []
    join = threading.Thread.join

    def interrupt(thread: threading.Thread, timeout: float | None = None) -> None:
        if thread.name == "engine-build" and not at_interrupt and len(steps) >= 5:
            at_interrupt.append(len(steps))
            raise KeyboardInterrupt
        join(thread, 0.01 if thread.name == "engine-build" and not at_interrupt else timeout)

    def slow(phase: str, done: int, total: int) -> None:
        steps.append(phase)
        time.sleep(0.05)

    monkeypatch.setattr(threading.Thread, "join", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_engine(model, library="tensorrt-rtx", target="sm86", progress=slow)
    assert len(steps) < at_interrupt[0] + 10 < len(whole)
    assert [row.key.target for row in engines.list_engines()] == ["sm89"]


@pytest.mark.usefixtures("rtx", "cache")
def test_a_model_changed_after_the_gate_is_refused(tmp_path: Path) -> None:
    model = small_conv(tmp_path / "net.onnx")
    checked = onnx_gate.check_onnx(model)
    small_conv(model, side=16)
    with pytest.raises(BadModel, match="was changed while it was being used"):
        build_engine(checked, library="tensorrt-rtx", target="sm86")


@pytest.mark.usefixtures("rtx", "cache")
def test_external_data_is_part_of_the_key(tmp_path: Path) -> None:
    keys = []
    for scale in (1, 2):
        folder = tmp_path / str(scale)
        folder.mkdir()
        model = onnx.load(small_conv(folder / "plain.onnx"))
        array = weight() * scale
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "w"))
        onnx.save_model(
            model, folder / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
        )
        build = build_engine(folder / "net.onnx", library="tensorrt-rtx", target="sm86")
        assert not build.cached
        keys.append(build.key)
    assert keys[0].model_sha256 == keys[1].model_sha256
    assert keys[0].external_sha256 != keys[1].external_sha256
    assert keys[0].digest != keys[1].digest


# ---- the adapter, on stand-ins for the library and for torch's CUDA half


@pytest.fixture
def fakes(cache: Path) -> Iterator[dict[str, trt_shim.Library]]:
    with fake_tensorrt.installed() as libraries:
        yield libraries


def doubling(*profiles: dict[str, list[list[int]]]) -> bytes:
    """An engine of the stand-in: one float input ``x`` [batch, 3], one output ``y`` that is twice as much."""
    float32 = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"], name="double")],
        "g",
        [helper.make_tensor_value_info("x", float32, ["batch", 3])],
        [helper.make_tensor_value_info("y", float32, ["batch", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return fake_tensorrt.plan_of(model, profiles or [{"x": [[1, 3], [2, 3], [4, 3]]}])


def cached_engine(plan: bytes | None = None, **changes: Any) -> Path:
    key = engines.EngineKey(
        **{
            "model_sha256": "a" * 64,
            "profile": {"x": ShapeRange((1, 3), (2, 3), (4, 3))},
            "precision": "fp32",
            "tf32": False,
            "library": "tensorrt",
            "library_version": "10.99.0",
            "target": "sm86",
            **changes,
        }
    )
    built = engines.Engine(
        key=key,
        seconds=0,
        dimensions={"x": ("batch", 3), "y": ("batch", 3)},
        layers=(),
        warnings=(),
        model="net.onnx",
    )
    return engines.find_or_build(key, lambda: (doubling() if plan is None else plan, built)).path


def open_fake(path: Path, **options: Any) -> trt.TensorRTRuntime:
    return trt.TensorRTRuntime(ModelSource(path=path), device="cuda:0", options=RuntimeOptions(**options))


def batch(count: int, start: float = 0) -> np.ndarray:
    return np.arange(start, start + 3 * count, dtype=np.float32).reshape(count, 3)


@pytest.mark.usefixtures("fakes")
def test_an_engine_opens_with_the_names_of_its_onnx_file() -> None:
    with open_fake(cached_engine()) as runtime:
        assert [str(spec) for spec in (*runtime.inputs, *runtime.outputs)] == [
            "x: float32[batch, 3]",
            "y: float32[batch, 3]",
        ]
        assert [(row.node, row.provider, row.device) for row in runtime.placement()] == [
            ("double", "TensorRT engine", "cuda:0")
        ]
        assert runtime.recorded["tf32"] is False
        assert runtime.recorded["shapes"] == {"x": "1x3,2x3,4x3"}
        assert runtime.recorded["trusted_by_user"] is False


@pytest.mark.usefixtures("fakes")
def test_changing_batches_give_each_its_own_result() -> None:
    with open_fake(cached_engine()) as runtime:
        results = [(n, runtime.run({"x": batch(n, n)})["y"]) for n in (2, 4, 1, 4, 3)]
        for count, result in results:
            np.testing.assert_array_equal(result, batch(count, count) * 2)


@pytest.mark.usefixtures("fakes")
def test_buffers_grow_once_and_then_stay() -> None:
    with open_fake(cached_engine()) as runtime:
        for _ in range(50):
            for count in (4, 1, 3):
                runtime.run({"x": batch(count)})
        assert FakeTorch.allocated == [48] * 4  # input and output, each on the device and pinned
        assert runtime._engine.contexts == 1


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("scope", ["device", "end-to-end"])
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_prepared_run_repeats_the_same_work(scope: Any, cuda_graph: bool) -> None:
    with open_fake(cached_engine(), cuda_graph=cuda_graph) as runtime:
        feeds = {"x": batch(2)}
        with runtime.prepare(feeds, scope=scope) as prepared:
            before = runtime._engine.runs
            for _ in range(5):
                prepared.enqueue()
            assert runtime._engine.runs == before  # nothing waits inside enqueue
            prepared.synchronize()
            assert runtime._engine.runs == before + 5
            np.testing.assert_array_equal(prepared.outputs()["y"], batch(2) * 2)
            if scope == "end-to-end":
                feeds["x"][:] = batch(2, 100)
                prepared.enqueue()
                np.testing.assert_array_equal(prepared.outputs()["y"], batch(2, 100) * 2)


@pytest.mark.usefixtures("fakes")
def test_prepared_runs_have_a_context_and_a_stream_each() -> None:
    with open_fake(cached_engine()) as runtime:
        pair = [runtime.prepare({"x": batch(n)}) for n in (1, 2)]
        assert runtime._engine.contexts == 2
        own = list(STREAMS.values())[DEVICES:]
        assert len(own) == 2
        pair[0].enqueue()
        pair[1].enqueue()
        pair[1].synchronize()
        assert [len(stream.queue) for stream in own] == [1, 0]
        for prepared in pair:
            prepared.close()


@pytest.mark.usefixtures("fakes")
def test_shapes_outside_the_profile_are_refused_before_the_gpu_sees_them() -> None:
    with open_fake(cached_engine()) as runtime:
        for call in (runtime.run, runtime.prepare):
            with pytest.raises(BadFeeds, match=r"tensorrt: input 'x' was given shape 5×3, .* 1×3 up to 4×3"):
                call({"x": batch(5)})
        assert runtime._engine.runs == 0


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"target": "sm89"}, UnsupportedModel, "built for sm89, but cuda:0 is stand-in"),
        ({"library_version": "10.14.0"}, BadModel, r"built by tensorrt 10\.14\.0, here is tensorrt 10\.99\.0"),
        ({"library": "tensorrt-rtx"}, BadModel, "built by tensorrt-rtx"),
        ({"plan": b"other"}, BadModel, "made by another version of the library"),
    ],
)
def test_an_engine_that_does_not_belong_here_is_refused(changes: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        open_fake(cached_engine(**changes))


@pytest.mark.usefixtures("fakes")
def test_an_engine_from_elsewhere_is_executed_only_when_trusted(tmp_path: Path) -> None:
    outside = tmp_path / "gift.engine"
    outside.write_bytes(doubling())
    with pytest.raises(BadModel, match="not built by this machine's own cache"):
        open_fake(outside)
    with open_fake(outside, trust_engine=True) as runtime:
        assert runtime.recorded["trusted_by_user"] is True
        assert [str(spec) for spec in runtime.inputs] == ["x: float32[x.0, 3]"]
        np.testing.assert_array_equal(runtime.run({"x": batch(2)})["y"], batch(2) * 2)


@pytest.mark.usefixtures("fakes")
def test_an_onnx_file_is_answered_with_how_to_build(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="runtime 'tensorrt' opens engines") as refusal:
        open_fake(small_conv(tmp_path / "net.onnx"))
    assert "resnet-onnx build" in (refusal.value.fix or "")


@pytest.mark.usefixtures("fakes")
def test_failures_of_the_device_have_their_own_errors() -> None:
    with open_fake(cached_engine()) as runtime:
        runtime._engine.fail_with = "Cuda failure: launch timed out"
        with pytest.raises(RunFailed, match="launch timed out"):
            runtime.run({"x": batch(1)})
        runtime._engine.fail_with = "Error Code 2: OutOfMemory"
        with pytest.raises(OutOfMemory):
            runtime.run({"x": batch(1)})
        runtime._engine.fail_with, runtime._engine.refuse_shapes = "", True
        with pytest.raises(RunFailed, match="can't settle the shapes of x: static dimension mismatch"):
            runtime.run({"x": batch(2)})
        with pytest.raises(RunFailed):  # not taken for bound after the failure
            runtime.run({"x": batch(1)})
        runtime._engine.refuse_shapes = False
        FakeTorch.out_of_memory = True
        with pytest.raises(OutOfMemory, match=r"Tried to allocate 2\.00 GiB"):
            runtime.run({"x": batch(4)})
        FakeTorch.out_of_memory = False
        np.testing.assert_array_equal(runtime.run({"x": batch(4)})["y"], batch(4) * 2)


def test_an_engine_without_a_profile_accepts_its_fixed_shape() -> None:
    assert trt.profile_range([(1, 3), (2, 3), (4, 3)], (-1, 3)) == ShapeRange((1, 3), (2, 3), (4, 3))
    for nothing in ([], [(-1,), (-1,), (-1,)], [(-1, -1)] * 3):
        assert trt.profile_range(nothing, (2, 3)) == ShapeRange((2, 3), (2, 3), (2, 3))


def test_messages_of_long_service_do_not_pile_up(fakes: dict[str, trt_shim.Library]) -> None:
    library = fakes["tensorrt"]
    for number in range(1000):
        library._log(trt_shim.Message("WARNING", str(number)))
    assert len(library.take_recent()) == 100
    assert library.take_recent() == []


def test_a_report_without_layers_is_one_row_for_the_engine() -> None:
    for report in ("", "{}", "[1]", "null"):
        (row,) = trt.layer_placement(report, "TensorRT engine", "cuda:1")
        assert (row.node, row.device) == ("*", "cuda:1")
    detailed = json.dumps({"Layers": [{"Name": "conv1", "LayerType": "Convolution"}]})
    assert trt.layer_placement(detailed, "p", "cuda:0")[0].operator == "Convolution"


def test_the_uuid_is_written_as_nvml_does() -> None:
    raw = bytes((ctypes.c_ubyte * 16)(*range(240, 256)))
    assert nvidia.uuid_text(raw) == "f0f1f2f3-f4f5-f6f7-f8f9-fafbfcfdfeff"


@pytest.mark.usefixtures("fakes")
def test_events_tell_copies_and_computing_apart() -> None:
    feeds = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    with open_fake(cached_engine()) as runtime:
        with runtime.prepare(feeds, scope="end-to-end") as prepared:
            assert prepared.returns_early
            # The stand-in's clock moves on by a millisecond a step: one input, one run, one output.
            assert prepared.phases() == {"copy_in": 1e-3, "compute": 1e-3, "copy_out": 1e-3}
            assert prepared.outputs()["y"].tolist() == (2 * feeds["x"]).tolist()
        with runtime.prepare(feeds) as prepared:
            assert prepared.phases() == {"compute": 1e-3}
    with open_fake(cached_engine(), cuda_graph=True) as runtime, runtime.prepare(feeds) as prepared:
        assert prepared.phases() is None, "a captured run is one piece"


@pytest.mark.usefixtures("fakes")
def test_layers_are_timed_by_the_librarys_own_profiler() -> None:
    with open_fake(cached_engine()) as runtime:
        found = runtime.profile({"x": batch(2)}, runs=4)
        assert [(layer.name, layer.seconds) for layer in found] == [("double", 2e-3)]
        assert runtime._engine.runs == 5
        np.testing.assert_array_equal(runtime.run({"x": batch(2)})["y"], batch(2) * 2)


# ---- defects that a review against the real bindings found


STARTS = [
    ((fake_tensorrt.Severity.WARNING, "Unable to determine GPU memory usage: CUDA driver version is insufficient"),),
    (
        (
            fake_tensorrt.Severity.ERROR,
            "CUDA initialization failure with error: 35. Please check your CUDA installation",
        ),
    ),
    ((fake_tensorrt.Severity.INFO, "irrelevant"),),
]


@pytest.mark.parametrize("said", STARTS)
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_a_library_whose_cuda_does_not_start_is_unavailable_in_its_own_words(
    fakes: dict[str, trt_shim.Library], tmp_path: Path, name: Any, said: Any
) -> None:
    engine = cached_engine(library=name)
    fakes[name].trt.null = said
    words = said[0][1] if said[0][0] is not fake_tensorrt.Severity.INFO else "it gave no reason"
    runtime = registry.adapter(name)
    with pytest.raises(RuntimeUnavailable, match=rf"10\.99\.0 can't make its runtime: {words}"):
        runtime(ModelSource(path=engine), device="cuda:0", options=RuntimeOptions())
    with pytest.raises(RuntimeUnavailable, match=rf"10\.99\.0 can't make its builder: {words}"):
        build_engine(small_conv(tmp_path / "net.onnx"), library=name, target="sm86")


def test_another_type_error_of_the_library_is_not_taken_for_a_missing_gpu(fakes: dict[str, trt_shim.Library]) -> None:
    with pytest.raises(TypeError, match="has no len"):
        fakes["tensorrt"].make("parser", lambda: len(3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("log", "out_of_memory"),
    [
        (
            [
                (
                    "WARNING",
                    "Tactic Device request: 1162MB Available: 975MB. Device memory is insufficient to use tactic.",
                )
            ],
            True,
        ),
        ([("WARNING", "Try increasing the workspace size: insufficient workspace for node conv1")], True),
        ([("WARNING", "out of memory soon")], False),
        ([("ERROR", "Requested amount of GPU memory (1073741824 bytes) could not be allocated.")], True),
        ([("ERROR", "[checkMacros.cpp] cudaMalloc failed")], True),
        ([], False),
    ],
)
def test_memory_that_is_too_small_is_told_as_that(log: list[tuple[str, str]], out_of_memory: bool) -> None:
    node = trt_shim.Message(
        "ERROR", "Error Code 10: Internal Error (Could not find any implementation for node conv1.)"
    )
    found = trt_shim.explain("building", [*(trt_shim.Message(*line) for line in log), node])
    assert isinstance(found, OutOfMemory) is out_of_memory
    if out_of_memory and log[0][0] == "WARNING":
        assert log[0][1][:40] in found.message
        assert "workspace" in (found.fix or "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"locations": {"x": fake_tensorrt.Location.HOST}}, "wants 'x' in the host's memory"),
        ({"formats": {("y", 0): fake_tensorrt.Format.CHW32}}, "wants 'y' in the format CHW32, 32 elements"),
        ({"formats": {("x", 1): fake_tensorrt.Format.HWC8}}, "wants 'x' in the format HWC8"),
    ],
)
def test_a_foreign_engine_with_tensors_of_another_form_is_refused_before_memory_is_reserved(
    fakes: dict[str, trt_shim.Library], tmp_path: Path, change: Any, words: str
) -> None:
    outside = tmp_path / "gift.engine"
    outside.write_bytes(doubling({"x": [[1, 3], [1, 3], [1, 3]]}, {"x": [[2, 3], [4, 3], [8, 3]]}))
    for name, value in change.items():
        setattr(fakes["tensorrt"].trt, name, value)
    with pytest.raises(UnsupportedModel, match=words) as refusal:
        open_fake(outside, trust_engine=True)
    assert str(outside) in refusal.value.message
    assert FakeTorch.allocated == []


@pytest.mark.usefixtures("fakes")
def test_an_engine_of_several_profiles_runs_each_shape_in_its_own(tmp_path: Path) -> None:
    outside = tmp_path / "gift.engine"
    outside.write_bytes(doubling({"x": [[1, 3], [1, 3], [1, 3]]}, {"x": [[4, 3], [6, 3], [8, 3]]}))
    with open_fake(outside, trust_engine=True) as runtime:
        assert runtime.recorded["shapes"] == {"x": "1x3,1x3,1x3 or 4x3,6x3,8x3"}
        for count in (8, 1, 4, 1):
            np.testing.assert_array_equal(runtime.run({"x": batch(count)})["y"], batch(count) * 2)
            with runtime.prepare({"x": batch(count)}) as prepared:
                prepared.enqueue()
                np.testing.assert_array_equal(prepared.outputs()["y"], batch(count) * 2)
        with pytest.raises(BadFeeds, match="given shape 2×3, the engine was built for 1×3 up to 1×3 or 4×3 up to 8×3"):
            runtime.run({"x": batch(2)})


@pytest.mark.usefixtures("fakes")
def test_compiled_kernels_are_kept_sealed_for_the_next_process() -> None:
    engine = cached_engine(library="tensorrt-rtx")

    def opened() -> bytes:
        source = ModelSource(path=engine)
        with trt.TensorRTRTXRuntime(source, device="cuda:0", options=RuntimeOptions()) as runtime:
            with runtime.prepare({"x": batch(1)}):
                kept = list(engine.parent.glob("*.kernels"))
                assert len(kept) == 1  # at once: a worker process is killed, not closed
            return runtime._runtime_config.cache.loaded

    assert opened() == b""
    assert opened() == b"kernels"
    (kept,) = engine.parent.glob("*.kernels")
    kept.write_bytes(b"x" + kept.read_bytes()[1:])
    assert opened() == b""
    assert opened() == b"kernels"
    engines.prune_engines(0)
    assert list(engine.parent.glob("*.kernels")) == []


@pytest.mark.usefixtures("fakes")
def test_buffers_belong_to_the_streams_that_use_them_and_are_given_back() -> None:
    runtime = open_fake(cached_engine())
    prepared = runtime.prepare({"x": batch(1)})
    for block in fake_tensorrt.fake_cuda.BLOCKS.values():
        assert block.device == fake_tensorrt.fake_cuda.HOST or block.stream is prepared._lane.stream
    runtime.close()
    assert FakeTorch.emptied == 1
    assert not any(block.live for block in fake_tensorrt.fake_cuda.BLOCKS.values())


@pytest.mark.usefixtures("fakes")
def test_one_failing_close_neither_leaves_the_others_open_nor_hides_the_first_error() -> None:
    runtime = open_fake(cached_engine())
    prepared = [runtime.prepare({"x": batch(n)}) for n in (1, 2, 3)]
    for each in prepared[:2]:
        each._lane.stream.queue.append(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="the first error") as caught, runtime:
        raise ValueError("the first error")
    assert any("closing failed too" in note for note in caught.value.__notes__)
    assert all(each._closed for each in prepared)
    assert not any(block.live for block in fake_tensorrt.fake_cuda.BLOCKS.values())
    assert FakeTorch.emptied == 1
    lonely = open_fake(cached_engine())
    kept = lonely.prepare({"x": batch(1)})
    kept._lane.stream.queue.append(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    with pytest.raises(ZeroDivisionError):
        lonely.close()
    assert FakeTorch.emptied == 2
