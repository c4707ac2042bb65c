"""Compiles a network in torch ahead of time, with TorchInductor, into a package that ``runtimes.torch_compile`` opens.

It is what ``torch.compile`` does while a program runs: the graph is captured, weights are frozen into it, and kernels
are written and compiled. The batch stays open where the network lets it; else there is one program for each batch.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runtimes import engines, onnx_types
from runtimes import torch_compile as adapter
from runtimes.base import default_streams, threads_per_stream
from runtimes.environment import load_library
from runtimes.errors import OutOfMemory, UnsupportedModel, is_out_of_memory, reason
from runtimes.pytorch import autocast_dtype
from runtimes.spec import ModelSource, Profile, RuntimeOptions, ShapeRange, TensorSpec, TorchProgram

USUAL, LARGEST = 8, 65_536
"""Extent of an open dimension that kernels are chosen for, and the largest that a package accepts."""


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """What is compiled, and how.

    Attributes:
        source: Whose factory builds the network, a ``TorchProgram``.
        identity: SHA-256 of everything that the factory's network depends on.
        precision: What it computes in, before autocast.
        options: Threads and streams, memory format, autocast, TF32 and compile mode are used.
        batches: What is compiled where the network does not leave the batch open.
        metadata: Goes into the record: how pictures are prepared, labels, where the weights came from.
    """

    source: ModelSource
    identity: str
    precision: str = "fp32"
    options: RuntimeOptions = field(default_factory=RuntimeOptions)
    device: str = "cpu"
    batches: Sequence[int] = (1, USUAL)
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def arithmetic(self) -> str:
        """What products are computed in."""
        return self.options.autocast or self.precision


def build_package(job: Compilation, *, rebuild: bool = False) -> engines.Engine:
    """Compiles a network into the cache, or returns the package that is there; any number of processes may ask at once.

    Raises:
        RuntimeUnavailable: torch or a C++ compiler is missing.
        UnsupportedModel: TorchInductor can't compile the network; the reason is its own.
        OutOfMemory: The machine has too little memory to compile it.
    """
    torch = load_library("torch", runtime=adapter.NAME, package="resnet-onnx")
    tools = str(torch.__version__), adapter.require_compiler()
    program: TorchProgram = job.source.call_factory()

    def find(batches: tuple[int, ...]) -> engines.Engine:
        build = _Build(job, program, _key(job, program, tools, batches), batches)
        return engines.find_or_build(build.key, build.run, rebuild=rebuild)

    try:
        return find(())
    except _FixedError as fixed:
        if not _only_the_batch_is_open(program):
            raise UnsupportedModel(
                f"torch.compile can't leave the shapes of {job.source.name} open: {fixed}",
                fix="compile it for one shape: export it with a fixed --image-size and --batch",
            ) from fixed
    return find(tuple(sorted(set(job.batches))))


def _key(
    job: Compilation, program: TorchProgram, tools: tuple[str, str], batches: tuple[int, ...]
) -> engines.EngineKey:
    """Returns the key of a package; `tools` are the versions of torch and of the C++ compiler."""
    options = job.options
    streams = options.streams or default_streams(options, job.device)
    return engines.EngineKey(
        model_sha256=job.identity,
        profile=_profile(program.inputs, batches),
        precision=job.precision,
        tf32=options.tf32 and job.device != "cpu",
        library=adapter.NAME,
        library_version=tools[0],
        target=adapter.target_here(job.device),
        options={
            "threads": threads_per_stream(options, streams),
            "channels_last": options.channels_last,
            "autocast": options.autocast or "",
            "compile_mode": options.compile_mode,
            "batches": ",".join(str(batch) for batch in batches),
            "device": job.device.partition(":")[0],
            "compiler": tools[1],
        },
    )


def _profile(inputs: Sequence[TensorSpec], batches: tuple[int, ...]) -> Profile:
    low, usual, high = (batches[0], batches[-1], batches[-1]) if batches else (1, USUAL, LARGEST)

    def extents(spec: TensorSpec, extent: int) -> tuple[int, ...]:
        return tuple(known if isinstance(known, int) else extent for known in spec.shape)

    return {spec.name: ShapeRange(*(extents(spec, extent) for extent in (low, usual, high))) for spec in inputs}


def _only_the_batch_is_open(program: TorchProgram) -> bool:
    names = {extent for spec in program.inputs for extent in spec.shape if not isinstance(extent, int)}
    return len(names) == 1 and all(isinstance(extent, int) for spec in program.inputs for extent in spec.shape[1:])


class _FixedError(Exception):
    """The network can't be captured with its open dimensions open."""


class _Build:
    """One compilation; ``run`` is called while no other process compiles the same."""

    def __init__(
        self, job: Compilation, program: TorchProgram, key: engines.EngineKey, batches: tuple[int, ...]
    ) -> None:
        self._job, self._program, self.key, self._batches = job, program, key, batches

    def run(self) -> tuple[bytes, engines.Engine]:
        from torch._inductor.package.package import package_aoti

        start = time.monotonic()
        job, program = self._job, self._program
        with _compiler_cache(self.key) as folder:
            found = {}
            for name, batch in zip(adapter.program_names(self._batches), self._batches or (None,), strict=True):
                found[name] = self._guarded(batch)
            path = package_aoti(str(folder / f"package{adapter.SUFFIX}"), found)
            package = Path(str(path)).read_bytes()
        specs = (*program.inputs, *program.outputs)
        return package, engines.Engine(
            key=self.key,
            seconds=time.monotonic() - start,
            dimensions={spec.name: spec.shape for spec in specs},
            dtypes={spec.name: spec.dtype.name for spec in specs},
            model=job.source.name,
            metadata={**job.metadata, "precision": job.arithmetic},
        )

    def _guarded(self, batch: int | None) -> Any:
        try:
            return self._compile(batch)
        except _FixedError:
            raise
        except Exception as error:  # a compiler's: of many kinds, and none of them documented
            what = f"torch.compile can't compile {self._job.source.name}"
            if is_out_of_memory(error) or isinstance(error, MemoryError):
                raise OutOfMemory(f"{what}: {reason(error)}") from error
            raise UnsupportedModel(f"{what}: {reason(error)}") from error

    def _compile(self, batch: int | None) -> Any:
        import torch

        job, program = self._job, self._program
        module = program.module.to(job.device).eval()
        if job.options.channels_last:
            module = module.to(memory_format=torch.channels_last)
        module = _with_casts(module, job, [_tensor(torch, spec, 1, job).dtype for spec in program.outputs])
        inputs = tuple(_tensor(torch, spec, batch or USUAL, job) for spec in program.inputs)
        dims: dict[str, Any] = {}
        shapes = tuple(
            {
                axis: dims.setdefault(extent, torch.export.Dim(f"d{len(dims)}", min=1, max=LARGEST))
                for axis, extent in enumerate(spec.shape)
                if not isinstance(extent, int) and batch is None
            }
            for spec in program.inputs
        )
        with torch.no_grad():
            try:
                exported = torch.export.export(module, inputs, dynamic_shapes=(shapes,))
            except Exception as error:  # torch.export's: of many kinds too
                if batch is None and dims:
                    raise _FixedError(reason(error)) from error
                raise
            return torch._inductor.aot_compile(
                exported.module(check_guards=False), inputs, options=self._configuration(torch)
            )

    def _configuration(self, torch: Any) -> dict[str, Any]:
        """Returns TorchInductor's settings: those of the mode, and ours over them."""
        mode = self._job.options.compile_mode
        chosen = {} if mode == "default" else dict(torch._inductor.list_mode_options(mode, dynamic=True))
        chosen.pop("triton.cudagraphs", None)  # of a program that runs under Python
        return {
            **chosen,
            "freezing": True,
            "aot_inductor.package": True,
            # The number of OpenMP's threads is written into the kernels.
            "cpp.threads": int(self.key.options["threads"]),
        }


def _with_casts(module: Any, job: Compilation, dtypes: Sequence[Any]) -> Any:
    """Wraps a module so that autocast, and the casts of its outputs to what their specs say, are part of the graph."""
    import torch

    narrow = autocast_dtype(job.options)

    class Program(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *inputs: Any) -> tuple[Any, ...]:
            if narrow is None:
                results = self.inner(*inputs)
            else:
                with torch.autocast(job.device.partition(":")[0], narrow, cache_enabled=False):
                    results = self.inner(*inputs)
            listed = list(results) if isinstance(results, tuple | list) else [results]
            return tuple(result.to(dtype) for result, dtype in zip(listed, dtypes, strict=True))

    return Program().eval()


def _tensor(torch: Any, spec: TensorSpec, extent: int, job: Compilation) -> Any:
    """Returns zeros as an input of a spec, on the device and in the memory format that the runtime gives them in."""
    shape = [known if isinstance(known, int) else extent for known in spec.shape]
    if spec.dtype == onnx_types.BFLOAT16:
        tensor = torch.zeros(shape, dtype=torch.bfloat16)
    else:
        tensor = torch.from_numpy(np.zeros(shape, spec.dtype))
    tensor = tensor.to(job.device)
    if job.options.channels_last and tensor.ndim == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor


@contextlib.contextmanager
def _compiler_cache(key: engines.EngineKey) -> Iterator[Path]:
    """Yields a folder in our own cache that TorchInductor works in, and empties it: what is kept is the package.

    Kernels are compiled in this process, one after the other: torch's pool of compiling processes would outlive it.
    """
    import torch._inductor.config as inductor
    from torch._inductor.runtime.cache_dir_utils import temporary_cache_dir

    folder = engines.workplace(key)
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    folder.mkdir(mode=0o700)
    try:
        with temporary_cache_dir(str(folder)), inductor.patch(compile_threads=1):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
