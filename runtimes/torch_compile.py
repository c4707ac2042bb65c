"""torch.compile ahead of time: what TorchInductor made of a network, opened on the CPU or a CUDA device.

TorchInductor is the compiler behind ``torch.compile``. ``converters.torch_compile`` lets it compile a network once,
into a package (AOTInductor) that the cache keeps: compiling takes tens of seconds, and every process that opens the
network would pay them again, since with frozen weights torch's own cache keeps no graph on a CPU. A package is machine
code: the gate of engines (``runtimes.engines``) decides which one may be executed.

What only a GPU can run has **not been executed** where no GPU was at hand.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from runtimes import engines, environment, files, nvidia
from runtimes.environment import load_library
from runtimes.errors import BadFeeds, BadModel, RuntimeUnavailable, UnsupportedModel, UsageError
from runtimes.pytorch import TorchRuntime
from runtimes.spec import LayerTime, NodePlacement, TensorSpec

NAME = "torch-compile"
SUFFIX = ".pt2"


class TorchCompileRuntime(TorchRuntime):
    """Runs a package that ``converters.torch_compile`` built from a network in torch."""

    name = NAME
    title = "PyTorch, torch.compile"
    opens = ("engine",)
    suffixes = (SUFFIX,)
    built_from = "torch"
    uses = frozenset({"threads", "streams", "tf32", "channels_last", "autocast", "compile_mode", "trust_engine"})
    standalone = "runtimes.standalone.torch_package_engine"
    distributions = ("torch",)
    in_all = False
    efficiency = 0.5
    left_out_because = "compiling takes tens of seconds; 'all,torch-compile' includes it"

    @classmethod
    def _probe(cls, device: str) -> tuple[str, tuple[str, ...]]:
        found = super()._probe(device)
        require_compiler()
        return found

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], Mapping[str, Any]]:
        path = self.source.path
        if path is None or path.suffix == ".onnx":
            raise BadModel(
                f"runtime '{self.name}' opens compiled packages, and {self.source.name} is not one",
                fix=f"build one: resnet-onnx build … --runtime {self.name}",
            )
        self._torch = load_library("torch", runtime=self.name, package="resnet-onnx")
        package, record = engines.load_engine(path, trust=self.options.trust_engine)
        if record is None:
            raise BadModel(
                f"the package {path} has no record ({engines.record_path(path).name}) beside it, and does not say "
                "itself what its inputs are called",
                fix="copy the record along with it, or build it again: resnet-onnx build",
            )
        check_record(record, str(self._torch.__version__), self.device)
        if self.device != "cpu":
            nvidia.check_tf32_override(record.key.tf32)
            self._torch.backends.cudnn.allow_tf32 = record.key.tf32
            self._torch.backends.cuda.matmul.allow_tf32 = record.key.tf32
        how = record.key.options
        self._threads = int(how["threads"])
        if self.options.threads is not None and self._threads != self._threads_per_stream:
            raise UsageError(
                f"{self.source.name} was compiled for {self._threads} threads to a stream, "
                f"not for {self.options.threads} threads over {self.streams} streams",
                fix=f"--threads {self._threads * self.streams}, or leave --threads out",
            )
        self._channels_last = bool(how["channels_last"])
        self._narrow = None  # the package has its casts
        self._batches, self._programs = self._load(package, record)
        self._module = self._call
        inputs, outputs = engines.described_specs(record)
        return inputs, outputs, {
            "package": record.key.digest,
            "package_sha256": record.sha256,
            "compile_seconds": record.seconds,
            "compiled_before": self.source.built_in is None,
            "compiled_for": record.key.target,
            "compiler": how["compiler"],
            "compile_mode": how["compile_mode"],
            "batches": "any" if self._batches is None else list(self._batches),
            "threads": self._threads * self.streams,
            "memory_format": "channels_last" if self._channels_last else "contiguous",
            "autocast": how["autocast"] or False,
            "tf32": record.key.tf32 and self.device != "cpu",
            "trusted_by_user": not engines.is_ours(path),
        }  # fmt: skip

    def _load(self, package: bytes, record: engines.Engine) -> tuple[tuple[int, ...] | None, dict[str, Any]]:
        """Returns the batches that programs were compiled for (None is any) and the programs by name."""
        from torch._inductor.package.package import load_package

        batches = tuple(int(n) for n in str(record.key.options["batches"]).split(",") if n)
        index = -1 if self.device == "cpu" else int(self.device.partition(":")[2])
        # The bytes that were checked, where nobody else can change them; the loader unpacks them at once.
        with tempfile.TemporaryDirectory(prefix="resnet-onnx-") as folder:
            copy = Path(folder) / f"package{SUFFIX}"
            files.write_bytes(copy, package)
            programs = {
                name: load_package(str(copy), name, num_runners=self.streams, device_index=index)
                for name in program_names(batches)
            }
        return batches or None, programs

    def _placement(self) -> tuple[NodePlacement, ...]:
        return (NodePlacement("*", "", "TorchInductor", self.device),)

    def _call(self, *inputs: Any) -> Any:
        if self._batches is None:
            return self._programs[program_names([])[0]](*inputs)
        batch = int(inputs[0].shape[0])
        if batch not in self._batches:
            raise BadFeeds(
                f"{self.name}: {self.source.name} was compiled for batches of "
                f"{', '.join(str(n) for n in self._batches)}, not of {batch}: its network does not leave the batch open"
            )
        return self._programs[program_names([batch])[0]](*inputs)

    def _layer_times(self, feeds: dict[str, NDArray[Any]], runs: int) -> list[LayerTime]:
        raise UnsupportedModel(f"runtime '{self.name}' can't tell the time of a layer: its kernels span several")

    def _close(self) -> None:
        del self._module
        self._programs.clear()


def program_names(batches: Sequence[int]) -> list[str]:
    """Returns the names of the programs in a package: one for all batches, or one for each of those named."""
    return [f"batch_{batch}" for batch in batches] or ["model"]


def check_record(record: engines.Engine, version: str, device: str) -> None:
    """Raises ``UnsupportedModel`` where a package was compiled for another torch, processor or kind of device."""
    again = "build it here, from its network: resnet-onnx build"
    if record.key.library != NAME:
        raise BadModel(f"{record.path} is an engine of {record.key.library}, not a package of {NAME}")
    if record.key.library_version != version:
        raise UnsupportedModel(
            f"the package was compiled by torch {record.key.library_version}, and torch {version} is installed",
            fix=again,
        )
    built_for, *needed = record.key.target.split()
    here, *present = target_here(device).split()
    if built_for != here:
        raise UnsupportedModel(f"the package was compiled for {built_for}, and this is {here}", fix=again)
    lacking = [name for name in needed if name not in present]
    if lacking:
        raise UnsupportedModel(
            f"the package was compiled for a processor with {', '.join(lacking)}, which this one lacks", fix=again
        )


def target_here(device: str) -> str:
    """Returns what code compiled here may use: the machine and its instruction sets, or a GPU's compute capability."""
    if device != "cpu":
        return nvidia.require_gpu(device).target
    return " ".join([platform.machine(), *environment.describe_machine()["cpu"]["instruction_sets"]])


def require_compiler() -> str:
    """Returns the first line of the C++ compiler's ``--version``.

    Raises:
        RuntimeUnavailable: There is no compiler, or it can't compile what TorchInductor writes: C++17 with OpenMP and
            Python's headers.
    """
    return _compiler(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++"), os.environ.get("PATH"))


@functools.lru_cache(maxsize=4)
def _compiler(command: str, search_path: str | None) -> str:
    found = shutil.which(command, path=search_path)
    if found is None:
        raise RuntimeUnavailable(f"torch.compile needs a C++ compiler, and '{command}' is not installed", fix=_INSTALL)
    flags = ["-std=c++17", "-fsyntax-only", "-x", "c++", f"-I{sysconfig.get_path('include')}", "-"]
    flags = flags if sys.platform == "darwin" else ["-fopenmp", *flags]
    program = "#include <Python.h>\n#include <vector>\nint main() { return std::vector<int>{0}[0]; }\n"
    try:
        tried = subprocess.run([found, *flags], input=program, capture_output=True, text=True, timeout=60, check=False)
        named = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeUnavailable(f"the C++ compiler {found} can't be run: {error}", fix=_INSTALL) from error
    if tried.returncode != 0:
        first = next((line for line in tried.stderr.splitlines() if "error" in line), "").strip() or "it failed"
        raise RuntimeUnavailable(f"the C++ compiler {found} can't compile for torch.compile: {first}", fix=_INSTALL)
    return named.stdout.splitlines()[0] if named.stdout else found


_INSTALL = (
    "install a C++ compiler and Python's headers (Debian, Ubuntu: apt install g++ python3-dev; macOS: "
    "xcode-select --install), or set CXX to one"
)
