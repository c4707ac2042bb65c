"""ONNX Runtime and torch on NVIDIA devices, without one: what they are told, keys, seals, and what refusals mean.

What only a GPU can show is in tests/gpu.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from support.gpus import A6000
from support.onnx_models import save, small_conv, weight

from runtimes import environment, files, nvidia, onnx_gate, ort, ort_gpu, pytorch, registry
from runtimes.errors import BadFeeds, OutOfMemory, RuntimeUnavailable, ToolkitError, UnsupportedModel, UsageError
from runtimes.registry import open_runtime
from runtimes.spec import ModelSource, NodePlacement, RuntimeOptions, ShapeRange, TensorSpec, TorchProgram

SHAPES = {"x": ShapeRange((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))}
EVERYTHING = RuntimeOptions(tf32=True, cuda_graph=True, exhaustive_search=True, channels_last=True, shapes=SHAPES)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESNET_ONNX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> nvidia.Gpu:
    """A driver that lists one GPU; nothing can be computed on it."""
    monkeypatch.setattr(nvidia, "gpus", lambda **words: (A6000,))
    monkeypatch.delenv(nvidia.TF32_VARIABLE, raising=False)
    monkeypatch.setattr(ort_gpu._Process, "tf32", None)
    monkeypatch.setattr(ort_gpu._Process, "opened", 0)
    monkeypatch.setattr(nvidia, "Stream", LoggedStream)
    return A6000


class LoggedStream:
    """A CUDA stream that only counts."""

    made: ClassVar[list[LoggedStream]] = []

    def __init__(self, device: str) -> None:
        self.device, self.calls = device, []
        self.handle = 1000 + len(self.made)
        self.made.append(self)

    def __getattr__(self, name: str) -> Any:
        return lambda: self.calls.append(name)


# ---- options


def test_the_cuda_provider_is_told_every_choice() -> None:
    assert ort_gpu.cuda_options(1, RuntimeOptions()) == {
        "device_id": "1",
        "use_tf32": "0",
        "prefer_nhwc": "0",
        "enable_cuda_graph": "0",
    }
    quick = ort_gpu.cuda_options(1, RuntimeOptions(exhaustive_search=False))
    assert quick["cudnn_conv_algo_search"] == "HEURISTIC"
    assert ort_gpu.cuda_options(0, EVERYTHING) == {
        "device_id": "0",
        "use_tf32": "1",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "prefer_nhwc": "1",
        "enable_cuda_graph": "1",
    }


def test_the_tensorrt_provider_gets_precisions_shapes_and_a_folder() -> None:
    told = ort_gpu.tensorrt_options(2, EVERYTHING, folder="/engines", precisions=("fp16",))
    assert told["device_id"] == "2"
    assert (told["trt_fp16_enable"], told["trt_bf16_enable"], told["trt_int8_enable"]) == ("True", "False", "False")
    assert told["trt_engine_cache_path"] == told["trt_timing_cache_path"] == "/engines"
    assert [told[f"trt_profile_{b}_shapes"] for b in ("min", "opt", "max")] == ["x:1x3x8x8", "x:2x3x8x8", "x:4x3x8x8"]
    plain = ort_gpu.tensorrt_options(0, RuntimeOptions(), folder="/engines")
    assert plain["trt_fp16_enable"] == "False"
    assert not [name for name in plain if "profile" in name]
    two = {**SHAPES, "y": ShapeRange((1,), (1,), (1,))}
    assert ort_gpu.profile_text(two, "max") == "x:4x3x8x8,y:1"


def test_precisions_are_those_of_the_graph(tmp_path: Path) -> None:
    assert ort_gpu.graph_precisions(small_conv(tmp_path / "a.onnx")) == ()
    halves = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT),
    ]
    assert ort_gpu.graph_precisions(save(tmp_path / "b.onnx", halves, {}, channels=3)) == ("fp16",)
    conv = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)
    path = save(tmp_path / "c.onnx", [conv], {"w": weight(np.float16)}, element=TensorProto.FLOAT16)
    assert ort_gpu.graph_precisions(path) == ("fp16",)
    quantised = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    scale = {"s": np.float32(0.1), "z": np.int8(0)}
    assert ort_gpu.graph_precisions(save(tmp_path / "d.onnx", quantised, scale, channels=3)) == ("int8",)


STUBS = {
    # What the providers link, with nothing behind it; cuInit answers that there is no GPU.
    "libcuda.so.1": """
        int cuInit(unsigned flags) { return 100; }
        int cuTensorMapEncodeTiled(void) { return 100; }
        int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
        int cuGetProcAddress_v2(const char *n, void **p, int v, unsigned long f, int *s) { *p = 0; return 100; }
    """,
    "libcurand.so.10": "int unused;",
    "libnvonnxparser.so.10": "void *createNvOnnxParser_INTERNAL(void) { return 0; }"
    "void *createNvOnnxParserRefitter_INTERNAL(void) { return 0; }",
    "libnvinfer.so.10": """
        int getInferLibVersion(void) { return 101400; }
        void *createInferBuilder_INTERNAL(void) { return 0; }
        void *createInferRefitter_INTERNAL(void) { return 0; }
        void *createInferRuntime_INTERNAL(void) { return 0; }
        int initLibNvInferPlugins(void) { return 1; }
        static long zero(void) { return 0; }
        #define Z zero, zero, zero, zero, zero, zero, zero, zero
        static void *methods[] = {Z, Z, Z, Z, Z, Z, Z, Z};
        static void **registry = methods;
        void *getPluginRegistry(void) { return &registry; }
    """,
}
ASK = """
    import json, sys, onnxruntime as ort
    asked = json.load(sys.stdin)
    ort.preload_dlls()
    ort.set_default_logger_severity(4)
    answers = []
    for provider, options in asked["questions"]:
        try:
            ort.InferenceSession(asked["model"], providers=[(provider, options)], enable_fallback=0)
            answers.append("opened")
        except Exception as error:
            answers.append(str(error))
    print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def stub_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A driver without GPUs and an empty TensorRT, so that the providers load and parse their options."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler on Linux, to make stand-ins for the driver and TensorRT")
    if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("the installed ONNX Runtime has no NVIDIA providers")
    folder = tmp_path_factory.mktemp("stubs")
    for name, source in STUBS.items():
        (folder / "stub.c").write_text(textwrap.dedent(source))
        command = [compiler, "-w", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), "stub.c"]
        subprocess.run(command, check=True, cwd=folder, timeout=60)
    shutil.copy(folder / "libnvinfer.so.10", folder / "libnvinfer_plugin.so.10")
    return folder


def test_onnx_runtimes_own_parsers_accept_every_option(stub_libraries: Path, tmp_path: Path) -> None:
    """The providers parse their options before they look for a GPU: what they don't know they refuse by name."""
    cuda = [
        {name: value for name, value in ort_gpu.cuda_options(0, options).items() if name != "device_id"}
        for options in (RuntimeOptions(exhaustive_search=False), EVERYTHING)
    ]  # the check of device_id asks the driver
    cuda[0][ort_gpu.STREAM] = "94000000000000"
    tensorrt = [
        ort_gpu.tensorrt_options(0, options, folder=str(tmp_path), precisions=precisions)
        for options, precisions in ((RuntimeOptions(), ()), (EVERYTHING, ("fp16", "bf16", "int8")))
    ]
    wrong = [
        (ort_gpu.CUDA, {"use_tf33": "0"}),
        (ort_gpu.CUDA, {"cudnn_conv_algo_search": "THOROUGH"}),
        (ort_gpu.TENSORRT, {"trt_tf32_enable": "False"}),
        (ort_gpu.TENSORRT, {"trt_engine_cache_enable": "1"}),
    ]
    questions = [*((ort_gpu.CUDA, each) for each in cuda), *((ort_gpu.TENSORRT, each) for each in tensorrt), *wrong]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ASK)],
        input=json.dumps({"model": str(small_conv(tmp_path / "net.onnx")), "questions": questions}),
        env={**os.environ, "LD_LIBRARY_PATH": str(stub_libraries)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    for question, answer in zip(questions[:4], answers[:4], strict=True):
        assert "CUDA failure" in answer, (question, answer)  # past the options, at the missing GPU
        assert "option" not in answer.lower().replace("provider_options", ""), (question, answer)
    assert 'Unknown provider option: "use_tf33"' in answers[4]
    assert "Failed to map enum name to value: THOROUGH" in answers[5]
    assert "Invalid TensorRT EP option: trt_tf32_enable" in answers[6]
    assert "should be 'True' or 'False'" in answers[7]
    assert ort_gpu.cause(answers[4]) == "this version of ONNX Runtime has no option 'use_tf33'"
    assert ort_gpu.cause(answers[6]) == "this version of ONNX Runtime has no option 'trt_tf32_enable'"
    assert str(ort_gpu.cause(answers[0])).startswith("CUDA failure ")


# ---- TF32


def test_the_environment_must_not_overrule_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(nvidia.TF32_VARIABLE, raising=False)
    nvidia.check_tf32_override(True)
    nvidia.check_tf32_override(False)
    for value, agreed in (("0", False), ("1", True)):
        monkeypatch.setenv(nvidia.TF32_VARIABLE, value)
        nvidia.check_tf32_override(agreed)
        with pytest.raises(UsageError, match=f"NVIDIA_TF32_OVERRIDE={value} in the environment overrules"):
            nvidia.check_tf32_override(not agreed)


@pytest.mark.usefixtures("gpu")
def test_tf32_of_the_tensorrt_provider_is_settled_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (None, "0"):
        if before is not None:
            monkeypatch.setenv(nvidia.TF32_VARIABLE, before)
        ort_gpu.settle_tf32(False)
        ort_gpu.settle_tf32(False)
        assert os.environ[nvidia.TF32_VARIABLE] == "0"
        with pytest.raises(RuntimeUnavailable, match="was opened without TF32 in this process"):
            ort_gpu.settle_tf32(True)
        ort_gpu.release_tf32()
        assert os.environ[nvidia.TF32_VARIABLE] == "0"
        ort_gpu.release_tf32()
        assert os.environ.get(nvidia.TF32_VARIABLE) == before


# ---- libraries


PRINTED = """Failed to load /site/nvidia/cu13/lib/libcublas.so.13: cannot open
Failed to load libcurand.so.10: libcurand.so.10: cannot open shared object file: No such file or directory
Failed to load libcurand.so.10: again
Please follow https://onnxruntime.ai/docs/install/#cuda-and-cudnn to install CUDA.
"""


def test_missing_cuda_libraries_are_named_with_the_fix() -> None:
    assert ort_gpu.missing_libraries(PRINTED) == ("libcurand.so.10",)  # libcublas was then found by its name
    assert ort_gpu.missing_libraries("") == ()
    ort_gpu.check_libraries((), runtime="ort-cuda")
    with pytest.raises(RuntimeUnavailable, match=r"needs the CUDA libraries libcurand\.so\.10") as refusal:
        ort_gpu.check_libraries(("libcurand.so.10",), runtime="ort-cuda")
    assert refusal.value.fix == "pip install 'resnet-onnx[cuda]'"


def test_preloading_says_nothing_and_finds_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    missing = ort_gpu.preload(onnxruntime)
    assert capsys.readouterr().out == ""
    if ort_gpu.needed_cuda(onnxruntime) and sys.platform.startswith("linux"):
        assert all(name.startswith("lib") and ".so" in name for name in missing)
        curand = environment.package_version("nvidia-curand", "nvidia-curand-cu12")
        assert ("libcurand.so.10" in missing) <= (curand is None)


def test_the_tensorrt_that_onnx_runtime_links_is_read_from_its_provider() -> None:
    if ort_gpu.TENSORRT not in onnxruntime.get_available_providers():
        pytest.skip("the installed ONNX Runtime has no TensorRT provider")
    assert ort_gpu.needed_tensorrt(onnxruntime) in (10, 11)
    assert ort_gpu.needed_cuda(onnxruntime) in (12, 13)


def test_another_major_version_of_tensorrt_is_refused() -> None:
    ort_gpu.check_tensorrt("10.14.1.48", 10, ort_version="1.31.1")
    ort_gpu.check_tensorrt("11.0", None, ort_version="1.31.1")
    with pytest.raises(RuntimeUnavailable, match=r"links TensorRT 10, and TensorRT 11\.0\.2 is installed") as refusal:
        ort_gpu.check_tensorrt("11.0.2", 10, ort_version="1.31.1")
    assert "tensorrt-cu13>=10,<11" in (refusal.value.fix or "")


def test_probing_goes_from_the_driver_to_the_libraries(gpu: nvidia.Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_gpu, "preload", lambda library: ("libcudnn.so.9",))
    answer = registry.probe("ort-cuda", device="cuda:0")
    assert not answer.available
    assert "libcudnn.so.9" in answer.reason
    monkeypatch.setattr(ort_gpu, "preload", lambda library: ())
    answer = registry.probe("ort-cuda")
    assert (answer.available, answer.devices) == (True, (str(gpu),))
    assert "no device cuda:1" in registry.probe("ort-cuda", device="cuda:1").reason
    monkeypatch.setattr(nvidia, "gpus", lambda **words: (replace(gpu, cuda=(12, 4)),))
    assert "serves CUDA 12.4, the installed library needs CUDA 13" in registry.probe("ort-cuda").reason


# ---- where nodes went


def test_a_provider_that_does_not_start_is_no_reason_to_run_on_the_cpu(gpu: nvidia.Gpu, tmp_path: Path) -> None:
    """For real: there is no driver here, so that ONNX Runtime drops the provider without a word."""
    if nvidia.CUDA_DRIVER in os.environ.get("LD_PRELOAD", "") or shutil.which("nvidia-smi"):
        pytest.skip("this machine may have a GPU")
    if ort_gpu.CUDA not in onnxruntime.get_available_providers():
        pytest.skip("the installed ONNX Runtime has no NVIDIA providers")
    source = ModelSource(path=small_conv(tmp_path / "net.onnx"))
    with pytest.raises(RuntimeUnavailable, match="could not start CUDAExecutionProvider"):
        ort.OrtCudaRuntime(source, device="cuda:0", options=RuntimeOptions())


def placed(*providers: str) -> list[NodePlacement]:
    return [NodePlacement(f"node{i}", "Conv", provider, "") for i, provider in enumerate(providers)]


def test_nodes_on_the_cpu_are_named() -> None:
    check = ort_gpu.check_placement
    check(placed(ort_gpu.TENSORRT, ort_gpu.CUDA), ort_gpu.TENSORRT, runtime="ort-tensorrt", model="m")
    check([], ort_gpu.TENSORRT, runtime="ort-tensorrt", model="m")
    rows = placed(ort_gpu.CUDA, *[ort_gpu.CPU] * 5)
    with pytest.raises(UnsupportedModel, match=r"no kernel for 5 of the 6 nodes of m: node1 \(Conv\), .* and 2 more"):
        check(rows, ort_gpu.CUDA, runtime="ort-cuda", model="m")
    with pytest.raises(UnsupportedModel, match="took none of the 2 nodes of m; all went to CUDAExecutionProvider"):
        check(placed(ort_gpu.CUDA, ort_gpu.CUDA), ort_gpu.TENSORRT, runtime="ort-tensorrt", model="m")


class Session:
    """What the adapter asks of a session; the one that may not use the CPU refuses, as the real one does."""

    opened: ClassVar[list[tuple[Any, ...]]] = []

    def __init__(self, path: str, settings: Any, providers: Any, enable_fallback: int) -> None:
        strict = settings.get_session_config_entry("session.disable_cpu_ep_fallback") if _has(settings) else "0"
        Session.opened.append((strict, providers, enable_fallback))
        if strict == "1":
            raise RuntimeError("nodes assigned to the default CPU EP, but fallback to CPU EP has been disabled")

    def get_providers(self) -> list[str]:
        return [ort_gpu.CUDA, ort_gpu.CPU]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        node = SimpleNamespace(name="pool", op_type="MaxUnpool")
        return [SimpleNamespace(ep_name=ort_gpu.CPU, get_nodes=lambda: [node])]


class SmallConvSession(Session):
    """That of ``small_conv``."""

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="x", type="tensor(float)", shape=["batch", 3, 8, 8])]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="y", type="tensor(float)", shape=["batch", 4, 8, 8])]


def _has(settings: Any) -> bool:
    try:
        settings.get_session_config_entry("session.disable_cpu_ep_fallback")
    except Exception:
        return False
    return True


@pytest.mark.usefixtures("gpu")
def test_a_session_that_would_use_the_cpu_is_asked_which_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Session.opened = []
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(ort_gpu, "preload", lambda library: ())
    source = ModelSource(path=small_conv(tmp_path / "net.onnx"), label="net")
    with pytest.raises(UnsupportedModel, match=r"no kernel for 1 of the 1 nodes of net: pool \(MaxUnpool\)"):
        ort.OrtCudaRuntime(source, device="cuda:1", options=RuntimeOptions())
    stream = LoggedStream.made[-1]
    told = {**ort_gpu.cuda_options(1, RuntimeOptions()), ort_gpu.STREAM: str(stream.handle)}
    assert Session.opened == [("1", [(ort_gpu.CUDA, told)], 0), ("0", [(ort_gpu.CUDA, told)], 0)]
    assert (stream.device, stream.calls) == ("cuda:1", ["close"])


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("CUDA failure 35: CUDA driver version is insufficient ; GPU=0", RuntimeUnavailable, "CUDA failure 35: CUDA"),
        ("CUDA failure 2: out of memory ; GPU=0", OutOfMemory, "does not fit"),
        ("bfc_arena: Failed to allocate memory for requested buffer of size 9", OutOfMemory, "does not fit"),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", OutOfMemory, "does not fit"),
        ("CUDNN failure 3000: CUDNN_STATUS_NOT_SUPPORTED ; GPU=0", RuntimeUnavailable, "CUDNN failure 3000"),
        ("Please install TensorRT libraries as mentioned", RuntimeUnavailable, "can't load the TensorRT libraries"),
        ("Could not find an implementation for MaxUnpool(11) node", UnsupportedModel, "operator MaxUnpool"),
    ],
)
def test_what_onnx_runtime_says_of_the_gpu_becomes_one_error(
    gpu: nvidia.Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, kind: type[ToolkitError], words: str
) -> None:
    def refuse(*args: Any, **more: Any) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    monkeypatch.setattr(ort_gpu, "preload", lambda library: ())
    source = ModelSource(path=small_conv(tmp_path / "net.onnx"))
    with pytest.raises(kind, match=words):
        ort.OrtCudaRuntime(source, device="cuda:0", options=RuntimeOptions())


# ---- ONNX Runtime's engine cache under our key


def key_of(model: Path, **changes: Any) -> str:
    options = changes.pop("options", RuntimeOptions(shapes=SHAPES))
    given = {
        "provider_options": ort_gpu.tensorrt_options(0, options, folder="/anywhere"),
        "ort_version": "1.31.1",
        "tensorrt_version": "10.14",
        "gpu": A6000,
        **changes,
    }
    return ort_gpu.engine_key(onnx_gate.check_onnx(model), options=options, **given)


def test_everything_that_changes_an_engine_changes_its_folder(tmp_path: Path) -> None:
    """Equal graph names with other shapes or weights collide in ONNX Runtime's own key (onnxruntime#32254)."""
    model = small_conv(tmp_path / "net.onnx", graph_name="main")
    other_shape = small_conv(tmp_path / "shape.onnx", graph_name="main", side=16)
    conv = helper.make_node("Conv", ["x", "w"], ["y"], name="conv1", pads=[1] * 4)
    other_weights = save(tmp_path / "weights.onnx", [conv], {"w": 2 * weight()}, graph_name="main")
    wide = {"x": ShapeRange((1, 3, 8, 8), (2, 3, 8, 8), (9, 3, 8, 8))}
    keys = [
        key_of(model),
        key_of(other_shape),
        key_of(other_weights),
        key_of(model, options=RuntimeOptions(shapes=wide)),
        key_of(model, options=RuntimeOptions()),
        key_of(model, options=RuntimeOptions(shapes=SHAPES, tf32=True)),
        key_of(model, ort_version="1.32"),
        key_of(model, tensorrt_version="10.15"),
        key_of(model, gpu=replace(A6000, compute_capability=(8, 9))),
        key_of(model, gpu=replace(A6000, name="RTX A4000")),
    ]
    assert len(set(keys)) == len(keys)
    elsewhere = ort_gpu.tensorrt_options(1, RuntimeOptions(shapes=SHAPES), folder="/elsewhere")
    assert key_of(model, provider_options=elsewhere) == keys[0]  # where it lies and which of two equal GPUs: no matter


def test_a_changed_or_foreign_engine_in_the_folder_is_thrown_away(cache: Path) -> None:
    def build(name: str = "graph_sm86.engine", content: bytes = b"engine") -> list[str]:
        with ort_gpu.engine_folder("ab" * 32) as folder:
            before = sorted(p.name for p in folder.iterdir() if p.name != "seal.json")
            if not before:
                (folder / name).write_bytes(content)
        return before

    folder = cache / "ort-tensorrt" / ("ab" * 32)
    assert build() == []
    assert build() == ["graph_sm86.engine"]
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "graph_sm86.engine").write_bytes(b"enginE")
    assert build() == []
    assert build() == ["graph_sm86.engine"]
    (folder / "planted.engine").write_bytes(b"code")
    assert build() == []
    (folder / "seal.json").write_text("not JSON")
    assert build() == []
    os.symlink(__file__, folder / "link.engine")
    assert build() == []
    with pytest.raises(ZeroDivisionError):
        fail_half_way("ab" * 32)
    assert build() == []


def fail_half_way(key: str) -> None:
    with ort_gpu.engine_folder(key) as folder:
        (folder / "half.engine").write_bytes(b"half")
        raise ZeroDivisionError


def test_folders_unused_for_longest_are_pruned_first(cache: Path) -> None:
    for index, key in enumerate(("aa", "bb", "cc")):
        with ort_gpu.engine_folder(key * 32) as folder:
            (folder / "x.engine").write_bytes(b"0" * 1000)
        os.utime(folder, (1000 + index, 1000 + index))
    assert [row.path.name[:2] for row in ort_gpu.list_folders()] == ["cc", "bb", "aa"]
    size = ort_gpu.list_folders()[0].size_bytes
    assert size > 1000
    removed = ort_gpu.prune_folders(2 * size)
    assert [row.path.name[:2] for row in removed] == ["aa"]
    with ort_gpu.engine_folder("bb" * 32):  # in use
        assert [row.path.name[:2] for row in ort_gpu.prune_folders(0)] == ["cc"]
    assert [row.path.name[:2] for row in ort_gpu.prune_folders(0)] == ["bb"]


@pytest.mark.usefixtures("gpu", "cache")
def test_the_tensorrt_provider_is_opened_over_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of opening on stand-ins for the library: both providers, TF32 off, shapes checked, folder sealed."""
    opened: list[Any] = []

    class Engine(SmallConvSession):
        def __init__(self, path: str, settings: Any, providers: Any, enable_fallback: int) -> None:
            opened.append(dict(providers))
            Path(opened[-1][ort_gpu.TENSORRT]["trt_engine_cache_path"], "made.engine").write_bytes(b"engine")

        def get_providers(self) -> list[str]:
            return [ort_gpu.TENSORRT, ort_gpu.CUDA]

        def get_provider_graph_assignment_info(self) -> list[Any]:
            nodes = [SimpleNamespace(name="conv1", op_type="Conv")]
            return [SimpleNamespace(ep_name=ort_gpu.TENSORRT, get_nodes=lambda: nodes)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Engine)
    monkeypatch.setattr(ort_gpu, "preload", lambda library: ())
    monkeypatch.setattr(ort, "load_library", fake_tensorrt_library(ort.load_library))
    source = ModelSource(path=small_conv(tmp_path / "net.onnx"))
    with ort.OrtTensorRTRuntime(source, device="cuda:0", options=RuntimeOptions(shapes=SHAPES)) as runtime:
        (told,) = opened
        assert list(told) == [ort_gpu.TENSORRT, ort_gpu.CUDA]
        assert told[ort_gpu.CUDA]["use_tf32"] == "0"
        assert os.environ[nvidia.TF32_VARIABLE] == "0"
        folder = Path(told[ort_gpu.TENSORRT]["trt_engine_cache_path"])
        assert folder.parent == files.cache_root() / "ort-tensorrt"
        assert folder.name == runtime.recorded["engine"]
        assert ort_gpu.is_sealed(folder)
        assert [(row.node, row.provider, row.device) for row in runtime.placement()] == [
            ("conv1", ort_gpu.TENSORRT, "cuda:0")
        ]
        with pytest.raises(BadFeeds, match="built for 1×3×8×8 up to 4×3×8×8"):
            runtime.run({"x": np.zeros((5, 3, 8, 8), np.float32)})
        (folder / "later.engine").write_bytes(b"built while it ran")
    assert ort_gpu.is_sealed(folder)
    assert nvidia.TF32_VARIABLE not in os.environ
    opened.clear()
    several = RuntimeOptions(shapes=SHAPES, streams=2)
    with ort.OrtTensorRTRuntime(source, device="cuda:0", options=several) as runtime:
        assert len(opened) == runtime.recorded["sessions"] == 2  # the provider runs one at a time in a session
    with pytest.raises(UnsupportedModel, match="one CUDA graph for every batch"):
        ort.OrtTensorRTRuntime(source, device="cuda:0", options=RuntimeOptions(shapes=SHAPES, cuda_graph=True))


@pytest.mark.usefixtures("gpu", "cache")
def test_the_cuda_provider_replays_graphs_in_one_stream_on_the_device_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Opened(SmallConvSession):
        def __init__(self, path: str, settings: Any, providers: Any, enable_fallback: int) -> None: ...

        def get_providers(self) -> list[str]:
            return [ort_gpu.CUDA]

        def get_provider_graph_assignment_info(self) -> list[Any]:
            return []

    monkeypatch.setattr(onnxruntime, "InferenceSession", Opened)
    monkeypatch.setattr(ort_gpu, "preload", lambda library: ())
    source = ModelSource(path=small_conv(tmp_path / "net.onnx"))
    feeds = {"x": np.zeros((1, 3, 8, 8), np.float32)}
    with pytest.raises(UnsupportedModel, match="from one thread only, not in 2 streams"):
        ort.OrtCudaRuntime(source, device="cuda:0", options=RuntimeOptions(cuda_graph=True, streams=2))
    for streams in (None, 1):
        options = RuntimeOptions(cuda_graph=True, streams=streams)
        with ort.OrtCudaRuntime(source, device="cuda:0", options=options) as runtime:
            assert runtime.streams == 1
            with pytest.raises(UnsupportedModel, match="not end to end"):
                runtime.prepare(feeds, scope="end-to-end")
            with pytest.raises(UnsupportedModel, match="no profiler"):
                runtime.profile(feeds)


class EarlySession:
    """Runs on ONNX Runtime's CPU provider, and notes what it was told: nothing waits for a device that is not there."""

    real = onnxruntime.InferenceSession
    made: ClassVar[list[EarlySession]] = []

    def __init__(self, path: str, settings: Any, providers: Any, enable_fallback: int) -> None:
        self.inner = self.real(path, providers=["CPUExecutionProvider"])
        self.told, self.runs = dict(providers)[ort_gpu.CUDA], []
        self.made.append(self)

    def get_providers(self) -> list[str]:
        return [ort_gpu.CUDA]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return []

    def run(self, names: Any, feeds: Any, options: Any) -> Any:
        return self.inner.run(names, feeds)

    def io_binding(self) -> Any:
        self.binding = self.inner.io_binding()
        self.binding.synchronize_outputs = pytest.fail  # it waits for all streams of the device
        return self.binding

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        found = {}
        for name in (ort_gpu.RETURN_EARLY, ort_gpu.GRAPH_ID) if options is not None else ():
            with contextlib.suppress(Exception):
                found[name] = options.get_run_config_entry(name)
        early = ort_gpu.RETURN_EARLY in found
        self.runs.append((found, [value.data_ptr() for value in binding.get_outputs()] if early else []))
        self.inner.run_with_iobinding(binding)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_streams_of_the_cuda_provider_wait_for_themselves_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda_graph: bool
) -> None:
    """A session and a stream for each; runs return early into outputs that stay where they are."""
    monkeypatch.setattr(onnxruntime, "InferenceSession", EarlySession)
    monkeypatch.setattr(ort_gpu, "preload", lambda library: ())
    monkeypatch.setattr(ort.OrtCudaRuntime, "_memory", lambda runtime: ("cpu", 0))
    EarlySession.made, LoggedStream.made = [], []
    source = ModelSource(path=small_conv(tmp_path / "net.onnx"))
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    streams = 1 if cuda_graph else 2
    with ort.OrtCudaRuntime(
        source, device="cuda:0", options=RuntimeOptions(streams=streams, cuda_graph=cuda_graph)
    ) as runtime:
        assert [s.told[ort_gpu.STREAM] for s in EarlySession.made] == [str(s.handle) for s in LoggedStream.made]
        assert len(LoggedStream.made) == runtime.recorded["sessions"] == streams
        assert ort_gpu.STREAM not in runtime.recorded["provider_options"]
        expected = runtime.run(feeds)["y"]
        lanes = [runtime.prepare(feeds) for _ in range(streams)]
        for lane, session, stream in zip(lanes, EarlySession.made, LoggedStream.made, strict=True):
            assert lane.returns_early
            stream.calls.clear()
            for _ in range(3):
                lane.enqueue()
            assert stream.calls == []
            lane.synchronize()
            assert stream.calls == ["synchronize"]
            np.testing.assert_array_equal(lane.outputs()["y"], expected)
            (first, _), *later = session.runs
            assert first == ({ort_gpu.GRAPH_ID: "-1"} if cuda_graph else {})
            graph = {ort_gpu.GRAPH_ID: "1"} if cuda_graph else {}
            assert [told for told, _ in later] == [{ort_gpu.RETURN_EARLY: "1", **graph}] * 3
            ours = [value.data_ptr() for value in lane._results]
            assert [where for _, where in later] == [ours] * 3
    assert all(stream.calls[-1] == "close" for stream in LoggedStream.made)


def test_a_missing_cudnn_is_told_as_that(monkeypatch: pytest.MonkeyPatch, gpu: nvidia.Gpu, tmp_path: Path) -> None:
    """``preload_dlls`` says nothing of it, and ONNX Runtime blames the model's first convolution."""
    loaded = ort_gpu.ctypes.CDLL

    def load(name: str, *more: Any, **words: Any) -> Any:
        if name == ort_gpu.CUDNN:
            raise OSError(f"{name}: cannot open shared object file")
        return loaded(name, *more, **words)

    monkeypatch.setattr(ort_gpu.ctypes, "CDLL", load)
    if ort_gpu.needed_cuda(onnxruntime):
        assert ort_gpu.CUDNN in ort_gpu.preload(onnxruntime)

    def refuse(*args: Any, **more: Any) -> None:
        raise RuntimeError("NOT_IMPLEMENTED : Could not find an implementation for Conv(11) node with name 'conv1'")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    monkeypatch.setattr(ort_gpu, "preload", lambda library: (ort_gpu.CUDNN,))
    source = ModelSource(path=small_conv(tmp_path / "net.onnx"))
    with pytest.raises(RuntimeUnavailable, match=f"needs the CUDA libraries {ort_gpu.CUDNN}") as refusal:
        ort.OrtCudaRuntime(source, device="cuda:0", options=RuntimeOptions())
    assert refusal.value.fix == "pip install 'resnet-onnx[cuda]'"
    assert ort_gpu.cause("libcudnn.so.9: cannot open shared object file") == "the library libcudnn.so.9 can't be loaded"


def fake_tensorrt_library(real: Any) -> Any:
    def load(module: str, **words: Any) -> Any:
        return SimpleNamespace(__version__="10.14.1") if module == "tensorrt" else real(module, **words)

    return load


# ---- torch


@pytest.mark.parametrize(
    ("built_for", "capability", "expected"),
    [
        (["sm_75", "sm_86"], (8, 9), True),  # machine code runs on a later minor version
        (["sm_75", "sm_86"], (9, 0), False),
        (["sm_75", "compute_80"], (12, 0), True),  # PTX is compiled for what came later
        (["sm_80", "sm_90a"], (7, 5), False),
        (["sm_100", "sm_120"], (12, 1), True),
        (["sm_120"], (10, 0), False),
        ([], (8, 6), False),
    ],
)
def test_a_build_of_torch_runs_where_it_has_kernels(
    built_for: list[str], capability: tuple[int, int], expected: bool
) -> None:
    assert pytorch.has_kernels(built_for, capability) is expected


def test_a_build_of_torch_that_does_not_fit_the_gpu_is_named() -> None:
    def build(cuda: str | None, *architectures: str) -> Any:
        return SimpleNamespace(
            __version__="2.15",
            version=SimpleNamespace(cuda=cuda),
            cuda=SimpleNamespace(get_arch_list=lambda: list(architectures), device_count=lambda: 1),
        )

    pytorch.check_build(build("13.2", "sm_80", "sm_86"), A6000)
    blind = build("13.2", "sm_80")
    blind.cuda.device_count = lambda: 0
    for torch, words in (
        (build(None), "is a build for the CPU alone"),
        (build("14.0", "sm_86"), "needs CUDA 14"),
        (build("13.2", "sm_90"), r"built for sm_90, and cuda:0 is .* \(sm86\)"),
        (blind, "sees 0 GPUs and so no cuda:0"),
    ):
        with pytest.raises(RuntimeUnavailable, match=words):
            pytorch.check_build(torch, A6000)


def program() -> TorchProgram:
    import torch

    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 5),
    )
    inputs = (TensorSpec("x", np.dtype(np.float32), ("batch", 3, 16, 16)),)
    outputs = (TensorSpec("y", np.dtype(np.float32), ("batch", 5)),)
    return TorchProgram(module=module, inputs=inputs, outputs=outputs)


def run_torch(**options: Any) -> tuple[np.ndarray, dict[str, Any]]:
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)}
    source = ModelSource(factory=f"{__name__}:program")
    with open_runtime("torch", source, options=RuntimeOptions(threads=1, **options)) as runtime:
        with runtime.prepare(feeds) as prepared:
            prepared.enqueue()
            np.testing.assert_array_equal(prepared.outputs()["y"], runtime.run(feeds)["y"])
        return runtime.run(feeds)["y"], dict(runtime.recorded)


def test_channels_last_and_autocast_do_what_they_say_and_are_recorded() -> None:
    plain, recorded = run_torch()
    assert (recorded["memory_format"], recorded["autocast"], recorded["cuda_graph"]) == ("contiguous", False, False)
    last, recorded = run_torch(channels_last=True)
    assert recorded["memory_format"] == "channels_last"
    np.testing.assert_allclose(last, plain, rtol=1e-4, atol=1e-6)
    narrow, recorded = run_torch(autocast="bf16")
    assert recorded["autocast"] == "bf16"
    assert narrow.dtype == np.float32
    error = np.abs(narrow - plain).max() / np.abs(plain).max()
    assert 1e-4 < error < 5e-2  # bfloat16 has 8 bits
    with pytest.raises(UsageError, match="autocast is bf16 or fp16, not 'int8'"):
        RuntimeOptions(autocast="int8")  # type: ignore[arg-type]


class FakeCuda:
    """torch.cuda on the CPU: streams that do nothing, and a graph that repeats what was run while it was captured."""

    def __init__(self) -> None:
        self.synchronized = 0
        self.replays = 0
        self.body: Any = None

    def Stream(self, device: str) -> Any:  # noqa: N802
        return SimpleNamespace(synchronize=lambda: setattr(self, "synchronized", self.synchronized + 1))

    def CUDAGraph(self) -> Any:  # noqa: N802
        return SimpleNamespace(replay=self._replay)

    def _replay(self) -> None:
        import torch

        self.replays += 1
        prepared = self.body
        with torch.inference_mode():
            for kept, new in zip(prepared._results, prepared._runtime._forward(prepared._inputs), strict=True):
                kept.copy_(new)

    def synchronize(self, device: str) -> None:
        self.synchronized += 1

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Any:
        yield

    device = stream

    @contextlib.contextmanager
    def graph(self, graph: Any, stream: Any) -> Any:
        yield


@pytest.mark.parametrize("scope", ["device", "end-to-end"])
@pytest.mark.parametrize("kind", [pytorch._PreparedStream, pytorch._PreparedGraph])
def test_the_steps_of_a_cuda_run_give_what_run_gives(kind: Any, scope: Any) -> None:
    """The CUDA half of torch is a stand-in: this shows the order of the steps, not that a GPU takes them."""
    import torch

    cuda = FakeCuda()
    feeds = {"x": np.random.default_rng(1).standard_normal((4, 3, 16, 16)).astype(np.float32)}
    with open_runtime(
        "torch", ModelSource(factory=f"{__name__}:program"), options=RuntimeOptions(threads=1)
    ) as runtime:
        assert isinstance(runtime, pytorch.TorchRuntime)
        expected = runtime.run(feeds)["y"]
        runtime._torch = type("Torch", (), {"__getattr__": lambda self, name: getattr(torch, name)})()
        runtime._torch.cuda = cuda
        with kind(runtime, feeds, scope) as prepared:
            cuda.body = prepared
            for _ in range(3):
                prepared.enqueue()
            np.testing.assert_array_equal(prepared.outputs()["y"], expected)
            if scope == "end-to-end":
                feeds["x"] *= -1
                prepared.enqueue()
                changed = prepared.outputs()["y"]
                np.testing.assert_array_equal(changed, runtime.run(feeds)["y"])
                assert not np.array_equal(changed, expected)
    assert cuda.replays == (0 if kind is pytorch._PreparedStream else 3 + (scope == "end-to-end"))
    assert cuda.synchronized > 0
