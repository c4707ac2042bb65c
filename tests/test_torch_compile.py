"""torch.compile as a runtime: what is checked before anything is compiled, and, with a compiler, the whole contract."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest
import torch

from converters.torch_compile import Compilation, build_package
from resnet_onnx.cli.main import main
from runtimes import engines, files, registry, torch_compile
from runtimes.base import Runtime
from runtimes.errors import BadFeeds, BadModel, RuntimeUnavailable, UnsupportedModel, UsageError
from runtimes.spec import ModelSource, RuntimeOptions, ShapeRange, TensorSpec, TorchProgram
from runtimes.testing import CASES, RuntimeContract, assert_matches
from runtimes.torch_compile import TorchCompileRuntime

ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = RuntimeOptions(threads=1)


def record(**changes: Any) -> engines.Engine:
    """A package that holds no code, as this machine and this torch would have compiled it."""
    options = {"threads": 1, "channels_last": False, "autocast": "", "compile_mode": "default", "batches": "",
               "device": "cpu", "compiler": "g++"}  # fmt: skip
    known = {
        "model_sha256": "0" * 64,
        "profile": {"x": ShapeRange((1, 4), (8, 4), (64, 4))},
        "precision": "fp32",
        "tf32": False,
        "library": "torch-compile",
        "library_version": str(torch.__version__),
        "target": torch_compile.target_here("cpu"),
        "options": options,
    }
    key = engines.EngineKey(**{**known, **changes})
    return engines.find_or_build(key, lambda: (b"not code", engines.Engine(key=key, dimensions={"x": ("batch", 4)})))


# ---- without compiling ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"library_version": "2.0.0"}, "compiled by torch 2.0.0"),
        ({"target": "x86_64 avx2 avx1024"}, "a processor with .*avx1024, which this one lacks"),
        ({"target": "riscv64"}, "compiled for riscv64"),
    ],
)
def test_a_package_of_another_torch_or_processor_is_refused(changes: Mapping[str, str], words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        TorchCompileRuntime(ModelSource(path=record(**changes).path), device="cpu", options=ONE_THREAD)


def test_a_package_from_elsewhere_is_opened_only_where_it_is_trusted(tmp_path: Path) -> None:
    copy = engines.copy_engine(record(), tmp_path / "net.pt2")
    with pytest.raises(BadModel, match="an engine is code"):
        TorchCompileRuntime(ModelSource(path=copy), device="cpu", options=ONE_THREAD)
    engines.record_path(copy).unlink()
    with pytest.raises(BadModel, match="no record"):
        TorchCompileRuntime(ModelSource(path=copy), device="cpu", options=RuntimeOptions(threads=1, trust_engine=True))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "none", "is not installed"),
        (lambda folder: _script(folder / "cxx", "echo 'x.cpp:1: fatal error: Python.h: no such file' >&2; exit 1"),
         "can't compile for torch.compile: .*Python.h"),
    ],
)  # fmt: skip
def test_without_a_compiler_the_runtime_is_unavailable(
    make: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(make(tmp_path)))
    answer = registry.probe("torch-compile")
    assert not answer.available
    assert "g++" in str(answer.fix)
    with pytest.raises(RuntimeUnavailable, match=words):
        registry.require("torch-compile")
    for command in ("bench", "build"):
        assert main([command, "cifar-resnet20", "--runtime", "torch-compile"]) == 3


def _script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--runtime", "torch-compile", "--shapes", "input:1x3x32x32,1x3x32x32,1x3x32x32"], "--shapes is for engines"),
        (["--runtime", "torch-compile", "-o", "net.engine"], "--output net.pt2"),
        (["--runtime", "tensorrt-rtx", "--autocast", "bf16"], "--autocast is for torch-compile"),
        (["--runtime", "ort-cpu", "--compile-mode", "max-autotune"], "--compile-mode"),
    ],
)
def test_build_refuses_options_of_another_runtime(
    arguments: list[str], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "cifar-resnet20", *arguments]) == 2
    assert words in capfd.readouterr().err


def test_all_leaves_it_out_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from resnet_onnx import workflow

    here = _script(files.cache_dir("test") / "cxx", "exit 0")
    monkeypatch.setenv("CXX", str(here))
    names = registry.parse_names("all")
    assert "torch-compile" not in names
    assert "torch-compile" in registry.parse_names("all,torch-compile")
    model = workflow.resolve(workflow.Request(model="cifar-resnet20"))
    _, notes = workflow.runnable(model, names, chosen_by_all=True)
    assert [note for note in notes if note.startswith("torch-compile (compiling takes tens of seconds")]
    _, notes = workflow.runnable(model, [*names, "torch-compile"], chosen_by_all=True)
    assert not [note for note in notes if note.startswith("torch-compile")]


def test_what_a_killed_builder_left_is_removed() -> None:
    engine = record(target=f"{torch_compile.target_here('cpu')} ")
    left = engines.workplace(engine.key)
    left.mkdir()
    (left / "kernel.cpp").write_text("")
    engines.prune_engines(10**12)
    assert not left.exists()
    assert engine.path.exists()


# ---- with a compiler ------------------------------------------------------------------------------------------------


@pytest.mark.compiler
class TestTorchCompile(RuntimeContract):
    runtime: ClassVar[type[Runtime]] = TorchCompileRuntime
    unsupported = MappingProxyType({"fragile": "a package accepts every shape that it was compiled for"})

    def _open(self, case: str, options: RuntimeOptions | None = None) -> Runtime:
        """Threads and streams are what a package is compiled for."""
        if case in self.unsupported:
            pytest.skip(self.unsupported[case])
        options = options or ONE_THREAD
        built = build_package(job(case, options=options))
        return TorchCompileRuntime(ModelSource(path=built.path, label=case), device="cpu", options=options)


def job(case: str, **changes: Any) -> Compilation:
    source = ModelSource(factory="test_runtime_contract:torch_program", arguments={"case": case}, label=case)
    return Compilation(**{"source": source, "identity": case, "options": ONE_THREAD, **changes})


class OnlySmall(torch.nn.Module):
    """Refuses to be captured with an open batch: it asks how large it is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.shape[0] < 4 else x - 1


def only_small() -> TorchProgram:
    specs = (TensorSpec("x", np.dtype(np.float32), ("batch", 4)),)
    return TorchProgram(module=OnlySmall(), inputs=specs, outputs=(TensorSpec("y", *_rest(specs[0])),))


def _rest(spec: TensorSpec) -> tuple[Any, ...]:
    return spec.dtype, spec.shape


@pytest.mark.compiler
def test_threads_are_those_that_it_was_compiled_for() -> None:
    built = build_package(job("several"))
    with pytest.raises(UsageError, match="compiled for 1 threads to a stream, not for 2 threads over 1 streams"):
        TorchCompileRuntime(ModelSource(path=built.path), device="cpu", options=RuntimeOptions(threads=2))


@pytest.mark.compiler
def test_a_batch_that_can_not_be_left_open_is_compiled_for_each() -> None:
    source = ModelSource(factory=f"{__name__}:only_small", label="only small")
    built = build_package(Compilation(source=source, identity="only small", options=ONE_THREAD, batches=(8, 1)))
    with TorchCompileRuntime(ModelSource(path=built.path), device="cpu", options=ONE_THREAD) as runtime:
        assert runtime.recorded["batches"] == [1, 8]
        for batch, change in ((1, 1), (8, -1)):
            x = np.arange(batch * 4, dtype=np.float32).reshape(batch, 4)
            np.testing.assert_array_equal(runtime.run({"x": x})["y"], x + change)
        with pytest.raises(BadFeeds, match="compiled for batches of 1, 8, not of 2"):
            runtime.run({"x": np.zeros((2, 4), np.float32)})


@pytest.mark.compiler
@pytest.mark.parametrize("autocast", ["bf16", "fp16"])
def test_autocast_narrows_products_and_nothing_else(autocast: str) -> None:
    options = RuntimeOptions(threads=1, autocast=autocast, channels_last=True)  # type: ignore[arg-type]
    built = build_package(job("convolution", options=options))
    case = CASES["convolution"]
    feeds = case.feeds(5)
    with TorchCompileRuntime(ModelSource(path=built.path), device="cpu", options=options) as runtime:
        found = runtime.run(feeds)["y"]
        assert runtime.recorded["autocast"] == autocast
        assert runtime.recorded["memory_format"] == "channels_last"
    exact = case.compute(feeds)["y"]
    assert found.dtype == np.float32
    distance = float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    assert 1e-5 < distance < (2e-2 if autocast == "bf16" else 2e-3), distance
    assert built.metadata["precision"] == autocast


BUILD = """
import sys
from test_torch_compile import job
from converters.torch_compile import build_package
built = build_package(job(sys.argv[1]))
print(built.cached, built.path)
"""


def _build(case: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, case], stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESNET_ONNX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.compiler
def test_of_two_processes_at_once_one_compiles_and_no_compiler_stays(own_cache: Path) -> None:
    both = [_build("several") for _ in range(2)]
    said = [process.communicate(timeout=500)[0].split() for process in both]
    assert sorted(words[0] for words in said) == ["False", "True"]
    assert said[0][1] == said[1][1]
    assert [path.name for path in (own_cache / "engines").iterdir() if path.is_dir()] == []
    sessions = {process.pid for process in both}
    assert not [other for other in psutil.process_iter() if _session(other) in sessions]


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None


@pytest.mark.compiler
def test_a_kill_while_compiling_breaks_no_later_run(own_cache: Path) -> None:
    """Killed where its own folder has appeared, and again a few seconds later: the next one compiles and runs."""
    for wait in (0.0, 3.0):
        process = _build("several")
        deadline = time.monotonic() + 300
        while not list((own_cache / "engines").glob("*.building")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(wait)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    built = build_package(job("several"))
    assert not built.cached
    assert not engines.workplace(built.key).exists()
    case = CASES["several"]
    with TorchCompileRuntime(ModelSource(path=built.path), device="cpu", options=ONE_THREAD) as runtime:
        feeds = case.feeds()
        assert_matches(runtime.run(feeds), case, feeds, runtime.outputs)


@pytest.mark.compiler
@pytest.mark.parametrize("model", ["resnet18", "resnet50", "vgg16", "cifar-resnet20"])
def test_parity_holds(model: str) -> None:
    assert main(["parity", model, "--runtimes", "torch-compile,ort-cpu", "--images", "4"]) == 0


@pytest.mark.compiler
def test_a_built_package_is_opened_elsewhere_with_trust(tmp_path: Path) -> None:
    package = str(tmp_path / "net.pt2")
    build = ["build", "cifar-resnet20", "--runtime", "torch-compile", "--autocast", "bf16"]
    assert main([*build, "--output", package]) == 0
    bench = ["bench", package, "--runtime", "torch-compile", "--batch", "2", "--duration", "1"]
    assert main(bench) == 2
    assert main([*bench, "--trust-engine"]) == 0
    # Judged in the arithmetic that it was compiled with.
    assert main(["parity", package, "--runtimes", "torch-compile", "--trust-engine"]) == 0
