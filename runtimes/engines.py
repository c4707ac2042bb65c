"""The cache of built engines, and the gate that every engine passes before it is executed.

An engine is code: it is executed only from this machine's own cache, which no other user can write to, and only with
the bytes that the cache put there; or where the user says that an engine from elsewhere is to be trusted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from runtimes import files, onnx_types
from runtimes.errors import BadModel, FileProblem, UsageError, reason
from runtimes.spec import Profile, ShapeRange, TensorSpec

SCHEMA = 4
SUFFIX = ".engine"
_FOLDER = "engines"
_LARGEST_RECORD_BYTES = 2**26
_WORKPLACE = ".building"
_KERNELS = ".kernels"
_AGAIN = "build it again: resnet-onnx build"


# ---- keys and records ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """Everything that changes an engine; two engines with one key are interchangeable.

    Attributes:
        external_sha256: Of the model's external data, by file name.
        profile: Accepted shapes by input name.
        precision: What the model's metadata says of its precision.
        tf32: Whether fp32 products may be rounded to TF32.
        library: ``tensorrt``, ``tensorrt-rtx`` or ``torch-compile``.
        target: Compute capability it was built for, ``sm86``; on a CPU the machine and its instruction sets.
        gpu: Model of the GPU whose timings chose the kernels; "" where none took part.
        options: The other build options, by name.
    """

    model_sha256: str
    external_sha256: Mapping[str, str] = field(default_factory=dict)
    profile: Profile
    precision: str
    tf32: bool
    library: str
    library_version: str
    target: str
    gpu: str = ""
    options: Mapping[str, int | bool | str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of the key: the name of the engine in the cache."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @property
    def shapes(self) -> str:
        """The accepted shapes as ``--shapes`` takes them."""
        return ";".join(f"{name}:{accepted}" for name, accepted in self.profile.items())

    @property
    def built_by(self) -> str:
        """Library and version, or "" where they are not known."""
        return f"{self.library} {self.library_version}".strip()

    def to_json(self) -> dict[str, Any]:
        """Returns the key as plain values."""
        return {**asdict(self), "profile": {name: str(accepted) for name, accepted in self.profile.items()}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EngineKey:
        """Returns the key that ``to_json`` wrote; KeyError, TypeError or ValueError on anything else."""
        profile = {}
        for name, text in value["profile"].items():
            shapes = [tuple(int(n) for n in shape.split("x") if n) for shape in text.split(",")]  # "": a scalar
            profile[name] = ShapeRange(*shapes)
        return cls(**{**value, "profile": profile})


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine: as it was built, found in the cache or listed there. Two are equal where their records are.

    Attributes:
        seconds: How long the build took, now or when the cached one was made.
        dimensions: Names of the axes by input or output name (``["batch", 3, 224, 224]``); an engine forgets them.
        layers: What the builder said of it: rows of ``type``, ``precision``, ``count``.
        warnings: What the library warned of while it built.
        dtypes: Names of NumPy dtypes by input or output name.
        metadata: That of the ONNX file: how pictures are prepared, labels, where the weights came from.
        cached: Whether it was there already.
        replaced: Why an entry that was there had to be built again, or "".
        last_used: Of a listed one, in seconds since 1970.
        problem: What is wrong with a listed one, or ""; where its record can't be read, the key is empty.
    """

    key: EngineKey
    sha256: str = ""
    size_bytes: int = 0
    seconds: float = 0.0
    dimensions: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    layers: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    model: str = ""
    dtypes: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    path: Path = field(default=Path(), compare=False)
    cached: bool = field(default=False, compare=False)
    replaced: str = field(default="", compare=False)
    last_used: float = field(default=0.0, compare=False)
    problem: str = field(default="", compare=False)

    def to_json(self) -> dict[str, Any]:
        """Returns what lies beside it, as plain values."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.compare}
        record = {"schema": SCHEMA, **values, "key": self.key.to_json()}
        return {**record, _SEAL: _seal(record)}


_SEAL = "record_sha256"


def _seal(record: Mapping[str, Any]) -> str:
    """Returns the hash that a record carries of everything else in it."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def record_path(engine: Path) -> Path:
    """Returns where the record of an engine lies: beside it, with ``.json`` appended."""
    return engine.with_name(engine.name + ".json")


# ---- building once -------------------------------------------------------------------------------------------------


def find_or_build(key: EngineKey, build: Callable[[], tuple[bytes, Engine]], *, rebuild: bool = False) -> Engine:
    """Returns the cached engine of `key`, building it where there is none or a damaged one.

    Any number of processes may ask at once: one builds, the others wait and use it. `rebuild` builds even where a sound
    one is cached.

    Raises:
        FileProblem: The cache can't be written.
    """
    path = files.cache_dir(_FOLDER) / f"{key.digest}{SUFFIX}"
    if not rebuild:
        found, _ = _look_up(path)
        if found is not None:
            return found
    with _lock(path):
        found, damage = (None, "") if rebuild else _look_up(path)
        if found is not None:
            return found
        plan, built = build()
        digest = hashlib.sha256(plan).hexdigest()
        engine = replace(built, key=key, sha256=digest, size_bytes=len(plan), path=path, replaced=damage)
        record_path(path).unlink(missing_ok=True)
        files.write_bytes(path, plan)
        files.write_json(record_path(path), engine.to_json())
        return engine


def workplace(key: EngineKey) -> Path:
    """Returns the name of a folder in the cache for a builder that needs one; who builds the key has it for itself."""
    return files.cache_dir(_FOLDER) / f"{key.digest}{_WORKPLACE}"


def _lock(path: Path) -> filelock.BaseFileLock:
    return filelock.FileLock(path.with_suffix(".lock"), mode=0o600)


def _look_up(path: Path) -> tuple[Engine | None, str]:
    """Returns the sound entry, or None and what is wrong with the one that is there."""
    if not path.exists():
        return None, ""
    try:
        engine = _read_record(path)
        _check_name(engine)
        _read_verified(engine)
    except BadModel as damage:
        return None, damage.message
    os.utime(path)  # pruning begins with the engine unused for longest
    return replace(engine, cached=True), ""


def _read_record(engine: Path) -> Engine:
    path = record_path(engine)
    try:
        value = json.loads(files.read_bounded(path, _LARGEST_RECORD_BYTES))
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {SCHEMA} expected")
        if value.pop(_SEAL) != _seal(value):
            raise ValueError("it was damaged or changed: its own hash is another")
        return Engine(
            path=engine,
            key=EngineKey.from_json(value["key"]),
            sha256=str(value["sha256"]),
            size_bytes=int(value["size_bytes"]),
            seconds=float(value["seconds"]),
            dimensions={name: tuple(axes) for name, axes in value["dimensions"].items()},
            layers=tuple(value["layers"]),
            warnings=tuple(value["warnings"]),
            model=str(value["model"]),
            dtypes={name: str(dtype) for name, dtype in value["dtypes"].items()},
            metadata={name: str(text) for name, text in value["metadata"].items()},
        )
    except FileNotFoundError as error:
        raise BadModel(f"the engine {engine} has no record ({path.name}) beside it") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise BadModel(f"the record {path} can't be read ({reason(error)})", fix="build the engine again") from error


def read_record(engine: Path) -> Engine:
    """Returns what lies beside an engine; the engine itself is not read, and nothing is executed.

    Raises:
        BadModel: The engine is missing, or its record is missing or can't be read.
    """
    _check_regular(engine)
    return _read_record(engine)


def described_specs(engine: Engine) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Returns the inputs and outputs of an engine as its ONNX file had them.

    Raises:
        BadModel: The record has a dtype that does not exist.
    """
    specs = []
    for name, axes in engine.dimensions.items():
        text = engine.dtypes.get(name, "")
        try:
            specs.append(TensorSpec(name, onnx_types.BFLOAT16 if text == "bfloat16" else np.dtype(text), axes))
        except TypeError as error:
            raise BadModel(f"the record of the engine gives '{name}' the unknown type '{text}'") from error
    inputs = tuple(spec for spec in specs if spec.name in engine.key.profile)
    return inputs, tuple(spec for spec in specs if spec.name not in engine.key.profile)


def _check_name(engine: Engine) -> None:
    if engine.path.stem != engine.key.digest:
        raise BadModel(f"the engine {engine.path} was built from something else than its name says", fix=_AGAIN)


def _read_verified(engine: Engine) -> bytes:
    """Returns the bytes of an engine after comparing them with its record; what is returned is what was compared."""
    try:
        plan = engine.path.read_bytes()
    except OSError as error:
        raise BadModel(f"can't read the engine {engine.path}: {error.strerror}", fix="check the path") from error
    if len(plan) != engine.size_bytes:
        raise BadModel(
            f"the engine {engine.path} is truncated or was changed: {len(plan)} bytes, recorded {engine.size_bytes}",
            fix=_AGAIN,
        )
    digest = hashlib.sha256(plan).hexdigest()
    if digest != engine.sha256:
        raise BadModel(
            f"the engine {engine.path} is damaged or was changed: SHA-256 {digest[:12]}…, "
            f"recorded {engine.sha256[:12]}…",
            fix=_AGAIN,
        )
    return plan


# ---- the gate ------------------------------------------------------------------------------------------------------


def load_engine(path: Path, *, trust: bool) -> tuple[bytes, Engine | None]:
    """Returns an engine's bytes, fit to be executed, and its record; `trust` lets one from elsewhere be executed too.

    Returns:
        The bytes that were checked (read once), and the record; None for a trusted engine without one.

    Raises:
        BadModel: It is missing, damaged, no engine, or from elsewhere and not trusted.
    """
    _check_regular(path)
    if is_ours(path):
        engine = _read_record(path)
        _check_name(engine)
        plan = _read_verified(engine)
        os.utime(path)
        return plan, engine
    if not trust:
        raise BadModel(
            f"the engine {path} was not built by this machine's own cache; an engine is code and could do anything",
            fix="build it here from its ONNX file: resnet-onnx build; or, where you know who made it: --trust-engine",
        )
    if record_path(path).exists():
        engine = _read_record(path)
        return _read_verified(engine), engine
    return path.read_bytes(), None


def is_ours(path: Path) -> bool:
    """Returns whether a path is an engine in this machine's own cache, behind no link."""
    folder = files.cache_root() / _FOLDER
    here = folder.is_dir() and os.path.realpath(path.parent) == os.path.realpath(folder)
    if not here or path.suffix != SUFFIX:
        return False
    files.cache_dir(_FOLDER)  # refuses a folder of another user, and closes one that was open to others
    found = path.lstat()
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and (os.name == "nt" or found.st_uid == os.getuid())


def _check_regular(path: Path) -> None:
    try:
        found = path.stat()
    except OSError as error:
        raise BadModel(f"can't read the engine {path}: {error.strerror}", fix="check the path") from error
    if not stat.S_ISREG(found.st_mode):
        raise BadModel(f"{path} is not a regular file, expected an engine")
    if found.st_size == 0:
        raise BadModel(f"the engine {path} is empty", fix=_AGAIN)


def copy_engine(engine: Engine, output: Path) -> Path:
    """Copies an engine and its record to `output`, to deploy it; opening it there needs trust.

    Raises:
        FileProblem: The folder can't be written.
    """
    plan = _read_verified(engine)
    files.write_bytes(output, plan)
    files.write_json(record_path(output), engine.to_json())
    return output


# ---- size and pruning ----------------------------------------------------------------------------------------------


UNKNOWN = EngineKey(model_sha256="", profile={}, precision="", tf32=False, library="", library_version="", target="")
"""Of an entry in the cache of which nothing is known."""


def list_engines() -> list[Engine]:
    """Returns the engines in the cache, the latest used first; reads records, not engines."""
    folder = files.cache_root() / _FOLDER
    rows = []
    for path in folder.glob(f"*{SUFFIX}") if folder.is_dir() else ():
        try:
            found = path.stat()
        except OSError:
            continue  # pruned by another process
        try:
            engine = _read_record(path)
            problem = "" if found.st_size == engine.size_bytes else "truncated"
        except BadModel as damage:
            engine, problem = Engine(key=UNKNOWN, path=path), damage.message
        rows.append(replace(engine, size_bytes=found.st_size, last_used=found.st_mtime, problem=problem))
    return sorted(rows, key=lambda row: row.last_used, reverse=True)


def prune_engines(max_bytes: int) -> list[Engine]:
    """Removes unusable engines, then those unused for longest, until the rest needs at most `max_bytes`.

    Returns what was removed; an engine that another process is building just now stays.

    Raises:
        UsageError: `max_bytes` is negative.
    """
    if max_bytes < 0:
        raise UsageError(f"the cache can't be pruned to {max_bytes} bytes")

    def remove(path: Path) -> None:
        for kernels in path.parent.glob(f"{path.stem}-*{_KERNELS}"):
            kernels.unlink(missing_ok=True)
        record_path(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    folder = files.cache_root() / _FOLDER
    for left in folder.glob(f"*{_WORKPLACE}") if folder.is_dir() else ():  # of builders that were killed
        _remove(left.with_suffix(SUFFIX), _remove_workplace)
    return prune_listed(list_engines(), max_bytes, remove)


def _remove_workplace(engine: Path) -> None:
    shutil.rmtree(engine.with_suffix(_WORKPLACE), ignore_errors=True)


def prune_listed(rows: Iterable[Engine], max_bytes: int, remove: Callable[[Path], None]) -> list[Engine]:
    """Removes what ``prune_engines`` says from `rows`, the latest used first; raises ``FileProblem`` where it can't."""
    kept, removed = 0, []
    for row in rows:
        if (row.problem or kept + row.size_bytes > max_bytes) and _remove(row.path, remove):
            removed.append(row)
        else:
            kept += row.size_bytes
    return removed


def _remove(path: Path, remove: Callable[[Path], None]) -> bool:
    try:
        with _lock(path).acquire(timeout=0):
            remove(path)
    except filelock.Timeout:
        return False
    except OSError as error:
        raise FileProblem(f"can't remove {path}: {error.strerror}", fix="check the permissions of the cache") from error
    return True


# ---- what libraries remember between builds and runs -----------------------------------------------------------------


def load_timings(name: str) -> bytes:
    """Returns a builder's timing cache, or b"" where there is none or a damaged one; `name` has library and GPU."""
    return files.read_sealed(files.cache_root() / _FOLDER / f"{name}.timings") or b""


def store_timings(name: str, data: bytes) -> None:
    """Keeps a builder's timing cache for the next build; the last writer wins."""
    files.write_sealed(files.cache_dir(_FOLDER) / f"{name}.timings", data)


def load_kernels(engine: Path, where: str) -> bytes:
    """Returns the kernels that an engine of this cache was compiled into in earlier processes, or b"".

    `where` names what they were compiled by and for: library, version, GPU, driver.
    """
    return files.read_sealed(_kernels_path(engine, where)) or b""


def store_kernels(engine: Path, where: str, data: bytes) -> None:
    """Keeps an engine's compiled kernels for later processes; the last writer wins."""
    files.write_sealed(_kernels_path(engine, where), data)


def _kernels_path(engine: Path, where: str) -> Path:
    return engine.with_name(f"{engine.stem}-{hashlib.sha256(where.encode()).hexdigest()[:16]}{_KERNELS}")


def specs_with_names(
    specs: tuple[TensorSpec, ...], dimensions: Mapping[str, tuple[int | str, ...]]
) -> tuple[TensorSpec, ...]:
    """Gives the axes of an engine's tensors the names that they had in the ONNX file."""
    named = []
    for spec in specs:
        axes = dimensions.get(spec.name, ())
        known = axes if len(axes) == len(spec.shape) else spec.shape
        shape = tuple(n if isinstance(n, int) else axis for n, axis in zip(spec.shape, known, strict=True))
        named.append(replace(spec, shape=shape))
    return tuple(named)
