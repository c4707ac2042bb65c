"""What our code uses of TensorRT's Python modules, and whether a module has it: names, arguments, settable properties.

Run with the folder of an unpacked wheel of the bindings, ``python -m support.bindings FOLDER``, it asks those, over
stub libraries with nothing behind their ten functions, and prints what is wrong as JSON.
"""

from __future__ import annotations

import ast
import ctypes
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent

CLASSES = {
    "trt": "",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "parser_error": "ParserError",
    "config": "IBuilderConfig",
    "optimization_profile": "IOptimizationProfile",
    "deserializer": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "runtime_config": "IRuntimeConfig",
    "inspector": "EngineInspector",
    "layer": "ILayer",
    "tensor": "ITensor",
    "timings": "ITimingCache",
    "runtime_cache": "IRuntimeCache",
}
"""What a variable of that name holds, in the three files that use the library."""

SOURCES = ("runtimes/trt_shim.py", "runtimes/trt.py", "converters/tensorrt_family.py")


@dataclass(frozen=True)
class Use:
    """One use of the library; class "" is the module.

    Attributes:
        arguments: How many a call gives, or None where it is not called.
        sets: Whether it is assigned to.
    """

    owner: str
    name: str
    arguments: int | None = None
    sets: bool = False


def uses(source: str) -> set[Use]:
    """Returns every use of the library in a source text."""
    tree = ast.parse(source)
    called = {id(node.func): len(node.args) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value
        name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
        sets = isinstance(node.ctx, ast.Store)
        if name.lstrip("_") in CLASSES:
            found.add(Use(CLASSES[name.lstrip("_")], node.attr, called.get(id(node)), sets))
        elif isinstance(owner, ast.Attribute) and isinstance(owner.value, ast.Name) and owner.value.id == "trt":
            found.add(Use(owner.attr, node.attr))  # trt.BuilderFlag.TF32
    return found


USES = set().union(*(uses((ROOT / path).read_text()) for path in SOURCES))


def problems(module: Any, used: set[Use], without: frozenset[str] = frozenset()) -> list[str]:
    """Returns what a module lacks of `used`, but for what involves a name in `without`."""
    return sorted(
        problem for use in used if not {use.owner, use.name} & without for problem in _problems_of(module, use)
    )


def _problems_of(module: Any, use: Use) -> Iterator[str]:
    label = f"{use.owner}.{use.name}"
    owner = getattr(module, use.owner, None) if use.owner else module
    found = getattr(owner, use.name, None)
    if owner is None or (found is None and not hasattr(owner, use.name)):
        yield f"{label} is missing"
    elif isinstance(found, property):
        if use.sets and found.fset is None:
            yield f"{label} can't be set"
    elif use.sets:
        yield f"{label} is no property, and is set"
    elif use.arguments is not None and not _accepts(found, use.arguments):
        yield f"{label} takes no {use.arguments} arguments: {_signatures(found)}"


def _signatures(found: Any) -> list[str]:
    if isinstance(found, type):
        found = found.__init__
    return re.findall(r"^(?:\d+\. )?\w+\((.*)\) -> ", found.__doc__ or "", flags=re.MULTILINE)


def _accepts(found: Any, count: int) -> bool:
    ranges = []
    for signature in _signatures(found):
        parameters = [part for part in re.split(r", (?=\w+: |\*)", signature) if not part.startswith("self:")]
        parameters = [part for part in parameters if part]
        ranges.append((sum("=" not in part for part in parameters), len(parameters)))
    return any(least <= count <= most for least, most in ranges) or not ranges


STUB = r"""
static long zero(void) { return 0; }
static void *methods[512];
static void **object = methods;
static void *thing(void) { for (int i = 0; i < 512; i++) methods[i] = (void *)zero; return &object; }
static void *refuse(void *logger) {
    void (*log)(void *, int, const char *) = (void (*)(void *, int, const char *))(*(void ***)logger)[LOG];
    log(logger, 2, "CUDA lib is a stub for tests");
    log(logger, 1, "CUDA initialization failure with error: 35");
    return 0;
}
void *createInferBuilder_INTERNAL(void *logger, int version) { return refuse(logger); }
void *createInferRuntime_INTERNAL(void *logger, int version) { return refuse(logger); }
void *createInferRefitter_INTERNAL(void) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void) { return 0; }
void *createNvOnnxParser_INTERNAL(void) { return 0; }
void *getBuilderPluginRegistry(void) { return thing(); }
void *getPluginRegistry(void) { return thing(); }
int getNvOnnxParserVersion(void) { return 0; }
int initLibNvInferPlugins(void) { return 0; }
int getInferLibVersion(void) { return 0; }
"""


def compile_stubs(folder: Path, major: str, compiler: str) -> list[Path]:
    """Compiles the libraries that the bindings of a major version link."""
    (folder / "stub.c").write_text(STUB)
    paths = [folder / f"{name}.so.{major}" for name in ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")]
    for path in paths:
        # Where ILogger::log is among the virtual functions: TensorRT 11 made the class a versioned interface.
        slot = f"-DLOG={0 if int(major) < 11 else 4}"
        command = [compiler, "-w", slot, "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", str(path), "stub.c"]
        subprocess.run(command, check=True, cwd=folder, timeout=60)
    return paths


def report(folder: Path) -> dict[str, Any]:
    """Asks the bindings in a folder, whose stub libraries lie there too."""
    for path in sorted(folder.glob("lib*.so.*")):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(folder))
    import tensorrt_bindings  # type: ignore[import-not-found]

    sys.modules["tensorrt"] = tensorrt_bindings  # the package around it only imports it under that name
    from runtimes import trt_shim
    from runtimes.errors import RuntimeUnavailable

    library = trt_shim.load("tensorrt")
    refusals = {}
    for what, make in (("builder", library.trt.Builder), ("runtime", library.trt.Runtime)):
        try:
            library.make(what, lambda make=make: make(library.logger))
        except RuntimeUnavailable as told:
            refusals[what] = told.message
    steps: list[tuple[str, int, int]] = []
    monitor = library.progress_monitor(lambda *step: steps.append(step), lambda: True)
    monitor.phase_start("phase", None, 3)
    cancelled = not monitor.step_complete("phase", 0)
    monitor.phase_finish("phase")

    class Profiler(library.trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self, base: Any) -> None:
            base.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None: ...

    return {
        "version": library.version,
        "problems": problems(library.trt, USES, trt_shim.ONLY_RTX),
        "refusals": refusals,
        "steps": steps,
        "cancelled": cancelled,
        "profiler": isinstance(Profiler(library.trt.IProfiler), library.trt.IProfiler),
        "dtypes": sorted(set(trt_shim._DTYPES) - set(library.trt.DataType.__members__)),
        "targets": library.targets(),
    }


if __name__ == "__main__":
    print(json.dumps(report(Path(sys.argv[1]))))
