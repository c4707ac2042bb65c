"""Weights files as people have them: safetensors, and whatever ``torch.save`` wrote; reading one never runs code.

A file holds one or several *entries*: mappings of names to tensors, each named by the path of keys that leads to it
(``checkpoint.params``; the file itself is ``""``). Which of them is the network is decided in ``fitting``.
"""

from __future__ import annotations

import argparse
import json
import pickletools
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from runtimes import files
from runtimes.errors import BadWeights

StateDict = dict[str, Tensor]
"""Tensors by name."""

_DEEPEST = 8
"""Mappings within mappings that are looked through for tensors; training scripts nest two or three."""

_ORDINARY = re.compile(
    r"collections (OrderedDict|defaultdict)|torch\._utils (_rebuild_tensor_v2|_rebuild_parameter)|torch \w+Storage|"
    r"argparse Namespace|builtins (dict|list|int|float|set)|__builtin__ (dict|list|int|float|set)|"
    r"numpy(\._core|\.core)\.multiarray (scalar|_reconstruct)|numpy (dtype|ndarray)|_codecs encode|"
    r"pathlib (Pure)?(Posix|Windows)?Path|pathlib\._local (Pure)?(Posix|Windows)?Path"
)
"""Globals of a pickle, "module name", that build values no larger than what the file spells out."""

_ALLOWANCE_BYTES = 2**29
"""Memory that reading may take beside twice the file's size: Python's own objects for names and options."""

_FETCH_AGAIN = "download or copy it again, and compare sizes"
RESAVE = "save the weights alone where they were made: safetensors.torch.save_file(model.state_dict(), PATH)"


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """What a weights file holds.

    Attributes:
        origin: What messages call it.
        entries: Tensors by name, on the CPU and in their own dtypes, by the dotted path of keys of the mapping that
            holds them; ``""`` is the file itself.
        options: Plain values that a training script left beside them (``args`` of timm's), by their own names.
        path: The file, or None for weights that never were one.
    """

    origin: str
    entries: Mapping[str, StateDict]
    options: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None


def in_memory(state: Mapping[str, Tensor], origin: str) -> WeightsFile:
    """Returns tensors that are at hand already as a file of one entry."""
    return WeightsFile(origin=origin, entries={"": dict(state)})


def read_weights_file(path: Path) -> WeightsFile:
    """Reads a weights file: safetensors, or what ``torch.save`` writes.

    The format is recognised by content, not by the file's ending. Pickles are read by torch's restricted reader, which
    builds tensors and plain values and refuses everything else; one that names more than the ordinary parts of a state
    dict is read in a process with limited memory.

    Raises:
        BadWeights: The file is missing, empty, damaged, of another format, hostile, or holds no tensors.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise BadWeights(f"{path} is a folder, expected a weights file (.pth, .th, .pt or .safetensors)")
        size_bytes = path.stat().st_size
        with files.open_regular(path) as handle:
            head = handle.read(16)
    except OSError as error:
        raise BadWeights(f"can't read the weights {path}: {error.strerror or error}", fix="check the path") from error
    if size_bytes == 0:
        raise BadWeights(f"{path} is empty, expected weights", fix=_FETCH_AGAIN)
    if head[:2] == b"PK" or head[:1] == b"\x80":
        if head[:2] == b"PK":
            _check_archive(path)
        found = _from_pickle(path, size_bytes)
    elif head[8:9] == b"{":
        found = WeightsFile(origin=str(path), entries={"": read_safetensors(path)}, path=path)
    else:
        raise BadWeights(
            f"{path} is not a weights file: expected safetensors or a PyTorch state dict (.pth, .th, .pt)",
            fix="an .onnx file or a checkpoint folder goes in as the model itself, without --model"
            if path.suffix == ".onnx"
            else None,
        )
    if not any(found.entries.values()):
        raise BadWeights(f"{path} holds no tensors")
    _check_sizes(found.entries, size_bytes, path)
    return found


def read_safetensors(path: Path) -> StateDict:
    """Returns the tensors of a safetensors file; raises ``BadWeights`` where it is damaged."""
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except Exception as error:  # SafetensorError has no common base, and unknown dtypes raise KeyError
        raise BadWeights(
            f"{path} is damaged or not a safetensors file: {str(error)[:160]}", fix=_FETCH_AGAIN
        ) from error


def _check_archive(path: Path) -> None:
    """Refuses archives that are programs, that could unpack to more than the file, or whose checksums are wrong."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _refuse_foreign_archive(path, entries)
            # torch's own reader leaves the checksums unread, and a flipped bit in a weight would pass.
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise BadWeights(f"{path} is damaged or cut short: {error}", fix=_FETCH_AGAIN) from error
    if damaged is not None:
        raise BadWeights(f"{path} is damaged: the checksum of its entry '{damaged}' is wrong", fix=_FETCH_AGAIN)


def _refuse_foreign_archive(path: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    inside = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in inside):
        raise BadWeights(f"{path} is a TorchScript archive: it contains a program, not only weights", fix=RESAVE)
    if any(name.rsplit("/", 1)[-1] in ("archive_format", "archive_version") for name in inside):
        raise BadWeights(f"{path} is an exported program (.pt2), not a weights file", fix=RESAVE)
    if sum(name.endswith("/data.pkl") for name in inside) != 1:
        raise BadWeights(f"{path} is a zip archive, but not one that torch.save wrote")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise BadWeights(f"{path} has compressed entries; torch.save never writes such")


# ---- pickles ---------------------------------------------------------------------------------------------------------


def _from_pickle(path: Path, size_bytes: int) -> WeightsFile:
    if _is_ordinary(path):
        return _taken_apart(_load(path), path)
    with tempfile.TemporaryDirectory(prefix="resnet-onnx-") as folder:
        plain = Path(folder) / "plain.pth"
        _read_in_child(path, plain, size_bytes)
        entries, options = _load(plain)
    return WeightsFile(origin=str(path), entries=entries, options=options, path=path)


def _is_ordinary(path: Path) -> bool:
    """Whether a pickle spells out all that it builds: then reading takes no more memory than the file has bytes.

    Raises:
        BadWeights: It can't be parsed.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                with archive.open(name) as stream:
                    return all(_ORDINARY.fullmatch(found) for found in _globals(stream))
        with open(path, "rb") as stream:
            # torch's older form: magic number, protocol, system, the object, the keys of its storages; then raw bytes.
            return all(_ORDINARY.fullmatch(found) for _ in range(5) for found in _globals(stream))
    except Exception as error:  # damaged in any way; pickletools raises what comes up
        raise _unreadable(path, error) from error


def _globals(stream: Any) -> Iterator[str]:
    """Yields what a pickle imports, "module name", or "?" where that is known only by running it."""
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument)
        elif opcode.name == "STACK_GLOBAL" or opcode.name.startswith("EXT"):
            yield "?"


class _Inert:
    """Stands in for a container that a pickle names: takes any arguments and any state, and does nothing."""

    def __new__(cls, *_: object, **__: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _dict(*_: object) -> dict[Any, Any]:
    return {}


_NUMPY_MAKERS = ("scalar", "_reconstruct")


def _harmless() -> list[Any]:
    """Returns what torch's restricted reader may build besides tensors; nothing of it does more than hold values."""
    paths = [f"{kind}{system}Path" for kind in ("", "Pure") for system in ("", "Posix", "Windows")]
    names = [f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in paths]
    # NumPy's values are accuracies, losses and confusion matrices; nobody's weights.
    names += [f"{module}.multiarray.{name}" for module in ("numpy.core", "numpy._core") for name in _NUMPY_MAKERS]
    names += ["numpy.dtype", "numpy.ndarray"]
    kinds: list[Any] = [dict, list, int, float, set]
    return [
        argparse.Namespace,
        (_dict, "collections.defaultdict"),  # the reader sets items of plain dictionaries alone
        *((kind, f"{module}.{kind.__name__}") for kind in kinds for module in ("builtins", "__builtin__")),
        *((_Inert, name) for name in names),
    ]


def _load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way, and all of them mean the same to the user
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> BadWeights:
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return BadWeights(f"{path} is refused: it takes far more memory than a file of its size needs", fix=RESAVE)
    foreign = re.search(r"(?:GLOBAL|global) `?([\w.]+)", str(error))
    if foreign:
        return BadWeights(
            f"{path} is refused: it contains '{foreign[1]}', and weights are only tensors and plain values", fix=RESAVE
        )
    # torch's reader puts what it found behind its advice.
    told = re.search(r"(?:WeightsUnpickler|Unsupported).*", str(error), re.DOTALL)
    reason = " ".join((told[0] if told else str(error)).split())[:160] or type(error).__name__
    return BadWeights(f"{path} is damaged or not a PyTorch state dict: {reason}", fix=_FETCH_AGAIN)


_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from resnet_onnx.models.weights_file import _rewrite; _rewrite(*sys.argv[2:])"
)


def _read_in_child(path: Path, plain: Path, size_bytes: int) -> None:
    """Reads a pickle in a process with limited memory, which writes the tensors anew as an ordinary one."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", _CHILD, json.dumps(sys.path), str(path), str(plain), str(size_bytes)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    if done.returncode == 0 and plain.is_file():
        return
    try:
        message, fix = json.loads(done.stdout)
    except ValueError:
        message, fix = f"{path} is refused: the process that read it ended ({done.returncode})", RESAVE
    raise BadWeights(message, fix=fix)


def _rewrite(source: str, target: str, size_bytes: str) -> None:
    """The child's part of ``_read_in_child``."""
    _limit_memory(2 * int(size_bytes) + _ALLOWANCE_BYTES)
    try:
        found = _taken_apart(_load(Path(source)), Path(source))
        _check_sizes(found.entries, int(size_bytes), Path(source))
        torch.save((dict(found.entries), dict(found.options)), target)
    except BadWeights as error:
        print(json.dumps([error.message, error.fix]))
        sys.exit(1)
    except MemoryError as error:
        print(json.dumps([(refused := _unreadable(Path(source), error)).message, refused.fix]))
        sys.exit(1)


def _limit_memory(more_bytes: int) -> None:
    """Lets this process take so much more address space than it has now, where the system has such limits."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + more_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    except (ImportError, OSError, ValueError):
        pass  # Windows and macOS


def _taken_apart(loaded: object, path: Path) -> WeightsFile:
    """Finds every mapping that holds tensors, and the plain values of a training script's options."""
    if isinstance(loaded, Tensor):
        raise BadWeights(f"{path} holds a single tensor, expected a state dict (names and tensors)")
    if not isinstance(loaded, Mapping):
        raise BadWeights(f"{path} holds a {type(loaded).__name__}, expected a state dict (names and tensors)")
    entries = dict(_entries(loaded, ()))
    if not entries:
        keys = ", ".join(repr(key) for key in list(loaded)[:6])
        raise BadWeights(f"{path} holds no tensors where a state dict has them; its entries are {keys or 'none'}")
    options = loaded.get("args")
    values = vars(options) if isinstance(options, argparse.Namespace) else options
    plain = isinstance(values, Mapping)
    return WeightsFile(
        origin=str(path),
        entries=entries,
        options={str(k): v for k, v in values.items() if _is_plain(v)} if plain and values else {},
        path=path,
    )


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float | bool) or (
        isinstance(value, list | tuple) and len(value) < 10 and all(isinstance(item, int | float) for item in value)
    )


def _entries(mapping: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[tuple[str, StateDict]]:
    tensors = {str(name): value.detach() for name, value in mapping.items() if isinstance(value, Tensor)}
    if tensors:
        yield ".".join(path), tensors
    if len(path) < _DEEPEST:
        for key, value in mapping.items():
            inner = vars(value) if isinstance(value, argparse.Namespace) else value
            if isinstance(inner, Mapping):
                yield from _entries(inner, (*path, str(key)))


def _check_sizes(entries: Mapping[str, StateDict], size_bytes: int, path: Path) -> None:
    """Refuses tensors that claim more than the file holds (broken sizes, or strides of zero)."""
    tensors = [item for entry in entries.values() for item in entry.items()]
    for name, tensor in tensors:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise BadWeights(f"{path}: '{name}' is sparse, quantised or empty of data, expected a plain tensor")
        if tensor.numel() * tensor.element_size() > size_bytes:
            raise BadWeights(f"{path}: '{name}' claims a shape of {list(tensor.shape)}, more than the file holds")
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for _, tensor in tensors}
    if sum(storages.values()) > size_bytes:
        raise BadWeights(f"{path}: its tensors claim {sum(storages.values())} bytes, the file has {size_bytes}")
