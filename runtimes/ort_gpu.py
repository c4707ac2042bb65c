"""What ONNX Runtime's NVIDIA providers are told, where their TensorRT engines are kept, and what their refusals mean.

Values in, values out: none of it needs a GPU. ONNX Runtime's own parsers have been asked about every option name and
value below (``tests/test_ort_gpu_options.py``).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from runtimes import engines, files, nvidia, onnx_gate
from runtimes.errors import RuntimeUnavailable, UnsupportedModel
from runtimes.spec import NodePlacement, Profile, RuntimeOptions

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"

CACHE_FOLDER = "ort-tensorrt"
_SEAL = "seal.json"

NO_GRAPH, GRAPH_ID = "-1", "gpu_graph_id"
"""The run option that chooses a captured CUDA graph; -1 runs without one (onnxruntime_run_options_config_keys.h)."""

RETURN_EARLY = "disable_synchronize_execution_providers"
"""The run option by which a run does not wait for its stream at its end (same file)."""

CUDNN = "cudnn64_9.dll" if sys.platform == "win32" else "libcudnn.so.9"
"""The library that ``onnxruntime.preload_dlls`` leaves out without a word where it is missing."""


# ---- options ---------------------------------------------------------------------------------------------------------


STREAM = "user_compute_stream"
"""The option of the CUDA provider that takes a stream of ours, as an address."""


def cuda_options(index: int, options: RuntimeOptions) -> dict[str, str]:
    """Returns the options of the CUDA provider for ``cuda:index``.

    How cuDNN finds its algorithms is left to ONNX Runtime unless it was asked for.
    """
    searches = {None: {}, True: {_SEARCH: "EXHAUSTIVE"}, False: {_SEARCH: "HEURISTIC"}}
    return {
        "device_id": str(index),
        "use_tf32": _bit(options.tf32),
        **searches[options.exhaustive_search],
        "prefer_nhwc": _bit(options.channels_last),
        "enable_cuda_graph": _bit(options.cuda_graph),
    }


_SEARCH = "cudnn_conv_algo_search"


def tensorrt_options(
    index: int, options: RuntimeOptions, *, folder: str, precisions: Sequence[str] = ()
) -> dict[str, str]:
    """Returns the options of the TensorRT provider, whose parser reads truths as words.

    Args:
        index: N of ``cuda:N``.
        options: As they were requested.
        folder: Where this very engine is kept.
        precisions: Those of the ONNX graph, as ``graph_precisions`` says. The provider's networks are weakly typed:
            without the flag TensorRT refuses a type that the graph holds.
    """
    found = {
        "device_id": str(index),
        "trt_fp16_enable": str("fp16" in precisions),
        "trt_bf16_enable": str("bf16" in precisions),
        "trt_int8_enable": str("int8" in precisions),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": folder,
    }
    if options.shapes:
        found |= {f"trt_profile_{bound}_shapes": profile_text(options.shapes, bound) for bound in ("min", "opt", "max")}
    return found


def profile_text(profile: Profile, bound: str) -> str:
    """Returns the bound ``min``, ``opt`` or ``max`` of a profile as the provider reads it: ``x:1x3x224x224,y:1x8``."""
    return ",".join(
        f"{name}:{'x'.join(str(n) for n in {'min': r.minimum, 'opt': r.optimum, 'max': r.maximum}[bound])}"
        for name, r in profile.items()
    )


def graph_precisions(model: Path) -> tuple[str, ...]:
    """Returns which precisions below fp32 an ONNX graph holds: of its weights, inputs, outputs and casts."""
    import onnx

    proto = onnx.load(str(model), load_external_data=False)
    graph = proto.graph
    kinds = {tensor.data_type for tensor in graph.initializer}
    kinds |= {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    operators = set()
    for node in graph.node:
        operators.add(node.op_type)
        kinds |= {attribute.i for attribute in node.attribute if node.op_type == "Cast" and attribute.name == "to"}
    types = onnx.TensorProto
    found = {"fp16": types.FLOAT16 in kinds, "bf16": types.BFLOAT16 in kinds, "int8": "QuantizeLinear" in operators}
    return tuple(name for name, present in found.items() if present)


def _bit(value: bool) -> str:
    return "1" if value else "0"


# ---- TF32 ------------------------------------------------------------------------------------------------------------


class _Process:
    tf32: bool | None = None
    opened = 0
    before: str | None = None


def settle_tf32(allowed: bool) -> None:
    """Sets whether the TensorRT provider may use TF32, until as many calls of ``release_tf32``.

    The provider has no option for it (onnxruntime#26029): NVIDIA's libraries read a variable of the environment, once,
    so that it holds for the whole process. The variable itself is taken back, so that nothing else obeys it: neither a
    process that is started later, nor another runtime's check of what the user's environment says.

    Raises:
        UsageError: The user's environment says the opposite.
        RuntimeUnavailable: It was set the other way for an earlier model of this process.
    """
    if _Process.tf32 is None:
        nvidia.check_tf32_override(allowed)
    elif _Process.tf32 != allowed:
        raise RuntimeUnavailable(
            f"ort-tensorrt was opened {'with' if _Process.tf32 else 'without'} TF32 in this process, which can't be "
            "changed any more",
            fix="open the other one in another process",
        )
    _Process.tf32 = allowed
    if not allowed:
        if _Process.opened == 0:
            _Process.before = os.environ.get(nvidia.TF32_VARIABLE)
        os.environ[nvidia.TF32_VARIABLE] = "0"
    _Process.opened += 1


def release_tf32() -> None:
    """Ends one use of ``settle_tf32``; the last one puts the environment back as it was."""
    _Process.opened -= 1
    if _Process.opened or _Process.tf32:
        return
    if _Process.before is None:
        os.environ.pop(nvidia.TF32_VARIABLE, None)
    else:
        os.environ[nvidia.TF32_VARIABLE] = _Process.before


# ---- libraries -------------------------------------------------------------------------------------------------------


def preload(ort: Any) -> tuple[str, ...]:
    """Loads the CUDA libraries that pip installed; returns the names of those that are nowhere to be found."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        ort.preload_dlls()
    return (*missing_libraries(printed.getvalue()), *(missing_cudnn() if needed_cuda(ort) else ()))


def missing_cudnn() -> tuple[str, ...]:
    """Returns the name of cuDNN where it can't be loaded, once the libraries that pip installed are."""
    try:
        ctypes.CDLL(CUDNN)
    except OSError:
        return (CUDNN,)
    return ()


def missing_libraries(printed: str) -> tuple[str, ...]:
    """Returns the names of the libraries that ``onnxruntime.preload_dlls`` says it could not load by any path."""
    names = re.findall(r"^Failed to load ([^\s/\\:]+):", printed, flags=re.MULTILINE)
    return tuple(dict.fromkeys(names))


def check_libraries(missing: Sequence[str], *, runtime: str) -> None:
    """Raises ``RuntimeUnavailable`` where CUDA libraries are missing."""
    if missing:
        raise lacking(missing, runtime=runtime)


def lacking(missing: Sequence[str], *, runtime: str) -> RuntimeUnavailable:
    """Returns the error for CUDA libraries that are missing."""
    return RuntimeUnavailable(
        f"runtime '{runtime}' needs the CUDA libraries {', '.join(missing)}, which are not installed",
        fix="pip install 'resnet-onnx[cuda]'",
    )


def needed_cuda(ort: Any) -> int | None:
    """Returns the CUDA version that ONNX Runtime was built for, or None where it does not say."""
    found = re.match(r"\d+", str(getattr(ort, "cuda_version", "") or ""))
    return int(found[0]) if found else None


def needed_tensorrt(ort: Any) -> int | None:
    """Returns the TensorRT version that ONNX Runtime's provider links, or None where it does not say."""
    folder = Path(ort.__file__).parent / "capi"
    for name in ("libonnxruntime_providers_tensorrt.so", "onnxruntime_providers_tensorrt.dll"):
        if (folder / name).is_file():
            found = re.search(rb"nvinfer(?:\.so\.|_)(\d+)", (folder / name).read_bytes())
            return int(found[1]) if found else None
    return None


def check_tensorrt(version: str, needed: int | None, *, ort_version: str) -> None:
    """Raises ``RuntimeUnavailable`` for a TensorRT of another major version than ONNX Runtime links."""
    if needed is not None and version.partition(".")[0] != str(needed):
        raise RuntimeUnavailable(
            f"ONNX Runtime {ort_version} links TensorRT {needed}, and TensorRT {version} is installed",
            fix=f"pip install 'tensorrt-cu13>={needed},<{needed + 1}'; or run TensorRT itself: --runtime tensorrt",
        )


def cause(text: str) -> str | None:
    """Returns why a provider did not start, from ONNX Runtime's error, or None where the error is about the model."""
    failure = re.search(r"(CUDA|CUDNN|CUDNN_FE|CUBLAS) failure (\d+): ?([^;]+)", text)
    if failure:
        return f"{failure[1]} failure {failure[2]}: {failure[3].strip()}"
    if library := re.search(r"\b(lib(?:cudnn|cublas|curand|cufft|nvrtc)\w*\.so[.\d]*)[^;]*cannot open", text):
        return f"the library {library[1]} can't be loaded"
    if "Please install TensorRT libraries" in text:
        return "ONNX Runtime's TensorRT provider can't load the TensorRT libraries"
    option = re.search(r"(?:Unknown provider option|Invalid TensorRT EP option): \"?(\w+)", text)
    if option:
        return f"this version of ONNX Runtime has no option '{option[1]}'"
    return None


# ---- where nodes went ------------------------------------------------------------------------------------------------


def not_started(provider: str, *, runtime: str) -> RuntimeUnavailable:
    """Returns the error for a provider that ONNX Runtime left out without a word."""
    return RuntimeUnavailable(
        f"runtime '{runtime}': ONNX Runtime could not start {provider}, and would have run on the CPU",
        fix="what it says about it: the same command with --verbose\nwhat else runs here: resnet-onnx doctor",
    )


def check_placement(rows: Sequence[NodePlacement], provider: str, *, runtime: str, model: str) -> None:
    """Raises ``UnsupportedModel``, which names nodes, where some run on the CPU or none on the requested provider."""
    on_cpu = [row for row in rows if row.provider == CPU]
    if on_cpu:
        shown = ", ".join(f"{row.node or 'unnamed'} ({row.operator})" for row in on_cpu[:3])
        more = f" and {len(on_cpu) - 3} more" if len(on_cpu) > 3 else ""
        raise UnsupportedModel(
            f"runtime '{runtime}' has no kernel for {len(on_cpu)} of the {len(rows)} nodes of {model}: {shown}{more}",
            fix="choose another runtime or precision",
        )
    if rows and not any(row.provider == provider for row in rows):
        others = ", ".join(dict.fromkeys(row.provider for row in rows))
        raise UnsupportedModel(
            f"runtime '{runtime}': {provider} took none of the {len(rows)} nodes of {model}; all went to {others}",
            fix="run it there by name: --runtime ort-cuda",
        )


# ---- ONNX Runtime's own engine cache, under our key ------------------------------------------------------------------


def engine_key(
    checked: onnx_gate.CheckedModel,
    *,
    options: RuntimeOptions,
    provider_options: Mapping[str, str],
    ort_version: str,
    tensorrt_version: str,
    gpu: nvidia.Gpu,
) -> str:
    """Returns the key of the engines that ONNX Runtime builds from a model: everything that changes them.

    Its own key is the name of the graph, which collides for other shapes and weights (onnxruntime#32254).
    """
    ours = {n: v for n, v in provider_options.items() if not n.endswith("_path") and n != "device_id"}
    made_from = {
        "model": checked.sha256,
        "external": {name: files.sha256_file(checked.path.parent / name) for name in checked.external_data},
        "shapes": {name: str(accepted) for name, accepted in options.shapes.items()},
        "tf32": options.tf32,
        "optimize": options.optimize,
        "provider_options": ours,
        "onnxruntime": ort_version,
        "tensorrt": tensorrt_version,
        "gpu": [gpu.name, gpu.target, gpu.multiprocessors],
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def engine_folder(key: str) -> Iterator[Path]:
    """Yields the folder of a key, checked and locked; what lies there afterwards is sealed.

    ONNX Runtime executes what it finds there. A folder whose files are not those that an earlier run of ours left is
    emptied first.

    Raises:
        FileProblem: The cache can't be written.
    """
    folder = files.cache_dir(CACHE_FOLDER, key)
    with filelock.FileLock(folder.with_suffix(".lock"), mode=0o600):
        if not is_sealed(folder):
            _empty(folder)
        yield folder
        seal(folder)


def is_sealed(folder: Path) -> bool:
    """Returns whether a folder holds exactly the files that were there when it was sealed, unchanged."""
    try:
        sealed = json.loads((folder / _SEAL).read_text())
        return isinstance(sealed, dict) and sealed == _digests(folder)
    except (OSError, ValueError):
        return not any(folder.iterdir())


def seal(folder: Path) -> None:
    """Writes down the SHA-256 of every file in a folder."""
    files.write_json(folder / _SEAL, _digests(folder))


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name == _SEAL:
            continue
        if path.is_symlink() or not path.is_file():
            return {"": f"{path.name} is not a regular file"}
        found[path.name] = files.sha256_file(path)
    return found


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def list_folders() -> list[engines.Engine]:
    """Returns the folders of ONNX Runtime's TensorRT engines, the latest used first; their keys are not known."""
    root = files.cache_root() / CACHE_FOLDER
    rows = []
    for folder in root.iterdir() if root.is_dir() else ():
        if folder.is_dir():
            size, used = sum(p.stat().st_size for p in folder.iterdir() if p.is_file()), folder.stat().st_mtime
            rows.append(engines.Engine(key=engines.UNKNOWN, path=folder, size_bytes=size, last_used=used))
    return sorted(rows, key=lambda row: row.last_used, reverse=True)


def prune_folders(max_bytes: int) -> list[engines.Engine]:
    """Removes the folders unused for longest, until the rest needs at most `max_bytes`; one in use stays.

    Raises:
        FileProblem: A folder can't be removed.
    """
    return engines.prune_listed(list_folders(), max_bytes, shutil.rmtree)
